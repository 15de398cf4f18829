//! Addresses of the mesh: those at which we listen, those that peers are told, and those at which peers are dialled.

use super::{SettingsError, refused};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::net::{IpAddr, SocketAddr};

/// Longest host name and longest label of one, bytes (RFC 1035, section 2.3.4).
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// What an address is used for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressUse {
    /// To listen. All interfaces (0.0.0.0 or ::) and port 0 are accepted, though nobody can dial them.
    Listen,
    /// To tell peers. Only IP addresses are accepted, because each machine decides for itself what a name means.
    Tell,
    /// To dial. A host name may take the place of the IP address.
    Dial,
}

pub(super) fn check(key: &str, texts: &[String], usage: AddressUse) -> Result<Vec<Multiaddr>, SettingsError> {
    let check = |(index, text): (usize, &String)| {
        check_one(text, usage).map_err(|accepted| refused(format!("{key}[{index}]"), text, accepted))
    };
    texts.iter().enumerate().map(check).collect()
}

/// An address that can be dialled.
pub(super) fn parse_dialable(text: &str) -> Option<Multiaddr> {
    check_one(text, AddressUse::Dial).ok()
}

/// Whether this is an address that a machine may tell others of itself: an IP address that can be dialled. What a name means
/// each machine decides for itself.
pub(crate) fn may_be_told(text: &str) -> bool {
    check_one(text, AddressUse::Tell).is_ok()
}

/// Whether this is an address that others can dial: also one with a host name.
pub(crate) fn may_be_dialled(text: &str) -> bool {
    check_one(text, AddressUse::Dial).is_ok()
}

/// The socket address of a multiaddr that begins with an IP address and a TCP port.
pub(crate) fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else { return None };
    Some(SocketAddr::new(ip, port))
}

fn check_one(text: &str, usage: AddressUse) -> Result<Multiaddr, &'static str> {
    const DIALLED: &str =
        "an address that can be dialled: not 0.0.0.0 or ::, and not port 0, such as /ip4/192.0.2.1/tcp/7280";
    const HOST: &str = "a host name of letters, digits, hyphens and dots, at most 253 bytes, such as \
                        /dns/buildbox.example/tcp/7280; an IP address goes after /ip4/ or /ip6/";
    let form = match usage {
        AddressUse::Listen | AddressUse::Tell => {
            "a multiaddr of an IP address and a TCP port, such as /ip4/192.0.2.1/tcp/7280 or /ip6/2001:db8::1/tcp/7280"
        }
        AddressUse::Dial => {
            "a multiaddr of an IP address or a host name and a TCP port, such as /ip4/192.0.2.1/tcp/7280, \
             /ip6/2001:db8::1/tcp/7280 or /dns/buildbox.example/tcp/7280 (/dns4/ and /dns6/ for one family)"
        }
    };
    let address: Multiaddr = text.parse().map_err(|_| form)?;
    let mut parts = address.iter();
    let may_be_dialled = match parts.next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified(),
        Some(Protocol::Dns(host) | Protocol::Dns4(host) | Protocol::Dns6(host)) if usage == AddressUse::Dial => {
            if !is_host_name(&host) {
                return Err(HOST);
            }
            true
        }
        _ => return Err(form),
    };
    // Nothing after the port: what libp2p could dial besides is not spoken here.
    let (Some(Protocol::Tcp(port)), None) = (parts.next(), parts.next()) else { return Err(form) };
    match usage {
        AddressUse::Tell | AddressUse::Dial if port == 0 || !may_be_dialled => Err(DIALLED),
        AddressUse::Tell | AddressUse::Dial | AddressUse::Listen => Ok(address),
    }
}

/// Whether this is a host name for a hosts file or DNS; a final dot marks it as complete. A name whose last label is a
/// number is refused, because the C library would take it for an IP address, as it does `1` and `127.1`.
fn is_host_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let permitted = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(permitted)
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit()) || label.starts_with("0x");
    text.len() <= HOST_BYTES_MAX
        && text.parse::<IpAddr>().is_err()
        && text.split('.').all(is_label)
        && !text.rsplit('.').next().is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_accepted_and_texts_that_look_like_addresses_refused() {
        let long = format!("{}.example", "a.".repeat(122));
        for name in ["buildbox", "build-box.example", "x_1.lan.", "1.example", "localhost", "3com"] {
            assert!(is_host_name(name), "{name}");
        }
        for name in ["", ".", "a..b", "-a", "a-", "a b", "büro.example", "127.0.0.1", "127.1", "1", "0x7f.0x1", &long]
        {
            assert!(!is_host_name(name), "{name}");
        }
        assert!(!is_host_name(&"a".repeat(64)));
    }
}
