//! NARs whose delivery to Nix went wrong: for a while every `Range` on them is answered 404, and who lied is not asked again.
//!
//! Nix then takes the path as gone and builds it, exit code 0, without `fallback` (measured on 2.8, 2.26 and 2.34).

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use narmesh_protocol::NarHash;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::source::SourceId;

/// How long a NAR that was cut short answers no `Range`.
const CUT_SHORT_FOR: Duration = Duration::from_secs(60);
/// How long a holder that sent a wrong NAR is not asked for that NAR, and how long each source of a NAR that several sent wrong is
/// read alone.
const LIAR_FOR: Duration = Duration::from_secs(3_600);
/// Entries of each kind; beyond that the oldest expire early.
const ENTRIES_MAX: usize = 4_096;

/// What went wrong lately.
#[derive(Debug, Default)]
pub(crate) struct NarFaults {
    nars: Mutex<HashMap<NarHash, Since<()>>>,
    liars: Mutex<HashMap<(NarHash, SourceId), Since<()>>>,
    /// With the source that sent the end.
    doubtful: Mutex<HashMap<NarHash, Since<Option<SourceId>>>>,
}

impl NarFaults {
    /// A body of this NAR was closed short.
    pub(crate) fn note_cut_short(&self, nar_hash: NarHash) {
        insert(&mut self.nars.lock(), nar_hash, (), CUT_SHORT_FOR);
    }

    /// Whether a `Range` on it is to be answered 404.
    pub(crate) fn was_cut_short(&self, nar_hash: &NarHash) -> bool {
        self.nars.lock().get(nar_hash).is_some_and(|(at, ())| at.elapsed() < CUT_SHORT_FOR)
    }

    /// `source` alone sent something else under this NarHash.
    pub(crate) fn lied(&self, nar_hash: NarHash, source: SourceId) {
        insert(&mut self.liars.lock(), (nar_hash, source), (), LIAR_FOR);
    }

    /// Who is not to be asked for it.
    pub(crate) fn liars(&self, nar_hash: &NarHash) -> HashSet<SourceId> {
        let liars = self.liars.lock();
        let fresh = liars.iter().filter(|((nar, _), (at, ()))| nar == nar_hash && at.elapsed() < LIAR_FOR);
        fresh.map(|((_, source), _)| *source).collect()
    }

    /// Several sources together sent something else under this NarHash; `last` sent the end of it.
    pub(crate) fn doubt(&self, nar_hash: NarHash, last: Option<SourceId>) {
        insert(&mut self.doubtful.lock(), nar_hash, last, LIAR_FOR);
    }

    /// Whether each source of it is to be read alone.
    pub(crate) fn is_doubtful(&self, nar_hash: &NarHash) -> bool {
        self.doubtful.lock().get(nar_hash).is_some_and(|(at, _)| at.elapsed() < LIAR_FOR)
    }

    /// Of several that sent it wrong together, the one that sent its end: the least suspect.
    pub(crate) fn least_suspect(&self, nar_hash: &NarHash) -> Option<SourceId> {
        self.doubtful.lock().get(nar_hash).filter(|(at, _)| at.elapsed() < LIAR_FOR).and_then(|(_, source)| *source)
    }
}

/// Since when something is so, and what it is.
pub(crate) type Since<V> = (Instant, V);

/// Inserts with the time of now, drops what is older than `lifetime`, and the oldest of too many.
pub(crate) fn insert<K: Hash + Eq + Copy, V>(map: &mut HashMap<K, Since<V>>, key: K, value: V, lifetime: Duration) {
    map.retain(|_, (at, _)| at.elapsed() < lifetime);
    if map.len() >= ENTRIES_MAX
        && let Some(oldest) = map.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| *key)
    {
        map.remove(&oldest);
    }
    map.insert(key, (Instant::now(), value));
}
