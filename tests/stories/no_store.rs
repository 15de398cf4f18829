//! A store that is not there yet: the daemon runs, says so everywhere, and finds it when it comes.

use narmesh_tests::{StorePlace, TestMesh, promised, wait_until};
use std::fs;
use std::time::Duration;

/// The store is looked for this often, with room for a busy machine.
const FOUND: Duration = Duration::from_secs(5);

#[test]
fn a_store_without_a_database_is_told_of_and_found_when_it_comes() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let path = node.store.build_fresh("later");
    let StorePlace::Root(root) = node.config.store.clone() else { panic!("a chroot store") };
    let away = mesh.path().join("away");
    fs::rename(&root, &away).unwrap();
    fs::create_dir_all(root.join("nix/store")).unwrap();

    node.write_config();
    let checked = node.narmesh(&["check-config"]).expect_success("check-config");
    assert!(checked.contains("until that changes, this node finds and offers no path"), "{checked}");
    node.start();
    let status = node.narmesh(&["status"]).expect_success("status");
    assert!(status.contains("NOT THERE:"), "{status}");
    node.wait_logged(&["the store is not there"]);
    assert_eq!(node.get_narinfo(&path).status, 404);

    fs::remove_dir_all(&root).unwrap();
    fs::rename(&away, &root).unwrap();
    wait_until("the path is found", promised(FOUND), || node.get_narinfo(&path).status == 200);
    let status = node.narmesh(&["status"]).expect_success("status");
    assert!(!status.contains("NOT THERE:"), "{status}");
}
