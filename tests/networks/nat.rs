//! Machines behind NATs: which way each pair ends up, and what goes over a relay where nothing else leads.

use std::time::{Duration, Instant};

use narmesh_tests::{Nat, Network, PROMISE_FACTOR, Place, TestMesh, TestNode, get, promised, wait_until};

use crate::report::{Table, seconds};

/// A connection over a relay is made within this.
const MEETING: Duration = Duration::from_secs(5);
/// A pair that can have a direct connection has one within this after the start; there are three trials in that time.
const UPGRADED: Duration = Duration::from_secs(12);
/// The size of each NAR that a pair of the table substitutes.
const NAR_BYTES: u64 = 64 << 10;

/// Nodes that all know the addresses of the relays, and of nobody else. The relays come first.
pub fn meet(network: &Network, mesh: &TestMesh, relays: usize, names: &[&str]) -> Vec<TestNode> {
    let mut nodes: Vec<_> = names.iter().map(|name| mesh.node(name)).collect();
    TestMesh::introduce(&mut nodes.iter_mut().collect::<Vec<_>>());
    for (node, machine) in nodes.iter_mut().zip(network.machines()) {
        node.live_on(machine);
    }
    let reached_at: Vec<_> = nodes[..relays].iter().map(|node| (node.name.clone(), node.p2p_address())).collect();
    for (number, node) in nodes.iter_mut().enumerate() {
        node.config.relay = (number < relays).then_some(true);
        for (name, address) in reached_at.iter().filter(|(name, _)| *name != names[number]) {
            node.learn_address(name, address);
            node.rely_on(name);
        }
    }
    nodes
}

/// Which way `from` reaches `to` now.
pub fn way(from: &TestNode, to: &str) -> Option<String> {
    Some(from.status().peer(to)?["way"].as_str()?.to_owned())
}

#[test]
fn machines_behind_nats_that_nothing_gets_through_substitute_over_a_relay() {
    let Some(_turn) = crate::turn() else { return };
    let network = Network::behind_nats(&[Place::Public, Place::Behind(Nat::Symmetric), Place::Behind(Nat::Symmetric)]);
    let mesh = TestMesh::new();
    let mut nodes = meet(&network, &mesh, 1, &["relay", "a", "b"]);
    let app = nodes[1].store.build_one("app");
    nodes.iter_mut().for_each(TestNode::start);
    let [relay, a, b] = nodes.as_slice() else { unreachable!("three nodes") };
    b.wait_connected("a", true, MEETING);
    a.wait_all_advertised(&[b]);
    b.realise(&[app]).expect_success("nix-store --realise over the relay");
    b.store.verify_contents();
    let passed_on = relay.status().number("/relay/bytes");
    assert!(passed_on > 0, "the relay counts what it passes on");
    for (node, other) in [(a, "b"), (b, "a")] {
        let seen = node.wait_status("says why it is not direct", UPGRADED, |status| {
            status.peer(other).unwrap()["not_direct"].is_string()
        });
        let there = seen.peer(other).unwrap();
        assert_eq!((&there["way"], &there["relay_name"]), (&"relayed".into(), &"relay".into()), "{there}");
    }
    let text = b.narmesh(&["status"]).expect_success("narmesh status");
    assert!(text.contains("a: over the relay relay, because not directly: "), "{text}");
}

