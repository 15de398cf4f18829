//! How bytes travel between two nodes: TCP, TLS 1.3 with libp2p's certificates, yamux. The one place where either is set up.
//!
//! Walk: [`tcp`] gives sockets, [`Tls`] proves who is at the other end, [`Yamux`] makes streams of one connection.
//! Invariants: nothing is spoken with a peer that has not shown the key of its PeerId; no connection holds more than
//! [`Yamux::RECEIVE_WINDOWS_BYTES_MAX`] of what a peer sent and we did not read.

mod multiplexer;
mod tls;

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, Transport};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, tcp::tokio::TcpStream};
pub use multiplexer::{Muxer, MuxerError, MuxerStream, Yamux};
use rustix::net::sockopt;
use std::time::Duration;
pub use tls::{Tls, TlsError};

/// What was sent and not acknowledged for so long ends the connection: the network was cut, or the peer is gone. Without it the
/// kernel tries for a quarter of an hour, and ever more rarely, so that a healed network would not be noticed for a minute.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
/// An idle connection asks so often whether the other side is there, so that one without a word is found dead, too. 54 bytes each.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The whole transport of a node.
pub fn build(keypair: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, TlsError> {
    let transport = libp2p::tcp::tokio::Transport::new(tcp())
        .map(|stream, _| {
            if let Err(error) = notice_death(&stream) {
                tracing::warn!(%error, "a dead connection will be noticed late");
            }
            stream
        })
        .upgrade(Version::V1Lazy)
        .authenticate(Tls::new(keypair)?)
        .multiplex(Yamux);
    Ok(transport.boxed())
}

fn notice_death(stream: &TcpStream) -> rustix::io::Result<()> {
    let socket = &stream.0;
    sockopt::set_tcp_user_timeout(socket, u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).unwrap_or(u32::MAX))?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_ALIVE)?;
    // The unacknowledged time counts for these as well.
    sockopt::set_tcp_keepintvl(socket, UNACKNOWLEDGED_MAX / 2)
}

/// TCP as every node speaks it: small frames leave at once.
pub fn tcp() -> libp2p::tcp::Config {
    libp2p::tcp::Config::new().nodelay(true)
}
