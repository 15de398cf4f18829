//! The settings: the configuration, checked once, as the rest of the program uses it. No live handles.
//!
//! Every refusal names the key, the value and what would be accepted. [`Settings::read_secrets`] reads the secrets
//! separately.

use crate::config::{AdvertiseConfig, Config, LimitsConfig, NodeConfig, TrustConfig, bounds_of};
use crate::describe::is_unseen;
use libp2p::{Multiaddr, PeerId};
use narmesh_mesh::{BYTES_PER_S_MIN, RELAY_BYTES_PER_S_MIN};
use narmesh_protocol::{NixPublicKey, NixSecretKey, TrustedKeys};
pub use narmesh_resolver::{Compress, TransferSettings};
use narmesh_store::{OfferPolicy, StoreLocation};
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod addresses;
mod error;
mod gateway;
mod host_names;
mod hours;
mod listeners;
mod netrc;
mod peers;
mod places;
mod quorum;
mod roster;
mod secrets;
mod store;
mod tls;
mod upstream;
mod written;

use addresses::AddressUse;
pub(crate) use addresses::{may_be_dialled, may_be_told, socket_address};
pub use error::SettingsError;
pub use gateway::{GatewaySettings, Prefer};
pub use host_names::HOST_NAMES_MAX;
pub use hours::Hours;
pub use listeners::{GatewayRole, LISTENERS_MAX, ListenerAddress, ListenerSettings};
pub(crate) use netrc::find_login;
pub use peers::PeerSettings;
pub use quorum::QuorumSettings;
pub use roster::RosterSettings;
pub use secrets::{NodeKeyFile, SecretError, Secrets};
pub(crate) use secrets::{
    create_builder_key, create_secret, forbidden_bits, gateway_key_file, is_gateway_key, new_nix_key, read_builder_key,
    read_gateway_key, read_mesh_key,
};
pub use tls::TlsFiles;
pub(crate) use tls::TlsInForce;
pub use upstream::{CredentialsFile, UPSTREAMS_MAX, UpstreamSettings};
use written::{Count, Written};

/// Most `[[peer]]` entries. With eight addresses each they still fit into the file. An audience could hold twice as
/// many.
pub const PEERS_MAX: usize = 1_024;
const _: () = assert!(PEERS_MAX <= narmesh_protocol::Summary::AUDIENCE_MAX);
/// Most addresses of one peer, and of ourselves.
pub const ADDRESSES_MAX: usize = narmesh_protocol::Summary::ADDRESSES_MAX;
/// Longest name of a peer, bytes.
pub const PEER_NAME_BYTES_MAX: usize = 64;
/// Longest path of a Unix socket, bytes (`sun_path` on Linux holds 108 with the final zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Most spans in `advertise.serve_hours`.
const SERVE_HOURS_MAX: usize = 16;
/// Longest include or exclude pattern, bytes: no name is longer than 211.
const PATTERN_BYTES_MAX: usize = 256;
/// Digits of a hash part.
const HASH_PART_DIGITS: usize = 32;
// The text of `bounds_of` names this number.
const _: () = assert!(narmesh_gossip::PATHS_MAX == 400_000);

/// The checked configuration; all paths are absolute.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file it came from.
    pub file: PathBuf,
    /// `[node]`
    pub node: NodeSettings,
    /// `[gateway]`
    pub gateway: GatewaySettings,
    /// `[store]`
    pub store: StoreLocation,
    /// `trust.trusted_public_keys`
    pub trusted: TrustedKeys,
    /// `trust.builder_key_file`
    pub builder_key_file: Option<PathBuf>,
    /// `trust.sign_remote_builds`
    pub sign_remote_builds: bool,
    /// `[advertise]`, whose patterns are valid.
    pub advertise: AdvertiseConfig,
    /// `advertise.serve_hours`; none means always.
    pub serve_hours: Vec<Hours>,
    /// `[transfer]`
    pub transfer: TransferSettings,
    /// `[limits]`
    pub limits: LimitSettings,
    /// `[mesh]`
    pub mesh: RosterSettings,
    /// `[[peer]]`, and the members of the roster once they were added: names and peer ids are unique.
    pub peers: Vec<PeerSettings>,
    /// `[[upstream]]` that are enabled: names are unique.
    pub upstreams: Vec<UpstreamSettings>,
    /// `[[builder]]`, `[[revoked_builders]]`, `[quorum]`
    pub quorum: QuorumSettings,
}

