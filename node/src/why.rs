//! `why PATH`: what the resolver would do now, and what it did last.

use crate::describe::plainly;
use crate::status::{CandidateView, LookedUp, OwnStoreView, RememberedView, WhyReport, WouldAnswer};
use libp2p::PeerId;
use narmesh_mesh::{MeshHandle, PeerStats, Ranked};
use narmesh_protocol::HashPart;
use narmesh_resolver::{Resolver, SourceId, UpstreamId};
use narmesh_upstream::{HealthState, Upstream};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// The whole report except the part about our own offer, which the caller adds. `names` are the configured names of
/// peers. Reads the disk.
pub(crate) fn explain(
    resolver: &Resolver,
    mesh: &MeshHandle,
    asked: String,
    part: HashPart,
    names: &BTreeMap<PeerId, String>,
    upstreams: &[(UpstreamId, Arc<Upstream>)],
) -> WhyReport {
    let held = resolver.store().contains(&part);
    let claiming = mesh.table().peek_candidates(&part);
    let candidates: HashSet<PeerId> = claiming.iter().map(|candidate| candidate.peer).collect();
    let Ranked { now: mut ranked, demoted, paused: _ } = mesh.statistics().rank(claiming);
    ranked.extend(&demoted);
    let statistics = mesh.statistics().all();
    // First those that would be asked, in that order; then the rest of the allowlist, to say why they would not be.
    let mut order: Vec<PeerId> = ranked.clone();
    order.extend(names.keys().copied().filter(|peer| !ranked.contains(peer)));
    let name = |peer: &PeerId| names.get(peer).cloned().unwrap_or_else(|| peer.to_string());
    let peers = order
        .iter()
        .map(|peer| CandidateView {
            name: name(peer),
            peer_id: peer.to_string(),
            would_ask: ranked.contains(peer),
            reason: reason(candidates.contains(peer), demoted.contains(peer), statistics.get(peer)),
        })
        .collect();
    let name_of_source = |source: &SourceId| match source {
        SourceId::Peer(peer) => name(peer),
        SourceId::Upstream(id) => {
            let known = upstreams.iter().find(|(known, _)| known == id);
            known.map_or_else(|| source.to_string(), |(_, upstream)| upstream.settings().name.clone())
        }
    };
    let upstreams_asked = upstreams.iter().any(|(_, upstream)| upstream.may_be_asked());
    let answer = resolver.in_memory(&part);
    // An answer that is no longer fresh still stands if no peer can be asked for a newer one.
    let stands = answer
        .as_ref()
        .is_some_and(|answer| answer.would_stand && (answer.is_fresh || (ranked.is_empty() && !upstreams_asked)));
    let remembered = answer.map(|answer| RememberedView {
        age_s: answer.age.as_secs(),
        holders: answer.holders.iter().map(name_of_source).collect(),
        nar_hash: Some(answer.url.nar_hash.to_string()),
        nar_size: Some(answer.url.nar_size),
    });
    let not_given = held.then(|| resolver.explain_own_refusal(&part)).flatten();
    let answer = match (held && not_given.is_none(), candidates.is_empty() && !upstreams_asked, stands) {
        (true, _, _) => WouldAnswer::OwnStore,
        (false, true, _) => WouldAnswer::Absent,
        (false, false, true) => WouldAnswer::Remembered,
        (false, false, false) if ranked.is_empty() && !upstreams_asked => WouldAnswer::Absent,
        (false, false, false) => WouldAnswer::AskCandidates,
    };
    let decisions = resolver.lookup_log().of(&part);
    let decisions = decisions
        .into_iter()
        .map(|(at_unix_ms, sentence)| LookedUp { at_unix_ms, sentence: plainly(&sentence).into_owned() })
        .collect();
    WhyReport {
        asked,
        hash_part: part.to_string(),
        own_store: OwnStoreView { held, not_given, ..OwnStoreView::default() },
        remembered,
        peers,
        upstreams: upstreams.iter().map(|(id, upstream)| view_upstream(*id, upstream)).collect(),
        answer,
        decisions,
        decisions_forgotten: resolver.lookup_log().has_forgotten(),
    }
}

fn view_upstream(id: UpstreamId, upstream: &Upstream) -> CandidateView {
    let health = upstream.report_health();
    let last = health.last_failure.map(|(failure, _)| failure.to_string()).unwrap_or_default();
    let reason = match health.state {
        HealthState::Up => "an upstream cache, which may have any path".to_owned(),
        HealthState::Degraded => format!("an upstream cache whose last requests failed: {last}"),
        HealthState::Down => {
            let left = health.down_for.unwrap_or_default().as_secs();
            format!("an upstream cache that is down, tried again in {left} s: {last}")
        }
    };
    CandidateView {
        name: upstream.settings().name.clone(),
        peer_id: SourceId::Upstream(id).to_string(),
        would_ask: upstream.may_be_asked(),
        reason,
    }
}

fn reason(candidate: bool, is_demoted: bool, stats: Option<&PeerStats>) -> String {
    let Some(stats) = stats else { return "not on the allowlist".to_owned() };
    if let Some(left) = stats.set_aside_left() {
        return format!("set aside for {} s because it misbehaved", left.as_secs());
    }
    match (stats.summary_since.is_some(), candidate) {
        (false, _) => "no summary from it yet".to_owned(),
        (true, false) => "its filter says no".to_owned(),
        (true, true) if stats.is_paused() => "its filter says maybe, but it has not answered lately".to_owned(),
        (true, true) if is_demoted => "its filter says maybe, but was wrong too often lately: asked last".to_owned(),
        (true, true) => "its filter says maybe".to_owned(),
    }
}
