//! Faults of the machine: firewall, interfaces, buffers, limits, disk, clock, caches.

use narmesh_tests::{PlainCache, TestMesh, faketime};

use super::Patient;
use crate::own_machine::OwnMachine;

/// A patient that runs on a machine with a network of its own.
fn on_a_machine_of_its_own(mesh: &TestMesh, machine: &OwnMachine) -> Patient {
    let mut patient = Patient::new(mesh, "a");
    patient.prefix = machine.prefix();
    patient.node.run_under(&machine.prefix().iter().map(String::as_str).collect::<Vec<_>>());
    patient.node.config.listen = vec!["/ip4/192.0.2.1/tcp/7280".to_owned()];
    patient.node.start();
    patient
}

#[test]
fn firewall_that_keeps_peers_out_is_named_and_opened() {
    let mesh = TestMesh::new();
    let machine = OwnMachine::new(&mesh.path().join("machine"));
    let patient = on_a_machine_of_its_own(&mesh, &machine);
    let words = ["no rule names TCP port 7280"];
    patient.diagnose().assert_healthy();
    let run = |line: &str| patient.run(&["sh", "-c", line]).expect_success(line);
    run(
        "nft add table inet guard && nft add chain inet guard input '{ type filter hook input priority 0; policy drop; }' && \
         nft add rule inet guard input iifname lo accept && nft add rule inet guard input tcp dport 22 accept",
    );
    patient.assert_mended("warning", &words);
    run("nft flush chain inet guard input && nft add rule inet guard input tcp dport '{ 22, 7000-7300 }' accept");
    assert!(patient.diagnose().find(&words).is_none(), "a range that has it");
    run("nft delete table inet guard");
    run("iptables -P INPUT DROP && iptables -A INPUT -i lo -j ACCEPT");
    patient.assert_mended("warning", &words);
    run("iptables -F && iptables -P INPUT ACCEPT");
    // All else is let in, and yet nobody comes to this port.
    let words = ["a rule of the firewall of this machine keeps out TCP port 7280"];
    run("iptables -A INPUT -p tcp --dport 7280 -j REJECT");
    patient.assert_mended("warning", &words);
    run("iptables -F");
    run(
        "nft add table inet guard && nft add chain inet guard input '{ type filter hook input priority 0; policy accept; }' && \
         nft add rule inet guard input tcp dport '{ 22, 7000-7300 }' drop",
    );
    patient.assert_mended("warning", &words);
}

#[test]
fn interface_with_a_small_mtu_is_named_and_mended() {
    let mesh = TestMesh::new();
    let machine = OwnMachine::new(&mesh.path().join("machine"));
    let patient = on_a_machine_of_its_own(&mesh, &machine);
    let run = |line: &str| patient.run(&["sh", "-c", line]).expect_success(line);
    run("ip link set dev out mtu 1000");
    patient.assert_mended("warning", &["the interface out has an MTU of 1000"]);
}

#[test]
fn buffers_that_are_too_small_for_a_far_peer_are_named() {
    let mesh = TestMesh::new();
    let machine = OwnMachine::new(&mesh.path().join("machine"));
    let mut patient = on_a_machine_of_its_own(&mesh, &machine);
    let mut other = mesh.node("b");
    other.run_under(&machine.prefix().iter().map(String::as_str).collect::<Vec<_>>());
    other.config.listen = vec!["/ip4/192.0.2.1/tcp/7290".to_owned()];
    patient.node.terminate();
    TestMesh::start_all(&mut [&mut other, &mut patient.node]);
    // With buffers this small even the nearest peer is far.
    let set = "sysctl -w net.ipv4.tcp_wmem='4096 4096 4097'";
    patient.run(&["sh", "-c", set]).expect_success(set);
    let (severity, mends) = patient.wait_found(&["net.ipv4.tcp_wmem", "have 4097 bytes", "\"b\""]);
    assert!(severity == "note" && mends[0].contains("/etc/sysctl.d/90-narmesh.conf"), "{mends:?}");
    patient.run(&["sh", "-c", &mends[0]]).expect_success(&mends[0]);
    patient.wait_gone(&["net.ipv4.tcp_wmem"]);
}

#[test]
fn limit_of_open_files_that_is_too_low_is_named() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    patient.node.run_under(&["prlimit", "--nofile=300:300"]);
    patient.node.start();
    let (severity, mends) = patient.wait_found(&["may open 300 files"]);
    assert!(severity == "warning" && mends[0].contains("LimitNOFILE=16384"), "{mends:?}");
    patient.node.terminate();
    patient.node.run_under(&["prlimit", "--nofile=16384:16384"]);
    patient.node.start();
    patient.diagnose().assert_healthy();
}

#[test]
fn disk_without_room_or_inodes_is_named() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    // The socket stays where both the daemon and the doctor reach it.
    patient.node.config.control_socket = Some(patient.node.dir().join("control.sock"));
    let script = r#"mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@""#;
    patient.node.start();
    let state = patient.node.dir().join("state").display().to_string();
    let mut with = |options: &str| {
        patient.prefix = ["unshare", "--mount", "sh", "-c", script, options, &state].map(str::to_owned).into();
        patient.diagnose()
    };
    let small = with("size=8m");
    let (severity, mends) = small.find(&["(node.state_dir) has 8.0 MiB left"]).unwrap();
    assert!(severity == "warning" && mends[0].starts_with("du ") || mends[0].starts_with("sudo du "), "{mends:?}");
    let (severity, mends) = with("size=1g").find(&["limits.partial_copies_bytes lets"]).unwrap();
    assert!(severity == "note" && mends[0].contains("partial_copies_bytes = "), "{mends:?}");
    let few = with("size=4g,nr_inodes=10");
    assert_eq!(few.find(&["inodes left"]).unwrap().0, "warning");
    let enough = with("size=4g,nr_inodes=100000");
    assert!(enough.find(&["node.state_dir"]).is_none(), "{:#}", enough.report);
}

#[test]
fn wrong_clock_and_a_cache_that_does_not_answer_are_named() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    let holder = mesh.node("holder");
    let built = holder.store.build_one("lib");
    let mut cache = PlainCache::on_loopback(&holder, &[built], "none");
    patient.node.config.more = cache.upstream("plain", &holder);
    patient.node.start();
    assert!(patient.diagnose().find(&["clock"]).is_none());
    for (fake, words) in [("+3d", "72 hours ahead of"), ("-3d", "72 hours behind")] {
        patient.prefix = faketime(fake).into();
        let (severity, mends) = patient.wait_found(&["the clock of this machine", words]);
        assert!(severity == "error" && mends[0].ends_with("timedatectl set-ntp true"), "{mends:?}");
    }
    patient.prefix.clear();
    patient.wait_gone(&["the clock of this machine"]);
    cache.kill();
    let (severity, mends) = patient.wait_found(&["[[upstream]] \"plain\"", "NOT reachable"]);
    assert!(severity == "warning" && mends[0].contains("enabled = false"), "{mends:?}");
    cache.start_again();
    patient.wait_gone(&["[[upstream]]"]);
}
