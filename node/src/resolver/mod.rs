//! Where a path comes from: the own store, a remembered answer, or the peers whose filters say maybe.
//!
//! Walk of a narinfo: `lookup` answers from memory, mostly "no"; `ask` asks candidates under one deadline; `trust`
//! and the policy at the `gate` decide what Nix may see; `ahead` asks for what the path refers to. Walk of a NAR: the `gate` again,
//! `transfer` reads it from the best holder and goes
//! on with another one at the same byte; `ahead` reads the next small ones of a copy.
//! Invariants: no complete body reaches Nix unhashed; no narinfo without a trusted signature, a recomputed content address or an
//! agreed quorum; no lookup takes longer than the deadline.

mod ahead;
mod answer_writer;
mod answers;
mod ask;
mod decisions;
mod gate;
mod misses;
mod own;
mod spoilt;
mod transfer;
mod trust;
mod why;

use crate::mesh::MeshHandle;
use crate::quorum::LiveLedger;
use crate::settings::Compress;
use crate::state_db::SharedStateDb;
use ahead::{NarInfosAhead, NarsAhead};
use answers::Answers;
use ask::Asking;
use bytes::Bytes;
use decisions::{Decision, Decisions};
use gate::Gate;
use libp2p::PeerId;
use misses::Misses;
use narmesh_http_gateway::{CacheInfo, Lookup, NarBody, Substituter};
use narmesh_protocol::{HashPart, NarUrl, NixPublicKey, NixSecretKey, StoreDir, TrustedKeys};
use narmesh_store::{NixStore, Store};
use own::OwnAnswers;
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use spoilt::Spoilt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

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
    /// A holder that sends nothing for this long is left for another one.
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

/// The daemon's substituter.
pub struct Resolver {
    store: Arc<NixStore>,
    store_dir: StoreDir,
    mesh: MeshHandle,
    settings: RwLock<Arc<ResolverSettings>>,
    misses: Misses,
    own: OwnAnswers,
    gate: Gate,
    answers: Answers,
    asking: Asking,
    narinfos_ahead: NarInfosAhead,
    nars_ahead: NarsAhead,
    decisions: Decisions,
    spoilt: Spoilt,
    /// Bounds what NAR bodies hold in memory, in KiB.
    buffers_kib: Arc<Semaphore>,
    buffers_kib_max: u32,
    counters: ResolverCounters,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("store_dir", &self.store_dir).finish_non_exhaustive()
    }
}

impl Resolver {
    /// A resolver over the own store and the mesh; bodies hold at most `nar_buffer_bytes` in memory.
    pub fn new(
        store: Arc<NixStore>,
        mesh: MeshHandle,
        state: SharedStateDb,
        ledger: Arc<LiveLedger>,
        settings: ResolverSettings,
        nar_buffer_bytes: u64,
    ) -> Self {
        let buffers_kib_max = u32::try_from(nar_buffer_bytes / 1_024).unwrap_or(u32::MAX >> 3);
        let gate = Gate::new(ledger);
        gate.set_key(settings.gateway_key.clone());
        Self {
            store_dir: store.store_dir().clone(),
            store,
            mesh,
            settings: RwLock::new(Arc::new(settings)),
            own: OwnAnswers::new(),
            gate,
            answers: Answers::new(state),
            asking: Asking::default(),
            narinfos_ahead: NarInfosAhead::default(),
            nars_ahead: NarsAhead::default(),
            decisions: Decisions::default(),
            misses: Misses::default(),
            spoilt: Spoilt::default(),
            buffers_kib: Arc::new(Semaphore::new(buffers_kib_max as usize)),
            buffers_kib_max,
            counters: ResolverCounters::default(),
        }
    }

    /// The counters.
    pub fn counters(&self) -> &ResolverCounters {
        &self.counters
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

    fn settings(&self) -> Arc<ResolverSettings> {
        Arc::clone(&self.settings.read())
    }

    /// Whether any filter says maybe: memory only.
    fn is_claimed(&self, part: &HashPart) -> bool {
        !self.mesh.table().candidates(part).is_empty()
    }

    /// Candidates that may be asked now, best first.
    fn ranked(&self, part: &HashPart) -> Vec<PeerId> {
        let candidates = self.mesh.table().candidates(part);
        if candidates.is_empty() {
            return Vec::new();
        }
        self.mesh.board().rank(candidates.into_iter().map(|candidate| candidate.peer))
    }
}

/// The resolver as the gateway knows it.
#[derive(Clone, Debug)]
pub struct MeshSubstituter(pub Arc<Resolver>);

impl Substituter for MeshSubstituter {
    fn cache_info(&self) -> CacheInfo {
        CacheInfo { store_dir: self.0.store_dir.clone(), priority: self.0.settings().priority }
    }

