//! What Nix asked for, and from whom it came: `narmesh log`, and the part of the status about it.

use super::Daemon;
use super::control::parse_path;
use super::unix_s;
use crate::describe::plainly;
use crate::given_totals::KeptSource;
use crate::status::given::{Given, GivenStatus, SourceGiven};
use crate::status::log::{
    LOG_ENTRIES_MAX, LogEntry, LogKind, LogOutcome, LogPlace, LogQuery, LogReport, LookupEntry, NarEntry, NarShare,
    NarSwitch,
};
use libp2p::PeerId;
use narmesh_resolver::{
    LookupOutcome, LookupQuery, LookupRecord, NarOutcome, NarRecord, RequestQuery, SourceId, SourceTotal, UpstreamId,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often the totals of the week are written, if they have changed.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// The names of sources.
#[derive(Debug)]
struct Names {
    peers: BTreeMap<PeerId, String>,
    caches: BTreeMap<UpstreamId, String>,
}

impl Names {
    fn of(&self, source: &SourceId) -> String {
        let name = match source {
            SourceId::Peer(peer) => self.peers.get(peer),
            SourceId::Upstream(id) => self.caches.get(id),
        };
        name.cloned().unwrap_or_else(|| source.to_string())
    }

    /// The sources that are called this, or have this id.
    fn find(&self, wanted: &str) -> Vec<SourceId> {
        let peers = self.peers.iter().filter(|(id, name)| *name == wanted || id.to_string() == wanted);
        let caches = self.caches.iter().filter(|(_, name)| *name == wanted);
        let peers = peers.map(|(id, _)| SourceId::Peer(*id));
        peers.chain(caches.map(|(id, _)| SourceId::Upstream(*id))).collect()
    }

    fn nar(&self, record: NarRecord) -> NarEntry {
        let share = |share: narmesh_resolver::Share| NarShare {
            source: self.of(&share.source),
            first_byte: share.first_byte,
            bytes: share.bytes,
        };
        let switch = |left: narmesh_resolver::LeftSource| NarSwitch {
            source: self.of(&left.source),
            at: left.at,
            why: plainly(&left.why).into_owned(),
        };
        NarEntry {
            number: record.number,
            hash_part: record.hash_part.to_string(),
            name: record.name,
            nar_size: record.nar_size,
            first_byte: record.first_byte,
            started_unix_ms: record.started_unix_ms,
            took_ms: u64::try_from(record.took.as_millis()).unwrap_or(u64::MAX),
            outcome: nar_outcome(record.outcome),
            given_bytes: record.given_bytes,
            own: record.is_own,
            sources: record.shares.into_iter().map(share).collect(),
            left: record.left.into_iter().map(switch).collect(),
            left_count: record.left_count,
        }
    }

    fn lookup(&self, record: LookupRecord) -> LookupEntry {
        let source = record.source.map(|source| (source.to_string(), self.of(&source)));
        let mut sentence = plainly(&record.sentence).into_owned();
        if let Some((id, name)) = &source {
            sentence = sentence.replace(id, name);
        }
        LookupEntry {
            at_unix_ms: record.at_unix_ms,
            hash_part: record.hash_part.to_string(),
            source: source.map(|(_, name)| name),
            outcome: record.outcome.map(lookup_outcome),
            sentence,
        }
    }

    fn kept(&self, source: &SourceId) -> KeptSource {
        match source {
            SourceId::Peer(peer) => KeptSource::Peer(peer.to_string()),
            SourceId::Upstream(_) => KeptSource::Cache(self.of(source)),
        }
    }
}

fn nar_outcome(outcome: NarOutcome) -> LogOutcome {
    match outcome {
        NarOutcome::Running => LogOutcome::Running,
        NarOutcome::Delivered => LogOutcome::Delivered,
        NarOutcome::NotFound => LogOutcome::Gone,
        NarOutcome::NotNow => LogOutcome::NotNow,
        NarOutcome::CutShort => LogOutcome::CutShort,
        NarOutcome::ClientLeft => LogOutcome::Left,
    }
}

fn lookup_outcome(outcome: LookupOutcome) -> LogOutcome {
    match outcome {
        LookupOutcome::Found => LogOutcome::Found,
        LookupOutcome::NotFound => LogOutcome::NotFound,
        LookupOutcome::Refused => LogOutcome::Refused,
    }
}

impl Daemon {
    fn source_names(&self) -> Names {
        let peers = self.settings().peers.iter().map(|peer| (peer.peer_id, peer.name.clone())).collect();
        let caches = self.upstreams.all().iter().map(|(id, cache)| (*id, cache.settings().name.clone())).collect();
        Names { peers, caches }
    }

    /// What the log has for this query. From memory.
    pub(super) fn find_in_log(&self, query: &LogQuery) -> anyhow::Result<LogReport> {
        let names = self.source_names();
        let store_dir = &self.settings().store.store_dir;
        let hash_part = query.path.as_ref().map(|path| parse_path(path, store_dir)).transpose()?;
        let sources = query.peer.as_ref().map(|peer| names.find(peer));
        anyhow::ensure!(
            sources.as_ref().is_none_or(|sources| !sources.is_empty()),
            "no [[peer]] and no [[upstream]] is named {:?}; accepted: a name or peer id from the configuration",
            query.peer.as_deref().unwrap_or_default()
        );
        // Whoever asks the control socket must not have us build an answer without end.
        let most = query.most.min(LOG_ENTRIES_MAX);
        let after = query.after.unwrap_or_default();
        // Read first: what comes while the rest is read is read again, rather than missed.
        let (lookups, requests) = (self.resolver.lookup_log(), self.resolver.request_log());
        let place = LogPlace { lookups: lookups.changes(), nars: requests.changes() };
        let is_of = |source: &SourceId| sources.as_ref().is_none_or(|wanted| wanted.contains(source));
        let lookup_query = LookupQuery {
            hash_part,
            after_change: after.lookups,
            since_unix_ms: query.since_unix_ms,
            with_steps: query.steps,
        };
        let is_wanted = |source: Option<SourceId>, outcome: Option<LookupOutcome>| {
            let is_of_peer = source.map_or(sources.is_none(), |source| is_of(&source));
            is_of_peer && query.outcome.is_none_or(|wanted| outcome.map(lookup_outcome) == Some(wanted))
        };
        let most_of = |kind| if query.kind.is_none_or(|wanted| wanted == kind) { most } else { 0 };
        let found = lookups.find(&lookup_query, most_of(LogKind::Narinfo), is_wanted);
        // What came after the place was read comes with the next question, or it would be shown twice.
        let found = found.into_iter().filter(|record| record.change <= place.lookups);
        let mut entries: Vec<_> =
            found.map(|record| (record.at_unix_ms, LogEntry::Lookup(names.lookup(record)))).collect();
        let request_query = RequestQuery { hash_part, after_change: after.nars, since_unix_ms: query.since_unix_ms };
        let found = requests.find(&request_query, most_of(LogKind::Nar), |record| {
            let mut all =
                record.shares.iter().map(|share| &share.source).chain(record.left.iter().map(|it| &it.source));
            let is_of_peer = sources.is_none() || all.any(is_of);
            is_of_peer && query.outcome.is_none_or(|wanted| nar_outcome(record.outcome) == wanted)
        });
        let found = found.into_iter().rev().filter(|record| record.change <= place.nars);
        entries.extend(found.map(|record| {
            let ended = record.started_unix_ms + u64::try_from(record.took.as_millis()).unwrap_or(0);
            (ended, LogEntry::Nar(names.nar(record)))
        }));
        entries.sort_by_key(|(at, _)| *at);
        let entries = entries.split_off(entries.len().saturating_sub(most));
        let forgotten = lookups.has_forgotten() || requests.has_forgotten();
        Ok(LogReport { entries: entries.into_iter().map(|(_, entry)| entry).collect(), place, forgotten })
    }

    /// What came from whom, for the status. From memory.
    pub(super) fn given(&self) -> GivenStatus {
        let names = self.source_names();
        let totals = self.count_given(&names);
        let since_start = totals.iter().map(|(source, total)| SourceGiven {
            name: names.of(source),
            is_peer: source.peer().is_some(),
            given: given(total),
        });
        let since_start = since_start.collect();
        let (week, days) = self.given_totals.week(unix_s());
        let by_id: BTreeMap<String, &String> = names.peers.iter().map(|(id, name)| (id.to_string(), name)).collect();
        let name_kept = |source: &KeptSource| match source {
            KeptSource::Peer(id) => by_id.get(id).map_or_else(|| id.clone(), |name| (*name).clone()),
            KeptSource::Cache(name) => name.clone(),
            KeptSource::OtherPeers | KeptSource::OtherCaches => "others".to_owned(),
        };
        let week = week.iter().map(|(source, given)| SourceGiven {
            name: name_kept(source),
            is_peer: source.is_peer(),
            given: *given,
        });
        let last = self.resolver.request_log().last_delivered().map(|record| names.nar(record));
        GivenStatus { since_start, week: week.collect(), days, last }
    }

    /// Adds to the totals of the week what came since they were last looked at; returns what came since the start.
    fn count_given(&self, names: &Names) -> BTreeMap<SourceId, SourceTotal> {
        self.given_totals.count(unix_s(), || self.resolver.request_log().totals(), |source| names.kept(source))
    }

    /// Keeps the totals of the week from time to time.
    pub(super) async fn keep_totals(self: Arc<Self>) {
        loop {
            tokio::time::sleep(KEEP_EVERY).await;
            let daemon = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || daemon.keep_totals_now()).await.is_err() {
                return;
            }
        }
    }

    /// Keeps the totals of the week. Blocks.
    pub(super) fn keep_totals_now(&self) {
        self.count_given(&self.source_names());
        if let Err(error) = self.given_totals.keep() {
            tracing::warn!(%error, "what came from each source this week cannot be kept");
        }
    }
}

fn given(total: &SourceTotal) -> Given {
    Given {
        nars: total.nars,
        bytes: total.bytes,
        received_bytes: total.received_bytes,
        waited_us: u64::try_from(total.waited.as_micros()).unwrap_or(u64::MAX),
    }
}
