//! Which paths a node accepts (signatures, content addresses) and which it withholds.

use std::process::Command;
use std::time::Duration;

use narmesh_tests::{StorePlace, TestMesh, finish, get, promised, wait_until};

/// A reload is promised to be in force within this.
const RELOADED: Duration = Duration::from_secs(1);

#[test]
fn a_path_signed_by_an_untrusted_key_is_not_found() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    let fod = a.store.build_one("fod");
    b.config.trusted_public_keys.clear();
    TestMesh::introduce(&mut [&mut a, &mut b]);
    b.config.trusted_public_keys.retain(|key| *key != a.builder_key());
    a.start();
    b.learn_address("a", &a.p2p_address());
    b.start();
    a.wait_all_advertised(&[&b]);

    assert_eq!(b.get_narinfo(&lib).status, 404, "its signature is of a key that B does not trust");
    b.realise(std::slice::from_ref(&lib)).expect_failure("a path that nobody can build");
    b.nix_build("lib").expect_success("nix-build builds it");
    assert!(b.store.row(&lib).unwrap().ultimate);

    let narinfo = b.wait_narinfo(&fod);
    assert_eq!(narinfo.signatures, Vec::<String>::new(), "nothing that B would not accept is handed on");
    b.realise(std::slice::from_ref(&fod)).expect_success("a fixed output proves itself");
    assert_eq!(b.store.row(&fod).unwrap().nar_hash, a.store.row(&fod).unwrap().nar_hash);
}

#[test]
fn a_reload_that_adds_or_removes_trusted_keys_counts_at_once() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let narinfo = b.wait_narinfo(&lib);
    assert_eq!(get(b.gateway(), &narinfo.url).unwrap().status, 200);

    b.config.trusted_public_keys.clear();
    b.reload();
    wait_until("the remembered answer is checked again", promised(RELOADED), || b.get_narinfo(&lib).status == 404);
    b.config.trusted_public_keys.push(a.builder_key());
    b.reload();
    assert_eq!(b.wait_narinfo(&lib).nar_hash, narinfo.nar_hash);
    b.realise(std::slice::from_ref(&lib)).expect_success("trusted again");
}

#[test]
fn a_signed_path_whose_content_address_is_of_a_newer_nix_is_served_by_its_signature() {
    let mesh = TestMesh::new();
    let [mut a, mut b, c] = ["a", "b", "c"].map(|name| mesh.node(name));
    for node in [&mut a, &mut b] {
        node.config.trusted_public_keys.push(c.builder_key());
    }
    let path = a.store.build_one("small");
    crate::bare::sign_with(&c, &a, &path);
    // As if it had come from elsewhere, so that its signature is all there is for it.
    let StorePlace::Root(root) = a.store.place() else { panic!("a chroot store") };
    let newer = format!("fixed:git:sha1:{}", "0".repeat(32));
    let mut sql = Command::new("sqlite3");
    sql.arg(root.join("nix/var/nix/db/db.sqlite"))
        .arg(format!("update ValidPaths set ca = '{newer}', ultimate = 0 where path = '{path}'"));
    finish(&mut sql).expect_success("sqlite3");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    let own = a.get_narinfo(&path);
    assert_eq!(own.status, 200, "our own gateway has it");
    let text = own.text();
    assert!(!text.contains("CA:") && text.contains("Sig: "), "{text}");
    assert_eq!(get(a.gateway(), &a.wait_narinfo(&path).url).unwrap().status, 200);
    assert!(!b.wait_narinfo(&path).signatures.is_empty());
    b.realise(std::slice::from_ref(&path)).expect_success("by its signature");
    assert_eq!(b.store.row(&path).unwrap().nar_hash, a.store.row(&path).unwrap().nar_hash);
}

#[test]
fn a_withheld_path_looks_absent_to_a_peer() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    let private = a.store.build_one("private");
    let uses_private = a.store.build_one("usesprivate");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_advertised(1, &[&b]);
    for path in [&private, &uses_private] {
        assert_eq!(b.get_narinfo(path).status, 404, "{path}");
    }
    // The path that is not withheld is found.
    assert_eq!(b.wait_narinfo(&lib).nar_hash, a.store.row(&lib).unwrap().nar_hash);

    let listed: serde_json::Value =
        serde_json::from_str(&a.narmesh(&["advertised", "--json"]).expect_success("advertised")).unwrap();
    let listed = listed.to_string();
    assert!(listed.contains(&lib), "{listed}");
    let text = a.narmesh(&["advertised"]).expect_success("advertised");
    assert!(text.lines().any(|line| line.contains(&lib)), "{text}");
}

#[test]
fn exclude_patterns_withhold_paths_by_name() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    let fresh = a.store.build_fresh("kept-back");
    a.config.exclude = vec!["mesh-fresh-*".to_owned()];
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_advertised(1, &[&b]);
    assert_eq!(b.wait_narinfo(&lib).nar_hash, a.store.row(&lib).unwrap().nar_hash);
    assert_eq!(b.get_narinfo(&fresh).status, 404);
}

#[test]
fn a_node_without_a_builder_key_advertises_nothing_that_it_built() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let lib = a.store.build_one("lib");
    a.config.builder_key = false;
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_advertised(0, &[&b]);
    assert_eq!(b.get_narinfo(&lib).status, 404);
    b.nix_build("lib").expect_success("built here instead");
}
