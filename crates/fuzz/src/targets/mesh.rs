//! What peers send over libp2p: envelopes, bodies, deltas, requests and replies.

use super::{Outcome, Target, magnitude};
use crate::memory::MemoryBound;
use libp2p_identity::Keypair;
use narmesh_protocol::codec::CodecError;
use narmesh_protocol::wire::{
    CircuitReply, CircuitRequest, DialReply, DialRequest, GossipReply, GossipRequest, Have, JoinReply, JoinRequest,
    LogPart, LogReply, LogRequest, NarInfoReply, NarInfoRequest, NarReply, NarRequest, RealisationReply,
    RealisationRequest, Referral, RelayHello, RelayWelcome, RosterReply, RosterRequest, Sync, TreeReply, TreeRequest,
};
use narmesh_protocol::{
    Announcement, AudienceDigest, Envelope, Generation, HASH_ID_V1, HashPart, Lineage, Member, MemberRole, NarHash,
    NixSecretKey, Roster, RosterVersion, SignedRoster, Succession, Summary, SummaryDelta, SummaryError,
};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Claimed lengths may take 32 times the bytes that are there, or 2 KiB (`codec`). Decoded values and their growth take the
/// rest.
const MEMORY: MemoryBound = MemoryBound { per_byte: 56, constant: 4 << 10 };
/// Variants, options, counts, and the beginning of an address of each kind.
const WORDS: &[&[u8]] = &[
    &[0; 8],
    &[1, 0, 0, 0],
    &[2, 0, 0, 0],
    &[3, 0, 0, 0],
    &[1],
    &[1, 0, 0, 0, 0, 0, 0, 0],
    &[8, 0, 0, 0, 0, 0, 0, 0],
    &[0, 4, 0, 0, 0, 0, 0, 0],
    &[0xff; 8],
    b"/nix/store",
    b"narmesh/0.1.0",
    &[0, 0, 0, 0, 127, 0, 0, 1, 0x70, 0x1c],
];

/// A target for a message of `wire`: it must decode within its memory, and have only one encoding.
macro_rules! message {
    ($name:literal, $type:ty, $seeds:expr) => {{
        fn run(input: &[u8]) -> Outcome {
            let decoded = MEMORY.hold(input.len(), || <$type>::decode(input));
            if let Ok(value) = &decoded {
                assert_eq!(value.encode().expect("what was decoded encodes"), input, "one spelling");
                assert!(input.len() <= <$type>::BYTES_MAX);
            }
            let shape = |value: &$type| magnitude(format!("{value:?}").len());
            match &decoded {
                Ok(value) => {
                    Outcome::of((shape(value), format!("{value:?}").split(['(', '{']).next().map(str::to_owned)))
                }
                Err(error) => refusal(error),
            }
        }
        Target { name: $name, run, seeds: $seeds, words: WORDS, input_bytes_max: 4 << 10 }
    }};
}

