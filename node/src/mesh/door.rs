//! Who may try to come in: bounds on handshakes under way.
//!
//! A stranger is known as such only after the handshake, so what he can cost is bounded before it: so many at a time from one
//! address, so many in all from addresses that no peer of ours is known to have. A peer dials from the port where it listens, so
//! address and port together tell it from strangers behind the same address; what they do is not counted against it.

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use libp2p::{Multiaddr, PeerId};
use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::task::{Context, Poll};

use super::addresses::socket_address;

/// Handshakes under way from one source where no peer is known to be: an IPv4 address, or an IPv6 network of 64 bits. Four machines
/// behind one address, each with a control and a bulk connection.
const PENDING_PER_SOURCE_MAX: usize = 8;
/// The same from one address where a peer is known to be: strangers behind it take longer to use it up.
const PENDING_PER_KNOWN_MAX: usize = 24;
/// From one address and port where a peer is known to be. It dials once at a time; the other may be dying.
const PENDING_PER_SOCKET_MAX: usize = 2;
/// Handshakes under way from all sources where no peer is known to be; known ones do not count, so that strangers cannot keep
/// them out.
const PENDING_UNKNOWN_MAX: usize = 64;
/// Handshakes begun from one source per second in the long run, whoever it is: each takes some 0.7 ms of a core. A machine that
/// restarts has two connections with each peer; a hundred behind one address start at once.
const BEGUN_PER_S: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// See [`BEGUN_PER_S`].
const BEGUN_BURST: NonZeroU32 = NonZeroU32::new(256).expect("not zero");
/// Sources of which that is counted.
const SOURCES_MAX: usize = 4_096;
/// Addresses and ports from which peers came in that are remembered: those of a peer behind a router, which it does not know itself.
const SEEN_MAX: usize = 1_024;

/// Why somebody is not let in before his handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("{PENDING_PER_SOURCE_MAX} handshakes from that address are under way")]
    Source,
    #[error("{PENDING_UNKNOWN_MAX} handshakes from unknown addresses are under way")]
    Unknown,
    #[error("more than {BEGUN_PER_S} handshakes a second from that address")]
    TooOften,
}

/// The behaviour; it speaks no protocol.
#[derive(Debug, Default)]
pub(super) struct Door {
    known: HashSet<SocketAddr>,
    known_ips: HashSet<IpAddr>,
    seen: VecDeque<SocketAddr>,
    pending: HashMap<ConnectionId, SocketAddr>,
    begun: HashMap<IpAddr, DefaultDirectRateLimiter>,
}

impl Door {
    /// Where peers are known to be, configured or learned.
    pub(super) fn set_known(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        self.known = addresses.into_iter().map(canonical).collect();
        self.known_ips = self.known.iter().chain(&self.seen).map(SocketAddr::ip).collect();
    }

    fn admit(&mut self, id: ConnectionId, from: SocketAddr) -> Result<(), Refused> {
        let from = canonical(from);
        let is_known_socket = |address: &SocketAddr| self.known.contains(address) || self.seen.contains(address);
        let others = || self.pending.values().filter(|pending| !is_known_socket(pending));
        if is_known_socket(&from) {
            if self.pending.values().filter(|pending| **pending == from).count() >= PENDING_PER_SOCKET_MAX {
                return Err(Refused::Source);
            }
        } else if self.known_ips.contains(&from.ip()) {
            if others().filter(|pending| pending.ip() == from.ip()).count() >= PENDING_PER_KNOWN_MAX {
                return Err(Refused::Source);
            }
        } else {
            let unknown = || others().filter(|pending| !self.known_ips.contains(&pending.ip()));
            if unknown().filter(|pending| source(pending.ip()) == source(from.ip())).count() >= PENDING_PER_SOURCE_MAX {
                return Err(Refused::Source);
            }
            if unknown().count() >= PENDING_UNKNOWN_MAX {
                return Err(Refused::Unknown);
            }
        }
        if !self.may_begin(source(from.ip())) {
            return Err(Refused::TooOften);
        }
        self.pending.insert(id, from);
        Ok(())
    }

