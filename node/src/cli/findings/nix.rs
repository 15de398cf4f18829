//! Nix's configuration, as far as it decides what narmesh is worth here.

use super::keys_of_nix::{gateway_key_finding, key_findings, unused_key_notes};
use super::{Finding, Mender};
use crate::cli::nix_conf::{NixSettings, bare_url};
use crate::cli::nix_version::NixVersion;
use crate::settings::Settings;
use narmesh_protocol::NixPublicKey;

/// If Nix remembers a miss for longer than this, seconds, a note says so.
const NEGATIVE_TTL_S_MAX: u64 = 60;
/// While a slow peer sends, the gateway gives Nix a few bytes every 15 s. Below this, in seconds, Nix may give up before
/// them (`docs/operations.md`, measured with Nix 2.8, 2.26 and 2.34).
const STALLED_TIMEOUT_S_MIN: u64 = 20;
/// With fewer attempts than Nix's default a NAR that is being fetched while the daemon restarts fails the build
/// (`docs/operations.md`).
const ATTEMPTS_MIN: u64 = 5;

pub(super) fn nix_findings(
    settings: &Settings,
    gateway: Option<&NixPublicKey>,
    nix: &NixSettings,
    version: Option<NixVersion>,
    mender: &Mender,
) -> Vec<Finding> {
    let mut findings: Vec<_> =
        nix.unreadable.iter().map(|path| Finding::warning(format!("{} cannot be read", path.display()))).collect();
    if settings.needs_gateway_key() {
        // A key that this user may not read is no missing one.
        if gateway.is_some() || matches!(settings.read_gateway_key(), Ok(None)) {
            findings.extend(gateway_key_finding(gateway, nix, mender));
        }
    } else {
        findings.extend(key_findings(settings, nix, mender));
    }
    findings.extend(unused_key_notes(settings, gateway, nix));
    findings.extend(substituter_findings(settings, nix, mender));
    if settings.builder_key_file.is_some() {
        findings.extend(builder_key_findings(nix, mender));
    }
    findings.extend(limit_findings(nix, mender));
    if let (Some("true"), Some(version)) = (nix.value("fallback"), version)
        && version < NixVersion::FALLBACK_WORKS
    {
        let aborts = Finding::warning(format!(
            "fallback = true makes Nix {version} abort when a substituter fails; remove it, or use Nix 2.9 or later"
        ));
        findings.push(aborts.mended_by(mender.nix_setting("fallback", "false")));
    }
    findings
}

/// The time limits and the attempts of Nix, where they are worse than what `docs/operations.md` has.
fn limit_findings(nix: &NixSettings, mender: &Mender) -> Vec<Finding> {
    let number = |name: &str| nix.value(name).and_then(|value| value.parse::<u64>().ok());
    let mut findings = Vec::new();
    if let Some(ttl_s) = number("narinfo-cache-negative-ttl").filter(|ttl_s| *ttl_s > NEGATIVE_TTL_S_MAX) {
        let remembers = Finding::note(format!(
            "Nix remembers for {ttl_s} s that no substituter had a path; with narinfo-cache-negative-ttl = 0 it asks \
             again at once"
        ));
        findings.push(remembers.mended_by(mender.nix_setting("narinfo-cache-negative-ttl", "0")));
    }
    if let Some(timeout_s) = number("stalled-download-timeout").filter(|timeout_s| *timeout_s < STALLED_TIMEOUT_S_MIN) {
        let hasty = Finding::warning(format!(
            "stalled-download-timeout = {timeout_s} in nix.conf: Nix gives up NARs of slow peers, which may have a byte only \
             every 15 s"
        ));
        findings.push(hasty.mended_by(mender.nix_setting("stalled-download-timeout", "30")));
    }
    if number("connect-timeout") == Some(0) {
        let endless =
            Finding::note("connect-timeout = 0 in nix.conf: Nix waits without end for a substituter that is off");
        findings.push(endless.mended_by(mender.nix_setting("connect-timeout", "5")));
    }
    if let Some(attempts) = number("download-attempts").filter(|attempts| *attempts < ATTEMPTS_MIN) {
        let few = Finding::warning(format!(
            "download-attempts = {attempts} in nix.conf: a NAR that is being fetched while the daemon restarts fails the \
             build"
        ));
        findings.push(few.mended_by(mender.nix_setting("download-attempts", "5")));
    }
    findings
}

fn substituter_findings(settings: &Settings, nix: &NixSettings, mender: &Mender) -> Vec<Finding> {
    let substituters = nix.words("substituters");
    let others = nix.substituters_besides(settings.gateway.listen);
    let mut findings = Vec::new();
    // With port 0 nobody can know the URL beforehand.
    if settings.gateway.listen.port() != 0 && others.len() == substituters.len() {
        let url = format!("http://{}", settings.gateway.listen);
        let unasked = Finding::warning(format!(
            "Nix does not ask this node: {url} is not among its substituters (substituters in nix.conf)"
        ));
        findings.push(unasked.mended_by(mender.nix_setting("extra-substituters", &url)));
    }
    let by_name = format!("http://localhost:{}", settings.gateway.listen.port());
    if substituters.iter().any(|url| bare_url(url) == by_name) {
        findings.push(Finding::note(format!(
            "{by_name} is a substituter: write http://{} instead, which needs no resolver and means this address family",
            settings.gateway.listen
        )));
    }
    let are_asked_twice = settings.upstreams.iter().map(|upstream| upstream.cache.place.to_string());
    for url in are_asked_twice.filter(|url| others.iter().any(|other| bare_url(other) == url)) {
        findings.push(Finding::note(format!(
            "Nix asks {url} as well as this node does: without it among the substituters in nix.conf, it is asked once"
        )));
    }
    if !others.is_empty() {
        findings.push(Finding::note(format!("Nix's other substituters: {}", others.join(" "))));
    }
    findings
}

/// The builder key signs what Nix says was built here, so its signature is worth no more than this machine's builds.
fn builder_key_findings(nix: &NixSettings, mender: &Mender) -> Vec<Finding> {
    let mut findings = Vec::new();
    match (nix.value("sandbox"), nix.value("sandbox-fallback")) {
        (Some("true"), Some("false")) => {}
        (Some("true"), _) => findings.push(
            Finding::warning(
                "sandbox-fallback is not false in nix.conf: where the sandbox cannot be set up, a build can use anything \
                 on this machine, and the builder key signs the result. Set sandbox-fallback = false",
            )
            .mended_by(mender.nix_setting("sandbox-fallback", "false")),
        ),
        (value, _) => findings.push(
            Finding::warning(format!(
                "sandbox = {} in nix.conf: a build can use anything on this machine and the network, and the builder key \
                 signs the result. Set sandbox = true, or remove trust.builder_key_file",
                value.unwrap_or("?")
            ))
            .mended_by(mender.nix_setting("sandbox", "true")),
        ),
    }
    let trusted = trusted_users(nix);
    if !trusted.is_empty() {
        let tainted = Finding::warning(format!(
            "trusted-users in nix.conf holds {}: they can slip a tainted input into an honest derivation, and the \
             builder key signs the result. Leave only root in that list, or remove trust.builder_key_file",
            trusted.join(" ")
        ));
        findings.push(tainted.mended_by(mender.nix_setting("trusted-users", "root")));
    }
    findings
}

/// The entries of `trusted-users` other than root, who may do anything in any case.
pub(super) fn trusted_users(nix: &NixSettings) -> Vec<&str> {
    nix.words("trusted-users").into_iter().filter(|user| *user != "root").collect()
}