pub(super) const TARGETS: [Target; 28] = [
    Target { name: "envelope", run: envelope, seeds: envelope_seeds, words: WORDS, input_bytes_max: 1_100 },
    Target { name: "announcement", run: announcement, seeds: announcement_seeds, words: WORDS, input_bytes_max: 1_100 },
    Target { name: "summary", run: summary, seeds: summary_seeds, words: WORDS, input_bytes_max: 8 << 10 },
    Target { name: "delta", run: delta, seeds: delta_seeds, words: WORDS, input_bytes_max: 4 << 10 },
    message!("gossip-request", GossipRequest, gossip_request_seeds),
    message!("gossip-reply", GossipReply, gossip_reply_seeds),
    message!("narinfo-request", NarInfoRequest, || vec![
        NarInfoRequest { hash_part: HashPart([7; 20]) }.encode().expect("fits")
    ]),
    message!("narinfo-reply", NarInfoReply, || {
        [NarInfoReply::Absent, NarInfoReply::Busy, NarInfoReply::Found(b"StorePath: x\n".to_vec())]
            .map(|reply| reply.encode().expect("fits"))
            .to_vec()
    }),
    message!("nar-request", NarRequest, || {
        let (hash_part, nar_hash) = (HashPart([1; 20]), NarHash([2; 32]));
        [Referral::Declined, Referral::Welcome, Referral::Compared]
            .map(|referral| {
                let (passes_on, accept_zstd) = (true, true);
                NarRequest { hash_part, nar_hash, nar_size: 112, offset: 8, end: 112, accept_zstd, passes_on, referral }
                    .encode()
                    .expect("fits")
            })
            .to_vec()
    }),
    message!("nar-reply", NarReply, || {
        let others = NarReply::Others { peers: vec![AudienceDigest([5; 8]); NarReply::OTHERS_MAX] };
        let not_now = NarReply::NotNow { place: 3, ask_again_ms: 2_000 };
        [NarReply::Body { zstd: true }, NarReply::Absent, not_now, others]
            .map(|reply| reply.encode().expect("fits"))
            .to_vec()
    }),
    message!("tree-request", TreeRequest, || {
        let (hash_part, nar_hash) = (HashPart([1; 20]), NarHash([2; 32]));
        vec![TreeRequest { hash_part, nar_hash, nar_size: 9 << 20 }.encode().expect("fits")]
    }),
    message!("tree-reply", TreeReply, || {
        let tree = TreeReply::Tree { signature: [3; 64], leaves: vec![[4; 32]; 36] };
        [TreeReply::Absent, TreeReply::NotYet, tree, TreeReply::Busy]
            .map(|reply| reply.encode().expect("fits"))
            .to_vec()
    }),
    message!("roster-request", RosterRequest, || {
        let have = RosterVersion { version: 3, digest: [4; 32] };
        vec![RosterRequest { mesh: [5; 32], have }.encode().expect("fits")]
    }),
    message!("roster-reply", RosterReply, || {
        [
            RosterReply::Absent,
            RosterReply::Same,
            RosterReply::Newer(vec![1; 200]),
            RosterReply::Older,
            RosterReply::Busy,
            RosterReply::OtherKey(vec![2; 200]),
        ]
        .map(|reply| reply.encode().expect("fits"))
        .to_vec()
    }),
    message!("join-request", JoinRequest, || {
        let (name, addresses) = ("box".to_owned(), vec!["/ip4/192.0.2.1/tcp/7280".to_owned()]);
        vec![JoinRequest { secret: [1; 16], name, builder_key: None, addresses }.encode().expect("fits")]
    }),
    message!("join-reply", JoinReply, || {
        let unfit = JoinReply::Unfit { why: "its name".to_owned() };
        [JoinReply::Welcome(vec![1; 200]), JoinReply::Refused, unfit, JoinReply::NotNow]
            .map(|reply| reply.encode().expect("fits"))
            .to_vec()
    }),
    Target { name: "roster", run: roster, seeds: roster_seeds, words: WORDS, input_bytes_max: 4 << 10 },
    Target {
        name: "roster-with-lineage",
        run: roster_with_lineage,
        seeds: lineage_seeds,
        words: WORDS,
        input_bytes_max: 8 << 10,
    },
    message!("log-request", LogRequest, || {
        vec![LogRequest { derivation: HashPart([1; 20]), offset: 256 << 10 }.encode().expect("fits")]
    }),
    message!("log-reply", LogReply, || {
        let part = LogPart { is_compressed: true, size_bytes: 9, version: 7, bytes: b"BZh9 text".to_vec() };
        [LogReply::Absent, LogReply::Part(part), LogReply::Busy].map(|reply| reply.encode().expect("fits")).to_vec()
    }),
    message!("realisation-request", RealisationRequest, || {
        vec![RealisationRequest { derivation_hash: [1; 32], output: "out".to_owned() }.encode().expect("fits")]
    }),
    message!("realisation-reply", RealisationReply, || {
        [RealisationReply::Absent, RealisationReply::Found(b"{}".to_vec()), RealisationReply::Busy]
            .map(|reply| reply.encode().expect("fits"))
            .to_vec()
    }),
    message!("dial-request", DialRequest, || vec![DialRequest::Bulk.encode().expect("fits")]),
    message!("circuit-request", CircuitRequest, || {
        let come = CircuitRequest::Come { from: [1; 32], ticket: [2; 16] };
        let addresses = vec![SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 7_280))];
        let meet = CircuitRequest::Meet { addresses, token: [3; 16] };
        [CircuitRequest::Open([1; 32]), come, meet].map(|request| request.encode().expect("fits")).to_vec()
    }),
    message!("circuit-reply", CircuitReply, || {
        let meeting = CircuitReply::Meeting(vec![SocketAddr::from((Ipv6Addr::LOCALHOST, 7_280))]);
        [CircuitReply::Ticket([2; 16]), CircuitReply::Coming, CircuitReply::Refused, CircuitReply::Busy, meeting]
            .map(|reply| reply.encode().expect("fits"))
            .to_vec()
    }),
    message!("relay-hello", RelayHello, || {
        [RelayHello::Join([2; 16]), RelayHello::Observe].map(|hello| hello.encode().expect("fits")).to_vec()
    }),
    message!("relay-welcome", RelayWelcome, || {
        let observed = RelayWelcome::Observed(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 7_280)));
        [RelayWelcome::Joined, RelayWelcome::Refused, observed].map(|welcome| welcome.encode().expect("fits")).to_vec()
    }),
    message!("dial-reply", DialReply, || {
        [DialReply::Dialling, DialReply::NotNow].map(|reply| reply.encode().expect("fits")).to_vec()
    }),
];

