//! What the file says of builders and of how many must agree.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt::Display;

/// What is accepted as `revoked_builders.from`.
pub(crate) const DATE_FORM: &str =
    "a date, or a date and time with a zone, from 1970 on, such as 2026-11-01 or 2026-11-01T12:00:00Z";

/// One `[[builder]]`: somebody whose attestations count.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuilderConfig {
    /// What we call it.
    pub name: String,
    /// Its Nix public key, `name:base64`.
    pub public_key: String,
    /// Builders of one owner share a group, which counts once.
    #[serde(default)]
    pub group: Option<String>,
    /// Name of the `[[peer]]` that is its node: its attestations travel to whom that node's summary is told. Absent: they come
    /// as files alone.
    #[serde(default)]
    pub peer: Option<String>,
    /// It signs nothing but what it built itself, so its bare Nix signatures count too: those in narinfos of peers, and on paths
    /// of the own store.
    #[serde(default)]
    pub signs_only_own_builds: bool,
}

/// One `[[revoked_builders]]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokedBuilderConfig {
    /// Its Nix public key, `name:base64`.
    pub public_key: String,
    /// From when on its attestations are void, by when this node first stored them.
    #[serde(deserialize_with = "date")]
    pub from: toml::value::Datetime,
    /// For people.
    pub why: String,
}

/// As TOML writes dates, or the same in quotes.
fn date<'de, D: Deserializer<'de>>(value: D) -> Result<toml::value::Datetime, D::Error> {
    let refused = |value: &dyn Display| D::Error::custom(format!("from = {value} is refused; accepted: {DATE_FORM}"));
    match toml::Value::deserialize(value)? {
        toml::Value::Datetime(date) => Ok(date),
        toml::Value::String(text) => text.parse().map_err(|_| refused(&toml::Value::String(text))),
        other => Err(refused(&other)),
    }
}

/// `[quorum]`: how many builders must agree, and what follows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuorumConfig {
    /// `off`, `observe`, `prefer` or `require`.
    pub mode: String,
    /// Groups of builders that must attest one fingerprint.
    pub k: Option<u32>,
    /// Names of builders whose word is enough for a path that no other builder has; our own key is always among them.
    /// Absent: nobody's is.
    pub grace: Option<Vec<String>>,
    /// Whether one dissenting builder is enough against agreement.
    pub veto: bool,
    /// Whether what this machine rebuilt itself counts as one group.
    pub count_own_rebuild: bool,
    /// Store paths of which everything attested is kept, whoever else fills the ledger.
    pub keep: Vec<String>,
    /// `[[quorum.override]]`; the first that matches counts.
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
            keep: Vec::new(),
            overrides: Vec::new(),
        }
    }
}

/// One `[[quorum.override]]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuorumOverrideConfig {
    /// Pattern over names, as in `[advertise]`.
    pub name: String,
    /// How many for these.
    pub k: u32,
}
