//! Nix's database is locked by another process, or our own has damaged pages.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use narmesh_tests::{StorePlace, TestMesh, TestNode, finish, get, hash_part};

/// How long the lock is held.
const LOCKED: Duration = Duration::from_secs(10);
/// A lookup that waits for the lock ends at most this much after its limit, which is as long as the lock is held.
const WAITED_LONGER: Duration = Duration::from_secs(2);
/// Paths are promised to be known on other nodes this soon after the lock is gone.
const SPREAD: Duration = Duration::from_secs(2);

fn nix_database(node: &TestNode) -> PathBuf {
    match node.store.place() {
        StorePlace::Root(root) => root.join("nix/var/nix/db/db.sqlite"),
        StorePlace::Relocated { state_dir, .. } => state_dir.join("db/db.sqlite"),
    }
}

/// Another process that locks the database exclusively; nobody else can read or write until this is dropped.
struct Lock(Child);

impl Lock {
    fn take(database: &Path) -> Self {
        let mut command = Command::new("sqlite3");
        command.arg(database).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("sqlite3 starts");
        let script = ".timeout 5000\nBEGIN EXCLUSIVE;\nSELECT 'locked';\n";
        child.stdin.as_mut().unwrap().write_all(script.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n", "the lock is held");
        Self(child)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

/// As with `use-sqlite-wal = false`: a writer locks readers out. With a write-ahead log it never does.
fn use_rollback_journal(node: &TestNode) {
    let journal = finish(Command::new("sqlite3").arg(nix_database(node)).arg("PRAGMA journal_mode = DELETE"));
    assert_eq!(journal.expect_success("sqlite3"), "delete");
}

/// A machine with `app` and `small` whose database locks readers out, and one that has heard of them.
fn start_with_rollback_journal(mesh: &TestMesh) -> ([TestNode; 2], [String; 2]) {
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let paths = ["app", "small"].map(|attribute| a.store.build_one(attribute));
    use_rollback_journal(&a);
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    ([a, b], paths)
}

#[test]
fn a_nix_database_locked_for_ten_seconds_causes_no_late_or_wrong_answer() {
    let mesh = TestMesh::new();
    let ([a, b], [app, small]) = start_with_rollback_journal(&mesh);
    let known = b.wait_narinfo(&small);
    let lock = Lock::take(&nix_database(&a));
    let locked = Instant::now();
    let probers = [a.probe(&[&app, &small]), b.probe(&[&app, &small])];
    let nar = get(b.gateway(), &known.url).unwrap();
    assert!(matches!(nar.status, 200 | 404), "{}", nar.status);
    a.wait_status("answers while the database is locked", SPREAD, |status| status.connected("b"));
    b.realise(std::slice::from_ref(&small)).expect_success("what peers hold, or what was asked before");
    thread::sleep(LOCKED.saturating_sub(locked.elapsed()));
    drop(lock);
    for (prober, node) in probers.into_iter().zip([&a, &b]) {
        let report = prober.finish();
        report.assert_fit_for_nix(node.narinfo_slowest_max().max(LOCKED + WAITED_LONGER));
    }
    let fresh = a.store.build_fresh("after-the-lock");
    a.wait_all_advertised(&[&b]);
    b.realise(&[app, fresh]).expect_success("after the lock");
    assert_eq!(b.status().peer("a").unwrap()["misdeeds"], 0, "no time-out is a lie");
    a.wait_logged(&["warn", "database is locked"]);
}

/// Asks `gateway` for `url` in a thread of its own; returns the status and when the whole answer was there.
fn ask_aside(gateway: SocketAddr, url: String) -> JoinHandle<(String, u16, Instant)> {
    thread::spawn(move || {
        let answer = get(gateway, &url).expect("the gateway answers");
        (url, if answer.complete { answer.status } else { 0 }, Instant::now())
    })
}

/// What is not in memory waits for the lock, and is there then: *not now* is never told as *gone*.
#[test]
fn what_only_a_locked_nix_database_knows_is_waited_for_and_not_absent() {
    let mesh = TestMesh::new();
    let ([mut a, _b], [app, small]) = start_with_rollback_journal(&mesh);
    let nar = a.wait_narinfo(&small).url;
    let lock = Lock::take(&nix_database(&a));
    let locked = Instant::now();
    // As whoever has written since: rows in memory do not count any more.
    let database = OpenOptions::new().write(true).open(nix_database(&a)).unwrap();
    database.set_modified(SystemTime::now()).unwrap();
    a.wait_logged(&["warn", "database is locked"]);
    let part = hash_part(&app);
    // The narinfo of the NAR is in memory. A lookup may take 10 s, and the lock is felt by now.
    let urls = [nar, format!("/{part}.narinfo"), format!("/{part}.ls"), format!("/serve/{part}/")];
    let asked: Vec<_> = urls.into_iter().map(|url| ask_aside(a.gateway(), url)).collect();
    thread::sleep(LOCKED.saturating_sub(locked.elapsed()));
    let freed = Instant::now();
    drop(lock);
    for (url, status, answered) in asked.into_iter().map(|asked| asked.join().unwrap()) {
        assert_eq!(status, 200, "{url}");
        assert!(answered > freed, "{url} was not kept from its answer by the lock: the test proves nothing");
    }
    a.wait_logged(&["warn", "database is locked"]);

    // Nor does a daemon that starts meanwhile end, or take the store for an empty one.
    a.terminate();
    let lock = Lock::take(&nix_database(&a));
    a.launch();
    a.wait_logged(&["the nix store cannot be read now"]);
    drop(lock);
    a.wait_started(SPREAD);
    assert_eq!(a.get_narinfo(&app).status, 200);
}

/// As Nix keeps its database: whoever writes, a collection of garbage for instance, locks nobody out who reads.
#[test]
fn a_writer_of_the_nix_database_keeps_no_request_waiting_and_makes_none_absent() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let paths = ["app", "small", "lib"].map(|attribute| a.store.build_one(attribute));
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let journal = finish(Command::new("sqlite3").arg(nix_database(&a)).arg("PRAGMA journal_mode"));
    assert_eq!(journal.expect_success("sqlite3"), "wal");
    let lock = Lock::take(&nix_database(&a));
    let locked = Instant::now();
    let known: Vec<_> = paths.iter().map(|path| (a.wait_narinfo(path), b.wait_narinfo(path))).collect();
    let texts: Vec<_> = paths.iter().map(String::as_str).collect();
    let probers = [a.probe(&texts), b.probe(&texts)];
    while locked.elapsed() < LOCKED {
        for (own, of_peer) in &known {
            let answers = [get(a.gateway(), &own.url).unwrap(), get(b.gateway(), &of_peer.url).unwrap()];
            assert!(
                answers.iter().all(|answer| answer.status == 200),
                "a NAR is not there after {:?}",
                locked.elapsed()
            );
        }
    }
    drop(lock);
    for (prober, node) in probers.into_iter().zip([&a, &b]) {
        let report = prober.finish();
        report.assert_fit_for_nix(node.narinfo_slowest_max());
        // The prober asks for one path that nobody has, beside three that are there and `nix-cache-info`.
        let [found, absent] = [200, 404].map(|status| report.statuses.get(&status).copied().unwrap_or(0));
        assert!(absent <= found.div_ceil(4), "{}: {report:?}", node.name);
    }
}

/// Overwrites one page of a file with noise.
fn spoil(file: &Path, page_bytes: u64, page: u64) {
    let mut file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    file.seek(SeekFrom::Start(page * page_bytes)).unwrap();
    let mut old = Vec::new();
    (&mut file).take(page_bytes).read_to_end(&mut old).unwrap();
    // The noise is nothing that SQLite writes, and not zeros, which a page without a checksum may well hold.
    let noise: Vec<u8> = (0u8..=255).cycle().take(old.len()).map(|byte| byte.wrapping_mul(167) ^ 0x5a).collect();
    file.seek(SeekFrom::Start(page * page_bytes)).unwrap();
    file.write_all(&noise).unwrap();
}

#[test]
fn a_damaged_page_of_the_state_causes_no_wrong_answer_whichever_page_it_is() {
    const PAGE_BYTES: u64 = 4_096;
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let paths: Vec<_> = ["app", "lib", "small"].map(|attribute| a.store.build_one(attribute)).into();
    TestMesh::start_all(&mut [&mut a, &mut b]);
    b.learn_address("a", &a.p2p_address());
    a.wait_all_advertised(&[&b]);
    paths.iter().for_each(|path| drop(b.wait_narinfo(path)));
    let database = b.state_files()[0].clone();
    let mut set_aside = 0;
    let mut page = 0;
    loop {
        b.kill();
        // Moves the write-ahead log into the file, so that every page is there.
        let query = "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA page_size;";
        finish(Command::new("sqlite3").arg(&database).arg(query)).expect_success("sqlite3");
        let pages = fs::metadata(&database).unwrap().len() / PAGE_BYTES;
        if page >= pages {
            break;
        }
        spoil(&database, PAGE_BYTES, page);
        b.clear_log();
        b.start();
        b.wait_connected("a", true, SPREAD);
        for path in &paths {
            assert_eq!(b.wait_narinfo(path).nar_hash, a.store.row(path).unwrap().nar_hash);
        }
        set_aside += u64::from(b.log().contains("could not be used"));
        let fresh = b.store.build_fresh(&format!("page-{page}"));
        assert_eq!(a.wait_narinfo(&fresh).nar_hash, b.store.row(&fresh).unwrap().nar_hash);
        page += 1;
    }
    assert!(page > 4 && set_aside > page / 2, "{set_aside} of {page} damaged pages were noticed at the start");
    // Now all pages are damaged while the daemon runs.
    b.start();
    b.wait_connected("a", true, SPREAD);
    let prober = b.probe(&paths.iter().map(String::as_str).collect::<Vec<_>>());
    for page in 0..fs::metadata(&database).unwrap().len() / PAGE_BYTES {
        spoil(&database, PAGE_BYTES, page);
    }
    let fresh = a.store.build_fresh("spoilt-running");
    drop(b.wait_narinfo(&fresh));
    b.realise(&paths).expect_success("with a damaged state");
    prober.finish().assert_fit_for_nix(b.narinfo_slowest_max());
    b.kill();
    b.start();
    drop(b.wait_narinfo(&fresh));
    b.realise(&[fresh]).expect_success("after a restart on a damaged state");
    assert_eq!(a.status().peer("b").unwrap()["misdeeds"], 0);
}