/// The same key each time. The signature over changed bytes is made here, so that mutations get past the check of
/// signatures.
pub(super) fn keypair(number: u8) -> Keypair {
    Keypair::ed25519_from_bytes([number; 32]).expect("32 bytes are a seed")
}

/// An envelope around any payload, as a hostile peer can make it.
pub(super) fn sealed(keypair: &Keypair, payload: &[u8]) -> Vec<u8> {
    let key = keypair.public().try_into_ed25519().expect("made as Ed25519").to_bytes();
    let signature = keypair.sign(&[b"narmesh-announcement-1;", payload].concat()).expect("Ed25519 signs anything");
    [&[1], key.as_slice(), &signature, payload].concat()
}

fn refusal(error: &CodecError) -> Outcome {
    Outcome::of((std::mem::discriminant(error), format!("{error:?}").split(|c: char| c.is_ascii_digit()).next()))
}

fn envelope(input: &[u8]) -> Outcome {
    let opened = MEMORY.hold(input.len(), || Envelope::open(input));
    if let Ok(envelope) = &opened {
        assert_eq!(envelope.as_bytes(), input);
        assert!(input.len() <= Envelope::BYTES_MAX);
    }
    Outcome::of_result(&opened, |_| 0)
}

fn announcement(payload: &[u8]) -> Outcome {
    let signed = sealed(&keypair(1), payload);
    let opened = MEMORY.hold(signed.len(), || Envelope::open(&signed));
    if let Ok(envelope) = &opened {
        assert_eq!(envelope.peer(), keypair(1).public().to_peer_id());
        let again = Envelope::seal(&keypair(1), *envelope.announcement()).expect("what was opened can be sealed");
        assert_eq!(again.as_bytes(), signed, "one spelling");
    }
    Outcome::of_result(&opened, |envelope| u64::from(envelope.announcement().is_goodbye()))
}

/// The payload of a roster: the signature over it is made here.
fn roster(payload: &[u8]) -> Outcome {
    let key = NixSecretKey::from_seed("home", &[1; 32]).expect("a good name");
    let signed = signed_roster(payload);
    let opened = MEMORY.hold(signed.len(), || SignedRoster::open(&key.public(), &signed));
    if let Ok(roster) = &opened {
        let again = SignedRoster::sign(&key, roster.roster().clone()).expect("what was opened can be signed");
        assert_eq!(again.as_bytes(), signed, "one spelling");
        assert!(roster.roster().members.iter().all(|member| roster.member(&member.node_key) == Some(member)));
        assert!(roster.roster().removals.len() <= Roster::REMOVALS_MAX);
    }
    Outcome::of_result(&opened, |roster| magnitude(roster.roster().members.len()))
}

/// A roster around any payload, as whoever has the mesh key can make it.
fn signed_roster(payload: &[u8]) -> Vec<u8> {
    let mesh = keypair(1);
    let key = mesh.public().try_into_ed25519().expect("made as Ed25519").to_bytes();
    let signature = mesh.sign(&[b"narmesh-roster-1;", payload].concat()).expect("Ed25519 signs anything");
    [&[1], key.as_slice(), &signature, payload].concat()
}

fn roster_seeds() -> Vec<Vec<u8>> {
    let key = NixSecretKey::from_seed("home", &[1; 32]).expect("a good name");
    let member = |number: u8| Member {
        node_key: [number; 32],
        name: format!("box {number}"),
        role: MemberRole::Builder,
        builder_key: Some(key.public().to_string()),
        group: (number == 2).then(|| "rack".to_owned()),
        relay: number == 1,
        ephemeral_s: 60,
        addresses: vec!["/ip4/192.0.2.1/tcp/7280".to_owned()],
    };
    let mut roster = Roster {
        version: 1,
        issued_at_ms: 2,
        members: vec![member(1), member(2)],
        edits: Vec::new(),
        removals: Vec::new(),
    };
    roster.set_edits_of([1; 32], 7);
    let mut with_removals = Roster { version: 2, members: vec![member(1)], ..roster.clone() };
    with_removals.note_removals(
        &key,
        &Roster { members: vec![member(1), Member { ephemeral_s: 0, ..member(2) }], ..roster.clone() },
    );
    [roster, with_removals]
        .map(|roster| SignedRoster::sign(&key, roster).expect("a good roster"))
        .map(|signed| signed.as_bytes().get(97..).unwrap_or_default().to_vec())
        .to_vec()
}

