//! Peers whose filters misled us: a path counts once per peer, however often the peer is asked for it, and a peer that
//! misled us too often is asked at a bounded pace.

use crate::nar::Recent;
use crate::source::SourceId;
use narmesh_machine::{Bucket, Moment, Tokens};
use narmesh_protocol::HashPart;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The same answer is not counted again for this long; a collected path leaves its holder's filter well before that.
const COUNTED_FOR: Duration = Duration::from_secs(60);

/// The most questions that one demoted peer gets. A build asks for some dozens of paths that only one peer has. Each false
/// claim costs a round trip, so a filter that claims far more than its peer holds must not cost one for every path that
/// Nix looks up.
const DEMOTED: Bucket = Bucket { burst: 64, per_s: 1 };

/// The answers counted lately, and what each demoted peer may still be asked.
#[derive(Debug)]
pub(crate) struct FalseHits {
    counted: Recent<(SourceId, HashPart)>,
    /// What each demoted peer was asked. There are few, because only peers of the allowlist are asked.
    demoted: Mutex<HashMap<SourceId, Tokens>>,
    started: Instant,
}

impl Default for FalseHits {
    fn default() -> Self {
        Self { counted: Recent::new(COUNTED_FOR), demoted: Mutex::default(), started: Instant::now() }
    }
}

impl FalseHits {
    /// Takes one question from the allowance of this demoted peer. Returns whether there was one left.
    pub(crate) fn take_demoted(&self, peer: &SourceId) -> bool {
        let now = Moment(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.demoted.lock().entry(*peer).or_default().try_take(DEMOTED, now)
    }

    /// Whether this answer has to be counted. It is remembered, so that it is not counted again.
    pub(crate) fn note_if_new(&self, peer: SourceId, part: HashPart) -> bool {
        self.counted.note_if_new((peer, part), ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_demoted_peer_has_its_own_allowance() {
        let false_hits = FalseHits::default();
        let [one, other] = [SourceId::random(), SourceId::random()];
        let asked = (0..200).filter(|_| false_hits.take_demoted(&one)).count();
        // On a busy machine some seconds may pass meanwhile, each of which adds a question.
        assert!((64..80).contains(&asked), "{asked}");
        assert!(false_hits.take_demoted(&other));
    }

    #[test]
    fn repeated_answer_about_a_path_counts_once_per_peer() {
        let false_hits = FalseHits::default();
        let peers = [SourceId::random(), SourceId::random()];
        let parts = [HashPart([1; 20]), HashPart([2; 20])];
        for peer in peers {
            for part in parts {
                assert!(false_hits.note_if_new(peer, part));
                assert!(!false_hits.note_if_new(peer, part));
            }
        }
    }
}
