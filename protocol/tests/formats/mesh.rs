//! Messages of the mesh: an encoded value decodes to the same value, and bytes that decode encode to the same bytes.

use libp2p_identity::Keypair;
use narmesh_protocol::nar_tree::LeafHasher;
use narmesh_protocol::wire::{
    DialReply, DialRequest, GossipReply, GossipRequest, Have, JoinReply, JoinRequest, LOG_BYTES_MAX,
    LOG_PART_BYTES_MAX, LogPart, LogReply, LogRequest, NarInfoReply, NarInfoRequest, NarReply, NarRequest,
    RealisationReply, RealisationRequest, Referral, RosterReply, RosterRequest, Sync, TreeReply, TreeRequest,
};
use narmesh_protocol::{
    Announcement, Attestation, AudienceDigest, Envelope, EnvelopeError, Generation, HASH_ID_V1, HashPart, KeyProof,
    NarHash, NixSecretKey, RosterVersion, Statement, StoreDir, StorePath, Summary, SummaryDelta, SummaryError,
    attestation_file,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

fn any_generation() -> impl Strategy<Value = Generation> {
    any::<(u64, u64)>().prop_map(|(epoch, seq)| Generation { epoch, seq })
}

fn any_announcement() -> impl Strategy<Value = Announcement> {
    (any_generation(), any::<[u8; 32]>(), any::<(u64, u32, u32, u64)>()).prop_map(
        |(generation, body_digest, (path_count, body_bytes, lifetime_s, issued_at_ms))| Announcement {
            generation,
            path_count,
            body_digest,
            body_bytes,
            lifetime_s,
            issued_at_ms,
        },
    )
}

fn any_audience() -> impl Strategy<Value = Vec<AudienceDigest>> {
    btree_set(any::<[u8; 8]>().prop_map(AudienceDigest), 0..6).prop_map(|set| set.into_iter().collect())
}

fn any_addresses() -> impl Strategy<Value = Vec<SocketAddr>> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(|ip| IpAddr::from(Ipv4Addr::from(ip))),
        any::<[u8; 16]>().prop_map(|ip| IpAddr::from(Ipv6Addr::from(ip))),
    ];
    vec((ip, any::<u16>()).prop_map(SocketAddr::from), 0..=Summary::ADDRESSES_MAX)
}

fn any_summary() -> impl Strategy<Value = Summary> {
    (any::<u64>(), any_audience(), any_addresses(), 10..13u32, any::<u8>()).prop_map(
        |(items, audience, addresses, log2_bytes, fill)| Summary {
            hash_id: HASH_ID_V1,
            items,
            audience,
            addresses,
            filter_bytes: vec![fill; 1 << log2_bytes],
        },
    )
}

fn any_delta() -> impl Strategy<Value = SummaryDelta> {
    let positions = btree_set(0..(1u32 << 13), 0..40).prop_map(|set| set.into_iter().collect());
    let (audience, addresses) = (prop::option::of(any_audience()), prop::option::of(any_addresses()));
    (any::<(u64, u64)>(), positions, audience, addresses).prop_map(
        |((base_seq, items), positions, audience, addresses)| SummaryDelta {
            base_seq,
            items,
            positions,
            audience,
            addresses,
        },
    )
}

fn any_gossip_request() -> impl Strategy<Value = GossipRequest> {
    let owner = any::<[u8; 8]>().prop_map(AudienceDigest);
    let have = (owner.clone(), any_generation()).prop_map(|(owner, generation)| Have { owner, generation });
    let sync = (".{0,30}", ".{0,30}", prop::option::of(vec(any::<u8>(), 0..50)), vec(have, 0..6))
        .prop_map(|(store_dir, software, yours, have)| GossipRequest::Sync(Sync { store_dir, software, yours, have }));
    let pull = (owner, any_generation(), any::<Option<u64>>())
        .prop_map(|(owner, generation, have_seq)| GossipRequest::Pull { owner, generation, have_seq });
    prop_oneof![sync, pull]
}

