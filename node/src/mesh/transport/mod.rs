//! How bytes travel between two nodes: TCP, TLS 1.3 with libp2p's certificates, yamux. The one place where either is set up.
//!
//! Walk: [`tcp`] gives sockets, [`Tls`] proves who is at the other end, [`Yamux`] makes streams of one connection.
//! Invariants: nothing is spoken with a peer that has not shown the key of its PeerId; no connection holds more than
//! [`Yamux::RECEIVE_WINDOWS_BYTES_MAX`] of what a peer sent and we did not read.

mod multiplexer;
mod tls;

pub use multiplexer::{Muxer, MuxerError, MuxerStream, Yamux};
pub use tls::{Tls, TlsError};

/// TCP as every node speaks it: small frames leave at once.
pub fn tcp() -> libp2p::tcp::Config {
    libp2p::tcp::Config::new().nodelay(true)
}
