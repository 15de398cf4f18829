//! `[gateway]`: the address at which Nix asks, and the names that it may use.

use super::addresses::socket_address;
use super::host_names::check_names;
use super::listeners::{self, ListenerAddress, ListenerSettings};
use super::{SettingsError, refused, within};
use crate::config::GatewayConfig;
use libp2p::Multiaddr;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Checked `[gateway]`.
#[derive(Clone, PartialEq, Debug)]
pub struct GatewaySettings {
    /// A loopback address; port 0 is allowed.
    pub listen: SocketAddr,
    /// At most [`super::HOST_NAMES_MAX`] names in lower case, without a port.
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
    /// `[[gateway.listener]]`: at most 16, each at a place of its own.
    pub listeners: Vec<ListenerSettings>,
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
pub(super) fn check(config: &GatewayConfig, base: &Path) -> Result<GatewaySettings, SettingsError> {
    let narinfo_deadline_ms = within("gateway.narinfo_deadline_ms", config.narinfo_deadline_ms, (50, 60_000))?;
    let narinfo_deadline_max_ms =
        within("gateway.narinfo_deadline_max_ms", config.narinfo_deadline_max_ms, (50, 60_000))?;
    Ok(GatewaySettings {
        listen: check_listen(&config.listen)?,
        host_names: check_names("gateway.host_names", &config.host_names)?,
        priority: config.priority,
        narinfo_deadline: Duration::from_millis(narinfo_deadline_ms),
        // Whoever raises the deadline alone means that it counts.
        narinfo_deadline_max: Duration::from_millis(narinfo_deadline_max_ms.max(narinfo_deadline_ms)),
        sign: config.sign,
        prefer: check_prefer(&config.prefer)?,
        listeners: listeners::check(&config.listener, base)?,
    })
}

/// Refuses one port for both a listener of the gateway and the mesh, or for two listeners, if their addresses overlap: the
/// same address, or all of its family.
pub(super) fn check_ports(gateway: &GatewaySettings, listen: &[Multiaddr]) -> Result<(), SettingsError> {
    let mut taken = vec![("gateway.listen".to_owned(), gateway.listen)];
    for (index, listener) in gateway.listeners.iter().enumerate() {
        let ListenerAddress::Tcp(address) = listener.address else { continue };
        let key = format!("gateway.listener[{index}].address");
        // The second to open it would fail with an error of the system that names no key.
        if let Some((other, first)) = taken.iter().find(|(_, first)| overlap(*first, address)) {
            return Err(SettingsError::OnePort {
                key,
                gateway: address,
                other: other.clone(),
                address: first.to_string(),
            });
        }
        taken.push((key, address));
    }
    for (index, address) in listen.iter().enumerate() {
        let Some(mesh) = socket_address(address) else { continue };
        if let Some((key, gateway)) = taken.iter().find(|(_, gateway)| overlap(*gateway, mesh)) {
            let (other, address) = (format!("node.listen[{index}]"), address.to_string());
            return Err(SettingsError::OnePort { key: key.clone(), gateway: *gateway, other, address });
        }
    }
    Ok(())
}

/// Whether two sockets cannot be open at these addresses.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    let is_same_ip = one.ip() == other.ip() || (is_any && one.is_ipv4() == other.is_ipv4());
    is_same_ip && one.port() == other.port() && one.port() != 0
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
