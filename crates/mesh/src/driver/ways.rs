//! Which way each control connection goes.

use crate::circuits::{Way, relay_of};
use libp2p::PeerId;
use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One control connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Taken {
    pub(super) way: Way,
    /// Whether we dialled it.
    pub(super) is_dialled: bool,
    /// The relay, if it is a relayed one.
    pub(super) relay: Option<PeerId>,
}

/// The open control connections.
#[derive(Debug, Default)]
pub(super) struct Ways {
    peers: HashMap<PeerId, BTreeMap<ConnectionId, Taken>>,
}

impl Ways {
    /// Notes a connection that was opened.
    pub(super) fn on_opened(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let address = endpoint.get_remote_address();
        let taken = Taken { way: Way::of(address), is_dialled: endpoint.is_dialer(), relay: relay_of(address) };
        self.peers.entry(peer).or_default().insert(id, taken);
    }

    /// Notes a connection that was closed.
    pub(super) fn on_closed(&mut self, peer: &PeerId, id: ConnectionId) {
        let Some(connections) = self.peers.get_mut(peer) else { return };
        connections.remove(&id);
        if connections.is_empty() {
            self.peers.remove(peer);
        }
    }

    /// The connections with a peer that a relay passes on.
    pub(super) fn relayed(&self, peer: &PeerId) -> impl Iterator<Item = ConnectionId> {
        let known = self.peers.get(peer).into_iter().flatten();
        known.filter(|(_, taken)| taken.way == Way::Relayed).map(|(id, _)| *id)
    }

    /// Whether `me` is the side that begins a meeting with a peer: the one that dialled the circuit. If both did at once, the
    /// lesser PeerId decides, so that one side always does.
    pub(super) fn begins_meeting(&self, me: &PeerId, peer: &PeerId) -> bool {
        let relayed = || self.peers.get(peer).into_iter().flatten().filter(|(_, taken)| taken.way == Way::Relayed);
        let is_dialled = relayed().any(|(_, taken)| taken.is_dialled);
        let has_come = relayed().any(|(_, taken)| !taken.is_dialled);
        is_dialled && (!has_come || me < peer)
    }

    /// The connections that somebody passes on who is none of these relays.
    pub(super) fn relayed_by_others(&self, relays: &BTreeSet<PeerId>) -> Vec<ConnectionId> {
        let by_other = |taken: &Taken| taken.relay.is_some_and(|relay| !relays.contains(&relay));
        self.peers.values().flatten().filter(|(_, taken)| by_other(taken)).map(|(id, _)| *id).collect()
    }

    /// The best connection with a peer.
    pub(super) fn best(&self, peer: &PeerId) -> Option<Taken> {
        self.peers.get(peer)?.values().copied().max_by_key(|taken| taken.way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::over_relay;
    use libp2p::core::Endpoint;
    use libp2p::core::transport::PortUse;

    #[test]
    fn of_two_circuits_at_once_one_side_begins_a_meeting() {
        let [one, other, relay] = [(); 3].map(|()| PeerId::random());
        let dialled = ConnectedPoint::Dialer {
            address: over_relay(relay),
            role_override: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        let came = ConnectedPoint::Listener { local_addr: over_relay(relay), send_back_addr: over_relay(relay) };
        let ways = |peer: PeerId, endpoints: &[&ConnectedPoint]| {
            let mut ways = Ways::default();
            for (number, endpoint) in endpoints.iter().enumerate() {
                ways.on_opened(peer, ConnectionId::new_unchecked(number), endpoint);
            }
            ways
        };
        let begin = |of_one: &[&ConnectedPoint], of_other: &[&ConnectedPoint]| {
            let begins = ways(other, of_one).begins_meeting(&one, &other);
            (begins, ways(one, of_other).begins_meeting(&other, &one))
        };
        assert_eq!(begin(&[&dialled], &[&came]), (true, false));
        for (of_one, of_other) in [([&dialled, &came], [&came, &dialled]), ([&came, &dialled], [&came, &dialled])] {
            assert_eq!(begin(&of_one, &of_other), (one < other, other < one));
        }
    }
}