/// Checked `[node]`.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeSettings {
    /// The name of this machine, if the file gives one.
    pub name: Option<String>,
    /// The file of the node key, see [`NodeKeyFile`].
    pub key_file: PathBuf,
    /// The directory of `state.sqlite`.
    pub state_dir: PathBuf,
    /// The Unix socket of the control protocol.
    pub control_socket: PathBuf,
    /// Name of the group that may use the control socket besides the daemon's user; the daemon's own group if absent.
    pub control_group: Option<String>,
    /// 1 to [`ADDRESSES_MAX`] addresses `/ip4|ip6/…/tcp/…`; port 0 is allowed.
    pub listen: Vec<Multiaddr>,
    /// At most [`ADDRESSES_MAX`] addresses `/ip4|ip6/…/tcp/…` that can be dialled, so no port 0.
    pub external_addresses: Vec<Multiaddr>,
    /// Whether loopback addresses are told to peers, and those of peers are used.
    pub advertise_loopback: bool,
    /// Whether this node relays for its peers, if the configuration says so.
    pub relay: Option<bool>,
}

/// Checked `[limits]`.
#[derive(Clone, PartialEq, Debug)]
pub struct LimitSettings {
    /// Connections kept open for gossip, 1 to 1,024.
    pub connections_gossip: u32,
    /// Memory for NARs in flight from peers, 16 MiB to 64 GiB.
    pub nar_buffer_bytes: u64,
    /// NARs over 8 MiB sent to one peer at a time, 1 to 1,024, and as many smaller ones.
    pub uploads_per_peer: u32,
    /// NARs read from the disk for peers at the same moment, 1 to 65,536.
    pub uploads_total: u32,
    /// Bytes per second of NARs to all peers together, at least [`BYTES_PER_S_MIN`]; `None` for no limit.
    pub upload_bytes_per_s: Option<NonZeroU32>,
    /// Bytes per second passed on as a relay, at least [`RELAY_BYTES_PER_S_MIN`]; `None` for no limit.
    pub relay_bytes_per_s: Option<NonZeroU32>,
    /// Disk space for NARs that peers get while they are coming in here, 0 to 1 TiB.
    pub partial_copies_bytes: u64,
    /// Paths in our own summary, 1 to [`narmesh_gossip::PATHS_MAX`].
    pub advertised_paths_max: usize,
}

impl Settings {
    /// The policy that says which paths may leave this machine, and with which signatures: those of `trusted` keys, and
    /// that of `builder_key` on what was built here.
    pub fn offer_policy(
        &self,
        trusted: TrustedKeys,
        builder_key: Option<NixSecretKey>,
        is_serving: bool,
    ) -> OfferPolicy {
        OfferPolicy {
            trusted,
            builder_key,
            sign_remote_builds: self.sign_remote_builds,
            include: self.advertise.include.clone(),
            exclude: self.advertise.exclude.clone(),
            withhold_defaults: self.advertise.withhold_defaults,
            derivations: self.advertise.derivations,
            paths_max: self.limits.advertised_paths_max,
            is_serving,
        }
    }

    /// Reads and checks the file.
    pub fn load(file: &Path) -> Result<Self, SettingsError> {
        Self::check(Config::read(file)?, file)
    }

    /// Checks a configuration; relative paths are relative to the directory of `file`.
    pub fn check(config: Config, file: &Path) -> Result<Self, SettingsError> {
        // A later change of the working directory must not change what the file's paths mean.
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let base = file.parent().unwrap_or(Path::new("/")).to_owned();
        let peers = peers::check_all(&config.peer)?;
        let (node, gateway) = (check_node(&config.node, &base)?, gateway::check(&config.gateway, &base)?);
        gateway::check_ports(&gateway, &node.listen)?;
        let builder_key_file = config.trust.builder_key_file.as_ref();
        let builder_key_file =
            builder_key_file.map(|path| path_from(&base, "trust.builder_key_file", path)).transpose()?;
        let settings = Self {
            quorum: quorum::check(&config, &peers)?,
            node,
            gateway,
            store: store::check(&config.store, &base)?,
            trusted: check_public_keys("trust.trusted_public_keys", &config.trust.trusted_public_keys)?,
            upstreams: upstream::check(&config.upstream, &base)?,
            sign_remote_builds: check_sign_remote_builds(&config.trust)?,
            builder_key_file,
            serve_hours: check_hours(&config.advertise.serve_hours)?,
            advertise: check_advertise(config.advertise)?,
            transfer: TransferSettings {
                compress: check_compress(&config.transfer.compress)?,
                stall_timeout: Duration::from_millis(within(
                    "transfer.stall_timeout_ms",
                    config.transfer.stall_timeout_ms,
                    (100, 600_000),
                )?),
            },
            limits: check_limits(&config.limits)?,
            mesh: roster::check(&config.mesh, &base)?,
            peers,
            file,
        };
        // Last, because it compares paths of all sections.
        places::check(&settings)?;
        Ok(settings)
    }

    /// The allowlist, with the configured addresses of each peer.
    pub fn peer_addresses(&self) -> BTreeMap<PeerId, Vec<Multiaddr>> {
        self.peers.iter().map(|peer| (peer.peer_id, peer.addresses.clone())).collect()
    }

