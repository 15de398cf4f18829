//! Tests reading as a user who cannot write beside the database.

use crate::harness::{Kind, TestNix, eventually, info, open_policy, read_all};
use narmesh_protocol::{HashPart, StoreDir, StorePath, TrustedKeys};
use narmesh_store::{NixStore, Offer, OfferPolicy, Offering, StoreError, StoreGap, StoreLocation, Withheld};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

const LOCATION: &str = "NARMESH_TEST_LOCATION";
const PART: &str = "NARMESH_TEST_PART";
const EXPECT: &str = "NARMESH_TEST_EXPECT";
const NOBODY: &str = "65534";

/// The body of the tests below. They run it as another user in a process of its own.
#[test]
#[ignore = "run by the tests of this module, as another user"]
fn as_somebody_else() {
    let location = std::env::var(LOCATION).unwrap();
    let [store_dir, state_dir] = location.split('|').collect::<Vec<_>>()[..] else { panic!("{location}") };
    let location = StoreLocation {
        store_dir: StoreDir::parse(store_dir).unwrap(),
        real_dir: store_dir.into(),
        state_dir: state_dir.into(),
        log_dir: state_dir.into(),
    };
    let beside = location.database_dir().join("written");
    assert!(fs::write(&beside, "").is_err(), "this user can write beside the database: the test shows nothing");
    let store = NixStore::open(location);
    match std::env::var(EXPECT).unwrap().as_str() {
        "unreadable" => assert!(matches!(store, Err(StoreError::NixDaemon { .. })), "{store:?}"),
        paths => {
            let store = store.unwrap();
            assert_eq!(store.valid_paths(), paths.parse::<usize>().unwrap());
            let part = HashPart::parse(&std::env::var(PART).unwrap()).unwrap();
            let info = info(&store, &part);
            assert_eq!(read_all(store.open_nar(&info).unwrap(), 4096).unwrap().len() as u64, info.nar_size);
        }
    }
}

/// Runs [`as_somebody_else`] as the user nobody; without root, as ourselves after removing our own write permission.
fn run_as_somebody_else(nix: &TestNix, part: &HashPart, expect: &str) {
    let own = std::env::current_exe().unwrap();
    let is_root = rustix::process::geteuid().is_root();
    // The test binary is copied, because other users may not reach the build directory. Another process copies
    // it: if we had the copy open for writing, a process started by another test could inherit the descriptor,
    // and the copy could not be executed.
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

/// Paths, inodes and times of all entries of a directory.
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
fn other_user_reads_a_database_without_wal() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let paths = nix.open().valid_paths();
    // Nix since 2.23 leaves these files there; they can be removed while nobody is connected.
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
fn other_user_sees_commits_in_the_wal() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let mut writer = writer(&nix);
    let before = nix.open().valid_paths();
    // A commit that is only in the WAL is seen.
    let sql = "INSERT INTO ValidPaths (path, hash, registrationTime, narSize) VALUES (?1, ?2, 1, 120)";
    let full = format!("{}/00000000000000000000000000000000-late", nix.location.store_dir.as_str());
    writer.execute(sql, [full, format!("sha256:{}", "0".repeat(64))]).unwrap();
    run_as_somebody_else(&nix, &path.hash_part(), &(before + 1).to_string());
    // A change that is not committed yet is not seen.
    let transaction = writer.transaction().unwrap();
    transaction.execute("DELETE FROM ValidPaths WHERE path LIKE '%-late'", []).unwrap();
    run_as_somebody_else(&nix, &path.hash_part(), &(before + 1).to_string());
    transaction.commit().unwrap();
    run_as_somebody_else(&nix, &path.hash_part(), &before.to_string());
}

/// Removes all permissions from the `-wal` and `-shm` files.
fn close(nix: &TestNix) {
    for suffix in ["-wal", "-shm"] {
        fs::set_permissions(beside(nix, suffix), fs::Permissions::from_mode(0o000)).unwrap();
    }
}

#[test]
fn unreadable_database_without_daemon_is_an_error() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let _writer = writer(&nix);
    close(&nix);
    run_as_somebody_else(&nix, &path.hash_part(), "unreadable");
}

#[test]
fn unreadable_database_is_read_through_the_daemon() {
    let nix = TestNix::new(Kind::Relocated);
    let path = nix.build("lib");
    let paths = nix.open().valid_paths();
    let _daemon = Daemon::start(&nix);
    let _writer = writer(&nix);
    close(&nix);
    run_as_somebody_else(&nix, &path.hash_part(), &paths.to_string());
}

