//! The configuration file as it is written: one TOML, unknown keys refused, nothing checked beyond types.
//!
//! [`Config`] becomes [`crate::settings::Settings`] by one check; nothing else reads it.

mod place;
mod quorum;

pub(crate) use place::bounds_of;
pub(crate) use quorum::DATE_FORM;
pub use quorum::{BuilderConfig, QuorumConfig, QuorumOverrideConfig, RevokedBuilderConfig};

use crate::regular_file::read_text;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Where the file is looked for without `--config`.
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
    /// `[[peer]]`, the allowlist.
    pub peer: Vec<PeerConfig>,
    /// `[[builder]]`: whose attestations count.
    pub builder: Vec<BuilderConfig>,
    /// `[[revoked_builders]]`: whose do not, from some time on.
    pub revoked_builders: Vec<RevokedBuilderConfig>,
    /// `[quorum]`
    pub quorum: QuorumConfig,
}

/// `[node]`: who we are on the mesh. Relative paths are relative to the directory of the file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// What this machine is called in the lines that `narmesh id` prints for others.
    pub name: Option<String>,
    /// The node key, see [`crate::settings::NodeKeyFile`].
    pub key_file: PathBuf,
    /// Directory of the state database and the control socket.
    pub state_dir: PathBuf,
    /// Unix socket of `narmesh status` and its kin; `<state_dir>/control.sock` if absent.
    pub control_socket: Option<PathBuf>,
    /// The group whose members may use it; the daemon's own group if absent.
    pub control_group: Option<String>,
    /// Where the mesh listens, as multiaddrs; port 0 lets the kernel choose. A family that the machine lacks is left out.
    pub listen: Vec<String>,
    /// Told to peers besides the listen addresses.
    pub external_addresses: Vec<String>,
    /// Tell and believe loopback addresses: only for several nodes on one machine.
    pub advertise_loopback: bool,
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
        }
    }
}

/// `[gateway]`: what our own Nix talks to.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Loopback address and port; port 0 lets the kernel choose.
    pub listen: String,
    /// Accepted in `Host` besides `127.0.0.1`, `[::1]` and `localhost`: names or addresses, without a port.
    pub host_names: Vec<String>,
    /// `Priority` of the substituter; Nix asks the lowest first, cache.nixos.org has 40.
    pub priority: u32,
    /// Longest time for one narinfo, milliseconds; after it the answer is 404.
    pub narinfo_deadline_ms: u64,
    /// The same while a candidate that has not answered is known to be on a full line, usually takes long, or is awaited after a
    /// start, milliseconds.
    pub narinfo_deadline_max_ms: u64,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7281".to_owned(),
            host_names: Vec::new(),
            priority: 30,
            narinfo_deadline_ms: 1_000,
            narinfo_deadline_max_ms: 10_000,
        }
    }
}

/// `[store]`: which Nix store is served.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// The logical directory, as it stands in store paths.
    pub store_dir: String,
    /// Where its files really are; `store_dir` if absent.
    pub real_dir: Option<PathBuf>,
    /// Holds `db/db.sqlite`; `/nix/var/nix` if absent.
    pub state_dir: Option<PathBuf>,
    /// Short form for a chroot store: `<root>/nix/store` and `<root>/nix/var/nix`. Excludes the two above.
    pub root: Option<PathBuf>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { store_dir: "/nix/store".to_owned(), real_dir: None, state_dir: None, root: None }
    }
}

/// `[trust]`: whose builds we take, and what we sign with.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustConfig {
    /// Nix public keys, `name:base64`.
    pub trusted_public_keys: Vec<String>,
    /// A Nix secret key that signs what was built here; without it nothing built here is advertised.
    pub builder_key_file: Option<PathBuf>,
    /// Sign as well what nobody signed and a derivation here makes: what remote builders built for this machine.
    pub sign_remote_builds: bool,
}

/// `[advertise]`: what peers may see.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdvertiseConfig {
    /// Patterns over whole names (without hash part), `*` any text and `?` any one character; one must match.
    pub include: Vec<String>,
    /// The same; none may match.
    pub exclude: Vec<String>,
    /// Withhold system configurations and what their derivations declare not to be substitutable.
    pub withhold_defaults: bool,
}

impl Default for AdvertiseConfig {
    fn default() -> Self {
        Self { include: vec!["*".to_owned()], exclude: Vec::new(), withhold_defaults: true }
    }
}

/// `[transfer]`: how NARs travel between peers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransferConfig {
    /// `auto`, `always` or `never`.
    pub compress: String,
    /// A holder from which nothing comes at all for so long, over the whole line, is left, milliseconds.
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
    /// Connections kept for gossip.
    pub connections_gossip: u32,
    /// Memory for NARs in flight, bytes.
    pub nar_buffer_bytes: u64,
    /// NARs sent to one peer at a time; those up to 8 MiB are counted apart, and have as many. Its further ones wait.
    pub uploads_per_peer: u32,
    /// NARs read from the disk for peers at the same moment.
    pub uploads_total: u32,
    /// Bytes per second of NARs to all peers together; 0 for no limit.
    pub upload_bytes_per_s: u32,
    /// Paths in our own summary; beyond it the newest are withheld.
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
            advertised_paths_max: 200_000,
        }
    }
}

/// One `[[peer]]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// What we call it.
    pub name: String,
    /// Its peer id, as `narmesh id` prints it there.
    pub peer_id: String,
    /// Where to dial it, by IP address or host name; may be empty, addresses are learned from other peers.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// Why there is no [`Config`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error("there is no configuration {path}; make one with `narmesh --config {path} init`, or name another with --config", path = path.display())]
    Missing {
        /// The path at which it was expected.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; make one with `narmesh init`, or name another with --config", path = path.display())]
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
    /// Not TOML, an unknown key, or a value of the wrong type; the source points at the line.
    #[error("{path}: {text}{remark}", path = path.display(), text = source.to_string().trim_end())]
    Toml {
        /// The path of the configuration file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
        /// The full name of the key and what is accepted, in a line of its own; may be empty.
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

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("x.toml")).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        assert_eq!(Config::parse("", Path::new("x")).unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_named_with_the_accepted_ones() {
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
    fn a_wrong_type_shows_the_line_and_what_is_expected() {
        let message = error("[gateway]\npriority = 'high'");
        assert!(message.contains("priority = 'high'") && message.contains("expected u32"), "{message}");
        assert!(error("[[peer]]\nname = 'a'").contains("missing field `peer_id`"));
    }

    #[test]
    fn what_is_no_file_is_named_and_nothing_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        for (path, what) in crate::regular_file::oddities(dir.path()) {
            let message = Config::read(&path).unwrap_err().to_string();
            let expected = format!("cannot read {}: it is {what}, not a file", path.display());
            assert!(message.starts_with(&expected), "{message}");
        }
        let large = dir.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(Config::read(&large).unwrap_err().to_string().contains("is larger than 1048576 bytes"));
    }

    #[test]
    fn a_missing_file_says_how_to_make_one() {
        let message = Config::read(Path::new("/nonexistent/narmesh.toml")).unwrap_err().to_string();
        assert!(message.starts_with("there is no configuration /nonexistent/narmesh.toml; make one with"), "{message}");
        assert!(message.contains("`narmesh --config /nonexistent/narmesh.toml init`"), "{message}");
    }
}
