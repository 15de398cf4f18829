//! Power cuts while attestations come in.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use narmesh_tests::{Finished, TestMesh, TestNode, finish, get, narmesh_binary, promised, wait_for};

use crate::kills::{Dice, seed};

/// Twenty replies full.
const ATTESTED: usize = 10_000;
/// After what a life brought came in it goes on up to this long, milliseconds: into the middle of the next reply.
const MORE_MS: u64 = 60;
/// A daemon that comes back hears what it lacks within this.
const HEARD: Duration = Duration::from_secs(5);

fn ledger_files(node: &TestNode) -> [PathBuf; 2] {
    ["quorum.sqlite", "quorum.sqlite-wal"].map(|name| node.dir().join("state").join(name))
}

/// What a dead daemon's ledger holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dead {
    votes: usize,
    /// Of these bare signatures.
    bare: usize,
}

/// Looked at in a copy: opening it would mend it. Nothing in it is half written.
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
fn killed_in_the_middle_of_a_pull_until_all_is_there() {
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

/// Signatures: two batches of a file, ten of a store.
const SIGNED: usize = 10_000;
/// Lines of a file that are written in one transaction.
const BATCH_LINES: usize = 8_192;
/// Imports that are killed.
const IMPORTS: usize = 12;

/// A node with `SIGNED` paths that it built, signed by Nix with its key, and what it attests of them, as text.
fn signer(mesh: &TestMesh) -> (TestNode, String) {
    let mut signer = mesh.node("signer");
    signer.store.register(SIGNED);
    let key = fs::canonicalize(signer.dir().join("builder.key")).unwrap();
    let mut sign = signer.store.nix("nix");
    sign.args(["--extra-experimental-features", "nix-command", "store", "sign", "--all", "-k"]).arg(key);
    finish(&mut sign).expect_success("nix store sign");
    signer.start();
    signer.wait_logged(&["attested what was built here", &format!("attested={SIGNED}")]);
    let attestations = signer.narmesh(&["quorum", "export"]).expect_success("export") + "\n";
    signer.kill();
    (signer, attestations)
}

/// Each path that a stopped node's ledger has a signature of, with that signature; and the same of its store.
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

#[test]
fn killed_while_bare_signatures_come_in_and_while_they_become_attestations() {
    let mesh = TestMesh::new();
    let (seed, scratch) = (seed(), mesh.path().join("copy"));
    let why = |life: usize| format!("life {life}, NARMESH_FAULTS_SEED={seed}");
    fs::create_dir(&scratch).unwrap();
    let (signer, attestations) = signer(&mesh);
    let file = mesh.path().join("attestations");
    fs::write(&file, attestations).unwrap();
    // Somebody else on the same store, who believes signatures of that builder.
    let mut c = mesh.node_with_store("c", signer.store.clone());
    c.config.builder_key = false;
    let key = signer.builder_key();
    let builder = format!("[[builder]]\nname = 'signer'\npublic_key = '{key}'\nsigns_only_own_builds = true\n");
    c.config.more = format!("\n[quorum]\nmode = 'observe'\nk = 1\n{builder}");
    let (mut dice, mut lives, mut kept) = (Dice(seed), 0, Dead { votes: 0, bare: 0 });
    while kept.bare < SIGNED {
        c.start();
        let heard = c.wait_status("a life brings something", HEARD, |status| {
            status.number("/quorum/bare_signatures") > kept.bare as u64
        });
        thread::sleep(Duration::from_millis(dice.below(MORE_MS)));
        c.kill();
        kept = dead_ledger(&c, &scratch);
        assert!(kept.bare as u64 >= heard.number("/quorum/bare_signatures"), "{}: {kept:?} {:?}", why(lives), heard.0);
        lives += 1;
    }
    assert!(lives > 2, "killed in the middle");
    assert_eq!(kept, Dead { votes: SIGNED, bare: SIGNED });

    // The same builder's attestations: by the running daemon, and by the command alone.
    let before = ledger_files(&c).map(|file| fs::read(file).unwrap_or_default());
    let restore = |c: &TestNode| {
        ledger_files(c).iter().zip(&before).for_each(|(file, bytes)| fs::write(file, bytes).unwrap());
        drop(fs::remove_file(c.dir().join("state/quorum.sqlite-shm")));
    };
    let began = Instant::now();
    assert!(import(&c, &file).wait().unwrap().success());
    let undisturbed_ms = began.elapsed().as_millis().try_into().unwrap();
    assert_eq!(dead_ledger(&c, &scratch), Dead { votes: SIGNED, bare: 0 });
    restore(&c);
    let mut broken_off = 0;
    for life in 0..IMPORTS {
        let by_the_daemon = life % 2 == 0;
        if by_the_daemon {
            c.start();
        }
        let mut command = import(&c, &file);
        thread::sleep(Duration::from_millis(dice.below(undisturbed_ms)));
        if by_the_daemon {
            c.kill()
        } else {
            command.kill().unwrap()
        };
        let acknowledged = command.wait().unwrap().success();
        let now = dead_ledger(&c, &scratch);
        assert!(now.votes == SIGNED && now.bare <= kept.bare, "{}: {now:?} after {kept:?}", why(life));
        assert!([SIGNED, SIGNED - BATCH_LINES, 0].contains(&now.bare), "{}: half a batch: {now:?}", why(life));
        assert!(!acknowledged || now.bare == 0, "{}: all was said to be there: {now:?}", why(life));
        broken_off += usize::from(!acknowledged);
        kept = now;
        if kept.bare == 0 {
            restore(&c);
            kept.bare = SIGNED;
        }
    }
    println!(
        "seed {seed}: {lives} lives for {SIGNED} signatures; {broken_off} of {IMPORTS} imports broken off, of {undisturbed_ms} ms"
    );
    assert!(broken_off > IMPORTS / 3);
    assert!(import(&c, &file).wait().unwrap().success());
    let [kept, signed] = signatures(&c);
    assert_eq!((kept.len(), kept == signed), (SIGNED, true), "what is believed is what was signed");
    c.start();
    assert_eq!(c.narmesh(&["quorum", "export"]).stdout.lines().count(), SIGNED + 1);
    assert!(!c.log().contains("moved aside"), "no ledger was ever set aside");
}
