//! Where a path comes from: the own store, a remembered answer, or the sources that claim it.
//!
//! Walk of a narinfo: [`Resolver::lookup`] answers from memory, mostly "no"; [`Resolver::narinfo`] asks candidates under one
//! deadline (folder `narinfo`). Walk of a NAR: [`Resolver::nar`] reads it from the best source and goes on with another one at the
//! same byte (folder `nar`). Sources are behind [`Sources`], what builders say behind [`Builders`]: this room knows neither libp2p
//! nor HTTP.
//!
//! Invariants: no complete body reaches Nix unhashed, but for the rest of one whose beginning another process sent; no narinfo
//! without a trusted signature, a recomputed content address or an agreed quorum; *gone* is said of a NAR only when every source
//! has said no, was proven wrong, or is dead.

mod answer_store;
mod builders;
mod decisions;
mod nar;
mod narinfo;
mod source;

pub use answer_store::{AnswerChange, AnswerStore, RememberedAnswer};
pub use builders::{Builders, KnownSignatures};
pub use decisions::{Decision, Decisions};
pub use nar::{BodyAborted, Compress, NarBody};
pub use narinfo::{Reason, Refused};
pub use source::{Candidate, Candidates, Line, NarFeed, NoAnswer, Observation, Piece, SourceId, Sources};

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use narmesh_protocol::{HashPart, NarUrl, NixPublicKey, NixSecretKey, StoreDir, TrustedKeys};
use narmesh_store::{NixStore, Store};
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;

use nar::Nars;
use narinfo::{Answers, Asking, Gate, Misses, NarInfosAhead, NoNarInfo, OwnAnswers, leads_to};

/// Candidates are waited for up to their deadlines; a disk that hangs ends a narinfo this much later.
const DISK_HANGS: Duration = Duration::from_secs(1);

/// What may change while the daemon runs.
#[derive(Clone, Debug)]
pub struct ResolverSettings {
    /// Whose signatures are handed on.
    pub trusted: TrustedKeys,
    /// Signs what was built here.
    pub builder_key: Option<NixSecretKey>,
    /// As told to Nix.
    pub priority: u32,
    /// For each narinfo, all candidates together.
    pub narinfo_deadline: Duration,
    /// The same while a candidate that has not answered is known to be on a full line; not below [`Self::narinfo_deadline`].
    pub narinfo_deadline_max: Duration,
    /// A source on whose line nothing moves for this long is left.
    pub stall_timeout: Duration,
    /// Between peers.
    pub compress: Compress,
    /// Builders whose bare signatures in narinfos are statements of theirs.
    pub signers: Vec<NixPublicKey>,
    /// Signs what a policy that demands agreement lets through.
    pub gateway_key: Option<NixSecretKey>,
}

/// Counters of the gateway's mesh side, for `status` and `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct ResolverCounters {
    /// Narinfo requests that memory could not answer.
    pub asked: Counter,
    /// Candidates that did not hold what their filter promised.
    pub false_hits: Counter,
    /// Lookups that ended at their deadline.
    pub deadlines: Counter,
    /// NAR bodies delivered whole.
    pub nars_complete: Counter,
    /// NAR requests answered 404.
    pub nars_absent: Counter,
    /// NAR bodies closed short.
    pub nars_aborted: Counter,
    /// NAR bytes from peers.
    pub bytes_in: Counter,
    /// NARs continued from another holder.
    pub continued: Counter,
    /// NARs that were read before Nix asked for them, and that it then asked for.
    pub ahead_used: Counter,
    /// NARs that were read before Nix asked for them, in vain.
    pub ahead_wasted: Counter,
}

/// What memory knows about a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nobody can have it.
    Absent,
    /// The rendered narinfo.
    Found(Bytes),
    /// Somebody may have it: ask [`Resolver::narinfo`].
    Ask,
}

/// A path that is remembered, for `why`.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// How long it has been in memory.
    pub age: Duration,
    /// Who answered with it.
    pub holders: Vec<SourceId>,
    /// Of its NAR.
    pub url: NarUrl,
    /// Whether policy and signatures let it through now.
    pub would_stand: bool,
    /// Whether it is given without asking anybody again.
    pub is_fresh: bool,
}

/// See the crate.
pub struct Resolver {
    store: Arc<NixStore>,
    store_dir: StoreDir,
    sources: Arc<dyn Sources>,
    settings: RwLock<Arc<ResolverSettings>>,
    misses: Misses,
    own: OwnAnswers,
    gate: Gate,
    answers: Answers,
    asking: Asking,
    narinfos_ahead: NarInfosAhead,
    nars: Nars,
    decisions: Arc<Decisions>,
    counters: ResolverCounters,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("store_dir", &self.store_dir).finish_non_exhaustive()
    }
}

