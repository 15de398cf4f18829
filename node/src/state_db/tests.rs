//! What was written comes back; a damaged file is moved aside.

use super::*;
use crate::database_file::SET_ASIDE_MAX;
use crate::regular_file::{list_moved_aside, list_oddities};
use crate::state_files::SUMMARIES_DIR;
use narmesh_gossip::KeptSummary;
use narmesh_mesh::SummaryStore as _;
use std::fs;

fn answer(text: &str, at_unix_s: u64) -> RememberedAnswer {
    let holder = |summary_epoch| Candidate { source: SourceId::Peer(PeerId::random()), summary_epoch };
    RememberedAnswer { narinfo: text.as_bytes().to_vec(), holders: vec![holder(1), holder(u64::MAX)], at_unix_s }
}

const AUDIENCE: [AudienceDigest; 2] = [AudienceDigest([1; 8]), AudienceDigest([2; 8])];

/// A database with something in every table.
fn make_filled(dir: &Path) -> (PeerId, RememberedAnswer) {
    let (mut db, recovered) = StateDb::open(dir).unwrap();
    assert_eq!(recovered, Some(Recovered::Missing { path: dir.join(STATE_FILE) }));
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
    assert_eq!(db.read_own_epoch().unwrap(), None);
    assert!(db.read_newest().unwrap().is_empty() && db.read_audiences().unwrap().is_empty());
    assert_eq!(count_answers(db), 0);
}

fn count_answers(db: &StateDb) -> i64 {
    db.run(|connection| connection.query_row("SELECT count(*) FROM answers", (), |row| row.get(0))).unwrap()
}

#[test]
fn everything_comes_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (peer, answer) = make_filled(dir.path());
    let (mut db, recovered) = StateDb::open(dir.path()).unwrap();
    assert_eq!(recovered, None);
    assert_eq!(db.read_own_epoch().unwrap(), Some(u64::MAX - 1));
    assert_eq!(db.read_newest().unwrap(), vec![b"newer".to_vec()]);
    assert_eq!(db.read_answer(&HashPart([1; 20])).unwrap(), Some(answer));
    assert_eq!(db.read_answer(&HashPart([2; 20])).unwrap(), None);
    assert_eq!(db.read_audiences().unwrap(), [(peer, AUDIENCE.to_vec())]);
    db.forget(&peer).unwrap();
    db.update_answers(&[(HashPart([1; 20]), None)]).unwrap();
    assert!(db.read_newest().unwrap().is_empty() && db.read_audiences().unwrap().is_empty() && count_answers(&db) == 0);
}

#[test]
fn a_thousand_announcements_at_once_take_little_more_room_than_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut db, _) = StateDb::open(dir.path()).unwrap();
    let newest = |peer| Record::Newest { peer, envelope: vec![7; 169] };
    let records: Vec<_> = (0..1_024).map(|_| newest(PeerId::random())).collect();
    db.persist(&records.iter().collect::<Vec<_>>()).unwrap();
    let written = fs::metadata(dir.path().join(format!("{STATE_FILE}-wal"))).unwrap().len();
    assert!(written < 1 << 20, "{written} bytes: a commit for each would write 4 MB");
    assert_eq!(db.read_newest().unwrap().len(), 1_024);
}

#[test]
fn records_are_kept_in_their_order() {
    let mut db = StateDb::in_memory().unwrap();
    let [one, other] = [0; 2].map(|_| PeerId::random());
    let newest = |peer, envelope: &[u8]| Record::Newest { peer, envelope: envelope.to_vec() };
    let records = [newest(one, b"1"), newest(other, b"2"), Record::Forget(one), newest(other, b"3")];
    db.persist(&records.iter().collect::<Vec<_>>()).unwrap();
    assert_eq!(db.read_newest().unwrap(), [b"3".to_vec()]);
}

