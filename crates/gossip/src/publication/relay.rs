//! Deltas of other owners that we applied and can hand on: a peer that is not connected with an owner need not pull its
//! whole body.

use libp2p_identity::PeerId;
use narmesh_protocol::{AudienceDigest, Generation, SummaryDelta};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

/// The most deltas kept of one owner.
const STEPS_MAX: usize = 16;
/// The most memory of all of them, bytes: as much as two of the largest filters. A guess.
const BYTES_MAX: usize = 4 << 20;

/// A delta that led from one `seq` of an epoch to a later one.
#[derive(Debug)]
struct Applied {
    /// Counts up over all owners, so that the oldest can be found.
    number: u64,
    from_seq: u64,
    to: Generation,
    positions: Vec<u32>,
    audience: Option<Vec<AudienceDigest>>,
    addresses: Option<Vec<SocketAddr>>,
}

impl Applied {
    fn bytes(&self) -> usize {
        // The struct itself, and what it points to.
        128 + 4 * self.positions.len()
            + 8 * self.audience.as_ref().map_or(0, Vec::len)
            + 32 * self.addresses.as_ref().map_or(0, Vec::len)
    }
}

/// The deltas applied last. Each was proven by the digest of the body that it led to.
#[derive(Debug, Default)]
pub(crate) struct Relayed {
    chains: BTreeMap<PeerId, VecDeque<Applied>>,
    bytes: usize,
    pushed: u64,
}

impl Relayed {
    /// Notes a delta that led to the body now held.
    pub(crate) fn push(&mut self, owner: PeerId, to: Generation, delta: SummaryDelta) {
        let chain = self.chains.entry(owner).or_default();
        let base = Generation { seq: delta.base_seq, ..to };
        // A gap: the older deltas no longer lead to the body that we hold.
        if chain.back().is_some_and(|last| last.to != base) {
            self.bytes -= chain.drain(..).map(|applied| applied.bytes()).sum::<usize>();
        }
        let SummaryDelta { base_seq: from_seq, positions, audience, addresses, .. } = delta;
        self.pushed += 1;
        let applied = Applied { number: self.pushed, from_seq, to, positions, audience, addresses };
        self.bytes += applied.bytes();
        chain.push_back(applied);
        // A peer that is further behind than this pulls the whole body.
        if chain.len() > STEPS_MAX {
            self.bytes -= chain.pop_front().map_or(0, |oldest| oldest.bytes());
        }
        // Of all owners together the oldest go first: an owner that publishes often cannot take the room of all.
        while self.bytes > BYTES_MAX {
            let oldest =
                self.chains.values_mut().min_by_key(|chain| chain.front().map_or(u64::MAX, |step| step.number));
            let Some(oldest) = oldest.and_then(VecDeque::pop_front) else { break };
            self.bytes -= oldest.bytes();
        }
        self.chains.retain(|_, chain| !chain.is_empty());
    }

    /// Drops all deltas of this owner, because they no longer lead to the body that we hold.
    pub(crate) fn forget(&mut self, owner: &PeerId) {
        if let Some(chain) = self.chains.remove(owner) {
            self.bytes -= chain.iter().map(Applied::bytes).sum::<usize>();
        }
    }

    /// The deltas from `base_seq` to the generation held, merged into one; `None` when some of them are no longer kept.
    pub(crate) fn merge_deltas(
        &self,
        owner: &PeerId,
        held: Generation,
        base_seq: u64,
        items: u64,
    ) -> Option<SummaryDelta> {
        let chain = self.chains.get(owner)?;
        // The asker's base must be one that we know the way from.
        let first = chain.iter().position(|applied| applied.from_seq == base_seq)?;
        if chain.back()?.to != held {
            return None;
        }
        let mut positions = BTreeSet::new();
        let (mut audience, mut addresses) = (None, None);
        for applied in chain.iter().skip(first) {
            positions.extend(&applied.positions);
            // These are no sums like the bits: the last one that says something counts.
            audience = applied.audience.clone().or(audience);
            addresses = applied.addresses.clone().or(addresses);
        }
        Some(SummaryDelta { base_seq, items, positions: positions.into_iter().collect(), audience, addresses })
    }

    /// Asserts the bounds.
    #[cfg(test)]
    pub(crate) fn check(&self, owners: usize) {
        assert!(self.chains.len() <= owners && self.bytes <= BYTES_MAX);
        assert_eq!(self.bytes, self.chains.values().flatten().map(Applied::bytes).sum::<usize>());
        assert!(self.chains.values().all(|chain| chain.len() <= STEPS_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p_identity::Keypair;

    fn delta(base_seq: u64, positions: &[u32]) -> SummaryDelta {
        SummaryDelta { base_seq, items: 0, positions: positions.to_vec(), audience: None, addresses: None }
    }

    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id()
    }

    #[test]
    fn consecutive_deltas_merge_and_a_gap_drops_the_older_ones() {
        let mut relayed = Relayed::default();
        let (owner, held) = (peer(1), |seq| Generation { epoch: 7, seq });
        relayed.push(owner, held(2), delta(0, &[5, 9]));
        relayed.push(owner, held(3), SummaryDelta { addresses: Some(vec![]), ..delta(2, &[1, 9]) });
        let both = relayed.merge_deltas(&owner, held(3), 0, 4).unwrap();
        assert_eq!((both.positions, both.items, both.base_seq), (vec![1, 5, 9], 4, 0));
        assert_eq!(both.addresses, Some(vec![]));
        assert_eq!(relayed.merge_deltas(&owner, held(3), 2, 4).unwrap().positions, [1, 9]);
        assert!(relayed.merge_deltas(&owner, held(3), 1, 4).is_none(), "nothing begins there");
        assert!(relayed.merge_deltas(&owner, held(4), 0, 4).is_none(), "nothing leads there");
        assert!(relayed.merge_deltas(&owner, Generation { epoch: 8, seq: 3 }, 0, 4).is_none(), "another epoch");
        relayed.push(owner, held(9), delta(8, &[3]));
        assert!(
            relayed.merge_deltas(&owner, held(9), 0, 4).is_none()
                && relayed.merge_deltas(&owner, held(9), 8, 4).is_some()
        );
        relayed.check(1);
        relayed.forget(&owner);
        assert!(relayed.merge_deltas(&owner, held(9), 8, 4).is_none());
        relayed.check(0);
    }

    #[test]
    fn deltas_kept_for_others_stay_within_their_bound() {
        let mut relayed = Relayed::default();
        for round in 0..40 {
            for number in 1..=9 {
                let to = Generation { epoch: 0, seq: round + 1 };
                relayed.push(peer(number), to, delta(round, &vec![0; 40_000]));
                relayed.check(9);
            }
        }
        let newest = relayed.merge_deltas(&peer(9), Generation { epoch: 0, seq: 40 }, 39, 0);
        assert!(newest.is_some(), "the newest is kept");
    }
}
