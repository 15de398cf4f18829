//! Machines that have only one of IPv4 and IPv6, with the `listen` setting that `narmesh init` writes, which names both.

use std::time::Duration;

use narmesh_tests::{Network, TestMesh};

/// A connection is made within this.
const MEETING: Duration = Duration::from_secs(5);

#[test]
fn daemons_with_ipv6_alone_connect_and_substitute() {
    let Some(_turn) = crate::turn() else { return };
    let network = Network::on_a_bridge_of_ipv6(3);
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    TestMesh::introduce(&mut [&mut a, &mut b, &mut c]);
    for (node, machine) in [&mut a, &mut b, &mut c].into_iter().zip(network.machines()) {
        node.live_on(machine);
    }
    let app = a.store.build_one("app");
    // a and c learn each other's addresses from b: summaries carry IPv6 addresses as well.
    let middle = b.p2p_address();
    a.learn_address("b", &middle);
    c.learn_address("b", &middle);
    for node in [&mut a, &mut b, &mut c] {
        node.start();
    }
    c.wait_connected("b", true, MEETING);
    c.wait_connected("a", true, MEETING);
    let there = c.status().peer("a").unwrap()["addresses"].to_string();
    assert!(there.contains(&a.p2p_address()) && there.contains("/ip6/fd00:77::1/"), "{there}");
    a.wait_all_advertised(&[&c]);
    c.realise(&[app]).expect_success("nix-store --realise over IPv6");
    c.store.verify_contents();
}

#[test]
fn a_daemon_without_ipv6_starts_and_says_so_once() {
    let Some(_turn) = crate::turn() else { return };
    let network = Network::on_a_bridge(2);
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    TestMesh::introduce(&mut [&mut a, &mut b]);
    for (node, machine) in [&mut a, &mut b].into_iter().zip(network.machines()) {
        node.live_on(machine);
    }
    // With IPv6 switched off, the kernel still binds `::`, but no other address of that family.
    b.config.listen.push("/ip6/::1/tcp/7282".to_owned());
    b.learn_address("a", &a.p2p_address());
    a.start();
    b.start();
    b.wait_connected("a", true, MEETING);
    for node in [&a, &b] {
        let log = node.log();
        let said: Vec<_> = log.lines().filter(|line| line.contains("this machine has no IPv6")).collect();
        assert_eq!(said.len(), 1, "{}: {said:?}", node.name);
        assert!(!log.contains("not all addresses of node.listen"), "it waits for none that never comes: {log}");
    }
    let app = a.store.build_one("app");
    a.wait_all_advertised(&[&b]);
    b.realise(&[app]).expect_success("nix-store --realise");

    b.terminate();
    b.config.listen = vec!["/ip6/::1/tcp/7282".to_owned()];
    b.write_config();
    let mut command = network.machine(1).command(narmesh_tests::narmesh_binary().to_str().unwrap());
    let said = narmesh_tests::finish(command.arg("--config").arg(b.config_file()).arg("run"));
    let said = said.expect_failure("a start with nothing to listen at");
    assert!(said.contains("node.listen") && said.contains("no IPv6") && said.contains("accepted"), "{said}");
}
