//! What was written comes back; what was damaged is moved aside.

use super::*;
use crate::database_file::{SET_ASIDE_MAX, set_aside_files};
use std::fs;

fn answer(text: &str, at_unix_s: u64) -> RememberedAnswer {
    RememberedAnswer { narinfo: text.as_bytes().to_vec(), holders: vec![PeerId::random(), PeerId::random()], at_unix_s }
}

const AUDIENCE: [AudienceDigest; 2] = [AudienceDigest([1; 8]), AudienceDigest([2; 8])];

/// A database with something in every table.
fn filled(dir: &Path) -> (PeerId, RememberedAnswer) {
    let (mut db, recovered) = StateDb::open(dir).unwrap();
    assert_eq!(recovered, Some(Recovered::Missing { path: dir.join(FILE_NAME) }));
    let (peer, answer) = (PeerId::random(), answer("StorePath: x\n", 5));
    db.set_own_epoch(u64::MAX - 1).unwrap();
    db.set_newest(&peer, b"older").unwrap();
    db.set_newest(&peer, b"newer").unwrap();
    db.set_audience(&peer, &[AudienceDigest([9; 8])]).unwrap();
    db.set_audience(&peer, &AUDIENCE).unwrap();
    db.update_answers(&[(HashPart([1; 20]), Some(answer.clone()))]).unwrap();
    (peer, answer)
}

fn assert_empty(db: &StateDb) {
    assert_eq!(db.own_epoch().unwrap(), None);
    assert!(db.newest().unwrap().is_empty() && db.audiences().unwrap().is_empty());
    assert!(db.answered().unwrap().is_empty());
}

#[test]
fn everything_comes_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (peer, answer) = filled(dir.path());
    let (mut db, recovered) = StateDb::open(dir.path()).unwrap();
    assert_eq!(recovered, None);
    assert_eq!(db.own_epoch().unwrap(), Some(u64::MAX - 1));
    assert_eq!(db.newest().unwrap(), vec![b"newer".to_vec()]);
    assert_eq!(db.answer(&HashPart([1; 20])).unwrap(), Some(answer));
    assert_eq!(db.answer(&HashPart([2; 20])).unwrap(), None);
    assert_eq!(db.audiences().unwrap(), [(peer, AUDIENCE.to_vec())]);
    db.forget(&peer).unwrap();
    db.update_answers(&[(HashPart([1; 20]), None)]).unwrap();
    assert!(db.newest().unwrap().is_empty() && db.audiences().unwrap().is_empty() && db.answered().unwrap().is_empty());
}

#[test]
fn only_audiences_that_are_kept_up_to_date_stay() {
    let mut db = StateDb::in_memory().unwrap();
    let [one, two] = [PeerId::random(), PeerId::random()];
    db.set_audience(&one, &AUDIENCE).unwrap();
    db.set_audience(&two, &AUDIENCE).unwrap();
    db.keep_audiences(&BTreeSet::from([two])).unwrap();
    assert_eq!(db.audiences().unwrap(), [(two, AUDIENCE.to_vec())]);
    // Half of a digest is nobody's.
    db.run(|connection| connection.execute("UPDATE audiences SET digests = x'0101010101010101aa'", ())).unwrap();
    assert!(db.audiences().unwrap().is_empty());
}

/// Copies the files while they are open, as a killed process leaves them.
#[test]
fn a_write_that_returned_survives_the_death_of_the_process() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut db, _) = StateDb::open(dir.path()).unwrap();
    db.set_own_epoch(42).unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let (after, recovered) = StateDb::open(copy.path()).unwrap();
    assert_eq!((after.own_epoch().unwrap(), recovered), (Some(42), None));
}

#[test]
fn a_second_process_is_told_and_nothing_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    let (mut db, _) = StateDb::open(dir.path()).unwrap();
    let error = StateDb::open(dir.path()).unwrap_err();
    assert!(matches!(error, StateDbError::InUse { .. }), "{error}");
    db.set_own_epoch(1).unwrap();
    assert_eq!(db.own_epoch().unwrap(), Some(1));
}

#[test]
fn damaged_files_are_moved_aside_with_a_warning() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("garbage", |bytes| *bytes = vec![0x5a; 9_000]),
        ("short garbage", |bytes| *bytes = b"hello".to_vec()),
        ("torn header", |bytes| bytes.truncate(60)),
        ("truncated", |bytes| bytes.truncate(bytes.len() - 5_000)),
        ("zeroes in the middle", |bytes| bytes[4_096..12_288].fill(0)),
    ];
    for (what, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let path = dir.path().join(FILE_NAME);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let (mut db, recovered) = StateDb::open(dir.path()).unwrap();
        let Some(Recovered::SetAside { moved_to, .. }) = &recovered else { panic!("{what}: {recovered:?}") };
        assert_eq!(fs::read(moved_to).unwrap(), bytes, "{what}: kept for inspection");
        assert!(recovered.unwrap().to_string().contains("starting without memory"));
        assert_empty(&db);
        db.set_own_epoch(7).unwrap();
        drop(db);
        assert_eq!(StateDb::open(dir.path()).unwrap().0.own_epoch().unwrap(), Some(7), "{what}");
    }
}

#[test]
fn a_directory_in_place_of_the_file_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(FILE_NAME)).unwrap();
    let (db, recovered) = StateDb::open(dir.path()).unwrap();
    assert!(matches!(recovered, Some(Recovered::SetAside { .. })));
    assert_empty(&db);
}

#[test]
fn a_log_left_behind_by_a_deletion_is_not_replayed() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    fs::write(dir.path().join("state.sqlite-wal"), vec![1; 5_000]).unwrap();
    let (db, recovered) = StateDb::open(dir.path()).unwrap();
    assert!(matches!(recovered, Some(Recovered::Missing { .. })));
    assert_empty(&db);
}

#[test]
fn a_later_schema_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (db, _) = StateDb::open(dir.path()).unwrap();
    db.connection.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let (_, recovered) = StateDb::open(dir.path()).unwrap();
    assert!(recovered.unwrap().to_string().contains("schema version 99"));
}

#[test]
fn three_damaged_files_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = None;
    for _ in 0..6 {
        fs::write(dir.path().join(FILE_NAME), vec![0x5a; 5_000]).unwrap();
        let (_, recovered) = StateDb::open(dir.path()).unwrap();
        let Some(Recovered::SetAside { moved_to, .. }) = recovered else { panic!("{recovered:?}") };
        last = Some(moved_to);
    }
    let kept = set_aside_files(&dir.path().join(FILE_NAME)).unwrap();
    assert_eq!(kept.len(), SET_ASIDE_MAX);
    assert_eq!(kept.iter().max().map(|(_, path)| path), last.as_ref());
}

#[test]
fn answers_are_bounded_and_the_oldest_go() {
    let dir = tempfile::tempdir().unwrap();
    let (mut db, _) = StateDb::open_bounded(dir.path(), 200).unwrap();
    for number in 0..=255_u8 {
        let change = (HashPart([number; 20]), Some(answer("x", u64::from(number))));
        // The same one again: must not count as another.
        db.update_answers(&[change.clone(), change]).unwrap();
        assert!(db.answered().unwrap().len() <= 200);
    }
    assert!(db.answered().unwrap().len() >= 198);
    assert!(db.answer(&HashPart([0; 20])).unwrap().is_none());
    assert!(db.answer(&HashPart([255; 20])).unwrap().is_some());
    db.clear_answers().unwrap();
    assert!(db.answered().unwrap().is_empty());
}