impl Resolver {
    /// A resolver over the own store and `sources`; bodies hold at most `nar_buffer_bytes` in memory.
    pub fn new(
        store: Arc<NixStore>,
        sources: Arc<dyn Sources>,
        answers: Arc<dyn AnswerStore>,
        builders: Arc<dyn Builders>,
        settings: ResolverSettings,
        nar_buffer_bytes: u64,
    ) -> Self {
        let gate = Gate::new(builders);
        gate.set_key(settings.gateway_key.clone());
        let (decisions, counters) = (Arc::<Decisions>::default(), ResolverCounters::default());
        let nars = Nars::new(Arc::clone(&sources), Arc::clone(&decisions), counters.clone(), nar_buffer_bytes);
        Self {
            store_dir: store.store_dir().clone(),
            store,
            sources,
            settings: RwLock::new(Arc::new(settings)),
            own: OwnAnswers::new(),
            gate,
            answers: Answers::new(answers),
            asking: Asking::default(),
            narinfos_ahead: NarInfosAhead::default(),
            nars,
            decisions,
            misses: Misses::default(),
            counters,
        }
    }

    /// The counters.
    pub fn counters(&self) -> &ResolverCounters {
        &self.counters
    }

    /// What was decided last.
    pub fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// Applies new settings: every remembered answer is judged again before it is given.
    pub fn reconfigure(&self, settings: ResolverSettings) {
        self.gate.set_key(settings.gateway_key.clone());
        *self.settings.write() = Arc::new(settings);
        self.own.clear();
        self.answers.distrust();
    }

    /// The store changed: rendered answers about these paths are stale.
    pub fn store_changed(&self, parts: &[HashPart]) {
        self.own.invalidate(parts);
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<ResolverSettings> {
        Arc::clone(&self.settings.read())
    }

    /// The own store.
    pub fn store(&self) -> &Arc<NixStore> {
        &self.store
    }

    /// What is remembered of a path.
    pub fn in_memory(&self, part: &HashPart) -> Option<Remembered> {
        let answer = self.answers.in_memory(part)?;
        Some(Remembered {
            age: answer.since.elapsed(),
            holders: answer.holders().collect(),
            url: answer.url,
            would_stand: answer.would_stand(&self.store_dir, &self.gate),
            is_fresh: answer.is_fresh(&*self.sources),
        })
    }

    /// Answers from memory alone, without waiting and without touching a disk.
    pub fn lookup(&self, part: HashPart) -> Lookup {
        self.gate.asked(part);
        if self.store.contains(&part) {
            let own = self.own.get(&part, self.gate.stamp());
            return own.map_or(Lookup::Ask, |answer| Lookup::Found(answer.rendered));
        }
        if !self.sources.is_claimed(&part) {
            return Lookup::Absent;
        }
        let stands = |answer: &Arc<narinfo::Answer>| {
            answer.is_fresh(&*self.sources) && answer.stands(&self.store_dir, &self.gate)
        };
        let Some(answer) = self.answers.in_memory(&part).filter(stands) else { return Lookup::Ask };
        self.nars.expect(part);
        Lookup::Found(answer.rendered.clone())
    }

    /// The narinfo of a path for which [`Self::lookup`] said [`Lookup::Ask`], within the deadline of the settings.
    pub async fn narinfo(self: Arc<Self>, part: HashPart) -> Option<Bytes> {
        let settings = self.settings();
        // The candidates' own deadline ends it; a disk that hangs ends it later.
        let longest = settings.narinfo_deadline_max + DISK_HANGS;
        let answer = tokio::time::timeout(longest, Arc::clone(&self).look_up(part)).await;
        answer.unwrap_or_else(|_| {
            self.counters.deadlines.inc();
            self.decisions.note(part, Decision::Deadline(longest));
            None
        })
    }

    async fn look_up(self: Arc<Self>, part: HashPart) -> Option<Bytes> {
        let mut refused = None;
        if self.store.contains(&part) {
            match Arc::clone(&self).own_answer(part).await {
                Ok(answer) => return Some(answer.rendered),
                Err(refusal) => refused = refusal,
            }
        }
        let remembered = Arc::clone(&self).remembered(part).await;
        if let Some(answer) = remembered.as_ref().filter(|answer| answer.is_fresh(&*self.sources)) {
            self.decisions.note(part, Decision::Remembered);
            self.nars.expect(part);
            return Some(answer.rendered.clone());
        }
        self.counters.asked.inc();
        let answer = match (Arc::clone(&self).asked(part).await, remembered) {
            (Ok(answer), _) => answer,
            // It was true when it was said, and whoever said it still claims the path.
            (Err(NoNarInfo::NotNow), Some(remembered)) => {
                self.decisions.note(part, Decision::Remembered);
                remembered
            }
            (Err(NoNarInfo::NotNow | NoNarInfo::Absent), _) => {
                if let Some(refusal) = refused {
                    self.gate.not_given(refusal);
                }
                return None;
            }
            // Counted already.
            (Err(NoNarInfo::Refused(_)), _) => return None,
        };
        self.nars.expect(part);
        Some(answer.rendered.clone())
    }

    /// Whether [`Self::nar`] would find a body now.
    pub async fn has_nar(self: Arc<Self>, url: NarUrl) -> bool {
        let part = url.hash_part;
        if Arc::clone(&self).narinfo(part).await.is_none() {
            return false;
        }
        // Whoever made another promise keeps it: the NAR may come from a holder that is not asked for narinfos any more.
        if !self.gate.demands() {
            return true;
        }
        if self.store.contains(&part)
            && let Ok(own) = Arc::clone(&self).own_answer(part).await
        {
            return leads_to(&own.url, &url);
        }
        self.remembered(part).await.is_some_and(|answer| leads_to(&answer.url, &url))
    }
}
