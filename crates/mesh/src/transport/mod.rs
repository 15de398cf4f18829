//! How bytes travel between two nodes: TCP or a circuit, TLS 1.3 with libp2p's certificates, yamux. The only place where
//! they are set up.
//!
//! Walk: [`tcp`] gives sockets, [`Tls`] proves who is at the other end, [`Muxer`] makes streams of one connection; `layers`
//! puts them on each other, and hands connections that a relay passes on to it.
//! Invariants: nothing is spoken with a peer that has not shown the key of its PeerId; no connection holds more of what
//! we do not read than its bounds allow, and what a peer sends unasked is read at the pace that they allow.

mod kinds;
mod layers;
mod multiplexer;
mod rate_meter;
mod received;
pub(crate) mod sockets;
mod tls;

use super::circuits::{Arrived, CircuitTransport, Circuits};
use futures::io::BufReader;
pub use kinds::{Arrival, Elsewhere, Multiplexing, arrivals, causes, is_handed_over};
use layers::Layers;
use libp2p::PeerId;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::timeout::{TransportTimeout, TransportTimeoutError};
use libp2p::core::transport::{Boxed, Transport};
use libp2p::tcp::tokio::TcpStream;
pub use multiplexer::{Muxer, MuxerError, MuxerStream};
use narmesh_protocol::Removal;
use sockets::prepare_socket;
pub use sockets::tcp;
use std::io;
use std::time::Duration;
pub use tls::{Tls, TlsError};
use tokio::sync::mpsc;

/// A transport that gives connections with peers.
pub type PeerTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// A connection to an address is made within this, and so is the handshake on it.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// The transport of a swarm. It dials control connections, at addresses and over relays; other kinds that come in go
/// elsewhere.
pub(crate) fn control(
    tls: Tls,
    elsewhere: Elsewhere,
    circuits: Circuits,
    arrived: mpsc::Receiver<Arrived>,
) -> PeerTransport {
    let circuits = CircuitTransport::new(circuits, Some(arrived));
    build(Layers { tls, dialled: Multiplexing::Control, elsewhere: Some(elsewhere) }, circuits)
}

/// The transport by which a machine dials another one to join.
pub fn join(tls: Tls) -> PeerTransport {
    let layers = Layers { tls, dialled: Multiplexing::Join, elsewhere: None };
    tcp_sockets().and_then(move |socket, endpoint| layers.put_on(socket, endpoint)).boxed()
}

/// The transport by which a machine asks a member whether it was removed: it makes no connection that stays.
pub(crate) fn removal(tls: Tls) -> Boxed<(PeerId, Removal)> {
    tcp_sockets().and_then(move |socket, _| layers::ask_removal(tls, socket)).boxed()
}

/// The transport that dials bulk connections, at addresses and over relays.
pub(crate) fn bulk(tls: Tls, circuits: Circuits) -> PeerTransport {
    build(Layers { tls, dialled: Multiplexing::Bulk, elsewhere: None }, CircuitTransport::new(circuits, None))
}

fn build(layers: Layers, circuits: CircuitTransport) -> PeerTransport {
    circuits.or_transport(tcp_sockets()).and_then(move |socket, endpoint| layers.put_on(socket, endpoint)).boxed()
}

fn tcp_sockets()
-> impl Transport<Output = BufReader<TcpStream>, Error: Send + Sync + 'static, Dial: Send, ListenerUpgrade: Send>
+ Send
+ Unpin {
    let sockets = libp2p::tcp::tokio::Transport::new(tcp()).map(|stream, _| prepare_socket(stream)).map_err(TcpError);
    TransportTimeout::new(sockets, HANDSHAKE_TIMEOUT).map_err(|error| match error {
        TransportTimeoutError::Timeout => TcpError(io::ErrorKind::TimedOut.into()),
        TransportTimeoutError::TimerError(error) => TcpError(error),
        TransportTimeoutError::Other(error) => error,
    })
}

/// The kernel's error. libp2p's layers pass on the source of an error and not the error itself, so this puts it under
/// one.
#[derive(Debug, thiserror::Error)]
#[error("TCP: {0}")]
struct TcpError(#[source] io::Error);

/// What one peer may leave unread on its connections, for the sum over all peers: on a control connection, what it sends
/// unasked on a bulk connection, and what it sends unasked on one connection in a minute.
#[cfg(test)]
pub(crate) fn unread_bytes_max() -> (usize, usize, u64) {
    let per_minute = multiplexer::Bounds::UNASKED_BYTES;
    (
        multiplexer::Bounds::CONTROL.unread.bytes_max,
        multiplexer::Bounds::BULK.unread.unasked_bytes_max,
        per_minute.burst + 60 * per_minute.per_s,
    )
}

/// What is gathered of the bytes of one connection before they are sent, and what is read of it at once: of a control
/// connection, and of a bulk connection.
#[cfg(test)]
pub(crate) fn buffer_bytes() -> (usize, usize) {
    let of = |bounds: multiplexer::Bounds| sockets::READ_BYTES + bounds.leave_together_bytes;
    (of(multiplexer::Bounds::CONTROL), of(multiplexer::Bounds::BULK))
}