/// The relay through which a NAR goes is killed, and the NAR arrives over the other one.
#[test]
fn a_nar_arrives_although_its_relay_ends_in_the_middle() {
    let Some(_turn) = crate::turn() else { return };
    let behind = Place::Behind(Nat::Symmetric);
    let network = Network::behind_nats(&[Place::Public, Place::Public, behind, behind]);
    let mesh = TestMesh::new();
    let mut nodes = meet(&network, &mesh, 2, &["relay1", "relay2", "a", "b"]);
    nodes[2].config.upload_bytes_per_s = Some(4 << 20);
    let paths = nodes[2].store.hold_noise(1, 24 << 20, 1);
    nodes.iter_mut().for_each(TestNode::start);
    nodes[3].wait_connected("a", true, MEETING);
    nodes[2].wait_all_advertised(&[&nodes[3]]);
    let passed_on = |node: &TestNode| node.status().number("/relay/bytes");
    let (relays, others) = nodes.split_at_mut(2);
    let b = &others[1];
    let said = std::thread::scope(|scope| {
        let fetched = scope.spawn(|| b.realise(&paths));
        wait_until("a quarter has gone through", promised(MEETING), || {
            relays.iter().any(|relay| passed_on(relay) > 6 << 20)
        });
        let used = usize::from(passed_on(&relays[1]) > passed_on(&relays[0]));
        relays[used].kill();
        fetched.join().unwrap()
    });
    said.expect_success("nix-store --realise over two relays");
    b.store.verify_contents();
}

/// A relay that is none any more is left at once, and what nobody has asked for yet arrives over the other one.
#[test]
fn nothing_is_told_gone_when_a_relay_stops_relaying() {
    let Some(_turn) = crate::turn() else { return };
    let behind = Place::Behind(Nat::Symmetric);
    let network = Network::behind_nats(&[Place::Public, Place::Public, behind, behind]);
    let mesh = TestMesh::new();
    let mut nodes = meet(&network, &mesh, 2, &["relay1", "relay2", "a", "b"]);
    let app = nodes[2].store.build_one("app");
    nodes.iter_mut().for_each(TestNode::start);
    let (_, others) = nodes.split_at_mut(2);
    let relay_of = |node: &TestNode| Some(node.status().peer("a")?["relay_name"].as_str()?.to_owned());
    wait_until("b reaches a over a relay", promised(MEETING), || relay_of(&others[1]).is_some());
    others[0].wait_all_advertised(&[&others[1]]);
    let used = relay_of(&others[1]).expect("seen above");
    for node in others.iter_mut() {
        node.config.peers.iter_mut().filter(|peer| peer.name == used).for_each(|peer| peer.relay = false);
        node.write_config();
        node.narmesh(&["reload"]).expect_success("reload");
    }
    others[1].realise(&[app]).expect_success("nix-store --realise just after the relay stopped");
    let now = relay_of(&others[1]).expect("over the other relay");
    assert_ne!(now, used);
}

/// How the machines of the table are called, and where they are.
const MACHINES: [(&str, Place); 12] = [
    ("relay", Place::Public),
    ("public", Place::Public),
    ("public-2", Place::Public),
    ("keeping", Place::Behind(Nat::Keeping)),
    ("keeping-2", Place::Behind(Nat::Keeping)),
    ("changing", Place::Behind(Nat::Changing)),
    ("changing-2", Place::Behind(Nat::Changing)),
    ("symmetric", Place::Behind(Nat::Symmetric)),
    ("symmetric-2", Place::Behind(Nat::Symmetric)),
    ("twice", Place::Twice),
    ("twice-2", Place::Twice),
    // In the home of the machine "keeping".
    ("home", Place::WithMachine(3)),
];

/// Whether two machines can have a connection without a relay.
fn is_possible((name, place): (&str, Place), (other_name, other): (&str, Place)) -> bool {
    let is_public = |place: Place| place == Place::Public;
    // A machine in a home is behind the NAT of that home.
    let is_symmetric = |place: Place| place == Place::Behind(Nat::Symmetric);
    match (place, other) {
        // The provider's router of this network does not lead back in.
        (Place::Twice, Place::Twice) => name == other_name,
        (one, two) => is_public(one) || is_public(two) || !(is_symmetric(one) || is_symmetric(two)),
    }
}

/// Every pair of kinds of NAT, or with `NARMESH_TEST_FULL=1` of machines.
fn pairs() -> Vec<(usize, usize)> {
    let is_full = std::env::var_os("NARMESH_TEST_FULL").is_some();
    let all = (1..MACHINES.len()).flat_map(|one| (one + 1..MACHINES.len()).map(move |other| (one, other)));
    let is_second = |name: &str| name.ends_with("-2") || name == "home";
    // The first of one kind with the second of the same kind or of a later one.
    let is_shown = |(one, other): &(usize, usize)| {
        let (name, other) = (MACHINES[*one].0, MACHINES[*other].0);
        !is_second(name) && is_second(other) && (other != "home" || name == "keeping")
    };
    all.filter(|pair| is_full || is_shown(pair)).collect()
}

