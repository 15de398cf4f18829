//! The counters of the gateway.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::histogram::LatencyHistogram;

/// Counters of one gateway. Counting takes a few atomic additions. No label contains a name from outside.
#[derive(Debug)]
pub struct GatewayMetrics {
    requests: Family<[(&'static str, &'static str); 2], Counter>,
    body_bytes: Family<[(&'static str, &'static str); 1], Counter>,
    answer_seconds: Family<[(&'static str, &'static str); 1], LatencyHistogram>,
    closed: Family<[(&'static str, &'static str); 1], Counter>,
    open_connections: Gauge,
    cache_info: KindMetrics,
    narinfo: KindMetrics,
    nar: KindMetrics,
    log: KindMetrics,
    realisation: KindMetrics,
    listing: KindMetrics,
    entry: KindMetrics,
    health: KindMetrics,
    metrics: KindMetrics,
    unknown: KindMetrics,
    closed_by_limit: Counter,
    closed_slow_head: Counter,
    closed_slow_handshake: Counter,
    closed_idle: Counter,
    closed_stalled: Counter,
}

/// The endpoint that a request asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    CacheInfo,
    NarInfo,
    Nar,
    /// The log of a build.
    Log,
    /// Which path an output of a derivation is.
    Realisation,
    /// A `.ls` listing.
    Listing,
    /// A file or directory inside of a store path.
    Entry,
    /// `/healthz`, `/readyz` or `/version`.
    Health,
    Metrics,
    Unknown,
}

impl RequestKind {
    /// Whether its answers have bodies that are read while they are sent.
    pub(crate) fn is_streamed(self) -> bool {
        match self {
            Self::Nar | Self::Log | Self::Listing | Self::Entry => true,
            Self::CacheInfo | Self::NarInfo | Self::Realisation | Self::Health | Self::Metrics | Self::Unknown => false,
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was answered in full.
    Served,
    /// It was answered 404.
    Absent,
    /// It was answered 400, 403, 405, 416 or 429.
    Refused,
    /// The body could not be finished.
    Aborted,
    /// The client went away before the end of the body.
    ClientGone,
}

/// Why the gateway itself closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// It was idle longest when one connection too many came.
    Limit,
    /// Its request head was not complete in time.
    SlowHead,
    /// Its handshake was not complete in time.
    SlowHandshake,
    /// It had no request for a long time.
    Idle,
    /// It took no bytes of its response for a long time.
    Stalled,
}

/// Counts since the start, shown by `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// Narinfo requests answered 200.
    pub narinfo_hits: u64,
    /// Narinfo requests answered 404.
    pub narinfo_misses: u64,
    /// NAR requests answered in full.
    pub nar_served: u64,
    /// NAR requests answered 404.
    pub nar_absent: u64,
    /// NAR bodies that were closed early because they could not be finished.
    pub nar_aborted: u64,
    /// NAR bodies whose client left before their end.
    pub nar_client_gone: u64,
    /// Bytes in bodies of all kinds that were handed to clients.
    pub body_bytes: u64,
}

#[derive(Debug)]
struct KindMetrics {
    served: Counter,
    absent: Counter,
    refused: Counter,
    aborted: Counter,
    client_gone: Counter,
    body_bytes: Counter,
    answer_seconds: LatencyHistogram,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let requests = Family::<[(&'static str, &'static str); 2], Counter>::default();
        let body_bytes = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let answer_seconds = Family::<[(&'static str, &'static str); 1], LatencyHistogram>::default();
        let closed = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let kind = |name: &'static str| {
            let outcome = |outcome: &'static str| requests.get_or_create_owned(&[("kind", name), ("outcome", outcome)]);
            KindMetrics {
                served: outcome("served"),
                absent: outcome("absent"),
                refused: outcome("refused"),
                aborted: outcome("aborted"),
                client_gone: outcome("client_gone"),
                body_bytes: body_bytes.get_or_create_owned(&[("kind", name)]),
                answer_seconds: answer_seconds.get_or_create_owned(&[("kind", name)]),
            }
        };
        let closed_for = |reason: &'static str| closed.get_or_create_owned(&[("reason", reason)]);
        Self {
            cache_info: kind("cache_info"),
            narinfo: kind("narinfo"),
            nar: kind("nar"),
            log: kind("log"),
            realisation: kind("realisation"),
            listing: kind("listing"),
            entry: kind("entry"),
            health: kind("health"),
            metrics: kind("metrics"),
            unknown: kind("unknown"),
            closed_by_limit: closed_for("limit"),
            closed_slow_head: closed_for("slow_head"),
            closed_slow_handshake: closed_for("slow_handshake"),
            closed_idle: closed_for("idle"),
            closed_stalled: closed_for("stalled"),
            open_connections: Gauge::default(),
            requests,
            body_bytes,
            answer_seconds,
            closed,
        }
    }
}

