//! What is stored comes back, within bounds, after any end of the process.

use super::*;
use crate::quorum::{import, read_file};
use narmesh_protocol::{NixSecretKey, attestation_file};
use narmesh_quorum::{Builder, Policy, PolicyRules, Require};
use std::io::Write as _;

fn store_dir() -> StoreDir {
    StoreDir::parse("/nix/store").unwrap()
}

fn key(seed: u8) -> NixSecretKey {
    NixSecretKey::from_seed(&format!("b-{seed}"), &[seed; 32]).unwrap()
}

fn path(number: u8) -> StorePath {
    StorePath::new(HashPart([number; 20]), "x").unwrap()
}

fn said(seed: u8, number: u8, result: u8) -> (Stored, Evidence) {
    let statement = Statement {
        path: path(number),
        nar_hash: NarHash([result; 32]),
        nar_size: 1,
        references: vec![path(1), path(number.max(2))],
    };
    let attestation = Attestation::sign(&key(seed), &store_dir(), statement, 1_000);
    let public = key(seed).public();
    let evidence = Evidence::attestation(&store_dir(), &attestation, &public, 500).unwrap();
    (Stored { key: public, attestation }, evidence)
}

fn open(dir: &Path) -> (LedgerDb, Ledger) {
    let (db, moved_to) = LedgerDb::open(dir, &store_dir(), false).unwrap();
    assert_eq!(moved_to, None);
    let ledger = db.load(LedgerLimits::default()).unwrap();
    (db, ledger)
}

fn rows(db: &LedgerDb, table: &str) -> i64 {
    db.connection.query_row(&format!("SELECT count(*) FROM {table}"), (), |row| row.get(0)).unwrap()
}

fn policy(seeds: std::ops::RangeInclusive<u8>) -> Policy {
    let builder = |seed| Builder {
        name: format!("b{seed}"),
        key: BuilderKey(key(seed).public().bytes()),
        group: None,
        signs_only_own_builds: false,
    };
    let rules = PolicyRules {
        builders: seeds.map(builder).collect(),
        require: Some(Require { k: 1, overrides: Vec::new(), grace: None, veto: false }),
        ..PolicyRules::default()
    };
    Policy::new(rules).unwrap().0
}

#[test]
fn everything_comes_back_with_the_time_of_first_storing() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (db, mut ledger) = open(dir.path());
        assert_eq!(db.take(&mut ledger, &[said(1, 1, 1), said(2, 1, 1), said(1, 2, 3)], WallMs(5)).unwrap(), 3);
        // Again, later: neither a row nor the time changes.
        assert_eq!(db.take(&mut ledger, &[said(1, 1, 1)], WallMs(9)).unwrap(), 0);
        let served = Served { path: path(1), fingerprint: FingerprintDigest([1; 32]), at: WallMs(7) };
        db.note_served(&mut ledger, served).unwrap();
    }
    let (db, ledger) = open(dir.path());
    let votes: Vec<_> = ledger.votes(&path(1).hash_part()).collect();
    assert_eq!(votes.len(), 2);
    assert!(votes.iter().all(|vote| vote.stored_at == Some(WallMs(5)) && vote.attested_at == Some(WallMs(1_000))));
    assert_eq!(ledger.served().count(), 1);
    let mut stored = Vec::new();
    db.attestations(Some(&path(2).hash_part()), |it| stored.push(it)).unwrap();
    assert_eq!(stored, [said(1, 2, 3).0]);
    assert_eq!(db.statements(&path(1).hash_part()).unwrap(), [said(1, 1, 1).0.attestation.statement]);
    assert_eq!(db.paths().unwrap(), [path(1), path(2)]);
}

#[test]
fn what_is_evicted_goes_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (db, _) = open(dir.path());
    let mut ledger = Ledger::new(LedgerLimits { per_builder: 2, bytes_per_builder: 1 << 30 });
    db.take(&mut ledger, &[said(2, 1, 1)], WallMs(1)).unwrap();
    for number in 1..=5 {
        db.take(&mut ledger, &[said(1, number, 1)], WallMs(1)).unwrap();
    }
    assert_eq!((rows(&db, "votes"), rows(&db, "statements")), (3, 3));
    assert_eq!(db.statements(&path(1).hash_part()).unwrap().len(), 1, "another builder still says so");
    assert_eq!(db.load(LedgerLimits::default()).unwrap().len(), ledger.len());
}

