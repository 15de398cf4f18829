//! Peers whose filters misled us: one path counts once, however often somebody asks for it, and whoever misled us too often is
//! asked at a pace.

use crate::nar::{Since, insert};
use crate::source::SourceId;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use narmesh_protocol::HashPart;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

/// So long the same answer is not counted again; a collected path is out of its holder's filter well before.
const COUNTED_FOR: Duration = Duration::from_secs(60);

/// Questions that one demoted peer gets at once, and per second. A build asks for some dozens of paths that only one peer has; a
/// filter that claims far more than it holds costs a round trip for each, so it may not cost one for every path that Nix looks up.
const DEMOTED_BURST: NonZeroU32 = NonZeroU32::new(64).expect("not zero");
const DEMOTED_PER_S: NonZeroU32 = NonZeroU32::new(1).expect("not zero");

/// The answers counted lately, and the questions to those who are demoted.
#[derive(Debug)]
pub(crate) struct FalseHits {
    counted: Mutex<HashMap<(SourceId, HashPart), Since<()>>>,
    /// By peer: only allowlisted ones are ever asked, so there are few.
    demoted: DefaultKeyedRateLimiter<SourceId>,
}

impl Default for FalseHits {
    fn default() -> Self {
        let quota = Quota::per_second(DEMOTED_PER_S).allow_burst(DEMOTED_BURST);
        Self { counted: Mutex::default(), demoted: RateLimiter::keyed(quota) }
    }
}

impl FalseHits {
    /// Takes a question to this demoted peer from its allowance, if there is one left.
    pub(crate) fn take_demoted(&self, peer: &SourceId) -> bool {
        self.demoted.check_key(peer).is_ok()
    }

    /// Whether this answer is one to count; from then on it is not.
    pub(crate) fn is_new(&self, peer: SourceId, part: HashPart) -> bool {
        let mut counted = self.counted.lock();
        if counted.get(&(peer, part)).is_some_and(|(at, ())| at.elapsed() < COUNTED_FOR) {
            return false;
        }
        insert(&mut counted, (peer, part), (), COUNTED_FOR);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demoted_peers_have_an_allowance_each() {
        let false_hits = FalseHits::default();
        let [one, other] = [SourceId::random(), SourceId::random()];
        let asked = (0..200).filter(|_| false_hits.take_demoted(&one)).count();
        // A second more may have gone by on a busy machine.
        assert!((64..80).contains(&asked), "{asked}");
        assert!(false_hits.take_demoted(&other));
    }

    #[test]
    fn one_path_of_one_peer_counts_once() {
        let false_hits = FalseHits::default();
        let peers = [SourceId::random(), SourceId::random()];
        let parts = [HashPart([1; 20]), HashPart([2; 20])];
        for peer in peers {
            for part in parts {
                assert!(false_hits.is_new(peer, part));
                assert!(!false_hits.is_new(peer, part));
            }
        }
    }
}
