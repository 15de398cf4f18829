//! The daemon is replaced while somebody waits for it, behind a socket that outlives it.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use narmesh_tests::{GatedProxy, NixVersion, TestMesh, finish, promised, wait_for, wait_until};

use crate::report::Row;

/// The first answer after a start is promised within this.
const START: Duration = Duration::from_secs(2);
/// A small closure.
const PATHS: usize = 8;
/// Restarts, each with paths that nobody has asked for.
const ROUNDS: usize = 6;
/// Nix has begun to unpack by then, even if the gateway held 64 MiB back until they were verified.
const HELD_AFTER_BYTES: u64 = 160 << 20;

/// How many connections wait to be accepted at a loopback port, as `ss` says.
fn waiting_at(port: u16) -> u32 {
    let mut command = Command::new("ss");
    command.args(["-Hltn", &format!("sport = :{port}")]);
    let listed = finish(&mut command).expect_success("ss");
    listed.split_whitespace().nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn waited_at_the_socket(version: NixVersion, row: &Row) {
    let _turn = crate::beside_others();
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    client.store.use_nix(version);
    let paths = holder.store.hold_noise(PATHS * ROUNDS, 20_000, 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = listener.local_addr().unwrap();
    let hand_over = || OwnedFd::from(listener.try_clone().unwrap());
    TestMesh::introduce(&mut [&mut holder, &mut client]);
    holder.start();
    client.learn_address("holder", &holder.p2p_address());
    client.start_with(Some(hand_over()));
    holder.wait_all_advertised(&[&client]);
    let mut failed = 0;
    for paths in paths.chunks(PATHS) {
        client.kill();
        let (store, keys) = (client.store.clone(), client.config.trusted_public_keys.clone());
        let realised = thread::scope(|scope| {
            let realise = scope.spawn(|| store.realise(paths, gateway, &keys));
            wait_until("Nix waits at the socket", promised(START), || waiting_at(gateway.port()) > 0);
            client.start_with(Some(hand_over()));
            realise.join().unwrap()
        });
        failed += usize::from(!realised.status.success());
        // The next round begins with a table that is known.
        holder.wait_all_advertised(&[&client]);
    }
    row.now(&format!("{failed} of {ROUNDS} runs fail"));
    assert_eq!(failed, 0, "the holder was alive all the time");
}

const AT_THE_SOCKET: &str = "14 Nix waits at the socket while the daemon restarts";

#[test]
fn what_waited_at_the_socket_is_answered_with_nix_2_8() {
    let row = Row { what: AT_THE_SOCKET, client: "Nix 2.8", before: "6 of 6 runs fail", must_be: "0 of 6 runs fail" };
    waited_at_the_socket(NixVersion::V2_8, &row);
}

#[test]
fn what_waited_at_the_socket_is_answered_with_nix_2_34() {
    let row = Row { what: AT_THE_SOCKET, client: "Nix 2.34", before: "6 of 6 runs fail", must_be: "0 of 6 runs fail" };
    waited_at_the_socket(NixVersion::V2_34, &row);
}

fn killed_in_the_middle(version: NixVersion, row: &Row) {
    let _turn = crate::alone();
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    client.store.use_nix(version);
    let huge = holder.store.build_one("huge");
    for node in [&mut holder, &mut client] {
        // The gate stays the only way, and counts what is not compressed.
        node.config.advertise_loopback = false;
        node.config.compress = "never";
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hand_over = || OwnedFd::from(listener.try_clone().unwrap());
    TestMesh::introduce(&mut [&mut holder, &mut client]);
    holder.start();
    let gate = GatedProxy::to(holder.p2p_socket());
    client.learn_address("holder", &format!("/ip4/127.0.0.1/tcp/{}", gate.address().port()));
    client.start_with(Some(hand_over()));
    holder.wait_all_advertised(&[&client]);
    assert!(client.wait_narinfo(&huge).nar_size > HELD_AFTER_BYTES);

    gate.hold_after(HELD_AFTER_BYTES);
    let (store, keys, gateway) = (client.store.clone(), client.config.trusted_public_keys.clone(), client.gateway());
    let build = thread::spawn(move || store.nix_build("huge", gateway, &keys));
    wait_until("the gate holds the NAR back", promised(START), || gate.is_holding());
    client.kill();
    wait_for("Nix is back at the socket", promised(START), || (waiting_at(gateway.port()) > 0).then_some(()));
    gate.release();
    client.start_with(Some(hand_over()));
    build.join().unwrap().expect_success("nix-build with the gateway as the only substituter");
    let built = client.store.row(&huge).unwrap().ultimate;
    row.now(if built { "built" } else { "resumed at the byte" });
    assert!(!built, "the holder was alive all the time");
    client.store.verify_contents();
}

const IN_THE_MIDDLE: &str = "15 the gateway is killed in a NAR of 335 MB, and back behind its socket";

#[test]
fn a_nar_goes_on_behind_the_socket_with_nix_2_8() {
    let row = Row { what: IN_THE_MIDDLE, client: "Nix 2.8", before: "built", must_be: "resumed at the byte" };
    killed_in_the_middle(NixVersion::V2_8, &row);
}

#[test]
fn a_nar_goes_on_behind_the_socket_with_nix_2_34() {
    let row = Row { what: IN_THE_MIDDLE, client: "Nix 2.34", before: "built", must_be: "resumed at the byte" };
    killed_in_the_middle(NixVersion::V2_34, &row);
}
