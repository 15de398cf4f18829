//! Bounds on handshakes of incoming connections.
//!
//! A stranger is known as such only after its handshake, so what it can cost is bounded before: so many handshakes at a
//! time from one address, and so many in all from addresses that no peer of ours is known to have.

use libp2p::core::ConnectedPoint;
use libp2p::swarm::{ConnectionDenied, ConnectionId, FromSwarm};
use libp2p::{Multiaddr, PeerId};
use narmesh_machine::{Bucket, Tokens};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use super::addresses::socket_address;
use super::clock::moment;
use super::connection_rule::ConnectionRule;

/// Handshakes under way from one source where no peer is known to be; a source is an IPv4 address, or an IPv6 network
/// of 64 bits. Enough for four machines behind one address, each with a control and a bulk connection.
const PENDING_PER_SOURCE_MAX: usize = 8;
/// The same from one address where a peer is known to be, or came in from: strangers behind it take longer to use it
/// up. Before the handshake nothing tells them from the peer, since each dial is from a port of its own.
const PENDING_PER_KNOWN_MAX: usize = 24;
/// Handshakes under way from all sources where no peer is known to be. Known addresses do not count, so that strangers
/// cannot keep them out.
const PENDING_UNKNOWN_MAX: usize = 64;
/// Handshakes begun from one source, or from one address where a peer is known to be: each takes some 0.7 ms of a core. A machine that restarts makes two
/// connections with each peer; a hundred machines behind one address may start at once.
pub(super) const BEGUN: Bucket = Bucket { burst: 256, per_s: 20 };
/// The same for all sources together where no peer is known to be: a third of a core. Known addresses do not count.
const BEGUN_UNKNOWN: Bucket = Bucket { burst: 1_000, per_s: 500 };
/// Sources without a known peer for which begun handshakes are counted.
const SOURCES_MAX: usize = 4_096;
/// Remembered addresses from which one peer came in, such as that of its router, which the peer does not know itself. A
/// laptop that moves between a few networks needs no more.
const SEEN_PER_PEER_MAX: usize = 8;

/// Why a connection is refused before its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("{PENDING_PER_SOURCE_MAX} handshakes from that address are under way")]
    Source,
    #[error("{PENDING_UNKNOWN_MAX} handshakes from unknown addresses are under way")]
    Unknown,
    #[error("more than {} handshakes a second from that address", BEGUN.per_s)]
    TooOften,
    #[error("more than {} handshakes a second from unknown addresses", BEGUN_UNKNOWN.per_s)]
    UnknownTooOften,
}

/// Admits connections while few handshakes are under way.
#[derive(Debug, Default)]
pub(super) struct HandshakeLimits {
    told: Vec<IpAddr>,
    /// Where each peer came in from, the address that was used last at the end. By peer, so that one with many addresses
    /// pushes out nobody else's.
    seen: HashMap<PeerId, VecDeque<IpAddr>>,
    /// All of `told` and of `seen`.
    known: HashSet<IpAddr>,
    pending: HashMap<ConnectionId, IpAddr>,
    /// By source, where no peer is known to be.
    begun: HashMap<IpAddr, Tokens>,
    /// By address. What strangers in the same network begin does not count here.
    begun_known: HashMap<IpAddr, Tokens>,
    begun_unknown: Tokens,
}

impl HandshakeLimits {
    /// Sets where peers are known to be, configured or learned.
    pub(super) fn set_known(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.told = addresses.into_iter().map(|ip| ip.to_canonical()).collect();
        self.rebuild_index();
    }

