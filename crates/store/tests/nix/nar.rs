//! Compares NARs byte for byte with those that Nix makes of the same files.

use crate::harness::{Kind, TestNix, info, make_writable, nar_hash, read_all};
use narmesh_store::{NarProgress, NarStreamError, StoreError};
use std::fs;

#[test]
fn nars_equal_those_of_nix_for_every_kind_of_file() {
    let nix = TestNix::new(Kind::Relocated);
    let attributes = ["lib", "app", "many", "big", "empty", "file", "symlink", "multi", "fod"];
    let paths: Vec<_> = attributes.iter().map(|attribute| nix.build(attribute)).collect();
    let store = nix.open();
    for path in &paths {
        let info = info(&store, &path.hash_part());
        let expected = nix.dump(path);
        for piece_bytes in [1, 1000, 4096, 256 << 10, 64 << 20] {
            // Reading byte by byte is slow in a debug build.
            if piece_bytes == 1 && expected.len() > 100_000 {
                continue;
            }
            let nar = read_all(store.open_nar(&info).unwrap(), piece_bytes).unwrap();
            assert!(nar == expected, "{path} in pieces of {piece_bytes} bytes");
        }
        assert_eq!((nar_hash(&expected), expected.len() as u64), (info.nar_hash, info.nar_size));
    }
}

#[test]
fn small_nar_is_complete_after_one_fill() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let mut stream = store.open_nar(&info).unwrap();
    let mut out = b"before".to_vec();
    assert_eq!(stream.fill(&mut out, 256 << 10).unwrap(), NarProgress::Complete);
    assert_eq!(out.len() as u64, 6 + info.nar_size);
    assert_eq!(stream.given_bytes(), info.nar_size);
    assert_eq!(stream.fill(&mut out, 256 << 10).unwrap(), NarProgress::Complete);
    assert_eq!(out.len() as u64, 6 + info.nar_size);
}

#[test]
fn path_deleted_while_it_is_read_is_an_error() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("many");
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let mut stream = store.open_nar(&info).unwrap();
    let mut out = Vec::new();
    assert_eq!(stream.fill(&mut out, 4096).unwrap(), NarProgress::More);
    // A garbage collector that starts now sees our open directory in /proc and keeps the path.
    assert!(!nix.try_run("nix-store", &["--delete", &nix.full(&path)]).status.success());
    // A garbage collector that looked earlier would delete it.
    nix.run("nix-store", &["--delete", "--ignore-liveness", &nix.full(&path)]);
    let given = out.len();
    let error = loop {
        match stream.fill(&mut out, 4096) {
            Ok(NarProgress::More) => {}
            Ok(NarProgress::Complete) => panic!("a finished body of a path that is gone"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, NarStreamError::Io { .. }), "{error}");
    assert!((out.len() as u64) < info.nar_size && out.len() < given + 4096);
    assert!(matches!(stream.fill(&mut out, 4096), Err(NarStreamError::Spent { .. })));
    assert!(matches!(store.open_nar(&info), Err(StoreError::NotRegistered { .. })));
}

#[test]
fn changed_copy_never_gives_out_its_last_byte() {
    let nix = TestNix::new(Kind::Relocated);
    // One file changes its bytes; the others grow: by more than a piece, by less than a piece, and from nothing.
    let long = "long".repeat(100_000);
    let changes = [("file", "CONTENTS\n"), ("fod", &long), ("symlink", ""), ("empty", "more")];
    for (attribute, contents) in changes {
        let path = nix.build(attribute);
        let real = nix.location.real_path(&path);
        if attribute == "symlink" {
            fs::remove_file(&real).unwrap();
        } else {
            make_writable(&real);
        }
        fs::write(&real, contents).unwrap();
        if attribute != "file" {
            fs::set_permissions(&real, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        }
        let store = nix.open();
        let info = info(&store, &path.hash_part());
        for piece_bytes in [1, 100, 1 << 20] {
            // A new store, which does not remember the failed copy.
            let store = nix.open();
            let mut stream = store.open_nar(&info).unwrap();
            let mut out = Vec::new();
            let error = loop {
                match stream.fill(&mut out, piece_bytes) {
                    Ok(NarProgress::More) => assert!((out.len() as u64) < info.nar_size),
                    Ok(NarProgress::Complete) => panic!("{attribute}: complete with other contents"),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, NarStreamError::HashMismatch { .. }), "{error}");
            assert!((out.len() as u64) < info.nar_size, "{attribute} in pieces of {piece_bytes}");
        }
    }
}

#[test]
fn special_file_and_deep_tree_are_refused() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let real = nix.location.real_path(&path);
    make_writable(&real);
    let pipe = real.join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let refused = read_all(store.open_nar(&info).unwrap(), 4096);
    assert!(matches!(refused, Err(NarStreamError::NotArchivable { .. })), "{refused:?}");
    fs::remove_file(&pipe).unwrap();
    let mut deep = real.join("deep");
    for _ in 0..70 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    // In one piece, because the tree is deeper than a NAR allows but also has more bytes than were registered.
    let refused = read_all(nix.open().open_nar(&info).unwrap(), 1 << 20);
    assert!(matches!(refused, Err(NarStreamError::NotArchivable { .. })), "{refused:?}");
}

#[test]
fn root_swapped_for_a_symlink_is_not_followed() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("file");
    let real = nix.location.real_path(&path);
    let elsewhere = nix.dir.path().join("elsewhere");
    fs::rename(&real, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &real).unwrap();
    let store = nix.open();
    let refused = read_all(store.open_nar(&info(&store, &path.hash_part())).unwrap(), 4096);
    assert!(matches!(refused, Err(NarStreamError::HashMismatch { .. })), "{refused:?}");
}
