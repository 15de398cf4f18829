//! Nanoseconds per lookup with 1, 100 and 1,000 peers of 100,000 paths each, through the core's public API:
//! `cargo run --release -p narmesh-gossip --example lookup [PATHS]`. Seeded, so the filters are the same each time.
#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "an example measures real time and prints it")]

use libp2p_identity::{Keypair, PeerId};
use narmesh_gossip::{Gossip, GossipConfig, Input, Moment, Now, Output, Persisted};
use narmesh_protocol::wire::{GossipReply, GossipRequest};
use narmesh_protocol::{
    Announcement, AudienceDigest, BitPositions, Envelope, FilterClass, Generation, HASH_ID_V1, HashPart, StoreDir,
    Summary,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::hint::black_box;
use std::time::Instant;

const NOW: Now = Now { moment: Moment(1), wall_ms: 1_795_219_200_000 };

fn part(rng: &mut ChaCha8Rng) -> HashPart {
    let mut bytes = [0; 20];
    rng.fill_bytes(&mut bytes);
    HashPart(bytes)
}

fn keypair(number: u32) -> Keypair {
    let mut secret = [5; 32];
    secret.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
    Keypair::ed25519_from_bytes(secret).expect("32 bytes are a key")
}

/// An envelope and its body.
fn summary(
    keypair: &Keypair,
    me: &PeerId,
    class: FilterClass,
    paths: u64,
    rng: &mut ChaCha8Rng,
) -> (Envelope, Vec<u8>) {
    let mut filter_bytes = vec![0u8; class.bytes()];
    for _ in 0..paths {
        for bit in BitPositions::of(&part(rng)).in_class(class) {
            if let Some(byte) = filter_bytes.get_mut(bit as usize / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
    let audience = vec![AudienceDigest::of(me)];
    let body = Summary { hash_id: HASH_ID_V1, items: paths, audience, addresses: vec![], filter_bytes };
    let body = body.encode().expect("within the limits");
    let announcement = Announcement {
        generation: Generation { epoch: NOW.wall_ms, seq: 0 },
        path_count: paths,
        body_digest: Summary::digest(&body),
        body_bytes: u32::try_from(body.len()).expect("within the limits"),
        lifetime_s: 14_400,
        issued_at_ms: NOW.wall_ms,
    };
    (Envelope::seal(keypair, announcement).expect("an Ed25519 key"), body)
}

/// A core that holds the summaries of `peers` peers, and the longest time that one installation took, milliseconds.
fn loaded(peers: u32, paths: u64, class: FilterClass) -> (Gossip, f64) {
    let me = keypair(0).public().to_peer_id();
    let store_dir = StoreDir::parse("/nix/store").expect("a store directory");
    let mut gossip =
        Gossip::new(NOW, GossipConfig::new(keypair(0), store_dir, "lookup", [1; 32]), Persisted::default());
    let keys: Vec<_> = (1..=peers).map(keypair).collect();
    gossip.handle(NOW, Input::Allowlist(keys.iter().map(|key| key.public().to_peer_id()).collect()));
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut slowest_ms = 0f64;
    for key in &keys {
        let peer = key.public().to_peer_id();
        let (envelope, body) = summary(key, &me, class, paths, &mut rng);
        gossip.handle(NOW, Input::Connected(peer));
        gossip
            .handle(NOW, Input::Announcement { id: 0, author: peer, from: peer, bytes: envelope.as_bytes().to_vec() });
        let outputs: Vec<_> = std::iter::from_fn(|| gossip.poll()).collect();
        for output in outputs {
            if let Output::Request { to, id, bytes } = output
                && matches!(GossipRequest::decode(&bytes), Ok(GossipRequest::Pull { .. }))
            {
                let bytes = GossipReply::Body(body.clone()).encode().expect("within the limits");
                let begun = Instant::now();
                gossip.handle(NOW, Input::Response { from: to, id, bytes });
                slowest_ms = slowest_ms.max(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
        while gossip.poll().is_some() {}
        gossip.handle(NOW, Input::Disconnected(peer));
    }
    (gossip, slowest_ms)
}

fn main() {
    let paths: u64 = std::env::args().nth(1).and_then(|paths| paths.parse().ok()).unwrap_or(100_000);
    for peers in [1, 100, 1_000] {
        let class = FilterClass::for_items(paths, 0.025 / f64::from(peers)).expect("fits the largest filter");
        let begun = Instant::now();
        let (gossip, slowest_ms) = loaded(peers, paths, class);
        let loading_s = begun.elapsed().as_secs_f64();
        let table = gossip.table();
        assert_eq!(table.peers(), peers as usize, "every summary was accepted");
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let absent: Vec<_> = (0..20_000).map(|_| part(&mut rng)).collect();
        let mut rounds: Vec<f64> = (0..9)
            .map(|_| {
                let begun = Instant::now();
                for part in &absent {
                    black_box(table.find_candidates(black_box(part)));
                }
                begun.elapsed().as_secs_f64() * 1e9 / absent.len() as f64
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        let median = rounds.get(rounds.len() / 2).copied().unwrap_or_default();
        let (fastest, slowest) =
            (rounds.first().copied().unwrap_or_default(), rounds.last().copied().unwrap_or_default());
        let false_hits: usize = absent.iter().map(|part| table.find_candidates(part).len()).sum();
        println!(
            "{peers:>5} peers, {} KiB each: {median:>6.0} ns a lookup ({fastest:.0} to {slowest:.0}), {:.4} false hits a lookup, \
             table {:.1} MiB = {:.3} of the filters, slowest installation {slowest_ms:.1} ms, loaded in {loading_s:.1} s",
            class.bytes() / 1_024,
            false_hits as f64 / absent.len() as f64,
            table.memory_bytes() as f64 / f64::from(1 << 20),
            table.memory_bytes() as f64 / (class.bytes() as f64 * f64::from(peers)),
        );
    }
}
