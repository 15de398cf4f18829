//! What was stored comes back, within its bounds, however the process ended.

mod kept;

use super::*;
use crate::attestations::{KeyNames, LiveLedger, TakeOutcome, find_unheard_signatures, import, read_file};
use narmesh_protocol::{Attestation, NixSecretKey, attestation_file};
use narmesh_quorum::{Builder, LedgerLimits, Pin, Policy, PolicyRules, Require, Vote};
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

fn said(seed: u8, number: u8, result: u8) -> (StoredStatement, VerifiedStatement) {
    let statement = Statement {
        path: path(number),
        nar_hash: NarHash([result; 32]),
        nar_size: 1,
        references: vec![path(1), path(number.max(2))],
    };
    let attestation = Attestation::sign(&key(seed), &store_dir(), statement, 1_000);
    let public = key(seed).public();
    let verified = VerifiedStatement::attestation(&store_dir(), &attestation, &public, 500).unwrap();
    (StoredStatement { key: public, attestation }, verified)
}

/// The same, signed as any Nix tool signs.
fn signed(seed: u8, number: u8, result: u8) -> (BareSignature, VerifiedStatement) {
    let (StoredStatement { key: public, attestation }, _) = said(seed, number, result);
    let statement = attestation.statement;
    let signature = key(seed).sign(&statement.fingerprint(&store_dir()));
    let verified = VerifiedStatement::bare_signature(&store_dir(), &statement, &signature, &public, 500).unwrap();
    (BareSignature { key: public, statement, signature: signature.bytes }, verified)
}

fn open(dir: &Path) -> LedgerDb {
    let (db, moved_to) = LedgerDb::open(dir, &store_dir(), false).unwrap();
    assert_eq!(moved_to, None);
    db
}

/// A ledger over the files in a directory, which are made if missing.
fn live(dir: &Path) -> LiveLedger {
    let ledger = LiveLedger::new(dir, &store_dir(), policy(1..=2), Box::new(|_| false));
    ledger.catch_up().unwrap();
    ledger
}

fn votes(ledger: &LiveLedger, number: u8) -> Vec<Vote> {
    ledger.read(|ledger| ledger.votes(&path(number).hash_part()).collect())
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
        let ledger = live(dir.path());
        let taken = ledger.take(&[said(1, 1, 1), said(2, 1, 1), said(1, 2, 3)], WallMs(5)).unwrap();
        assert_eq!((taken.new, taken.known), (3, 0));
        // The same again, later: neither the row nor its time changes.
        let taken = ledger.take(&[said(1, 1, 1)], WallMs(9)).unwrap();
        assert_eq!((taken.new, taken.known), (0, 1));
        ledger.note_served(Served { path: path(1), fingerprint: FingerprintDigest([1; 32]), at: WallMs(7) });
        ledger.flush().unwrap();
    }
    let ledger = live(dir.path());
    let found = votes(&ledger, 1);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|vote| vote.stored_at == Some(WallMs(5)) && vote.attested_at == Some(WallMs(1_000))));
    assert_eq!(ledger.read(|ledger| ledger.served_after(None).count()), 1);
    assert_eq!(ledger.read_attestations(&path(2).hash_part()).unwrap(), [said(1, 2, 3).0]);
    let db = open(dir.path());
    assert_eq!(db.read_statements(&path(1).hash_part()).unwrap(), [said(1, 1, 1).0.attestation.statement]);
    assert_eq!(db.read_paths().unwrap(), [path(1), path(2)]);
}

#[test]
fn evicted_statements_leave_the_file_and_those_on_paths_held_or_asked_for_stay() {
    let dir = tempfile::tempdir().unwrap();
    let is_held = Box::new(|part: &HashPart| *part == path(9).hash_part());
    let limits = LedgerLimits { per_builder: 2, bytes_per_builder: 1 << 30 };
    let ledger = LiveLedger::new(dir.path(), &store_dir(), policy(1..=2), is_held).bounded(limits);
    ledger.take(&[said(2, 1, 1), said(1, 9, 1), said(1, 8, 1)], WallMs(1)).unwrap();
    ledger.note_asked(path(8).hash_part());
    ledger.flush().unwrap();
    // Each new one evicts an old one.
    let mut evicted = 0;
    for number in 1..=5 {
        evicted += ledger.take(&[said(1, number, 1)], WallMs(1)).unwrap().full.len();
    }
    let db = open(dir.path());
    assert_eq!((evicted, rows(&db, "votes"), rows(&db, "statements")), (3, 5, 5));
    assert_eq!(db.read_statements(&path(1).hash_part()).unwrap().len(), 1, "another builder still says so");
    assert_eq!((votes(&ledger, 9).len(), votes(&ledger, 8).len(), votes(&ledger, 3).len()), (1, 1, 0));
    assert_eq!(live(dir.path()).read(|read| read.len()), ledger.read(|read| read.len()));
    // Once the path is gone from the store, its statement may be evicted.
    ledger.on_store_changed([], &[path(9).hash_part()]);
    ledger.take(&[said(1, 6, 1), said(1, 7, 1)], WallMs(1)).unwrap();
    assert_eq!((votes(&ledger, 9).len(), votes(&ledger, 8).len()), (0, 1));
}

