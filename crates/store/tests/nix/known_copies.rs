//! Tests what the store remembers about copies: a copy whose NarHash was right is not hashed again until it changes.

use crate::harness::{Kind, PATIENCE, TestNix, info, make_writable, read_all, wait_until_settled};
use narmesh_protocol::nar_tree::LeafHasher;
use narmesh_store::{NarProgress, NarStream, NarStreamError, NixStore, PathInfo};
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    let other = nix.open();
    whole(&other, &info);
    assert_eq!(other.hashed_bytes(), info.nar_size, "not known to a store that was opened later");
}

#[test]
fn small_nar_is_read_at_once_while_its_copy_is_known_and_unchanged() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let real = nix.location.real_path(&path);
    wait_until_settled(&real);
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let at_once = |is_wanted| store.read_nar_at_once(&path.hash_part(), |_| is_wanted);
    assert!(at_once(true).is_none(), "nothing is known of the copy");
    let nar = whole(&store, &info);
    let read = || {
        // Another file system than tmpfs may need its contents in memory first.
        whole(&store, &info);
        at_once(true)
    };
    assert!(read().is_some_and(|read| read == nar));
    assert!(at_once(false).is_none(), "it is not the one asked for");
    let file = real.join("lib/seven");
    make_writable(&real.join("lib"));
    assert!(Command::new("touch").args(["-d", "@5"]).arg(&file).status().unwrap().success());
    assert!(at_once(true).is_none(), "a file has changed");
    whole(&store, &info);
    fs::rename(&file, file.with_extension("moved")).unwrap();
    std::os::unix::fs::symlink(file.with_extension("moved"), &file).unwrap();
    assert!(at_once(true).is_none(), "a link is in the place of a file");
}

#[test]
fn nar_of_many_files_or_bytes_is_never_read_at_once() {
    let nix = TestNix::new(Kind::Relocated);
    for (name, is_small) in [("hundred", true), ("big", false)] {
        let path = nix.build(name);
        wait_until_settled(&nix.location.real_path(&path));
        let store = nix.open();
        let info = info(&store, &path.hash_part());
        assert_eq!(info.nar_size <= 64 << 10, is_small, "{name}");
        whole(&store, &info);
        assert!(store.read_nar_at_once(&path.hash_part(), |_| true).is_none(), "{name}");
    }
}

