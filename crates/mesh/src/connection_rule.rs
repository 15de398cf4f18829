//! Rules on which connections the swarm takes and keeps. A rule speaks no protocol; [`Ruled`] makes a behaviour of it.

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};
use std::convert::Infallible;
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll};

/// One rule. What it does not implement, it allows.
pub(super) trait ConnectionRule: 'static {
    /// Decides on a connection from `remote`, which has not shown yet who it is.
    fn admit_pending(&mut self, _id: ConnectionId, _remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        Ok(())
    }

    /// Decides on an incoming connection of `peer`.
    fn admit_inbound(&mut self, _id: ConnectionId, _peer: PeerId) -> Result<(), ConnectionDenied> {
        Ok(())
    }

    /// Decides on a connection to `peer` that we dialled.
    fn admit_outbound(&mut self, _peer: PeerId) -> Result<(), ConnectionDenied> {
        Ok(())
    }

    /// Hears of an event of the swarm.
    fn on_event(&mut self, _event: FromSwarm<'_>) {}

    /// What to close next. Only calls of the swarm or of the driver add something, and the swarm asks after each of
    /// them.
    fn next_to_close(&mut self) -> Option<(PeerId, CloseConnection)> {
        None
    }
}

/// Makes a behaviour of a rule.
#[derive(Debug, Default)]
pub(super) struct Ruled<R>(R);

impl<R> Deref for Ruled<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.0
    }
}

impl<R> DerefMut for Ruled<R> {
    fn deref_mut(&mut self) -> &mut R {
        &mut self.0
    }
}

impl<R: ConnectionRule> NetworkBehaviour for Ruled<R> {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.0.admit_pending(id, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.admit_inbound(id, peer).map(|()| dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.admit_outbound(peer).map(|()| dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.0.on_event(event);
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        match self.0.next_to_close() {
            Some((peer_id, connection)) => Poll::Ready(ToSwarm::CloseConnection { peer_id, connection }),
            None => Poll::Pending,
        }
    }
}