    /// Forgets where a peer came in from, because it left the allowlist or is shut out.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        if self.seen.remove(peer).is_some() {
            self.rebuild_index();
        }
    }

    /// Remembers where a peer came in from; the allowlist let it pass.
    fn see(&mut self, peer: PeerId, ip: IpAddr) {
        let ip = ip.to_canonical();
        let seen = self.seen.entry(peer).or_default();
        // Moved to the end, so that the address that was used longest ago makes room.
        if let Some(at) = seen.iter().position(|seen| *seen == ip) {
            seen.remove(at);
            return seen.push_back(ip);
        }
        seen.push_back(ip);
        if seen.len() > SEEN_PER_PEER_MAX {
            seen.pop_front();
        }
        self.rebuild_index();
    }

    fn rebuild_index(&mut self) {
        self.known = self.told.iter().chain(self.seen.values().flatten()).copied().collect();
        let known = &self.known;
        self.begun_known.retain(|ip, _| known.contains(ip));
    }

    fn admit(&mut self, id: ConnectionId, ip: IpAddr) -> Result<(), Refused> {
        let ip = ip.to_canonical();
        if self.known.contains(&ip) {
            if self.pending.values().filter(|pending| **pending == ip).count() >= PENDING_PER_KNOWN_MAX {
                return Err(Refused::Source);
            }
        } else {
            // Strangers are bounded together, and known addresses one by one: a flood of strangers takes no place of a
            // peer.
            let unknown = || self.pending.values().filter(|pending| !self.known.contains(pending));
            if unknown().filter(|pending| source(**pending) == source(ip)).count() >= PENDING_PER_SOURCE_MAX {
                return Err(Refused::Source);
            }
            if unknown().count() >= PENDING_UNKNOWN_MAX {
                return Err(Refused::Unknown);
            }
        }
        let is_known = self.known.contains(&ip);
        let may_begin = if is_known { self.try_begin_known(ip) } else { self.try_begin(source(ip)) };
        if !may_begin {
            return Err(Refused::TooOften);
        }
        if !is_known && !self.begun_unknown.try_take(BEGUN_UNKNOWN, moment()) {
            return Err(Refused::UnknownTooOften);
        }
        self.pending.insert(id, ip);
        Ok(())
    }

    /// Counts a handshake from an address where a peer is known to be.
    fn try_begin_known(&mut self, ip: IpAddr) -> bool {
        self.begun_known.entry(ip).or_default().try_take(BEGUN, moment())
    }

    /// Counts a handshake from a source where no peer is known to be. One that is refused here costs no more than the connection that the system accepted.
    fn try_begin(&mut self, source: IpAddr) -> bool {
        if self.begun.len() >= SOURCES_MAX && !self.begun.contains_key(&source) {
            // A source that has its whole burst again may be forgotten: a new entry would have no more.
            self.begun.retain(|_, begun| !begun.is_unused(BEGUN, moment()));
            if self.begun.len() >= SOURCES_MAX {
                return false;
            }
        }
        self.begun.entry(source).or_default().try_take(BEGUN, moment())
    }
}

/// What counts as one source: whoever has one IPv6 address usually has 2^64 of them.
fn source(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
        ip @ IpAddr::V4(_) => ip,
    }
}

impl ConnectionRule for HandshakeLimits {
    fn admit_pending(&mut self, id: ConnectionId, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let Some(address) = socket_address(remote) else { return Ok(()) };
        self.admit(id, address.ip()).map_err(ConnectionDenied::new)
    }

