//! `narmesh check-config`: checks the file, compares it with Nix's configuration, and tests whether the peers answer.

mod offline;

use super::finding::Finding;
use super::nix_conf::{NixSettings, bare_url};
use super::nix_keys::warn_of_gateway_keys;
use super::nix_version::NixVersion;
use super::startable::{Startable, check_startable};
use super::upstream_findings::upstream_findings;
use super::upstream_probe::{open_upstreams, probe_upstreams};
use super::{client, emit};
use crate::control::{ControlReply, ControlRequest};
use crate::daemon::with_members;
use crate::settings::{Secrets, Settings};
use crate::status::PeerProbe;
use jiff::Timestamp;
use narmesh_protocol::{BuilderKey, NixPublicKey, NixSecretKey};
use narmesh_quorum::Mode;
use narmesh_store::NixStore;
use std::path::{Path, PathBuf};

/// If Nix remembers a miss for longer than this, seconds, a note says so.
const NEGATIVE_TTL_S_MAX: u64 = 60;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Dial each peer: is it reachable, and does each side allow the other? Ask each upstream cache for its nix-cache-info
    #[arg(long)]
    probe: bool,
    /// Compare with this nix.conf instead of asking Nix
    #[arg(long, value_name = "FILE")]
    nix_conf: Option<PathBuf>,
    /// Check only what the file says, and look at nothing else of this machine: for a configuration that is built here
    /// for another one
    #[arg(long, conflicts_with_all = ["probe", "nix_conf"])]
    offline: bool,
}

/// Returns whether the daemon can start and every probe succeeded; warnings do not count.
pub(super) fn check_config(config: &Path, arguments: &Arguments) -> anyhow::Result<bool> {
    if arguments.offline {
        return offline::check_offline(config).map(|()| true);
    }
    let configured = Settings::load(config)?;
    let secrets = configured.read_secrets()?;
    // As the daemon would have it: the members of the roster are peers, and their builder keys are trusted.
    let settings = with_members(&configured, &secrets.peer_id(), None);
    settings.quorum.policy(secrets.builder_key.as_ref().map(NixSecretKey::public).as_ref())?;
    let upstreams = open_upstreams(&settings)?;
    let Startable { problems, notes } = check_startable(&settings);
    let can_start = problems.is_empty();
    emit(&format!(
        "{} {}: {}, peer id {}\n",
        config.display(),
        if can_start { "is accepted" } else { "is valid, but the daemon cannot start with it" },
        count_peers(&configured, &settings),
        secrets.peer_id()
    ))?;
    problems.iter().try_for_each(|problem| emit(&format!("error: {problem}\n")))?;
    let nix = arguments.nix_conf.as_deref().map_or_else(NixSettings::effective, NixSettings::from_file);
    emit(&format!("compared with Nix's configuration from {}\n", nix.source))?;
    let mut findings: Vec<_> = notes.into_iter().map(Finding::Note).collect();
    findings.extend(own_findings(&settings, &secrets));
    findings.extend(store_finding(&settings));
    findings.extend(upstream_findings(&settings));
    let own = secrets.builder_key.as_ref().map(NixSecretKey::public);
    let gateway = settings.read_gateway_key()?.map(|key| key.public());
    findings.extend(quorum_findings(&settings, own.as_ref(), gateway.as_ref(), &nix)?);
    findings.extend(nix_findings(&settings, gateway.as_ref(), &nix, NixVersion::installed()));
    for finding in &findings {
        match finding {
            Finding::Warning(text) => emit(&format!("warning: {text}\n"))?,
            Finding::Note(text) => emit(&format!("note: {text}\n"))?,
        }
    }
    if !arguments.probe {
        return Ok(can_start);
    }
    let probes = probe(config, &settings, &secrets)?;
    for probe in &probes {
        emit(&format!("{}\n", probe.text()))?;
    }
    let are_upstreams_good = probe_upstreams(&settings, &upstreams)?;
    Ok(can_start && probes.iter().all(PeerProbe::is_good) && are_upstreams_good)
}

