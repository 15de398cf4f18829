//! What is known of a copy: ranges cost what they give, and what was hashed right is not hashed again.

use crate::harness::{Kind, TestNix, info, make_writable, read_all};
use narmesh_store::{NarProgress, NarStreamError, NixStore, PathInfo, Store};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// So that what was just built counts as settled.
fn wait_until_settled(path: &Path) {
    let changed = || {
        let newest = Command::new("find").arg(path).args(["-printf", "%C@\n"]).output().unwrap();
        let newest = String::from_utf8(newest.stdout).unwrap();
        newest.lines().map(|line| line.parse::<f64>().unwrap()).fold(0.0, f64::max)
    };
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    while now() < changed() + 3.1 {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn whole(store: &NixStore, info: &PathInfo) -> Vec<u8> {
    read_all(store.open_nar(info).unwrap(), 4096).unwrap()
}

#[test]
fn settled_copy_is_hashed_once() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("many");
    wait_until_settled(&nix.location.real_path(&path));
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    for _ in 0..3 {
        assert!(whole(&store, &info) == nix.dump(&path));
        assert_eq!(store.hashed_bytes(), info.nar_size);
    }
    assert!(store.known_copies_bytes() > 0);
    assert!(!store.open_nar(&info).unwrap().is_hashing() && nix.open().open_nar(&info).unwrap().is_hashing());
}

#[test]
fn copy_that_was_changed_a_moment_ago_is_hashed_again() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("file");
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let touched = Command::new("touch").args(["-h", "-d", "@1"]).arg(nix.location.real_path(&path)).status().unwrap();
    assert!(touched.success());
    for times in 1..=2 {
        whole(&store, &info);
        assert_eq!(store.hashed_bytes(), times * info.nar_size);
    }
}

#[test]
fn changed_copy_is_hashed_again_and_never_completes_wrong() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("big");
    let real = nix.location.real_path(&path);
    wait_until_settled(&real);
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let expected = whole(&store, &info);
    // Only its metadata: right, and hashed again, although part of it was given out already.
    let mut stream = store.open_nar(&info).unwrap();
    let mut out = Vec::new();
    assert_eq!(stream.fill(&mut out, 4096).unwrap(), NarProgress::More);
    let file = fs::read_dir(&real).map_or(real.clone(), |mut files| files.next().unwrap().unwrap().path());
    assert!(Command::new("touch").args(["-d", "@5"]).arg(&file).status().unwrap().success());
    while stream.fill(&mut out, 100_000).unwrap() == NarProgress::More {}
    assert!(out == expected);
    assert_eq!(store.hashed_bytes(), 2 * info.nar_size);
    // Its contents, under the same size.
    wait_until_settled(&real);
    assert!(whole(&store, &info) == expected);
    let mut stream = store.open_nar(&info).unwrap();
    assert!(!stream.is_hashing());
    out.clear();
    assert_eq!(stream.fill(&mut out, 4096).unwrap(), NarProgress::More);
    make_writable(&real);
    let mut contents = fs::read(&file).unwrap();
    let last = contents.len() - 1;
    contents[last] ^= 1;
    make_writable(&file);
    fs::write(&file, &contents).unwrap();
    let error = loop {
        match stream.fill(&mut out, 100_000) {
            Ok(NarProgress::More) => {}
            Ok(NarProgress::Complete) => panic!("a wrong body is complete"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, NarStreamError::HashMismatch { .. }), "{error}");
    assert!((out.len() as u64) < info.nar_size);
}

#[test]
fn copy_that_nix_links_to_another_is_still_right() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("many");
    let real = nix.location.real_path(&path);
    wait_until_settled(&real);
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let expected = whole(&store, &info);
    nix.run("nix-store", &["--optimise"]);
    assert!(whole(&store, &info) == expected);
    assert!(read_all(store.open_nar_at(&info, 1_000).unwrap(), 4096).unwrap() == expected[1_000..]);
}
