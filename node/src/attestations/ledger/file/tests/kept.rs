//! What is kept, whatever an imported file says, whoever reads, and whatever breaks.

use super::*;
use crate::database_file::SET_ASIDE_MAX;
use crate::regular_file::list_oddities;
use std::collections::BTreeSet;

#[test]
fn a_configured_key_name_wins_over_the_name_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let under = |name: &str, seed: u8| {
        NixPublicKey::parse(&format!("{name}:{}", key(seed).public().to_string().split_once(':').unwrap().1)).unwrap()
    };
    let named = |seed, number| {
        let (stored, verified) = said(seed, number, 1);
        (StoredStatement { key: under("cache.nixos.org-1", seed), ..stored }, verified)
    };
    let fingerprint = said(1, 1, 1).1.claim().fingerprint;
    let names = |ledger: &LiveLedger| {
        let stored = ledger.read_attestations(&path(1).hash_part()).unwrap();
        let signed = ledger.read_signatures(fingerprint).unwrap();
        let both =
            stored.iter().map(|it| it.key.name().to_owned()).zip(signed.iter().map(|(_, it)| it.key_name.clone()));
        both.collect::<Vec<_>>()
    };
    let both = |name: &str| vec![(name.to_owned(), name.to_owned())];
    // The name that came first stays as long as the configuration gives no other.
    live(dir.path()).take(&[named(1, 1)], WallMs(1)).unwrap();
    assert_eq!(names(&live(dir.path())), both("cache.nixos.org-1"));
    let configured = |name| KeyNames::new([under(name, 1), under("second", 1)]);
    // A ledger that only reads shows the configured name, and one that writes stores it.
    let looking = LiveLedger::new(dir.path(), &store_dir(), policy(1..=2), Box::new(|_| false));
    let looking = looking.named(configured("mine-1")).looking();
    looking.catch_up().unwrap();
    assert_eq!(names(&looking), both("mine-1"));
    assert_eq!(names(&live(dir.path())), both("cache.nixos.org-1"));
    let ledger =
        LiveLedger::new(dir.path(), &store_dir(), policy(1..=2), Box::new(|_| false)).named(configured("mine-1"));
    ledger.catch_up().unwrap();
    assert_eq!((names(&ledger), names(&live(dir.path()))), (both("mine-1"), both("mine-1")));
    // The old name does not come back with another file, and a reload may give another name.
    ledger.take(&[named(1, 2)], WallMs(1)).unwrap();
    assert_eq!(names(&live(dir.path())), both("mine-1"));
    let imported = import(file(&[named(1, 3)]).as_slice(), &ledger, |_| Ok(())).unwrap();
    assert_eq!((imported.new, names(&live(dir.path()))), (1, both("mine-1")));
    ledger.set_policy(policy(1..=2), configured("mine-2"), []);
    assert_eq!(names(&ledger), both("mine-2"));
    ledger.catch_up().unwrap();
    assert_eq!(names(&live(dir.path())), both("mine-2"));
}

#[test]
fn paths_asked_for_are_remembered_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LedgerLimits { per_builder: 1, bytes_per_builder: 1 << 30 };
    let open = || LiveLedger::new(dir.path(), &store_dir(), policy(1..=2), Box::new(|_| false)).bounded(limits);
    let ledger = open();
    for number in [3, 1] {
        ledger.note_asked(path(number).hash_part());
        ledger.flush().unwrap();
    }
    ledger.take(&[said(1, 1, 1), said(1, 2, 1)], WallMs(1)).unwrap();
    drop(ledger);
    let ledger = open();
    ledger.catch_up().unwrap();
    assert_eq!(
        ledger.read(|ledger| ledger.asked_paths().collect::<Vec<_>>()),
        [3, 1].map(|number| path(number).hash_part())
    );
    ledger.take(&[said(1, 4, 1), said(1, 5, 1), said(1, 3, 1)], WallMs(1)).unwrap();
    assert_eq!([1, 2, 3, 4, 5].map(|number| votes(&ledger, number).len()), [1, 0, 1, 0, 1]);
    assert_eq!(rows(&self::open(dir.path()), "votes"), 3);
}

