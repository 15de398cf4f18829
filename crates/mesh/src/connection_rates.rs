//! How often one peer may connect to us, from whatever addresses.
//!
//! Handshakes are bounded per address before anybody knows who is there. A peer that has many networks would get that much
//! from each of them, so its connections are counted again once it has shown its key.

use super::clock::moment;
use super::connection_rule::ConnectionRule;
use libp2p::PeerId;
use libp2p::swarm::{ConnectionDenied, ConnectionId};
use narmesh_machine::{Bucket, Moment, Tokens};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Connections of one peer, control and bulk together: as many as one address may begin handshakes.
const CONNECTIONS: Bucket = super::handshake_limits::BEGUN;

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer connects more than {} times a second", CONNECTIONS.per_s)]
struct TooOften;

/// Counts the connections of each peer of the allowlist. Cheap to clone: bulk connections never reach the swarm, and are
/// counted here, too.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionRates(Arc<Mutex<Counted>>);

#[derive(Debug, Default)]
struct Counted {
    peers: HashMap<PeerId, Tokens>,
    flooders: Vec<PeerId>,
}

impl ConnectionRates {
    /// Counts a connection of a peer of the allowlist; false when it connects too often.
    pub(super) fn try_count(&self, now: Moment, peer: PeerId) -> bool {
        let mut counted = self.0.lock();
        let is_admitted = counted.peers.entry(peer).or_default().try_take(CONNECTIONS, now);
        if !is_admitted && !counted.flooders.contains(&peer) {
            counted.flooders.push(peer);
        }
        is_admitted
    }

    /// Peers that connected too often since the last call.
    pub(super) fn take_flooders(&self) -> Vec<PeerId> {
        std::mem::take(&mut self.0.lock().flooders)
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&self, peer: &PeerId) {
        self.0.lock().peers.remove(peer);
    }
}

impl ConnectionRule for ConnectionRates {
    fn admit_inbound(&mut self, _: ConnectionId, peer: PeerId) -> Result<(), ConnectionDenied> {
        if self.try_count(moment(), peer) { Ok(()) } else { Err(ConnectionDenied::new(TooOften)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_that_connects_too_often_is_refused_and_named_wherever_it_comes_from() {
        let (mut rates, flooder) = (ConnectionRates::default(), PeerId::random());
        let ids = (0..1_000).map(ConnectionId::new_unchecked);
        let admitted = ids.filter(|id| rates.admit_inbound(*id, flooder).is_ok()).count();
        assert!((256..300).contains(&admitted), "{admitted}");
        assert!(!rates.clone().try_count(moment(), flooder), "nor has it bulk connections left");
        assert_eq!(rates.take_flooders(), [flooder]);
        assert_eq!(rates.take_flooders(), []);
        assert!(rates.try_count(moment(), PeerId::random()), "nobody else");
        assert!(rates.try_count(moment() + 1_000, flooder), "and later it may connect again");
    }
}