    /// The peers that have a limit of their own, and how many bytes per second of NARs are sent to each.
    pub fn peer_upload_rates(&self) -> HashMap<PeerId, NonZeroU32> {
        self.peers.iter().filter_map(|peer| Some((peer.peer_id, peer.upload_bytes_per_s?))).collect()
    }

    /// The peer of that id.
    pub fn peer(&self, peer_id: &PeerId) -> Option<&PeerSettings> {
        self.peers.iter().find(|peer| peer.peer_id == *peer_id)
    }
}

fn refused(key: impl Into<String>, value: impl Written, accepted: &'static str) -> SettingsError {
    SettingsError::Value { key: key.into(), value: value.written(), accepted }
}

/// The configured path, relative to the directory of the file. An empty one is refused because it would be that
/// directory itself, and one with a zero byte because no such path can exist.
fn path_from(base: &Path, key: &str, path: &Path) -> Result<PathBuf, SettingsError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(refused(key, path, "a path; a relative one is relative to the directory of the configuration"));
    }
    Ok(base.join(path))
}

fn within<N: PartialOrd + Written>(key: &str, value: N, (min, max): (N, N)) -> Result<N, SettingsError> {
    // A test checks that every number of the configuration has bounds there.
    let accepted = || bounds_of(key).unwrap_or("another number");
    if value < min || value > max { Err(refused(key, value, accepted())) } else { Ok(value) }
}

fn check_node(node: &NodeConfig, base: &Path) -> Result<NodeSettings, SettingsError> {
    let state_dir = path_from(base, "node.state_dir", &node.state_dir)?;
    let control_socket = match &node.control_socket {
        Some(path) => path_from(base, "node.control_socket", path)?,
        None => state_dir.join("control.sock"),
    };
    // The kernel takes no longer one, and would say so only when the daemon starts.
    if control_socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(refused(
            "node.control_socket",
            &control_socket,
            "a path of at most 107 bytes, for instance in /run/narmesh",
        ));
    }
    if let Some(group) = node.control_group.as_ref().filter(|group| !is_account_name(group)) {
        return Err(refused("node.control_group", group, "the name of a group"));
    }
    if node.listen.is_empty() || node.listen.len() > ADDRESSES_MAX {
        return Err(refused("node.listen", &node.listen, "1 to 8 addresses"));
    }
    if node.external_addresses.len() > ADDRESSES_MAX {
        return Err(refused("node.external_addresses", &node.external_addresses, "at most 8 addresses"));
    }
    if let Some(name) = node.name.as_ref().filter(|name| !is_name(name)) {
        return Err(refused("node.name", name, NAME_FORM));
    }
    Ok(NodeSettings {
        name: node.name.clone(),
        key_file: path_from(base, "node.key_file", &node.key_file)?,
        state_dir,
        control_socket,
        control_group: node.control_group.clone(),
        listen: addresses::check("node.listen", &node.listen, AddressUse::Listen)?,
        external_addresses: addresses::check("node.external_addresses", &node.external_addresses, AddressUse::Tell)?,
        advertise_loopback: node.advertise_loopback,
        relay: node.relay,
    })
}

/// What [`is_name`] accepts, in words.
pub(crate) const NAME_FORM: &str = "1 to 64 bytes without control characters, without invisible ones or such that change the direction, and without white space at the ends";

/// Whether a machine or a group may have this name, here and in the configurations of others. White space at its ends would
/// make two names of what people take for one, and two votes of one group.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=PEER_NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(is_unseen) && text.trim() == text
}

/// Whether this is 1 to 32 bytes of letters, digits and `._-`, as useradd(8) accepts them, without a hyphen at the
/// beginning.
fn is_account_name(text: &str) -> bool {
    let permitted = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=32).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(permitted)
}

fn check_sign_remote_builds(trust: &TrustConfig) -> Result<bool, SettingsError> {
    if trust.sign_remote_builds && trust.builder_key_file.is_none() {
        return Err(refused("trust.sign_remote_builds", true, "false, or trust.builder_key_file to sign with"));
    }
    Ok(trust.sign_remote_builds)
}

fn check_public_keys(key: &str, texts: &[String]) -> Result<TrustedKeys, SettingsError> {
    let mut keys: Vec<NixPublicKey> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let parsed = NixPublicKey::parse(text.trim()).map_err(|_| {
            refused(
                format!("{key}[{index}]"),
                text,
                "a Nix public key, name:base64 of 32 bytes, as `narmesh id` or `nix key convert-secret-to-public` prints it",
            )
        })?;
        // Nix looks up a key by name and uses the first one, so the second would silently never count.
        if let Some(first) = keys.iter().position(|known| known.name() == parsed.name() && *known != parsed) {
            return Err(SettingsError::Duplicate {
                key: format!("{key}[{index}]"),
                value: text.clone(),
                first: format!("{key}[{first}]"),
                accepted: "one key per name",
            });
        }
        keys.push(parsed);
    }
    Ok(TrustedKeys::new(keys).expect("two different keys of one name were refused above"))
}

