//! The configuration file as it is written: one TOML file. Unknown keys are refused; apart from that only types are
//! checked.
//!
//! One check turns [`Config`] into [`crate::settings::Settings`]; nothing else reads it.

#[cfg(test)]
mod documented;
mod place;
mod quorum;
mod upstream;

pub(crate) use place::bounds_of;
pub(crate) use quorum::DATE_FORM;
pub use quorum::{BuilderConfig, QuorumConfig, QuorumOverrideConfig, RevokedBuilderConfig};
pub use upstream::UpstreamConfig;

use crate::describe::escaped_lines;
use crate::regular_file::read_text;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// The path of the file without `--config`.
pub const DEFAULT_FILE: &str = "/etc/narmesh/narmesh.toml";

/// Largest file that is read, bytes: a thousand peers with eight addresses each take about half of it.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 20;

/// The whole file.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[gateway]`
    pub gateway: GatewayConfig,
    /// `[store]`
    pub store: StoreConfig,
    /// `[trust]`
    pub trust: TrustConfig,
    /// `[advertise]`
    pub advertise: AdvertiseConfig,
    /// `[transfer]`
    pub transfer: TransferConfig,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[mesh]`
    pub mesh: RosterConfig,
    /// `[[peer]]`: the allowlist.
    pub peer: Vec<PeerConfig>,
    /// `[[upstream]]`: the caches that are asked beside the mesh.
    pub upstream: Vec<UpstreamConfig>,
    /// `[[builder]]`: the builders whose attestations count.
    pub builder: Vec<BuilderConfig>,
    /// `[[revoked_builders]]`: the builders whose attestations no longer count, from a given time on.
    pub revoked_builders: Vec<RevokedBuilderConfig>,
    /// `[quorum]`
    pub quorum: QuorumConfig,
}

/// `[node]`: this node on the mesh. Relative paths are relative to the directory of the file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// The name of this machine in the lines that `narmesh id` prints for others.
    pub name: Option<String>,
    /// The file of the node key, see [`crate::settings::NodeKeyFile`].
    pub key_file: PathBuf,
    /// Directory of the state database and the control socket.
    pub state_dir: PathBuf,
    /// The Unix socket that `narmesh status` and other commands use; `<state_dir>/control.sock` if absent.
    pub control_socket: Option<PathBuf>,
    /// The group whose members may use the control socket; the daemon's own group if absent.
    pub control_group: Option<String>,
    /// Where the mesh listens, as multiaddrs; port 0 lets the kernel choose. An address family that the machine lacks
    /// is skipped.
    pub listen: Vec<String>,
    /// Addresses told to peers besides the listen addresses, as multiaddrs.
    pub external_addresses: Vec<String>,
    /// Whether to tell peers loopback addresses and to use theirs: only for several nodes on one machine.
    pub advertise_loopback: bool,
    /// Whether this node relays for its peers; if absent, as the roster says.
    pub relay: Option<bool>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: None,
            key_file: "node.key".into(),
            state_dir: "state".into(),
            control_socket: None,
            control_group: None,
            listen: ["/ip4/0.0.0.0/tcp/7280", "/ip6/::/tcp/7280"].map(str::to_owned).into(),
            external_addresses: Vec::new(),
            advertise_loopback: false,
            relay: None,
        }
    }
}

/// `[mesh]`: the mesh whose roster names more peers than `[[peer]]` does.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RosterConfig {
    /// The mesh key, `name:base64`, which signs the roster.
    pub key: Option<String>,
    /// A signed roster, beside what the daemon hears.
    pub roster_file: Option<PathBuf>,
    /// Whether members of the mesh find this machine on the local network, and it finds them.
    pub discover_lan: bool,
}

impl Default for RosterConfig {
    fn default() -> Self {
        Self { key: None, roster_file: None, discover_lan: true }
    }
}

/// `[gateway]`: the HTTP gateway that our own Nix asks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Loopback address and port; port 0 lets the kernel choose.
    pub listen: String,
    /// Names or addresses without a port, accepted in the `Host` header besides `127.0.0.1`, `[::1]` and `localhost`.
    pub host_names: Vec<String>,
    /// `Priority` of the substituter: Nix asks the lowest first. cache.nixos.org has 40.
    pub priority: u32,
    /// The longest time to answer a narinfo request, milliseconds; after it the answer is 404.
    pub narinfo_deadline_ms: u64,
    /// The same, milliseconds, while a candidate that has not answered is on a full line, usually takes long, or is
    /// awaited after a start.
    pub narinfo_deadline_max_ms: u64,
    /// Whether all narinfos are signed with the gateway key, so that Nix needs to trust no other key.
    pub sign: bool,
    /// `mesh`, `fastest` or `upstream`: which sources are asked first.
    pub prefer: String,
    /// `[[gateway.listener]]`: where others than our own Nix may ask.
    pub listener: Vec<ListenerConfig>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7281".to_owned(),
            host_names: Vec::new(),
            priority: 30,
            narinfo_deadline_ms: 1_000,
            narinfo_deadline_max_ms: 10_000,
            sign: false,
            prefer: "mesh".to_owned(),
            listener: Vec::new(),
        }
    }
}

/// One `[[gateway.listener]]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// IP address and port, or the path of a Unix socket.
    pub address: String,
    /// `local`, `serve` or `site`: what its clients get.
    pub role: String,
    /// Names without a port that are accepted in the `Host` header besides IP addresses; `*` alone for any.
    #[serde(default)]
    pub host_names: Vec<String>,
    /// The file of the tokens that its clients need, which `narmesh token` writes; they need none if absent.
    pub tokens_file: Option<PathBuf>,
    /// The certificate that it shows, with those between it and its CA; clients speak plain HTTP if absent.
    pub tls_certificate_file: Option<PathBuf>,
    /// The key of that certificate.
    pub tls_key_file: Option<PathBuf>,
    /// The CAs of which clients need a certificate; they need none if absent.
    pub tls_client_ca_file: Option<PathBuf>,
    /// The most connections at a time.
    #[serde(default = "ListenerConfig::default_connections_max")]
    pub connections_max: u32,
    /// The most connections of one address or user at a time; half of `connections_max` if absent.
    pub connections_per_client_max: Option<u32>,
    /// A connection without a request is closed after this time, milliseconds.
    #[serde(default = "ListenerConfig::default_timeout_ms")]
    pub idle_timeout_ms: u64,
    /// A connection whose client takes no byte of its answer is closed after this time, milliseconds.
    #[serde(default = "ListenerConfig::default_timeout_ms")]
    pub stall_timeout_ms: u64,
    /// Whether NARs are compressed with zstd while they are sent.
    #[serde(default)]
    pub zstd: bool,
    /// The addresses and networks of proxies whose `X-Forwarded-For` is believed; `unix` for who connects through a Unix socket.
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
    /// Whether each request is one line in the log, at a bounded rate.
    #[serde(default)]
    pub access_log: bool,
}

