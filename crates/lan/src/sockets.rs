//! The sockets of multicast DNS, one for IPv4 and one for IPv6.

use crate::interfaces::Interface;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use std::future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::net::UdpSocket;

/// RFC 6762, section 3.
const PORT: u16 = 5353;
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// RFC 6762, section 11.
const HOPS: u32 = 255;

/// Each is missing where no interface has its family.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Sockets {
    /// Joins the group on each of these interfaces. Returns also why one of them could not be joined.
    pub(crate) fn open(interfaces: &[Interface]) -> (Self, Option<io::Error>) {
        let mut failure = None;
        let mut opened = |socket: io::Result<UdpSocket>| socket.map_err(|error| failure = Some(error)).ok();
        let has = |is_v4: bool| interfaces.iter().any(|one| if is_v4 { one.v4.is_some() } else { one.has_v6 });
        let v4 = has(true).then(|| open_v4(interfaces)).and_then(&mut opened);
        let v6 = has(false).then(|| open_v6(interfaces)).and_then(&mut opened);
        (Self { v4, v6 }, failure)
    }

    /// The length of the next packet; never, if there is no socket. Dropping the future loses nothing.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let is_readable = async |socket: &Option<UdpSocket>| match socket {
            Some(socket) => socket.readable().await,
            None => future::pending().await,
        };
        loop {
            tokio::select! {
                readable = is_readable(&self.v4) => readable?,
                readable = is_readable(&self.v6) => readable?,
            }
            // Readiness may be of before, so both are tried, and "would block" is no answer.
            for socket in [&self.v4, &self.v6].into_iter().flatten() {
                match socket.try_recv(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    received => return received,
                }
            }
        }
    }

    /// Sends to everybody on this interface. What the kernel has no room for is lost, like what a network loses.
    pub(crate) fn send(&self, interface: &Interface, packet: &[u8]) -> io::Result<()> {
        if let (Some(socket), Some(own)) = (&self.v4, &interface.v4) {
            SockRef::from(socket).set_multicast_if_v4(own)?;
            lossy(socket.try_send_to(packet, SocketAddr::new(IpAddr::V4(GROUP_V4), PORT)))?;
        }
        if let Some(socket) = self.v6.as_ref().filter(|_| interface.has_v6) {
            SockRef::from(socket).set_multicast_if_v6(interface.index)?;
            lossy(socket.try_send_to(packet, SocketAddr::new(IpAddr::V6(GROUP_V6), PORT)))?;
        }
        Ok(())
    }
}

fn lossy(sent: io::Result<usize>) -> io::Result<()> {
    match sent {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn open_v4(interfaces: &[Interface]) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    for interface in interfaces.iter().filter(|interface| interface.v4.is_some()) {
        socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(interface.index))?;
    }
    // What other programs of this machine joined is not for us.
    socket.set_multicast_all_v4(false)?;
    socket.set_multicast_ttl_v4(HOPS)?;
    socket.set_multicast_loop_v4(false)?;
    bind(socket, IpAddr::V4(GROUP_V4))
}

fn open_v6(interfaces: &[Interface]) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    for interface in interfaces.iter().filter(|interface| interface.has_v6) {
        socket.join_multicast_v6(&GROUP_V6, interface.index)?;
    }
    // Only what comes on the interfaces that were joined: other programs join the group elsewhere.
    socket.set_multicast_all_v6(false)?;
    socket.set_multicast_hops_v6(HOPS)?;
    socket.set_multicast_loop_v6(false)?;
    bind(socket, IpAddr::V6(GROUP_V6))
}

/// Binds to the group, so that no packet for another program of multicast DNS on this machine comes to us instead: those
/// have unicast packets as well.
fn bind(socket: Socket, group: IpAddr) -> io::Result<UdpSocket> {
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(group, PORT).into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}