/// The database and the daemon must give the same rows.
#[test]
fn wal_without_its_index_is_read_through_the_daemon() {
    let nix = TestNix::new(Kind::Relocated);
    let app = nix.build("app");
    let fod = nix.build("fod");
    let local = nix.build("local");
    let read = |store: &NixStore| -> Vec<_> {
        [&app, &fod, &local].iter().map(|path| info(store, &path.hash_part())).collect()
    };
    let store = nix.open();
    let (rows, paths) = (read(&store), store.hash_parts());
    drop(store);
    let wal = beside(&nix, "-wal");
    assert!(!wal.exists(), "nix 2.8 deletes it; with a newer one this test has to do so");
    let daemon = Daemon::start(&nix);
    // Make the daemon open its own connection first: otherwise it would recover the file that we leave there.
    daemon.ask(&nix, &app);
    for suffix in ["-wal", "-shm"] {
        fs::rename(beside(&nix, suffix), nix.dir.path().join(format!("aside{suffix}"))).unwrap();
    }
    fs::write(&wal, b"what a crash left").unwrap();
    let store = nix.open();
    assert_eq!(store.hash_parts(), paths);
    assert_eq!(read(&store), rows);
    assert_eq!(store.read_path_info(&HashPart([0; 20])).unwrap(), None);
    let offer = Offer::start(store, OfferPolicy { trusted: TrustedKeys::default(), ..open_policy() }, Box::new(|_| {}))
        .unwrap();
    eventually("the derivation is read", || {
        let withheld = Offering::Withheld(Withheld::SubstitutesForbidden);
        !offer.is_busy() && offer.list().iter().any(|(path, _, offering)| *path == local && *offering == withheld)
    });
    assert_eq!(offer.find_offered(&fod.hash_part()).unwrap().unwrap().info, rows[1]);
}

/// A real `nix-daemon`. Dropping this ends it and its client.
struct Daemon {
    process: Child,
    client: Mutex<Option<Child>>,
}

impl Daemon {
    fn start(nix: &TestNix) -> Self {
        let process = nix.command("nix-daemon", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Self { process, client: Mutex::default() };
        eventually("the daemon listens", || UnixStream::connect(nix.location.daemon_socket()).is_ok());
        daemon
    }

    /// Keeps a client connected from now on, so that a process of the daemon keeps the database open.
    fn ask(&self, nix: &TestNix, path: &StorePath) {
        let mut command = nix.command("nix-store", &["--serve"]);
        let mut client =
            command.env("NIX_REMOTE", "daemon").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Serve protocol 2.7: a greeting, then the question which of these paths are valid.
        let full = nix.full(path);
        let mut hello = Vec::new();
        for number in [0x390c_9deb_u64, 0x207, 1, 0, 0, 1, full.len() as u64] {
            hello.extend(number.to_le_bytes());
        }
        hello.extend(full.as_bytes());
        hello.resize(hello.len().next_multiple_of(8), 0);
        client.stdin.as_mut().unwrap().write_all(&hello).unwrap();
        let mut answer = [0; 24];
        client.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        assert_eq!(answer[16], 1, "the daemon does not know {full}");
        *self.client.lock().unwrap() = Some(client);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for process in self.client.lock().unwrap().iter_mut().chain([&mut self.process]) {
            assert!(process.kill().is_ok() && process.wait().is_ok());
        }
    }
}

#[test]
fn missing_store_is_reported_and_found_later() {
    let nix = TestNix::new(Kind::Relocated);
    let file = nix.build("file");
    let (real, aside) = (nix.location.real_dir.clone(), nix.dir.path().join("aside"));
    let (database, kept) = (nix.location.database_dir(), nix.dir.path().join("kept"));
    fs::rename(&real, &aside).unwrap();
    let store = nix.open();
    assert_eq!(store.gap(), Some(StoreGap::NoDirectory(real.clone())));
    fs::rename(&aside, &real).unwrap();
    fs::rename(&database, &kept).unwrap();
    store.refresh().unwrap();
    assert_eq!(store.gap(), Some(StoreGap::NoDatabase(nix.database())));
    assert_eq!(store.valid_paths(), 0);

    let other = |tables: &str| {
        let other = rusqlite::Connection::open(nix.database()).unwrap();
        other.execute_batch(tables).unwrap();
    };
    // As they lie beside the database of a Nix that runs.
    let beside = || {
        fs::write(nix.database().with_file_name("db.sqlite-wal"), "").unwrap();
        fs::write(nix.database().with_file_name("db.sqlite-shm"), vec![0; 32_768]).unwrap();
    };
    let fifo = || assert!(Command::new("mkfifo").arg(nix.database()).status().unwrap().success());
    let kinds: [(&str, &dyn Fn()); 8] = [
        ("no table", &|| other("CREATE TABLE other (id INTEGER)")),
        ("no column", &|| other("CREATE TABLE ValidPaths (id INTEGER, path TEXT)")),
        ("an empty file", &|| fs::write(nix.database(), "").unwrap()),
        ("a text", &|| fs::write(nix.database(), "hello\n".repeat(1_000)).unwrap()),
        ("a directory", &|| fs::create_dir(nix.database()).unwrap()),
        ("a FIFO", &fifo),
        ("a directory beside a log", &|| (fs::create_dir(nix.database()).unwrap(), beside()).1),
        ("a FIFO beside a log", &|| (fifo(), beside()).1),
    ];
    for (kind, make) in kinds {
        fs::create_dir(&database).unwrap();
        make();
        for store in [&store, &nix.open()] {
            store.refresh().unwrap();
            let gap = store.gap().unwrap_or_else(|| panic!("{kind} is not told")).to_string();
            assert!(gap.contains("Nix database") && gap.contains("db.sqlite"), "{kind}: {gap}");
        }
        fs::remove_dir_all(&database).unwrap();
    }
    fs::rename(&kept, &database).unwrap();
    store.refresh().unwrap();
    assert_eq!(store.gap(), None);
    assert!(store.contains(&file.hash_part()));
}
