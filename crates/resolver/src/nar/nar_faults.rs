//! NARs whose delivery to Nix went wrong. For a while every `Range` on them is answered 404, and the sources that lied
//! are not asked for them again.
//!
//! After such a 404 Nix takes the path as gone and builds it, with exit code 0 and without `fallback` (measured on 2.8,
//! 2.26 and 2.34).

use std::collections::HashSet;
use std::time::Duration;

use narmesh_protocol::NarHash;

use super::recent::Recent;
use crate::source::SourceId;

/// How long a `Range` on a NAR that was cut short is answered 404.
const CUT_SHORT_FOR: Duration = Duration::from_secs(60);
/// How long a source that sent a wrong NAR is not asked for that NAR. When several sources sent one wrong together,
/// each is read alone for this long.
const LIAR_FOR: Duration = Duration::from_secs(3_600);

/// The faults of the last while.
#[derive(Debug)]
pub(crate) struct NarFaults {
    cut_short: Recent<NarHash>,
    liars: Recent<(NarHash, SourceId)>,
    /// NARs that several sources sent wrong together, each with the source that sent its end.
    doubtful: Recent<NarHash, Option<SourceId>>,
    /// Sources that began a NAR that others ended, and whose whole was wrong.
    suspects: Recent<SourceId>,
}

impl Default for NarFaults {
    fn default() -> Self {
        Self {
            cut_short: Recent::new(CUT_SHORT_FOR),
            liars: Recent::new(LIAR_FOR),
            doubtful: Recent::new(LIAR_FOR),
            suspects: Recent::new(LIAR_FOR),
        }
    }
}

impl NarFaults {
    /// Notes that a body of this NAR was closed short.
    pub(crate) fn note_cut_short(&self, nar_hash: NarHash) {
        self.cut_short.note(nar_hash, ());
    }

    /// Whether a `Range` on this NAR has to be answered 404.
    pub(crate) fn was_cut_short(&self, nar_hash: &NarHash) -> bool {
        self.cut_short.get(nar_hash).is_some()
    }

    /// Notes that `source` alone sent something else under this NarHash.
    pub(crate) fn note_liar(&self, nar_hash: NarHash, source: SourceId) {
        self.liars.note((nar_hash, source), ());
    }

    /// The sources that must not be asked for this NAR.
    pub(crate) fn liars(&self, nar_hash: &NarHash) -> HashSet<SourceId> {
        let mut liars = HashSet::new();
        self.liars.for_each_key(|(nar, source)| liars.extend((nar == *nar_hash).then_some(source)));
        liars
    }

    /// Notes that several sources together sent something else under this NarHash; `last` sent the end of it.
    pub(crate) fn doubt(&self, nar_hash: NarHash, last: Option<SourceId>) {
        self.doubtful.note(nar_hash, last);
    }

    /// Notes that `source` sent a part of a wrong NAR and left its end to others. It proves no lie, but who sends one wrong
    /// byte and breaks off can have every NAR that it claims end wrong and is never found out. So for an hour it is asked
    /// for no NAR while others are left, and others are not raced with it.
    pub(crate) fn suspect(&self, source: SourceId) {
        self.suspects.note(source, ());
    }

    /// The sources that are under suspicion now.
    pub(crate) fn suspects(&self) -> HashSet<SourceId> {
        let mut suspects = HashSet::new();
        self.suspects.for_each_key(|source| suspects.extend([source]));
        suspects
    }

    /// Whether each source of this NAR has to be read alone.
    pub(crate) fn is_doubtful(&self, nar_hash: &NarHash) -> bool {
        self.doubtful.get(nar_hash).is_some()
    }

    /// Of the sources that sent this NAR wrong together, the one that sent its end: it is the least suspect.
    pub(crate) fn least_suspect(&self, nar_hash: &NarHash) -> Option<SourceId> {
        self.doubtful.get(nar_hash).flatten()
    }
}
