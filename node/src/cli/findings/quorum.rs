//! Doubtful rules, and ways into the store that bypass `quorum.mode = "require"`.

use super::nix::trusted_users;
use super::{Finding, Mender, OwnKeys};
use crate::cli::nix_conf::NixSettings;
use crate::settings::Settings;
use narmesh_protocol::{BuilderKey, NixPublicKey};
use narmesh_quorum::Mode;

pub(super) fn quorum_findings(
    settings: &Settings,
    keys: &OwnKeys,
    nix: &NixSettings,
    mender: &Mender,
) -> anyhow::Result<Vec<Finding>> {
    let (policy, warnings) = settings.quorum.policy(keys.builder.as_ref())?;
    let mut findings: Vec<_> = warnings.iter().map(|warning| Finding::warning(warning.to_string())).collect();
    let own = keys.builder.as_ref().map(NixPublicKey::bytes);
    let signers = settings.quorum.signers();
    for builder in settings.quorum.counted(None) {
        // The bare signatures of a signer need no peer: they come with every narinfo.
        if builder.peer.is_none() && Some(builder.key.bytes()) != own && !signers.contains(&builder.key) {
            let name = policy.name_of(&BuilderKey(builder.key.bytes())).unwrap_or_default();
            findings.push(Finding::warning(format!(
                "builder {name:?} has no peer: its attestations can come only as files (`narmesh quorum import`); set \
                 peer to the name of the [[peer]] that is its node"
            )));
        }
    }
    if policy.mode() == Mode::Require {
        findings.extend(bypasses(settings, keys.gateway.as_ref(), nix, mender));
    }
    Ok(findings)
}

/// What of Nix's configuration goes past a policy that requires agreement.
fn bypasses(settings: &Settings, gateway: Option<&NixPublicKey>, nix: &NixSettings, mender: &Mender) -> Vec<Finding> {
    let mut findings = Vec::new();
    for url in nix.substituters_besides(settings.gateway.listen) {
        let bypass = Finding::warning(format!(
            "quorum.mode = \"require\" is bypassed by the substituter {url} of nix.conf: the policy governs only what \
             passes through this node"
        ));
        let gateway = format!("http://{}", settings.gateway.listen);
        findings.push(bypass.mended_by(mender.nix_setting("substituters", &gateway)));
    }
    let ours = gateway.map(NixPublicKey::to_string);
    let is_ours = |key: &&str| ours.as_deref() == Some(*key);
    for key in nix.words("trusted-public-keys").into_iter().filter(|key| !is_ours(key)) {
        let mut bypass = Finding::warning(format!(
            "quorum.mode = \"require\" is bypassed by the key {key} of trusted-public-keys in nix.conf: Nix accepts \
             what this key alone signed from any substituter"
        ));
        if let Some(ours) = &ours {
            bypass = bypass.mended_by(mender.nix_setting("trusted-public-keys", ours));
        }
        findings.push(bypass);
    }
    let trusted = trusted_users(nix);
    if !trusted.is_empty() {
        let bypass = Finding::warning(format!(
            "quorum.mode = \"require\" is bypassed by trusted-users in nix.conf: {} may name substituters and keys of \
             their own. Leave only root in that list",
            trusted.join(" ")
        ));
        findings.push(bypass.mended_by(mender.nix_setting("trusted-users", "root")));
    }
    findings
}
