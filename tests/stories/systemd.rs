//! The units in `contrib/systemd`, and the socket that outlives the daemon.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use narmesh_tests::{
    HandedSocket, TestMesh, TestNode, build_over_a_kill, finish, free_address, get, narmesh_binary, promised,
    repository_root, scratch_dir, wait_until,
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
    fs::copy(narmesh_binary(), &binary).unwrap();
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

fn listener(name: &str, role: &str) -> String {
    format!("[[gateway.listener]]\naddress = 'systemd:{name}'\nrole = '{role}'\n")
}

#[test]
fn restarts_lose_no_request_of_a_listener_with_a_named_socket() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let (gateway, cache) = (HandedSocket::bind(), HandedSocket::bind());
    node.config.more = listener("cache", "serve");
    cache.hand_over("cache", &mut node);
    gateway.start(&mut node);
    assert_eq!(node.gateway(), gateway.address());
    let stop = Arc::new(AtomicBool::new(false));
    let clients = [cache.address(), gateway.address(), cache.address()].map(|address| {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(get(address, "/nix-cache-info").unwrap().status, 200);
                answers += 1;
            }
            answers
        })
    });
    for _ in 0..5 {
        assert!(node.terminate().success());
        gateway.start(&mut node);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let answers = client.join().expect("no request was lost");
        assert!(answers > 5, "{answers}");
    }
    // Killed, it loses what it had accepted; what waits is answered by the next one.
    node.kill();
    let waiting = thread::spawn({
        let address = cache.address();
        move || get(address, "/nix-cache-info")
    });
    wait_until("it waits at the socket", promised(START), || cache.waiting() >= 1);
    gateway.start(&mut node);
    assert_eq!(waiting.join().unwrap().unwrap().status, 200);
}

/// A port is free again, and systemd-socket-activate listens, within this.
const LISTENING: Duration = Duration::from_secs(1);

#[test]
fn sockets_of_systemd_itself_are_taken_by_their_names() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let (gateway, site) = (free_address(), free_address());
    let socket = mesh.path().join("local.sock");
    node.config.more = listener("site", "site") + &listener("unix", "local");
    let (gateway_text, site_text, path) = (gateway.to_string(), site.to_string(), socket.display().to_string());
    let listening = ["-l", &path, "-l", &site_text, "-l", &gateway_text, "--fdname=unix:site:narmesh.socket"];
    node.run_under(&[&["systemd-socket-activate"], &listening[..]].concat());
    node.launch();
    // The first connection starts the daemon.
    wait_until("systemd listens", promised(LISTENING), || TcpStream::connect(site).is_ok());
    node.wait_started(START);
    assert_eq!(node.gateway(), gateway);
    for address in [gateway, site] {
        assert_eq!(get(address, "/nix-cache-info").unwrap().status, 200);
    }
    let mut over = UnixStream::connect(&socket).unwrap();
    over.set_read_timeout(Some(promised(START))).unwrap();
    over.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    over.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(node.terminate().success());
    assert!(socket.exists(), "the file is systemd's");
}

/// What the daemon says when systemd hands over the sockets that `listening` describes.
fn refusal(node: &TestNode, listening: &[&str], connect: impl Fn() -> bool) -> String {
    let mut command = Command::new("systemd-socket-activate");
    command.args(listening).arg(narmesh_binary()).arg("--config").arg(node.config_file()).arg("run");
    let daemon = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("systemd listens", promised(LISTENING), connect);
    let ended = daemon.wait_with_output().unwrap();
    assert!(!ended.status.success());
    String::from_utf8(ended.stderr).unwrap()
}

#[test]
fn sockets_that_do_not_fit_are_refused_by_name() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let free = || free_address();
    let connect = |address: SocketAddr| move || TcpStream::connect(address).is_ok();
    let refused = |said: &str, words: &[&str]| {
        for word in words {
            assert!(said.contains(word), "{word:?} is not in {said}");
        }
    };

    node.config.more = listener("cache", "serve");
    node.write_config();
    let address = free();
    let said = refusal(&node, &["-l", &address.to_string(), "--fdname=other"], connect(address));
    refused(
        &said,
        &["gateway.listener[0].address = systemd:cache", "no socket with the name", "\"other\"", "Sockets="],
    );
    let said = node.narmesh(&["run"]);
    refused(&said.stderr, &["gateway.listener[0].address = systemd:cache", "no socket with the name", "none besides"]);

    let [one, other] = [free(), free()];
    let both = ["-l", &one.to_string(), "-l", &other.to_string(), "--fdname=cache"];
    let said = refusal(&node, &both, connect(one));
    refused(&said, &["several sockets with the name \"cache\"", "FileDescriptorName="]);

    let address = free();
    let said = refusal(&node, &["-d", "-l", &address.to_string(), "--fdname=cache"], || {
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", address).is_ok_and(|_| UdpSocket::bind(address).is_err())
    });
    refused(
        &said,
        &["gateway.listener[0].address = systemd:cache", "not one that clients connect to", "ListenStream="],
    );

    let [one, other] = [free(), free()];
    node.config.more = String::new();
    node.write_config();
    let both = ["-l", &one.to_string(), "-l", &other.to_string(), "--fdname=first:second"];
    let said = refusal(&node, &both, connect(one));
    refused(&said, &["\"first\", \"second\"", "one for gateway.listen", "systemd:NAME"]);

    node.config.more = listener("cache", "site");
    node.write_config();
    let port = free().port();
    let everywhere = SocketAddr::from(([127, 0, 0, 1], port));
    let said = refusal(&node, &["-l", &format!("0.0.0.0:{port}"), "--fdname=cache"], connect(everywhere));
    refused(&said, &["gateway.listener[0].role", &format!("site at 0.0.0.0:{port}"), "\"serve\" at this address"]);
}
