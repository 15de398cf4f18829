//! `[[gateway.listener]]`: where others than our own Nix may ask, and what they get.

use super::host_names::check_names;
use super::tls::TlsFiles;
use super::{Count, SOCKET_PATH_BYTES_MAX, SettingsError, path_from, refused, within};
use crate::config::ListenerConfig;
use narmesh_http_gateway::{Network, TrustedProxies};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most listeners besides `gateway.listen`.
pub const LISTENERS_MAX: usize = 16;

/// How the address of a listener begins whose socket systemd hands over.
const SYSTEMD_PREFIX: &str = "systemd:";

/// One checked `[[gateway.listener]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenerSettings {
    /// Where it listens; no other listener has the same place.
    pub address: ListenerAddress,
    /// What its clients get. A TCP address that is not of loopback has the role `serve`, or `site` with tokens or
    /// certificates of clients.
    pub role: GatewayRole,
    /// Names in lower case, without a port; `*` alone for any.
    pub host_names: Vec<String>,
    /// The file of the tokens that its clients need; `None` if they need none.
    pub tokens_file: Option<PathBuf>,
    /// The files of its certificate; `None` if its clients speak plain HTTP, as on every Unix socket.
    pub tls: Option<TlsFiles>,
    /// Most connections at a time, 1 to 16,384.
    pub connections_max: usize,
    /// Most of them of one address or user, 1 to 16,384.
    pub connections_per_client_max: usize,
    /// How long a connection may have no request, 1 s to an hour.
    pub idle_timeout: Duration,
    /// How long a client may take no byte of its answer, 1 s to an hour.
    pub stall_timeout: Duration,
    /// Whether NARs are compressed with zstd while they are sent.
    pub zstd: bool,
    /// The proxies that are believed when they say for whom they ask: at most 64 networks, or who connects through the Unix
    /// socket.
    pub trusted_proxies: TrustedProxies,
    /// Whether requests are in the log.
    pub access_log: bool,
}

/// Where a listener is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListenerAddress {
    /// An IP address with a TCP port; port 0 is allowed.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// Where the socket is that systemd hands over under this name. It is known at the start.
    Systemd(String),
}

/// What the clients of a listener get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GatewayRole {
    /// What our own Nix gets.
    Local,
    /// What may leave our own store, and nothing of the mesh.
    Serve,
    /// The same of our own store, and what the mesh gives.
    Site,
}

impl GatewayRole {
    const ALL: [Self; 3] = [Self::Local, Self::Serve, Self::Site];

    /// The word in the configuration and in `status`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Serve => "serve",
            Self::Site => "site",
        }
    }
}

impl fmt::Display for ListenerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
            Self::Systemd(name) => write!(f, "{SYSTEMD_PREFIX}{name}"),
        }
    }
}

impl ListenerSettings {
    /// The same at the address of the socket that systemd handed over, which was not known before.
    ///
    /// # Errors
    /// When its role or its files are not accepted at that address.
    pub(crate) fn at(&self, index: usize, address: ListenerAddress) -> Result<Self, SettingsError> {
        let found = Self { address, ..self.clone() };
        found.check_place(index)?;
        Ok(found)
    }

    /// Refuses a role that would give the mesh to the network, and TLS where there is none.
    fn check_place(&self, index: usize) -> Result<(), SettingsError> {
        if let (ListenerAddress::Unix(_), Some(files)) = (&self.address, &self.tls) {
            let key = format!("gateway.listener[{index}].tls_certificate_file");
            return Err(refused(key, &files.certificate, "no TLS on a Unix socket, whose file says who may connect"));
        }
        let is_permitted = match self.role {
            // What peers may have as well, so it may be had by everybody who reaches it.
            GatewayRole::Serve => true,
            // It gives what the mesh gives, so it has to know to whom.
            GatewayRole::Site => self.knows_its_clients(),
            GatewayRole::Local => false,
        };
        if self.is_on_the_network() && !is_permitted {
            let value = format!("{} at {}", self.role.name(), self.address);
            return Err(refused(
                format!("gateway.listener[{index}].role"),
                &value,
                "\"serve\" at this address, which gives what advertise offers; \"site\" with tokens_file or \
                 tls_client_ca_file; or an address of loopback or a Unix socket, because what the mesh gives is not for \
                 everybody",
            ));
        }
        Ok(())
    }

