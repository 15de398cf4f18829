//! Connections that only one side knows to be dead: gossip must go on both ways on the connections that replace them.

use std::time::{Duration, Instant};

use narmesh_tests::{Fleet, Link, Network, build_and_tell, wait_tables};

/// A new path is promised to be known everywhere within this.
const KNOWN: Duration = Duration::from_secs(2);
/// After any fault, tables are promised to be equal again within this.
const HEALED: Duration = Duration::from_secs(10);
/// Nodes that missed an announcement find out when they compare what they know, about once a minute. This many builds in a
/// row cannot all be found that way.
const BUILDS: usize = 3;

/// Machine 0 stays in site 0, machine 1 begins in site 1; a third site is there to move to.
fn pair() -> Fleet {
    let network =
        Network::in_sites(&[1, 1, 1], Link::PERFECT, Link { delay: Duration::from_millis(5), ..Link::PERFECT }, 3);
    let names = ["stays", "roams"].map(str::to_owned);
    let mut fleet = Fleet::on(network, &names, 2, 0);
    let started = Instant::now();
    fleet.nodes.iter_mut().for_each(narmesh_tests::TestNode::start);
    let all: Vec<_> = fleet.nodes.iter().collect();
    wait_tables("started", started, HEALED, &all, &all);
    fleet
}

/// Each hears at once what the other builds.
fn assert_both_heard(fleet: &Fleet, when: &str) {
    let all: Vec<_> = fleet.nodes.iter().collect();
    for number in 0..BUILDS {
        for node in &all {
            let (_, took) = build_and_tell(node, &format!("{when}-{}-{number}", node.name), KNOWN, &all);
            println!("{when}: built on {}, known after {took:?}", node.name);
        }
    }
}

fn wait_equal(fleet: &Fleet, what: &str, since: Instant) {
    let all: Vec<_> = fleet.nodes.iter().collect();
    println!("{what}: {:?}", wait_tables(what, since, HEALED, &all, &all));
}

#[test]
fn a_machine_that_moved_hears_and_is_heard_as_before() {
    let Some(_turn) = crate::turn() else { return };
    let mut fleet = pair();
    for site in [2, 0, 1] {
        let machine = fleet.network.move_machine(1, site).clone();
        fleet.nodes[1].live_on(&machine);
        let moved = Instant::now();
        fleet.nodes[1].store.build_fresh(&format!("on-the-road-{site}"));
        fleet.nodes[1].wait_all_advertised(&[]);
        wait_equal(&fleet, "after the move", moved);
        assert_both_heard(&fleet, &format!("moved-to-{site}"));
    }
}

#[test]
fn a_machine_that_lost_power_hears_and_is_heard_as_before() {
    let Some(_turn) = crate::turn() else { return };
    let mut fleet = pair();
    // The other side is not told that this machine is gone, and does not notice, as it sends nothing meanwhile.
    fleet.network.emulator().set_cut(1, true);
    fleet.nodes[1].kill();
    fleet.network.machine(1).forget_connections();
    fleet.nodes[1].start();
    fleet.network.emulator().set_cut(1, false);
    let healed = Instant::now();
    fleet.nodes[1].store.build_fresh("after-the-power-cut");
    fleet.nodes[1].wait_all_advertised(&[]);
    wait_equal(&fleet, "after the power cut", healed);
    assert_both_heard(&fleet, "power-cut");
}