impl ListenerConfig {
    fn default_connections_max() -> u32 {
        256
    }

    /// 300 s is Nix's own `stalled-download-timeout`.
    fn default_timeout_ms() -> u64 {
        300_000
    }
}

/// `[store]`: the Nix store that is served.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// The logical store directory, the one in store paths.
    pub store_dir: String,
    /// The directory where its files really are; `store_dir` if absent.
    pub real_dir: Option<PathBuf>,
    /// The directory that holds `db/db.sqlite`; `/nix/var/nix` if absent.
    pub state_dir: Option<PathBuf>,
    /// The directory that holds `drvs`, the logs of builds; `/nix/var/log/nix` if absent.
    pub log_dir: Option<PathBuf>,
    /// Short for all three in a chroot store: `<root>/nix/store`, `<root>/nix/var/nix` and `<root>/nix/var/log/nix`. Cannot be
    /// combined with them.
    pub root: Option<PathBuf>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { store_dir: "/nix/store".to_owned(), real_dir: None, state_dir: None, log_dir: None, root: None }
    }
}

/// `[trust]`: the keys whose signatures we accept, and the key that we sign with.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustConfig {
    /// Nix public keys, `name:base64`.
    pub trusted_public_keys: Vec<String>,
    /// The file of a Nix secret key that signs what was built here; without it nothing built here is advertised.
    pub builder_key_file: Option<PathBuf>,
    /// Whether to sign also unsigned outputs of derivations in the store: what remote builders built for this machine.
    pub sign_remote_builds: bool,
}