    /// Whether machines besides this one can connect. It is not known of what systemd hands over.
    pub fn is_on_the_network(&self) -> bool {
        match &self.address {
            ListenerAddress::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            ListenerAddress::Unix(_) | ListenerAddress::Systemd(_) => false,
        }
    }

    /// What to tell the operator if tokens cross the network for everybody to read.
    pub(crate) fn warn_of_plain_tokens(&self, index: usize) -> Option<String> {
        (self.is_on_the_network() && self.tokens_file.is_some() && self.tls.is_none()).then(|| {
            format!(
                "gateway.listener[{index}] at {} asks for tokens without TLS: whoever is on the way can read and use them. Set \
                 tls_certificate_file and tls_key_file, unless that network encrypts by itself",
                self.address
            )
        })
    }

    /// Whether it asks its clients who they are.
    fn knows_its_clients(&self) -> bool {
        self.tokens_file.is_some() || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }
}

/// Checks all `[[gateway.listener]]`.
pub(super) fn check(listeners: &[ListenerConfig], base: &Path) -> Result<Vec<ListenerSettings>, SettingsError> {
    if listeners.len() > LISTENERS_MAX {
        return Err(refused("gateway.listener", Count(listeners.len(), "entries"), "at most 16 entries"));
    }
    let mut checked: Vec<ListenerSettings> = Vec::with_capacity(listeners.len());
    for (index, listener) in listeners.iter().enumerate() {
        let one = check_one(index, listener, base)?;
        // Each port 0 becomes another one.
        let is_own_port = matches!(one.address, ListenerAddress::Tcp(address) if address.port() == 0);
        if let Some(first) = checked.iter().position(|other| other.address == one.address && !is_own_port) {
            return Err(SettingsError::Duplicate {
                key: format!("gateway.listener[{index}].address"),
                value: listener.address.clone(),
                first: format!("gateway.listener[{first}].address"),
                accepted: "another address for each listener",
            });
        }
        checked.push(one);
    }
    Ok(checked)
}

fn check_one(index: usize, listener: &ListenerConfig, base: &Path) -> Result<ListenerSettings, SettingsError> {
    let key = |name: &str| format!("gateway.listener[{index}].{name}");
    let role = GatewayRole::ALL.into_iter().find(|role| role.name() == listener.role);
    let role = role.ok_or_else(|| refused(key("role"), &listener.role, "\"local\", \"serve\" or \"site\""))?;
    let host_names = match listener.host_names.as_slice() {
        // Alone, because beside it no other name would mean anything.
        [any] if any == "*" => vec![any.clone()],
        names => check_names(&key("host_names"), names)?,
    };
    let address = check_address(&key("address"), &listener.address, base)?;
    const CONNECTIONS: (u32, u32) = (1, 16_384);
    let timeout = |name: &str, ms| within(&key(name), ms, (1_000, 3_600_000)).map(Duration::from_millis);
    let checked = ListenerSettings {
        tls: check_tls(&key, listener, base)?,
        trusted_proxies: check_proxies(&key("trusted_proxies"), &listener.trusted_proxies, &address)?,
        address,
        role,
        host_names,
        tokens_file: listener.tokens_file.as_ref().map(|it| path_from(base, &key("tokens_file"), it)).transpose()?,
        connections_max: within(&key("connections_max"), listener.connections_max, CONNECTIONS)? as usize,
        connections_per_client_max: match listener.connections_per_client_max {
            // One client with all of the connections would shut out the others.
            None => (listener.connections_max as usize).div_ceil(2),
            Some(count) => within(&key("connections_per_client_max"), count, CONNECTIONS)? as usize,
        },
        idle_timeout: timeout("idle_timeout_ms", listener.idle_timeout_ms)?,
        stall_timeout: timeout("stall_timeout_ms", listener.stall_timeout_ms)?,
        access_log: listener.access_log,
        zstd: listener.zstd,
    };
    checked.check_place(index)?;
    Ok(checked)
}

