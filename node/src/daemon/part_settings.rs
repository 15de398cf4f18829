//! What each part of the daemon gets of the settings and secrets.

use super::members::is_open;
use crate::attestations::KeyNames;
use crate::settings::{Compress, Secrets, Settings, UpstreamSettings};
use crate::sources::{PreparedUpstreams, UpstreamSources};
use anyhow::Context as _;
use narmesh_mesh::{Membership, MeshConfig, UploadLimits};
use narmesh_protocol::{BuilderKey, NixPublicKey, NixSecretKey, TrustedKeys};
use narmesh_quorum::{Mode, Policy};
use narmesh_resolver::ResolverSettings;
use narmesh_store::OfferPolicy;

/// Reads the credentials of the upstream caches and makes their clients; contacts nobody.
pub(super) fn prepare_upstreams(upstreams: &UpstreamSources, settings: &Settings) -> anyhow::Result<PreparedUpstreams> {
    let read = settings.upstreams.iter().map(UpstreamSettings::read).collect::<Result<Vec<_>, _>>()?;
    upstreams.prepare(read).context("the clients of the upstream caches")
}

/// The quorum's policy, which depends on our own builder key. Logs its warnings.
pub(super) fn quorum_policy(settings: &Settings, secrets: &Secrets) -> anyhow::Result<Policy> {
    let (policy, warnings) = settings.quorum.policy(secrets.builder_key.as_ref().map(NixSecretKey::public).as_ref())?;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(policy)
}

pub(super) fn key_names(settings: &Settings, secrets: &Secrets) -> KeyNames {
    settings.quorum.key_names(secrets.builder_key.as_ref().map(NixSecretKey::public).as_ref())
}

/// The key that signs narinfos for our Nix. It is made when it is first needed.
pub(super) fn load_gateway_key(settings: &Settings) -> anyhow::Result<Option<NixSecretKey>> {
    let key = settings.make_gateway_key()?;
    if let Some(key) = &key {
        tracing::info!(
            public_key = %key.public(),
            "narinfos are signed with the gateway key, the only key that Nix has to trust"
        );
    }
    Ok(key)
}

/// The keys whose signatures are passed on to peers: those that we trust and, with `require`, those of the configured
/// builders, since their word decided. Never the gateway key, which is meant for the Nix of this machine.
fn shown_keys(settings: &Settings, gateway: Option<&NixSecretKey>) -> TrustedKeys {
    let mut keys: Vec<NixPublicKey> = settings.trusted.iter().cloned().collect();
    if settings.quorum.mode() == Mode::Require {
        for key in &settings.quorum.public_keys {
            if keys.iter().all(|known| known.name() != key.name()) {
                keys.push(key.clone());
            }
        }
    }
    if let Some(gateway) = gateway.map(NixSecretKey::public) {
        keys.retain(|key| key.bytes() != gateway.bytes());
    }
    // Fails only for a name that occurs twice, which was ruled out above.
    TrustedKeys::new(keys).unwrap_or_default()
}

pub(super) fn offer_policy(
    settings: &Settings,
    secrets: &Secrets,
    gateway: Option<&NixSecretKey>,
    is_serving: bool,
) -> OfferPolicy {
    settings.offer_policy(shown_keys(settings, gateway), secrets.builder_key.clone(), is_serving)
}

pub(super) fn mesh_config(settings: &Settings, secrets: &Secrets) -> MeshConfig {
    let own = secrets.builder_key.as_ref().map(NixSecretKey::public);
    MeshConfig {
        peers: settings.peer_addresses(),
        relays: settings.peers.iter().filter(|peer| peer.relay).map(|peer| peer.peer_id).collect(),
        is_relay: settings.node.relay.unwrap_or(false),
        relay_bytes_per_s: settings.limits.relay_bytes_per_s,
        listen: settings.node.listen.clone(),
        external_addresses: settings.node.external_addresses.clone(),
        advertise_loopback: settings.node.advertise_loopback,
        connections_gossip: settings.limits.connections_gossip as usize,
        builders: settings.quorum.counted(own.as_ref()),
        mesh: settings.mesh.key.clone().map(|key| Membership { key, roster: settings.mesh.roster.clone() }),
        refusing: settings.mesh.refusing.clone(),
        is_open: is_open(settings),
        own_builder: own.map(|key| BuilderKey(key.bytes())),
    }
}

/// Whether bodies to peers that ask for it are compressed.
pub(super) fn may_compress(settings: &Settings) -> bool {
    settings.transfer.compress != Compress::Never
}

pub(super) fn resolver_settings(
    settings: &Settings,
    secrets: &Secrets,
    gateway_key: Option<NixSecretKey>,
) -> ResolverSettings {
    ResolverSettings {
        trusted: settings.trusted.clone(),
        builder_key: secrets.builder_key.clone(),
        gateway_key,
        signers: settings.quorum.signers(),
        priority: settings.gateway.priority,
        narinfo_deadline: settings.gateway.narinfo_deadline,
        narinfo_deadline_max: settings.gateway.narinfo_deadline_max,
        transfer: settings.transfer,
    }
}

pub(super) fn upload_limits(settings: &Settings) -> UploadLimits {
    UploadLimits {
        per_peer: settings.limits.uploads_per_peer as usize,
        total: settings.limits.uploads_total as usize,
        bytes_per_s: settings.limits.upload_bytes_per_s,
    }
}
