//! A holder with a corrupt disk sends something else than it signed.

use std::time::Duration;

use narmesh_tests::{TestMesh, TestNode, get, promised, sha256_hex, wait_until};

/// A change of the store is promised to be seen within this.
const SEEN: Duration = Duration::from_secs(1);

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

#[test]
fn a_corrupt_copy_stays_withheld_over_a_restart_until_it_is_another() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let lib = holder.store.build_one("lib");
    TestMesh::start_all(&mut [&mut holder, &mut client]);
    holder.wait_all_advertised(&[&client]);
    holder.store.corrupt_file(&lib, "lib/libmesh.txt");
    assert_builds(&client, "lib", &lib);
    let is_withheld = |node: &TestNode| {
        let said = node.narmesh(&["advertised"]).stdout;
        said.lines().any(|line| line.contains(&lib) && line.ends_with("our copy of it failed its hash"))
    };
    wait_until("its copy is known to be damaged", promised(SEEN), || is_withheld(&holder));
    // It does not wait for somebody to fetch the copy in vain once more.
    holder.terminate();
    holder.start();
    wait_until("it is known after the restart", promised(SEEN), || is_withheld(&holder));
    holder.wait_advertised(0, &[]);

    holder.terminate();
    holder.store.delete(std::slice::from_ref(&lib));
    assert_eq!(holder.store.build_one("lib"), lib);
    holder.start();
    holder.wait_advertised(1, &[&client]);
    assert!(!is_withheld(&holder), "what was built again is another copy");
}
