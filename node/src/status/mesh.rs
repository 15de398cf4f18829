//! What the daemon says of the mesh that it belongs to.

use serde::{Deserialize, Serialize};

/// The mesh that the configuration names.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MeshStatus {
    /// The mesh key: that of the configuration, or the one that has taken its place.
    pub key: String,
    /// A mesh key that is said to have taken the place of the same one as ours.
    #[serde(default)]
    pub contradicting_key: Option<String>,
    /// The version of the roster from which on this machine is no member, if it was removed and told so.
    pub removed_in_version: Option<u64>,
    /// The roster in force; absent if none is known that names this machine.
    pub roster: Option<RosterStatus>,
}

/// The roster in force.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RosterStatus {
    /// Its version.
    pub version: u64,
    /// When it was signed, by the clock of whoever signed it, seconds since 1970.
    pub issued_unix_s: u64,
    /// Number of members, this machine included.
    pub members: u64,
    /// What this machine is called in it.
    pub name: String,
    /// What this machine is in it: `client` or `builder`.
    pub role: String,
}
