//! The examples in `docs/protocol.md`, checked against this second implementation.

use crate::filter::{filter, positions, set};
use crate::formats::{from_nix32, nix32};
use crate::log_wire::{
    LOG_ABSENT, LOG_BUSY, LogPart, LogRequest, REALISATION_ABSENT, REALISATION_BUSY, realisation_found,
    realisation_request,
};
use crate::tree_wire::{LEAF, TreeRequest, signed_tree};
use crate::wire::{
    Address, Announcement, Delta, GossipReply, GossipRequest, Have, NarRequest, Summary, audience_digest, found,
    nar_chunks, nar_head, sha256,
};
use libp2p::PeerId;
use libp2p::identity::Keypair;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect()
}

fn keys() -> Keypair {
    let seed: Vec<u8> = (0..32).collect();
    Keypair::ed25519_from_bytes(seed).unwrap()
}

fn owner() -> PeerId {
    keys().public().to_peer_id()
}

fn part() -> [u8; 20] {
    from_nix32("7h7qgvs4kgzsn8a6rb273saxyqh4jxlz").try_into().unwrap()
}

fn summary() -> Summary {
    let v6 = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    Summary {
        hash_id: 1,
        items: 1,
        audience: vec![audience_digest(&owner())],
        addresses: vec![Address::V4([192, 0, 2, 1], 7_280), Address::V6(v6, 7_280)],
        filter_bytes: filter(&[part()], 13),
    }
}

#[test]
fn the_examples_of_identity_and_hash_parts_match() {
    assert_eq!(owner().to_string(), "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB");
    assert_eq!(hex(&audience_digest(&owner())), "a85d6ad08b1109f4");
    assert_eq!(hex(&part()), "9f764920f65de971c4ca4621abff9b44ef870f3c");
    assert_eq!(nix32(&part()), "7h7qgvs4kgzsn8a6rb273saxyqh4jxlz");
}

#[test]
fn the_examples_of_filters_match() {
    assert_eq!(positions(&part(), 13), [3011, 1327, 5665, 6992, 127, 1454, 2781, 4108, 5435, 6762, 8089]);
    let wide = [109_507, 83_247, 13_857, 97_104, 180_351, 1_454, 84_701, 167_948, 251_195, 72_298, 155_545];
    assert_eq!(positions(&part(), 18), wide);
}

#[test]
fn the_examples_of_summaries_and_deltas_match() {
    let body = summary().encode();
    assert_eq!(body.len(), 1_100);
    assert_eq!(hex(&sha256(&body)), "9172f52efaa3157f07703a0375463e98495dbe8343c03cff2c4bcde3d5477dc0");
    let delta = Delta {
        base_seq: 0,
        items: 2,
        positions: vec![3, 8_191],
        audience: None,
        addresses: Some(vec![Address::V4([192, 0, 2, 1], 7_280)]),
    };
    let bytes = "0000000000000000 0200000000000000 0200000000000000 03000000 ff1f0000 00 01 0100000000000000 00000000 c0000201 701c";
    assert_eq!(hex(&delta.encode()), squeezed(bytes));
    let mut next = Summary { items: 2, addresses: delta.addresses.unwrap(), ..summary() };
    set(&mut next.filter_bytes, &delta.positions);
    assert_eq!(hex(&sha256(&next.encode())), "d8f6729e9398ade814ca48d8c364149a2888e27358e803a75ce7dc489892a4d4");
}

#[test]
fn the_examples_of_envelopes_match() {
    let body = summary().encode();
    let announcement = Announcement {
        epoch: 1_790_000_000_000,
        seq: 0,
        path_count: 1,
        body_digest: sha256(&body),
        body_bytes: 1_100,
        lifetime_s: 14_400,
        issued_at_ms: 1_790_000_000_000,
    };
    let envelope = announcement.seal(&keys());
    assert_eq!(envelope.len(), 169);
    assert_eq!(Announcement::decode(&announcement.encode()).unwrap(), announcement);
    assert_eq!(crate::wire::open_envelope(&envelope).unwrap().1, announcement);
    let signature = "af46f9f42d5ca4572c03dd4fdd0e2a1e7a895b329238402e6cfa539a6b054e1519b9b1bf571313eccc616e14f9c40376627487762f4eb6427e58766a333ca70e";
    assert_eq!(hex(&envelope[33..97]), signature);
}

#[test]
fn the_examples_of_gossip_messages_match() {
    let have = Have { owner: audience_digest(&owner()), epoch: 1_790_000_000_000, seq: 0 };
    let (store_dir, software) = ("/nix/store".to_owned(), "x/1".to_owned());
    let sync =
        GossipRequest::Sync { store_dir: store_dir.clone(), software: software.clone(), yours: None, have: vec![have] };
    let bytes = "00000000 0a00000000000000 2f6e69782f73746f7265 0300000000000000 782f31 00 0100000000000000 a85d6ad08b1109f4 006c50c4a0010000 0000000000000000";
    assert_eq!(hex(&sync.encode()), squeezed(bytes));
    let reply = GossipReply::Sync { store_dir, software, yours: None, news: Vec::new() };
    let bytes = "00000000 0a00000000000000 2f6e69782f73746f7265 0300000000000000 782f31 00 0000000000000000";
    assert_eq!(hex(&reply.encode()), squeezed(bytes));
    assert_eq!(GossipReply::decode(&reply.encode()).unwrap(), reply);
    let differs = GossipReply::StoreDirDiffers { store_dir: "/gnu/store".to_owned() };
    assert_eq!(hex(&differs.encode()), squeezed("01000000 0a00000000000000 2f676e752f73746f7265"));
    let pull = GossipRequest::Pull { owner: have.owner, epoch: have.epoch, seq: 2, have_seq: Some(0) };
    let bytes = "01000000 a85d6ad08b1109f4 006c50c4a0010000 0200000000000000 01 0000000000000000";
    assert_eq!(hex(&pull.encode()), squeezed(bytes));
    assert_eq!(hex(&GossipReply::Body(vec![0xaa, 0xbb]).encode()), squeezed("02000000 0200000000000000 aabb"));
    assert_eq!(hex(&GossipReply::Delta(vec![0xaa, 0xbb]).encode()), squeezed("03000000 0200000000000000 aabb"));
    assert_eq!(hex(&GossipReply::Absent.encode()), "04000000");
    assert_eq!(hex(&GossipReply::Busy.encode()), "05000000");
}