#[test]
fn a_ledger_that_only_reads_removes_nothing_whatever_its_bounds() {
    let dir = tempfile::tempdir().unwrap();
    live(dir.path()).take(&(1..=5).map(|number| said(1, number, 1)).collect::<Vec<_>>(), WallMs(1)).unwrap();
    let limits = LedgerLimits { per_builder: 1, bytes_per_builder: 1 << 30 };
    let over = || LiveLedger::new(dir.path(), &store_dir(), policy(1..=2), Box::new(|_| false)).bounded(limits);
    let looking = over().looking();
    looking.catch_up().unwrap();
    assert_eq!((looking.read(|ledger| ledger.len()), rows(&open(dir.path()), "votes")), (5, 5));
    // A writer does: it knows what has to be kept.
    over().catch_up().unwrap();
    assert_eq!(rows(&open(dir.path()), "votes"), 1);
    // It does not remove what is beyond the bound of one path either.
    let more: Vec<_> = (1..=6).map(|result| said(2, 1, result)).collect();
    let rows_of: Vec<_> = more.iter().map(|(stored, verified)| (NewStatement::from(stored), verified)).collect();
    open(dir.path()).store(&rows_of, WallMs(1)).unwrap();
    looking.catch_up().unwrap();
    assert_eq!((votes(&looking, 1).len(), rows(&open(dir.path()), "votes")), (5, 7));
    let nothing = tempfile::tempdir().unwrap();
    let looking = LiveLedger::new(nothing.path(), &store_dir(), policy(1..=2), Box::new(|_| false)).looking();
    assert!(matches!(looking.catch_up(), Err(LedgerDbError::Missing { .. })), "it does not make a file either");
}

/// Moves everything from the log into the file, and makes open connections read the file again instead of their page
/// caches.
fn settle(dir: &Path) {
    let db = open(dir);
    db.connection.execute("UPDATE meta SET store_dir = store_dir", ()).unwrap();
    db.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(())).unwrap();
}

/// Damages the page that holds these bytes, or the whole file.
fn damage(dir: &Path, bytes: Option<&[u8]>) {
    let mut content = std::fs::read(dir.join(LEDGER_FILE)).unwrap();
    match bytes {
        Some(bytes) => {
            let at = content.windows(bytes.len()).position(|window| window == bytes).unwrap();
            content[at / 4_096 * 4_096..][..4_096].fill(0xff);
        }
        None => content.fill(0xff),
    }
    // Written in place, so that processes that have the file open see it.
    let mut file = std::fs::OpenOptions::new().write(true).open(dir.join(LEDGER_FILE)).unwrap();
    file.write_all(&content).unwrap();
}

#[test]
fn a_damaged_file_loses_only_what_cannot_be_read() {
    for (is_whole, is_writer) in [(false, false), (false, true), (true, false), (true, true)] {
        let dir = tempfile::tempdir().unwrap();
        let ledger = LiveLedger::new(dir.path(), &store_dir(), policy(1..=2), Box::new(|_| false)).repairing();
        ledger.take(&(1..=99).map(|number| said(1, number, 1)).collect::<Vec<_>>(), WallMs(5)).unwrap();
        ledger.take_bare(&[signed(2, 1, 1), signed(2, 2, 1)], WallMs(1_000)).unwrap();
        ledger.take(&[said(2, 2, 1)], WallMs(3_000)).unwrap();
        ledger.note_asked(path(99).hash_part());
        ledger.note_served(Served { path: path(1), fingerprint: FingerprintDigest([1; 32]), at: WallMs(7) });
        ledger.flush().unwrap();
        let (lost, before) = (said(1, 50, 1), ledger.read(narmesh_quorum::Ledger::len));
        let times = |ledger: &LiveLedger, number| {
            let votes = votes(ledger, number).into_iter();
            votes.map(|vote| (vote.builder, vote.stored_at, vote.dated_stored_at)).collect::<BTreeSet<_>>()
        };
        let known = [1, 2, 99].map(|number| times(&ledger, number));
        let revision = ledger.revision();
        // Leaves two idle readers that have the file open.
        ledger.with_reader(|_| ledger.with_reader(|db| db.read_paths())).unwrap();
        settle(dir.path());
        damage(dir.path(), (!is_whole).then_some(&lost.0.attestation.nix_signature[..]));

        // The next reader or writer notices the damage, and the next `catch_up` repairs it.
        let (builder, hash_part) = (lost.1.builder(), lost.1.hash_part());
        let gone = Evicted { builder, hash_part, fingerprint: lost.1.claim().fingerprint };
        let seen = match (is_whole, is_writer) {
            (_, false) => ledger.read_attestations(&hash_part).map(drop),
            (true, true) => ledger.take(&[said(2, 3, 1)], WallMs(8)).map(drop),
            (false, true) => ledger.withdraw(&[gone]),
        };
        assert!(seen.unwrap_err().is_damage());
        ledger.catch_up().unwrap();
        let now = ledger.read(narmesh_quorum::Ledger::len);
        assert!((ledger.losses(), ledger.revision() > revision) == (1, true) && now < before, "{now} of {before}");
        let again = live(dir.path());
        for ledger in [&ledger, &again] {
            assert_eq!(ledger.read(narmesh_quorum::Ledger::len), now, "memory holds what the file holds");
            assert_eq!(votes(ledger, 50), [], "a statement that cannot be handed over is forgotten");
            let of_path = |number: u8| ledger.read_attestations(&path(number).hash_part()).unwrap().len();
            let dated = |number: u8| votes(ledger, number).iter().filter(|vote| vote.attested_at.is_some()).count();
            assert!((1..=99).all(|number| of_path(number) == dated(number)));
            assert_eq!(ledger.read(|ledger| ledger.asked_paths().collect::<Vec<_>>()), [path(99).hash_part()]);
            assert_eq!(ledger.read(|ledger| ledger.served_after(None).count()), 1);
            if is_whole {
                assert_eq!(now, 0);
            } else {
                assert!(now > 30, "{now} of {before}");
                assert_eq!([1, 2, 99].map(|number| times(ledger, number)), known, "with the times of first storing");
            }
        }
        assert_eq!(ledger.take(&[lost], WallMs(9)).unwrap().new, 1, "heard again");
        assert_eq!(votes(&live(dir.path()), 50)[0].stored_at, Some(WallMs(9)));
    }
}

