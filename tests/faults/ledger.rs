//! Power cuts while attestations come in. The *ledger* is the database `quorum.sqlite`; a *life* is one run of the daemon.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use narmesh_tests::{Finished, TestMesh, TestNode, finish, get, narmesh_binary, promised, wait_for};

use crate::kills::{Dice, seed};

/// Number of attestations: they fill twenty replies.
const ATTESTED: usize = 10_000;
/// How much longer a life lasts at most after its first attestations, milliseconds: into the middle of the next reply.
const MORE_MS: u64 = 60;
/// A daemon that starts again is promised to hear what it lacks within this.
const HEARD: Duration = Duration::from_secs(5);

fn ledger_files(node: &TestNode) -> [PathBuf; 2] {
    ["quorum.sqlite", "quorum.sqlite-wal"].map(|name| node.dir().join("state").join(name))
}

/// What a dead daemon's ledger holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dead {
    votes: usize,
    /// How many of these votes are bare signatures.
    bare: usize,
}

/// Reads the ledger of a dead daemon, and asserts that nothing in it is half written. It reads a copy, because opening the
/// original would repair it.
fn dead_ledger(node: &TestNode, scratch: &Path) -> Dead {
    for file in ledger_files(node) {
        let to = scratch.join(file.file_name().unwrap());
        drop(fs::remove_file(&to));
        if file.exists() {
            fs::copy(&file, to).unwrap();
        }
    }
    drop(fs::remove_file(scratch.join("quorum.sqlite-shm")));
    if !scratch.join("quorum.sqlite").exists() {
        return Dead { votes: 0, bare: 0 };
    }
    let query = "PRAGMA integrity_check; PRAGMA foreign_key_check;
        SELECT count(*) FROM votes WHERE length(nix_signature) <> 64 OR stored_at_ms IS NULL
            OR (dated_signature IS NULL) <> (attested_at_ms IS NULL) OR length(dated_signature) <> 64;
        SELECT count(*) FROM statements WHERE id NOT IN (SELECT statement FROM votes);
        SELECT count(*) FROM votes; SELECT count(*) FROM votes WHERE dated_signature IS NULL;";
    let Finished { status, stdout, stderr } =
        finish(Command::new("sqlite3").arg(scratch.join("quorum.sqlite")).arg(query));
    let lines: Vec<&str> = stdout.lines().collect();
    let ["ok", "0", "0", votes, bare] = lines.as_slice() else { panic!("the ledger is damaged: {stdout}{stderr}") };
    assert!(status.success(), "{stderr}");
    Dead { votes: votes.parse().unwrap(), bare: bare.parse().unwrap() }
}

fn pulled(node: &TestNode) -> Option<u64> {
    let metrics = get(node.gateway(), "/metrics").ok()?.text();
    metrics.lines().find_map(|line| line.strip_prefix("narmesh_quorum_pulled_total ")?.parse().ok())
}

#[test]
fn attestations_pulled_between_kills_are_kept_until_all_are_there() {
    let mesh = TestMesh::new();
    let [mut a, mut c] = ["a", "c"].map(|name| mesh.node(name));
    let (seed, scratch) = (seed(), mesh.path().join("copy"));
    fs::create_dir(&scratch).unwrap();
    a.store.register(ATTESTED);
    let key = a.builder_key();
    c.config.more = format!("\n[[builder]]\nname = 'a'\npublic_key = '{key}'\npeer = 'a'\n");
    TestMesh::introduce(&mut [&mut a, &mut c]);
    a.start();
    a.wait_logged(&["attested what was built here", &format!("attested={ATTESTED}")]);
    c.learn_address("a", &a.p2p_address());
    let (mut dice, mut votes, mut lives) = (Dice(seed), 0, 0);
    while votes < ATTESTED {
        c.start();
        wait_for("a life brings something", promised(HEARD), || pulled(&c).filter(|new| *new > 0));
        thread::sleep(Duration::from_millis(dice.below(MORE_MS)));
        c.kill();
        let kept = dead_ledger(&c, &scratch).votes;
        assert!(kept > votes, "life {lives}, NARMESH_FAULTS_SEED={seed}: {kept} after {votes}");
        (votes, lives) = (kept, lives + 1);
    }
    println!("seed {seed}: {lives} lives for {ATTESTED} attestations");
    assert!(lives > 3, "killed in the middle");
    assert_eq!(votes, ATTESTED);
    c.start();
    assert_eq!(c.narmesh(&["quorum", "export"]).stdout.lines().count(), ATTESTED + 1);
    assert!(!c.log().contains("moved aside"), "no ledger was ever set aside");
    assert_eq!(a.status().peer("c").unwrap()["misdeeds"], 0);
    assert_eq!(c.status().peer("a").unwrap()["misdeeds"], 0);
}