    /// Counts a handshake. Who is refused here costs no more than the connection that the system accepted.
    fn may_begin(&mut self, source: IpAddr) -> bool {
        if self.begun.len() >= SOURCES_MAX && !self.begun.contains_key(&source) {
            // Those that have their whole burst again are as good as forgotten.
            self.begun.retain(|_, begun| begun.check_n(BEGUN_BURST).is_ok_and(|fits| fits.is_err()));
            if self.begun.len() >= SOURCES_MAX {
                return false;
            }
        }
        let quota = Quota::per_second(BEGUN_PER_S).allow_burst(BEGUN_BURST);
        self.begun.entry(source).or_insert_with(|| RateLimiter::direct(quota)).check().is_ok()
    }

    /// A peer came in from there: the allowlist let it pass.
    fn see(&mut self, from: SocketAddr) {
        let from = canonical(from);
        if self.known.contains(&from) || self.seen.contains(&from) {
            return;
        }
        if self.seen.len() >= SEEN_MAX
            && let Some(oldest) = self.seen.pop_front()
            && !self.known.iter().chain(&self.seen).any(|address| address.ip() == oldest.ip())
        {
            self.known_ips.remove(&oldest.ip());
        }
        self.seen.push_back(from);
        self.known_ips.insert(from.ip());
    }
}

