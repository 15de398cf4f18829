//! The sections of the file about builders and how many of them must agree.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt::Display;

/// The form of `revoked_builders.from`, for errors.
pub(crate) const DATE_FORM: &str =
    "a date, or a date and time with a zone, from 1970 on, such as 2026-11-01 or 2026-11-01T12:00:00Z";

/// One `[[builder]]`: a builder whose attestations count.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuilderConfig {
    /// Our name for the builder.
    pub name: String,
    /// Its Nix public key, `name:base64`.
    pub public_key: String,
    /// Its group: builders of one owner share a group, which counts once.
    #[serde(default)]
    pub group: Option<String>,
    /// Name of the `[[peer]]` that is its node. Its attestations then travel through the mesh, to the audience of that
    /// node's summary; without it they come only as files.
    #[serde(default)]
    pub peer: Option<String>,
    /// Whether it signs only what it built itself. Then its bare Nix signatures count too: those in narinfos of peers,
    /// and on paths of our own store.
    #[serde(default)]
    pub signs_only_own_builds: bool,
}

/// One `[[revoked_builders]]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokedBuilderConfig {
    /// Its Nix public key, `name:base64`.
    pub public_key: String,
    /// Attestations that this node first stored at this time or later are void.
    #[serde(deserialize_with = "date")]
    pub from: toml::value::Datetime,
    /// The reason, for people.
    pub why: String,
}

/// A date as TOML writes it, or the same in quotes.
fn date<'de, D: Deserializer<'de>>(value: D) -> Result<toml::value::Datetime, D::Error> {
    let refused = |value: &dyn Display| D::Error::custom(format!("from = {value} is refused; accepted: {DATE_FORM}"));
    match toml::Value::deserialize(value)? {
        toml::Value::Datetime(date) => Ok(date),
        toml::Value::String(text) => text.parse().map_err(|_| refused(&toml::Value::String(text))),
        other => Err(refused(&other)),
    }
}

/// `[quorum]`: how many builders must agree, and what verdicts are used for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuorumConfig {
    /// `off`, `observe`, `prefer` or `require`.
    pub mode: String,
    /// The number of groups of builders that must attest one fingerprint.
    pub k: Option<u32>,
    /// Names of builders whose attestation alone is enough for a path that no other builder has attested; our own key
    /// is always among them. If absent, no single attestation is enough.
    pub grace: Option<Vec<String>>,
    /// Whether one dissenting builder is enough to prevent agreement.
    pub veto: bool,
    /// Whether what this machine rebuilt itself counts as one group.
    pub count_own_rebuild: bool,
    /// Whether the builders of the mesh's roster count as well, each under the group that the roster gives it.
    pub from_roster: bool,
    /// Store paths whose attestations are always kept, even when the ledger is full.
    pub keep: Vec<String>,
    /// `[[quorum.override]]`: the first whose pattern matches counts.
    #[serde(rename = "override")]
    pub overrides: Vec<QuorumOverrideConfig>,
}

impl Default for QuorumConfig {
    fn default() -> Self {
        Self {
            mode: "off".to_owned(),
            k: None,
            grace: None,
            veto: false,
            count_own_rebuild: false,
            from_roster: false,
            keep: Vec::new(),
            overrides: Vec::new(),
        }
    }
}

/// One `[[quorum.override]]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuorumOverrideConfig {
    /// A pattern for names, as in `[advertise]`.
    pub name: String,
    /// The `k` for names that match.
    pub k: u32,
}
