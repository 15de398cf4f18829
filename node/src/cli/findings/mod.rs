//! What `check-config` and `doctor` find, and how they say it. Both take what concerns the configuration from
//! [`of_configuration`], so that neither knows a fault that the other does not.

mod keys_of_nix;
mod mender;
mod nix;
mod own;
mod quorum;
#[cfg(test)]
mod tests;
mod upstreams;

pub(super) use mender::{Mender, quoted};
pub(super) use own::startable_findings;

use super::nix_conf::NixSettings;
use super::nix_version::NixVersion;
use crate::describe::escaped;
use crate::settings::Settings;
use crate::styles::Mark;
use libp2p::PeerId;
use narmesh_protocol::NixPublicKey;
use serde::Serialize;

/// How much a finding matters. The order is that in which findings are printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Something does not work.
    Error,
    /// Something that the user should fix.
    Warning,
    /// Something that may be as intended.
    Note,
}

impl Severity {
    /// The word in front of a finding.
    fn word(self) -> String {
        match self {
            Self::Error => Mark::Bad.paint("error"),
            Self::Warning => Mark::Unusual.paint("warning"),
            Self::Note => Mark::Aside.paint("note"),
        }
    }
}

/// One thing that was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// What it is, with its value, and what it leads to.
    pub(super) found: String,
    /// The commands that mend it, or what to write where no command can.
    pub(super) mend: Vec<String>,
}

impl Finding {
    fn new(severity: Severity, found: impl Into<String>) -> Self {
        Self { severity, found: found.into(), mend: Vec::new() }
    }

    pub(super) fn error(found: impl Into<String>) -> Self {
        Self::new(Severity::Error, found)
    }

    pub(super) fn warning(found: impl Into<String>) -> Self {
        Self::new(Severity::Warning, found)
    }

    pub(super) fn note(found: impl Into<String>) -> Self {
        Self::new(Severity::Note, found)
    }

    /// The same with one more command that mends it.
    pub(super) fn mended_by(mut self, command: impl Into<String>) -> Self {
        self.mend.push(command.into());
        self
    }

    /// As `check-config` and `doctor` print it, in colours; `about` stands in front if it is not empty. What peers and caches said may
    /// be in it, so nothing of it reaches the terminal unescaped.
    pub(super) fn text(&self, about: &str) -> String {
        let about = if about.is_empty() { String::new() } else { format!("{about}: ") };
        let mut text = format!("{}: {about}{}\n", self.severity.word(), escaped(&self.found));
        for command in &self.mend {
            text += &format!("    {} {}\n", Mark::Aside.paint("mend:"), escaped(command));
        }
        text
    }
}

/// The public keys of this machine, as far as they are known.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnKeys {
    /// The builder key, if there is one and it could be read.
    pub(super) builder: Option<NixPublicKey>,
    /// The gateway key, if it was made and could be read.
    pub(super) gateway: Option<NixPublicKey>,
    /// The node's own id, if it is known.
    pub(super) node: Option<PeerId>,
}

/// What the configuration and that of Nix beside it show.
pub(super) fn of_configuration(
    settings: &Settings,
    keys: &OwnKeys,
    nix: &NixSettings,
    version: Option<NixVersion>,
    mender: &Mender,
) -> anyhow::Result<Vec<Finding>> {
    let mut findings = own::own_findings(settings, keys, mender);
    findings.extend(own::store_finding(settings));
    findings.extend(upstreams::upstream_findings(settings));
    findings.extend(quorum::quorum_findings(settings, keys, nix, mender)?);
    findings.extend(nix::nix_findings(settings, keys.gateway.as_ref(), nix, version, mender));
    Ok(findings)
}
