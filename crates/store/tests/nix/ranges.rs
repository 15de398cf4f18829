//! Tests that a range equals the tail of the whole NAR, and that it costs only the bytes that it sends.

use crate::harness::{Kind, TestNix, info, make_writable, read_all, wait_until_settled};
use narmesh_protocol::StorePath;
use narmesh_store::{NarProgress, NarStreamError, StoreError};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

#[derive(Clone, Debug)]
enum Tree {
    File(Vec<u8>, bool),
    Link(String),
    Directory(BTreeMap<String, Self>),
}

impl Tree {
    fn write(&self, path: &Path) {
        match self {
            Self::File(contents, executable) => {
                fs::write(path, contents).unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(if *executable { 0o755 } else { 0o644 })).unwrap();
            }
            Self::Link(target) => symlink(target, path).unwrap(),
            Self::Directory(entries) => {
                fs::create_dir(path).unwrap();
                entries.iter().for_each(|(name, tree)| tree.write(&path.join(name)));
            }
        }
    }
}

/// Trees with names of which one is a prefix of another, so that the order of full paths differs from that of names.
fn trees() -> impl Strategy<Value = Tree> {
    let name = prop_oneof!["[ab][-./0]?[ab]?", "[a-z]{1,12}", "é|Z|\\.x"].prop_map(|name| name.replace('/', "+"));
    let leaf = prop_oneof![
        3 => (vec(any::<u8>(), 0..40), any::<bool>()).prop_map(|(contents, executable)| Tree::File(contents, executable)),
        1 => Just(Tree::File(Vec::new(), false)),
        1 => (1_usize..6).prop_map(|kilobytes| Tree::File(vec![b'x'; kilobytes * 1000], false)),
        1 => "[a-z./]{1,30}".prop_map(Tree::Link),
    ];
    leaf.prop_recursive(5, 40, 8, move |inner| btree_map(name.clone(), inner, 0..8).prop_map(Tree::Directory))
}

fn add(nix: &TestNix, path: &Path) -> StorePath {
    nix.parse(&nix.run("nix-store", &["--add", path.to_str().unwrap()]))
}

/// Offsets to test: all of a small NAR; of a larger one evenly spaced ones and the last 20.
fn offsets(nar_size: u64) -> Vec<u64> {
    let step = usize::try_from((nar_size / 300).max(1) | 1).unwrap();
    (0..nar_size).step_by(step).chain(nar_size.saturating_sub(20)..nar_size).collect()
}

