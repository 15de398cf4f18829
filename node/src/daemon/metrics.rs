//! `/metrics`: the counters of the gateway and of the resolver, and gauges that are computed at each request. Peers
//! that misbehaved appear with their id and what they did; no address of a peer appears.

use crate::attestations::{Attestations, Verdicts};
use crate::daemon::process_metrics::ProcessMetrics;
use crate::sources::UpstreamSources;
use libp2p::PeerId;
use narmesh_http_gateway::GatewayMetrics;
use narmesh_mesh::{MeshHandle, PeerStats};
use narmesh_quorum::State;
use narmesh_resolver::{Resolver, UpstreamId};
use narmesh_upstream::Upstream;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The registry of all metrics. Those of our own Nix and those of the listeners for others are counted apart.
pub(super) fn registry(
    (gateway, others): (&GatewayMetrics, &GatewayMetrics),
    attestations: &Attestations,
    resolver: &Arc<Resolver>,
    mesh: &MeshHandle,
    upstreams: &Arc<UpstreamSources>,
) -> Registry {
    let mut all = Registry::default();
    all.register_collector(Box::new(ProcessMetrics));
    let registry = all.sub_registry_with_prefix("narmesh");
    let version = vec![("version", env!("CARGO_PKG_VERSION"))];
    registry.register("build", "The version of narmesh that runs", Info::new(version));
    gateway.register(registry);
    // With a prefix, because both have the same names.
    others.register(registry.sub_registry_with_prefix("others"));
    let counters = resolver.counters();
    for (name, help, counter) in [
        ("lookups_asked", "Narinfo requests that memory could not answer", &counters.asked),
        ("false_hits", "Candidates that did not hold what their filter promised", &counters.false_hits),
        ("lookup_deadlines", "Narinfo requests that ended at their deadline", &counters.deadlines),
        ("nars_complete", "NAR bodies delivered whole", &counters.nars_complete),
        ("nars_absent", "NAR requests answered 404", &counters.nars_absent),
        ("nars_aborted", "NAR bodies cut short", &counters.nars_aborted),
        ("nars_continued", "NARs continued from another holder", &counters.continued),
        ("nars_ahead_used", "Small NARs read before Nix asked for them, that it then asked for", &counters.ahead_used),
        ("nars_ahead_wasted", "Small NARs read before Nix asked for them, in vain", &counters.ahead_wasted),
        ("mesh_received_bytes", "NAR bytes received from peers", &counters.bytes_in),
    ] {
        registry.register(name, help, counter.clone());
    }
    let exchange = attestations.counters();
    for (name, help, counter) in [
        ("quorum_compared", "Comparisons of what is attested with a peer", &exchange.compared),
        ("quorum_pulled", "Attestations from peers that were new", &exchange.pulled),
        ("quorum_handed_over", "Attestations handed to peers", &exchange.handed_over),
    ] {
        registry.register(name, help, counter.clone());
    }
    let help = "Attestations from peers that were not kept";
    registry.register("quorum_refused", help, exchange.refused.clone());
    registry.register(
        "quorum_not_given",
        "Narinfos and NARs that Nix asked for and was not given because of the policy",
        resolver.refusals().clone(),
    );
    registry.register_collector(Box::new(Gauges {
        mesh: mesh.clone(),
        verdicts: attestations.verdicts(),
        upstreams: Arc::clone(upstreams),
    }));
    all
}

