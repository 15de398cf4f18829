//! Machines that want the same NARs at the same time, of one builder, each behind a line of its own, or of a cache, all behind
//! one line.

use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{Network, PlainCache, TestMesh, TestNode, assert_unblamed};
use rustix::process::Signal;

use crate::report::{Table, seconds};

/// A connection is made, and a summary heard, within this.
const MEETING: Duration = Duration::from_secs(10);

struct Fleet {
    network: Network,
    _mesh: TestMesh,
    _builder: TestNode,
    machines: Vec<TestNode>,
    /// Two NARs of the same size.
    paths: Vec<String>,
    nar_bytes: u64,
}

impl Fleet {
    /// A builder and `machines`, all behind lines of this rate, which know each other.
    fn new(machines: usize, kilobits_per_s: u32, nar_bytes: u64) -> Self {
        let network = Network::on_a_bridge(machines + 1);
        network.send_real_packets();
        let mesh = TestMesh::new();
        let mut nodes: Vec<_> = (0..=machines).map(|number| mesh.node(&format!("machine{number}"))).collect();
        TestMesh::introduce(&mut nodes.iter_mut().collect::<Vec<_>>());
        for (number, (node, machine)) in nodes.iter_mut().zip(network.machines()).enumerate() {
            node.live_on(machine);
            network.set_uplink(number, kilobits_per_s);
        }
        let address = nodes[0].p2p_address();
        let mut builder = nodes.remove(0);
        let paths = builder.store.hold_noise(2, nar_bytes, 7);
        builder.start();
        for node in &mut nodes {
            node.learn_address("machine0", &address);
            node.start();
        }
        for one in &nodes {
            one.wait_connected(&builder.name, true, MEETING);
            // Addresses are learned from the builder's summaries.
            for other in nodes.iter().filter(|other| other.name != one.name) {
                one.wait_connected(&other.name, true, MEETING);
            }
        }
        builder.wait_all_advertised(&nodes.iter().collect::<Vec<_>>());
        Self { network, _mesh: mesh, _builder: builder, machines: nodes, paths, nar_bytes }
    }

    fn sent_bytes(&self) -> u64 {
        self.network.machine(0).traffic().sent_bytes
    }

    /// How long one machine takes for the first NAR while nobody else wants anything.
    fn fetch_alone(&self) -> Duration {
        let since = Instant::now();
        self.machines[0].realise(&self.paths[..1]).expect_success("alone");
        since.elapsed()
    }

    /// How long each machine takes for the second NAR when all want it at once, with how often the builder's line carries it.
    fn fetch_all(&self) -> (Vec<Duration>, f64) {
        let before = self.sent_bytes();
        let took = fetch_at_once(&self.machines, &self.paths[1]);
        (took, (self.sent_bytes() - before) as f64 / self.nar_bytes as f64)
    }
}

/// How long each of these machines takes for this NAR when all of them ask at once.
fn fetch_at_once(machines: &[TestNode], path: &str) -> Vec<Duration> {
    let since = Instant::now();
    let fetch = |machine: &TestNode| {
        machine.realise(&[path.to_owned()]).expect_success("together");
        since.elapsed()
    };
    thread::scope(|scope| {
        let fetching: Vec<_> = machines.iter().map(|machine| scope.spawn(move || fetch(machine))).collect();
        fetching.into_iter().map(|fetching| fetching.join().unwrap()).collect()
    })
}

fn measure(what: &'static str, machines: usize, kilobits_per_s: u32, nar_bytes: u64) {
    let Some(_turn) = crate::turn() else { return };
    let fleet = Fleet::new(machines, kilobits_per_s, nar_bytes);
    let alone = fleet.fetch_alone();
    let (mut took, copies) = fleet.fetch_all();
    took.sort_unstable();
    let (first, last) = (took[0], took[took.len() - 1]);
    let ratio = last.as_secs_f64() / alone.as_secs_f64();
    let columns = ["fleet", "one alone", "first of all", "last of all", "times one alone", "copies the builder sent"];
    let mut table = Table::new(what, &columns);
    let (ratio_text, copies_text) = (format!("{ratio:.2}"), format!("{copies:.2}"));
    table.row(&[what, &seconds(alone), &seconds(first), &seconds(last), &ratio_text, &copies_text]);
    assert_unblamed(&fleet.machines.iter().collect::<Vec<_>>());
    assert!(copies <= 2.5, "the builder sent {copies:.2} copies to {machines} machines");
    assert!(ratio <= 2.0, "the last of {machines} machines took {ratio:.2} times as long as one alone");
}

#[test]
fn six_machines_that_start_together_cost_their_builder_about_two_copies() {
    measure("six-machines-at-20-mbit", 6, 20_000, 24_000_000);
}