    fn on_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                self.pending.remove(&event.connection_id);
                if let ConnectedPoint::Listener { send_back_addr, .. } = event.endpoint
                    && let Some(from) = socket_address(send_back_addr)
                {
                    self.see(event.peer_id, from.ip());
                }
            }
            FromSwarm::ListenFailure(event) => drop(self.pending.remove(&event.connection_id)),
            // Nothing else ends a handshake.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> impl Iterator<Item = ConnectionId> {
        (0..).map(ConnectionId::new_unchecked)
    }

    fn refused(handshake_limits: &mut HandshakeLimits, id: ConnectionId, ip: impl Into<IpAddr>) -> Option<Refused> {
        handshake_limits.admit(id, ip.into()).err()
    }

    #[test]
    fn eight_handshakes_from_one_source_and_no_more() {
        let (mut handshake_limits, mut ids) = (HandshakeLimits::default(), ids());
        for host in 1..=2 {
            for _ in 0..PENDING_PER_SOURCE_MAX {
                assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), [192, 0, 2, host]), None);
            }
            assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), [192, 0, 2, host]), Some(Refused::Source));
        }
        // A handshake that ended, either way, makes room for one.
        handshake_limits.pending.remove(&ConnectionId::new_unchecked(0));
        assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), [192, 0, 2, 1]), None);
        assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), [192, 0, 2, 1]), Some(Refused::Source));
    }

    #[test]
    fn an_ipv6_network_counts_as_one_source() {
        let (mut handshake_limits, mut ids) = (HandshakeLimits::default(), ids());
        for host in 0..8_u16 {
            assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), [0x2001, 0xdb8, 1, 1, 0, 0, 0, host]), None);
        }
        let (same, other) = ([0x2001, 0xdb8, 1, 1, 9, 0, 0, 9], [0x2001, 0xdb8, 1, 2, 0, 0, 0, 1]);
        assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), same), Some(Refused::Source));
        assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), other), None);
        // Mapped addresses are IPv4 ones.
        for _ in 0..PENDING_PER_SOURCE_MAX {
            let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
            assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), mapped), None);
        }
        assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), [192, 0, 2, 1]), Some(Refused::Source));
    }

    #[test]
    fn a_flood_of_strangers_does_not_keep_out_known_addresses() {
        // Its address is configured or learned, or it came in from there before.
        for is_told in [false, true] {
            let (mut handshake_limits, mut ids) = (HandshakeLimits::default(), ids());
            let known = IpAddr::from([192, 0, 2, 1]);
            if is_told {
                handshake_limits.set_known([known])
            } else {
                handshake_limits.see(PeerId::random(), known)
            }
            for host in 0..64 {
                assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), [198, 51, 100, host]), None);
            }
            assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), [198, 51, 100, 99]), Some(Refused::Unknown));
            for _ in 0..PENDING_PER_KNOWN_MAX {
                assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), known), None);
            }
            assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), known), Some(Refused::Source));
        }
    }

    #[test]
    fn peers_in_one_ipv6_network_are_let_in_despite_each_other_and_strangers() {
        let (mut handshake_limits, mut ids) = (HandshakeLimits::default(), ids());
        let host = |host: u16| IpAddr::from([0xfd00, 1, 1, 1, 0, 0, 0, host]);
        handshake_limits.set_known((1..=20).map(host));
        for peer in 1..=20 {
            for _ in 0..2 {
                assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), host(peer)), None);
            }
        }
        // Strangers in the same network do not keep a peer out either.
        for stranger in 100..108 {
            assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), host(stranger)), None);
        }
        assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), host(108)), Some(Refused::Source));
        assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), host(1)), None);
        // Nor do the handshakes that they have begun and ended.
        handshake_limits.pending.clear();
        let begin_and_end = |handshake_limits: &mut HandshakeLimits, id| {
            let refused = refused(handshake_limits, id, host(100));
            handshake_limits.pending.remove(&id);
            refused
        };
        let refusals: Vec<_> = (0..300).map(|_| begin_and_end(&mut handshake_limits, ids.next().unwrap())).collect();
        assert_eq!(refusals.last(), Some(&Some(Refused::TooOften)));
        assert!((1..=20).all(|peer| refused(&mut handshake_limits, ids.next().unwrap(), host(peer)).is_none()));
    }

    #[test]
    fn peer_that_redials_without_end_costs_few_handshakes() {
        let (mut handshake_limits, mut ids, peer) = (HandshakeLimits::default(), ids(), IpAddr::from([192, 0, 2, 1]));
        handshake_limits.set_known([peer]);
        let redial = |handshake_limits: &mut HandshakeLimits, id| {
            let is_admitted = handshake_limits.admit(id, peer).is_ok();
            handshake_limits.pending.clear();
            is_admitted
        };
        let begun = (0..10_000).filter(|_| redial(&mut handshake_limits, ids.next().unwrap())).count();
        assert!((256..300).contains(&begun), "{begun}");
        assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), peer), Some(Refused::TooOften));
        assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), [192, 0, 2, 2]), None);
        // More sources take no more memory.
        for number in 0..u32::try_from(2 * SOURCES_MAX).unwrap() {
            if handshake_limits.admit(ids.next().unwrap(), std::net::Ipv4Addr::from(number).into()).is_ok() {
                handshake_limits.pending.clear();
            }
        }
        assert!(handshake_limits.begun.len() <= SOURCES_MAX);
    }

    #[test]
    fn peer_that_comes_from_many_addresses_pushes_out_no_other_peer() {
        let (mut handshake_limits, [honest, other]) = (HandshakeLimits::default(), [0; 2].map(|_| PeerId::random()));
        let [home, shared] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        handshake_limits.see(honest, home);
        handshake_limits.see(other, shared);
        handshake_limits.see(honest, shared);
        for number in 0..5_000_u32 {
            let ip = std::net::Ipv4Addr::from(0x0a00_0000 + number).into();
            handshake_limits.see(other, ip);
            assert!(handshake_limits.try_begin_known(ip));
        }
        assert!([home, shared].iter().all(|ip| handshake_limits.known.contains(ip)));
        assert_eq!(handshake_limits.known.len(), 2 + SEEN_PER_PEER_MAX);
        assert!(handshake_limits.begun_known.len() <= 2 + SEEN_PER_PEER_MAX);
        handshake_limits.forget(&other);
        assert_eq!(handshake_limits.known, HashSet::from([home, shared]));
    }

    #[test]
    fn address_from_which_a_peer_still_comes_is_not_forgotten() {
        let (mut handshake_limits, peer) = (HandshakeLimits::default(), PeerId::random());
        let home = IpAddr::from([192, 0, 2, 1]);
        for number in 0..100_u32 {
            handshake_limits.see(peer, home);
            handshake_limits.see(peer, std::net::Ipv4Addr::from(0x0a00_0000 + number).into());
        }
        assert!(handshake_limits.known.contains(&home));
    }

    #[test]
    fn strangers_at_many_addresses_are_limited_per_second_and_known_ones_are_not() {
        let (mut handshake_limits, mut ids) = (HandshakeLimits::default(), ids());
        let known: IpAddr = "192.0.2.1".parse().unwrap();
        handshake_limits.set_known([known]);
        let mut begun = 0;
        for number in 0..4_000_u32 {
            let id = ids.next().unwrap();
            // Each ends at once, so that only one is under way at a time.
            match refused(&mut handshake_limits, id, std::net::Ipv4Addr::from(0x0a00_0000 + number)) {
                None => begun += 1,
                Some(why) => assert_eq!(why, Refused::UnknownTooOften),
            }
            handshake_limits.pending.remove(&id);
        }
        assert!((BEGUN_UNKNOWN.burst..4_000).contains(&begun), "{begun} of 4,000");
        assert_eq!(refused(&mut handshake_limits, ids.next().unwrap(), known), None);
    }
}
