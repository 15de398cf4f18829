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
mod tls;

use super::circuits::{Arrived, CircuitTransport, Circuits};
use futures::io::BufReader;
pub use kinds::{Arrival, Elsewhere, Multiplexing, arrivals, causes, is_handed_over};
use layers::Layers;
pub use layers::RELAY_PROTOCOL_ONLY;
use libp2p::PeerId;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::timeout::TransportTimeout;
use libp2p::core::transport::{Boxed, Transport};
use libp2p::tcp::tokio::TcpStream;
pub use multiplexer::{Muxer, MuxerError, MuxerStream};
use rustix::net::sockopt;
use std::io;
use std::time::Duration;
pub use tls::{Tls, TlsError};
use tokio::sync::mpsc;

/// A connection on which something stays unacknowledged for this long ends: the network was cut, or the peer is gone.
/// Without this bound the kernel tries for a quarter of an hour, ever more rarely, so that a healed network would not
/// be noticed for a minute.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
/// How often an idle connection asks whether the other side is there, so that a silent one is found dead, too. 54 bytes
/// each.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Bytes that the kernel takes beyond what it may send at once. Nothing can overtake them, and on a slow line they wait
/// for long (without this bound up to 1.6 MB, more than a second at 10 Mbit/s).
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// Bytes of a connection that are read from the kernel at once: two TLS records. rustls itself asks for 4 KiB at a time,
/// which is five system calls for each record of a NAR.
const READ_BYTES: usize = 32 << 10;

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
    TransportTimeout::new(sockets, HANDSHAKE_TIMEOUT)
}

/// Sets what every TCP connection has.
pub fn prepare_socket(stream: TcpStream) -> BufReader<TcpStream> {
    if let Err(error) = notice_death(&stream) {
        tracing::warn!(%error, "a dead connection will be noticed late");
    }
    if let Err(error) = bound_unsent(&stream) {
        tracing::debug!(%error, "the kernel may buffer megabytes for a slow line");
    }
    BufReader::with_capacity(READ_BYTES, stream)
}

/// The kernel's error. libp2p's layers pass on the source of an error and not the error itself, so this puts it under
/// one.
#[derive(Debug, thiserror::Error)]
#[error("TCP: {0}")]
struct TcpError(#[source] io::Error);

/// Bounds both kinds of connection: which kind it is, is known only after its handshake.
fn bound_unsent(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(&stream.0).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

fn notice_death(stream: &TcpStream) -> rustix::io::Result<()> {
    let socket = &stream.0;
    sockopt::set_tcp_user_timeout(socket, u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).unwrap_or(u32::MAX))?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_ALIVE)?;
    // [`UNACKNOWLEDGED_MAX`] holds for these probes as well.
    sockopt::set_tcp_keepintvl(socket, UNACKNOWLEDGED_MAX / 2)
}

/// TCP as every node uses it: small frames leave at once.
pub fn tcp() -> libp2p::tcp::Config {
    libp2p::tcp::Config::new().nodelay(true)
}

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
    let of = |bounds: multiplexer::Bounds| READ_BYTES + bounds.leave_together_bytes;
    (of(multiplexer::Bounds::CONTROL), of(multiplexer::Bounds::BULK))
}
