//! The section of the file about upstream caches.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One `[[upstream]]`: an HTTP cache, or a directory in the same layout, that is asked beside the mesh.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Our name for the cache.
    pub name: String,
    /// `https://`, `http://` or `file://`.
    pub url: String,
    /// Nix public keys, `name:base64`, that count for narinfos of this cache.
    #[serde(default)]
    pub public_keys: Vec<String>,
    /// Caches of a lower tier are asked first.
    #[serde(default)]
    pub tier: u32,
    /// Patterns of names, of which one must match; all names if empty.
    #[serde(default)]
    pub include: Vec<String>,
    /// Patterns of names, of which none may match.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// A file with a token, sent as `Authorization: Bearer`.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// A user name, sent with the password.
    #[serde(default)]
    pub user: Option<String>,
    /// A file with the password of that user.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// A file in the form of curl and Nix with the user name and the password for the host of the cache.
    #[serde(default)]
    pub netrc_file: Option<PathBuf>,
    /// A file of PEM certificates that may certify the cache, beside those of the system.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The URL of a proxy, or `none`; that of the environment if absent.
    #[serde(default)]
    pub proxy: Option<String>,
    /// The longest time for a connection, TLS included, milliseconds.
    #[serde(default = "default_connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// A request on which nothing comes for this long is given up, milliseconds.
    #[serde(default = "default_stall_timeout_ms")]
    pub stall_timeout_ms: u64,
    /// Whether it is asked at all.
    #[serde(default = "default_enabled")]
    pub enabled: bool,
}

impl UpstreamConfig {
    /// A cache of which all else is the default.
    pub fn new(name: String, url: String) -> Self {
        Self {
            name,
            url,
            public_keys: Vec::new(),
            tier: 0,
            include: Vec::new(),
            exclude: Vec::new(),
            token_file: None,
            user: None,
            password_file: None,
            netrc_file: None,
            ca_file: None,
            proxy: None,
            connect_timeout_ms: default_connect_timeout_ms(),
            stall_timeout_ms: default_stall_timeout_ms(),
            enabled: default_enabled(),
        }
    }
}

fn default_connect_timeout_ms() -> u64 {
    5_000
}

fn default_stall_timeout_ms() -> u64 {
    10_000
}

fn default_enabled() -> bool {
    true
}
