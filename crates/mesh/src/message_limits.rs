//! How fast a peer may send messages of gossipsub, whatever is in them.
//!
//! A message may be as short as one byte, and each costs the swarm's task some microseconds, so that the pace of the bytes
//! (`transport/rate_meter.rs`) does not bound them. Gossipsub itself counts nothing and tells nothing of a message without contents.

use super::clock::moment;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use narmesh_machine::{Bucket, Tokens};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll};

/// Messages of one connection. An announcement makes one of 300 bytes at least, and 256 KiB a second are read: an honest peer sends
/// fewer than 900 a second; and of the 4 MiB that are read at once, 14,000.
const MESSAGES: Bucket = Bucket { burst: 20_000, per_s: 2_000 };

/// Gossipsub; closes a connection that brings messages faster than that.
pub(super) struct MessageLimits<B> {
    gossipsub: B,
    connections: HashMap<ConnectionId, Tokens>,
    /// To be closed.
    flooded: Vec<(PeerId, ConnectionId)>,
    /// To be blamed.
    flooders: Vec<PeerId>,
}

impl<B> MessageLimits<B> {
    pub(super) fn new(gossipsub: B) -> Self {
        Self { gossipsub, connections: HashMap::new(), flooded: Vec::new(), flooders: Vec::new() }
    }

    /// Peers whose connections were closed since the last call.
    pub(super) fn take_flooders(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.flooders)
    }

    /// Counts one message, and says whether gossipsub is to have it.
    fn admit(&mut self, peer: PeerId, connection: ConnectionId) -> bool {
        let is_admitted = self.connections.entry(connection).or_default().try_take(MESSAGES, moment());
        if !is_admitted && !self.flooded.contains(&(peer, connection)) {
            self.flooded.push((peer, connection));
        }
        is_admitted
    }
}

impl<B> Deref for MessageLimits<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.gossipsub
    }
}

impl<B> DerefMut for MessageLimits<B> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.gossipsub
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for MessageLimits<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.gossipsub.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.gossipsub.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.gossipsub.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.gossipsub.handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) = event {
            self.connections.remove(&connection_id);
        }
        self.gossipsub.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        if self.admit(peer, connection) {
            self.gossipsub.on_connection_handler_event(peer, connection, event);
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some((peer_id, connection)) = self.flooded.pop() {
            self.flooders.push(peer_id);
            let connection = CloseConnection::One(connection);
            return Poll::Ready(ToSwarm::CloseConnection { peer_id, connection });
        }
        self.gossipsub.poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::swarm::dummy;

    #[test]
    fn connection_that_brings_messages_too_fast_is_closed_and_its_peer_named() {
        let mut limits = MessageLimits::new(dummy::Behaviour);
        let (peer, other) = (PeerId::random(), PeerId::random());
        let [flooding, quiet] = [1, 2].map(ConnectionId::new_unchecked);
        let admitted = (0..100_000).filter(|_| limits.admit(peer, flooding)).count();
        assert!((20_000..30_000).contains(&admitted), "{admitted}");
        assert!(limits.admit(other, quiet), "others are none the worse");
        let mut context = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(ToSwarm::CloseConnection { peer_id, .. }) = limits.poll(&mut context) else {
            panic!("it is closed")
        };
        assert_eq!(peer_id, peer);
        assert!(limits.poll(&mut context).is_pending(), "once");
        assert_eq!(limits.take_flooders(), [peer]);
        assert!(limits.take_flooders().is_empty());
    }
}
