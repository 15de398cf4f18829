//! The table of filters alone: lookups over a thousand peers, its memory, and what the installation of a filter costs those
//! who look paths up.

use crate::row::{Beside, Planned, Target};
use crate::subject::{Bench, Report, Subject};
use anyhow::{bail, ensure};
use libp2p::PeerId;
use libp2p::identity::Keypair;
use narmesh_gossip::{FilterTable, Gossip, GossipConfig, Input, Moment, Now, Output, Persisted};
use narmesh_protocol::wire::{GossipReply, GossipRequest};
use narmesh_protocol::{
    Announcement, AudienceDigest, BitPositions, Envelope, Filter, FilterClass, Generation, HASH_ID_V1, HashPart,
    StoreDir, Summary,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const PEERS: u32 = 1_000;
const PATHS: u64 = 100_000;
/// Lookups in one round, for paths that nobody has. The naive loop does a hundredth of them.
const LOOKUPS: usize = 20_000;
/// Filters installed in one round.
const INSTALLATIONS: u32 = 20;
const NOW: Now = Now { moment: Moment(1), wall_ms: 1_795_219_200_000 };

/// A thousand peers with 100,000 paths each, in one gossip core.
#[derive(Debug)]
pub(super) struct Table;

impl Subject for Table {
    fn planned(&self) -> Vec<Planned> {
        let heavy = "half a minute and 1 GB";
        let lookup = "one lookup in the filters of 1,000 peers with 100,000 paths each";
        let memory = "memory of that table, of the filters' bits";
        let pause = "the longest of all lookups while one peer's new filter is installed";
        vec![
            Planned::new("table/lookup", "us", lookup).target(Target::AtMost(2.0)).heavy(heavy),
            Planned::new("table/memory", "times", memory).target(Target::AtMost(1.2)).heavy(heavy),
            Planned::new("table/installation-pause", "us", pause).target(Target::AtMost(100.0)).heavy(heavy),
        ]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        crate::progress("filling a table with the filters of 1,000 peers");
        let mut loaded = Loaded::new()?;
        let table = loaded.gossip.table();
        let filters_bytes = loaded.class.bytes() as f64 * f64::from(PEERS);
        let (mut ours, mut naive, mut busy, mut calm) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 1..=bench.rounds {
            let absent: Vec<_> = (0..LOOKUPS).map(|_| part(&mut loaded.rng)).collect();
            ours.push(us_each(&absent, |part| drop(black_box(table.find_candidates(part)))));
            let few = absent.get(..LOOKUPS / 100).unwrap_or_default();
            naive.push(us_each(few, |part| {
                let positions = BitPositions::of(part);
                black_box(loaded.filters.iter().filter(|filter| filter.may_contain(&positions)).count());
            }));
            let (installing, waiting) = loaded.pauses(&table, round as u64)?;
            busy.push(installing);
            calm.push(waiting);
        }
        report.figure("table/lookup", &ours, Some(Beside::new("one filter after the other", naive)));
        report.figure("table/memory", &[table.memory_bytes() as f64 / filters_bytes], None);
        report.figure("table/installation-pause", &busy, Some(Beside::new("nothing installed", calm)));
        Ok(())
    }
}

fn us_each(parts: &[HashPart], mut look: impl FnMut(&HashPart)) -> f64 {
    let begun = Instant::now();
    parts.iter().for_each(|part| look(black_box(part)));
    begun.elapsed().as_secs_f64() * 1e6 / parts.len() as f64
}

fn part(rng: &mut ChaCha8Rng) -> HashPart {
    let mut bytes = [0; 20];
    rng.fill_bytes(&mut bytes);
    HashPart(bytes)
}

/// A core with a full table.
struct Loaded {
    gossip: Gossip,
    me: PeerId,
    keys: Vec<Keypair>,
    class: FilterClass,
    filters: Vec<Filter>,
    rng: ChaCha8Rng,
}

impl Loaded {
    fn new() -> anyhow::Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let class = FilterClass::for_items(PATHS, 0.025 / f64::from(PEERS)).expect("fits the largest filter");
        let own = Keypair::generate_ed25519();
        let me = own.public().to_peer_id();
        let keys: Vec<_> = (0..PEERS).map(|_| Keypair::generate_ed25519()).collect();
        let config = GossipConfig::new(own, StoreDir::parse("/nix/store")?, "bench", [1; 32]);
        let mut gossip = Gossip::new(NOW, config, Persisted::default());
        gossip.handle(NOW, Input::Allowlist(keys.iter().map(|key| key.public().to_peer_id()).collect()));
        let mut bytes = vec![0u8; class.bytes()];
        for _ in 0..PATHS {
            for bit in BitPositions::of(&part(&mut rng)).in_class(class) {
                if let Some(byte) = bytes.get_mut(bit as usize / 8) {
                    *byte |= 1 << (bit % 8);
                }
            }
        }
        let mut loaded = Self { gossip, me, keys, class, filters: Vec::new(), rng };
        for number in 0..PEERS as usize {
            // As dense as the first one, but with other bits set.
            bytes.rotate_left(101);
            loaded.filters.push(Filter::from_bytes(bytes.clone())?);
            loaded.install(number, 0)?;
        }
        ensure!(loaded.gossip.table().peers() == PEERS as usize, "not every summary was accepted");
        Ok(loaded)
    }

    /// Announces a filter of this peer and hands it over. Returns how long the core took to install it.
    fn install(&mut self, number: usize, later: u64) -> anyhow::Result<Duration> {
        // In later rounds the peer gets another peer's filter: the core would know the same one by its digest, and not pull
        // it.
        let filter = (number + 37 * usize::try_from(later)?) % PEERS as usize;
        let (Some(key), Some(filter)) = (self.keys.get(number), self.filters.get(filter)) else {
            bail!("there are {PEERS} peers, not {number}")
        };
        let peer = key.public().to_peer_id();
        let body = Summary {
            hash_id: HASH_ID_V1,
            items: PATHS,
            audience: vec![AudienceDigest::of(&self.me)],
            addresses: vec![],
            filter_bytes: filter.as_bytes().to_vec(),
        };
        let body = body.encode()?;
        let announcement = Announcement {
            generation: Generation { epoch: NOW.wall_ms + later, seq: 0 },
            path_count: PATHS,
            body_digest: Summary::digest(&body),
            body_bytes: u32::try_from(body.len())?,
            lifetime_s: 14_400,
            issued_at_ms: NOW.wall_ms,
        };
        let bytes = Envelope::seal(key, announcement)?.as_bytes().to_vec();
        self.gossip.handle(NOW, Input::Connected(peer));
        self.gossip.handle(NOW, Input::Announcement { id: 0, author: peer, from: peer, bytes });
        let outputs: Vec<_> = std::iter::from_fn(|| self.gossip.poll()).collect();
        let mut took = Duration::ZERO;
        for output in outputs {
            if let Output::Request { to, id, bytes } = output
                && matches!(GossipRequest::decode(&bytes), Ok(GossipRequest::Pull { .. }))
            {
                let bytes = GossipReply::Body(body.clone()).encode()?;
                let begun = Instant::now();
                self.gossip.handle(NOW, Input::Response { from: to, id, bytes });
                took += begun.elapsed();
            }
        }
        while self.gossip.poll().is_some() {}
        self.gossip.handle(NOW, Input::Disconnected(peer));
        while self.gossip.poll().is_some() {}
        Ok(took)
    }

    /// The longest lookup of another thread while a filter is installed, and in an equally long time without an
    /// installation: medians over the installations, microseconds.
    fn pauses(&mut self, table: &Arc<FilterTable>, later: u64) -> anyhow::Result<(f64, f64)> {
        let (longest_ns, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let reader = std::thread::spawn({
            let (table, longest_ns, stop) = (Arc::clone(table), Arc::clone(&longest_ns), Arc::clone(&stop));
            let mut rng = ChaCha8Rng::seed_from_u64(8);
            move || {
                while !stop.load(Relaxed) {
                    let wanted = part(&mut rng);
                    let begun = Instant::now();
                    black_box(table.find_candidates(&wanted));
                    longest_ns.fetch_max(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX), Relaxed);
                }
            }
        });
        let (mut busy, mut calm) = (Vec::new(), Vec::new());
        for number in 0..INSTALLATIONS as usize {
            longest_ns.store(0, Relaxed);
            let took = self.install(number, later)?;
            busy.push(longest_ns.swap(0, Relaxed) as f64 / 1e3);
            ensure!(took > Duration::ZERO, "nothing was installed");
            std::thread::sleep(took);
            calm.push(longest_ns.swap(0, Relaxed) as f64 / 1e3);
        }
        stop.store(true, Relaxed);
        reader.join().ok();
        Ok((median(busy), median(calm)))
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}