#[test]
fn only_audiences_that_are_kept_up_to_date_stay() {
    let mut db = StateDb::in_memory().unwrap();
    let [one, two] = [PeerId::random(), PeerId::random()];
    db.set_audience(&one, &AUDIENCE).unwrap();
    db.set_audience(&two, &AUDIENCE).unwrap();
    db.forget_audiences_except(&BTreeSet::from([two])).unwrap();
    assert_eq!(db.read_audiences().unwrap(), [(two, AUDIENCE.to_vec())]);
    // A row with half a digest is not an audience.
    db.run(|connection| connection.execute("UPDATE audiences SET digests = x'0101010101010101aa'", ())).unwrap();
    assert!(db.read_audiences().unwrap().is_empty());
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
    assert_eq!((after.read_own_epoch().unwrap(), recovered), (Some(42), None));
}

#[test]
fn a_second_process_is_refused_and_nothing_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (mut db, _) = StateDb::open(dir.path()).unwrap();
    let error = StateDb::open(dir.path()).unwrap_err();
    assert!(matches!(error, StateDbError::InUse { .. }), "{error}");
    db.set_own_epoch(1).unwrap();
    assert_eq!(db.read_own_epoch().unwrap(), Some(1));
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
        make_filled(dir.path());
        let path = dir.path().join(STATE_FILE);
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
        assert_eq!(StateDb::open(dir.path()).unwrap().0.read_own_epoch().unwrap(), Some(7), "{what}");
    }
}

#[test]
fn a_database_with_values_of_another_type_is_moved_aside() {
    for odd in [
        "UPDATE own SET epoch = 'abc'",
        "INSERT OR REPLACE INTO newest VALUES (x'05', 7)",
        "INSERT OR REPLACE INTO audiences VALUES ('x', 3.5)",
    ] {
        let dir = tempfile::tempdir().unwrap();
        make_filled(dir.path());
        let connection = Connection::open(dir.path().join(STATE_FILE)).unwrap();
        connection.execute(odd, ()).unwrap();
        drop(connection);
        let (db, recovered) = StateDb::open(dir.path()).unwrap();
        assert!(matches!(recovered, Some(Recovered::SetAside { .. })), "{odd}: {recovered:?}");
        assert_empty(&db);
    }
}

#[test]
fn database_without_one_of_its_tables_is_moved_aside() {
    for table in ["own", "newest", "answers", "audiences"] {
        let dir = tempfile::tempdir().unwrap();
        make_filled(dir.path());
        let connection = Connection::open(dir.path().join(STATE_FILE)).unwrap();
        connection.execute_batch(&format!("DROP TABLE {table}")).unwrap();
        drop(connection);
        let (db, recovered) = StateDb::open(dir.path()).unwrap();
        assert!(matches!(recovered, Some(Recovered::SetAside { .. })), "without {table}: {recovered:?}");
        assert_empty(&db);
    }
}

#[test]
fn anything_but_a_file_is_moved_aside_and_nothing_waits_for_it() {
    let odd = tempfile::tempdir().unwrap();
    for (path, what) in list_oddities(odd.path()) {
        let dir = tempfile::tempdir().unwrap();
        // More often than files are kept: a directory that was moved aside is never deleted, and does no harm.
        for _ in 0..SET_ASIDE_MAX + 2 {
            std::os::unix::fs::symlink(&path, dir.path().join(STATE_FILE)).unwrap();
            let (db, recovered) = StateDb::open(dir.path()).unwrap();
            let told = recovered.unwrap().to_string();
            assert!(told.contains(&format!("could not be used (it is {what}, not a file): moved to ")), "{told}");
            assert_empty(&db);
            drop(db);
            fs::remove_file(dir.path().join(STATE_FILE)).unwrap();
        }
        // The same in place of its log: the database itself stays as it was.
        let (peer, _) = make_filled(dir.path());
        for suffix in ["-wal", "-shm", "-journal"] {
            let sibling = dir.path().join(format!("{STATE_FILE}{suffix}"));
            std::os::unix::fs::symlink(&path, &sibling).unwrap();
            let (mut db, recovered) = StateDb::open(dir.path()).unwrap();
            assert_eq!(recovered, None, "{what} as {suffix}");
            assert_eq!(db.read_newest().unwrap(), [b"newer"]);
            db.set_newest(&peer, b"newer").unwrap();
            assert_eq!(list_moved_aside(&sibling).unwrap().len(), 1, "{what} as {suffix}");
        }
    }
}

