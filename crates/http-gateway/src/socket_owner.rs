//! Finds out from which local user a loopback connection comes. What others lose without it is in
//! docs/decisions/0025-users-share-the-gateway.md.
//!
//! TCP has no `SO_PEERCRED`. Through `NETLINK_SOCK_DIAG` the kernel gives the owner of a socket by its addresses
//! and ports, in 1.6 µs per query however many sockets there are (sock_diag(7), `inet_diag.h`). `/proc/net/tcp`
//! has the same information, but reading it takes some ms of CPU because it walks the kernel's whole table, and
//! more if somebody fills that table.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// `SOCK_DIAG_BY_FAMILY`, the message type of request and answer.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`.
const NLM_F_REQUEST: u16 = 1;
/// `sizeof(struct nlmsghdr)`.
const HEADER_BYTES: usize = 16;
/// `sizeof(struct inet_diag_req_v2)`.
const REQUEST_BYTES: usize = 56;
/// Offsets of `idiag_state` and `idiag_uid` in `struct inet_diag_msg`.
const STATE_AT: usize = 1;
const UID_AT: usize = 64;
/// `TCP_ESTABLISHED`. Only this state is accepted, because for a socket that its owner has closed the kernel says user 0.
const ESTABLISHED: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// Asks the kernel for the owners of sockets.
#[derive(Debug)]
pub(crate) struct SocketOwners {
    /// The netlink socket. `None` if the kernel does not support it; then no owner is known.
    diag: Option<OwnedFd>,
}

impl SocketOwners {
    pub(crate) fn new() -> Self {
        let diag =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG));
        if let Err(error) = &diag {
            tracing::debug!(%error, "the kernel does not say who owns a socket");
        }
        Self { diag: diag.ok() }
    }

    /// The user id of the owner of the socket at `client` that is connected to ours at `server`. `None` if that socket is
    /// no longer open, or not on this machine.
    pub(crate) fn find_owner(&self, client: SocketAddr, server: SocketAddr) -> Option<u32> {
        let diag = self.diag.as_ref()?;
        // The kernel answers within the `send` call. A late answer to an earlier question is thrown away.
        let mut answer = [0; 512];
        while recv(diag, &mut answer, RecvFlags::DONTWAIT).is_ok() {}
        send(diag, &request(client, server), SendFlags::DONTWAIT).ok()?;
        let (_, length) = recv(diag, &mut answer, RecvFlags::DONTWAIT).ok()?;
        parse(answer.get(..length)?)
    }
}

fn request(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    let length = u32::try_from(HEADER_BYTES + REQUEST_BYTES).expect("72 fits");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port id are 0, because there is only one question at a time.
    bytes.extend([0; 8]);
    let family = if client.is_ipv4() { AF_INET } else { AF_INET6 };
    // Family, protocol, no extensions, padding, all states.
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(client.port().to_be_bytes());
    bytes.extend(server.port().to_be_bytes());
    bytes.extend(address(client.ip()));
    bytes.extend(address(server.ip()));
    // Any interface, no cookie.
    bytes.extend([0; 4]);
    bytes.extend([0xff; 8]);
    bytes
}

fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            for (to, from) in bytes.iter_mut().zip(ip.octets()) {
                *to = from;
            }
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The user id in an answer. An error such as "no such socket" has another message type and gives `None`.
fn parse(answer: &[u8]) -> Option<u32> {
    let (header, message) = answer.split_at_checked(HEADER_BYTES)?;
    let kind = u16::from_ne_bytes(header.get(4..6)?.try_into().ok()?);
    let is_open = kind == SOCK_DIAG_BY_FAMILY && *message.get(STATE_AT)? == ESTABLISHED;
    is_open.then_some(u32::from_ne_bytes(message.get(UID_AT..UID_AT + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn owner_is_known_only_for_an_open_socket() {
        let owners = SocketOwners::new();
        let us = std::fs::metadata("/proc/self").unwrap().uid();
        for own in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(own).unwrap();
            let server = listener.local_addr().unwrap();
            let client = TcpStream::connect(server).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            assert_eq!(owners.find_owner(peer, server), Some(us));
            // No socket has this other port.
            let other = SocketAddr::new(peer.ip(), 1);
            assert_eq!(owners.find_owner(other, server), None);
            drop(client);
            assert_eq!(owners.find_owner(peer, server), None, "closed, it would count as root's");
            drop(accepted);
            // A second query works too: answers do not pile up.
            assert_eq!(owners.find_owner(peer, server), None);
        }
    }

    #[test]
    fn truncated_answer_gives_no_owner() {
        let whole = [&[0_u8; 4][..], &20_u16.to_ne_bytes(), &[0; 10], &[2, 1], &[0; 62], &7_u32.to_ne_bytes()].concat();
        assert_eq!(parse(&whole), Some(7));
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None);
        }
    }
}
