//! Who may try to come in: bounds on handshakes under way.
//!
//! A stranger is known as such only after the handshake, so what he can cost is bounded before it: so many at a time from one
//! address, so many in all from addresses that no peer of ours is known to have.

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use libp2p::{Multiaddr, PeerId};
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll};

use super::addresses::socket_address;

/// Handshakes under way from one source: an IPv4 address, an IPv6 network of 64 bits, or in it an address that a peer is known to
/// have, since all machines of one place share a network. Four machines behind one address, each with
/// a control and a bulk connection.
const PENDING_PER_SOURCE_MAX: usize = 8;
/// Handshakes under way from all sources where no peer is known to be; known ones do not count, so that strangers cannot keep
/// them out.
const PENDING_UNKNOWN_MAX: usize = 64;

/// Why somebody is not let in before his handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("{PENDING_PER_SOURCE_MAX} handshakes from that address are under way")]
    Source,
    #[error("{PENDING_UNKNOWN_MAX} handshakes from unknown addresses are under way")]
    Unknown,
}

/// The behaviour; it speaks no protocol.
#[derive(Debug, Default)]
pub(super) struct Door {
    /// Addresses, and the networks that they are in.
    known: HashSet<IpAddr>,
    pending: HashMap<ConnectionId, IpAddr>,
}

impl Door {
    /// Where peers are known to be, configured or learned.
    pub(super) fn set_known(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.known = addresses.into_iter().flat_map(|ip| [ip.to_canonical(), network(ip)]).collect();
    }

    fn admit(&mut self, id: ConnectionId, ip: IpAddr) -> Result<(), Refused> {
        let source = self.source(ip);
        if self.pending.values().filter(|pending| **pending == source).count() >= PENDING_PER_SOURCE_MAX {
            return Err(Refused::Source);
        }
        let unknown = || self.pending.values().filter(|pending| !self.known.contains(*pending)).count();
        if !self.known.contains(&source) && unknown() >= PENDING_UNKNOWN_MAX {
            return Err(Refused::Unknown);
        }
        self.pending.insert(id, source);
        Ok(())
    }

    /// What counts as one.
    fn source(&self, ip: IpAddr) -> IpAddr {
        let ip = ip.to_canonical();
        if self.known.contains(&ip) { ip } else { network(ip) }
    }
}

/// Whoever has an IPv6 address usually has 2^64 of them.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
        ip @ IpAddr::V4(_) => ip,
    }
}

impl NetworkBehaviour for Door {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(address) = socket_address(remote) else { return Ok(()) };
        self.admit(id, address.ip()).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => drop(self.pending.remove(&event.connection_id)),
            FromSwarm::ListenFailure(event) => drop(self.pending.remove(&event.connection_id)),
            // Nothing else ends a handshake.
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> impl Iterator<Item = ConnectionId> {
        (0..).map(ConnectionId::new_unchecked)
    }

    #[test]
    fn eight_handshakes_from_one_source_and_no_more() {
        let (mut door, mut ids) = (Door::default(), ids());
        for host in 1..=2 {
            let ip = IpAddr::from([192, 0, 2, host]);
            for _ in 0..PENDING_PER_SOURCE_MAX {
                door.admit(ids.next().unwrap(), ip).unwrap();
            }
            assert_eq!(door.admit(ids.next().unwrap(), ip), Err(Refused::Source));
        }
        // One that ended, either way, makes room for one.
        door.pending.remove(&ConnectionId::new_unchecked(0));
        door.admit(ids.next().unwrap(), IpAddr::from([192, 0, 2, 1])).unwrap();
        assert_eq!(door.admit(ids.next().unwrap(), IpAddr::from([192, 0, 2, 1])), Err(Refused::Source));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let (mut door, mut ids) = (Door::default(), ids());
        for host in 0..8_u16 {
            door.admit(ids.next().unwrap(), IpAddr::from([0x2001, 0xdb8, 1, 1, 0, 0, 0, host])).unwrap();
        }
        let (same, other) = ([0x2001, 0xdb8, 1, 1, 9, 0, 0, 9], [0x2001, 0xdb8, 1, 2, 0, 0, 0, 1]);
        assert_eq!(door.admit(ids.next().unwrap(), IpAddr::from(same)), Err(Refused::Source));
        door.admit(ids.next().unwrap(), IpAddr::from(other)).unwrap();
        // Mapped addresses are IPv4 ones.
        for _ in 0..PENDING_PER_SOURCE_MAX {
            door.admit(ids.next().unwrap(), "::ffff:192.0.2.1".parse().unwrap()).unwrap();
        }
        assert_eq!(door.admit(ids.next().unwrap(), IpAddr::from([192, 0, 2, 1])), Err(Refused::Source));
    }

    #[test]
    fn peers_in_one_network_of_ipv6_are_let_in_beside_each_other() {
        let (mut door, mut ids) = (Door::default(), ids());
        let host = |host: u16| IpAddr::from([0xfd00, 1, 1, 1, 0, 0, 0, host]);
        door.set_known((1..=20).map(host));
        for peer in 1..=20 {
            for _ in 0..2 {
                door.admit(ids.next().unwrap(), host(peer)).unwrap();
            }
        }
        // Neither do others of that network keep a peer out.
        for stranger in 100..108 {
            door.admit(ids.next().unwrap(), host(stranger)).unwrap();
        }
        assert_eq!(door.admit(ids.next().unwrap(), host(108)), Err(Refused::Source));
        door.admit(ids.next().unwrap(), host(1)).unwrap();
    }

    #[test]
    fn a_flood_of_strangers_leaves_the_door_open_for_known_addresses() {
        let (mut door, mut ids) = (Door::default(), ids());
        let known = IpAddr::from([192, 0, 2, 1]);
        door.set_known([known]);
        let from = |host: u8| IpAddr::from([198, 51, 100, host]);
        for host in 0..64 {
            door.admit(ids.next().unwrap(), from(host)).unwrap();
        }
        assert_eq!(door.admit(ids.next().unwrap(), from(99)), Err(Refused::Unknown));
        for _ in 0..PENDING_PER_SOURCE_MAX {
            door.admit(ids.next().unwrap(), known).unwrap();
        }
        assert_eq!(door.admit(ids.next().unwrap(), known), Err(Refused::Source));
    }
}
