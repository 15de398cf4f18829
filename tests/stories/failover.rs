//! The gateway as the only substituter, without `fallback`, while peers fail: a build never fails for it.

use std::net::TcpListener;
use std::time::Duration;

use narmesh_tests::{TestMesh, TestNode};
use rustix::process::Signal;

/// A dead connection is promised to be noticed within this.
const NOTICED: Duration = Duration::from_secs(5);

/// `holder` has built `attribute`, `client` knows so; nothing has been asked yet.
fn two_machines(mesh: &TestMesh, attribute: &str) -> (TestNode, TestNode, String) {
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let path = holder.store.build_one(attribute);
    TestMesh::start_all(&mut [&mut holder, &mut client]);
    holder.wait_all_advertised(&[&client]);
    (holder, client, path)
}

/// The build succeeds, whoever makes it, and the gateway keeps its promises meanwhile.
#[track_caller]
fn assert_builds(client: &TestNode, attribute: &str, path: &str) {
    let prober = client.probe(&[path]);
    client.nix_build(attribute).expect_success("nix-build with the gateway as the only substituter");
    let report = prober.finish();
    report.assert_fit_for_nix(client.narinfo_slowest_max());
    client.store.verify_contents();
}

#[test]
fn all_peers_dead() {
    let mesh = TestMesh::new();
    let (mut holder, client, lib) = two_machines(&mesh, "lib");
    holder.kill();
    assert_builds(&client, "lib", &lib);
    assert!(client.store.row(&lib).unwrap().ultimate, "built, there was nobody to ask");
    // Later, when the death has been noticed, the answer is the same.
    client.wait_connected("holder", false, NOTICED);
    client.store.delete(std::slice::from_ref(&lib));
    assert_builds(&client, "lib", &lib);
}

#[test]
fn all_peers_dead_after_the_client_remembered_the_narinfo() {
    let mesh = TestMesh::new();
    let (mut holder, client, lib) = two_machines(&mesh, "lib");
    client.realise(std::slice::from_ref(&lib)).expect_success("nix-store --realise");
    client.store.delete(std::slice::from_ref(&lib));
    holder.kill();
    assert_builds(&client, "lib", &lib);
    assert!(client.store.row(&lib).unwrap().ultimate);
}

#[test]
fn a_frozen_peer() {
    let mesh = TestMesh::new();
    let (holder, client, lib) = two_machines(&mesh, "lib");
    holder.signal(Signal::STOP);
    assert_builds(&client, "lib", &lib);
    assert!(client.store.row(&lib).unwrap().ultimate, "built, the only holder is frozen");
    holder.signal(Signal::CONT);
    // It is asked again when it is back, and not set aside for ever.
    client.store.delete(std::slice::from_ref(&lib));
    assert_eq!(client.wait_narinfo(&lib).nar_hash, holder.store.row(&lib).unwrap().nar_hash);
    client.realise(std::slice::from_ref(&lib)).expect_success("from the peer that came back");
}

#[test]
fn a_frozen_peer_beside_a_good_one() {
    let mesh = TestMesh::new();
    let [mut frozen, mut good, mut client] = ["frozen", "good", "client"].map(|name| mesh.node(name));
    let lib = frozen.store.build_one("lib");
    assert_eq!(good.store.build_one("lib"), lib);
    TestMesh::start_all(&mut [&mut frozen, &mut good, &mut client]);
    frozen.wait_all_advertised(&[&client]);
    good.wait_all_advertised(&[&client]);
    frozen.signal(Signal::STOP);
    let prober = client.probe(&[&lib]);
    client.realise(std::slice::from_ref(&lib)).expect_success("the good one has it");
    let report = prober.finish();
    report.assert_fit_for_nix(client.narinfo_slowest_max());
    assert!(!client.store.row(&lib).unwrap().ultimate);
}

#[test]
fn a_peer_frozen_after_its_narinfo() {
    let mesh = TestMesh::new();
    let (holder, client, lib) = two_machines(&mesh, "lib");
    client.realise(std::slice::from_ref(&lib)).expect_success("nix-store --realise");
    client.store.delete(std::slice::from_ref(&lib));
    // The client's disk cache sends it straight to the NAR, which the frozen holder does not give.
    holder.signal(Signal::STOP);
    assert_builds(&client, "lib", &lib);
    assert!(client.store.row(&lib).unwrap().ultimate);
}

#[test]
fn a_peer_that_accepts_and_never_answers() {
    let mesh = TestMesh::new();
    let (mut holder, client, lib) = two_machines(&mesh, "lib");
    holder.kill();
    // Its column is still there, and at its address something accepts connections and says nothing.
    let silent = TcpListener::bind(holder.p2p_socket()).expect("the port of the dead daemon");
    client.wait_connected("holder", false, NOTICED);
    assert_builds(&client, "lib", &lib);
    assert!(client.store.row(&lib).unwrap().ultimate);
    drop(silent);
}

#[test]
fn a_peer_that_never_answers_is_in_the_configuration_from_the_start() {
    let mesh = TestMesh::new();
    let [mut client, silent_one] = ["client", "silent"].map(|name| mesh.node(name));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    client.allow(&silent_one.card());
    client.learn_address("silent", &format!("/ip4/127.0.0.1/tcp/{}", silent.local_addr().unwrap().port()));
    client.start();
    client.nix_build("app").expect_success("nix-build");
    let status = client.status();
    assert!(!status.connected("silent"));
    assert_eq!(status.number("/requests/narinfo_hits"), 0);
}

#[test]
fn nobody_on_the_allowlist_at_all() {
    let mesh = TestMesh::new();
    let mut client = mesh.node("client");
    client.start();
    let prober = client.probe(&[]);
    client.nix_build("app").expect_success("nix-build");
    prober.finish().assert_fit_for_nix(client.narinfo_slowest_max());
}

#[test]
fn a_stranger_is_never_connected() {
    let mesh = TestMesh::new();
    let [mut a, mut stranger] = ["a", "stranger"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    a.start();
    // The stranger allows A; A has never heard of the stranger.
    stranger.allow(&a.card());
    stranger.learn_address("a", &a.p2p_address());
    stranger.start();
    stranger.wait_status("says why it is not connected", NOTICED, |status| {
        status.peer("a").is_some_and(|peer| peer["connected"] == false && peer["why"].is_string())
    });
    let status = stranger.status();
    let peer = status.peer("a").unwrap();
    assert!(peer["summary"].is_null() && peer["allowed_there"] != true, "{peer}");
    assert_eq!(stranger.get_narinfo(&lib).status, 404);
}
