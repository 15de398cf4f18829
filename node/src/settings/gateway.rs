//! `[gateway]`: the address at which Nix asks, and the names that it may use.

use super::addresses::socket_address;
use super::{Count, SettingsError, refused, within};
use crate::config::GatewayConfig;
use libp2p::Multiaddr;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Most host names of the gateway besides those of loopback.
pub const HOST_NAMES_MAX: usize = 16;

/// Checked `[gateway]`.
#[derive(Clone, PartialEq, Debug)]
pub struct GatewaySettings {
    /// A loopback address; port 0 is allowed.
    pub listen: SocketAddr,
    /// At most [`HOST_NAMES_MAX`] names in lower case, without a port.
    pub host_names: Vec<String>,
    /// The priority that the gateway tells Nix.
    pub priority: u32,
    /// The longest time to answer a narinfo request, 50 ms to 60 s.
    pub narinfo_deadline: Duration,
    /// The same while it is worth waiting for a candidate, for instance one on a full line; at least
    /// `narinfo_deadline`.
    pub narinfo_deadline_max: Duration,
    /// Whether all narinfos are signed with the gateway key.
    pub sign: bool,
    /// Which sources are asked first.
    pub prefer: Prefer,
}

/// Which sources are asked first, for narinfos and for NARs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prefer {
    /// The peers of the mesh: an upstream cache is asked when the best of them is late.
    Mesh,
    /// Whichever usually answers first, and for NARs whichever should be done first.
    Fastest,
    /// The upstream caches: a peer is asked when the best of them is late.
    Upstream,
}

/// Checks `[gateway]`.
pub(super) fn check(config: &GatewayConfig) -> Result<GatewaySettings, SettingsError> {
    let narinfo_deadline_ms = within("gateway.narinfo_deadline_ms", config.narinfo_deadline_ms, (50, 60_000))?;
    let narinfo_deadline_max_ms =
        within("gateway.narinfo_deadline_max_ms", config.narinfo_deadline_max_ms, (50, 60_000))?;
    Ok(GatewaySettings {
        listen: check_listen(&config.listen)?,
        host_names: check_host_names(&config.host_names)?,
        priority: config.priority,
        narinfo_deadline: Duration::from_millis(narinfo_deadline_ms),
        narinfo_deadline_max: Duration::from_millis(narinfo_deadline_max_ms.max(narinfo_deadline_ms)),
        sign: config.sign,
        prefer: check_prefer(&config.prefer)?,
    })
}

/// Refuses one port for both the gateway and the mesh if their addresses overlap: the same address, or all of its
/// family.
pub(super) fn check_ports(gateway: SocketAddr, listen: &[Multiaddr]) -> Result<(), SettingsError> {
    let overlaps = |address: &SocketAddr| {
        let is_same_ip =
            address.ip() == gateway.ip() || (address.ip().is_unspecified() && address.is_ipv4() == gateway.is_ipv4());
        is_same_ip && address.port() == gateway.port() && gateway.port() != 0
    };
    let both = listen.iter().enumerate().find(|(_, address)| socket_address(address).as_ref().is_some_and(overlaps));
    both.map_or(Ok(()), |(index, address)| Err(SettingsError::OnePort { gateway, index, address: address.clone() }))
}

fn check_prefer(text: &str) -> Result<Prefer, SettingsError> {
    match text {
        "mesh" => Ok(Prefer::Mesh),
        "fastest" => Ok(Prefer::Fastest),
        "upstream" => Ok(Prefer::Upstream),
        other => Err(refused("gateway.prefer", other, "\"mesh\", \"fastest\" or \"upstream\"")),
    }
}

fn check_listen(text: &str) -> Result<SocketAddr, SettingsError> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) | Err(_) => Err(refused(
            "gateway.listen",
            text,
            "a loopback address with a port, such as 127.0.0.1:7281 or [::1]:7281 (the gateway serves this machine only)",
        )),
    }
}

/// Checks that each name may appear in a `Host` header: a DNS name, an IPv4 address, or an IPv6 address in brackets.
fn check_host_names(texts: &[String]) -> Result<Vec<String>, SettingsError> {
    if texts.len() > HOST_NAMES_MAX {
        return Err(refused("gateway.host_names", Count(texts.len(), "names"), "at most 16 names"));
    }
    let is_host = |text: &str| match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        }
    };
    let check = |(index, text): (usize, &String)| {
        const FORM: &str = "a name or address without a port, such as \"cache.lan\" or \"[2001:db8::1]\"";
        let key = || format!("gateway.host_names[{index}]");
        if is_host(text) { Ok(text.to_ascii_lowercase()) } else { Err(refused(key(), text, FORM)) }
    };
    texts.iter().enumerate().map(check).collect()
}