#[test]
fn statements_on_paths_named_in_the_configuration_stay() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LedgerLimits { per_builder: 1, bytes_per_builder: 1 << 30 };
    let ledger = LiveLedger::new(dir.path(), &store_dir(), policy(1..=2), Box::new(|_| false)).bounded(limits);
    ledger.set_policy(policy(1..=2), KeyNames::default(), [path(1).hash_part()]);
    ledger.take(&[said(1, 1, 1), said(1, 2, 1), said(1, 3, 1)], WallMs(1)).unwrap();
    assert_eq!((votes(&ledger, 1).len(), votes(&ledger, 2).len()), (1, 0));
    ledger.set_policy(policy(1..=2), KeyNames::default(), []);
    assert!(!ledger.read(|ledger| ledger.is_pinned(&path(1).hash_part(), Pin::Configured)));
}

#[test]
fn a_bare_signature_survives_a_restart_and_is_upgraded_by_its_attestation() {
    let dir = tempfile::tempdir().unwrap();
    {
        let ledger = live(dir.path());
        assert_eq!(ledger.take_bare(&[signed(1, 1, 1), signed(2, 1, 1)], WallMs(5)).unwrap().new, 2);
        assert_eq!(
            ledger.take_bare(&[signed(1, 1, 1)], WallMs(9)).unwrap(),
            TakeOutcome { known: 1, ..TakeOutcome::default() }
        );
    }
    let ledger = live(dir.path());
    let found = votes(&ledger, 1);
    assert!(found.len() == 2 && found.iter().all(|vote| (vote.attested_at, vote.stored_at) == (None, Some(WallMs(5)))));
    assert_eq!(ledger.read(narmesh_quorum::Ledger::bare_signatures), 2);
    // It is not an attestation that could be exported or handed over, but its signature goes with an answer to Nix.
    assert_eq!(ledger.read_attestations(&path(1).hash_part()).unwrap(), []);
    let db = open(dir.path());
    assert_eq!(db.read_signatures(signed(1, 1, 1).1.claim().fingerprint).unwrap().len(), 2);
    assert_eq!(db.read_paths().unwrap(), [path(1)]);
    // With its date it becomes an attestation, which counts from when the date came, and it stays one.
    assert_eq!(ledger.take(&[said(1, 1, 1)], WallMs(6_500)).unwrap().upgraded, 1);
    assert_eq!(ledger.take_bare(&[signed(1, 1, 1)], WallMs(9)).unwrap().known, 1);
    for ledger in [&ledger, &live(dir.path())] {
        let dated: Vec<_> = votes(ledger, 1).into_iter().filter(|vote| vote.attested_at.is_some()).collect();
        assert_eq!((dated.len(), dated[0].stored_at), (1, Some(WallMs(5))));
        assert_eq!(dated[0].dated_stored_at, Some(WallMs(7_005)), "to the second");
        assert_eq!(ledger.read(narmesh_quorum::Ledger::bare_signatures), 1);
    }
    assert_eq!(ledger.read_attestations(&path(1).hash_part()).unwrap(), [said(1, 1, 1).0]);
}

#[test]
fn bare_signatures_are_bounded_with_the_attestations_of_their_builder() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LedgerLimits { per_builder: 2, bytes_per_builder: 1 << 30 };
    let ledger = LiveLedger::new(dir.path(), &store_dir(), policy(1..=2), Box::new(|_| false)).bounded(limits);
    ledger.take_bare(&[signed(1, 1, 1), signed(2, 1, 1), signed(1, 2, 1), signed(1, 3, 1)], WallMs(1)).unwrap();
    ledger.take(&[said(1, 4, 1)], WallMs(1)).unwrap();
    assert_eq!([1, 2, 3, 4].map(|number| votes(&ledger, number).len()), [1, 0, 1, 1], "another builder's stay");
    assert_eq!((rows(&open(dir.path()), "votes"), ledger.read(narmesh_quorum::Ledger::bare_signatures)), (3, 2));
}