    fn lookup(&self, part: HashPart) -> Lookup {
        self.0.gate.asked(part);
        if self.0.store.contains(&part) {
            let own = self.0.own.get(&part, self.0.gate.stamp());
            return own.map_or(Lookup::Ask, |answer| Lookup::Found(answer.rendered));
        }
        if !self.0.is_claimed(&part) {
            return Lookup::Absent;
        }
        let answer = self.0.answers.in_memory(&part).filter(|answer| answer.stands(&self.0.store_dir, &self.0.gate));
        let Some(answer) = answer else { return Lookup::Ask };
        self.0.nars_ahead.expect(part);
        Lookup::Found(answer.rendered.clone())
    }

    async fn narinfo(&self, part: HashPart) -> Option<Bytes> {
        let deadline = self.0.settings().narinfo_deadline;
        match tokio::time::timeout(deadline, Arc::clone(&self.0).narinfo(part)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.0.counters.deadlines.inc();
                self.0.decisions.note(part, Decision::Deadline(deadline));
                None
            }
        }
    }

    async fn has_nar(&self, url: NarUrl) -> bool {
        let part = url.hash_part;
        if self.narinfo(part).await.is_none() {
            return false;
        }
        // Whoever made another promise keeps it: the NAR may come from a holder that is not asked for narinfos any more.
        if !self.0.gate.demands() {
            return true;
        }
        if self.0.store.contains(&part)
            && let Ok(own) = Arc::clone(&self.0).own_answer(part).await
        {
            return gate::leads_to(&own.url, &url);
        }
        Arc::clone(&self.0).remembered(part).await.is_some_and(|answer| gate::leads_to(&answer.url, &url))
    }

    async fn nar(&self, url: NarUrl, first_byte: u64, resumed: bool) -> Option<NarBody> {
        let body = match Arc::clone(&self.0).nar_admitted(url).await {
            true => Arc::clone(&self.0).nar(url.nar(), first_byte, resumed).await,
            false => None,
        };
        if body.is_none() {
            self.0.counters.nars_absent.inc();
            self.0.decisions.note(url.hash_part, Decision::NarGone);
        }
        body
    }
}

impl Resolver {
    async fn narinfo(self: Arc<Self>, part: HashPart) -> Option<Bytes> {
        let mut refused = None;
        if self.store.contains(&part) {
            match Arc::clone(&self).own_answer(part).await {
                Ok(answer) => return Some(answer.rendered),
                Err(refusal) => refused = refusal,
            }
        }
        if let Some(answer) = Arc::clone(&self).remembered(part).await {
            self.decisions.note(part, Decision::Remembered);
            self.nars_ahead.expect(part);
            return Some(answer.rendered.clone());
        }
        self.counters.asked.inc();
        match Arc::clone(&self).asked(part).await {
            Ok(answer) => {
                self.nars_ahead.expect(part);
                Some(answer.rendered.clone())
            }
            Err(counted) => {
                if let (None, Some(refusal)) = (counted, refused) {
                    self.gate.not_given(refusal);
                }
                None
            }
        }
    }

    async fn nar(self: Arc<Self>, url: NarUrl, first_byte: u64, resumed: bool) -> Option<NarBody> {
        if first_byte >= url.nar_size || (resumed && self.spoilt.is_spoilt(&url.nar_hash)) {
            return None;
        }
        if self.store.contains(&url.hash_part)
            && let Some(body) = Arc::clone(&self).own_nar(url, first_byte).await
        {
            return Some(body);
        }
        if first_byte == 0
            && let Some(body) = self.read_ahead(url).await
        {
            return Some(body);
        }
        let body = Arc::clone(&self).mesh_nar(url, first_byte).await;
        if body.is_none() {
            self.forget(url.hash_part);
        }
        body
    }
}
