//! Addresses at which nobody can be reached.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};

/// How long the kernel may take to finish a handshake that it will finish.
const HANDSHAKE: Duration = Duration::from_millis(200);

/// A port of which nobody listens.
pub(super) fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a loopback port")
}

/// An address at which a SYN is answered by nothing: the queue of its socket is full.
#[derive(Debug)]
pub(super) struct BlackHole {
    pub(super) address: SocketAddr,
    _listener: OwnedFd,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    pub(super) fn open() -> Self {
        let listener = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        rustix::net::listen(&listener, 0).expect("a bound socket listens");
        let address = rustix::net::getsockname(&listener).expect("a bound socket has an address");
        let address = SocketAddr::try_from(address).expect("it is one of IPv4");
        let queued = std::iter::from_fn(|| TcpStream::connect_timeout(&address, HANDSHAKE).ok()).collect();
        Self { address, _listener: listener, _queued: queued }
    }
}