/// `[advertise]`: what peers may see.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdvertiseConfig {
    /// Patterns for whole names (without hash part): `*` is any text and `?` any one character. One must match.
    pub include: Vec<String>,
    /// Patterns of the same form, of which none may match.
    pub exclude: Vec<String>,
    /// Whether to withhold system configurations, and outputs of derivations with `allowSubstitutes = false`.
    pub withhold_defaults: bool,
    /// Whether peers may see derivations (`.drv`), too, and the sources that these refer to.
    pub derivations: bool,
    /// Whether peers get anything of this machine.
    pub serve: bool,
    /// The hours in which they do, `HH:MM-HH:MM` by the clock of this machine; always if there are none.
    pub serve_hours: Vec<String>,
}

impl Default for AdvertiseConfig {
    fn default() -> Self {
        Self {
            include: vec!["*".to_owned()],
            exclude: Vec::new(),
            withhold_defaults: true,
            derivations: false,
            serve: true,
            serve_hours: Vec::new(),
        }
    }
}

/// `[transfer]`: how NARs travel between peers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransferConfig {
    /// `auto`, `always` or `never`.
    pub compress: String,
    /// A holder is given up when nothing at all has come from it for this long, over the whole line, milliseconds.
    pub stall_timeout_ms: u64,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self { compress: "auto".to_owned(), stall_timeout_ms: 5_000 }
    }
}

/// `[limits]`: bounds on what the daemon uses.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// The number of connections kept open for gossip.
    pub connections_gossip: u32,
    /// Memory for NARs in flight from peers, bytes.
    pub nar_buffer_bytes: u64,
    /// The most NARs over 8 MiB sent to one peer at a time, and also the most smaller ones; further requests wait.
    pub uploads_per_peer: u32,
    /// The most NARs read from the disk for peers at the same moment.
    pub uploads_total: u32,
    /// The most bytes per second of NARs sent to all peers together; 0 for no limit.
    pub upload_bytes_per_s: u32,
    /// The most bytes per second passed on for others as a relay, both directions together; 0 for no limit.
    pub relay_bytes_per_s: u32,
    /// Disk space for NARs that peers get while they are coming in here, bytes; 0 for none.
    pub partial_copies_bytes: u64,
    /// The most paths in our own summary; beyond it the newest are withheld.
    pub advertised_paths_max: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections_gossip: 32,
            nar_buffer_bytes: 128 << 20,
            uploads_per_peer: 16,
            uploads_total: 32,
            upload_bytes_per_s: 0,
            relay_bytes_per_s: 0,
            partial_copies_bytes: 2 << 30,
            advertised_paths_max: 200_000,
        }
    }
}

/// One `[[peer]]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Our name for the peer.
    pub name: String,
    /// Its peer id, as `narmesh id` prints it there.
    pub peer_id: String,
    /// Addresses to dial, by IP address or host name; may be empty, because addresses are also learned from other
    /// peers.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Whether it relays for this node.
    #[serde(default)]
    pub relay: bool,
    /// The most bytes per second of NARs sent to it, 16,384 or more; 0 for no limit but that of all peers.
    #[serde(default)]
    pub upload_bytes_per_s: u32,
}

