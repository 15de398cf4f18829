//! The one place that assembles the status.

use super::Daemon;
use super::listeners::ShownListener;
use super::process_metrics::ProcessStat;
use crate::describe::plainly;
use crate::membership::invitations::role_word;
use crate::serving::minute_now;
use crate::settings::{PeerSettings, Settings};
use crate::status::{
    BuilderAudience, BuilderStatus, ByteStatus, ConfigStatus, MeshStatus, OwnStatus, PeerStatus, QuorumStatus,
    RelayStatus, RequestStatus, RevokedStatus, RosterStatus, Status, StoreStatus, SummarySource, SummaryStatus,
    UpstreamStatus,
};
use libp2p::{Multiaddr, PeerId};
use narmesh_mesh::{AudienceView, MeshView, PeerStats, now};
use narmesh_protocol::{BuilderKey, StorePath, node_key_of};
use narmesh_quorum::{Builder, Ledger, Mode};
use narmesh_upstream::Upstream;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Paths in conflict that `status` names.
const CONFLICTS_SHOWN_MAX: usize = 20;

/// What `narmesh status` shows now.
pub(super) async fn assemble_status(daemon: &Daemon) -> anyhow::Result<Status> {
    let view = daemon.mesh.ask_view().await?;
    // Both under one lock, so that a reload meanwhile does not mix them.
    let (config, settings) = {
        let in_force = daemon.in_force.read();
        let config = ConfigStatus {
            file: daemon.config_file.clone(),
            loaded_unix_s: in_force.loaded_unix_s,
            error: in_force.error.clone(),
        };
        (config, Arc::clone(&in_force.settings))
    };
    let statistics = daemon.mesh.statistics().all();
    let counts = daemon.gateway_metrics.counts();
    let peers: Vec<_> = settings.peers.iter().map(|peer| peer_status(&settings, peer, &statistics, &view)).collect();
    Ok(Status {
        peer_id: daemon.secrets.peer_id().to_string(),
        software: concat!("narmesh/", env!("CARGO_PKG_VERSION")).to_owned(),
        uptime_s: daemon.started.elapsed().as_secs(),
        pid: std::process::id(),
        config,
        listen: view.listen.iter().map(Multiaddr::to_string).collect(),
        gateway: daemon.gateway_address.to_string(),
        listeners: daemon.listeners.iter().map(ShownListener::status).collect(),
        serve: daemon.serving.decide(&settings, minute_now()),
        gateway_public_key: daemon.resolver.gateway_public_key().map(|key| key.to_string()),
        store: StoreStatus {
            dir: settings.store.store_dir.as_str().to_owned(),
            valid_paths: daemon.store.valid_paths() as u64,
            missing: daemon.store.gap().map(|gap| gap.to_string()),
            advertised_paths: view.publication.paths as u64,
        },
        mesh: mesh_status(&settings, &daemon.secrets.peer_id()),
        own: OwnStatus {
            epoch: view.publication.generation.map_or(0, |generation| generation.epoch),
            seq: view.publication.generation.map_or(0, |generation| generation.seq),
            paths: view.publication.paths as u64,
            filter_bits: u64::from(view.publication.filter_bits),
        },
        requests: RequestStatus {
            narinfo: counts.narinfo_hits + counts.narinfo_misses,
            narinfo_hits: counts.narinfo_hits,
            narinfo_misses: counts.narinfo_misses,
            false_hits: daemon.resolver.counters().false_hits.get(),
            nar: counts.nar_served + counts.nar_absent + counts.nar_aborted + counts.nar_client_gone,
            nar_ok: counts.nar_served,
            nar_absent: counts.nar_absent,
            nar_aborted: counts.nar_aborted,
        },
        bytes: ByteStatus {
            received: peers.iter().map(|peer| peer.stats.bytes_in).sum(),
            sent: peers.iter().map(|peer| peer.stats.bytes_out).sum(),
            gateway_out: counts.body_bytes,
        },
        given: daemon.given(),
        quorum: quorum_status(daemon),
        builders: builder_statuses(daemon, &settings, &view),
        peers,
        upstreams: daemon.upstreams.all().iter().map(|(_, upstream)| upstream_status(upstream)).collect(),
        relay: view
            .relay
            .is_on
            .then_some(RelayStatus { circuits: view.relay.circuits as u64, bytes: view.relay.bytes }),
        rss_bytes: ProcessStat::read().map_or(0, |stat| stat.resident_bytes),
    })
}

fn upstream_status(upstream: &Upstream) -> UpstreamStatus {
    let (settings, health) = (upstream.settings(), upstream.report_health());
    UpstreamStatus {
        name: settings.name.clone(),
        url: settings.place.to_string(),
        tier: settings.tier,
        state: health.state.name().to_owned(),
        down_s: health.down_for.map(|left| left.as_secs()),
        last_failure_age_s: health.last_failure.as_ref().map(|(_, age)| age.as_secs()),
        last_failure: health.last_failure.map(|(failure, _)| plainly(&failure.to_string()).into_owned()),
        failures: health.failures.into_iter().map(|(kind, count)| (kind.name().to_owned(), count)).collect(),
        answers: health.answers,
        latency_ms: health.latency.map(|latency| latency.mean_s * 1e3),
        bytes_in: upstream.received_bytes(),
    }
}