#[derive(Debug)]
struct Gauges {
    mesh: MeshHandle,
    verdicts: Verdicts,
    upstreams: Arc<UpstreamSources>,
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let peers = self.mesh.statistics().all();
        let connected = peers.values().filter(|stats| stats.connected).count() as u64;
        let set_aside = peers.values().filter(|stats| stats.set_aside_left().is_some()).count() as u64;
        let sent_bytes = peers.values().map(|stats| stats.bytes_out).sum::<u64>();
        let relay = self.mesh.view_relay();
        let ages_s = || peers.values().filter_map(|stats| stats.summary_since).map(|since| since.elapsed().as_secs());
        for (name, help, value) in [
            ("peers_allowed", "Peers on the allowlist", peers.len() as u64),
            ("peers_connected", "Peers connected now", connected),
            ("peers_set_aside", "Peers that are asked nothing because they misbehaved", set_aside),
            ("relay_circuits", "Circuits of other machines over this one", relay.circuits as u64),
            ("filters", "Peers whose filter is in the table", ages_s().count() as u64),
            ("filter_oldest_age_seconds", "Age of the oldest filter in the table", ages_s().max().unwrap_or(0)),
        ] {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        for (name, help, bytes) in [
            ("mesh_sent_bytes", "NAR bytes sent to peers", sent_bytes),
            ("relay_bytes", "Bytes passed on for other machines, both directions together", relay.bytes),
        ] {
            let counter = ConstCounter::new(bytes);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let verdicts = self.verdicts.lock().as_ref().map(|found| found.by_state.clone());
        if let Some(verdicts) = verdicts {
            encode_verdicts(&mut encoder, &verdicts)?;
        }
        encode_upstreams(&mut encoder, &self.upstreams.all())?;
        encode_misdeeds(&mut encoder, &peers)
    }
}

/// One line for each state of a path, even if no path is in it.
fn encode_verdicts(
    encoder: &mut DescriptorEncoder<'_>,
    verdicts: &BTreeMap<State, u64>,
) -> Result<(), std::fmt::Error> {
    let help = "Paths of which anything is attested, by verdict";
    let mut family = encoder.encode_descriptor("quorum_paths", help, None, MetricType::Gauge)?;
    for state in [State::Agreed, State::Conflict, State::Short, State::None] {
        let gauge = ConstGauge::new(verdicts.get(&state).copied().unwrap_or(0));
        gauge.encode(family.encode_family(&[("verdict", state.name())])?)?;
    }
    Ok(())
}

/// Lines for each upstream cache, by its name: their number is that of the caches times the kinds of failures.
fn encode_upstreams(
    encoder: &mut DescriptorEncoder<'_>,
    upstreams: &[(UpstreamId, Arc<Upstream>)],
) -> Result<(), std::fmt::Error> {
    let name = |upstream: &Upstream| upstream.settings().name.clone();
    let mut encode_counts = |metric: &str, help: &str, count: fn(&Upstream) -> u64| {
        let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
        upstreams.iter().try_for_each(|(_, upstream)| {
            let labels = [("upstream", name(upstream))];
            ConstCounter::new(count(upstream)).encode(family.encode_family(&labels)?)
        })
    };
    encode_counts("upstream_answers", "Answers of an upstream cache; \"has it not\" is one", |upstream| {
        upstream.report_health().answers
    })?;
    let help = "NAR bytes received from an upstream cache, as they came";
    encode_counts("upstream_received_bytes", help, Upstream::received_bytes)?;
    let help = "Whether an upstream cache is asked (1), or left alone because it failed (0)";
    let mut family = encoder.encode_descriptor("upstream_up", help, None, MetricType::Gauge)?;
    for (_, upstream) in upstreams {
        let gauge = ConstGauge::new(u64::from(upstream.may_be_asked()));
        gauge.encode(family.encode_family(&[("upstream", name(upstream))])?)?;
    }
    let help = "Failures of an upstream cache, by kind";
    let mut family = encoder.encode_descriptor("upstream_failures", help, None, MetricType::Counter)?;
    for (_, upstream) in upstreams {
        for (kind, count) in upstream.report_health().failures {
            let labels = [("upstream", name(upstream)), ("kind", kind.name().to_owned())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// One line for each peer that misbehaved and each reason: at most the length of the allowlist times the kinds of
/// misdeeds.
fn encode_misdeeds(
    encoder: &mut DescriptorEncoder<'_>,
    peers: &BTreeMap<PeerId, PeerStats>,
) -> Result<(), std::fmt::Error> {
    let help = "Misdeeds of peers since the start: proven lies and broken rules";
    let mut family = encoder.encode_descriptor("peer_misdeeds", help, None, MetricType::Counter)?;
    for (peer, stats) in peers {
        for (misdeed, count) in &stats.misdeeds_by_reason {
            let labels = [("peer", peer.to_string()), ("reason", misdeed.label().to_owned())];
            let counter = ConstCounter::new(*count);
            counter.encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}