/// Why there is no [`Config`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error("there is no configuration {path}; create it with `narmesh --config {path} init`, or name another one with --config", path = path.display())]
    Missing {
        /// The path at which it was expected.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; create a configuration with `narmesh init`, or name another one with --config", path = path.display())]
    Read {
        /// The path of the configuration file.
        path: PathBuf,
        /// The error of finding or reading the file, or of text that is not UTF-8.
        source: io::Error,
    },
    /// The file is larger than anything sensible.
    #[error("{path} is larger than {FILE_BYTES_MAX} bytes, so it is not a narmesh configuration", path = path.display())]
    TooLarge {
        /// The path of the configuration file, which is larger than 1 MiB.
        path: PathBuf,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type; the source points at the line.
    #[error("{path}: {text}{remark}", path = path.display(), text = escaped_lines(source.to_string().trim_end()), remark = escaped_lines(remark))]
    Toml {
        /// The path of the configuration file.
        path: PathBuf,
        /// The line and the reason.
        source: Box<toml::de::Error>,
        /// The full name of the key and what is accepted, on a line of its own; may be empty.
        remark: String,
    },
}

impl Config {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read_error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ConfigError::Missing { path: path.to_owned() },
            _ => ConfigError::Read { path: path.to_owned(), source },
        };
        let text = read_text(path, FILE_BYTES_MAX).map_err(read_error)?;
        Self::parse(&text.ok_or_else(|| ConfigError::TooLarge { path: path.to_owned() })?, path)
    }

    /// Parses the text of the file; `path` is for the error.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|source: toml::de::Error| ConfigError::Toml {
            path: path.to_owned(),
            remark: place::remark(text, &source),
            source: Box::new(source),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_about_a_line_does_not_control_the_terminal() {
        for text in ["name = \"\u{1b}[31m\u{7}\u{202e}\"\n", "[node]\n\"\\u001b]0;x\\u0007\" = 1\n", "\u{9b}31m\n"] {
            let told = error(text);
            let harmful = told.chars().find(|letter| (letter.is_control() && *letter != '\n') || *letter == '\u{202e}');
            assert_eq!(harmful, None, "{told:?}");
            assert!(told.lines().count() > 1, "{told:?}");
        }
    }

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("x.toml")).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        assert_eq!(Config::parse("", Path::new("x")).unwrap(), Config::default());
    }

    #[test]
    fn unknown_key_is_reported_with_the_accepted_keys() {
        for (text, unknown, accepted) in [
            ("[node]\nlisten_on = []", "listen_on", "advertise_loopback"),
            ("[gatway]", "gatway", "gateway"),
            ("[[peer]]\nname = 'a'\npeer_id = 'b'\naddress = []", "address", "addresses"),
        ] {
            let message = error(text);
            assert!(message.contains(&format!("unknown field `{unknown}`")) && message.contains(accepted), "{message}");
            assert!(message.contains("x.toml"), "{message}");
        }
    }

    #[test]
    fn value_of_a_wrong_type_is_reported_with_its_line_and_the_expected_type() {
        let message = error("[gateway]\npriority = 'high'");
        assert!(message.contains("priority = 'high'") && message.contains("expected u32"), "{message}");
        assert!(error("[[peer]]\nname = 'a'").contains("missing field `peer_id`"));
    }

    #[test]
    fn path_that_is_not_a_regular_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        for (path, what) in crate::regular_file::list_oddities(dir.path()) {
            let message = Config::read(&path).unwrap_err().to_string();
            let expected = format!("cannot read {}: it is {what}, not a file", path.display());
            assert!(message.starts_with(&expected), "{message}");
        }
        let large = dir.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(Config::read(&large).unwrap_err().to_string().contains("is larger than 1048576 bytes"));
    }

    #[test]
    fn missing_file_is_an_error_that_says_how_to_create_it() {
        let message = Config::read(Path::new("/nonexistent/narmesh.toml")).unwrap_err().to_string();
        assert!(message.starts_with("there is no configuration /nonexistent/narmesh.toml; create it"), "{message}");
        assert!(message.contains("`narmesh --config /nonexistent/narmesh.toml init`"), "{message}");
    }
}