/// One spelling of each: an IPv4 address mapped into IPv6 is that one.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What counts as one source: whoever has an IPv6 address usually has 2^64 of them.
fn source(ip: IpAddr) -> IpAddr {
    match ip {
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
        self.admit(id, address).map_err(ConnectionDenied::new)
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
            FromSwarm::ConnectionEstablished(event) => {
                self.pending.remove(&event.connection_id);
                if let ConnectedPoint::Listener { send_back_addr, .. } = event.endpoint
                    && let Some(from) = socket_address(send_back_addr)
                {
                    self.see(from);
                }
            }
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

    fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
        SocketAddr::new(ip.into(), port)
    }

    #[test]
    fn eight_handshakes_from_one_source_and_no_more() {
        let (mut door, mut ids) = (Door::default(), ids());
        for host in 1..=2 {
            for port in 0..8 {
                door.admit(ids.next().unwrap(), at([192, 0, 2, host], port)).unwrap();
            }
            assert_eq!(door.admit(ids.next().unwrap(), at([192, 0, 2, host], 9)), Err(Refused::Source));
        }
        // One that ended, either way, makes room for one.
        door.pending.remove(&ConnectionId::new_unchecked(0));
        door.admit(ids.next().unwrap(), at([192, 0, 2, 1], 9)).unwrap();
        assert_eq!(door.admit(ids.next().unwrap(), at([192, 0, 2, 1], 9)), Err(Refused::Source));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let (mut door, mut ids) = (Door::default(), ids());
        for host in 0..8_u16 {
            door.admit(ids.next().unwrap(), at([0x2001, 0xdb8, 1, 1, 0, 0, 0, host], 1)).unwrap();
        }
        let (same, other) = ([0x2001, 0xdb8, 1, 1, 9, 0, 0, 9], [0x2001, 0xdb8, 1, 2, 0, 0, 0, 1]);
        assert_eq!(door.admit(ids.next().unwrap(), at(same, 1)), Err(Refused::Source));
        door.admit(ids.next().unwrap(), at(other, 1)).unwrap();
        // Mapped addresses are IPv4 ones.
        for _ in 0..PENDING_PER_SOURCE_MAX {
            door.admit(ids.next().unwrap(), "[::ffff:192.0.2.1]:1".parse().unwrap()).unwrap();
        }
        assert_eq!(door.admit(ids.next().unwrap(), at([192, 0, 2, 1], 1)), Err(Refused::Source));
    }

    #[test]
    fn peers_in_one_network_of_ipv6_are_let_in_beside_each_other() {
        let (mut door, mut ids) = (Door::default(), ids());
        let host = |host: u16| at([0xfd00, 1, 1, 1, 0, 0, 0, host], 7280);
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
        door.admit(ids.next().unwrap(), at(host(1).ip(), 1)).unwrap();
    }

    #[test]
    fn a_flood_of_strangers_leaves_the_door_open_for_known_addresses() {
        let (mut door, mut ids) = (Door::default(), ids());
        let known = [192, 0, 2, 1];
        door.set_known([at(known, 7280)]);
        for host in 0..64 {
            door.admit(ids.next().unwrap(), at([198, 51, 100, host], 1)).unwrap();
        }
        assert_eq!(door.admit(ids.next().unwrap(), at([198, 51, 100, 99], 1)), Err(Refused::Unknown));
        for _ in 0..PENDING_PER_KNOWN_MAX {
            door.admit(ids.next().unwrap(), at(known, 1)).unwrap();
        }
        assert_eq!(door.admit(ids.next().unwrap(), at(known, 1)), Err(Refused::Source));
    }

    #[test]
    fn strangers_beside_a_peer_do_not_keep_it_out() {
        // Behind one IPv4 address, and in one IPv6 network; one whose address is known, and one that came in from there before.
        for ip in [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 1, 1, 0, 0, 0, 1])] {
            for was_seen in [false, true] {
                let (mut door, mut ids) = (Door::default(), ids());
                let peer = at(ip, 7280);
                if was_seen {
                    door.see(peer);
                } else {
                    door.set_known([peer]);
                }
                let strangers = (1..200).filter(|port| door.admit(ids.next().unwrap(), at(ip, *port)).is_ok()).count();
                assert_eq!(strangers, PENDING_PER_KNOWN_MAX);
                for _ in 0..PENDING_PER_SOCKET_MAX {
                    door.admit(ids.next().unwrap(), peer).unwrap();
                }
                assert_eq!(door.admit(ids.next().unwrap(), peer), Err(Refused::Source));
            }
        }
        // In the same network of IPv6, at another address: nothing of it counts against the peer.
        let (mut door, mut ids) = (Door::default(), ids());
        let peer = at([0x2001, 0xdb8, 1, 1, 0, 0, 0, 1], 7280);
        door.set_known([peer]);
        while door.admit(ids.next().unwrap(), at([0x2001, 0xdb8, 1, 1, 0, 0, 0, 2], 1)).is_ok() {}
        for port in 1..=8 {
            door.admit(ids.next().unwrap(), at(peer.ip(), port)).unwrap();
        }
    }

    #[test]
    fn one_that_redials_without_end_costs_few_handshakes() {
        let (mut door, mut ids, peer) = (Door::default(), ids(), at([192, 0, 2, 1], 7280));
        door.set_known([peer]);
        let redial = |door: &mut Door, id| {
            let is_admitted = door.admit(id, peer).is_ok();
            door.pending.clear();
            is_admitted
        };
        let begun = (0..10_000).filter(|_| redial(&mut door, ids.next().unwrap())).count();
        assert!((256..300).contains(&begun), "{begun}");
        assert_eq!(door.admit(ids.next().unwrap(), peer), Err(Refused::TooOften));
        door.admit(ids.next().unwrap(), at([192, 0, 2, 2], 7280)).unwrap();
        // As many sources as there are make no more memory.
        for number in 0..u32::try_from(2 * SOURCES_MAX).unwrap() {
            if door.admit(ids.next().unwrap(), at(std::net::Ipv4Addr::from(number), 1)).is_ok() {
                door.pending.clear();
            }
        }
        assert!(door.begun.len() <= SOURCES_MAX);
    }

    #[test]
    fn where_peers_came_from_is_remembered_within_bounds() {
        let mut door = Door::default();
        for number in 0..u32::try_from(3 * SEEN_MAX).unwrap() {
            door.see(at(std::net::Ipv4Addr::from(number), 1));
        }
        assert_eq!((door.seen.len(), door.known_ips.len()), (SEEN_MAX, SEEN_MAX));
    }
}