/// A lineage and the payload of a roster: the signature over both is made here, those in the lineage are the input's.
fn roster_with_lineage(signed: &[u8]) -> Outcome {
    let new = NixSecretKey::from_seed("home", &[2; 32]).expect("a good name");
    let signature = keypair(2).sign(&[b"narmesh-roster-2;", signed].concat()).expect("Ed25519 signs anything");
    let bytes = [&[2], new.public().bytes().as_slice(), &signature, signed].concat();
    let opened = MEMORY.hold(bytes.len(), || SignedRoster::open(&new.public(), &bytes));
    if let Ok(roster) = &opened {
        let again = SignedRoster::sign_with_lineage(&new, roster.lineage(), roster.roster().clone());
        assert_eq!(again.expect("what was opened can be signed").as_bytes(), bytes, "one spelling");
        assert!(roster.lineage().successions().iter().all(|succession| roster.lineage().replaced(&succession.old)));
        assert!(!roster.lineage().replaced(&new.public().bytes()), "no circle");
    }
    Outcome::of_result(&opened, |roster| magnitude(roster.lineage().successions().len()))
}

fn lineage_seeds() -> Vec<Vec<u8>> {
    let key = |seed| NixSecretKey::from_seed("home", &[seed; 32]).expect("a good name");
    let mut lineage = Lineage::default();
    for (old, new, version) in [(4, 3, 5), (3, 2, 6)] {
        let succession = Succession::sign(&key(old), &key(new).public().bytes(), version);
        lineage = lineage.continued(succession).expect("it continues the lineage");
    }
    let roster = Roster { version: 7, issued_at_ms: 2, members: Vec::new(), edits: Vec::new(), removals: Vec::new() };
    let signed = SignedRoster::sign_with_lineage(&key(2), &lineage, roster).expect("a good roster");
    vec![signed.as_bytes().get(97..).unwrap_or_default().to_vec()]
}

fn summary(input: &[u8]) -> Outcome {
    let decoded = MEMORY.hold(input.len(), || Summary::decode(input));
    if let Ok(summary) = &decoded {
        assert_eq!(summary.encode().expect("what was decoded encodes"), input, "one spelling");
        assert!(summary.addresses.len() <= Summary::ADDRESSES_MAX && summary.audience.is_sorted_by(|a, b| a < b));
        let filter = MEMORY.hold(input.len(), || summary.filter());
        if let Ok(filter) = &filter {
            assert_eq!(filter.as_bytes(), summary.filter_bytes);
        }
        let admitted = summary.admits(&keypair(1).public().to_peer_id());
        return Outcome::of((filter.is_ok(), admitted, summary.addresses.len(), magnitude(summary.audience.len())));
    }
    Outcome::of(decoded.map(|_| ()).map_err(|error| summary_refusal(&error)))
}

fn summary_refusal(error: &SummaryError) -> String {
    format!("{error:?}").split(|c: char| c.is_ascii_digit()).next().unwrap_or_default().to_owned()
}

/// The first byte chooses the size of the filter that the delta is applied to.
fn delta(input: &[u8]) -> Outcome {
    let (size, input) = input.split_first().map_or((0, input), |(size, rest)| (*size, rest));
    let decoded = MEMORY.hold(input.len(), || SummaryDelta::decode(input));
    let delta = match &decoded {
        Ok(delta) => delta,
        Err(error) => return Outcome::of(summary_refusal(error)),
    };
    assert_eq!(delta.encode().expect("what was decoded encodes"), input, "one spelling");
    let base = base(1024 << (size % 3));
    let wrong_base = delta.apply(&base, delta.base_seq.wrapping_add(1));
    assert!(matches!(wrong_base, Err(SummaryError::Base { .. })));
    let applied = MEMORY.hold(input.len() + 4 * base.filter_bytes.len(), || delta.apply(&base, delta.base_seq));
    if let Ok(next) = &applied {
        assert_eq!((next.items, next.hash_id), (delta.items, base.hash_id));
        assert_eq!(next.filter_bytes.len(), base.filter_bytes.len(), "a delta never changes the size");
        let cleared = base.filter_bytes.iter().zip(&next.filter_bytes).any(|(old, new)| old & !new != 0);
        assert!(!cleared, "bits are only set");
        let body = next.encode().expect("an applied delta is a body");
        assert_eq!(Summary::decode(&body).expect("and a valid one"), *next);
        assert_eq!(delta.apply(next, delta.base_seq).expect("once more"), *next, "twice is once");
    }
    let facts = (delta.audience.is_some(), delta.addresses.is_some(), magnitude(delta.positions.len()));
    Outcome::of((applied.map(|_| ()).map_err(|error| summary_refusal(&error)), facts))
}

