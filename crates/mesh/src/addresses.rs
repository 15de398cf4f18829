//! Converts between the core's socket addresses and libp2p's multiaddrs, and says which addresses are of use to others.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::DialError;
use narmesh_protocol::{Summary, embedded_v4};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// The IP address and TCP port that a multiaddr begins with.
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

/// Whether an address is of a private network: who answers there most likely shares our line to the internet.
pub(super) fn is_local(address: &Multiaddr) -> bool {
    socket_address(address).is_some_and(|address| match address.ip().to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local(),
    })
}

/// Whether an address is of use to another machine. Loopback is where `loopback` says that all nodes share one machine.
pub(super) fn may_be_told(ip: IpAddr, loopback: bool) -> bool {
    // ::ffff:127.0.0.1 is loopback, too.
    let ip = ip.to_canonical();
    if ip.is_loopback() {
        return loopback;
    }
    let is_useless = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        // A translator or a tunnel at the other end would lead to the address in it.
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local() || embedded_v4(ip).any(|inner| !may_be_told(IpAddr::V4(inner), loopback))
        }
    };
    !(is_useless || ip.is_unspecified() || ip.is_multicast())
}

/// The addresses that peers are told: first those that the operator names, then the listen addresses of both families
/// in turn, `outward` ones before others. Otherwise a machine with many addresses of one family (bridges of containers,
/// temporary IPv6 addresses) would never be found by peers that have only the other.
pub(super) fn choose_told<'a>(
    external: &[Multiaddr],
    listened: impl Iterator<Item = &'a Multiaddr>,
    outward: &[IpAddr],
    loopback: bool,
) -> Vec<SocketAddr> {
    let usable = |address: &Multiaddr| socket_address(address).filter(|address| may_be_told(address.ip(), loopback));
    let mut addresses: Vec<_> = external.iter().filter_map(usable).collect();
    // Sorted, because the order in which the system lists them may change, and another order would be another summary.
    let ranked = |address: SocketAddr| (!outward.contains(&address.ip()), address);
    let listened: BTreeSet<_> = listened.filter_map(usable).map(ranked).collect();
    let (v4, v6): (Vec<_>, Vec<_>) = listened.into_iter().map(|(_, address)| address).partition(SocketAddr::is_ipv4);
    let most = v4.len().max(v6.len());
    addresses.extend((0..most).flat_map(|rank| v4.get(rank).into_iter().chain(v6.get(rank))));
    // The operator may name what we listen on anyway.
    let mut seen = BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses.truncate(Summary::ADDRESSES_MAX);
    addresses
}

/// Our IPv4 address on the route to the internet, if there is one.
pub fn find_outward_v4() -> Option<IpAddr> {
    find_own_address("0.0.0.0:0", "192.0.2.1:9")
}

/// The IPv6 address by which this machine reaches others, found as [`find_outward_v4`] finds that of IPv4.
pub fn find_outward_v6() -> Option<IpAddr> {
    find_own_address("[::]:0", "[2001:db8::1]:9")
}

/// Our address on the route to `far`. Connecting a UDP socket sends nothing: the kernel only looks up the route.
fn find_own_address(near: &str, far: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind(near).ok()?;
    socket.connect(far).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    // Where the machine has heard of a router and of nothing else, this is link-local, and of no use to others.
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    (!is_link_local).then_some(ip)
}

/// Why the dial failed, for each address that was tried.
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
    fn only_addresses_of_use_elsewhere_are_told() {
        for (ip, told) in [
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.1.1", false),
            ("64:ff9b::127.0.0.1", false),
            ("2002:7f00:1::1", false),
            ("::169.254.169.254", false),
            ("64:ff9b::10.0.0.1", true),
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

    #[test]
    fn many_listen_addresses_leave_room_for_both_families_and_external_ones() {
        let parse = |texts: Vec<String>| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Multiaddr>>();
        let external = parse(vec!["/ip4/203.0.113.7/tcp/1".to_owned(), "/dns4/a.example/tcp/1".to_owned()]);
        let mut listened = parse((1..20).map(|host| format!("/ip4/192.0.2.{host}/tcp/7280")).collect());
        listened.extend(parse((1..20).map(|host| format!("/ip6/2001:db8::{host}/tcp/7280")).collect()));
        listened.extend(parse(vec!["/ip6/fe80::1/tcp/7280".to_owned(), "/ip6/::1/tcp/7280".to_owned()]));
        let outward = ["192.0.2.19", "2001:db8::19"].map(|ip| ip.parse().unwrap());
        let told_of = |listened: &[Multiaddr]| choose_told(&external, listened.iter(), &outward, false);
        let addresses = told_of(&listened);
        assert_eq!(addresses.len(), Summary::ADDRESSES_MAX);
        let first = ["203.0.113.7:1", "192.0.2.19:7280", "[2001:db8::19]:7280"].map(|text| text.parse().unwrap());
        assert_eq!(addresses[..3], first, "external addresses first, then outward ones");
        assert_eq!(addresses.iter().filter(|address| address.is_ipv6()).count(), 3, "{addresses:?}");
        listened.reverse();
        assert_eq!(told_of(&listened), addresses, "the system's order does not matter");
        assert_eq!(told_of(&parse(vec!["/ip4/203.0.113.7/tcp/1".to_owned()])).len(), 1, "each once");
        assert_eq!(told_of(&parse(vec!["/ip6/2001:db8::1/tcp/7280".to_owned()])).len(), 2);
    }
}
