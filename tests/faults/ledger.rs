//! Power cuts while attestations come in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use narmesh_tests::{Finished, TestMesh, TestNode, finish, get, promised, wait_for};

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

/// The votes of a dead daemon's ledger, looked at in a copy: opening it would mend it.
fn dead_votes(node: &TestNode, scratch: &Path) -> usize {
    for file in ledger_files(node) {
        let to = scratch.join(file.file_name().unwrap());
        drop(fs::remove_file(&to));
        if file.exists() {
            fs::copy(&file, to).unwrap();
        }
    }
    drop(fs::remove_file(scratch.join("quorum.sqlite-shm")));
    let query = "PRAGMA integrity_check; PRAGMA foreign_key_check; SELECT count(*) FROM votes;";
    let Finished { status, stdout, stderr } =
        finish(Command::new("sqlite3").arg(scratch.join("quorum.sqlite")).arg(query));
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(status.success() && lines.len() == 2 && lines[0] == "ok", "the ledger is damaged: {stdout}{stderr}");
    lines[1].parse().unwrap()
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
        let kept = dead_votes(&c, &scratch);
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
