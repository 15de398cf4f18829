//! The filters installed last, as bytes. A peer that pulls a body just after us gets it from here, without a walk through a
//! matrix that reads one cache line for each bit of the filter.

use libp2p_identity::PeerId;
use std::collections::{BTreeMap, VecDeque};

/// The most memory of all filters here, bytes: a few large filters, or all of a thousand small ones. In a simulated fleet
/// of a thousand nodes, where each filter is handed on a thousand times, half as much memory cost a tenth of the run in
/// walks through matrices.
const BYTES_MAX: usize = 1 << 20;

/// The filters that were installed last and have not changed since.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    filters: BTreeMap<PeerId, Box<[u8]>>,
    /// The peers in `filters`, each once, oldest first.
    order: VecDeque<PeerId>,
    bytes: usize,
}

impl Latest {
    pub(crate) fn put(&mut self, peer: PeerId, filter_bytes: &[u8]) {
        self.forget(&peer);
        self.bytes += filter_bytes.len();
        self.filters.insert(peer, filter_bytes.into());
        self.order.push_back(peer);
        while self.bytes > BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.filters.remove(&oldest).map_or(0, |filter| filter.len());
        }
    }

    pub(crate) fn forget(&mut self, peer: &PeerId) {
        if let Some(filter) = self.filters.remove(peer) {
            self.bytes -= filter.len();
            self.order.retain(|other| other != peer);
        }
    }

    pub(crate) fn get(&self, peer: &PeerId) -> Option<&[u8]> {
        self.filters.get(peer).map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p_identity::Keypair;

    #[test]
    fn the_newest_are_kept_within_the_bound() {
        let peers: Vec<_> =
            (0..40u8).map(|number| Keypair::ed25519_from_bytes([number; 32]).unwrap().public().to_peer_id()).collect();
        let mut latest = Latest::default();
        for (number, peer) in peers.iter().enumerate().cycle().take(100) {
            latest.put(*peer, &vec![u8::try_from(number).unwrap(); 32 << 10]);
            assert!(latest.bytes <= BYTES_MAX && latest.order.len() == latest.filters.len());
        }
        let kept = peers.iter().filter(|peer| latest.get(peer).is_some()).count();
        assert_eq!(kept, 32);
        assert_eq!(latest.get(&peers[19]).unwrap(), vec![19; 32 << 10]);
        latest.forget(&peers[19]);
        assert!(latest.get(&peers[19]).is_none() && latest.bytes == 31 * (32 << 10));
        latest.put(peers[0], &vec![0; BYTES_MAX + 1]);
        assert!(latest.filters.is_empty() && latest.bytes == 0, "one that does not fit is not kept");
    }
}
