//! The upstream caches as sources of the resolver: each may have any path, and says so only when it is asked.

use super::upstream_feed::{UpstreamFeed, Wanted};
use super::upstream_source::{LIMITED_WAIT_MAX, Source};
use futures::future::BoxFuture;
use narmesh_protocol::wire::{NarInfoReply, NarRequest};
use narmesh_protocol::{HashPart, StoreDir, TrustedKeys};
use narmesh_resolver::{Candidate, Line, NarFeed, NoAnswer, Observation, SourceId, SourceTurn, UpstreamId, User};
use narmesh_upstream::{Chains, DecoderMemory, Failure, FailureKind, Upstream, UpstreamSettings};
use parking_lot::{Mutex, RwLock};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// All configured caches.
#[derive(Debug)]
pub(crate) struct UpstreamSources {
    store_dir: StoreDir,
    configured: RwLock<Arc<[Arc<Source>]>>,
    decoders: DecoderMemory,
    chains: Chains,
    /// The names of all caches since the start; the place of a name is its id.
    names: Mutex<Vec<String>>,
}

impl UpstreamSources {
    pub(crate) fn new(store_dir: StoreDir) -> Self {
        Self {
            store_dir,
            configured: RwLock::new(Arc::new([])),
            decoders: DecoderMemory::default(),
            chains: Chains::default(),
            names: Mutex::default(),
        }
    }

    /// Makes the clients for these settings; a cache whose settings stay the same keeps its connections and its health.
    /// Nothing changes before [`PreparedUpstreams`] is put in force.
    pub(crate) fn prepare(&self, settings: Vec<UpstreamSettings>) -> Result<PreparedUpstreams, Failure> {
        let known = Arc::clone(&self.configured.read());
        let made = settings.into_iter().map(|settings| {
            if let Some(same) = known.iter().find(|source| *source.upstream.settings() == settings) {
                return Ok(Arc::clone(same));
            }
            Source::new(self.id_of(&settings.name), settings, self.chains.clone()).map(Arc::new)
        });
        made.collect::<Result<Arc<[_]>, _>>().map(PreparedUpstreams)
    }

    /// Puts in force what was prepared.
    pub(crate) fn put_in_force(&self, prepared: PreparedUpstreams) {
        // Who reloads may have put something into a cache just now.
        for source in prepared.0.iter() {
            source.misses.invalidate_all();
            source.realisation_misses.invalidate_all();
        }
        *self.configured.write() = prepared.0;
    }

    fn id_of(&self, name: &str) -> UpstreamId {
        let mut names = self.names.lock();
        let index = names.iter().position(|known| known == name).unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        // After 65,535 reloads that each name another cache, the last ones share an id, which `why` alone shows.
        UpstreamId(u16::try_from(index).unwrap_or(u16::MAX))
    }

    /// The configured caches, in the order of the configuration.
    pub(crate) fn all(&self) -> Vec<(UpstreamId, Arc<Upstream>)> {
        self.configured.read().iter().map(|source| (source.id, Arc::clone(&source.upstream))).collect()
    }

    fn find(&self, id: UpstreamId) -> Option<Arc<Source>> {
        self.configured.read().iter().find(|source| source.id == id).cloned()
    }

    pub(super) fn is_configured(&self, id: UpstreamId) -> bool {
        self.configured.read().iter().any(|source| source.id == id)
    }

    /// Whether any may have the path, as far as is known without asking.
    pub(super) fn may_any_have(&self, part: &HashPart) -> bool {
        self.configured.read().iter().any(|source| source.may_have(part) || source.is_put_off(part))
    }

    /// The caches that are not down and did not deny the path lately: silent ones last, before them lower tiers first, and in a tier the quickest first.
    pub(super) fn candidates(&self, part: &HashPart) -> Vec<Candidate> {
        let usable = self.ranked(|source| source.may_have(part));
        usable.iter().map(|source| Candidate { source: SourceId::Upstream(source.id), summary_epoch: 0 }).collect()
    }

    /// The caches that are `usable`, in the order of [`Self::candidates`].
    pub(super) fn ranked(&self, usable: impl Fn(&Source) -> bool) -> Vec<Arc<Source>> {
        let mut usable: Vec<_> = self.configured.read().iter().filter(|source| usable(source)).cloned().collect();
        usable.sort_by_key(|source| {
            let latency = source.upstream.latency().map_or(Duration::ZERO, |latency| latency.mean());
            (source.upstream.is_silent(), source.upstream.settings().tier, latency)
        });
        usable
    }

    /// The caches that may have the path and want to be left alone for longer than a lookup lasts: whether they have it
    /// is not known.
    pub(super) fn paused(&self, part: &HashPart) -> Vec<Candidate> {
        let configured = self.configured.read();
        let put_off = configured.iter().filter(|source| source.is_put_off(part));
        put_off.map(|source| Candidate { source: SourceId::Upstream(source.id), summary_epoch: 0 }).collect()
    }