/// Number of signatures: two batches of an imported file, ten of a store.
const SIGNED: usize = 10_000;
/// Lines of a file that are written in one transaction.
const BATCH_LINES: usize = 8_192;
/// Bare signatures that are taken from a store in one transaction.
const TAKEN_AT_ONCE: u64 = 1_000;
/// How many lives of each kind have to end in the middle.
const BROKEN_OFF: usize = 4;
/// Most lives that this may take: a slow watcher often kills too late.
const LIVES_MAX: usize = 100;
/// The signer attests all of them within this; users are promised nothing about that.
const ALL_ATTESTED: Duration = Duration::from_secs(10);
/// Pause between two looks at a growing file: a batch is written in milliseconds.
const WATCH_INTERVAL: Duration = Duration::from_micros(200);
/// An import of all of them takes no longer than this.
const IMPORTED: Duration = Duration::from_secs(5);

/// A stopped node with [`SIGNED`] paths that it built and Nix signed with its key, and its attestations of them as text.
fn signer(mesh: &TestMesh) -> (TestNode, String) {
    let mut signer = mesh.node("signer");
    signer.store.register(SIGNED);
    let key = fs::canonicalize(signer.dir().join("builder.key")).unwrap();
    let mut sign = signer.store.nix("nix");
    sign.args(["--extra-experimental-features", "nix-command", "store", "sign", "--all", "-k"]).arg(key);
    finish(&mut sign).expect_success("nix store sign");
    signer.start();
    let attested = format!("attested={SIGNED}");
    wait_for("all is attested", promised(ALL_ATTESTED), || signer.log().contains(&attested).then_some(()));
    let attestations = signer.narmesh(&["quorum", "export"]).expect_success("export") + "\n";
    signer.kill();
    (signer, attestations)
}