impl GatewayMetrics {
    /// Registers the counters, as `gateway_…` after the registry's own prefix.
    pub fn register(&self, registry: &mut Registry) {
        let gateway = registry.sub_registry_with_prefix("gateway");
        gateway.register("requests", "Requests of clients by kind and outcome", self.requests.clone());
        gateway.register("body_bytes", "Bytes of bodies handed to clients", self.body_bytes.clone());
        gateway.register(
            "answer_seconds",
            "Time from a request to the head of its answer",
            self.answer_seconds.clone(),
        );
        gateway.register("open_connections", "Connections of clients", self.open_connections.clone());
        gateway.register(
            "closed_connections",
            "Connections closed by the gateway before their client did",
            self.closed.clone(),
        );
    }

    /// The counts that `status` shows.
    pub fn counts(&self) -> RequestCounts {
        let kinds = [
            &self.cache_info,
            &self.narinfo,
            &self.nar,
            &self.log,
            &self.realisation,
            &self.listing,
            &self.entry,
            &self.health,
            &self.metrics,
            &self.unknown,
        ];
        RequestCounts {
            narinfo_hits: self.narinfo.served.get(),
            narinfo_misses: self.narinfo.absent.get(),
            nar_served: self.nar.served.get(),
            nar_absent: self.nar.absent.get(),
            nar_aborted: self.nar.aborted.get(),
            nar_client_gone: self.nar.client_gone.get(),
            body_bytes: kinds.iter().map(|kind| kind.body_bytes.get()).sum(),
        }
    }

    pub(crate) fn on_finished(&self, kind: RequestKind, outcome: Outcome) {
        let metrics = self.kind(kind);
        let counter = match outcome {
            Outcome::Served => &metrics.served,
            Outcome::Absent => &metrics.absent,
            Outcome::Refused => &metrics.refused,
            Outcome::Aborted => &metrics.aborted,
            Outcome::ClientGone => &metrics.client_gone,
        };
        counter.inc();
    }

    pub(crate) fn on_answered(&self, kind: RequestKind, latency: Duration) {
        self.kind(kind).answer_seconds.observe(latency);
    }

    pub(crate) fn add_body_bytes(&self, kind: RequestKind, bytes: u64) {
        self.kind(kind).body_bytes.inc_by(bytes);
    }

    pub(crate) fn on_connection_opened(&self) {
        self.open_connections.inc();
    }

    pub(crate) fn on_connection_ended(&self) {
        self.open_connections.dec();
    }

    pub(crate) fn on_connection_closed(&self, reason: CloseReason) {
        let counter = match reason {
            CloseReason::Limit => &self.closed_by_limit,
            CloseReason::SlowHead => &self.closed_slow_head,
            CloseReason::SlowHandshake => &self.closed_slow_handshake,
            CloseReason::Idle => &self.closed_idle,
            CloseReason::Stalled => &self.closed_stalled,
        };
        counter.inc();
    }

    fn kind(&self, kind: RequestKind) -> &KindMetrics {
        match kind {
            RequestKind::CacheInfo => &self.cache_info,
            RequestKind::NarInfo => &self.narinfo,
            RequestKind::Nar => &self.nar,
            RequestKind::Log => &self.log,
            RequestKind::Realisation => &self.realisation,
            RequestKind::Listing => &self.listing,
            RequestKind::Entry => &self.entry,
            RequestKind::Health => &self.health,
            RequestKind::Metrics => &self.metrics,
            RequestKind::Unknown => &self.unknown,
        }
    }
}
