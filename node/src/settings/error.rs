//! Why a configuration is refused.

use crate::config::ConfigError;
use std::net::SocketAddr;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read, or is not a configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A value that is not accepted.
    #[error("{key} = {value} is refused; accepted: {accepted}")]
    Value {
        /// The full key, such as `peer[2].addresses[0]`; indices count from 0.
        key: String,
        /// The value as written, text in quotes.
        value: String,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// A value that must be unique occurs twice.
    #[error("{key} = {value:?} is also in {first}; accepted: {accepted}")]
    Duplicate {
        /// The full key of the second occurrence.
        key: String,
        /// The value as written.
        value: String,
        /// The full key of the first occurrence.
        first: String,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// Builders and rules that do not fit together.
    #[error(transparent)]
    Policy(narmesh_quorum::PolicyError),
    /// A rule about builders without any builder.
    #[error("{key} needs builders, but the configuration names none; accepted: at least one [[builder]]")]
    NoBuilders {
        /// The rule: `quorum.mode = …`, `quorum.k = …`, or the `k` of an override.
        key: String,
    },
    /// Two parts of the daemon cannot listen on one port.
    #[error(
        "{key} = \"{gateway}\" has the same port as {other} = \"{address}\"; accepted: ports that differ, such as 7281 \
         and 7280"
    )]
    OnePort {
        /// The key of a listener of the gateway.
        key: String,
        /// Its address.
        gateway: SocketAddr,
        /// The key of the other listener.
        other: String,
        /// The address there, as written.
        address: String,
    },
    /// One file would be two things.
    #[error("{key} = {path:?} is also {other}; accepted: a path of its own")]
    OnePlace {
        /// The key whose value is refused.
        key: String,
        /// The file.
        path: std::path::PathBuf,
        /// The other key, or what the daemon keeps there.
        other: String,
    },
    /// A rule that means nothing without `quorum.k`.
    #[error("{key} needs quorum.k; accepted: both of them, or neither")]
    Alone {
        /// The key of the rule.
        key: &'static str,
    },
    /// Two keys that cannot be combined.
    #[error("{key} = {value:?} cannot be combined with {other}; accepted: one of the two")]
    Excludes {
        /// The first key.
        key: &'static str,
        /// Its value as written.
        value: String,
        /// The other key.
        other: &'static str,
    },
}
