//! `narmesh check-config`: checks the file, compares it with Nix's configuration, and tests whether the peers answer.

mod offline;

use super::findings::{Mender, OwnKeys, of_configuration, startable_findings};
use super::nix_conf::NixSettings;
use super::nix_version::NixVersion;
use super::progress::Progress;
use super::startable::check_startable;
use super::upstream_probe::{open_upstreams, probe_upstreams};
use super::{client, emit, emit_coloured};
use crate::control::{ControlReply, ControlRequest};
use crate::daemon::with_members;
use crate::describe::escaped;
use crate::settings::{Secrets, Settings};
use crate::status::PeerProbe;
use narmesh_protocol::NixSecretKey;
use narmesh_quorum::Builder;
use std::path::{Path, PathBuf};

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
    let startable = check_startable(&settings);
    let can_start = startable.problems.is_empty();
    emit(&format!(
        "{} {}: {}, peer id {}\n",
        config.display(),
        if can_start { "is accepted" } else { "is valid, but the daemon cannot start with it" },
        count_peers(&configured, &settings),
        secrets.peer_id()
    ))?;
    if settings.quorum.takes_roster() {
        emit(&name_builders(&settings))?;
    }
    startable_findings(startable).iter().try_for_each(|finding| emit_coloured(&finding.text("")))?;
    let nix = arguments.nix_conf.as_deref().map_or_else(NixSettings::effective, NixSettings::from_file);
    let keys = OwnKeys {
        builder: secrets.builder_key.as_ref().map(NixSecretKey::public),
        gateway: settings.read_gateway_key()?.map(|key| key.public()),
        node: Some(secrets.peer_id()),
    };
    let mender = Mender::of_this_machine(config);
    let findings = of_configuration(&settings, &keys, &nix, NixVersion::installed(), &mender)?;
    emit(&format!("compared with Nix's configuration from {}\n", nix.source))?;
    findings.iter().try_for_each(|finding| emit_coloured(&finding.text("")))?;
    // Without it nothing leaves this machine, so that a file can be checked anywhere.
    if !arguments.probe {
        return Ok(can_start);
    }
    // Nobody answers where nobody is, and that takes seconds to tell.
    let progress = Progress::start("asking the peers", None);
    let probes = probe(config, &settings, &secrets)?;
    drop(progress);
    for probe in &probes {
        emit(&format!("{}\n", probe.text()))?;
    }
    let are_upstreams_good = probe_upstreams(&settings, &upstreams)?;
    Ok(can_start && probes.iter().all(PeerProbe::is_good) && are_upstreams_good)
}

/// The builders that count, and who names each.
fn name_builders(settings: &Settings) -> String {
    let name = |(builder, _): (&Builder, _)| {
        let by = if settings.quorum.is_from_roster(&builder.key) { "roster" } else { "configuration" };
        let group = builder.group.as_ref().map_or_else(String::new, |group| format!(" of {}", escaped(group)));
        let revoked = if settings.quorum.is_revoked(&builder.key) { ", revoked" } else { "" };
        format!("{}{group} ({by}{revoked})", escaped(&builder.name))
    };
    let names: Vec<_> = settings.quorum.builders().map(name).collect();
    format!("builders that count: {}\n", if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

/// How many peers there are, and how many of them the roster names.
fn count_peers(configured: &Settings, settings: &Settings) -> String {
    let by_roster = settings.peers.len() - configured.peers.len();
    match &settings.mesh.roster {
        None => format!("{} peers", settings.peers.len()),
        Some(_) => format!("{} peers, {by_roster} of them by the roster of the mesh", settings.peers.len()),
    }
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
