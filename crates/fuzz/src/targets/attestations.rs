//! Attestations of builders, and the messages in which two ledgers compare them.

use super::{Outcome, Target, magnitude};
use crate::memory::MemoryBound;
use narmesh_protocol::{
    Attestation, BuilderKey, HashPart, NarHash, NixSecretKey, Statement, StoreDir, StorePath, attestation_file,
};
use narmesh_quorum::reconcile::{Answer, Content, Item, Next, Query, Session, Shared};
use narmesh_quorum::{Claim, FingerprintDigest, Ledger, LedgerLimits, NameDigest, VerifiedStatement, WallMs};

/// A reference of 34 characters becomes a path of 48 bytes and its name, in a list that doubles when it grows.
const MEMORY: MemoryBound = MemoryBound { per_byte: 56, constant: 4 << 10 };
const WORDS: &[&[u8]] = &[
    &[0; 8],
    &[1, 0, 0, 0, 0, 0, 0, 0],
    &[1, 0, 0, 0],
    &[0xff; 8],
    b"7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x",
    b"7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-y",
    b" ",
    b";",
    b",",
    b"1;/nix/store/",
    b"#",
    b"112",
];

pub(super) const TARGETS: [Target; 4] = [
    Target { name: "attestation", run: attestation, seeds: attestation_seeds, words: WORDS, input_bytes_max: 4 << 10 },
    Target { name: "attestation-line", run: line, seeds: line_seeds, words: WORDS, input_bytes_max: 4 << 10 },
    Target { name: "quorum-query", run: query, seeds: query_seeds, words: WORDS, input_bytes_max: 4 << 10 },
    Target { name: "quorum-answer", run: answer, seeds: answer_seeds, words: WORDS, input_bytes_max: 4 << 10 },
];

fn store_dir() -> StoreDir {
    StoreDir::parse("/nix/store").expect("a store directory")
}

fn key() -> NixSecretKey {
    NixSecretKey::from_seed("builder-1", &[3; 32]).expect("a name")
}

pub(super) fn signed() -> Vec<Attestation> {
    let path = |name| StorePath::new(HashPart([7; 20]), name).expect("a name");
    let statement = |references| Statement { path: path("x"), nar_hash: NarHash([1; 32]), nar_size: 112, references };
    [Vec::new(), vec![path("x")], vec![path("a"), path("b"), path("x")]]
        .map(|references| Attestation::sign(&key(), &store_dir(), statement(references), 1_790_000_000_000))
        .to_vec()
}

fn attestation_seeds() -> Vec<Vec<u8>> {
    signed().iter().map(|attestation| attestation.encode().expect("fits")).collect()
}

fn line_seeds() -> Vec<Vec<u8>> {
    let line = |it| attestation_file::line(&store_dir(), &key().public(), it).trim_end().as_bytes().to_vec();
    signed().iter().map(line).chain([b"# a comment".to_vec()]).collect()
}

fn attestation(input: &[u8]) -> Outcome {
    let decoded = MEMORY.hold(input.len(), || Attestation::decode(input));
    match &decoded {
        Ok(attestation) => {
            assert_eq!(attestation.encode().expect("what was decoded encodes"), input, "one spelling");
            assert!(attestation.statement.references.is_sorted_by(|first, second| first < second));
            let verified = attestation.verify(&store_dir(), &key().public());
            assert!(!verified || signed().contains(attestation), "verified and never signed");
            Outcome::of((verified, magnitude(attestation.statement.references.len())))
        }
        Err(error) => Outcome::of(format!("{error:?}").split(|c: char| c.is_ascii_digit()).next()),
    }
}

fn line(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let parsed = MEMORY.hold(text.len(), || attestation_file::parse_line(&store_dir(), &text));
    if let Ok(Some((key, attestation))) = &parsed {
        let again = attestation_file::line(&store_dir(), key, attestation);
        assert_eq!(again.strip_suffix('\n'), Some(text.as_ref()), "one spelling");
        assert!(!again.trim_end_matches('\n').contains('\n'));
        attestation.encode().expect("a line's worth encodes");
    }
    Outcome::of(format!("{:?}", parsed.map(|found| found.map(|(_, it)| magnitude(it.statement.references.len())))))
}

pub(super) fn ledger() -> Ledger {
    let mut ledger = Ledger::new(LedgerLimits::default());
    for number in 0..200u8 {
        let mut hash_part = [0; 20];
        hash_part.fill(number.wrapping_mul(37));
        let claim = Claim {
            fingerprint: FingerprintDigest([number; 32]),
            nar_hash: NarHash([1; 32]),
            nar_size: 1,
            name: NameDigest::of("x"),
        };
        let builder = BuilderKey([number % 3; 32]);
        ledger.insert(&VerifiedStatement::from_record(builder, HashPart(hash_part), claim, Some(WallMs(1)), 1), None);
    }
    ledger
}

pub(super) fn shared() -> Shared {
    Shared::new((0..3).map(|number| BuilderKey([number; 32])))
}

fn query_seeds() -> Vec<Vec<u8>> {
    let (ours, theirs) = (Ledger::new(LedgerLimits::default()), ledger());
    let (mut session, first) = Session::start(&ours, shared());
    let mut seeds = vec![first.encode().expect("fits")];
    if let Next::Ask(second) = session.on_answer(&ours, &theirs.answer(&shared(), &first)) {
        seeds.push(second.encode().expect("fits"));
    }
    seeds
}

fn query(input: &[u8]) -> Outcome {
    let decoded = MEMORY.hold(input.len(), || Query::decode(input));
    match decoded {
        Ok(query) => {
            assert_eq!(query.encode().expect("what was decoded encodes"), input, "one spelling");
            let answer = ledger().answer(&shared(), &query);
            assert!(answer.encode().expect("an answer fits").len() <= Answer::BYTES_MAX);
            let facts = match &answer {
                Answer::Builders(builders) => (0, builders.len()),
                Answer::Nodes { differing, .. } => (1, differing.len()),
            };
            Outcome::of((facts, magnitude(query.nodes.len())))
        }
        Err(error) => Outcome::of(format!("{error:?}").split(|c: char| c.is_ascii_digit()).next()),
    }
}

fn answer_seeds() -> Vec<Vec<u8>> {
    let ours = Ledger::new(LedgerLimits::default());
    let (_, query) = Session::start(&ours, shared());
    let items = Content::Items(vec![Item([1; 16]), Item([2; 16])]);
    let answers = [
        ledger().answer(&shared(), &query),
        Answer::Nodes { answered: 1, differing: vec![(0, items)] },
        Answer::Nodes { answered: 1, differing: Vec::new() },
        Answer::Builders(query.builders.into_iter().take(1).collect()),
    ];
    answers.iter().map(|answer| answer.encode().expect("fits")).collect()
}

fn answer(input: &[u8]) -> Outcome {
    let decoded = MEMORY.hold(input.len(), || Answer::decode(input));
    match decoded {
        Ok(answer) => {
            assert_eq!(answer.encode().expect("what was decoded encodes"), input, "one spelling");
            let ledger = ledger();
            let (mut session, _) = Session::start(&ledger, shared());
            Outcome::of(match session.on_answer(&ledger, &answer) {
                Next::Ask(next) => {
                    next.encode().expect("a query fits");
                    (2, magnitude(next.nodes.len()), 0)
                }
                Next::Done(found) => {
                    (u8::from(found.complete), magnitude(found.ours.len()), magnitude(found.theirs.len()))
                }
            })
        }
        Err(error) => Outcome::of(format!("{error:?}").split(|c: char| c.is_ascii_digit()).next()),
    }
}