/// The paths with their signatures in a stopped node's ledger, and those in its store.
fn signatures(node: &TestNode) -> [BTreeSet<(String, Vec<u8>)>; 2] {
    let rows = |file: &Path, query: &str| {
        let stdout = finish(Command::new("sqlite3").arg(file).arg(query)).expect_success(query);
        let pair = |line: &str| line.split_once('|').map(|(path, text)| (path.to_owned(), text.to_owned())).unwrap();
        stdout.lines().map(pair).collect::<Vec<_>>()
    };
    let query = "SELECT path, hex(nix_signature) FROM votes JOIN statements ON statements.id = statement";
    let hex =
        |text: &str| (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
    let kept = rows(&ledger_files(node)[0], query).into_iter().map(|(path, text)| (path, hex(&text))).collect();
    let database = node.store.real_path("/nix/store").join("../var/nix/db/db.sqlite");
    let base64 = |text: &str| base64::prelude::BASE64_STANDARD.decode(text.split_once(':').unwrap().1).unwrap();
    let signed = rows(&database, "SELECT substr(path, 12), sigs FROM ValidPaths");
    [kept, signed.into_iter().map(|(path, text)| (path, base64(&text))).collect()]
}

fn import(node: &TestNode, file: &Path) -> Child {
    let mut command = Command::new(narmesh_binary());
    command.arg("--config").arg(node.config_file()).args(["quorum", "import"]).arg(file);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Another node on the signer's store, which counts its bare signatures and is killed again and again.
struct Victim {
    node: TestNode,
    scratch: PathBuf,
    dice: Dice,
    seed: u64,
    lives: usize,
    kept: Dead,
}

/// Size and time of the ledger's write-ahead log; they change with each write to it.
fn log_written(node: &TestNode) -> Option<(u64, SystemTime)> {
    let log = fs::metadata(&ledger_files(node)[1]).ok().filter(|log| log.len() > 0)?;
    Some((log.len(), log.modified().unwrap()))
}

impl Victim {
    fn new(mesh: &TestMesh, signer: &TestNode) -> Self {
        let (seed, scratch) = (seed(), mesh.path().join("copy"));
        fs::create_dir(&scratch).unwrap();
        let mut node = mesh.node_with_store("c", signer.store.clone());
        node.config.builder_key = false;
        let key = signer.builder_key();
        let builder = format!("[[builder]]\nname = 'signer'\npublic_key = '{key}'\nsigns_only_own_builds = true\n");
        node.config.more = format!("\n[quorum]\nmode = 'observe'\nk = 1\n{builder}");
        Self { node, scratch, dice: Dice(seed), seed, lives: 0, kept: Dead { votes: 0, bare: 0 } }
    }

    /// Counts a life, and returns what a failure of it should say. Whether a life ends in the middle is luck, so their
    /// number is bounded.
    fn count_life(&mut self) -> String {
        self.lives += 1;
        let why = format!("life {}, NARMESH_FAULTS_SEED={}", self.lives, self.seed);
        assert!(self.lives <= LIVES_MAX, "hardly ever killed in the middle: {why}");
        why
    }

    /// Kills the node each time that `status` counts more signatures, and asserts that those it counted are kept. Starts
    /// with an empty ledger again when all came in before enough lives ended in the middle.
    fn killed_while_signatures_come_in(&mut self) {
        let mut broken_off = 0;
        while broken_off < BROKEN_OFF || self.kept.bare < SIGNED {
            let why = self.count_life();
            if self.kept.bare == SIGNED {
                ledger_files(&self.node).iter().for_each(|file| drop(fs::remove_file(file)));
                self.kept = Dead { votes: 0, bare: 0 };
            }
            let before = self.kept.bare as u64;
            let least = (before + 1 + self.dice.below(TAKEN_AT_ONCE)).min(SIGNED as u64);
            self.node.start();
            let heard = self.node.wait_status("a life brings something", HEARD, |status| {
                status.number("/quorum/bare_signatures") >= least
            });
            self.node.kill();
            self.kept = dead_ledger(&self.node, &self.scratch);
            let told = heard.number("/quorum/bare_signatures");
            assert!(self.kept.bare as u64 >= told, "{why}: {:?} of {told}", self.kept);
            broken_off += usize::from(self.kept.bare < SIGNED);
        }
        assert_eq!(self.kept, Dead { votes: SIGNED, bare: SIGNED });
    }

    /// Imports the same builder's attestations, through the running daemon or by the command alone, and kills each import
    /// after it wrote a random share of what an import writes. Returns how many of each kind were killed in the middle.
    fn killed_while_they_become_attestations(&mut self, file: &Path) -> [usize; 2] {
        let files = ledger_files(&self.node);
        finish(Command::new("sqlite3").arg(&files[0]).arg("PRAGMA wal_checkpoint(TRUNCATE)"))
            .expect_success("checkpoint");
        let before = fs::read(&files[0]).unwrap();
        self.node.start();
        assert!(import(&self.node, file).wait().unwrap().success());
        self.node.kill();
        let (all_bytes, _) = log_written(&self.node).expect("an import writes");
        assert_eq!(dead_ledger(&self.node, &self.scratch), Dead { votes: SIGNED, bare: 0 });
        self.kept.bare = 0;
        let mut broken_off = [0; 2];
        while broken_off.iter().any(|count| *count < BROKEN_OFF) {
            let why = self.count_life();
            if self.kept.bare == 0 {
                drop(fs::remove_file(&files[1]));
                drop(fs::remove_file(files[0].with_extension("sqlite-shm")));
                fs::write(&files[0], &before).unwrap();
                self.kept.bare = SIGNED;
            }
            let by_the_daemon = broken_off[0] <= broken_off[1];
            let acknowledged = self.killed_import(file, by_the_daemon, all_bytes);
            let now = dead_ledger(&self.node, &self.scratch);
            assert!(now.votes == SIGNED && now.bare <= self.kept.bare, "{why}: {now:?} after {:?}", self.kept);
            assert!([SIGNED, SIGNED - BATCH_LINES, 0].contains(&now.bare), "{why}: half a batch: {now:?}");
            assert!(!acknowledged || now.bare == 0, "{why}: all was said to be there: {now:?}");
            broken_off[usize::from(!by_the_daemon)] += usize::from(!acknowledged);
            self.kept = now;
        }
        broken_off
    }

    /// Starts an import and kills it; returns whether it reported success before that.
    fn killed_import(&mut self, file: &Path, by_the_daemon: bool, all_bytes: u64) -> bool {
        if by_the_daemon {
            self.node.start();
        }
        let (least, before) = (self.dice.below(all_bytes), log_written(&self.node));
        let mut command = import(&self.node, file);
        let (began, mut is_over) = (Instant::now(), false);
        let is_far = || {
            let now = log_written(&self.node);
            now != before && now.is_some_and(|(bytes, _)| bytes > least)
        };
        while !is_over && !is_far() {
            assert!(began.elapsed() < promised(IMPORTED), "an import of {SIGNED} lines goes on and on");
            is_over = command.try_wait().unwrap().is_some();
            thread::park_timeout(WATCH_INTERVAL);
        }
        if by_the_daemon {
            self.node.kill();
        } else {
            command.kill().unwrap();
        }
        command.wait().unwrap().success()
    }
}

#[test]
fn kills_while_bare_signatures_and_attestations_come_in_leave_no_half_batch() {
    let mesh = TestMesh::new();
    let (signer, attestations) = signer(&mesh);
    let file = mesh.path().join("attestations");
    fs::write(&file, attestations).unwrap();
    let mut victim = Victim::new(&mesh, &signer);
    victim.killed_while_signatures_come_in();
    let first = std::mem::take(&mut victim.lives);
    let [by_the_daemon, alone] = victim.killed_while_they_become_attestations(&file);
    println!(
        "seed {}: {first} lives for {SIGNED} signatures; of {} imports {by_the_daemon} by the daemon and {alone} without it broken off",
        victim.seed, victim.lives
    );
    let mut node = victim.node;
    assert!(import(&node, &file).wait().unwrap().success());
    let [kept, signed] = signatures(&node);
    assert_eq!((kept.len(), kept == signed), (SIGNED, true), "what is believed is what was signed");
    node.start();
    assert_eq!(node.narmesh(&["quorum", "export"]).stdout.lines().count(), SIGNED + 1);
    assert!(!node.log().contains("moved aside"), "no ledger was ever set aside");
}
