//! Which way a connection goes, read from the address that libp2p has of it.

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

/// Which way a connection goes; a better one is greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// A relay passes the bytes on.
    Relayed,
    /// Both sides connected to each other at the same moment, through their NATs.
    Met,
    /// One side dialled the other.
    Direct,
}

/// Where a peer is dialled over this relay: `/p2p/RELAY/p2p-circuit`.
pub(crate) fn over_relay(relay: PeerId) -> Multiaddr {
    Multiaddr::empty().with(Protocol::P2p(relay)).with(Protocol::P2pCircuit)
}

/// Where a peer is dialled that we meet: `/p2p-circuit`.
pub(crate) fn meeting_place() -> Multiaddr {
    Multiaddr::empty().with(Protocol::P2pCircuit)
}

impl Way {
    /// The way of a connection with this remote address.
    pub(crate) fn of(address: &Multiaddr) -> Self {
        let mut parts = address.iter();
        match (parts.next(), parts.next()) {
            (Some(Protocol::P2p(_)), Some(Protocol::P2pCircuit)) => Self::Relayed,
            (Some(Protocol::P2pCircuit), _) => Self::Met,
            (_, _) => Self::Direct,
        }
    }
}

/// The relay of a relayed connection.
pub(crate) fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().next()? {
        Protocol::P2p(relay) if Way::of(address) == Way::Relayed => Some(relay),
        _ => None,
    }
}

/// Who is dialled at such an address.
pub(super) fn destination(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last()? {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_which_way_a_connection_goes() {
        let (relay, peer) = (PeerId::random(), PeerId::random());
        let dialled = |address: Multiaddr| address.with_p2p(peer).unwrap();
        let direct = dialled("/ip4/192.0.2.1/tcp/7280".parse().unwrap());
        for (address, way, through) in [
            (dialled(over_relay(relay)), Way::Relayed, Some(relay)),
            (over_relay(relay), Way::Relayed, Some(relay)),
            (dialled(meeting_place()), Way::Met, None),
            (direct, Way::Direct, None),
        ] {
            assert_eq!((Way::of(&address), relay_of(&address)), (way, through), "{address}");
        }
        assert_eq!(destination(&dialled(over_relay(relay))), Some(peer));
        assert!(Way::Direct > Way::Met && Way::Met > Way::Relayed);
    }
}