#[test]
fn a_transaction_that_was_not_finished_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (db, mut ledger) = open(dir.path());
    db.take(&mut ledger, &[said(1, 1, 1)], WallMs(1)).unwrap();
    // As SIGKILL in the middle of a `take` leaves it: statements and builders written, no commit. A copy of the files is
    // what the next process finds.
    db.connection.execute_batch("BEGIN").unwrap();
    let (stored, evidence) = said(2, 2, 2);
    insert(&db.connection, &stored, &evidence, WallMs(2)).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("{FILE_NAME}{suffix}");
        std::fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
    }
    let (db, ledger) = open(copy.path());
    assert_eq!((ledger.len(), rows(&db, "statements"), rows(&db, "builders")), (1, 1, 1));
}

#[test]
fn two_processes_write_in_turns() {
    let dir = tempfile::tempdir().unwrap();
    let ((one, mut its), (two, mut others)) = (open(dir.path()), open(dir.path()));
    for number in 1..=20 {
        one.take(&mut its, &[said(1, number, 1)], WallMs(1)).unwrap();
        two.take(&mut others, &[said(2, number, 1), said(1, number, 1)], WallMs(2)).unwrap();
    }
    let ledger = one.load(LedgerLimits::default()).unwrap();
    assert_eq!(ledger.len(), 40);
    let stored_first = |vote: narmesh_quorum::Vote| vote.stored_at == Some(WallMs(1));
    assert_eq!(
        (1..=20).flat_map(|number| ledger.votes(&path(number).hash_part())).filter(|it| stored_first(*it)).count(),
        20
    );
}

#[test]
fn a_damaged_file_is_moved_aside_and_a_later_version_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE_NAME), vec![7; 8_192]).unwrap();
    assert!(matches!(LedgerDb::open(dir.path(), &store_dir(), false), Err(LedgerDbError::Unusable { .. })));
    let (db, moved_to) = LedgerDb::open(dir.path(), &store_dir(), true).unwrap();
    assert_eq!(std::fs::read(moved_to.unwrap()).unwrap(), vec![7; 8_192]);
    db.connection.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let later = LedgerDb::open_existing(dir.path(), &store_dir()).unwrap_err();
    assert!(later.to_string().contains("later narmesh (schema version 99)"), "{later}");
}

#[test]
fn another_store_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    let other = StoreDir::parse("/gnu/store").unwrap();
    let error = LedgerDb::open(dir.path(), &other, true).unwrap_err().to_string();
    assert!(error.contains("/nix/store") && error.contains("/gnu/store"), "{error}");
    let nothing = LedgerDb::open_existing(&dir.path().join("none"), &other).unwrap_err().to_string();
    assert!(nothing.contains("is not there"), "{nothing}");
}

fn file(lines: &[(Stored, Evidence)]) -> Vec<u8> {
    let mut text = attestation_file::header(&store_dir()).into_bytes();
    for (Stored { key, attestation }, _) in lines {
        text.extend(attestation_file::line(&store_dir(), key, attestation).bytes());
    }
    text
}

#[test]
fn an_import_takes_what_verifies_of_configured_builders() {
    let dir = tempfile::tempdir().unwrap();
    let (db, mut ledger) = open(dir.path());
    let mut forged = said(1, 9, 1);
    forged.0.attestation.attested_at_ms += 1;
    let mut text = file(&[said(1, 1, 1), said(2, 1, 1), said(3, 1, 1), forged]);
    writeln!(text, "# a comment\n\nnonsense").unwrap();
    let policy = policy(1..=2);
    let imported = import(text.as_slice(), &db, &mut ledger, &policy, |_| ()).unwrap();
    assert_eq!((imported.lines, imported.new, imported.strangers, imported.verified, imported.bad), (5, 2, 1, 2, 2));
    assert!(imported.errors[0].starts_with("line 5: the signatures of b-1"), "{:?}", imported.errors);
    assert!(imported.errors[1].starts_with("line 8: expected five fields"), "{:?}", imported.errors);
    assert_eq!(ledger.len(), 2);
    let again = import(text.as_slice(), &db, &mut ledger, &policy, |_| ()).unwrap();
    assert_eq!((again.new, rows(&db, "votes")), (0, 2));
}

#[test]
fn without_a_policy_every_line_is_verified_and_none_is_kept() {
    let text = file(&[said(1, 1, 1), said(2, 1, 1), said(3, 1, 1)]);
    let read = read_file(text.as_slice(), None, None, |_| (), |verified| Ok(verified.len())).unwrap();
    assert_eq!((read.lines, read.verified, read.bad), (3, 3, 0));
    let other = StoreDir::parse("/gnu/store").unwrap();
    let error = read_file(text.as_slice(), Some(&other), None, |_| (), |_| Ok(0)).unwrap_err();
    assert!(error.to_string().contains("the store directory here is /gnu/store"), "{error}");
    let error = read_file(&b"hello\n"[..], None, None, |_| (), |_| Ok(0)).unwrap_err();
    assert!(error.to_string().starts_with("line 1: expected"), "{error}");
}
