//! The proxies in front of a listener that are believed when they say for whom they ask.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::HeaderName;

use crate::client::Client;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Most addresses of one request that are looked at, from the last one on. A chain of more proxies than a few is a mistake.
const HOPS_MAX: usize = 16;

/// Whose `X-Forwarded-For` is believed. By default nobody's, because every client can send it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// The networks from which proxies connect.
    pub networks: Vec<Network>,
    /// Whether who connects through a Unix socket is one.
    pub unix: bool,
}

/// A network, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u32,
}

impl Network {
    /// Parses `192.0.2.1`, `192.0.2.0/24` or the same of IPv6. `None` if it is anything else, also if bits after the prefix are
    /// set, which is more likely a mistake than meant.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().ok()?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix {
            None => bits_max,
            // Parsing alone would take `+8`, too.
            Some(text) if text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok()?,
            Some(_) => return None,
        };
        if prefix_bits > bits_max || (prefix.is_some() && without_host(address, prefix_bits) != address) {
            return None;
        }
        // An address of IPv4 in the form of IPv6 is compared as one of IPv4.
        match address.to_canonical() {
            canonical if canonical == address => Some(Self { address, prefix_bits }),
            canonical => Some(Self { address: canonical, prefix_bits: prefix_bits.checked_sub(96)? }),
        }
    }

    /// Whether every address of its kind is in it.
    pub fn is_everybody(self) -> bool {
        self.prefix_bits == 0
    }

    /// Whether the address is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && without_host(address, self.prefix_bits) == self.address
    }
}

/// The address with all bits after the prefix cleared.
fn without_host(address: IpAddr, prefix_bits: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix_bits)).unwrap_or(0);
            std::net::Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix_bits)).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

impl TrustedProxies {
    /// Whether this client is a proxy that is believed.
    pub(crate) fn includes(&self, client: Client) -> bool {
        match client {
            Client::Address(address) => self.networks.iter().any(|network| network.contains(address)),
            Client::User(_) => self.unix,
        }
    }

    /// For whom `sender` asks: the last address of `X-Forwarded-For` that is not that of a proxy which is believed. What stands
    /// before it was written by somebody else, perhaps by that client. `None` if it asks for itself.
    pub(crate) fn find_client(&self, sender: Client, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.includes(sender) {
            return None;
        }
        let values = headers.get_all(&X_FORWARDED_FOR).iter().rev();
        let hops = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        let mut found = None;
        // From the last one on, because each proxy adds at the end.
        for hop in hops.take(HOPS_MAX) {
            // A proxy that writes no address says no more than the one before it.
            let Some(address) = parse_hop(hop) else { break };
            found = Some(address);
            if !self.includes(Client::Address(address)) {
                break;
            }
        }
        found
    }
}

/// Parses an address, with a port or without.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    let address = text.parse().ok().or_else(|| text.parse().ok().map(|address: SocketAddr| address.ip()));
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(bare).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_parsed_and_compared_by_their_prefix() {
        for (network, inside, outside) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("0.0.0.0/0", "198.51.100.1", "2001:db8::1"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "11.0.0.0"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.0"),
            ("2001:db8::/32", "2001:db8:1::1", "2001:db9::1"),
            ("::1", "::1", "127.0.0.1"),
            ("::/0", "2001:db8::1", "127.0.0.1"),
        ] {
            let parsed = Network::parse(network).unwrap();
            assert!(parsed.contains(address(inside)) && !parsed.contains(address(outside)), "{network}");
        }
        for wrong in
            ["", "x", "192.0.2.1/24", "192.0.2.0/33", "192.0.2.0/+8", "::/129", "::1/64", "192.0.2.0/", "1.2.3.4/8/8"]
        {
            assert_eq!(Network::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_what_believed_proxies_wrote_counts() {
        let networks = ["192.0.2.1", "10.0.0.0/8"].map(|text| Network::parse(text).unwrap()).into();
        let proxies = TrustedProxies { networks, unix: false };
        let find = |sender: &str, values: &[&str]| {
            let name = || X_FORWARDED_FOR.clone();
            let headers = values.iter().map(|value| (name(), HeaderValue::from_str(value).unwrap()));
            let mut all = HeaderMap::new();
            headers.for_each(|(name, value)| {
                all.append(name, value);
            });
            proxies.find_client(Client::Address(address(sender)), &all).map(|found| found.to_string())
        };
        for (sender, values, found) in [
            ("192.0.2.1", &["198.51.100.7"][..], Some("198.51.100.7")),
            ("192.0.2.1", &["203.0.113.9, 198.51.100.7"], Some("198.51.100.7")),
            ("192.0.2.1", &["203.0.113.9, 198.51.100.7, 10.0.0.1"], Some("198.51.100.7")),
            ("192.0.2.1", &["203.0.113.9", "198.51.100.7"], Some("198.51.100.7")),
            ("192.0.2.1", &["198.51.100.7:4711"], Some("198.51.100.7")),
            ("192.0.2.1", &["[2001:db8::7]:1"], Some("2001:db8::7")),
            ("192.0.2.1", &["[2001:db8::7]"], Some("2001:db8::7")),
            ("192.0.2.1", &["::ffff:198.51.100.7"], Some("198.51.100.7")),
            ("192.0.2.1", &["10.0.0.2, 10.0.0.1"], Some("10.0.0.2")),
            ("192.0.2.1", &["203.0.113.9, unknown, 10.0.0.1"], Some("10.0.0.1")),
            ("192.0.2.1", &["unknown"], None),
            ("192.0.2.1", &[""], None),
            ("192.0.2.1", &[], None),
            // Everybody can write it.
            ("198.51.100.7", &["203.0.113.9"], None),
        ] {
            assert_eq!(find(sender, values).as_deref(), found, "{sender} {values:?}");
        }
        let long = format!("203.0.113.9, {}", ["10.0.0.1"; 1_000].join(","));
        assert_eq!(find("192.0.2.1", &[&long]).as_deref(), Some("10.0.0.1"), "bounded");
        assert_eq!(proxies.find_client(Client::User(Some(0)), &HeaderMap::new()), None);
    }
}