#[test]
fn repeated_repairs_keep_three_old_files_and_the_files_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = LiveLedger::new(dir.path(), &store_dir(), policy(1..=2), Box::new(|_| false)).repairing();
    let mut were_read = 0;
    for _ in 0..SET_ASIDE_MAX + 2 {
        ledger.take(&(1..=99).map(|number| said(1, number, 1)).collect::<Vec<_>>(), WallMs(5)).unwrap();
        settle(dir.path());
        let (lost, _) = said(1, 50, 1);
        damage(dir.path(), Some(&lost.attestation.nix_signature));
        assert!(ledger.read_attestations(&path(50).hash_part()).unwrap_err().is_damage());
        ledger.catch_up().unwrap();
        let names =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let aside: Vec<_> = names.filter(|name| name.contains(".corrupt-")).collect();
        were_read = aside.iter().filter(|name| name.ends_with("-shm")).count();
        let kept: BTreeSet<_> =
            aside.iter().map(|name| name.trim_end_matches("-shm").trim_end_matches("-wal")).collect();
        assert!(kept.len() <= SET_ASIDE_MAX, "{aside:?}");
        assert!(kept.iter().all(|name| dir.path().join(name).exists()), "belongs to nothing: {aside:?}");
    }
    assert_eq!(were_read, SET_ASIDE_MAX, "each was read");
}

#[test]
fn anything_but_a_file_is_moved_aside_by_the_daemon_and_refused_by_others() {
    let odd = tempfile::tempdir().unwrap();
    for (odd, what) in list_oddities(odd.path()) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let dir = tempfile::tempdir().unwrap();
            live(dir.path()).take(&[said(1, 1, 1)], WallMs(1)).unwrap();
            let at = dir.path().join(format!("{LEDGER_FILE}{suffix}"));
            drop(std::fs::remove_file(&at));
            std::os::unix::fs::symlink(&odd, &at).unwrap();
            let refused = [
                LedgerDb::open_existing(dir.path(), &store_dir()).unwrap_err(),
                LedgerDb::open(dir.path(), &store_dir(), false).unwrap_err(),
                LedgerDb::open_damaged(&dir.path().join(LEDGER_FILE), &store_dir()).unwrap_err(),
            ];
            for error in refused.map(|error| error.to_string()) {
                assert!(error.contains("quorum.sqlite cannot be used: "), "{error}");
                assert!(error.contains(&format!("it is {what}, not a file")), "{error}");
            }
            let ledger = LiveLedger::new(dir.path(), &store_dir(), policy(1..=2), Box::new(|_| false)).repairing();
            ledger.catch_up().unwrap();
            assert_eq!(votes(&ledger, 1).len(), usize::from(!suffix.is_empty()), "{what} as {suffix}");
            ledger.take(&[said(1, 2, 1)], WallMs(2)).unwrap();
        }
    }
}
