//! The keys that Nix trusts beside those that narmesh trusts.

use super::{Finding, Mender};
use crate::cli::nix_conf::NixSettings;
use crate::settings::{Settings, is_gateway_key};
use narmesh_protocol::NixPublicKey;

/// The gateway key signs everything that is served, so Nix needs no other key.
pub(super) fn gateway_key_finding(
    gateway: Option<&NixPublicKey>,
    nix: &NixSettings,
    mender: &Mender,
) -> Option<Finding> {
    match gateway.map(NixPublicKey::to_string) {
        None => Some(
            Finding::note(
                "the daemon makes the gateway key, which Nix has to trust, at its first start; after that, `narmesh id` \
                 prints it",
            )
            .mended_by(mender.narmesh("init --keys")),
        ),
        Some(ours) if !nix.words("trusted-public-keys").contains(&ours.as_str()) => {
            let lacks = Finding::warning(format!(
                "trusted-public-keys in nix.conf lacks the gateway key {ours}: Nix refuses what only this key or those of \
                 peers and upstream caches signed, and keeps the unusable narinfo for 30 days"
            ));
            Some(lacks.mended_by(mender.nix_setting("extra-trusted-public-keys", &ours)))
        }
        Some(_) => None,
    }
}

/// Names the keys that Nix trusts and narmesh does not.
pub(super) fn unused_key_notes(settings: &Settings, gateway: Option<&NixPublicKey>, nix: &NixSettings) -> Vec<Finding> {
    let is_used = |key: &NixPublicKey| {
        let mut of_upstreams = settings.upstreams.iter().flat_map(|upstream| upstream.cache.trusted.iter());
        settings.trusted.by_name(key.name()).is_some() || gateway == Some(key) || of_upstreams.any(|other| other == key)
    };
    let known = nix.words("trusted-public-keys").into_iter().filter_map(|text| NixPublicKey::parse(text).ok());
    let note = |key: NixPublicKey| {
        Finding::note(format!(
            "Nix trusts {key}, but narmesh does not: what only this key signed is neither offered to peers nor taken \
             from them"
        ))
    };
    // Whoever may not read our gateway key cannot tell it from another's.
    let may_be_ours = |key: &NixPublicKey| gateway.is_none() && is_gateway_key(key.name());
    known.filter(|key| !is_used(key) && !may_be_ours(key)).map(note).collect()
}

pub(super) fn key_findings(settings: &Settings, nix: &NixSettings, mender: &Mender) -> Vec<Finding> {
    let known: Vec<_> =
        nix.words("trusted-public-keys").into_iter().filter_map(|text| NixPublicKey::parse(text).ok()).collect();
    let trust = |finding: Finding, key: &NixPublicKey| {
        finding.mended_by(mender.nix_setting("extra-trusted-public-keys", &key.to_string()))
    };
    let mut findings = Vec::new();
    for key in settings.trusted.iter() {
        // Of several keys with one name, Nix uses only the first.
        let same_name = known.iter().find(|other| other.name() == key.name());
        // Nix has the very same key, so there is nothing to say.
        if same_name == Some(key) {
            continue;
        }
        let how = match same_name {
            Some(other) => format!("Nix trusts another key of that name ({other})"),
            None => "Nix does not trust it".to_owned(),
        };
        let untrusted = Finding::warning(format!(
            "narmesh trusts {key}, but {how}: Nix keeps a narinfo that only this key signed for 30 days, and never \
             accepts it. Add the key to extra-trusted-public-keys in nix.conf, or remove it from \
             trust.trusted_public_keys"
        ));
        // One more key of a name would not count.
        findings.push(if same_name.is_none() { trust(untrusted, key) } else { untrusted });
    }
    let of_upstreams: Vec<_> = settings.upstreams.iter().flat_map(|upstream| upstream.cache.trusted.iter()).collect();
    for key in of_upstreams.iter().filter(|key| !known.contains(key)) {
        let untrusted = Finding::warning(format!(
            "an [[upstream]] has the key {key}, which Nix does not trust: Nix refuses what only this key signed. Add it to \
             extra-trusted-public-keys in nix.conf"
        ));
        findings.push(trust(untrusted, key));
    }
    findings
}
