//! Which connections are dead although nobody has said so: TCP notices by itself only when something stays unacknowledged for
//! ten seconds, and on an idle connection after a minute.

use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::addresses::socket_address;

/// Two nodes that dial each other at once have two connections for a moment, of which neither is dead: the one that we dialled is
/// no older than this. Longer than a handshake may take.
const AT_ONCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Line {
    peer: PeerId,
    since: Instant,
    dialled: bool,
    /// Our end.
    local: Option<IpAddr>,
}

/// All open connections.
#[derive(Debug, Default)]
pub(super) struct Lines(BTreeMap<ConnectionId, Line>);

impl Lines {
    /// Remembers a new connection. Returns older ones of the same peer that it replaces: a node dials only whom it has no
    /// connection with, so a peer that dials us has lost those that we believe in.
    pub(super) fn opened(
        &mut self,
        now: Instant,
        id: ConnectionId,
        peer: PeerId,
        endpoint: &ConnectedPoint,
    ) -> Vec<ConnectionId> {
        let replaced = match endpoint {
            ConnectedPoint::Listener { .. } => {
                self.find(|line| line.peer == peer && (!line.dialled || now - line.since > AT_ONCE))
            }
            ConnectedPoint::Dialer { .. } => Vec::new(),
        };
        let dialled = endpoint.is_dialer();
        self.0.insert(id, Line { peer, since: now, dialled, local: local_end(endpoint) });
        replaced
    }

    pub(super) fn closed(&mut self, id: ConnectionId) {
        self.0.remove(&id);
    }

    /// The connections that cannot work any more because their end of ours, a listen address until now, is gone.
    pub(super) fn without(&self, expired: &Multiaddr) -> Vec<ConnectionId> {
        let gone = socket_address(expired).map(|address| address.ip());
        if gone.is_none() { Vec::new() } else { self.find(|line| line.local == gone) }
    }

    fn find(&self, wanted: impl Fn(&Line) -> bool) -> Vec<ConnectionId> {
        self.0.iter().filter(|(_, line)| wanted(line)).map(|(id, _)| *id).collect()
    }
}

fn local_end(endpoint: &ConnectedPoint) -> Option<IpAddr> {
    match endpoint {
        ConnectedPoint::Listener { local_addr, .. } => socket_address(local_addr).map(|address| address.ip()),
        // libp2p does not say. Nothing is sent by this: the kernel only chooses the address that leads there, as it just did.
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

    #[test]
    fn a_peer_that_dials_again_has_lost_what_we_believed_in() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let [peer, other] = [(); 2].map(|()| PeerId::random());
        let [first, second, third, fourth, fifth] = [1, 2, 3, 4, 5].map(ConnectionId::new_unchecked);
        let here = inbound("/ip4/192.0.2.1/tcp/1");
        assert!(lines.opened(start, first, peer, &outbound()).is_empty());
        assert!(lines.opened(start + AT_ONCE, second, peer, &here).is_empty(), "both dialled at once");
        let later = start + 3 * AT_ONCE;
        assert!(lines.opened(later, third, other, &here).is_empty(), "another peer");
        assert_eq!(lines.opened(later, fourth, peer, &here), [first, second]);
        [first, second].into_iter().for_each(|id| lines.closed(id));
        assert_eq!(lines.opened(later, fifth, peer, &here), [fourth], "it dials twice only when the first is lost");
        [fourth, fifth].into_iter().for_each(|id| lines.closed(id));
        assert!(lines.opened(later + 3 * AT_ONCE, first, peer, &here).is_empty());
    }

    #[test]
    fn connections_end_with_the_address_that_they_come_from() {
        let mut lines = Lines::default();
        let [gone, kept, dialled] = [1, 2, 3].map(ConnectionId::new_unchecked);
        for (id, endpoint) in
            [(gone, inbound("/ip4/192.0.2.1/tcp/1")), (kept, inbound("/ip4/192.0.2.2/tcp/1")), (dialled, outbound())]
        {
            lines.opened(Instant::now(), id, PeerId::random(), &endpoint);
        }
        assert_eq!(lines.without(&"/ip4/192.0.2.1/tcp/7280".parse().unwrap()), [gone]);
        assert_eq!(lines.without(&"/ip4/127.0.0.1/tcp/7280".parse().unwrap()), [dialled], "our end of loopback");
        assert!(lines.without(&"/ip4/192.0.2.3/tcp/7280".parse().unwrap()).is_empty());
    }
}