/// How many peers there are, and how many of them the roster names.
fn count_peers(configured: &Settings, settings: &Settings) -> String {
    let by_roster = settings.peers.len() - configured.peers.len();
    match &settings.mesh.roster {
        None => format!("{} peers", settings.peers.len()),
        Some(_) => format!("{} peers, {by_roster} of them by the roster of the mesh", settings.peers.len()),
    }
}

/// Warns if the store's directory or its Nix database is missing.
fn store_finding(settings: &Settings) -> Option<Finding> {
    // `startable` reports a store that cannot be opened at all.
    let gap = NixStore::open(settings.store.clone()).ok()?.gap()?.to_string();
    Some(Finding::Warning(format!("[store]: {gap}: until that changes, this node finds and offers no path")))
}

fn own_findings(settings: &Settings, secrets: &Secrets) -> Vec<Finding> {
    let mut findings = Vec::new();
    if settings.peers.is_empty() && settings.mesh.key.is_none() {
        findings.push(Finding::Note("no [[peer]] is configured: this node shares with nobody yet".to_owned()));
    }
    if let (Some(mesh), None) = (&settings.mesh.key, &settings.mesh.roster) {
        findings.push(Finding::Warning(format!(
            "there is no roster of the mesh {mesh} here that can be read and names this machine: its members are no \
             peers. `narmesh mesh export FILE` on a member and `narmesh mesh import FILE` here bring one"
        )));
    }
    for (index, listener) in settings.gateway.listeners.iter().enumerate() {
        findings.extend(listener.warn_of_plain_tokens(index).map(Finding::Warning));
        // `startable` reports files that cannot be used.
        if let Some(Ok(tls)) = listener.tls.as_ref().map(|files| files.read(index))
            && let Some(why) = tls.why_not_valid(Timestamp::now())
        {
            let what =
                format!("gateway.listener[{index}].tls_certificate_file: the certificate {why}, so clients refuse it");
            findings.push(Finding::Warning(what));
        }
    }
    match &secrets.builder_key {
        None => findings.push(Finding::Note(
            "trust.builder_key_file is not set: nothing built here can be substituted elsewhere".to_owned(),
        )),
        Some(key) if settings.trusted.by_name(key.name()) != Some(&key.public()) => findings.push(Finding::Note(format!(
            "trust.trusted_public_keys lacks our own builder key {}: what was built here and then deleted cannot be \
             fetched back",
            key.public()
        ))),
        Some(_) => {}
    }
    findings.extend(warn_of_gateway_keys(&settings.trusted).into_iter().map(Finding::Warning));
    findings
}

/// Doubtful rules, and ways into the store that bypass `quorum.mode = "require"`.
fn quorum_findings(
    settings: &Settings,
    own: Option<&NixPublicKey>,
    gateway: Option<&NixPublicKey>,
    nix: &NixSettings,
) -> anyhow::Result<Vec<Finding>> {
    let (policy, warnings) = settings.quorum.policy(own)?;
    let mut findings: Vec<_> = warnings.iter().map(|warning| Finding::Warning(warning.to_string())).collect();
    let own = own.map(NixPublicKey::bytes);
    let signers = settings.quorum.signers();
    for builder in settings.quorum.counted(None) {
        // The bare signatures of a signer need no peer: they come with every narinfo.
        if builder.peer.is_none() && Some(builder.key.bytes()) != own && !signers.contains(&builder.key) {
            let name = policy.name_of(&BuilderKey(builder.key.bytes())).unwrap_or_default();
            findings.push(Finding::Warning(format!(
                "builder {name:?} has no peer: its attestations can come only as files (`narmesh quorum import`); set \
                 peer to the name of the [[peer]] that is its node"
            )));
        }
    }
    if policy.mode() != Mode::Require {
        return Ok(findings);
    }
    for url in nix.substituters_besides(settings.gateway.listen) {
        findings.push(Finding::Warning(format!(
            "quorum.mode = \"require\" is bypassed by the substituter {url} of nix.conf: the policy governs only what \
             passes through this node"
        )));
    }
    let ours = gateway.map(NixPublicKey::to_string);
    let is_ours = |key: &&str| ours.as_deref() == Some(*key);
    for key in nix.words("trusted-public-keys").into_iter().filter(|key| !is_ours(key)) {
        findings.push(Finding::Warning(format!(
            "quorum.mode = \"require\" is bypassed by the key {key} of trusted-public-keys in nix.conf: Nix accepts \
             what this key alone signed from any substituter"
        )));
    }
    let trusted = trusted_users(nix);
    if !trusted.is_empty() {
        findings.push(Finding::Warning(format!(
            "quorum.mode = \"require\" is bypassed by trusted-users in nix.conf: {} may name substituters and keys of \
             their own. Leave only root in that list",
            trusted.join(" ")
        )));
    }
    Ok(findings)
}