#[test]
fn only_signatures_that_signers_made_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = live(dir.path());
    let signers = [key(1).public(), key(2).public()];
    let statement = signed(1, 1, 1).0.statement;
    let by = |seed: u8| key(seed).sign(&statement.fingerprint(&store_dir()));
    let forged = NixSignature { bytes: by(3).bytes, ..by(2) };
    let found = find_unheard_signatures(&ledger, &signers, &statement, &[by(3), forged.clone(), by(1), by(1)]);
    assert_eq!(found.iter().map(|(bare, _)| bare).collect::<Vec<_>>(), [&signed(1, 1, 1).0]);
    ledger.take_bare(&found, WallMs(1)).unwrap();
    assert_eq!(find_unheard_signatures(&ledger, &signers, &statement, &[by(1)]), [], "known");
    assert_eq!(
        find_unheard_signatures(&ledger, &signers, &statement, &[forged, by(2)]).len(),
        1,
        "despite a forged one"
    );
    let other = Statement { nar_size: 2, ..statement.clone() };
    assert_eq!(find_unheard_signatures(&ledger, &signers, &other, &[by(1), by(2)]), [], "over something else");
}

/// The database as the first narmesh with a ledger made it.
const VERSION_1: &str = "
    CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), store_dir TEXT NOT NULL);
    CREATE TABLE builders (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, public_key TEXT NOT NULL);
    CREATE TABLE statements (
        id INTEGER PRIMARY KEY, hash_part BLOB NOT NULL, fingerprint BLOB NOT NULL UNIQUE, path TEXT NOT NULL,
        nar_hash BLOB NOT NULL, nar_size INTEGER NOT NULL, refs TEXT NOT NULL
    );
    CREATE INDEX statements_by_path ON statements (hash_part);
    CREATE TABLE votes (
        id INTEGER PRIMARY KEY AUTOINCREMENT, builder INTEGER NOT NULL REFERENCES builders (id),
        statement INTEGER NOT NULL REFERENCES statements (id), stored_at_ms INTEGER, attested_at_ms INTEGER,
        nix_signature BLOB NOT NULL, dated_signature BLOB, UNIQUE (statement, builder)
    );
    CREATE TABLE served (hash_part BLOB PRIMARY KEY, path TEXT NOT NULL, fingerprint BLOB NOT NULL, at_ms INTEGER NOT NULL)
        WITHOUT ROWID;
    INSERT INTO meta VALUES (1, '/nix/store');
    INSERT INTO served VALUES (x'0101', '01010101010101010101010101010101-x', zeroblob(32), 7);
    PRAGMA user_version = 1;
";

#[test]
fn a_ledger_of_schema_version_1_keeps_its_content_and_takes_bare_signatures() {
    let dir = tempfile::tempdir().unwrap();
    let connection = Connection::open(dir.path().join(LEDGER_FILE)).unwrap();
    connection.execute_batch(VERSION_1).unwrap();
    let (StoredStatement { key: public, attestation }, verified) = said(1, 1, 1);
    let claim = verified.claim();
    connection.execute("INSERT INTO builders VALUES (1, ?1, ?2)", params![public.bytes(), public.to_string()]).unwrap();
    let references: Vec<_> = attestation.statement.references.iter().map(StorePath::to_string).collect();
    let row = params![
        path(1).hash_part().0,
        claim.fingerprint.0,
        path(1).to_string(),
        claim.nar_hash.0,
        references.join(" ")
    ];
    connection.execute("INSERT INTO statements VALUES (1, ?1, ?2, ?3, ?4, 1, ?5)", row).unwrap();
    let row = params![attestation.nix_signature, attestation.dated_signature];
    connection.execute("INSERT INTO votes VALUES (1, 1, 1, 3, 1000, ?1, ?2)", row).unwrap();
    drop(connection);

    let ledger = live(dir.path());
    assert_eq!(ledger.read_attestations(&path(1).hash_part()).unwrap(), [StoredStatement { key: public, attestation }]);
    assert_eq!(votes(&ledger, 1)[0].stored_at, Some(WallMs(3)));
    assert_eq!(open(dir.path()).read_served().unwrap().len(), 1);
    assert_eq!(ledger.take_bare(&[signed(2, 1, 1), signed(1, 1, 1)], WallMs(5)).unwrap().new, 1);
    assert_eq!(votes(&live(dir.path()), 1).len(), 2);
}

