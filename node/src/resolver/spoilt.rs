//! NARs whose delivery to Nix went wrong: for a while every `Range` on them is answered 404, and who lied is not asked again.
//!
//! Nix then takes the path as gone and builds it, exit code 0, without `fallback` (measured on 2.8, 2.26 and 2.34).

use libp2p::PeerId;
use narmesh_protocol::NarHash;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long a spoilt NAR answers no `Range`.
const SPOILT_FOR: Duration = Duration::from_secs(60);
/// How long a holder that sent a wrong NAR is not asked for that NAR.
const LIAR_FOR: Duration = Duration::from_secs(3_600);
/// Entries of each kind; beyond that the oldest expire early.
const ENTRIES_MAX: usize = 4_096;

/// Both records.
#[derive(Debug, Default)]
pub(crate) struct Spoilt {
    nars: Mutex<HashMap<NarHash, Instant>>,
    liars: Mutex<HashMap<(NarHash, PeerId), Instant>>,
}

impl Spoilt {
    /// A body of this NAR was closed short.
    pub(crate) fn spoil(&self, nar_hash: NarHash) {
        insert(&mut self.nars.lock(), nar_hash, SPOILT_FOR);
    }

    /// Whether a `Range` on it is to be answered 404.
    pub(crate) fn is_spoilt(&self, nar_hash: &NarHash) -> bool {
        self.nars.lock().get(nar_hash).is_some_and(|at| at.elapsed() < SPOILT_FOR)
    }

    /// `peer` sent something else under this NarHash.
    pub(crate) fn lied(&self, nar_hash: NarHash, peer: PeerId) {
        insert(&mut self.liars.lock(), (nar_hash, peer), LIAR_FOR);
    }

    /// Who is not to be asked for it.
    pub(crate) fn liars(&self, nar_hash: &NarHash) -> HashSet<PeerId> {
        let liars = self.liars.lock();
        let fresh = liars.iter().filter(|((nar, _), at)| nar == nar_hash && at.elapsed() < LIAR_FOR);
        fresh.map(|((_, peer), _)| *peer).collect()
    }
}

/// Inserts with the time of now, drops what is older than `lifetime`, and the oldest of too many.
pub(super) fn insert<K: std::hash::Hash + Eq + Copy>(map: &mut HashMap<K, Instant>, key: K, lifetime: Duration) {
    map.retain(|_, at| at.elapsed() < lifetime);
    if map.len() >= ENTRIES_MAX
        && let Some(oldest) = map.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
    {
        map.remove(&oldest);
    }
    map.insert(key, Instant::now());
}
