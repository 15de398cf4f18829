//! The units in `contrib/systemd`, and the socket that outlives the daemon.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::thread;
use std::time::Duration;

use narmesh_tests::{
    HandedSocket, TestMesh, build_over_a_kill, finish, get, promised, repository_root, scratch_dir, wait_until,
};

/// The daemon is killed after this many bytes of a NAR of 24 MiB, which Nix has begun to unpack by then.
const HELD_AFTER_BYTES: u64 = 10 << 20;

/// The first answer after a start is promised within this.
const START: Duration = Duration::from_secs(2);

#[test]
fn systemd_accepts_the_units() {
    // `verify` wants the program of a unit to exist, and units to have the names under which they are installed.
    let dir = scratch_dir("units");
    let binary = dir.path().join("narmesh");
    fs::copy(narmesh_tests::narmesh_binary(), &binary).unwrap();
    let units = ["narmesh.service", "narmesh.socket"].map(|name| {
        let text = fs::read_to_string(repository_root().join("contrib/systemd").join(name)).unwrap();
        let unit = dir.path().join(name);
        fs::write(&unit, text.replace("/usr/local/bin/narmesh", binary.to_str().unwrap())).unwrap();
        unit
    });
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=no"]).args(&units);
    let verified = finish(&mut command);
    assert_eq!(verified.stderr.trim(), "", "systemd-analyze says nothing about good units");
    verified.expect_success("systemd-analyze verify");

    // It does complain about a bad unit.
    let text = fs::read_to_string(&units[0]).unwrap();
    fs::write(&units[0], text.replace("Type=notify", "Type=nonsense")).unwrap();
    assert_ne!(finish(&mut command).stderr.trim(), "");
}

#[test]
fn the_units_set_what_the_documents_promise() {
    let read = |name: &str| fs::read_to_string(repository_root().join("contrib/systemd").join(name)).unwrap();
    let (service, socket) = (read("narmesh.service"), read("narmesh.socket"));
    for line in [
        "Type=notify",
        "Restart=always",
        "User=narmesh",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "StateDirectory=narmesh",
    ] {
        assert!(service.lines().any(|one| one == line), "narmesh.service has no {line}");
    }
    assert!(service.lines().any(|line| line.starts_with("ExecReload=")), "SIGHUP is how it reloads");
    assert!(socket.lines().any(|line| line == "ListenStream=127.0.0.1:7281"), "the gateway's default address");
}

#[test]
fn a_socket_handed_over_outlives_the_daemon() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    let socket = HandedSocket::bind();
    let gateway = socket.address();
    TestMesh::introduce(&mut [&mut a, &mut b]);
    a.start();
    b.learn_address("a", &a.p2p_address());
    // The configuration file names another address; the descriptor wins, as it must under systemd.
    socket.start(&mut b);
    assert_eq!(b.gateway(), gateway);
    a.wait_all_advertised(&[&b]);
    b.realise(std::slice::from_ref(&lib)).expect_success("through the socket handed over");
    b.store.delete(std::slice::from_ref(&lib));

    // While no daemon runs, the kernel queues connections and refuses none.
    b.kill();
    let waiting = thread::spawn(move || get(gateway, "/nix-cache-info"));
    let (store, keys) = (b.store.clone(), b.config.trusted_public_keys.clone());
    let build = thread::spawn(move || store.nix_build("lib", gateway, &keys));
    wait_until("both wait at the socket", promised(START), || socket.waiting() >= 2);
    socket.start(&mut b);
    assert_eq!(waiting.join().unwrap().unwrap().status, 200);
    build.join().unwrap().expect_success("a build that began while no daemon ran");
}

#[test]
fn a_daemon_replaced_in_the_middle_of_a_nar_fails_no_build() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let socket = HandedSocket::bind();
    let built = build_over_a_kill(Some(&socket), "middle", HELD_AFTER_BYTES, (&mut a, &mut b));
    built.expect_success("nix-build with the gateway as the only substituter");
    b.store.verify_contents();
}

#[test]
fn systemd_is_told_when_the_daemon_is_ready() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let path = mesh.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(promised(START))).unwrap();
    node.notify_socket(&path);
    node.start();
    let mut message = [0; 256];
    let length = socket.recv(&mut message).unwrap();
    let text = String::from_utf8_lossy(&message[..length]).into_owned();
    assert!(text.lines().any(|line| line == "READY=1"), "{text}");
    node.terminate();
}