#[test]
fn an_unfinished_transaction_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path()).take(&[said(1, 1, 1)], WallMs(1)).unwrap();
    let db = open(dir.path());
    // As SIGKILL in the middle of a `take` leaves it: statements and builders are written, but not committed. A copy of
    // the files is what the next process finds.
    db.connection.execute_batch("BEGIN").unwrap();
    let (stored, verified) = said(2, 2, 2);
    insert(&db.connection, NewStatement::from(&stored), &verified, Some(WallMs(2))).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("{LEDGER_FILE}{suffix}");
        std::fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
    }
    let db = open(copy.path());
    assert_eq!((rows(&db, "votes"), rows(&db, "statements"), rows(&db, "builders")), (1, 1, 1));
}

#[test]
fn two_processes_write_in_turns_and_each_sees_what_the_other_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (live(dir.path()), live(dir.path()));
    for number in 1..=20 {
        one.take(&[said(1, number, 1)], WallMs(1)).unwrap();
        let taken = two.take(&[said(2, number, 1), said(1, number, 1)], WallMs(2)).unwrap();
        assert_eq!((taken.new, taken.known), (1, 1), "it caught up before it wrote");
    }
    let before = one.revision();
    one.catch_up().unwrap();
    assert!(one.revision() > before);
    for ledger in [&one, &two] {
        assert_eq!(ledger.read(|ledger| ledger.len()), 40);
        let first_stored =
            |number| votes(ledger, number).iter().filter(|vote| vote.stored_at == Some(WallMs(1))).count();
        assert_eq!((1..=20).map(first_stored).sum::<usize>(), 20);
    }
    let revision = one.revision();
    one.catch_up().unwrap();
    assert_eq!(one.revision(), revision, "nothing is new");
}

#[test]
fn a_statement_over_the_bound_stays_neither_in_memory_nor_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = live(dir.path());
    let all: Vec<_> = (1..=6).map(|result| said(1, 1, result)).collect();
    let taken = ledger.take(&all, WallMs(1)).unwrap();
    assert_eq!((taken.new, taken.enough_statements), (4, 2));
    assert_eq!((votes(&ledger, 1).len(), rows(&open(dir.path()), "votes")), (4, 4));
}

#[test]
fn a_damaged_file_is_moved_aside_and_a_later_version_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(LEDGER_FILE), vec![7; 8_192]).unwrap();
    assert!(matches!(LedgerDb::open(dir.path(), &store_dir(), false), Err(LedgerDbError::Unusable { .. })));
    let (db, moved_to) = LedgerDb::open(dir.path(), &store_dir(), true).unwrap();
    assert_eq!(std::fs::read(moved_to.unwrap()).unwrap(), vec![7; 8_192]);
    db.connection.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let later = LedgerDb::open_existing(dir.path(), &store_dir()).unwrap_err();
    assert!(later.to_string().contains("later narmesh (schema version 99)"), "{later}");
    let repairing = LedgerDb::open(dir.path(), &store_dir(), true).unwrap_err();
    assert!(matches!(repairing, LedgerDbError::Later { .. }), "{repairing}");
}

#[test]
fn a_file_of_another_store_directory_is_refused_with_both_names() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    let other = StoreDir::parse("/gnu/store").unwrap();
    let error = LedgerDb::open(dir.path(), &other, true).unwrap_err().to_string();
    assert!(error.contains("/nix/store") && error.contains("/gnu/store"), "{error}");
    let nothing = LedgerDb::open_existing(&dir.path().join("none"), &other).unwrap_err().to_string();
    assert!(nothing.contains("is not there"), "{nothing}");
}

fn file(lines: &[(StoredStatement, VerifiedStatement)]) -> Vec<u8> {
    let mut text = attestation_file::header(&store_dir()).into_bytes();
    for (StoredStatement { key, attestation }, _) in lines {
        text.extend(attestation_file::line(&store_dir(), key, attestation).bytes());
    }
    text
}

#[test]
fn an_import_takes_only_verified_attestations_of_configured_builders() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = live(dir.path());
    let mut forged = said(1, 9, 1);
    forged.0.attestation.attested_at_ms += 1;
    let mut text = file(&[said(1, 1, 1), said(2, 1, 1), said(3, 1, 1), forged]);
    writeln!(text, "# a comment\n\nnonsense").unwrap();
    let imported = import(text.as_slice(), &ledger, |_| Ok(())).unwrap();
    assert_eq!((imported.lines, imported.new, imported.strangers, imported.verified, imported.bad), (5, 2, 1, 2, 2));
    assert!(imported.errors[0].starts_with("line 5: the signatures of b-1"), "{:?}", imported.errors);
    assert!(imported.errors[1].starts_with("line 8: expected five fields"), "{:?}", imported.errors);
    assert_eq!(ledger.read(|ledger| ledger.len()), 2);
    let again = import(text.as_slice(), &ledger, |_| Ok(())).unwrap();
    assert_eq!((again.new, rows(&open(dir.path()), "votes")), (0, 2));
}