/// Machines on one network, and a cache behind one slow line: how often the line carries what all of them want.
fn measure_site(what: &'static str, machines: usize, kilobits_per_s: u32, (small, large): (usize, u64)) {
    let Some(_turn) = crate::turn() else { return };
    let network = Network::on_a_bridge(machines + 1);
    network.send_real_packets();
    network.set_uplink(0, kilobits_per_s);
    let mesh = TestMesh::new();
    let mut far = mesh.node("far");
    let mut nodes: Vec<_> = (1..=machines).map(|number| mesh.node(&format!("machine{number}"))).collect();
    TestMesh::introduce(&mut nodes.iter_mut().collect::<Vec<_>>());
    far.live_on(network.machine(0));
    // The same for one machine alone and then for all.
    let sets = [7, 8].map(|seed| {
        let small_nars = far.store.hold_noise(small, 400_000, seed);
        [small_nars, far.store.hold_noise(1, large, 100 + seed)].concat()
    });
    let nar_bytes = 400_000 * small as u64 + large;
    let cache = PlainCache::beside(&far, &sets.concat());
    for (number, node) in nodes.iter_mut().enumerate() {
        node.live_on(network.machine(number + 1));
        node.config.trusted_public_keys.push(far.builder_key());
        node.config.more = cache.upstream("far", &far);
    }
    let addresses: Vec<_> = nodes.iter().map(|node| (node.name.clone(), node.p2p_address())).collect();
    for node in &mut nodes {
        for (name, address) in &addresses {
            if *name != node.name {
                node.learn_address(name, address);
            }
        }
        node.start();
    }
    for one in &nodes {
        for other in nodes.iter().filter(|other| other.name != one.name) {
            one.wait_connected(&other.name, true, MEETING);
        }
    }
    let sent = || network.machine(0).traffic().sent_bytes;
    let since = Instant::now();
    nodes[0].realise(&sets[0]).expect_success("alone");
    let alone = since.elapsed();
    let before = sent();
    let since = Instant::now();
    let took: Vec<_> = thread::scope(|scope| {
        let fetch = |machine: &TestNode| {
            machine.realise(&sets[1]).expect_success("together");
            since.elapsed()
        };
        let fetching: Vec<_> = nodes.iter().map(|machine| scope.spawn(move || fetch(machine))).collect();
        fetching.into_iter().map(|fetching| fetching.join().unwrap()).collect()
    });
    let copies = (sent() - before) as f64 / nar_bytes as f64;
    let last = took.iter().max().unwrap();
    let ratio = last.as_secs_f64() / alone.as_secs_f64();
    let columns = ["site behind one line", "one alone", "last of all", "times one alone", "copies over the line"];
    let mut table = Table::new(what, &columns);
    table.row(&[what, &seconds(alone), &seconds(*last), &format!("{ratio:.2}"), &format!("{copies:.2}")]);
    assert_unblamed(&nodes.iter().collect::<Vec<_>>());
    if copies > 1.5 {
        for node in &nodes {
            println!("{}: {}", node.name, node.narmesh(&["why", sets[1].last().unwrap()]).stdout);
            println!("{}: {}", node.name, node.narmesh(&["why", &sets[1][0]]).stdout);
        }
    }
    assert!(copies <= 1.5, "the line carried {copies:.2} copies for {machines} machines");
    assert!(ratio <= 2.0, "the last of {machines} machines took {ratio:.2} times as long as one alone");
}

#[test]
fn six_machines_that_want_the_same_of_a_cache_fetch_it_about_once() {
    measure_site("six-machines-behind-20-mbit", 6, 20_000, (20, 12_000_000));
}

// Whoever reads from it goes on with another one, or with the builder, at the byte where it was.
#[test]
fn machine_that_dies_in_the_middle_of_a_fleet_stops_nobody() {
    let Some(_turn) = crate::turn() else { return };
    let mut fleet = Fleet::new(4, 20_000, 24_000_000);
    let alone = fleet.fetch_alone();
    // It asks first, so the others get the NAR from it, directly or not.
    let victim = fleet.machines.remove(1);
    let took = thread::scope(|scope| {
        let doomed = scope.spawn(|| victim.realise(&fleet.paths[1..]));
        thread::sleep(alone / 20);
        let others = scope.spawn(|| fetch_at_once(&fleet.machines, &fleet.paths[1]));
        thread::sleep(alone / 2);
        victim.signal(Signal::KILL);
        doomed.join().unwrap().expect_failure("its daemon is dead");
        others.join().unwrap()
    });
    let last = took.iter().max().unwrap().as_secs_f64() / alone.as_secs_f64();
    let mut table = Table::new("fleet-with-a-death", &["fleet", "last of all, times one alone"]);
    table.row(&["three machines at 20 Mbit/s behind one that is killed", &format!("{last:.2}")]);
    assert_unblamed(&fleet.machines.iter().collect::<Vec<_>>());
    assert!(last <= 2.0, "the last one took {last:.2} times as long as one alone");
}

#[test]
#[ignore = "takes minutes: run by ./test.sh --full"]
fn twenty_machines_that_start_together_cost_their_builder_about_two_copies() {
    measure("twenty-machines-at-10-mbit", 20, 10_000, 30_000_000);
}