fn nix_findings(
    settings: &Settings,
    gateway: Option<&NixPublicKey>,
    nix: &NixSettings,
    version: Option<NixVersion>,
) -> Vec<Finding> {
    let mut findings: Vec<_> =
        nix.unreadable.iter().map(|path| Finding::Warning(format!("{} cannot be read", path.display()))).collect();
    if settings.needs_gateway_key() {
        findings.extend(gateway_key_finding(gateway, nix));
    } else {
        findings.extend(key_findings(settings, nix));
    }
    findings.extend(unused_key_notes(settings, gateway, nix));
    findings.extend(substituter_findings(settings, nix));
    if settings.builder_key_file.is_some() {
        findings.extend(builder_key_findings(nix));
    }
    let negative_ttl_s = nix.value("narinfo-cache-negative-ttl").and_then(|value| value.parse::<u64>().ok());
    if let Some(ttl_s) = negative_ttl_s.filter(|ttl_s| *ttl_s > NEGATIVE_TTL_S_MAX) {
        findings.push(Finding::Note(format!(
            "Nix remembers for {ttl_s} s that no substituter had a path; with narinfo-cache-negative-ttl = 0 it asks \
             again at once"
        )));
    }
    if let (Some("true"), Some(version)) = (nix.value("fallback"), version)
        && version < NixVersion::FALLBACK_WORKS
    {
        findings.push(Finding::Warning(format!(
            "fallback = true makes Nix {version} abort when a substituter fails; remove it, or use Nix 2.9 or later"
        )));
    }
    findings
}

/// The gateway key signs everything that is served, so Nix needs no other key.
fn gateway_key_finding(gateway: Option<&NixPublicKey>, nix: &NixSettings) -> Option<Finding> {
    match gateway.map(NixPublicKey::to_string) {
        None => Some(Finding::Note(
            "the daemon makes the gateway key, which Nix has to trust, at its first start; after that, `narmesh id` \
             prints it"
                .to_owned(),
        )),
        Some(ours) if !nix.words("trusted-public-keys").contains(&ours.as_str()) => Some(Finding::Warning(format!(
            "trusted-public-keys in nix.conf lacks the gateway key {ours}: Nix refuses what only this key or those of \
             peers and upstream caches signed, and keeps the unusable narinfo for 30 days"
        ))),
        Some(_) => None,
    }
}

/// Names the keys that Nix trusts and narmesh does not.
fn unused_key_notes(settings: &Settings, gateway: Option<&NixPublicKey>, nix: &NixSettings) -> Vec<Finding> {
    let is_used = |key: &NixPublicKey| {
        let mut of_upstreams = settings.upstreams.iter().flat_map(|upstream| upstream.cache.trusted.iter());
        settings.trusted.by_name(key.name()).is_some() || gateway == Some(key) || of_upstreams.any(|other| other == key)
    };
    let known = nix.words("trusted-public-keys").into_iter().filter_map(|text| NixPublicKey::parse(text).ok());
    let note = |key: NixPublicKey| {
        Finding::Note(format!(
            "Nix trusts {key}, but narmesh does not: what only this key signed is neither offered to peers nor taken \
             from them"
        ))
    };
    known.filter(|key| !is_used(key)).map(note).collect()
}