#[test]
fn without_a_policy_every_line_is_verified_and_none_is_kept() {
    let text = file(&[said(1, 1, 1), said(2, 1, 1), said(3, 1, 1)]);
    let read = read_file(text.as_slice(), None, None, |_| Ok(()), |verified| Ok(verified.len())).unwrap();
    assert_eq!((read.lines, read.verified, read.bad), (3, 3, 0));
    let other = StoreDir::parse("/gnu/store").unwrap();
    let error = read_file(text.as_slice(), Some(&other), None, |_| Ok(()), |_| Ok(0)).unwrap_err();
    assert!(error.to_string().contains("the store directory here is /gnu/store"), "{error}");
    let error = read_file(&b"hello\n"[..], None, None, |_| Ok(()), |_| Ok(0)).unwrap_err();
    assert!(error.to_string().starts_with("line 1: expected"), "{error}");
}

/// Opens the files of a ledger as a killed process left them, and returns how many votes there are, and how many of
/// them are bare.
fn votes_after(database: &[u8], log: &[u8]) -> (i64, i64) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(LEDGER_FILE);
    std::fs::write(&file, database).unwrap();
    std::fs::write(dir.path().join(format!("{LEDGER_FILE}-wal")), log).unwrap();
    let db = open(dir.path());
    let lost = "SELECT count(*) FROM votes v LEFT JOIN statements s ON s.id = v.statement
                LEFT JOIN builders b ON b.id = v.builder WHERE s.id IS NULL OR b.id IS NULL";
    let lost: i64 = db.connection.query_row(lost, (), |row| row.get(0)).unwrap();
    assert_eq!(lost, 0, "every vote has its statement and its builder");
    (rows(&db, "votes"), rows(&db, "votes WHERE dated_signature IS NULL AND attested_at_ms IS NULL"))
}

#[test]
fn a_process_killed_at_any_write_leaves_the_state_before_or_after_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let (file, log) = (dir.path().join(LEDGER_FILE), dir.path().join(format!("{LEDGER_FILE}-wal")));
    let ledger = live(dir.path());
    let length = || std::fs::metadata(&log).unwrap().len();
    // After each change: the length of the log, and the number of votes and of bare ones among them.
    let mut states = vec![(length(), (0, 0))];
    for number in 1..=5 {
        ledger.take(&[said(1, number, 1), said(2, number, 1)], WallMs(1)).unwrap();
        states.push((length(), (2 * i64::from(number), 0)));
    }
    ledger.take_bare(&[signed(1, 6, 1), signed(2, 6, 1)], WallMs(1)).unwrap();
    states.push((length(), (12, 2)));
    // The second of them gets its date: its row is deleted and another one inserted.
    ledger.take(&[said(2, 6, 1)], WallMs(1)).unwrap();
    states.push((length(), (12, 1)));
    let (before, written) = (std::fs::read(&file).unwrap(), std::fs::read(&log).unwrap());
    let last = *states.last().unwrap();
    assert_eq!(written.len() as u64, last.0, "nothing was moved into the file yet");
    // The log only grows, so a process that dies leaves any first part of it.
    let ends = states.iter().map(|(length, _)| usize::try_from(*length).unwrap());
    for cut in (0..written.len()).step_by(499).chain(ends) {
        let whole = states.iter().rev().find(|(length, _)| *length <= cut as u64).map_or((0, 0), |(_, votes)| *votes);
        assert_eq!(votes_after(&before, &written[..cut]), whole, "cut after {cut} of {} bytes", written.len());
    }
    // Then its pages are copied over those of the file, one by one, before it is deleted.
    open(dir.path()).connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(())).unwrap();
    let after = std::fs::read(&file).unwrap();
    assert!(after.len() > before.len());
    for moved in (0..=after.len()).step_by(4_096) {
        let mut mixed = after[..moved].to_vec();
        mixed.extend_from_slice(before.get(moved..).unwrap_or_default());
        assert_eq!(votes_after(&mixed, &written), last.1, "{moved} bytes moved");
    }
}

#[test]
fn attestations_of_a_path_are_found_without_reading_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let plan = format!("EXPLAIN QUERY PLAN {ATTESTATIONS}");
    let mut explain = db.connection.prepare(&plan).unwrap();
    let steps = explain.query_map([path(1).hash_part().0], |row| row.get::<_, String>(3)).unwrap();
    let steps: Vec<String> = steps.map(Result::unwrap).collect();
    assert!(steps.len() >= 3 && steps.iter().all(|step| !step.starts_with("SCAN")), "{steps:?}");
}
