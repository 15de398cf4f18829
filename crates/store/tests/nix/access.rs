//! Reading as a user who cannot write beside the database.

use crate::harness::{Kind, TestNix, info, read_all};
use narmesh_protocol::{HashPart, StoreDir};
use narmesh_store::{NixStore, Store, StoreError, StoreLocation};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const LOCATION: &str = "NARMESH_TEST_LOCATION";
const PART: &str = "NARMESH_TEST_PART";
const EXPECT: &str = "NARMESH_TEST_EXPECT";
const NOBODY: &str = "65534";

/// The body of the tests below, run by them as another user in a process of its own.
#[test]
#[ignore = "run by the tests of this module, as another user"]
fn as_somebody_else() {
    let location = std::env::var(LOCATION).unwrap();
    let [store_dir, state_dir] = location.split('|').collect::<Vec<_>>()[..] else { panic!("{location}") };
    let location = StoreLocation {
        store_dir: StoreDir::parse(store_dir).unwrap(),
        real_dir: store_dir.into(),
        state_dir: state_dir.into(),
    };
    let beside = location.database_dir().join("written");
    assert!(fs::write(&beside, "").is_err(), "this user can write beside the database: the test shows nothing");
    let store = NixStore::open(location);
    match std::env::var(EXPECT).unwrap().as_str() {
        "unreadable" => assert!(matches!(store, Err(StoreError::Unreadable { .. })), "{store:?}"),
        paths => {
            let store = store.unwrap();
            assert_eq!(store.valid_paths(), paths.parse::<usize>().unwrap());
            let part = HashPart::parse(&std::env::var(PART).unwrap()).unwrap();
            let info = info(&store, &part);
            assert_eq!(read_all(store.open_nar(&info).unwrap(), 4096).unwrap().len() as u64, info.nar_size);
        }
    }
}

/// Runs [`as_somebody_else`] as nobody; or, without root, as ourselves once we cannot write there.
fn run_as_somebody_else(nix: &TestNix, part: &HashPart, expect: &str) {
    let own = std::env::current_exe().unwrap();
    let is_root = rustix::process::geteuid().is_root();
    // The build directory need not be open to others. Copied by another process: a descriptor of ours, open for writing,
    // would be inherited by whatever another test starts meanwhile, and nobody could execute the copy.
    let copy = nix.dir.path().join("test-binary");
    if !copy.exists() {
        assert!(Command::new("cp").arg(own).arg(&copy).status().unwrap().success());
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = if is_root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(&copy);
        command
    } else {
        fs::set_permissions(nix.location.database_dir(), fs::Permissions::from_mode(0o555)).unwrap();
        Command::new(&copy)
    };
    command.args(["--exact", "access::as_somebody_else", "--ignored", "--nocapture"]);
    let location = format!("{}|{}", nix.location.store_dir.as_str(), nix.location.state_dir.display());
    command.env(LOCATION, location).env(PART, part.to_string()).env(EXPECT, expect).current_dir("/");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "as another user: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    if !is_root {
        fs::set_permissions(nix.location.database_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn beside(nix: &TestNix, suffix: &str) -> PathBuf {
    let mut name = nix.database().into_os_string();
    name.push(suffix);
    name.into()
}

/// Names, sizes and times of everything in a directory.
fn fingerprint(directory: &Path) -> Vec<(PathBuf, u64, i64, i64, i64)> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            (entry.path(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime_nsec())
        })
        .collect();
    all.sort();
    all
}

/// A writer that holds the database open in WAL mode, as a running Nix does.
fn writer(nix: &TestNix) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(nix.database()).unwrap();
    let touched = connection.execute("UPDATE ValidPaths SET narSize = narSize", []).unwrap();
    assert!(touched > 0 && beside(nix, "-wal").exists() && beside(nix, "-shm").exists());
    connection
}

#[test]
fn without_a_wal() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let paths = nix.open().valid_paths();
    // Nix from 2.23 on leaves them there; with nobody connected they can go.
    rusqlite::Connection::open(nix.database()).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    for suffix in ["-wal", "-shm"] {
        assert!(fs::remove_file(beside(&nix, suffix)).is_ok() || !beside(&nix, suffix).exists());
    }
    let before = fingerprint(&nix.location.database_dir());
    run_as_somebody_else(&nix, &path.hash_part(), &paths.to_string());
    let store = nix.open();
    assert_eq!(info(&store, &path.hash_part()).path, path);
    assert_eq!(fingerprint(&nix.location.database_dir()), before, "reading changed the directory");
}

#[test]
fn with_a_wal() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let mut writer = writer(&nix);
    let before = nix.open().valid_paths();
    // A commit that is in the WAL alone is seen.
    let sql = "INSERT INTO ValidPaths (path, hash, registrationTime, narSize) VALUES (?1, ?2, 1, 120)";
    let full = format!("{}/00000000000000000000000000000000-late", nix.location.store_dir.as_str());
    writer.execute(sql, [full, format!("sha256:{}", "0".repeat(64))]).unwrap();
    run_as_somebody_else(&nix, &path.hash_part(), &(before + 1).to_string());
    // One that is not yet committed is not.
    let transaction = writer.transaction().unwrap();
    transaction.execute("DELETE FROM ValidPaths WHERE path LIKE '%-late'", []).unwrap();
    run_as_somebody_else(&nix, &path.hash_part(), &(before + 1).to_string());
    transaction.commit().unwrap();
    run_as_somebody_else(&nix, &path.hash_part(), &before.to_string());
}

#[test]
fn files_that_only_the_owner_may_open() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let writer = writer(&nix);
    for suffix in ["-wal", "-shm"] {
        fs::set_permissions(beside(&nix, suffix), fs::Permissions::from_mode(0o000)).unwrap();
    }
    run_as_somebody_else(&nix, &path.hash_part(), "unreadable");
    drop(writer);
}