fn any_gossip_reply() -> impl Strategy<Value = GossipReply> {
    let bytes = || vec(any::<u8>(), 0..50);
    let sync = (".{0,30}", ".{0,30}", prop::option::of(bytes()), vec(bytes(), 0..5))
        .prop_map(|(store_dir, software, yours, news)| GossipReply::Sync { store_dir, software, yours, news });
    prop_oneof![
        sync,
        ".{0,30}".prop_map(|store_dir| GossipReply::StoreDirDiffers { store_dir }),
        bytes().prop_map(GossipReply::Body),
        bytes().prop_map(GossipReply::Delta),
        Just(GossipReply::Absent),
        Just(GossipReply::Busy),
    ]
}

/// The value survives a round trip, and its encoding with one more byte or with fewer bytes is refused.
macro_rules! assert_comes_back {
    ($type:ty, $value:expr) => {{
        let value = $value;
        let bytes = value.encode().unwrap();
        prop_assert_eq!(&<$type>::decode(&bytes).unwrap(), &value);
        prop_assert!(<$type>::decode(&[bytes.as_slice(), &[0]].concat()).is_err(), "trailing byte");
        for cut in [0, bytes.len() / 2, bytes.len() - 1] {
            prop_assert!(<$type>::decode(&bytes[..cut]).is_err(), "cut to {}", cut);
        }
    }};
}

/// Arbitrary or changed bytes never cause a panic, and bytes that are accepted are the only encoding of their value.
macro_rules! assert_one_spelling {
    ($type:ty, $bytes:expr) => {{
        if let Ok(value) = <$type>::decode($bytes) {
            prop_assert_eq!(&value.encode().unwrap(), $bytes);
        }
    }};
}

/// Checks the worked examples in `docs/protocol.md`.
#[test]
fn nar_messages_have_the_bytes_in_the_documentation() {
    let examples = [
        (NarReply::Body { zstd: false }.encode(), "0000000000"),
        (NarReply::Body { zstd: true }.encode(), "0000000001"),
        (NarReply::Absent.encode(), "01000000"),
        (NarReply::NotNow { place: 3, ask_again_ms: 2_000 }.encode(), "0200000003000000d0070000"),
        (NarReply::Others { peers: vec![AudienceDigest([7; 8])] }.encode(), "0300000001000000000000000707070707070707"),
        (TreeReply::Absent.encode(), "00000000"),
        (TreeReply::NotYet.encode(), "01000000"),
        (TreeReply::Busy.encode(), "03000000"),
        (
            LogRequest { derivation: HashPart([1; 20]), offset: 65_536 }.encode(),
            "01010101010101010101010101010101010101010000010000000000",
        ),
        (LogReply::Absent.encode(), "00000000"),
        (
            LogReply::Part(LogPart { is_compressed: true, size_bytes: 3, version: 7, bytes: vec![0xaa, 0xbb, 0xcc] })
                .encode(),
            "0100000001030000000000000007000000000000000300000000000000aabbcc",
        ),
        (LogReply::Busy.encode(), "02000000"),
        (
            RealisationRequest { derivation_hash: [1; 32], output: "out".to_owned() }.encode(),
            "010101010101010101010101010101010101010101010101010101010101010103000000000000006f7574",
        ),
        (RealisationReply::Absent.encode(), "00000000"),
        (RealisationReply::Found(b"{}".to_vec()).encode(), "0100000002000000000000007b7d"),
        (RealisationReply::Busy.encode(), "02000000"),
        (DialRequest::Bulk.encode(), "00000000"),
        (DialReply::Dialling.encode(), "00000000"),
        (DialReply::NotNow.encode(), "01000000"),
    ];
    for (encoded, digits) in examples {
        let written: String = encoded.unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(written, digits);
    }
}

#[test]
fn part_of_a_log_lies_in_its_file() {
    let part = |size_bytes, count| LogPart { is_compressed: false, size_bytes, version: 1, bytes: vec![7; count] };
    assert!(part(10, 10).is_from(0) && part(10, 4).is_from(6) && part(10, 0).is_from(10) && part(0, 0).is_from(0));
    assert!(!part(10, 5).is_from(6), "beyond the end");
    assert!(!part(10, 0).is_from(6), "no progress");
    assert!(!part(10, 1).is_from(u64::MAX));
    assert!(part(LOG_BYTES_MAX, 1).is_from(0) && !part(LOG_BYTES_MAX + 1, 1).is_from(0));
    assert!(!part(LOG_BYTES_MAX, LOG_PART_BYTES_MAX + 1).is_from(0));
}

