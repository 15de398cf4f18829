//! Who said lately that it does not hold a path which its filter claims: one false hit, however often one asks.

use crate::nar::{Since, insert};
use crate::source::SourceId;
use narmesh_protocol::HashPart;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// So long the same answer is not counted again; a collected path is out of its holder's filter well before.
const COUNTED_FOR: Duration = Duration::from_secs(60);

/// The answers counted lately.
#[derive(Debug, Default)]
pub(crate) struct FalseHits {
    counted: Mutex<HashMap<(SourceId, HashPart), Since<()>>>,
}

impl FalseHits {
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
