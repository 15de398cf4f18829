//! A state directory that is full, or that cannot be written.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use narmesh_tests::{TestMesh, TestNode, finish, promised, wait_until};

/// A path is promised to be found on other nodes within this.
const SPREAD: Duration = Duration::from_secs(2);

/// From the next start on, the state directory is a small file system of its own, which ends with the daemon.
fn on_a_small_disk(node: &mut TestNode, options: &str) {
    let script = format!(r#"mount -t tmpfs -o {options} tmpfs "$0" && exec "$@""#);
    let state = node.dir().join("state");
    fs::create_dir_all(&state).unwrap();
    node.run_under(&["unshare", "--mount", "sh", "-c", &script, state.to_str().unwrap()]);
    // The socket is outside of that file system, where we can reach it.
    node.config.control_socket = Some(node.dir().join("control.sock"));
}

/// The state directory as the daemon sees it.
fn inside(node: &TestNode, file: &str) -> PathBuf {
    let state = node.dir().join("state").join(file);
    Path::new("/proc").join(node.pid().to_string()).join("root").join(state.strip_prefix("/").unwrap())
}

/// Fills the file system to its last byte.
fn fill(node: &TestNode) {
    let (file, mut bytes) = (inside(node, "filler"), vec![7; 1 << 20]);
    while !bytes.is_empty() {
        let mut open = fs::OpenOptions::new().create(true).append(true).open(&file).unwrap();
        if std::io::Write::write_all(&mut open, &bytes).is_err() {
            bytes.truncate(bytes.len() / 2);
        }
    }
}

#[test]
fn a_daemon_with_a_full_state_disk_works_and_writes_again_when_there_is_room() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    on_a_small_disk(&mut a, "size=1m,mode=0750");
    let [app, lib] = ["app", "lib"].map(|attribute| b.store.build_one(attribute));
    TestMesh::start_all(&mut [&mut a, &mut b]);
    b.wait_all_advertised(&[&a]);
    fill(&a);
    a.clear_log();
    // Now happens everything that writes state: answers, newer announcements of a peer, a new epoch of our own.
    let prober = a.probe(&[&app, &lib]);
    drop(a.wait_narinfo(&app));
    let before = b.status().summary_version("a").unwrap();
    for tag in ["full-1", "full-2", "full-3"] {
        for node in [&a, &b] {
            let path = node.store.build_fresh(&format!("{tag}-{}", node.name));
            let other = if node.name == "a" { &b } else { &a };
            assert_eq!(other.wait_narinfo(&path).nar_hash, node.store.row(&path).unwrap().nar_hash);
        }
    }
    let gone = a.store.build_fresh("full-gone");
    a.wait_all_advertised(&[&b]);
    a.store.delete(&[gone]);
    a.wait_all_advertised(&[&b]);
    assert!(b.status().summary_version("a").unwrap().0 > before.0, "a removal is a new epoch, also without a disk");
    a.realise(std::slice::from_ref(&app)).expect_success("substituted with a full disk");
    prober.finish().assert_fit_for_nix(a.narinfo_slowest_max());
    a.wait_logged(&["state database", "full"]);
    assert_eq!(b.status().peer("a").unwrap()["misdeeds"], 0);
    // With room on the disk, the state is written again, without a restart.
    fs::remove_file(inside(&a, "filler")).unwrap();
    let other = a.store.build_fresh("room-again");
    a.wait_all_advertised(&[&b]);
    a.store.delete(&[other]);
    a.wait_all_advertised(&[&b]);
    let (epoch, _) = b.status().summary_version("a").unwrap();
    wait_until("the epoch is written down", promised(SPREAD), || written_epoch(&a, &mesh) == Some(epoch));
}

/// The epoch that a restart would find: read from a copy of the state.
fn written_epoch(node: &TestNode, mesh: &TestMesh) -> Option<u64> {
    let copy = mesh.path().join("copy.sqlite");
    for suffix in ["", "-wal"] {
        let to = mesh.path().join(format!("copy.sqlite{suffix}"));
        fs::copy(inside(node, &format!("state.sqlite{suffix}")), to).unwrap();
    }
    let found = finish(std::process::Command::new("sqlite3").arg(copy).arg("SELECT epoch FROM own"));
    found.expect_success("sqlite3").parse().ok()
}

/// A daemon that cannot write its state directory runs without memory, so that Nix does not lose its substituter.
#[test]
fn a_daemon_with_a_read_only_state_directory_works_without_memory() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let state = a.dir().join("state");
    for kind in ["never written", "written before"] {
        let tag = kind.replace(' ', "-");
        let (app, theirs) = (b.store.build_fresh(&format!("{tag}-b")), a.store.build_fresh(&format!("{tag}-a")));
        on_a_small_disk(&mut a, "size=1m,ro");
        if kind == "written before" {
            // As after a boot without recovery of the journal: the files are there, and nothing can be changed.
            let script = r#"mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@""#;
            a.run_under(&["unshare", "--mount", "sh", "-c", script, state.to_str().unwrap()]);
        }
        if kind == "never written" {
            TestMesh::start_all(&mut [&mut a, &mut b]);
            a.learn_address("b", &b.p2p_address());
        } else {
            a.start();
        }
        a.wait_logged(&["error", "state", "running without it"]);
        a.wait_all_advertised(&[&b]);
        b.wait_all_advertised(&[&a]);
        let prober = a.probe(&[&app, &theirs]);
        a.realise(std::slice::from_ref(&app)).expect_success(kind);
        b.realise(std::slice::from_ref(&theirs)).expect_success(kind);
        prober.finish().assert_fit_for_nix(a.narinfo_slowest_max());
        let before = b.status().summary_version("a").unwrap();
        // Peers hear it after a restart without memory: its epoch comes from the clock, or from what its peers show it.
        a.kill();
        a.clear_log();
        a.start();
        b.wait_status("hears a again", SPREAD, |status| status.summary_version("a") > Some(before));
        a.kill();
        // Once the directory is writable, the daemon remembers again.
        a.run_under(&[]);
        a.start();
        a.wait_all_advertised(&[&b]);
        assert_eq!(b.status().peer("a").unwrap()["misdeeds"], 0, "{kind}");
        a.kill();
        a.clear_log();
    }
}
