//! The interfaces on which we announce ourselves: those that have an address at which we listen and that others can use.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::seal::ADDRESSES_MAX;

/// The most interfaces that are used; the kernel lets a socket join 20 groups.
const INTERFACES_MAX: usize = 16;

/// An interface on which others may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    /// One of its IPv4 addresses, by which the kernel knows it.
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) has_v6: bool,
    /// Where we listen on it.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// The interfaces of this machine that have one of the addresses `listened` on. Without such an address the system is not
/// asked.
pub(crate) fn find(listened: &[SocketAddr]) -> io::Result<Vec<Interface>> {
    let listened: Vec<_> = listened.iter().copied().filter(|address| is_of_use(address.ip())).collect();
    if listened.is_empty() {
        return Ok(Vec::new());
    }
    let interfaces = if_addrs::get_if_addrs()?.into_iter();
    // At the other end of a line between two machines, such as a tunnel, is no local network.
    let shared = interfaces.filter(|interface| !interface.is_p2p() && !interface.is_loopback());
    Ok(group(&listened, shared.filter_map(|interface| Some((interface.index?, interface.ip())))))
}

/// Whether other machines of the network can dial this. A link-local address of IPv6 leads nowhere without the name of an
/// interface, which is another one on each machine.
fn is_of_use(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local)
}

fn group(listened: &[SocketAddr], owned: impl Iterator<Item = (u32, IpAddr)>) -> Vec<Interface> {
    let mut interfaces = BTreeMap::new();
    for (index, ip) in owned {
        let here: Vec<_> = listened.iter().copied().filter(|address| address.ip() == ip).collect();
        if here.is_empty() {
            continue;
        }
        let interface = interfaces.entry(index).or_insert_with(|| Interface {
            index,
            v4: None,
            has_v6: false,
            addresses: Vec::new(),
        });
        match ip {
            IpAddr::V4(ip) => interface.v4 = interface.v4.or(Some(ip)),
            IpAddr::V6(_) => interface.has_v6 = true,
        }
        interface.addresses.extend(here);
    }
    interfaces.into_values().take(INTERFACES_MAX).map(Interface::bounded).collect()
}

impl Interface {
    /// Leaves as many addresses as one announcement holds, of both families: temporary addresses of IPv6 may be many.
    fn bounded(mut self) -> Self {
        self.addresses.sort_unstable();
        let (v4, v6): (Vec<_>, Vec<_>) = self.addresses.iter().copied().partition(SocketAddr::is_ipv4);
        let v4_count = v4.len().min(ADDRESSES_MAX - v6.len().min(ADDRESSES_MAX / 2));
        self.addresses = v4.into_iter().take(v4_count).chain(v6).take(ADDRESSES_MAX).collect();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_machine_that_listens_on_loopback_alone_has_no_interface() {
        let listened = parse(&["127.0.0.1:7280", "[::1]:7280", "[fe80::1]:7280", "169.254.0.1:7280", "0.0.0.0:1"]);
        assert_eq!(find(&listened).unwrap(), []);
    }

    #[test]
    fn each_interface_announces_its_own_addresses_of_both_families() {
        let listened = parse(&["192.0.2.1:7280", "198.51.100.1:7280", "[2001:db8::1]:7281"]);
        let owned = ["192.0.2.1", "2001:db8::1", "203.0.113.1"].map(|ip| (2, ip.parse().unwrap()));
        let owned = owned.into_iter().chain([(3, "198.51.100.1".parse().unwrap()), (4, "192.0.2.9".parse().unwrap())]);
        let found = group(&listened, owned);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].addresses, parse(&["192.0.2.1:7280", "[2001:db8::1]:7281"]));
        assert!(found[0].v4.is_some() && found[0].has_v6);
        assert_eq!((found[1].index, found[1].has_v6), (3, false));
    }

    #[test]
    fn many_addresses_leave_room_for_both_families() {
        let v4 = (1..20).map(|host| format!("192.0.2.{host}:1"));
        let both: Vec<String> = v4.chain((1..20).map(|host| format!("[2001:db8::{host:x}]:1"))).collect();
        let listened = parse(&both.iter().map(String::as_str).collect::<Vec<_>>());
        for (listened, v4_count) in
            [(&listened[..], 4), (&listened[..19], 8), (&listened[17..], 2), (&listened[19..], 0)]
        {
            let found = group(listened, listened.iter().map(|address| (1, address.ip())));
            assert_eq!(found[0].addresses.len(), ADDRESSES_MAX);
            assert_eq!(found[0].addresses.iter().filter(|address| address.is_ipv4()).count(), v4_count);
        }
        let many = group(&listened, listened.iter().zip(1..).map(|(address, index)| (index, address.ip())));
        assert_eq!(many.len(), INTERFACES_MAX);
    }
}