#[test]
fn each_pair_of_nats_substitutes_and_has_the_best_way_that_there_is() {
    let Some(_turn) = crate::turn() else { return };
    let places: Vec<_> = MACHINES.iter().map(|(_, place)| *place).collect();
    let names: Vec<_> = MACHINES.iter().map(|(name, _)| *name).collect();
    let (network, mesh) = (Network::behind_nats(&places), TestMesh::new());
    let mut nodes = meet(&network, &mesh, 1, &names);
    let paths: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(number, node)| node.store.hold_noise(MACHINES.len(), NAR_BYTES, number as u64 + 1))
        .collect();
    nodes.iter_mut().for_each(TestNode::launch);
    nodes.iter_mut().for_each(|node| node.wait_started(MEETING));
    let (started, pairs) = (Instant::now(), pairs());
    let mut ways: Vec<Option<(String, Duration)>> = vec![None; pairs.len()];
    let is_settled = |pair: &(usize, usize), way: &Option<(String, Duration)>| {
        let is_better = way.as_ref().is_some_and(|(way, _)| way != "relayed");
        way.is_some() && (is_better || !is_possible(MACHINES[pair.0], MACHINES[pair.1]))
    };
    while !pairs.iter().zip(&ways).all(|(pair, way)| is_settled(pair, way)) {
        let seen: Vec<_> = nodes.iter().map(TestNode::status).collect();
        let elapsed = started.elapsed();
        for ((one, other), way) in pairs.iter().zip(&mut ways) {
            let now = seen[*one].peer(names[*other]).and_then(|peer| peer["way"].as_str());
            if let Some(now) = now.filter(|now| way.as_ref().is_none_or(|(before, _)| before != now)) {
                *way = Some((now.to_owned(), elapsed));
            }
        }
        let open: Vec<_> = pairs.iter().zip(&ways).filter(|(pair, way)| !is_settled(pair, way)).collect();
        assert!(elapsed < UPGRADED * PROMISE_FACTOR, "not settled: {open:?}");
    }
    let mut table = Table::new("nat", &["one", "other", "theory", "way", "after", "substituted"]);
    for ((one, other), way) in pairs.iter().zip(ways) {
        let (way, after) = way.unwrap();
        let path = paths[*one][*other].clone();
        let since = Instant::now();
        let _found = nodes[*other].wait_narinfo(&path);
        nodes[*other].realise(&[path]).expect_success(&format!("{} from {}", names[*other], names[*one]));
        let theory = if is_possible(MACHINES[*one], MACHINES[*other]) { "direct" } else { "relay" };
        assert_eq!(way == "relayed", theory == "relay", "{} and {}", names[*one], names[*other]);
        table.row(&[names[*one], names[*other], theory, &way, &seconds(after), &seconds(since.elapsed())]);
    }
}

/// Not behind a NAT, and still reached by nobody: IPv6 with a firewall that lets nobody in.
#[test]
fn machines_of_ipv6_behind_firewalls_meet_without_the_relay() {
    let Some(_turn) = crate::turn() else { return };
    let (network, mesh) = (Network::behind_firewalls(&[false, true, true]), TestMesh::new());
    let mut nodes = meet(&network, &mesh, 1, &["relay", "a", "b"]);
    let paths = nodes[1].store.hold_noise(1, NAR_BYTES, 1);
    nodes.iter_mut().for_each(TestNode::start);
    let started = Instant::now();
    let [_, a, b] = nodes.as_slice() else { unreachable!("three nodes") };
    wait_until("they meet", promised(UPGRADED), || way(b, "a").is_some_and(|way| way != "relayed"));
    println!("IPv6 behind two firewalls: {} after {}", way(b, "a").unwrap(), seconds(started.elapsed()));
    a.wait_all_advertised(&[b]);
    b.realise(&paths).expect_success("nix-store --realise through two firewalls");
}

