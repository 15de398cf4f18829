//! NARs travel on a second connection. Where that one cannot be had while the first one stands, the holder is still there:
//! a NAR is waited for, and never told as gone.

use std::thread;
use std::time::Duration;

use narmesh_tests::{Namespace, Network, Place, TestMesh, TestNode, Wall, nar_url, promised, request, wait_until};

/// A connection is made within this.
const MEETING: Duration = Duration::from_secs(5);
/// For how long one request waits for a holder that is there, by the promise of the daemon.
const ENDURANCE: Duration = Duration::from_secs(20);
/// More than one leaf, so that the NAR is streamed.
const NAR_BYTES: u64 = 6 << 20;
/// What `why` says of it.
const SAID: &str = "the connection for NARs cannot be opened now";

/// What both know of each other is there, and a NAR that the second one wants. Who holds it dials in every second pair.
fn pair(network: &Network, mesh: &TestMesh, holder_dials: bool) -> (TestNode, TestNode, String) {
    let mut nodes = ["holder", "asker"].map(|name| mesh.node(name));
    TestMesh::introduce(&mut nodes.iter_mut().collect::<Vec<_>>());
    for (node, machine) in nodes.iter_mut().zip(network.machines()) {
        node.live_on(machine);
    }
    let path = nodes[0].store.hold_noise(1, NAR_BYTES, 1).remove(0);
    let [mut holder, mut asker] = nodes;
    let (dialler, dialled) = if holder_dials { (&mut holder, &asker) } else { (&mut asker, &holder) };
    dialler.learn_address(&dialled.name, &dialled.p2p_address());
    holder.start();
    asker.start();
    asker.wait_connected("holder", true, MEETING);
    holder.wait_all_advertised(&[&asker]);
    (holder, asker, path)
}

fn says_why(asker: &TestNode, path: &str) -> bool {
    asker.narmesh(&["why", path]).expect_success("narmesh why").contains(SAID)
}

fn on_two_machines(begin: impl Fn(&Namespace, &TestNode) -> Wall, holder_dials: bool) {
    let (network, mesh) = (Network::behind_nats(&[Place::Public, Place::Public]), TestMesh::new());
    network.machine(0).watch_connections();
    let (holder, asker, path) = pair(&network, &mesh, holder_dials);
    let wall = begin(network.machine(0), &holder);
    thread::scope(|scope| {
        let fetched = scope.spawn(|| asker.realise(std::slice::from_ref(&path)));
        wait_until("`why` says what is wrong", promised(ENDURANCE), || {
            fetched.is_finished() || says_why(&asker, &path)
        });
        drop(wall);
        fetched.join().unwrap().expect_success("nix-store --realise once the second connection gets through");
    });
    asker.store.verify_contents();
    assert!(asker.status().peer("holder").unwrap()["connected"].as_bool().unwrap(), "the first one stood all the time");
}

#[test]
fn nar_waits_while_a_firewall_lets_no_second_connection_through() {
    if !crate::is_permitted() {
        return;
    }
    for holder_dials in [false, true] {
        on_two_machines(|machine, _| machine.drop_further_connections(), holder_dials);
    }
}

#[test]
fn nar_waits_while_the_second_connection_is_taken_and_nothing_is_said_on_it() {
    if !crate::is_permitted() {
        return;
    }
    on_two_machines(|machine, holder| machine.silence_further_connections(holder.p2p_socket().port()), false);
}

/// Nix asks again for as long as it is told to; then it fails, and builds nothing. The next time it gets the NAR.
#[test]
fn nar_of_a_holder_that_is_never_reached_is_not_told_gone() {
    if !crate::is_permitted() {
        return;
    }
    let (network, mesh) = (Network::behind_nats(&[Place::Public, Place::Public]), TestMesh::new());
    let (_holder, asker, path) = pair(&network, &mesh, false);
    let wall = network.machine(0).drop_further_connections();
    let narinfo = asker.wait_narinfo(&path);
    let url = nar_url(&asker.get_narinfo(&path)).unwrap();
    let ask = |headers: &[(&str, &str)]| {
        let answer = network.machine(1).enter(|| request(asker.gateway(), "GET", &url, headers).unwrap().finish());
        (answer.status, answer.complete, answer.body.len(), answer.header("retry-after").map(str::to_owned))
    };
    let begun = ask(&[]);
    assert!(begun.0 == 200 && !begun.1, "closed short, so that Nix asks for the rest: {begun:?}");
    // The bytes with which every NAR begins are all there, so that none can keep the client waiting.
    let resumed = ask(&[("Range", "bytes=56-")]);
    assert_eq!((resumed.0, resumed.3.as_deref()), (429, Some("1")), "{resumed:?}");
    let mut command = asker.store.nix("nix-store");
    command.args(["--realise", &path, "--option", "max-jobs", "0"]);
    let command = narmesh_tests::with_gateway(&mut command, asker.gateway(), &asker.config.trusted_public_keys);
    let said = narmesh_tests::finish(command.args(["--option", "download-attempts", "2"]));
    let said = said.expect_failure("nix-store --realise while nothing gets through");
    assert!(!said.contains("404"), "{said}");
    assert!(says_why(&asker, &path), "{narinfo:?}");
    drop(wall);
    asker.realise(std::slice::from_ref(&path)).expect_success("nix-store --realise afterwards");
}
