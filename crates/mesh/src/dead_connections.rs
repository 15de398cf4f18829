//! Finds connections that are dead although no error said so: TCP notices by itself only when data stays unacknowledged
//! for ten seconds, and on an idle connection after a minute.
//!
//! Invariant: no protocol sees a new connection beside the dead one that it replaces. gossipsub tells a peer its
//! subscriptions on the first connection only; a peer that has lost that one would never be told again, and nobody
//! would hear it.

use libp2p::core::ConnectedPoint;
use libp2p::swarm::{CloseConnection, ConnectionDenied, ConnectionId, FromSwarm};
use libp2p::{Multiaddr, PeerId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::addresses::{find_outward_v4, find_outward_v6, socket_address};
use super::circuits::{Way, relay_of};
use super::connection_rule::ConnectionRule;

/// Two nodes that dial each other at once have two connections, and neither is dead: the other side dialled before it
/// knew of ours. Its connection arrives at most a round trip after ours, or a little later after a lost packet or on a
/// busy processor. If it is later still, both connections are begun anew, which takes a moment.
const AT_ONCE: Duration = Duration::from_millis(1_500);
/// If ours of two such connections ends within this time, it was dead from the beginning, and the other one is closed
/// as well.
const IN_DOUBT: Duration = Duration::from_secs(30);

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer dials again, so it has lost its earlier connection; the next one is taken")]
pub(super) struct DialsAgain;

#[derive(Debug)]
struct OpenConnection {
    peer: PeerId,
    since: Instant,
    dialled: bool,
    /// Whether a relay passes it on: then a direct one may come beside it, and takes over.
    relayed: bool,
    /// Our address, if it is known.
    local: Option<IpAddr>,
    /// A connection that we had dialled and that was open when this one came in.
    beside: Option<ConnectionId>,
}

/// All open connections.
#[derive(Debug, Default)]
pub(super) struct DeadConnections {
    open: BTreeMap<ConnectionId, OpenConnection>,
    /// When each pending handshake began, and whether over a relay; the handshake limits bound their number.
    knocking: HashMap<ConnectionId, (Instant, bool)>,
    closing: VecDeque<(PeerId, ConnectionId)>,
}

impl DeadConnections {
    /// Decides on an incoming connection. A node dials only peers that it has no connection with, so a peer that dials
    /// us has lost those that we still have. They are closed, and the peer is refused once, so that everything ends
    /// before it begins anew.
    fn admit(&mut self, peer: PeerId, knocked: Instant, relayed: bool) -> Result<(), DialsAgain> {
        let is_dead = |line: &OpenConnection| !line.dialled || knocked.saturating_duration_since(line.since) > AT_ONCE;
        let is_beside = |line: &OpenConnection| line.relayed && !relayed;
        if !self.open.values().any(|line| line.peer == peer && !is_beside(line) && is_dead(line)) {
            return Ok(());
        }
        tracing::info!(%peer, "peer dials again: its earlier connection is dead");
        // All of them, so that gossipsub begins anew with the first connection that comes next.
        self.close(|line| line.peer == peer);
        Err(DialsAgain)
    }

    fn on_opened(&mut self, now: Instant, id: ConnectionId, peer: PeerId, endpoint: &ConnectedPoint) {
        self.knocking.remove(&id);
        let dialled = endpoint.is_dialer();
        let ours =
            || self.open.iter().find(|(_, line)| line.peer == peer && line.dialled && !line.relayed).map(|(id, _)| *id);
        let relayed = Way::of(endpoint.get_remote_address()) == Way::Relayed;
        let beside = if dialled { None } else { ours() };
        let local = self.local_end(endpoint);
        self.open.insert(id, OpenConnection { peer, since: now, dialled, relayed, local, beside });
    }

    /// Our address of a connection, if it can be found.
    fn local_end(&self, endpoint: &ConnectedPoint) -> Option<IpAddr> {
        let remote = endpoint.get_remote_address();
        match Way::of(remote) {
            Way::Direct => local_of_direct(endpoint),
            // Its bytes go to the relay from where all others to the relay do.
            Way::Relayed => {
                let relay = relay_of(remote)?;
                self.open.values().find(|line| line.peer == relay && !line.relayed)?.local
            }
            Way::Met => find_outward_v4().or_else(find_outward_v6),
        }
    }

    fn on_closed(&mut self, now: Instant, id: ConnectionId) {
        self.open.remove(&id);
        self.close(|line| line.beside == Some(id) && now.saturating_duration_since(line.since) < IN_DOUBT);
    }

    /// Closes the connections from one of our addresses that is gone.
    fn on_expired(&mut self, address: &Multiaddr) {
        if let Some(gone) = socket_address(address).map(|address| address.ip()) {
            let before = self.closing.len();
            self.close(|line| line.local == Some(gone));
            tracing::info!(%address, connections = self.closing.len() - before, "address is no longer ours");
        }
    }

    fn close(&mut self, wanted: impl Fn(&OpenConnection) -> bool) {
        let dead = self.open.iter().filter(|(_, line)| wanted(line)).map(|(id, line)| (line.peer, *id));
        self.closing.extend(dead);
    }
}

impl ConnectionRule for DeadConnections {
    fn admit_pending(&mut self, id: ConnectionId, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        self.knocking.insert(id, (Instant::now(), Way::of(remote) == Way::Relayed));
        Ok(())
    }

    fn admit_inbound(&mut self, id: ConnectionId, peer: PeerId) -> Result<(), ConnectionDenied> {
        let (knocked, relayed) = self.knocking.remove(&id).unwrap_or_else(|| (Instant::now(), false));
        self.admit(peer, knocked, relayed).map_err(ConnectionDenied::new)
    }

    fn on_event(&mut self, event: FromSwarm<'_>) {
        let now = Instant::now();
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                self.on_opened(now, event.connection_id, event.peer_id, event.endpoint);
            }
            FromSwarm::ConnectionClosed(event) => self.on_closed(now, event.connection_id),
            FromSwarm::ListenFailure(event) => drop(self.knocking.remove(&event.connection_id)),
            FromSwarm::ExpiredListenAddr(event) => self.on_expired(event.addr),
            // Nothing else begins or ends a connection.
            _ => {}
        }
    }

    fn next_to_close(&mut self) -> Option<(PeerId, CloseConnection)> {
        self.closing.pop_front().map(|(peer, id)| (peer, CloseConnection::One(id)))
    }
}

