//! A name server that never answers, and a peer that is known by its name alone.

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use narmesh_tests::{Network, TestMesh};

/// A connection is made within this.
const MEETING: Duration = Duration::from_secs(5);
/// `status` says within this why a peer was not reached; a dial spends at most three seconds on names.
const NOTICED: Duration = Duration::from_secs(6);

#[test]
fn a_silent_name_server_holds_up_neither_other_peers_nor_a_stop() {
    let Some(_turn) = crate::turn() else { return };
    let network = Network::on_a_bridge(2);
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    TestMesh::introduce(&mut [&mut a, &mut b, &mut c]);
    b.live_on(network.machine(0));
    c.live_on(network.machine(1));
    // The C library waits two and a half minutes for this server, longer than the daemon is given to stop.
    let server = network.machine(1);
    let silent = server.enter(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    let [resolv, switch] = ["resolv.conf", "nsswitch.conf"].map(|name| b.dir().join(name));
    fs::write(&resolv, format!("nameserver {}\noptions timeout:30 attempts:5\n", server.address())).unwrap();
    fs::write(&switch, "hosts: dns\n").unwrap();
    let script = r#"mount --bind "$0" /etc/resolv.conf; mount --bind "$1" /etc/nsswitch.conf; shift; exec "$@""#;
    let [resolv, switch] = [&resolv, &switch].map(|path| path.to_str().unwrap());
    b.run_under(&["unshare", "--mount", "sh", "-ec", script, resolv, switch]);
    b.learn_address("a", "/dns/a.narmesh.example/tcp/7280");
    b.learn_address("c", &c.p2p_address());
    c.start();
    b.start();
    b.wait_connected("c", true, MEETING);
    let app = c.store.build_one("app");
    c.wait_all_advertised(&[&b]);
    b.realise(&[app]).expect_success("while a name is being resolved");
    b.wait_status("says what it waited for", NOTICED, |status| {
        let why = status.peer("a").unwrap()["why"].as_str().unwrap_or_default();
        why.contains("/dns/a.narmesh.example/tcp/7280: the name was not resolved in time")
    });
    silent.set_nonblocking(true).unwrap();
    silent.recv(&mut [0; 512]).expect("the name server was asked");
    assert!(b.terminate().success(), "a lookup that hangs holds up no stop");
}