#[test]
fn recently_changed_copy_is_hashed_again() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("file");
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let started = Instant::now();
    for tries in 1.. {
        let hashed_bytes = store.hashed_bytes();
        let changed = Instant::now();
        let touch = Command::new("touch").args(["-h", "-d", "@1"]).arg(nix.location.real_path(&path)).status().unwrap();
        assert!(touch.success());
        whole(&store, &info);
        // Only a fast enough machine reads the copy while it is unsettled.
        let is_quick = changed.elapsed() < Duration::from_secs(2);
        whole(&store, &info);
        if is_quick {
            assert_eq!(store.hashed_bytes(), hashed_bytes + 2 * info.nar_size);
            return;
        }
        assert!(started.elapsed() < 6 * PATIENCE, "too slow {tries} times");
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
    // Only the metadata changes: the NAR is right, and is hashed again although part of it was given out already.
    let mut stream = store.open_nar(&info).unwrap();
    let mut out = Vec::new();
    assert_eq!(stream.fill(&mut out, 4096).unwrap(), NarProgress::More);
    let file = fs::read_dir(&real).map_or(real.clone(), |mut files| files.next().unwrap().unwrap().path());
    assert!(Command::new("touch").args(["-d", "@5"]).arg(&file).status().unwrap().success());
    while stream.fill(&mut out, 100_000).unwrap() == NarProgress::More {}
    assert!(out == expected);
    assert_eq!(store.hashed_bytes(), 2 * info.nar_size);
    // The contents change, and the size stays.
    wait_until_settled(&real);
    assert!(whole(&store, &info) == expected);
    let mut stream = store.open_nar(&info).unwrap();
    out.clear();
    let hashed_bytes = store.hashed_bytes();
    assert_eq!(stream.fill(&mut out, 4096).unwrap(), NarProgress::More);
    assert_eq!(store.hashed_bytes(), hashed_bytes);
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

/// Reads on until `out` has at least `bytes` bytes.
fn read_to(stream: &mut NarStream, out: &mut Vec<u8>, bytes: usize) {
    while out.len() < bytes {
        // A small buffer of its own: the stream would fill all the spare room of a larger one at once.
        let mut piece = Vec::with_capacity(4096);
        assert_eq!(stream.fill(&mut piece, 4096).unwrap(), NarProgress::More);
        out.extend(piece);
    }
}

/// Offset of a file's contents in a NAR that contains them once.
fn find(nar: &[u8], contents: &[u8]) -> usize {
    let head = &contents[..100];
    nar.windows(head.len()).position(|window| window == head).unwrap()
}

fn read_to_its_end(mut stream: NarStream, out: &mut Vec<u8>) -> Result<(), NarStreamError> {
    while stream.fill(out, 100_000)? == NarProgress::More {}
    Ok(())
}

#[test]
fn tree_repaired_while_it_is_read_does_not_complete_a_wrong_nar() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("big");
    let real = nix.location.real_path(&path);
    let good = nix.dump(&path);
    let (first, second) = (real.join("blob0"), fs::read(real.join("blob1")).unwrap());
    let mut contents = fs::read(&first).unwrap();
    contents[1000] ^= 1;
    make_writable(&first);
    fs::write(&first, &contents).unwrap();
    fs::set_permissions(&first, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let mut stream = store.open_nar(&info).unwrap();
    let mut out = Vec::new();
    read_to(&mut stream, &mut out, find(&good, &second) + 10_000);
    nix.run("nix-store", &["--repair-path", &nix.full(&path)]);
    assert!(nix.dump(&path) == good, "nix did not repair it");
    let given_bytes = out.len();
    let error = read_to_its_end(stream, &mut out).expect_err("a wrong body is complete");
    assert!(matches!(error, NarStreamError::Changed { .. }), "{error}");
    assert!(out.len() < given_bytes + second.len(), "more than the rest of the file that was open");
    assert!(whole(&store, &info) == good, "what lies there now is right");
}

#[test]
fn file_changed_and_changed_back_while_it_is_read_is_not_given_out_wrong() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("big");
    let real = nix.location.real_path(&path);
    let file = real.join("blob1");
    make_writable(&file);
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    wait_until_settled(&real);
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let expected = whole(&store, &info);
    let contents = fs::read(&file).unwrap();
    let mut stream = store.open_nar(&info).unwrap();
    let mut out = Vec::new();
    read_to(&mut stream, &mut out, find(&expected, &contents) + 10_000);
    fs::write(&file, contents.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()).unwrap();
    read_to(&mut stream, &mut out, find(&expected, &contents) + 20_000);
    fs::write(&file, &contents).unwrap();
    if read_to_its_end(stream, &mut out).is_ok() {
        assert!(out == expected, "a wrong body is complete");
    }
}

#[test]
fn changed_link_target_is_a_hash_mismatch() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("symlink");
    let real = nix.location.real_path(&path);
    wait_until_settled(&real);
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    whole(&store, &info);
    fs::remove_file(&real).unwrap();
    std::os::unix::fs::symlink("somewhere/ELSE", &real).unwrap();
    let refused = read_all(store.open_nar(&info).unwrap(), 4096);
    assert!(matches!(refused, Err(NarStreamError::HashMismatch { .. })), "{refused:?}");
}

#[test]
fn copy_that_nix_optimises_is_hashed_again_and_right() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("many");
    let real = nix.location.real_path(&path);
    wait_until_settled(&real);
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let expected = whole(&store, &info);
    nix.run("nix-store", &["--optimise"]);
    assert!(read_all(store.open_nar_at(&info, 1_000).unwrap(), 4096).unwrap() == expected[1_000..]);
    assert_eq!(store.hashed_bytes(), info.nar_size, "a range was hashed");
    assert!(whole(&store, &info) == expected);
    assert_eq!(store.hashed_bytes(), 2 * info.nar_size);
}

#[test]
fn tree_comes_with_the_hash_of_a_copy_and_later_without_one() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("large");
    wait_until_settled(&nix.location.real_path(&path));
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let tree_of = |store: &NixStore| store.known_tree(&path.hash_part(), &info.nar_hash);
    assert!(tree_of(&store).is_none());
    let nar = whole(&store, &info);
    let tree = tree_of(&store).expect("it was hashed");
    let mut expected = LeafHasher::new(info.nar_size, 0).unwrap();
    expected.update(&nar);
    assert_eq!(*tree, expected.finish().unwrap());
    // A copy that is known to be right is read once more, and not hashed.
    let mut stream = store.open_nar(&info).unwrap().with_tree();
    let mut out = Vec::new();
    while stream.fill(&mut out, 1 << 20).unwrap() == NarProgress::More {}
    assert_eq!(store.hashed_bytes(), info.nar_size);
    let again = tree_of(&store).unwrap();
    assert!(!Arc::ptr_eq(&tree, &again) && tree == again);
}
