//! Paths that their holder has collected: they come from another holder or are answered 404, and no build fails.

use std::time::Duration;

use narmesh_tests::{TestMesh, get, promised, wait_until};

/// A machine is promised to notice within this that a path was deleted from its store.
const NOTICED: Duration = Duration::from_secs(1);
/// Peers are promised to hear within this that a path was registered anew: noticed, a second for other removals, and five
/// after the epoch before.
const TOLD_ANEW: Duration = Duration::from_secs(7);

#[test]
fn a_collected_path_comes_from_the_other_holder_or_is_built() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    assert_eq!(b.store.build_one("lib"), lib);
    TestMesh::start_all(&mut [&mut a, &mut b, &mut c]);
    a.wait_all_advertised(&[&c]);
    b.wait_all_advertised(&[&c]);
    let narinfo = c.wait_narinfo(&lib);
    let prober = c.probe(&[&lib]);

    // Asked for at once, while a's filter still claims the path.
    a.store.delete(std::slice::from_ref(&lib));
    assert_eq!(c.get_narinfo(&lib).status, 200, "B has it still");
    let body = get(c.gateway(), &narinfo.url).unwrap();
    assert_eq!((body.status, body.body.len() as u64), (200, narinfo.nar_size));
    c.realise(std::slice::from_ref(&lib)).expect_success("from b");
    c.store.delete(std::slice::from_ref(&lib));

    b.store.delete(std::slice::from_ref(&lib));
    c.nix_build("lib").expect_success("nobody has it: built");
    assert!(c.store.row(&lib).unwrap().ultimate);
    prober.finish().assert_fit_for_nix(c.narinfo_slowest_max());
}

#[test]
fn a_collected_path_is_gone_from_its_own_gateway_and_from_the_peers() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let narinfo = b.wait_narinfo(&lib);
    a.store.delete(std::slice::from_ref(&lib));
    for node in [&a, &b] {
        wait_until("a 404 for what is gone", promised(NOTICED), || node.get_narinfo(&lib).status == 404);
        let body = get(node.gateway(), &narinfo.url).unwrap();
        assert_eq!(body.status, 404, "before the first byte, so that Nix goes on at once");
    }
    // Built again, it is offered again.
    a.store.build_one("lib");
    assert_eq!(b.wait_narinfo(&lib).nar_hash, narinfo.nar_hash);
    b.realise(std::slice::from_ref(&lib)).expect_success("nix-store --realise");
}

/// Between two looks at the store it was never missing.
#[test]
fn a_path_deleted_and_at_once_built_again_with_other_contents_is_told_as_it_is_now() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let path = a.store.build_one("nondet");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let before = b.wait_narinfo(&path).nar_hash;
    a.store.delete(std::slice::from_ref(&path));
    assert_eq!(a.store.build_one("nondet"), path);
    wait_until("what it is now", promised(TOLD_ANEW), || b.wait_narinfo(&path).nar_hash != before);
    b.realise(std::slice::from_ref(&path)).expect_success("its contents of now");
}

#[test]
fn a_client_that_remembers_a_narinfo_builds_when_the_nar_is_gone() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let middle = a.store.build_one("middle");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    // The client's own disk cache now holds the narinfo for 30 days.
    b.realise(std::slice::from_ref(&middle)).expect_success("nix-store --realise");
    b.store.delete(std::slice::from_ref(&middle));
    a.store.delete(std::slice::from_ref(&middle));
    b.nix_build("middle").expect_success("built, since the NAR gives 404");
    assert!(b.store.row(&middle).unwrap().ultimate);
}

#[test]
fn asking_repeatedly_for_a_collected_path_sets_no_peer_aside() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let gone = a.store.build_one("lib");
    let kept = a.store.build_one("fod");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    a.store.delete(std::slice::from_ref(&gone));
    // a's filter claims the path until its next summary: that counts as one false hit, however often b asks.
    for _ in 0..200 {
        assert_eq!(b.get_narinfo(&gone).status, 404);
    }
    assert_eq!(b.get_narinfo(&kept).status, 200, "the peer is still asked");
    let peer = b.status().peer("a").unwrap().clone();
    assert!(peer["set_aside_s"].is_null() && peer["misdeeds"] == 0, "{peer}");
}