/// The same of trees: the NAR is 33 leaves of the bytes 0 to 250, again and again.
#[test]
fn trees_have_the_bytes_in_the_documentation() {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let nar: Vec<u8> = (0..33_u32 << 18).map(|at| (at % 251) as u8).collect();
    let mut hasher = LeafHasher::new(nar.len() as u64, 0).unwrap();
    hasher.update(&nar);
    let tree = hasher.finish().unwrap();
    assert_eq!(hex(tree.root()), "7a5553169cb4f356b8391598ac5409531aba37fccbd142d3647234dfea96679e");
    let keypair = Keypair::ed25519_from_bytes((0..32).collect::<Vec<u8>>()).unwrap();
    let nar_hash = NarHash(Sha256::digest(&nar).into());
    let signature = tree.bind(&keypair, &nar_hash).unwrap();
    let reply = TreeReply::Tree { signature, leaves: tree.leaves().to_vec() }.encode().unwrap();
    let (signature, first) = (
        "47b139226ee77688ef5eeede864872a8810129201ba7f51be21ed84b8b0f228732042b0da468b2a4bcadd51a5f6f33094f32a1f0795c1b7e5f497d308d69370b",
        "69febc864103726f98eba5f7437ed4da193c9d6cb02d46036729c1ea9dc3ffad",
    );
    assert_eq!(hex(&reply[..108]), format!("02000000{signature}2100000000000000{first}"));
}