fn key_findings(settings: &Settings, nix: &NixSettings) -> Vec<Finding> {
    let known: Vec<_> =
        nix.words("trusted-public-keys").into_iter().filter_map(|text| NixPublicKey::parse(text).ok()).collect();
    let mut findings = Vec::new();
    for key in settings.trusted.iter() {
        // Of several keys with one name, Nix uses only the first.
        let same_name = known.iter().find(|other| other.name() == key.name());
        if same_name == Some(key) {
            continue;
        }
        let how = match same_name {
            Some(other) => format!("Nix trusts another key of that name ({other})"),
            None => "Nix does not trust it".to_owned(),
        };
        findings.push(Finding::Warning(format!(
            "narmesh trusts {key}, but {how}: Nix keeps a narinfo that only this key signed for 30 days, and never \
             accepts it. Add the key to extra-trusted-public-keys in nix.conf, or remove it from \
             trust.trusted_public_keys"
        )));
    }
    let of_upstreams: Vec<_> = settings.upstreams.iter().flat_map(|upstream| upstream.cache.trusted.iter()).collect();
    for key in of_upstreams.iter().filter(|key| !known.contains(key)) {
        findings.push(Finding::Warning(format!(
            "an [[upstream]] has the key {key}, which Nix does not trust: Nix refuses what only this key signed. Add it to \
             extra-trusted-public-keys in nix.conf"
        )));
    }
    findings
}

fn substituter_findings(settings: &Settings, nix: &NixSettings) -> Vec<Finding> {
    let substituters = nix.words("substituters");
    let others = nix.substituters_besides(settings.gateway.listen);
    let mut findings = Vec::new();
    // With port 0 nobody can know the URL beforehand.
    if settings.gateway.listen.port() != 0 && others.len() == substituters.len() {
        findings.push(Finding::Warning(format!(
            "Nix does not ask this node: http://{} is not among its substituters (substituters in nix.conf)",
            settings.gateway.listen
        )));
    }
    let are_asked_twice = settings.upstreams.iter().map(|upstream| upstream.cache.place.to_string());
    for url in are_asked_twice.filter(|url| others.iter().any(|other| bare_url(other) == url)) {
        findings.push(Finding::Note(format!(
            "Nix asks {url} as well as this node does: without it among the substituters in nix.conf, it is asked once"
        )));
    }
    if !others.is_empty() {
        findings.push(Finding::Note(format!("Nix's other substituters: {}", others.join(" "))));
    }
    findings
}

/// The builder key signs what Nix says was built here, so its signature is worth no more than this machine's builds.
fn builder_key_findings(nix: &NixSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut warn = |text: String| findings.push(Finding::Warning(text));
    match (nix.value("sandbox"), nix.value("sandbox-fallback")) {
        (Some("true"), Some("false")) => {}
        (Some("true"), _) => warn(
            "sandbox-fallback is not false in nix.conf: where the sandbox cannot be set up, a build can use anything \
             on this machine, and the builder key signs the result. Set sandbox-fallback = false"
                .to_owned(),
        ),
        (value, _) => warn(format!(
            "sandbox = {} in nix.conf: a build can use anything on this machine and the network, and the builder key \
             signs the result. Set sandbox = true, or remove trust.builder_key_file",
            value.unwrap_or("?")
        )),
    }
    let trusted = trusted_users(nix);
    if !trusted.is_empty() {
        warn(format!(
            "trusted-users in nix.conf holds {}: they can slip a tainted input into an honest derivation, and the \
             builder key signs the result. Leave only root in that list, or remove trust.builder_key_file",
            trusted.join(" ")
        ));
    }
    findings
}

/// The entries of `trusted-users` other than root, who may do anything in any case.
fn trusted_users(nix: &NixSettings) -> Vec<&str> {
    nix.words("trusted-users").into_iter().filter(|user| *user != "root").collect()
}

/// Probes through the running daemon if there is one: a second node with our identity would only confuse the peers.
fn probe(config: &Path, settings: &Settings, secrets: &Secrets) -> anyhow::Result<Vec<PeerProbe>> {
    if let Ok(ControlReply::Probe(probes)) = client::ask(config, &ControlRequest::Probe { peer: None }) {
        return Ok(probes);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut results = runtime.block_on(narmesh_mesh::probe(&settings.peer_addresses(), &secrets.keypair))?;
    let of = |peer: &crate::settings::PeerSettings| {
        let result = results.remove(&peer.peer_id)?;
        Some(PeerProbe { name: peer.name.clone(), peer_id: peer.peer_id.to_string(), result })
    };
    Ok(settings.peers.iter().filter_map(of).collect())
}

#[cfg(test)]
mod tests;