fn check_tls(
    key: &impl Fn(&str) -> String,
    listener: &ListenerConfig,
    base: &Path,
) -> Result<Option<TlsFiles>, SettingsError> {
    let file = |name: &str, path: &Option<PathBuf>| path.as_ref().map(|it| path_from(base, &key(name), it)).transpose();
    let client_ca = file("tls_client_ca_file", &listener.tls_client_ca_file)?;
    let certificate = file("tls_certificate_file", &listener.tls_certificate_file)?;
    let files = match (certificate, file("tls_key_file", &listener.tls_key_file)?) {
        (Some(certificate), Some(key)) => TlsFiles { certificate, key, client_ca },
        (Some(path), None) => {
            return Err(refused(key("tls_certificate_file"), &path, "tls_certificate_file together with tls_key_file"));
        }
        (None, Some(path)) => {
            return Err(refused(key("tls_key_file"), &path, "tls_key_file together with tls_certificate_file"));
        }
        (None, None) => match client_ca {
            None => return Ok(None),
            Some(path) => {
                let accepted = "tls_client_ca_file together with tls_certificate_file and tls_key_file";
                return Err(refused(key("tls_client_ca_file"), &path, accepted));
            }
        },
    };
    Ok(Some(files))
}

fn check_proxies(key: &str, texts: &[String], address: &ListenerAddress) -> Result<TrustedProxies, SettingsError> {
    const PROXIES_MAX: usize = 64;
    if texts.len() > PROXIES_MAX {
        return Err(refused(key, Count(texts.len(), "entries"), "at most 64 entries"));
    }
    let mut proxies = TrustedProxies::default();
    for (index, text) in texts.iter().enumerate() {
        let accepted = match address {
            ListenerAddress::Unix(_) | ListenerAddress::Systemd(_) if text == "unix" => {
                proxies.unix = true;
                continue;
            }
            // Behind a proxy that connects by a Unix socket there may be others, which have addresses.
            ListenerAddress::Unix(_) | ListenerAddress::Systemd(_) => {
                "\"unix\", an IP address, or a network such as \"192.0.2.0/24\""
            }
            ListenerAddress::Tcp(_) => {
                "an IP address, or a network such as \"192.0.2.0/24\" or \"2001:db8::/32\", without bits after its prefix"
            }
        };
        let network = Network::parse(text).ok_or_else(|| refused(format!("{key}[{index}]"), text, accepted))?;
        if network.is_everybody() {
            // Each client would say itself who it is, and count as somebody else in each bound.
            let accepted = "the addresses and networks of proxies, not all addresses";
            return Err(refused(format!("{key}[{index}]"), text, accepted));
        }
        proxies.networks.push(network);
    }
    Ok(proxies)
}

fn check_address(key: &str, text: &str, base: &Path) -> Result<ListenerAddress, SettingsError> {
    const FORM: &str = "an IP address with a port, such as 0.0.0.0:7282 or [::]:7282, the path of a Unix socket with a slash \
                        in it, at most 107 bytes, or systemd:NAME for the socket that systemd hands over under this \
                        FileDescriptorName";
    if let Ok(address) = text.parse() {
        return Ok(ListenerAddress::Tcp(address));
    }
    if let Some(name) = text.strip_prefix(SYSTEMD_PREFIX) {
        // As systemd accepts them (sd_is_valid_fdname).
        let is_name =
            (1..=255).contains(&name.len()) && name.bytes().all(|byte| matches!(byte, b' '..=b'~' if byte != b':'));
        return if is_name { Ok(ListenerAddress::Systemd(name.to_owned())) } else { Err(refused(key, text, FORM)) };
    }
    // Without a slash it is rather an address that was mistyped.
    if !text.contains('/') {
        return Err(refused(key, text, FORM));
    }
    let path = path_from(base, key, Path::new(text))?;
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(refused(key, text, FORM));
    }
    Ok(ListenerAddress::Unix(path))
}