#[test]
fn the_examples_of_trees_match() {
    let nar: Vec<u8> = (0..33 * LEAF).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let request = TreeRequest { hash_part: part(), nar_hash: sha256(&nar), nar_size: nar.len() as u64 };
    let bytes = "9f764920f65de971c4ca4621abff9b44ef870f3c 2509259ebcabf1e20903dff78ded8bc8f5a590e5a9c2b4d1400d9d469c35f7c5 0000840000000000";
    assert_eq!(hex(&request.encode()), squeezed(bytes));
    let root = "7a5553169cb4f356b8391598ac5409531aba37fccbd142d3647234dfea96679e";
    assert_eq!(hex(blake3::hash(&nar).as_bytes()), root);
    let signature = "47b139226ee77688ef5eeede864872a8810129201ba7f51be21ed84b8b0f228732042b0da468b2a4bcadd51a5f6f33094f32a1f0795c1b7e5f497d308d69370b";
    let first = "69febc864103726f98eba5f7437ed4da193c9d6cb02d46036729c1ea9dc3ffad";
    let reply = signed_tree(&keys(), &request, &nar);
    assert_eq!(hex(&reply[..108]), squeezed(&format!("02000000 {signature} 2100000000000000 {first}")));
    assert_eq!(reply.len(), 76 + 33 * 32);
}

#[test]
fn the_examples_of_logs_match() {
    let request = LogRequest { derivation: part(), offset: 65_536 };
    let bytes = "9f764920f65de971c4ca4621abff9b44ef870f3c 0000010000000000";
    assert_eq!(hex(&request.encode()), squeezed(bytes));
    assert_eq!(LogRequest::decode(&request.encode()), Some(request));
    let reply = LogPart { is_compressed: true, size_bytes: 3, version: 7, bytes: vec![0xaa, 0xbb, 0xcc] };
    let bytes = "01000000 01 0300000000000000 0700000000000000 0300000000000000 aabbcc";
    assert_eq!(hex(&reply.encode()), squeezed(bytes));
    assert_eq!(LogPart::decode(&reply.encode()), Some(reply));
    assert_eq!((hex(&LOG_ABSENT), hex(&LOG_BUSY)), (squeezed("00000000"), squeezed("02000000")));
}

#[test]
fn the_examples_of_realisations_match() {
    let request = format!("{} 0300000000000000 6f7574", "01".repeat(32));
    assert_eq!(hex(&realisation_request(&[1; 32], "out")), squeezed(&request));
    assert_eq!(hex(&realisation_found(b"{}")), squeezed("01000000 0200000000000000 7b7d"));
    assert_eq!((hex(&REALISATION_ABSENT), hex(&REALISATION_BUSY)), (squeezed("00000000"), squeezed("02000000")));
}

#[test]
fn the_examples_of_narinfo_and_nar_messages_match() {
    assert_eq!(hex(&found(b"StorePath: ")), squeezed("01000000 0b00000000000000 53746f7265506174683a20"));
    let (hash_part, nar_hash, nar_size) = (part(), [0x11; 32], 120);
    let (accept_zstd, passes_on, referral) = (false, true, 1);
    let request = NarRequest { hash_part, nar_hash, nar_size, offset: 0, end: 120, accept_zstd, passes_on, referral };
    assert_eq!(request.encode().len(), 82);
    let rest = "7800000000000000 0000000000000000 7800000000000000 00 01 01000000";
    assert_eq!(hex(&request.encode()[52..]), squeezed(rest));
    assert_eq!(hex(&nar_head(false)), squeezed("05000000 00000000 00"));
    assert_eq!(hex(&nar_head(true)), squeezed("05000000 00000000 01"));
    assert_eq!(hex(&crate::wire::nar_absent()), squeezed("04000000 01000000"));
    assert_eq!(hex(&crate::wire::nar_not_now(3, 2_000)), squeezed("0c000000 02000000 03000000 d0070000"));
    assert_eq!(
        hex(&crate::wire::nar_others(&[[7; 8]])),
        squeezed("14000000 03000000 0100000000000000 0707070707070707")
    );
    assert_eq!(
        (hex(&crate::wire::DIAL_BULK), hex(&crate::wire::DIALLING)),
        (squeezed("00000000"), squeezed("00000000"))
    );
    assert_eq!(hex(&crate::wire::DIALS_NOT), squeezed("01000000"));
    assert_eq!(hex(&nar_chunks(&[0xaa, 0xbb, 0xcc])), squeezed("03000000 aabbcc"));
}