/// A relay with a bill for its traffic passes on what it may in a second, and who waits for it is not told gone.
#[test]
fn a_relay_keeps_its_limit_and_everything_arrives_at_that_rate() {
    let Some(_turn) = crate::turn() else { return };
    const BYTES_PER_S: u32 = 2 << 20;
    const NAR_BYTES: u64 = 6 << 20;
    let behind = Place::Behind(Nat::Symmetric);
    let (network, mesh) = (Network::behind_nats(&[Place::Public, behind, behind]), TestMesh::new());
    let mut nodes = meet(&network, &mesh, 1, &["relay", "a", "b"]);
    nodes[0].config.relay_bytes_per_s = Some(BYTES_PER_S);
    let paths = nodes[1].store.hold_noise(3, NAR_BYTES, 1);
    nodes.iter_mut().for_each(TestNode::start);
    let [relay, a, b] = nodes.as_slice() else { unreachable!("three nodes") };
    b.wait_connected("a", true, MEETING);
    a.wait_all_advertised(&[b]);
    let since = Instant::now();
    let (first, last) = paths.split_at(2);
    std::thread::scope(|scope| {
        let fetched = scope.spawn(|| b.realise(first));
        wait_until("NARs are under way", promised(MEETING), || relay.status().number("/relay/bytes") > 1 << 20);
        // Asked while the circuit of the NARs has all that it may have.
        assert_eq!(b.get_narinfo(&last[0]).status, 200, "a narinfo passes beside the NARs");
        fetched.join().unwrap().expect_success("nix-store --realise over a slow relay");
    });
    // What may go in the first second is there at once.
    let at_least = (2 * NAR_BYTES / u64::from(BYTES_PER_S) - 1) as f64;
    let took = since.elapsed().as_secs_f64();
    assert!(took > at_least, "{took:.1} s, but {at_least:.1} s at the least");
    let metrics = network.machine(0).enter(|| get(relay.gateway(), "/metrics").unwrap().text());
    let passed_on = metrics.lines().find_map(|line| line.strip_prefix("narmesh_relay_bytes_total "));
    assert!(passed_on.is_some_and(|bytes| bytes.parse::<u64>().unwrap() > 2 * NAR_BYTES), "{passed_on:?}");
}

/// What a relay costs: its rate beside that of a direct connection, and its time for a gigabyte.
#[test]
fn a_relay_carries_nars_at_the_rate_of_its_machine() {
    let Some(_turn) = crate::turn() else { return };
    const BYTES: u64 = 192 << 20;
    let behind = Place::Behind(Nat::Symmetric);
    let (network, mesh) = (Network::behind_nats(&[Place::Public, behind, behind, Place::Public]), TestMesh::new());
    let mut nodes = meet(&network, &mesh, 1, &["relay", "a", "b", "c"]);
    let held = [1, 3].map(|number| nodes[number].store.hold_noise(1, BYTES, number as u64));
    nodes.iter_mut().for_each(TestNode::start);
    let mut table = Table::new("relay", &["way", "MB/s", "CPU of the relay, s for a GB"]);
    for (name, paths) in ["a", "c"].into_iter().zip(&held) {
        nodes[2].wait_connected(name, true, MEETING);
        let _found = nodes[2].wait_narinfo(&paths[0]);
        let (relay, b) = (&nodes[0], &nodes[2]);
        let (used, since) = (relay.processor_time(), Instant::now());
        b.realise(paths).expect_success(name);
        let (took, used) = (since.elapsed().as_secs_f64(), (relay.processor_time() - used).as_secs_f64());
        let gigabytes = BYTES as f64 / 1e9;
        let rate = format!("{:.0}", gigabytes * 1e3 / took);
        table.row(&[&way(b, name).unwrap(), &rate, &format!("{:.2}", used / gigabytes)]);
    }
}
