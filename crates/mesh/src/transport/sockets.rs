//! What every TCP connection has.

use futures::io::BufReader;
use libp2p::tcp::tokio::TcpStream;
use rustix::net::sockopt;
use std::io;
use std::time::Duration;

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
pub(super) const READ_BYTES: usize = 32 << 10;

/// Sets what every TCP connection has.
pub(crate) fn prepare_socket(stream: TcpStream) -> BufReader<TcpStream> {
    if let Err(error) = notice_death(&stream) {
        tracing::warn!(%error, "a dead connection will be noticed late");
    }
    if let Err(error) = bound_unsent(&stream) {
        tracing::debug!(%error, "the kernel may buffer megabytes for a slow line");
    }
    BufReader::with_capacity(READ_BYTES, stream)
}

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
