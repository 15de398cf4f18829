//! Addresses between the core's sockets and libp2p's multiaddrs, and which of them mean anything elsewhere.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::DialError;
use std::net::{IpAddr, SocketAddr};

/// The first IP and TCP port of a multiaddr.
pub(super) fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// `/ip4|ip6/…/tcp/…`.
pub(super) fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

/// Addresses that mean something on another machine; loopback only where the operator says that all nodes share one.
pub(super) fn may_be_told(ip: IpAddr, loopback: bool) -> bool {
    // ::ffff:127.0.0.1 is loopback, too.
    let ip = ip.to_canonical();
    if ip.is_loopback() {
        return loopback;
    }
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(link_local || ip.is_unspecified() || ip.is_multicast())
}

/// Of each address tried, why not.
pub(super) fn describe_dial_error(error: &DialError) -> String {
    match error {
        DialError::Transport(tried) => tried
            .iter()
            .map(|(address, error)| format!("{address}: {}", innermost(error)))
            .collect::<Vec<_>>()
            .join("; "),
        DialError::WrongPeerId { obtained, .. } => format!("another peer answers there: {obtained}"),
        other => other.to_string(),
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_only_what_means_something_elsewhere() {
        for (ip, told) in [
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.1.1", false),
            ("169.254.1.1", false),
            ("fe80::1", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
        ] {
            assert_eq!(may_be_told(ip.parse().unwrap(), false), told, "{ip}");
        }
        assert!(may_be_told("127.0.0.1".parse().unwrap(), true));
    }
}