fn check_advertise(advertise: AdvertiseConfig) -> Result<AdvertiseConfig, SettingsError> {
    check_patterns("advertise.include", &advertise.include)?;
    check_patterns("advertise.exclude", &advertise.exclude)?;
    Ok(advertise)
}

fn check_hours(texts: &[String]) -> Result<Vec<Hours>, SettingsError> {
    if texts.len() > SERVE_HOURS_MAX {
        return Err(refused("advertise.serve_hours", Count(texts.len(), "entries"), "at most 16 spans of hours"));
    }
    let check = |(index, text): (usize, &String)| {
        let key = format!("advertise.serve_hours[{index}]");
        let accepted = "HH:MM-HH:MM by the clock of this machine, such as \"22:00-06:00\", with two different times";
        Hours::parse(text).ok_or_else(|| refused(key, text, accepted))
    };
    texts.iter().enumerate().map(check).collect()
}

/// Whether a pattern begins with the hash part of a store path. None of the digits of a hash part is e, o, t or u, so hardly
/// any name begins with as many of them.
fn begins_with_hash_part(pattern: &str) -> bool {
    let Some((begin, rest)) = pattern.as_bytes().split_at_checked(HASH_PART_DIGITS) else { return false };
    let is_digit = |byte: &u8| b"0123456789abcdfghijklmnpqrsvwxyz?".contains(byte);
    let is_written_out = !begin.contains(&b'?');
    begin.iter().all(is_digit) && matches!((rest.first(), is_written_out), (Some(b'-'), _) | (None | Some(b'*'), true))
}

fn check_patterns(key: &str, patterns: &[String]) -> Result<(), SettingsError> {
    let permitted = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=*".contains(&byte);
    for (index, pattern) in patterns.iter().enumerate() {
        // A pattern with a hash part would never match, since names are compared without one.
        let is_of_a_name = pattern.bytes().all(permitted) && !begins_with_hash_part(pattern);
        if pattern.is_empty() || pattern.len() > PATTERN_BYTES_MAX || !is_of_a_name {
            return Err(refused(
                format!("{key}[{index}]"),
                pattern,
                "a pattern for the name of a store path, which is what follows /nix/store/HASH-: 1 to 256 of the characters \
                 a-z A-Z 0-9 + - . _ ? =, with * for any text and ? for any one character",
            ));
        }
    }
    Ok(())
}

fn check_compress(text: &str) -> Result<Compress, SettingsError> {
    match text {
        "auto" => Ok(Compress::Auto),
        "always" => Ok(Compress::Always),
        "never" => Ok(Compress::Never),
        other => Err(refused("transfer.compress", other, "\"auto\", \"always\" or \"never\"")),
    }
}

fn check_limits(limits: &LimitsConfig) -> Result<LimitSettings, SettingsError> {
    let paths =
        within("limits.advertised_paths_max", limits.advertised_paths_max, (1, narmesh_gossip::PATHS_MAX as u64))?;
    Ok(LimitSettings {
        connections_gossip: within("limits.connections_gossip", limits.connections_gossip, (1, 1_024))?,
        nar_buffer_bytes: within("limits.nar_buffer_bytes", limits.nar_buffer_bytes, (16 << 20, 64 << 30))?,
        uploads_per_peer: within("limits.uploads_per_peer", limits.uploads_per_peer, (1, 1_024))?,
        uploads_total: within("limits.uploads_total", limits.uploads_total, (1, 65_536))?,
        upload_bytes_per_s: check_upload_rate("limits.upload_bytes_per_s", limits.upload_bytes_per_s)?,
        relay_bytes_per_s: check_rate("limits.relay_bytes_per_s", limits.relay_bytes_per_s, RELAY_BYTES_PER_S_MIN)?,
        partial_copies_bytes: within("limits.partial_copies_bytes", limits.partial_copies_bytes, (0, 1 << 40))?,
        advertised_paths_max: usize::try_from(paths).unwrap_or(usize::MAX),
    })
}

/// A rate of uploads; 0 is no limit.
fn check_upload_rate(key: &str, rate: u32) -> Result<Option<NonZeroU32>, SettingsError> {
    check_rate(key, rate, BYTES_PER_S_MIN)
}

/// A rate in bytes per second; 0 is no limit.
fn check_rate(key: &str, rate: u32, rate_min: u32) -> Result<Option<NonZeroU32>, SettingsError> {
    match rate {
        0 => Ok(None),
        rate => within(key, rate, (rate_min, u32::MAX)).map(NonZeroU32::new),
    }
}

#[cfg(test)]
mod tests;