    /// Waits until the cache may be asked, and this user has his turn there.
    pub(super) fn take_turn(&self, id: UpstreamId, user: User) -> BoxFuture<'static, Option<SourceTurn>> {
        let source = self.find(id);
        Box::pin(async move {
            let turn = source?.take_turn(user, LIMITED_WAIT_MAX).await?;
            Some(Box::new(turn) as SourceTurn)
        })
    }

    pub(super) fn trusted_keys(&self, id: UpstreamId) -> Arc<TrustedKeys> {
        self.find(id).map(|source| Arc::clone(&source.trusted)).unwrap_or_default()
    }

    pub(super) fn ask(&self, id: UpstreamId, part: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>> {
        let (source, store_dir) = (self.find(id), self.store_dir.clone());
        Box::pin(async move {
            let source = source.ok_or_else(|| NoAnswer::Failed("no longer configured".to_owned()))?;
            match source.ask(&part, &store_dir).await {
                Ok(Some(text)) => Ok(NarInfoReply::Found(text)),
                Ok(None) => Ok(NarInfoReply::Absent),
                Err(failure) if failure.kind == FailureKind::RateLimited => Err(NoAnswer::NotYet(failure.to_string())),
                // What is wrong with one path is so the next time, too.
                Err(failure) if source.may_answer_soon(&failure) => Err(NoAnswer::FailedForNow(failure.to_string())),
                Err(failure) => Err(NoAnswer::Failed(failure.to_string())),
            }
        })
    }

    pub(super) fn request(
        &self,
        id: UpstreamId,
        request: NarRequest,
    ) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>> {
        let source = self.find(id);
        let wanted = Wanted { request, store_dir: self.store_dir.clone(), decoders: self.decoders.clone() };
        Box::pin(async move {
            // A reload may have removed it since it was chosen.
            let source = source.ok_or_else(|| io::Error::other("no longer configured"))?;
            let mut feed = UpstreamFeed::new(source, wanted);
            feed.begin().await.map_err(|failure| {
                let may_be_over_soon = feed.source().may_answer_soon(&failure);
                let kind = if may_be_over_soon { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
                io::Error::new(kind, failure)
            })?;
            Ok(Box::new(feed) as Box<dyn NarFeed>)
        })
    }

    /// Who asks whom among daemons that are each other's caches.
    pub(crate) fn chains(&self) -> &Chains {
        &self.chains
    }

    /// Whether a NAR has waited for a decoder for more than a moment.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        self.decoders.is_short()
    }

    pub(super) fn line(&self, id: UpstreamId) -> Line {
        let Some(source) = self.find(id) else { return Line::default() };
        Line {
            received_bytes: source.upstream.received_bytes(),
            last_received: *source.last_received.lock(),
            in_flight: source.in_flight.load(Ordering::Relaxed),
            rate_bytes_s: source.rate_bytes_s(),
            latency: source.upstream.latency().map(|latency| latency.mean()),
            is_awaited: true,
            is_there: false,
            is_reserve: false,
            is_paused: source.upstream.is_silent() || source.keeps_nars_waiting(),
            tier: source.upstream.settings().tier,
        }
    }

    pub(super) fn observe(&self, id: UpstreamId, observation: Observation) {
        let Some(source) = self.find(id) else { return };
        let fail = |kind, detail: &str| source.upstream.note_failure(Failure::new(kind, detail));
        match observation {
            Observation::FalseNarInfo => fail(FailureKind::BadNarInfo, "its narinfo breaks a rule"),
            Observation::UntrustedNarInfo => fail(FailureKind::Untrusted, "none of its keys signed its narinfo"),
            Observation::DeepNar => fail(
                FailureKind::BadNar,
                "its NAR is over 64 nodes deep (directories below each other), and is not taken",
            ),
            Observation::FalseNar => fail(FailureKind::BadNar, "its NAR is not the one that its narinfo promises"),
            Observation::TimedOut => fail(FailureKind::Timeout, "no answer before the deadline of the lookup"),
            Observation::Received { bytes, elapsed, .. } => source.on_received(bytes, elapsed),
            // A frozen cache is thereby asked after those that answer. It would never count as down: whoever answers first
            // ends its question.
            Observation::Overtaken(waited) => source.upstream.note_overtaken(waited),
            // The request itself has counted its failure, if it was one.
            Observation::Unfinished => {}
            Observation::Asked | Observation::Held | Observation::FalseHit => {}
        }
    }
}

/// Caches that a reload is about to put in force.
#[derive(Debug)]
pub(crate) struct PreparedUpstreams(Arc<[Arc<Source>]>);
