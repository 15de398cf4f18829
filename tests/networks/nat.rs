//! Machines behind NATs: over a relay where nothing else leads to them.

use std::time::Duration;

use narmesh_tests::{Nat, Network, Place, TestMesh};

/// A connection over a relay is made within this.
const MEETING: Duration = Duration::from_secs(5);

#[test]
fn machines_behind_nats_that_nothing_gets_through_substitute_over_a_relay() {
    let Some(_turn) = crate::turn() else { return };
    let network = Network::behind_nats(&[Place::Public, Place::Behind(Nat::Symmetric), Place::Behind(Nat::Symmetric)]);
    let mesh = TestMesh::new();
    let [mut relay, mut a, mut b] = ["relay", "a", "b"].map(|name| mesh.node(name));
    TestMesh::introduce(&mut [&mut relay, &mut a, &mut b]);
    for (node, machine) in [&mut relay, &mut a, &mut b].into_iter().zip(network.machines()) {
        node.live_on(machine);
    }
    relay.config.relay = Some(true);
    let reached_at = relay.p2p_address();
    for node in [&mut a, &mut b] {
        node.learn_address("relay", &reached_at);
        node.rely_on("relay");
    }
    let app = a.store.build_one("app");
    for node in [&mut relay, &mut a, &mut b] {
        node.start();
    }
    b.wait_connected("a", true, MEETING);
    a.wait_all_advertised(&[&b]);
    b.realise(&[app]).expect_success("nix-store --realise over the relay");
    b.store.verify_contents();
    let seen = b.status();
    let there = seen.peer("a").unwrap();
    assert_eq!((&there["way"], &there["relay_name"]), (&"relayed".into(), &"relay".into()), "{there}");
    let passed_on = relay.status().number("/relay/bytes");
    assert!(passed_on > 0, "the relay counts what it passes on");
    let text = b.narmesh(&["status"]).expect_success("narmesh status");
    assert!(text.contains("a: over the relay relay"), "{text}");
}