#[test]
fn a_directory_in_place_of_a_file_is_kept_with_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..SET_ASIDE_MAX + 2 {
        fs::create_dir(dir.path().join(STATE_FILE)).unwrap();
        fs::write(dir.path().join(STATE_FILE).join("precious"), "x").unwrap();
        drop(StateDb::open(dir.path()).unwrap());
        fs::remove_file(dir.path().join(STATE_FILE)).unwrap();
        let kept = list_moved_aside(&dir.path().join(STATE_FILE)).unwrap();
        assert_eq!(kept.len(), number + 1);
        assert!(kept.iter().all(|(_, kept)| kept.join("precious").exists()));
    }
}

#[test]
fn a_log_left_behind_by_a_deletion_is_not_replayed() {
    let dir = tempfile::tempdir().unwrap();
    make_filled(dir.path());
    fs::remove_file(dir.path().join(STATE_FILE)).unwrap();
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
        fs::write(dir.path().join(STATE_FILE), vec![0x5a; 5_000]).unwrap();
        let (_, recovered) = StateDb::open(dir.path()).unwrap();
        let Some(Recovered::SetAside { moved_to, .. }) = recovered else { panic!("{recovered:?}") };
        last = Some(moved_to);
    }
    let kept = list_moved_aside(&dir.path().join(STATE_FILE)).unwrap();
    assert_eq!(kept.len(), SET_ASIDE_MAX);
    assert_eq!(kept.iter().max().map(|(_, path)| path), last.as_ref());
}

#[test]
fn answers_are_bounded_and_the_oldest_go() {
    let dir = tempfile::tempdir().unwrap();
    let (mut db, _) = StateDb::open_bounded(dir.path(), 200).unwrap();
    for number in 0..=255_u8 {
        let change = (HashPart([number; 20]), Some(answer("x", u64::from(number))));
        // The same one again must not count as another.
        db.update_answers(&[change.clone(), change]).unwrap();
        assert!(count_answers(&db) <= 200);
    }
    assert!(count_answers(&db) >= 198);
    assert!(db.read_answer(&HashPart([0; 20])).unwrap().is_none());
    assert!(db.read_answer(&HashPart([255; 20])).unwrap().is_some());
}

fn summary(fill: u8, body_bytes: usize) -> KeptSummary {
    KeptSummary { envelope: vec![fill; 169], accepted_ms: u64::from(fill), body: vec![fill; body_bytes] }
}

#[test]
fn summaries_come_back_as_they_were_written_last() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, three] = [(); 3].map(|()| PeerId::random());
    let mut files = SummaryFiles::open(dir.path()).unwrap();
    assert!(files.write(&one, &summary(1, 5_000)).unwrap());
    assert!(files.write(&one, &summary(2, 3_000)).unwrap());
    assert!(files.write(&two, &summary(3, 0)).unwrap());
    assert!(files.write(&three, &summary(4, 10)).unwrap());
    files.renew(&one, &[7; 1_000], u64::MAX).unwrap();
    files.renew(&PeerId::random(), &[7; 100], 1).unwrap();
    files.remove(&three).unwrap();
    // As a daemon that died in the middle of a write leaves it.
    fs::write(dir.path().join(SUMMARIES_DIR).join(format!("{three}.new")), b"half").unwrap();
    let files = SummaryFiles::open(dir.path()).unwrap();
    assert_eq!(files.owners().into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([one, two]));
    let renewed = KeptSummary { envelope: vec![7; 1_000], accepted_ms: u64::MAX, body: vec![2; 3_000] };
    assert_eq!(files.read(&one).unwrap(), renewed);
    assert_eq!(files.read(&two).unwrap(), summary(3, 0));
    assert_eq!(fs::read_dir(dir.path().join(SUMMARIES_DIR)).unwrap().count(), 2);
}

