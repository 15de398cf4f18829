//! A holder with a corrupt disk sends something else than it signed.

use narmesh_tests::{TestMesh, TestNode, get, sha256_hex};

#[track_caller]
fn assert_builds(client: &TestNode, attribute: &str, path: &str) {
    let prober = client.probe(&[path]);
    client.nix_build(attribute).expect_success("nix-build with the gateway as the only substituter");
    prober.finish().assert_fit_for_nix(client.narinfo_slowest_max());
    client.store.verify_contents();
}

#[test]
fn a_corrupt_copy_is_never_delivered_and_no_longer_offered() {
    for (attribute, file) in [("lib", "lib/libmesh.txt"), ("small", "blob003"), ("middle", "blob020")] {
        let mesh = TestMesh::new();
        let [mut liar, mut client] = ["liar", "client"].map(|name| mesh.node(name));
        let path = liar.store.build_one(attribute);
        TestMesh::start_all(&mut [&mut liar, &mut client]);
        liar.wait_all_advertised(&[&client]);
        liar.store.corrupt_file(&path, file);
        assert_builds(&client, attribute, &path);
        assert!(client.store.row(&path).unwrap().ultimate, "{attribute}: there was no good copy to be had");
        // Its own gateway does not offer its corrupt copy either: a narinfo there can only be of the client's own build.
        let key = liar.builder_key();
        let narinfo = liar.get_narinfo(&path).text();
        assert!(!narinfo.contains(key.split(':').next().unwrap()), "{attribute}: {narinfo}");
    }
}

#[test]
fn a_small_nar_corrupt_at_one_holder_comes_from_the_good_one_without_nix_noticing() {
    let mesh = TestMesh::new();
    let [mut liar, mut good, mut client] = ["liar", "good", "client"].map(|name| mesh.node(name));
    let small = liar.store.build_one("small");
    assert_eq!(good.store.build_one("small"), small);
    liar.store.corrupt_file(&small, "blob003");
    TestMesh::start_all(&mut [&mut liar, &mut good, &mut client]);
    liar.wait_all_advertised(&[&client]);
    good.wait_all_advertised(&[&client]);
    let narinfo = client.wait_narinfo(&small);
    for _ in 0..4 {
        let body = get(client.gateway(), &narinfo.url).unwrap();
        assert!(body.status == 200 && body.complete, "the other holder is invisible to Nix");
        assert_eq!(format!("sha256:{}", sha256_hex(&body.body)), narinfo.nar_hash);
    }
    client.realise(std::slice::from_ref(&small)).expect_success("nix-store --realise");
    client.store.verify_contents();
}

#[test]
fn a_large_nar_corrupt_at_one_holder_fails_no_build() {
    let mesh = TestMesh::new();
    let [mut liar, mut good, mut client] = ["liar", "good", "client"].map(|name| mesh.node(name));
    let middle = liar.store.build_one("middle");
    assert_eq!(good.store.build_one("middle"), middle);
    liar.store.corrupt_file(&middle, "blob003");
    TestMesh::start_all(&mut [&mut liar, &mut good, &mut client]);
    liar.wait_all_advertised(&[&client]);
    good.wait_all_advertised(&[&client]);
    assert_builds(&client, "middle", &middle);
    // It was substituted from the good holder, or built after damaged bytes from the corrupt one, which is not asked again.
    client.store.delete(std::slice::from_ref(&middle));
    assert_builds(&client, "middle", &middle);
}

#[test]
fn a_repaired_copy_is_offered_again() {
    let mesh = TestMesh::new();
    let [mut liar, mut client] = ["liar", "client"].map(|name| mesh.node(name));
    let lib = liar.store.build_one("lib");
    TestMesh::start_all(&mut [&mut liar, &mut client]);
    liar.wait_all_advertised(&[&client]);
    let narinfo = client.wait_narinfo(&lib);
    liar.store.corrupt_file(&lib, "lib/libmesh.txt");
    let body = get(client.gateway(), &narinfo.url).unwrap();
    assert!(body.status == 404 || !body.complete, "never a finished body with a wrong hash");
    // The same path with the right contents again, as after `nix-store --repair-path`.
    liar.store.delete(std::slice::from_ref(&lib));
    liar.store.build_one("lib");
    assert_eq!(liar.wait_narinfo(&lib).nar_hash, narinfo.nar_hash);
    assert_eq!(client.wait_narinfo(&lib).nar_hash, narinfo.nar_hash);
}
