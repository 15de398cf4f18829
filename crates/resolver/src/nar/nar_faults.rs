//! NARs whose delivery to Nix went wrong. For a while every `Range` on them is answered 404, and the sources that lied
//! are not asked for them again.
//!
//! After such a 404 Nix takes the path as gone and builds it, with exit code 0 and without `fallback` (measured on 2.8,
//! 2.26 and 2.34).

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use narmesh_protocol::NarHash;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::source::SourceId;

/// How long a `Range` on a NAR that was cut short is answered 404.
const CUT_SHORT_FOR: Duration = Duration::from_secs(60);
/// How long a source that sent a wrong NAR is not asked for that NAR. When several sources sent one wrong together,
/// each is read alone for this long.
const LIAR_FOR: Duration = Duration::from_secs(3_600);
/// The most entries of each kind; beyond that, the oldest expire early.
const ENTRIES_MAX: usize = 4_096;

/// The faults of the last while.
#[derive(Debug, Default)]
pub(crate) struct NarFaults {
    nars: Mutex<HashMap<NarHash, Since<()>>>,
    liars: Mutex<HashMap<(NarHash, SourceId), Since<()>>>,
    /// NARs that several sources sent wrong together, each with the source that sent its end.
    doubtful: Mutex<HashMap<NarHash, Since<Option<SourceId>>>>,
    /// Sources that began a NAR that others ended, and whose whole was wrong.
    suspects: Mutex<HashMap<SourceId, Since<()>>>,
}

impl NarFaults {
    /// Notes that a body of this NAR was closed short.
    pub(crate) fn note_cut_short(&self, nar_hash: NarHash) {
        insert(&mut self.nars.lock(), nar_hash, (), CUT_SHORT_FOR);
    }

    /// Whether a `Range` on this NAR has to be answered 404.
    pub(crate) fn was_cut_short(&self, nar_hash: &NarHash) -> bool {
        self.nars.lock().get(nar_hash).is_some_and(|(at, ())| at.elapsed() < CUT_SHORT_FOR)
    }

    /// Notes that `source` alone sent something else under this NarHash.
    pub(crate) fn note_liar(&self, nar_hash: NarHash, source: SourceId) {
        insert(&mut self.liars.lock(), (nar_hash, source), (), LIAR_FOR);
    }

    /// The sources that must not be asked for this NAR.
    pub(crate) fn liars(&self, nar_hash: &NarHash) -> HashSet<SourceId> {
        let liars = self.liars.lock();
        let fresh = liars.iter().filter(|((nar, _), (at, ()))| nar == nar_hash && at.elapsed() < LIAR_FOR);
        fresh.map(|((_, source), _)| *source).collect()
    }

    /// Notes that several sources together sent something else under this NarHash; `last` sent the end of it.
    pub(crate) fn doubt(&self, nar_hash: NarHash, last: Option<SourceId>) {
        insert(&mut self.doubtful.lock(), nar_hash, last, LIAR_FOR);
    }

    /// Notes that `source` sent a part of a wrong NAR and left its end to others. It proves no lie, but who sends one wrong
    /// byte and breaks off can have every NAR that it claims end wrong and is never found out. So for an hour it is asked
    /// for no NAR while others are left, and others are not raced with it.
    pub(crate) fn suspect(&self, source: SourceId) {
        insert(&mut self.suspects.lock(), source, (), LIAR_FOR);
    }

    /// The sources that are under suspicion now.
    pub(crate) fn suspects(&self) -> HashSet<SourceId> {
        let suspects = self.suspects.lock();
        suspects.iter().filter(|(_, (at, ()))| at.elapsed() < LIAR_FOR).map(|(source, _)| *source).collect()
    }

    /// Whether each source of this NAR has to be read alone.
    pub(crate) fn is_doubtful(&self, nar_hash: &NarHash) -> bool {
        self.doubtful.lock().get(nar_hash).is_some_and(|(at, _)| at.elapsed() < LIAR_FOR)
    }

    /// Of the sources that sent this NAR wrong together, the one that sent its end: it is the least suspect.
    pub(crate) fn least_suspect(&self, nar_hash: &NarHash) -> Option<SourceId> {
        self.doubtful.lock().get(nar_hash).filter(|(at, _)| at.elapsed() < LIAR_FOR).and_then(|(_, source)| *source)
    }
}

/// A value and when it was noted.
pub(crate) type Since<V> = (Instant, V);

/// Inserts a value with the current time; drops what is older than `lifetime`, and the oldest entry if there are too
/// many.
pub(crate) fn insert<K: Hash + Eq + Copy, V>(map: &mut HashMap<K, Since<V>>, key: K, value: V, lifetime: Duration) {
    map.retain(|_, (at, _)| at.elapsed() < lifetime);
    if map.len() >= ENTRIES_MAX
        && let Some(oldest) = map.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| *key)
    {
        map.remove(&oldest);
    }
    map.insert(key, (Instant::now(), value));
}