fn mesh_status(settings: &Settings, me: &PeerId) -> Option<MeshStatus> {
    let key = settings.mesh.key.as_ref()?.to_string();
    let roster = settings.mesh.roster.as_ref().and_then(|signed| {
        let (roster, this) = (signed.roster(), signed.member(&node_key_of(me)?)?);
        Some(RosterStatus {
            version: roster.version,
            issued_unix_s: roster.issued_at_ms / 1_000,
            members: roster.members.len() as u64,
            name: this.name.clone(),
            role: role_word(this.role).to_owned(),
        })
    });
    let contradicting_key = settings.mesh.contradicting.as_ref().map(ToString::to_string);
    Some(MeshStatus { key, roster, removed_in_version: settings.mesh.removed_in, contradicting_key })
}

fn quorum_status(daemon: &Daemon) -> Option<QuorumStatus> {
    let policy = daemon.attestations.ledger().policy();
    let mode = match policy.mode() {
        Mode::Off => return None,
        Mode::Observe => "observe",
        Mode::Prefer => "prefer",
        Mode::Require => "require",
    };
    let found = daemon.attestations.verdicts().lock().clone().unwrap_or_default();
    Some(QuorumStatus {
        mode: mode.to_owned(),
        k: policy.k_default().map(|k| k as u64),
        of: policy.groups() as u64,
        attestations: daemon.attestations.ledger().read(|ledger| ledger.len() - ledger.bare_signatures()) as u64,
        bare_signatures: daemon.attestations.ledger().read(Ledger::bare_signatures) as u64,
        paths: found.by_state.iter().map(|(state, count)| (state.name().to_owned(), *count)).collect(),
        conflicts: found.conflicts.iter().take(CONFLICTS_SHOWN_MAX).map(StorePath::to_string).collect(),
        refused: daemon.resolver.refusal_counts(),
    })
}

fn builder_statuses(daemon: &Daemon, settings: &Settings, view: &MeshView) -> Vec<BuilderStatus> {
    let policy = daemon.attestations.ledger().policy();
    let own = daemon.attestations.key().map(|key| BuilderKey(key.public().bytes()));
    let status = |(builder, node): (&Builder, Option<PeerId>)| {
        let tally = daemon.attestations.ledger().read(|ledger| ledger.tally_of(&builder.key));
        let seen = node.and_then(|node| view.audiences.get(&node));
        let audience = match (own == Some(builder.key), node.is_some(), seen) {
            (true, _, _) => BuilderAudience::Own,
            (false, true, Some(AudienceView { is_known: true, is_present: true, .. })) => BuilderAudience::Summary,
            (false, true, Some(AudienceView { is_known: true, .. })) => BuilderAudience::LastSummary,
            (false, true, _) => BuilderAudience::Unknown,
            (false, false, _) => BuilderAudience::NoPeer,
        };
        // All peers may hear of our own attestations; of others, only the audience of the builder's node.
        let others = settings.peers.iter().filter(|peer| Some(peer.peer_id) != node);
        let (told, not_told) = others.partition::<Vec<_>, _>(|peer| {
            audience == BuilderAudience::Own || seen.is_some_and(|seen| seen.admitted.contains(&peer.peer_id))
        });
        let names = |peers: Vec<&PeerSettings>| peers.into_iter().map(|peer| peer.name.clone()).collect();
        let named = settings.quorum.public_key(&builder.key);
        BuilderStatus {
            name: builder.name.clone(),
            public_key: named.map(ToString::to_string).unwrap_or_default(),
            group: builder.group.clone(),
            from_roster: settings.quorum.is_from_roster(&builder.key),
            attestations: tally.attestations as u64,
            last_unix_s: tally.last_stored_at.map(|at| at.0 / 1_000),
            peer: settings.peers.iter().find(|peer| Some(peer.peer_id) == node).map(|peer| peer.name.clone()),
            audience,
            told: names(told),
            not_told: names(not_told),
            revoked: policy
                .revocation(&builder.key)
                .map(|revoked| RevokedStatus { from_unix_s: revoked.from.0 / 1_000, why: revoked.why.clone() }),
        }
    };
    settings.quorum.builders().map(status).collect()
}

fn peer_status(
    settings: &Settings,
    peer: &PeerSettings,
    statistics: &BTreeMap<PeerId, PeerStats>,
    view: &MeshView,
) -> PeerStatus {
    let mut stats = statistics.get(&peer.peer_id).cloned().unwrap_or_default();
    // The texts of libraries name what an operator cannot know.
    stats.why = stats.why.map(|why| plainly(&why).into_owned());
    stats.not_direct = stats.not_direct.map(|why| plainly(&why).into_owned());
    let relay = stats.relay.as_ref().and_then(|id| settings.peers.iter().find(|peer| peer.peer_id.to_string() == *id));
    let seen = view.peers.iter().find(|seen| seen.peer == peer.peer_id);
    let summary = seen.and_then(|seen| seen.summary.as_ref()).map(|summary| SummaryStatus {
        epoch: summary.generation.epoch,
        seq: summary.generation.seq,
        age_s: match summary.remembered {
            // It may be older than this machine's uptime, so only the wall clock knows its age.
            true => (now().wall_ms / 1_000).saturating_sub(summary.accepted_ms / 1_000),
            false => stats.summary_since.map_or(0, |since| since.elapsed().as_secs()),
        },
        paths: summary.paths,
        filter_bits: u64::from(summary.filter_bits),
        source: if summary.remembered { SummarySource::Remembered } else { SummarySource::Heard },
    });
    PeerStatus {
        name: peer.name.clone(),
        peer_id: peer.peer_id.to_string(),
        relay_name: relay.map(|relay| relay.name.clone()),
        summary,
        rtt_ms: stats.latency.map(|latency| latency.as_secs_f64() * 1e3),
        distance_ms: stats.distance().map(|distance| distance.as_secs_f64() * 1e3),
        set_aside_s: stats.set_aside_left().map(|left| left.as_secs()),
        stats,
    }
}