proptest! {
    #[test]
    fn messages_survive_a_round_trip(
        request in any_gossip_request(),
        reply in any_gossip_reply(),
        part: [u8; 20],
        hash: [u8; 32],
        numbers: (u64, u64),
        places: (u32, u32),
        flag: bool,
        text in vec(any::<u8>(), 0..100),
    ) {
        let (hash_part, (nar_size, offset), text_bytes) = (HashPart(part), numbers, text.len());
        assert_comes_back!(GossipRequest, request);
        assert_comes_back!(GossipReply, reply);
        assert_comes_back!(NarInfoRequest, NarInfoRequest { hash_part });
        let nar_hash = NarHash(hash);
        for referral in [Referral::Declined, Referral::Welcome, Referral::Compared] {
            let request = NarRequest {
                hash_part, nar_hash, nar_size, offset, end: offset, accept_zstd: flag, passes_on: !flag, referral,
            };
            assert_comes_back!(NarRequest, request);
        }
        for reply in [NarInfoReply::Absent, NarInfoReply::Found(text), NarInfoReply::Busy] {
            assert_comes_back!(NarInfoReply, reply);
        }
        let not_now = NarReply::NotNow { place: places.0, ask_again_ms: places.1 };
        let others = NarReply::Others { peers: vec![AudienceDigest([part[0]; 8]); NarReply::OTHERS_MAX] };
        for reply in [NarReply::Body { zstd: flag }, NarReply::Absent, not_now, others] {
            assert_comes_back!(NarReply, reply);
        }
        assert_comes_back!(TreeRequest, TreeRequest { hash_part, nar_hash, nar_size });
        let tree = TreeReply::Tree { signature: [part[0]; 64], leaves: vec![hash; text_bytes] };
        for reply in [TreeReply::Absent, TreeReply::NotYet, tree, TreeReply::Busy] {
            assert_comes_back!(TreeReply, reply);
        }
        let have = RosterVersion { version: numbers.0, digest: hash };
        assert_comes_back!(RosterRequest, RosterRequest { mesh: hash, have });
        let bytes = part.to_vec();
        for reply in [
            RosterReply::Absent, RosterReply::Same, RosterReply::Newer(bytes.clone()), RosterReply::Older, RosterReply::Busy,
            RosterReply::OtherKey(bytes.clone()),
        ] {
            assert_comes_back!(RosterReply, reply);
        }
        let words = || "x".repeat(text_bytes);
        let secret = std::array::from_fn(|at| part[at]);
        let proof = KeyProof { key: words(), signature: [7; 64] };
        let join =
            JoinRequest { secret, name: words(), builder_key: flag.then_some(proof), addresses: vec![words()] };
        assert_comes_back!(JoinRequest, join);
        let unfit = JoinReply::Unfit { why: words() };
        for reply in [JoinReply::Welcome(bytes), JoinReply::Refused, unfit, JoinReply::NotNow] {
            assert_comes_back!(JoinReply, reply);
        }
        assert_comes_back!(LogRequest, LogRequest { derivation: hash_part, offset });
        let part = LogPart { is_compressed: flag, size_bytes: nar_size, version: offset, bytes: vec![7; text_bytes] };
        for reply in [LogReply::Absent, LogReply::Part(part), LogReply::Busy] {
            assert_comes_back!(LogReply, reply);
        }
        let request = RealisationRequest { derivation_hash: hash, output: "o".repeat(text_bytes) };
        assert_comes_back!(RealisationRequest, request);
        for reply in [RealisationReply::Absent, RealisationReply::Found(vec![7; text_bytes]), RealisationReply::Busy] {
            assert_comes_back!(RealisationReply, reply);
        }
        assert_comes_back!(DialRequest, DialRequest::Bulk);
        for reply in [DialReply::Dialling, DialReply::NotNow] {
            assert_comes_back!(DialReply, reply);
        }
    }

    #[test]
    fn summaries_and_deltas_survive_a_round_trip(summary in any_summary(), delta in any_delta()) {
        assert_comes_back!(Summary, summary);
        assert_comes_back!(SummaryDelta, delta);
    }

    #[test]
    fn delta_sets_exactly_its_bits_and_fields(base in any_summary(), delta in any_delta()) {
        let next = delta.apply(&base, delta.base_seq).unwrap();
        prop_assert_eq!(next.items, delta.items);
        prop_assert_eq!(&next.audience, delta.audience.as_ref().unwrap_or(&base.audience));
        prop_assert_eq!(&next.addresses, delta.addresses.as_ref().unwrap_or(&base.addresses));
        let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (at % 8) & 1;
        for at in 0..base.filter_bytes.len() * 8 {
            let set = delta.positions.contains(&(at as u32));
            prop_assert_eq!(bit(&next.filter_bytes, at), bit(&base.filter_bytes, at) | u8::from(set));
        }
        let other = delta.base_seq.wrapping_add(1);
        let refused = matches!(delta.apply(&base, other), Err(SummaryError::Base { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn envelopes_survive_a_round_trip(announcement in any_announcement(), seed: [u8; 32], change in any::<prop::sample::Index>()) {
        let keypair = Keypair::ed25519_from_bytes(seed).unwrap();
        let sealed = Envelope::seal(&keypair, announcement).unwrap();
        let opened = Envelope::open(sealed.as_bytes()).unwrap();
        prop_assert_eq!(&opened, &sealed);
        prop_assert_eq!(opened.announcement(), &announcement);
        prop_assert_eq!(opened.peer(), keypair.public().to_peer_id());
        let mut forged = sealed.as_bytes().to_vec();
        forged[change.index(sealed.as_bytes().len())] ^= 0x20;
        prop_assert!(Envelope::open(&forged).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        assert_one_spelling!(GossipRequest, &bytes);
        assert_one_spelling!(GossipReply, &bytes);
        assert_one_spelling!(NarInfoRequest, &bytes);
        assert_one_spelling!(NarInfoReply, &bytes);
        assert_one_spelling!(NarRequest, &bytes);
        assert_one_spelling!(NarReply, &bytes);
        assert_one_spelling!(TreeRequest, &bytes);
        assert_one_spelling!(TreeReply, &bytes);
        assert_one_spelling!(RosterRequest, &bytes);
        assert_one_spelling!(RosterReply, &bytes);
        assert_one_spelling!(JoinRequest, &bytes);
        assert_one_spelling!(JoinReply, &bytes);
        assert_one_spelling!(LogRequest, &bytes);
        assert_one_spelling!(LogReply, &bytes);
        assert_one_spelling!(RealisationRequest, &bytes);
        assert_one_spelling!(RealisationReply, &bytes);
        assert_one_spelling!(DialRequest, &bytes);
        assert_one_spelling!(DialReply, &bytes);
        assert_one_spelling!(Summary, &bytes);
        assert_one_spelling!(SummaryDelta, &bytes);
        prop_assert!(Envelope::open(&bytes).is_err());
    }

    #[test]
    fn changed_bytes_never_panic(
        request in any_gossip_request(),
        reply in any_gossip_reply(),
        summary in any_summary(),
        delta in any_delta(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let changed = |mut bytes: Vec<u8>| {
            for (at, byte) in &changes {
                // Most of a summary is its filter; the interesting bytes come before it.
                let at = at.index(bytes.len().min(200));
                bytes[at] = *byte;
            }
            bytes
        };
        assert_one_spelling!(GossipRequest, &changed(request.encode().unwrap()));
        assert_one_spelling!(GossipReply, &changed(reply.encode().unwrap()));
        assert_one_spelling!(Summary, &changed(summary.encode().unwrap()));
        assert_one_spelling!(SummaryDelta, &changed(delta.encode().unwrap()));
    }
}

fn summary() -> Summary {
    Summary { hash_id: HASH_ID_V1, items: 0, audience: vec![], addresses: vec![], filter_bytes: vec![0; 1_024] }
}

fn delta() -> SummaryDelta {
    SummaryDelta { base_seq: 0, items: 0, positions: vec![], audience: None, addresses: None }
}

fn audience(count: u64) -> Vec<AudienceDigest> {
    (0..count).map(|at| AudienceDigest(at.to_be_bytes())).collect()
}

#[test]
fn summaries_out_of_bounds_are_refused() {
    let decode = |summary: Summary| Summary::decode(&summary.encode().unwrap());
    assert!(decode(Summary { audience: audience(2_048), ..summary() }).is_ok());
    let too_many = decode(Summary { audience: audience(2_049), ..summary() });
    assert!(matches!(too_many, Err(SummaryError::TooMany { field: "audience", count: 2_049, count_max: 2_048 })));
    let address = SocketAddr::from(([192, 0, 2, 1], 1));
    let too_many = decode(Summary { addresses: vec![address; 9], ..summary() });
    assert!(matches!(too_many, Err(SummaryError::TooMany { field: "addresses", count: 9, count_max: 8 })));
    let twice = vec![AudienceDigest([1; 8]); 2];
    let order = decode(Summary { audience: twice, ..summary() });
    assert!(matches!(order, Err(SummaryError::Order { field: "audience" })));
    let unknown = decode(Summary { hash_id: 2, ..summary() });
    assert!(matches!(unknown, Err(SummaryError::UnknownHashId { hash_id: 2 })));
    let odd = decode(Summary { filter_bytes: vec![0; 1_025], ..summary() });
    assert!(matches!(odd, Err(SummaryError::Filter(_))));
    let dense = decode(Summary { filter_bytes: vec![0xff; 1_024], ..summary() }).unwrap();
    assert!(matches!(dense.filter(), Err(SummaryError::Filter(_))));
    assert!(matches!(Summary { filter_bytes: vec![0; 3 << 20], ..summary() }.encode(), Err(SummaryError::Codec(_))));
}

#[test]
fn deltas_out_of_bounds_are_refused() {
    let decode = |delta: SummaryDelta| SummaryDelta::decode(&delta.encode().unwrap());
    assert!(decode(SummaryDelta { positions: (0..48_000).collect(), ..delta() }).is_ok());
    let too_many = decode(SummaryDelta { positions: (0..48_001).collect(), ..delta() });
    assert!(matches!(too_many, Err(SummaryError::TooMany { field: "positions", .. })));
    for positions in [vec![2, 1], vec![1, 1], vec![u32::MAX, u32::MAX]] {
        let order = SummaryDelta { positions, ..delta() }.encode();
        assert!(matches!(order, Err(SummaryError::Order { field: "positions" })));
    }
    assert!(decode(SummaryDelta { positions: vec![0, 127, 256, u32::MAX], ..delta() }).is_ok());
    for gaps in
        [&[0x80][..], &[0x80, 0], &[0xff; 6], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[0xff, 0xff, 0xff, 0xff, 0x0f, 0]]
    {
        // The fields are base_seq, items, length and bytes of the gaps, no audience, no addresses.
        let bytes = [&[0; 16], &(gaps.len() as u64).to_le_bytes()[..], gaps, &[0, 0]].concat();
        assert!(matches!(SummaryDelta::decode(&bytes), Err(SummaryError::Gap)), "{gaps:x?}");
    }
    let outside = SummaryDelta { positions: vec![8_192], ..delta() };
    let outside = outside.apply(&summary(), 0);
    assert!(matches!(outside, Err(SummaryError::Position { position: 8_192, bits: 8_192 })));
    let audience = decode(SummaryDelta { audience: Some(audience(2_049)), ..delta() });
    assert!(matches!(audience, Err(SummaryError::TooMany { field: "audience", .. })));
}

#[test]
fn summary_admits_only_its_audience() {
    let [inside, outside] = [1, 2].map(|seed| Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id());
    let summary = Summary { audience: vec![AudienceDigest::of(&inside)], ..summary() };
    assert!(summary.admits(&inside) && !summary.admits(&outside));
}

#[test]
fn the_largest_messages_fit_their_limits() {
    let largest = Summary { audience: audience(2_048), filter_bytes: vec![0; 2 << 20], ..summary() };
    let body = Summary { addresses: vec![SocketAddr::from((Ipv6Addr::LOCALHOST, 1)); 8], ..largest }.encode().unwrap();
    assert!(Summary::decode(&body).is_ok());
    assert!(GossipReply::decode(&GossipReply::Body(body).encode().unwrap()).is_ok());
    let announcement = Announcement {
        generation: Generation { epoch: u64::MAX, seq: u64::MAX },
        path_count: u64::MAX,
        body_digest: [0xff; 32],
        body_bytes: u32::MAX,
        lifetime_s: u32::MAX,
        issued_at_ms: u64::MAX,
    };
    let sealed = Envelope::seal(&Keypair::ed25519_from_bytes([1; 32]).unwrap(), announcement).unwrap();
    assert!(sealed.as_bytes().len() <= Envelope::BYTES_MAX);
    let long = [sealed.as_bytes(), &[0; 1_000]].concat();
    assert!(matches!(Envelope::open(&long), Err(EnvelopeError::Length { .. })));
    let have = Have { owner: AudienceDigest([0; 8]), generation: announcement.generation };
    let sync = Sync {
        store_dir: "/".repeat(255),
        software: "s".repeat(255),
        yours: Some(sealed.as_bytes().to_vec()),
        have: vec![have; Sync::HAVE_MAX],
    };
    let request = GossipRequest::Sync(sync);
    assert!(GossipRequest::decode(&request.encode().unwrap()).is_ok());
    let news = vec![vec![0; Envelope::BYTES_MAX]; GossipReply::NEWS_MAX];
    let reply = GossipReply::Sync { store_dir: String::new(), software: String::new(), yours: None, news };
    assert!(GossipReply::decode(&reply.encode().unwrap()).is_ok());
}

/// Checks the example line in `docs/protocol.md`.
#[test]
fn documentation_shows_the_real_attestation_line() {
    let seed: [u8; 32] = std::array::from_fn(|at| at as u8);
    let key = NixSecretKey::from_seed("builder-1", &seed).unwrap();
    let store_dir = StoreDir::parse("/nix/store").unwrap();
    let path = |name: &str| StorePath::parse(&format!("7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-{name}")).unwrap();
    let statement = Statement {
        path: path("x"),
        nar_hash: NarHash([7; 32]),
        nar_size: 112,
        references: vec![path("a"), path("x")],
    };
    let attestation = Attestation::sign(&key, &store_dir, statement, 1_790_000_000_000);
    let header = attestation_file::header(&store_dir);
    let line = attestation_file::line(&store_dir, &key.public(), &attestation);
    let documentation = include_str!("../../../docs/protocol.md");
    assert!(documentation.contains(&format!("{header}{line}")), "{header}{line}");
}
