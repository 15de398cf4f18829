//! The gateway is the only substituter, without `fallback`, and peers fail: no build fails because of that.

use std::net::TcpListener;
use std::time::Duration;

use narmesh_tests::{TestMesh, TestNode};
use rustix::process::Signal;

/// A dead connection is promised to be noticed within this.
const NOTICED: Duration = Duration::from_secs(5);

/// `holder` has built `attribute`, and `client` has heard of it; nothing has been asked for yet.
fn two_machines(mesh: &TestMesh, attribute: &str) -> (TestNode, TestNode, String) {
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let path = holder.store.build_one(attribute);
    TestMesh::start_all(&mut [&mut holder, &mut client]);
    holder.wait_all_advertised(&[&client]);
    (holder, client, path)
}

/// Asserts that the build succeeds, by substitution or here, and that the gateway keeps its promises meanwhile.
#[track_caller]
fn assert_builds(client: &TestNode, attribute: &str, path: &str) {
    let prober = client.probe(&[path]);
    client.nix_build(attribute).expect_success("nix-build with the gateway as the only substituter");
    let report = prober.finish();
    report.assert_fit_for_nix(client.narinfo_slowest_max());
    client.store.verify_contents();
}

#[test]
fn a_build_succeeds_when_all_peers_are_dead() {
    let mesh = TestMesh::new();
    let (mut holder, client, lib) = two_machines(&mesh, "lib");
    holder.kill();
    assert_builds(&client, "lib", &lib);
    assert!(client.store.row(&lib).unwrap().ultimate, "built, there was nobody to ask");
    // Later, when the client has noticed that the holder is dead, the build succeeds too.
    client.wait_connected("holder", false, NOTICED);
    client.store.delete(std::slice::from_ref(&lib));
    assert_builds(&client, "lib", &lib);
}

#[test]
fn a_build_succeeds_when_all_peers_die_after_nix_cached_the_narinfo() {
    let mesh = TestMesh::new();
    let (mut holder, client, lib) = two_machines(&mesh, "lib");
    client.realise(std::slice::from_ref(&lib)).expect_success("nix-store --realise");
    client.store.delete(std::slice::from_ref(&lib));
    holder.kill();
    assert_builds(&client, "lib", &lib);
    assert!(client.store.row(&lib).unwrap().ultimate);
}

#[test]
fn a_build_succeeds_when_the_only_holder_is_frozen_and_it_is_asked_again_later() {
    let mesh = TestMesh::new();
    let (holder, client, lib) = two_machines(&mesh, "lib");
    holder.signal(Signal::STOP);
    assert_builds(&client, "lib", &lib);
    assert!(client.store.row(&lib).unwrap().ultimate, "built, the only holder is frozen");
    holder.signal(Signal::CONT);
    // The holder is asked again when it is back: it is not set aside for ever.
    client.store.delete(std::slice::from_ref(&lib));
    assert_eq!(client.wait_narinfo(&lib).nar_hash, holder.store.row(&lib).unwrap().nar_hash);
    client.realise(std::slice::from_ref(&lib)).expect_success("from the peer that came back");
}

#[test]
fn a_path_comes_from_the_good_holder_beside_a_frozen_one() {
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
fn a_build_succeeds_when_the_holder_freezes_after_its_narinfo() {
    let mesh = TestMesh::new();
    let (holder, client, lib) = two_machines(&mesh, "lib");
    client.realise(std::slice::from_ref(&lib)).expect_success("nix-store --realise");
    client.store.delete(std::slice::from_ref(&lib));
    // With the narinfo in its disk cache, Nix asks for the NAR at once, and the frozen holder does not send it.
    holder.signal(Signal::STOP);
    assert_builds(&client, "lib", &lib);
    assert!(client.store.row(&lib).unwrap().ultimate);
}

#[test]
fn a_build_succeeds_when_a_peer_accepts_connections_and_never_answers() {
    let mesh = TestMesh::new();
    let (mut holder, client, lib) = two_machines(&mesh, "lib");
    holder.kill();
    // The client still has the holder's summary, and at its address something accepts connections and says nothing.
    let silent = TcpListener::bind(holder.p2p_socket()).expect("the port of the dead daemon");
    client.wait_connected("holder", false, NOTICED);
    assert_builds(&client, "lib", &lib);
    assert!(client.store.row(&lib).unwrap().ultimate);
    drop(silent);
}

#[test]
fn a_build_succeeds_when_a_configured_peer_has_never_answered() {
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
fn a_build_succeeds_when_nobody_is_on_the_allowlist() {
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