fn base(filter_bytes: usize) -> Summary {
    let (mut ours, mut other) = (AudienceDigest::of(&keypair(1).public().to_peer_id()), AudienceDigest([9; 8]));
    if other < ours {
        std::mem::swap(&mut ours, &mut other);
    }
    Summary {
        hash_id: HASH_ID_V1,
        items: 3,
        audience: vec![ours, other],
        addresses: vec![
            SocketAddr::from((Ipv4Addr::LOCALHOST, 7280)),
            SocketAddr::from((Ipv6Addr::from([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), 7280)),
        ],
        filter_bytes: vec![0x11; filter_bytes],
    }
}

pub(super) fn announcement_of(body: &[u8], epoch: u64, seq: u64) -> Announcement {
    Announcement {
        generation: Generation { epoch, seq },
        path_count: 3,
        body_digest: Summary::digest(body),
        body_bytes: u32::try_from(body.len()).unwrap_or(u32::MAX),
        lifetime_s: 14_400,
        issued_at_ms: 1_700_000_000_000,
    }
}

fn envelope_seeds() -> Vec<Vec<u8>> {
    let body = summary_seeds().concat();
    [(1, announcement_of(&body, 5, 0)), (2, Announcement { lifetime_s: 0, ..announcement_of(&body, 6, 3) })]
        .map(|(number, announcement)| Envelope::seal(&keypair(number), announcement).expect("fits").as_bytes().to_vec())
        .to_vec()
}

pub(super) fn announcement_seeds() -> Vec<Vec<u8>> {
    envelope_seeds().iter().map(|envelope| envelope.get(97..).unwrap_or_default().to_vec()).collect()
}

pub(super) fn summary_seeds() -> Vec<Vec<u8>> {
    let tiny = Summary { audience: Vec::new(), addresses: Vec::new(), ..base(1024) };
    [base(1024), base(4096), tiny].iter().map(|summary| summary.encode().expect("fits")).collect()
}

pub(super) fn delta_seeds() -> Vec<Vec<u8>> {
    let plain = SummaryDelta { base_seq: 0, items: 4, positions: vec![0, 9, 8_191], audience: None, addresses: None };
    let whole = SummaryDelta {
        base_seq: 7,
        audience: Some(base(1024).audience),
        addresses: Some(base(1024).addresses),
        ..plain.clone()
    };
    [plain, whole].iter().map(|delta| [&[0], delta.encode().expect("fits").as_slice()].concat()).collect()
}

pub(super) fn gossip_request_seeds() -> Vec<Vec<u8>> {
    let (owner, generation) = (AudienceDigest([3; 8]), Generation { epoch: 5, seq: 1 });
    let have = vec![Have { owner, generation }; 3];
    let sync = Sync {
        store_dir: "/nix/store".to_owned(),
        software: "narmesh/0.1.0".to_owned(),
        yours: envelope_seeds().into_iter().next(),
        have,
    };
    let requests = [
        GossipRequest::Sync(sync),
        GossipRequest::Pull { owner, generation, have_seq: None },
        GossipRequest::Pull { owner, generation, have_seq: Some(0) },
    ];
    requests.iter().map(|request| request.encode().expect("fits")).collect()
}

pub(super) fn gossip_reply_seeds() -> Vec<Vec<u8>> {
    let sync = GossipReply::Sync {
        store_dir: "/nix/store".to_owned(),
        software: "narmesh/0.1.0".to_owned(),
        yours: None,
        news: envelope_seeds(),
    };
    let body = summary_seeds().into_iter().next().unwrap_or_default();
    let delta = delta_seeds().into_iter().next().unwrap_or_default();
    let replies = [
        sync,
        GossipReply::StoreDirDiffers { store_dir: "/gnu/store".to_owned() },
        GossipReply::Body(body),
        GossipReply::Delta(delta.get(1..).unwrap_or_default().to_vec()),
        GossipReply::Absent,
        GossipReply::Busy,
    ];
    replies.iter().map(|reply| reply.encode().expect("fits")).collect()
}
