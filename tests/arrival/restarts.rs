//! The daemon restarts while Nix waits for it, with and without a listening socket that outlives it.

use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{HandedSocket, NixVersion, TestMesh, build_over_a_kill, promised, wait_until};

use crate::report::{Row, nix};

/// The first answer after a start is promised within this.
const START: Duration = Duration::from_secs(2);
/// Paths of a round: a small closure.
const PATHS: usize = 8;
/// Restarts, each with paths that nobody has asked for before.
const ROUNDS: usize = 6;
/// The daemon is killed after this many bytes of the NAR. Nix has begun to unpack by then, even if the gateway held 64 MiB
/// back until they were verified.
const HELD_AFTER_BYTES: u64 = 160 << 20;

fn waited_at_the_socket(version: NixVersion) {
    let _turn = crate::beside_others();
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    client.store.use_nix(version);
    let paths = holder.store.hold_noise(PATHS * ROUNDS, 20_000, 1);
    let socket = HandedSocket::bind();
    TestMesh::introduce(&mut [&mut holder, &mut client]);
    holder.start();
    client.learn_address("holder", &holder.p2p_address());
    socket.start(&mut client);
    holder.wait_all_advertised(&[&client]);
    let mut failed = 0;
    for paths in paths.chunks(PATHS) {
        client.kill();
        let (store, keys) = (client.store.clone(), client.config.trusted_public_keys.clone());
        let realised = thread::scope(|scope| {
            let realise = scope.spawn(|| store.realise(paths, socket.address(), &keys));
            wait_until("Nix waits at the socket", promised(START), || socket.waiting() > 0);
            socket.start(&mut client);
            realise.join().unwrap()
        });
        failed += usize::from(!realised.status.success());
        // The next round begins when the restarted client knows the holder's summary again.
        holder.wait_all_advertised(&[&client]);
    }
    Row { what: AT_THE_SOCKET, client: nix(version), before: "6 of 6 runs fail", must_be: "0 of 6 runs fail" }
        .now(&format!("{failed} of {ROUNDS} runs fail"));
    assert_eq!(failed, 0, "the holder was alive all the time");
}

const AT_THE_SOCKET: &str = "14 Nix waits at the socket while the daemon restarts";

#[test]
fn requests_that_waited_at_the_socket_are_answered_with_nix_2_8() {
    waited_at_the_socket(NixVersion::V2_8);
}

#[test]
fn requests_that_waited_at_the_socket_are_answered_with_nix_2_34() {
    waited_at_the_socket(NixVersion::V2_34);
}

fn killed_in_the_middle(socket: Option<&HandedSocket>, version: NixVersion) -> bool {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    client.store.use_nix(version);
    build_over_a_kill(socket, "huge", HELD_AFTER_BYTES, (&mut holder, &mut client))
        .expect_success("nix-build with the gateway as the only substituter");
    client.store.verify_contents();
    // The holder's path is the one that the client would build.
    let huge = holder.store.build_one("huge");
    client.store.row(&huge).unwrap().ultimate
}

fn killed_behind_the_socket(version: NixVersion) {
    let _turn = crate::alone();
    let built = killed_in_the_middle(Some(&HandedSocket::bind()), version);
    Row { what: BEHIND_THE_SOCKET, client: nix(version), before: "built", must_be: "resumed at the byte" }
        .now(if built { "built" } else { "resumed at the byte" });
    assert!(!built, "the holder was alive all the time");
}

const BEHIND_THE_SOCKET: &str = "15 the gateway is killed in a NAR of 335 MB, and back behind its socket";

#[test]
fn a_nar_resumes_after_a_restart_behind_a_socket_with_nix_2_8() {
    killed_behind_the_socket(NixVersion::V2_8);
}

#[test]
fn a_nar_resumes_after_a_restart_behind_a_socket_with_nix_2_34() {
    killed_behind_the_socket(NixVersion::V2_34);
}

/// With the settings that `init` prints, and connections refused for a second.
fn killed_without_a_socket(version: NixVersion) {
    let _turn = crate::alone();
    let since = Instant::now();
    let built = killed_in_the_middle(None, version);
    let before = "exit 1 with what `init` printed";
    Row { what: WITHOUT_A_SOCKET, client: nix(version), before, must_be: "exit 0 with what `init` prints" }
        .now(&format!("exit 0, {}, {:.0} s", if built { "built" } else { "resumed" }, since.elapsed().as_secs_f64()));
}

const WITHOUT_A_SOCKET: &str = "15b the same without a socket, back after a second";

#[test]
fn a_build_survives_a_restart_without_a_socket_with_nix_2_8() {
    killed_without_a_socket(NixVersion::V2_8);
}

#[test]
fn a_build_survives_a_restart_without_a_socket_with_nix_2_26() {
    killed_without_a_socket(NixVersion::V2_26);
}

#[test]
fn a_build_survives_a_restart_without_a_socket_with_nix_2_34() {
    killed_without_a_socket(NixVersion::V2_34);
}