fn local_of_direct(endpoint: &ConnectedPoint) -> Option<IpAddr> {
    match endpoint {
        ConnectedPoint::Listener { local_addr, .. } => socket_address(local_addr).map(|address| address.ip()),
        // libp2p does not say which of our addresses it used. This sends nothing: the kernel only chooses the address
        // that leads there, as it just did.
        ConnectedPoint::Dialer { address, .. } => {
            let there = socket_address(address)?;
            let any = if there.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
            socket.connect(there).ok()?;
            socket.local_addr().ok().map(|address| address.ip())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::over_relay;
    use libp2p::core::Endpoint;
    use libp2p::core::transport::PortUse;

    fn inbound(local: &str) -> ConnectedPoint {
        let local_addr = local.parse().unwrap();
        ConnectedPoint::Listener { local_addr, send_back_addr: "/ip4/192.0.2.9/tcp/9".parse().unwrap() }
    }

    fn outbound() -> ConnectedPoint {
        let address = "/ip4/127.0.0.1/tcp/9".parse().unwrap();
        ConnectedPoint::Dialer { address, role_override: Endpoint::Dialer, port_use: PortUse::Reuse }
    }

    fn here() -> ConnectedPoint {
        inbound("/ip4/192.0.2.1/tcp/1")
    }

    fn closing(dead_connections: &mut DeadConnections) -> Vec<ConnectionId> {
        dead_connections.closing.drain(..).map(|(_, id)| id).collect()
    }

    fn ids<const N: usize>() -> [ConnectionId; N] {
        std::array::from_fn(ConnectionId::new_unchecked)
    }

    #[test]
    fn a_circuit_ends_with_the_address_from_which_its_relay_is_reached() {
        let [relay, peer] = [(); 2].map(|()| PeerId::random());
        let mut connections = DeadConnections::default();
        let [to_relay, circuit] = ids();
        connections.on_opened(Instant::now(), to_relay, relay, &here());
        let (local_addr, send_back_addr) = (over_relay(relay), over_relay(relay));
        connections.on_opened(Instant::now(), circuit, peer, &ConnectedPoint::Listener { local_addr, send_back_addr });
        connections.on_expired(&"/ip4/192.0.2.1/tcp/1".parse().unwrap());
        assert_eq!(closing(&mut connections), [to_relay, circuit]);
    }

    #[test]
    fn peer_that_dials_again_is_refused_once_and_its_old_connection_is_closed() {
        let (mut dead_connections, start, peer) = (DeadConnections::default(), Instant::now(), PeerId::random());
        let [first, second] = ids();
        dead_connections.admit(peer, start, false).unwrap();
        dead_connections.on_opened(start, first, peer, &here());
        dead_connections.admit(PeerId::random(), start, false).expect("another peer");
        assert_eq!(
            dead_connections.admit(peer, start, false),
            Err(DialsAgain),
            "it dials twice only when the first is lost"
        );
        assert_eq!(closing(&mut dead_connections), [first]);
        dead_connections.on_closed(start, first);
        dead_connections.admit(peer, start, false).expect("the next one");
        dead_connections.on_opened(start, second, peer, &outbound());
        assert_eq!(dead_connections.admit(peer, start + 2 * AT_ONCE, false), Err(DialsAgain), "ours is lost as well");
        assert_eq!(closing(&mut dead_connections), [second]);
    }

    #[test]
    fn peers_that_dial_each_other_at_once_keep_both_connections_unless_one_was_dead() {
        for (lasted, ends) in [(IN_DOUBT / 2, true), (2 * IN_DOUBT, false)] {
            let (mut dead_connections, start, peer) = (DeadConnections::default(), Instant::now(), PeerId::random());
            let [ours, theirs] = ids();
            dead_connections.on_opened(start, ours, peer, &outbound());
            dead_connections.admit(peer, start + AT_ONCE, false).expect("it may not have known of ours");
            dead_connections.on_opened(start + AT_ONCE, theirs, peer, &here());
            assert!(closing(&mut dead_connections).is_empty());
            dead_connections.on_closed(start + AT_ONCE + lasted, ours);
            assert_eq!(closing(&mut dead_connections) == [theirs], ends);
        }
    }

    #[test]
    fn connections_are_closed_when_their_local_address_is_gone() {
        let mut dead_connections = DeadConnections::default();
        let [gone, kept, dialled] = ids();
        for (id, endpoint) in [(gone, here()), (kept, inbound("/ip4/192.0.2.2/tcp/1")), (dialled, outbound())] {
            dead_connections.on_opened(Instant::now(), id, PeerId::random(), &endpoint);
        }
        let mut expired = |address: &str| {
            dead_connections.on_expired(&address.parse().unwrap());
            closing(&mut dead_connections)
        };
        assert_eq!(expired("/ip4/192.0.2.1/tcp/7280"), [gone]);
        assert_eq!(expired("/ip4/127.0.0.1/tcp/7280"), [dialled], "our end of loopback");
        assert!(expired("/ip4/192.0.2.3/tcp/7280").is_empty());
    }

    #[test]
    fn a_direct_connection_comes_beside_a_relayed_one_which_ends_without_it() {
        let (mut dead_connections, start, peer) = (DeadConnections::default(), Instant::now(), PeerId::random());
        let [relayed, direct] = ids();
        let over_relay = over_relay(PeerId::random());
        let endpoint =
            ConnectedPoint::Dialer { address: over_relay, role_override: Endpoint::Dialer, port_use: PortUse::New };
        dead_connections.on_opened(start, relayed, peer, &endpoint);
        let later = start + 2 * AT_ONCE;
        dead_connections.admit(peer, later, false).expect("a better way");
        dead_connections.on_opened(later, direct, peer, &here());
        dead_connections.on_closed(later, relayed);
        assert!(closing(&mut dead_connections).is_empty());
        assert_eq!(
            dead_connections.admit(peer, later, true),
            Err(DialsAgain),
            "over the relay again: the direct one is lost"
        );
    }
}