#[test]
fn range_of_any_tree_is_the_tail_of_its_nar() {
    let nix = TestNix::new(Kind::Relocated);
    let number = std::cell::Cell::new(0);
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&trees(), |tree| {
        number.set(number.get() + 1);
        let source = nix.dir.path().join(format!("tree-{}", number.get()));
        tree.write(&source);
        let path = add(&nix, &source);
        let whole = nix.dump(&path);
        let (fresh, known) = (nix.open(), nix.open());
        let info = info(&fresh, &path.hash_part());
        prop_assert!(read_all(known.open_nar(&info).unwrap(), 1000).unwrap() == whole);
        for offset in offsets(info.nar_size) {
            // One store gets its layout from the walk for the first range, the other from a read of the whole NAR.
            for store in [&fresh, &known] {
                let stream = store.open_nar_at(&info, offset).unwrap();
                let tail = read_all(stream, 700).unwrap();
                prop_assert!(tail == whole[usize::try_from(offset).unwrap()..], "from {} of {}", offset, whole.len());
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn offset_at_the_end_is_refused() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    for offset in [info.nar_size, u64::MAX] {
        assert!(matches!(store.open_nar_at(&info, offset), Err(StoreError::BeyondNar { .. })));
    }
}

/// Bytes that this thread reads from files during `read`.
fn cost(read: impl FnOnce()) -> u64 {
    let read_bytes = || {
        let io = fs::read_to_string("/proc/thread-self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok()).unwrap()
    };
    let before = read_bytes();
    read();
    read_bytes() - before
}

/// Most bytes read beside the range itself: the database and directory names.
const BESIDE_BYTES_MAX: u64 = 150_000;

#[test]
fn range_reads_only_what_it_gives() {
    let nix = TestNix::new(Kind::Relocated);
    let source = nix.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for number in 0..300 {
        fs::write(source.join(format!("f{number}")), vec![b'x'; 3000]).unwrap();
    }
    fs::write(source.join("large"), vec![b'y'; 8 << 20]).unwrap();
    let path = add(&nix, &source);
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    for bytes in [1, 100, 5000, 1 << 20] {
        let read = cost(|| {
            let tail = read_all(store.open_nar_at(&info, info.nar_size - bytes).unwrap(), 4096).unwrap();
            assert_eq!(tail.len() as u64, bytes);
        });
        assert!(read <= bytes + BESIDE_BYTES_MAX, "{read} bytes read for the last {bytes}");
    }
    // The beginning of a range that starts among the small files.
    let read = cost(|| {
        let mut stream = store.open_nar_at(&info, 500_000).unwrap();
        assert_eq!(stream.fill(&mut Vec::with_capacity(10_000), 10_000).unwrap(), NarProgress::More);
    });
    assert!(read <= 12_000 + BESIDE_BYTES_MAX, "{read}");
    assert_eq!(store.hashed_bytes(), 0, "a range was hashed");
    read_all(store.open_nar(&info).unwrap(), 1 << 20).unwrap();
    assert_eq!(store.hashed_bytes(), info.nar_size, "a range counts as verified");
}

#[test]
fn range_over_a_touched_file_continues_only_if_earlier_bytes_are_right() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("big");
    let file = nix.location.real_path(&path).join("blob2");
    wait_until_settled(&nix.location.real_path(&path));
    let (store, whole) = (nix.open(), nix.dump(&path));
    let info = info(&store, &path.hash_part());
    let tail = || read_all(store.open_nar_at(&info, 1000).unwrap(), 100_000);
    // The NarHash was right, and a file is touched before the range reaches it.
    assert!(read_all(store.open_nar(&info).unwrap(), 100_000).unwrap() == whole);
    make_writable(&file);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    assert!(tail().unwrap() == whole[1000..]);
    // The new layout was not hashed, so the bytes already given out may be wrong.
    make_writable(&file);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let refused = tail();
    assert!(matches!(refused, Err(NarStreamError::Changed { .. })), "{refused:?}");
    assert!(tail().unwrap() == whole[1000..], "it is not a failed copy, and resumes");
    assert_eq!(store.hashed_bytes(), info.nar_size, "a range was hashed");
}

#[test]
fn range_survives_a_touched_file_and_fails_at_a_shrunk_one() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("big");
    let file = nix.location.real_path(&path).join("blob2");
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let whole = nix.dump(&path);
    let offset = whole.len() - 10_000;
    let tail = || read_all(store.open_nar_at(&info, offset as u64).unwrap(), 100_000);
    assert!(tail().unwrap() == whole[offset..]);
    make_writable(&file);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    assert!(tail().unwrap() == whole[offset..], "only its change time is another one");
    let file = fs::OpenOptions::new().append(true).open(&file).unwrap();
    file.set_len(5000).unwrap();
    let refused = tail();
    assert!(matches!(refused, Err(NarStreamError::HashMismatch { .. })), "{refused:?}");
    assert!(matches!(store.open_nar_at(&info, 1), Err(StoreError::CopyFailed { .. })));
}

#[test]
fn file_changed_while_a_range_is_read_ends_the_range() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("big");
    let file = nix.location.real_path(&path).join("blob0");
    make_writable(&file);
    let store = nix.open();
    // The mode is part of the NAR, and `blob0` was just made executable: restore it.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let info = info(&store, &path.hash_part());
    let mut stream = store.open_nar_at(&info, 2000).unwrap();
    let mut out = Vec::new();
    assert_eq!(stream.fill(&mut out, 4096).unwrap(), NarProgress::More);
    let good = fs::read(&file).unwrap();
    fs::write(&file, good.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()).unwrap();
    let refused = read_all(stream, 4096);
    assert!(matches!(refused, Err(NarStreamError::Changed { .. })), "{refused:?}");
    assert_eq!(store.hashed_bytes(), 0, "a range was hashed");
    // The files are no longer those that were registered.
    let refused = read_all(store.open_nar(&info).unwrap(), 4096);
    assert!(matches!(refused, Err(NarStreamError::HashMismatch { .. })), "{refused:?}");
    assert!(matches!(store.open_nar_at(&info, 2000), Err(StoreError::CopyFailed { .. })));
}

#[test]
fn replaced_directory_or_deleted_path_ends_a_range() {
    let nix = TestNix::new(Kind::Relocated);
    let store = nix.open();
    let path = nix.build("lib");
    store.refresh().unwrap();
    let lib = info(&store, &path.hash_part());
    let tail = |offset| read_all(store.open_nar_at(&lib, offset).unwrap(), 4096);
    assert!(tail(500).unwrap() == nix.dump(&path)[500..]);
    let real = nix.location.real_path(&path);
    make_writable(&real);
    make_writable(&real.join("lib"));
    // A link now leads the same names elsewhere; nothing may follow it.
    fs::rename(real.join("lib"), nix.dir.path().join("aside")).unwrap();
    symlink(nix.dir.path().join("aside"), real.join("lib")).unwrap();
    let refused = tail(500);
    assert!(matches!(refused, Err(NarStreamError::HashMismatch { .. })), "{refused:?}");

    let path = nix.build("many");
    let many = info(&store, &path.hash_part());
    let mut stream = store.open_nar_at(&many, 1000).unwrap();
    let mut out = Vec::new();
    assert_eq!(stream.fill(&mut out, 4096).unwrap(), NarProgress::More);
    // A garbage collector that starts now sees our open directory in /proc and keeps the path.
    assert!(!nix.try_run("nix-store", &["--delete", &nix.full(&path)]).status.success());
    nix.run("nix-store", &["--delete", "--ignore-liveness", &nix.full(&path)]);
    let refused = read_all(stream, 4096);
    // Either the open file changed its link count, or the next file was missing.
    let is_short = matches!(refused, Err(NarStreamError::Io { .. } | NarStreamError::Changed { .. }));
    assert!(is_short, "{refused:?}");
}

#[test]
fn tree_deeper_than_a_nar_holds_gives_no_range() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let real = nix.location.real_path(&path);
    make_writable(&real);
    fs::create_dir_all((0..70).fold(real.join("deep"), |path, _| path.join("d"))).unwrap();
    let store = nix.open();
    let info = info(&store, &path.hash_part());
    let refused = read_all(store.open_nar_at(&info, 100).unwrap(), 1 << 20);
    assert!(matches!(refused, Err(NarStreamError::NotArchivable { .. })), "{refused:?}");
}
