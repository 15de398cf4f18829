//! Notes stay bounded while the file cannot be written; afterwards the file holds what memory holds.

use super::*;
use narmesh_protocol::{StoreDir, StorePath};
use narmesh_quorum::{ASKED_MAX, FingerprintDigest, Policy, PolicyRules, WallMs};
use std::path::Path;

fn store_dir() -> StoreDir {
    StoreDir::parse("/nix/store").unwrap()
}

fn new(dir: &Path) -> LiveLedger {
    LiveLedger::new(dir, &store_dir(), Policy::new(PolicyRules::default()).unwrap().0, Box::new(|_| false))
}

fn part(number: usize) -> HashPart {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    HashPart(bytes)
}

fn served(number: usize, at: usize) -> Served {
    let path = StorePath::new(part(number), "x").unwrap();
    Served { path, fingerprint: FingerprintDigest([1; 32]), at: WallMs(at as u64) }
}

fn sql(dir: &Path, statement: &str) {
    rusqlite::Connection::open(dir.join("quorum.sqlite")).unwrap().execute_batch(statement).unwrap();
}

/// Makes a change like `INSERT ON asked` fail, until the trigger `refused` is dropped.
fn refuse(dir: &Path, change: &str) {
    sql(dir, &format!("CREATE TRIGGER refused BEFORE {change} BEGIN SELECT RAISE(ABORT, 'disk full'); END"));
}

/// A hash part that sorts after every `part(number)`.
fn filler(number: usize) -> HashPart {
    let mut filler = part(number);
    filler.0.rotate_right(8);
    filler.0[..8].fill(0xff);
    filler
}

/// Pins `count` fillers in memory as asked for.
fn fill(ledger: &LiveLedger, count: usize) {
    let mut memory = ledger.memory.write();
    for number in 0..count {
        assert_eq!(memory.pin(filler(number), Pin::Asked), None);
    }
}

fn remembered(ledger: &LiveLedger) -> Vec<HashPart> {
    ledger.read(|ledger| ledger.asked_paths().collect())
}

#[test]
fn notes_stay_bounded_while_the_file_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = new(dir.path());
    let ask = |numbers: std::ops::Range<usize>| numbers.for_each(|number| ledger.note_asked(part(number)));
    ask(0..10);
    ledger.flush().unwrap();
    refuse(dir.path(), "INSERT ON asked");
    ask(10..20);
    ledger.flush().unwrap_err();
    // As after many more seconds.
    ledger.remember_asked((0..ASKED_MAX - 10).map(filler).collect(), &mut ledger.unwritten.lock());
    ask(20..30);
    ledger.flush().unwrap_err();
    let (notes, unwritten) = (ledger.notes.lock(), ledger.unwritten.lock());
    assert!(notes.asked.is_empty() && ledger.read(|ledger| ledger.asked_paths().eq(unwritten.asked.iter().copied())));
    assert_eq!(unwritten.asked.len(), ASKED_MAX);
    assert!(unwritten.asked_forgotten == (0..10).map(part).collect(), "only those that have rows");
}

#[test]
fn once_the_file_can_be_written_again_it_holds_what_memory_holds() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = new(dir.path());
    let ask = |numbers: std::ops::Range<usize>| numbers.for_each(|number| ledger.note_asked(part(number)));
    ask(0..10);
    ledger.flush().unwrap();
    // As if the file held these, too; really writing them would take long.
    fill(&ledger, ASKED_MAX - 10);
    refuse(dir.path(), "INSERT ON asked");
    for number in 0..5 {
        ask(100 + number..101 + number);
        ledger.note_served(served(number, number));
        ledger.flush().unwrap_err();
    }
    // One that was forgotten meanwhile, and whose row is still there, is asked for again.
    ask(3..4);
    ledger.flush().unwrap_err();
    // The file is opened again, as after damage: what memory has forgotten does not come back.
    let before = remembered(&ledger);
    ledger.disk.lock().db = None;
    ledger.catch_up().unwrap();
    assert!(before.len() == ASKED_MAX && before == remembered(&ledger));

    sql(dir.path(), "DROP TRIGGER refused");
    ledger.flush().unwrap();
    let again = new(dir.path());
    again.catch_up().unwrap();
    let kept: Vec<_> = [6, 7, 8, 9, 100, 101, 102, 103, 104, 3].map(part).to_vec();
    assert_eq!(remembered(&again), kept, "in the order of asking");
    let in_memory: Vec<_> = before.into_iter().filter(|part| *part < filler(0)).collect();
    assert_eq!(in_memory, kept);
    assert_eq!(again.read(|ledger| ledger.served_after(None).count()), 5, "what was served was written later, too");
    let unwritten = ledger.unwritten.lock();
    assert!(unwritten.asked.is_empty() && unwritten.asked_forgotten.is_empty());
}

#[test]
fn a_table_over_its_bound_is_trimmed_by_a_writer_only() {
    let dir = tempfile::tempdir().unwrap();
    new(dir.path()).catch_up().unwrap();
    let db = LedgerDb::open_existing(dir.path(), &store_dir()).unwrap();
    let all: Vec<_> = (0..ASKED_MAX + 5).map(part).collect();
    db.note_asked(&all, &[]).unwrap();
    let looking = new(dir.path()).looking();
    looking.catch_up().unwrap();
    looking.flush().unwrap();
    assert_eq!((remembered(&looking).len(), db.read_asked().unwrap().len()), (ASKED_MAX, all.len()));
    let writing = new(dir.path());
    writing.flush().unwrap();
    assert!(db.read_asked().unwrap() == all[5..] && remembered(&writing) == all[5..], "the newest stay");
}

#[test]
fn of_notes_that_could_not_be_written_the_newest_are_put_back_within_the_bound() {
    let mut notes = Notes::default();
    notes.served.extend([(1, 11), (10, 10)].map(|(number, at)| (part(number), served(number, at))));
    notes.put_back((0..10).map(|number| (part(number), served(number, number))).collect(), 10);
    let left: Vec<_> = notes.served.values().map(|served| served.at.0).collect();
    assert_eq!(left, [11, 2, 3, 4, 5, 6, 7, 8, 9, 10], "0 is the oldest, and 1 came again meanwhile");
}

#[test]
fn forgotten_notes_of_what_was_served_are_deleted_once_the_file_can_be_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = new(dir.path());
    (0..5).for_each(|number| ledger.note_served(served(number, number)));
    ledger.flush().unwrap();
    refuse(dir.path(), "DELETE ON served");
    // As if memory had forgotten them to make room for others.
    ledger.unwritten.lock().served_forgotten.extend([part(0), part(1)]);
    ledger.note_served(served(1, 9));
    for _ in 0..2 {
        ledger.flush().unwrap_err();
    }
    sql(dir.path(), "DROP TRIGGER refused");
    ledger.flush().unwrap();
    let db = LedgerDb::open_existing(dir.path(), &store_dir()).unwrap();
    assert_eq!(db.read_served().unwrap().iter().map(|served| served.at.0).collect::<Vec<_>>(), [2, 3, 4, 9]);
}
