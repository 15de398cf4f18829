//! Whether a host is on the internet: neither this machine nor in a private network.

use crate::settings::ProxyChoice;
use hyper_util::client::proxy::matcher::Matcher;
use narmesh_protocol::embedded_v4;
use reqwest::Url;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use url::Host;

/// Names below these are never on the internet (RFC 6761, 6762 and 8375, ICANN's resolution of 2024, and what hosts
/// files have).
const PRIVATE_NAMES: [&str; 5] = ["localhost", "localdomain", "local", "internal", "home.arpa"];

/// Which requests go through a proxy.
#[derive(Debug)]
pub(crate) enum Proxied {
    None,
    All,
    /// By the same rules as the HTTP client, which has them from the environment, too.
    ByEnvironment(Box<Matcher>),
}

impl Proxied {
    pub(crate) fn of(choice: &ProxyChoice) -> Self {
        match choice {
            ProxyChoice::Direct => Self::None,
            ProxyChoice::Url(_) => Self::All,
            ProxyChoice::Environment => Self::ByEnvironment(Box::new(Matcher::from_system())),
        }
    }

    pub(crate) fn is_used_for(&self, url: &Url) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::ByEnvironment(rules) => url.as_str().parse().is_ok_and(|address| rules.intercept(&address).is_some()),
        }
    }
}

/// Whether the host of a URL is on the internet, as far as its name tells: a private address may be behind any name, and
/// who resolves it has to look again.
pub(crate) fn public_by_name(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => is_public_v4(address),
        Some(Host::Ipv6(address)) => is_public_v6(address),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let is_below =
                |private: &&str| name.strip_suffix(*private).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            // A name without a dot is one of this network.
            name.contains('.') && !PRIVATE_NAMES.iter().any(is_below)
        }
        None => false,
    }
}

/// Whether an address is on the internet.
pub(crate) fn is_public_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    // The registry of special addresses (RFC 6890).
    let is_special = match address.octets() {
        // Between a provider and its customers (RFC 6598).
        [100, 64..=127, ..] => true,
        // "This" network, protocols, documentation, measurements, and what is reserved.
        [0, ..] | [192, 0, 0 | 2, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] | [240..=255, ..] => {
            true
        }
        _ => false,
    };
    !(is_special || address.is_loopback() || address.is_private() || address.is_link_local() || address.is_multicast())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let is_routed = match address.segments() {
        // Documentation, and what is used inside of a network: measurements, identifiers without a place. Teredo has
        // the rest of the protocols' block to itself, and is judged by what it contains.
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x2001, 1..=0x1ff, ..] => false,
        // All that is given out for the internet.
        [0x2000..=0x3fff, ..] => true,
        // IPv4 by other means: mapped, and through a translator.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => true,
        _ => false,
    };
    is_routed && embedded_v4(address).all(is_public_v4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_told_from_public_ones() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "192.0.0.1",
            "198.18.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
        ] {
            assert!(!is_public_address(private.parse().unwrap()), "{private}");
        }
        for public in ["151.101.1.91", "2a04:4e42::347", "100.128.0.1", "192.0.1.1", "2001:4860:4860::8888"] {
            assert!(is_public_address(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn an_address_that_contains_a_private_one_is_private() {
        for private in [
            "::ffff:127.0.0.1",
            "::ffff:10.1.2.3",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::192.168.1.1",
            "64:ff9b:1:0:a:102:300:0",
            "2002:7f00:1::1",
            "2002:a01:203::9.9.9.9",
            "2001:0:a01:203::",
            "2001:0:909:909:0:0:80ff:fffe",
            "2a04:4e42::5efe:10.1.2.3",
        ] {
            assert!(!is_public_address(private.parse().unwrap()), "{private}");
        }
        for public in [
            "::ffff:151.101.1.91",
            "64:ff9b::151.101.1.91",
            "64:ff9b:1::151.101.1.91",
            "2002:9765:15b::1",
            "2001:0:9765:15b:0:0:689a:fea4",
        ] {
            assert!(is_public_address(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn names_that_the_internet_does_not_have_are_private() {
        let judged = |host: &str| public_by_name(&Url::parse(&format!("http://{host}/x")).unwrap());
        for private in [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "router",
            "metadata.google.internal",
            "printer.local",
            "nas.home.arpa",
            "127.1",
            "0x7f000001",
            "[64:ff9b::7f00:1]",
        ] {
            assert!(!judged(private), "{private}");
        }
        for public in ["cache.nixos.org", "cache.nixos.org.", "notlocalhost.example", "151.101.1.91"] {
            assert!(judged(public), "{public}");
        }
    }
}
