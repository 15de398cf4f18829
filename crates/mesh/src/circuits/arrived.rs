//! Connections in which the other side has the part of the one that dials, on their way to the swarm.

use super::socket::Socket;
use super::way::{meeting_place, over_relay};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;

/// Connections that came in this way and that the swarm has not taken yet; a further one is closed.
const ARRIVED_MAX: usize = 16;

/// A connection in which the other side has the part of the one that dials.
pub(crate) struct Arrived {
    pub(super) socket: Socket,
    pub(super) from: Multiaddr,
}

impl Arrived {
    /// A circuit over this relay.
    pub(super) fn over_relay(relay: PeerId, socket: Socket) -> Self {
        Self { socket, from: over_relay(relay) }
    }

    /// A peer that was met.
    pub(crate) fn met(socket: Socket) -> Self {
        Self { socket, from: meeting_place() }
    }
}

/// Connects whoever takes part in a circuit with the transport.
pub(crate) fn arrivals() -> (mpsc::Sender<Arrived>, mpsc::Receiver<Arrived>) {
    mpsc::channel(ARRIVED_MAX)
}
