//! What is coming in of a NAR is kept within bounds, and given only as far as it is proven.

use crate::harness::{Kind, TestNix, eventually, open_policy};
use narmesh_protocol::{HashPart, NarHash, NarInfo, NixSecretKey, StorePath, TrustedKeys};
use narmesh_store::{GiveAway, Offer, OfferPolicy, PartialCopies, PartialCopy};
use std::fs;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

const SIZE: u64 = 10 << 20;
const PIECE: usize = 256 << 10;

struct Stage {
    nix: TestNix,
    offer: Arc<Offer>,
    copies: PartialCopies,
}

fn key() -> NixSecretKey {
    NixSecretKey::from_seed("cache-1", &[5; 32]).unwrap()
}

impl Stage {
    fn new(bytes_max: u64) -> Self {
        let nix = TestNix::new(Kind::Relocated);
        let trusted = TrustedKeys::new(vec![key().public()]).unwrap();
        let policy = OfferPolicy { trusted, exclude: vec!["private-*".to_owned()], ..open_policy() };
        let offer = Arc::new(Offer::start(nix.open(), policy, Box::new(|_| {})).unwrap());
        eventually("the offer has looked", || offer.has_looked());
        let copies = PartialCopies::start(Arc::clone(&offer), nix.dir.path().to_owned(), bytes_max).unwrap();
        Self { nix, offer, copies }
    }

    /// A path that is not here.
    fn info(&self, name: &str, number: u8) -> NarInfo {
        NarInfo {
            path: StorePath::new(HashPart([number; 20]), name).unwrap(),
            nar_hash: NarHash([number; 32]),
            nar_size: SIZE,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
        }
    }

    /// The same, signed by a trusted key.
    fn signed(&self, name: &str, number: u8) -> NarInfo {
        let info = self.info(name, number);
        let signature = key().sign(&info.fingerprint(&self.nix.location.store_dir));
        NarInfo { signatures: vec![signature], ..info }
    }

    fn find(&self, info: &NarInfo) -> Option<Arc<PartialCopy>> {
        self.copies.find(&info.path.hash_part(), &info.nar_hash, info.nar_size)
    }
}

/// How many bytes can be read behind the first `from`; `None` if none will come.
fn beyond(copy: &PartialCopy, from: u64) -> Poll<Option<u64>> {
    copy.poll_beyond(&mut Context::from_waker(Waker::noop()), from)
}

#[test]
fn only_what_is_written_and_proven_is_given() {
    let stage = Stage::new(1 << 30);
    let info = stage.signed("a", 1);
    let mut writer = stage.copies.begin(&info, GiveAway::Proven).unwrap();
    assert!(stage.copies.begin(&info, GiveAway::Proven).is_none(), "it is coming in already");
    let copy = stage.find(&info).unwrap();
    let nar: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at % 251).unwrap()).collect();
    writer.write(&nar[..2 * PIECE]);
    assert_eq!(beyond(&copy, 0), Poll::Pending, "nothing is proven");
    writer.prove(PIECE as u64);
    eventually("it is written", || beyond(&copy, 0) == Poll::Ready(Some(PIECE as u64)));
    let mut read = Vec::new();
    copy.read(100, &mut read, 1 << 20).unwrap();
    assert_eq!(read, nar[100..PIECE]);
    let mut given = 2 * PIECE as u64;
    for piece in nar[2 * PIECE..].chunks(PIECE) {
        writer.write(piece);
        given += piece.len() as u64;
        writer.prove(given);
        // No line is quicker than the thread that writes.
        eventually("it is written", || beyond(&copy, given - 1) == Poll::Ready(Some(given)));
    }
    writer.finish();
    eventually("it is whole", || beyond(&copy, SIZE - 1) == Poll::Ready(Some(SIZE)));
    assert_eq!(beyond(&copy, SIZE), Poll::Ready(None), "that was all");
    assert!(stage.find(&info).is_some(), "until our store has it");
    assert!(fs::read_dir(stage.nix.dir.path()).unwrap().flatten().all(|entry| entry.metadata().unwrap().len() < SIZE));
}

#[test]
fn what_would_not_be_offered_is_not_kept_and_not_given() {
    let stage = Stage::new(1 << 30);
    assert!(stage.copies.begin(&stage.info("unsigned", 1), GiveAway::Proven).is_none());
    assert!(stage.copies.begin(&stage.signed("private-key", 2), GiveAway::Proven).is_none());
    assert!(stage.copies.begin(&stage.signed("x.drv", 3), GiveAway::Proven).is_none());
    let info = stage.signed("a", 4);
    let _writer = stage.copies.begin(&info, GiveAway::Proven).unwrap();
    assert!(stage.find(&info).is_some());
    assert!(stage.find(&NarInfo { nar_size: SIZE + 8, ..info.clone() }).is_none());
    assert!(stage.find(&NarInfo { path: stage.info("a", 5).path, ..info.clone() }).is_none());
    stage.offer.set_serving(false);
    assert!(stage.find(&info).is_none(), "asked anew");
}

#[test]
fn copies_take_bounded_space_and_give_it_back() {
    let stage = Stage::new(2 * SIZE);
    let [first, second, third] = [1, 2, 3].map(|number| stage.signed("a", number));
    let writer = stage.copies.begin(&first, GiveAway::Proven).unwrap();
    let _second = stage.copies.begin(&second, GiveAway::Proven).unwrap();
    assert!(stage.copies.begin(&third, GiveAway::Proven).is_none());
    let copy = stage.find(&first).unwrap();
    drop(writer);
    assert_eq!(beyond(&copy, 0), Poll::Ready(None), "whoever reads it is told");
    assert!(stage.find(&first).is_none());
    eventually("there is room again", || stage.copies.begin(&third, GiveAway::Proven).is_some());
    stage.copies.set_bytes_max(0);
    assert!(stage.copies.begin(&stage.signed("a", 9), GiveAway::Proven).is_none(), "switched off");
}

/// A local user may have the same NAR fetched again and again.
#[test]
fn what_is_written_for_copies_is_bounded_however_often_a_nar_comes() {
    let stage = Stage::new(2 * SIZE);
    let info = stage.signed("a", 1);
    let fetch = || {
        let mut begun = None;
        // The one before is forgotten within a second.
        eventually("it is over", || stage.find(&info).is_none());
        for _ in 0..30 {
            begun = stage.copies.begin(&info, GiveAway::AsItComes);
            if begun.is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let mut writer = begun?;
        let copy = stage.find(&info).unwrap();
        for (piece, at) in (0..SIZE).step_by(PIECE).enumerate() {
            writer.write(&vec![7; PIECE]);
            eventually("it is written", || beyond(&copy, at) == Poll::Ready(Some((piece as u64 + 1) * PIECE as u64)));
        }
        Some(())
    };
    let fetched = (0..10).map_while(|_| fetch()).count();
    assert_eq!(fetched, 8, "four times the space");
}