#[test]
fn one_entry_that_cannot_be_used_costs_no_other_summary() {
    let dir = tempfile::tempdir().unwrap();
    let owners: BTreeSet<_> = (0..20).map(|_| PeerId::random()).collect();
    let mut files = SummaryFiles::open(dir.path()).unwrap();
    assert!(owners.iter().all(|owner| files.write(owner, &summary(1, 100)).unwrap()));
    // It has to be moved aside, and its name is too long for that.
    fs::create_dir(dir.path().join(SUMMARIES_DIR).join(format!("{}.new", "x".repeat(245)))).unwrap();
    let mut files = SummaryFiles::open(dir.path()).unwrap();
    assert_eq!(files.owners().into_iter().collect::<BTreeSet<_>>(), owners);
    assert!(files.write(&PeerId::random(), &summary(2, 100)).unwrap());
}

#[test]
fn files_that_are_not_summaries_are_refused_before_memory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let owner = PeerId::random();
    let mut files = SummaryFiles::open(dir.path()).unwrap();
    files.write(&owner, &summary(1, 5_000)).unwrap();
    let path = dir.path().join(SUMMARIES_DIR).join(owner.to_string());
    let whole = fs::read(&path).unwrap();
    let mut other_magic = whole.clone();
    other_magic[0] ^= 1;
    let mut long_envelope = whole.clone();
    long_envelope[16..18].fill(0xff);
    for (what, bytes) in
        [("empty", vec![]), ("a torn head", whole[..700].to_vec()), ("magic", other_magic), ("envelope", long_envelope)]
    {
        fs::write(&path, bytes).unwrap();
        let kind = files.read(&owner).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::InvalidData, "{what}");
    }
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(files.read(&owner).unwrap_err().kind(), io::ErrorKind::InvalidData, "a terabyte");
    files.remove(&owner).unwrap();
    assert!(files.owners().is_empty() && !path.exists());
    assert_eq!(
        files.write(&owner, &KeptSummary { envelope: vec![0; 1_007], ..summary(1, 0) }).unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
}

#[test]
fn anything_but_a_file_is_not_a_summary_and_is_replaced_by_the_next_one() {
    let odd = tempfile::tempdir().unwrap();
    for (path, what) in list_oddities(odd.path()) {
        let dir = tempfile::tempdir().unwrap();
        // First in place of the whole directory.
        if what != "a directory" {
            std::os::unix::fs::symlink(&path, dir.path().join(SUMMARIES_DIR)).unwrap();
        }
        let owner = PeerId::random();
        let mut files = SummaryFiles::open(dir.path()).unwrap();
        files.write(&owner, &summary(1, 10)).unwrap();
        let file = dir.path().join(SUMMARIES_DIR).join(owner.to_string());
        let unfinished = dir.path().join(SUMMARIES_DIR).join(format!("{owner}.new"));
        fs::remove_file(&file).unwrap();
        // A directory is made there itself; a link leads to the other things.
        for at in [&file, &unfinished] {
            match what {
                "a directory" => fs::create_dir(at).unwrap(),
                _ => std::os::unix::fs::symlink(&path, at).unwrap(),
            }
        }
        let mut files = SummaryFiles::open(dir.path()).unwrap();
        assert_eq!(files.owners(), [owner], "{what}");
        assert_eq!(files.read(&owner).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{what}");
        assert_eq!(files.renew(&owner, &[1], 1).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{what}");
        files.remove(&owner).unwrap();
        assert!(files.write(&owner, &summary(2, 10)).unwrap());
        assert_eq!(files.read(&owner).unwrap(), summary(2, 10), "{what}");
    }
}

#[test]
fn summaries_never_take_more_than_their_bound() {
    let dir = tempfile::tempdir().unwrap();
    let owners: Vec<_> = (0..5).map(|_| PeerId::random()).collect();
    let mut files = SummaryFiles::open_bounded(dir.path(), 3 * (1_024 + 5_000)).unwrap();
    let written: Vec<_> = owners.iter().map(|owner| files.write(owner, &summary(1, 5_000)).unwrap()).collect();
    assert_eq!(written, [true, true, true, false, false]);
    assert!(files.write(&owners[0], &summary(2, 5_000)).unwrap(), "in place of its own");
    assert!(!files.write(&owners[0], &summary(3, 5_001)).unwrap());
    assert_eq!(files.owners().len(), 2, "what does not fit is not kept in an older form either");
    assert!(files.write(&owners[3], &summary(1, 5_000)).unwrap());
}
