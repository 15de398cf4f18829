//! Finds a path for Nix: in our own store, among the remembered answers, or at the sources that claim it.
//!
//! Purpose: decide for each path that Nix asks for whether it can be had, from where, and whether it may be believed.
//! Contract: [`Resolver::look_up`] neither waits nor reads the disk; [`Resolver::find_narinfo`] keeps the deadline of the
//! settings; no failure of a source is an error to Nix, but an absent path or a body that ends short.
//! Walk of a narinfo: [`Resolver::look_up`] answers from memory, mostly "no"; [`Resolver::find_narinfo`] asks candidates
//! under one deadline (folder `narinfo`). Walk of a NAR: [`Resolver::fetch_nar`] reads it from the best source; if that one
//! fails, another goes on at the same byte (folder `nar`). Sources are behind [`Sources`], what builders say is behind
//! [`Builders`]: this crate knows neither libp2p nor HTTP.
//!
//! Invariants: no complete body reaches Nix unhashed, except the rest of one whose beginning another process sent; no
//! narinfo reaches it without a trusted signature, a recomputed content address or an agreed quorum; a NAR is reported
//! as *gone* only when every source has said no, was proven wrong, or is dead.

mod answer_store;
mod builders;
mod lookup_log;
mod nar;
mod narinfo;
mod own_reads;
mod request_log;
mod shared;
mod source;
#[cfg(test)]
mod tests;
mod turns;

pub use answer_store::{AnswerChange, AnswerStore, RememberedAnswer};
pub use builders::{Builders, KnownSignatures};
pub use lookup_log::{LookupEvent, LookupLog, LookupOutcome, LookupQuery, LookupRecord, NotFound};
pub use nar::{BodyAborted, Compress, NarBody, NoNar, TransferSettings};
pub use narinfo::{Reason, Refused, hedge_delay, pause_before_retry};
pub use own_reads::Unread;
pub use request_log::{LeftSource, NarOutcome, NarRecord, RequestLog, RequestQuery, Share, SourceTotal};
pub use source::{
    Candidate, Candidates, Line, MeetingPlace, NarFeed, NoAnswer, Observation, Piece, SourceId, SourceTurn, Sources,
    TreeAnswer, UpstreamId,
};
pub use turns::{Caller, FindUser, Turn, Turns, User};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use narmesh_protocol::{HashPart, NarUrl, NixPublicKey, NixSecretKey, TrustedKeys};
use narmesh_store::{NixStore, Offer, PartialCopies, StoreError};
use prometheus_client::metrics::counter::Counter;

use nar::{ContentsCheck, NarContext, Nars};
use narinfo::{GivenNarInfo, InMemory, NarInfos};
use own_reads::{NotNow, unless_not_now};
use shared::Shared;

/// What may change while the daemon runs.
#[derive(Clone, Debug)]
pub struct ResolverSettings {
    /// Keys whose signatures are handed on.
    pub trusted: TrustedKeys,
    /// The key that signs what was built here.
    pub builder_key: Option<NixSecretKey>,
    /// The priority that Nix is told.
    pub priority: u32,
    /// How long all candidates together have to answer for one narinfo.
    pub narinfo_deadline: Duration,
    /// The same while a candidate that has not answered is known to be on a full line; at least
    /// [`Self::narinfo_deadline`].
    pub narinfo_deadline_max: Duration,
    /// How NARs are taken from sources.
    pub transfer: TransferSettings,
    /// Builders whose bare signatures in narinfos count as their statements.
    pub signers: Vec<NixPublicKey>,
    /// The key that signs all narinfos that Nix gets; a policy that demands agreement needs one.
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
    /// NAR bytes received from peers.
    pub bytes_in: Counter,
    /// NARs continued from another source.
    pub continued: Counter,
    /// NARs that were read ahead, and that Nix then asked for.
    pub ahead_used: Counter,
    /// NARs that were read ahead in vain.
    pub ahead_wasted: Counter,
}

/// What memory knows about a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nobody can have it.
    Absent,
    /// The rendered narinfo.
    Found(Bytes),
    /// Somebody may have it: ask [`Resolver::find_narinfo`].
    Ask,
}

/// A path that is remembered, for `why`.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// How long it has been in memory.
    pub age: Duration,
    /// The sources that answered with it.
    pub holders: Vec<SourceId>,
    /// The URL of its NAR.
    pub url: NarUrl,
    /// Whether policy and signatures let it through now.
    pub would_stand: bool,
    /// Whether Nix gets it without anybody being asked again.
    pub is_fresh: bool,
}

/// Answers narinfo and NAR requests; see the documentation of the crate.
pub struct Resolver {
    shared: Arc<Shared>,
    narinfos: Arc<NarInfos>,
    nars: Arc<Nars>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("store_dir", &self.shared.store_dir).finish_non_exhaustive()
    }
}

impl Resolver {
    /// A resolver over our own store and `sources`. Bodies from sources hold at most `nar_buffer_bytes` in memory. What comes in
    /// of large NARs is put into `partial_copies`.
    pub fn new(
        store: Arc<NixStore>,
        sources: Arc<dyn Sources>,
        answers: Arc<dyn AnswerStore>,
        builders: Arc<dyn Builders>,
        settings: ResolverSettings,
        nar_buffer_bytes: u64,
        partial_copies: Option<PartialCopies>,
    ) -> Self {
        let shared = Arc::new(Shared::new(store, sources, settings));
        let context = Arc::new(NarContext::new(&shared, nar_buffer_bytes));
        let contents = ContentsCheck::new(Arc::clone(&shared), Arc::clone(&context));
        let narinfos = Arc::new(NarInfos::new(Arc::clone(&shared), builders, answers, contents));
        let nars = Arc::new(Nars::new(Arc::clone(&shared), Arc::clone(&narinfos), context, partial_copies));
        Self { shared, narinfos, nars }
    }

    /// The counters.
    pub fn counters(&self) -> &ResolverCounters {
        &self.shared.counters
    }

    /// The latest decisions about each path.
    pub fn lookup_log(&self) -> &LookupLog {
        &self.shared.lookup_log
    }

    /// The NARs that Nix asked for, and what each source gave of them.
    pub fn request_log(&self) -> &RequestLog {
        &self.shared.request_log
    }

    /// Applies new settings. Every remembered answer is judged again before it is given.
    pub fn reconfigure(&self, settings: ResolverSettings) {
        self.shared.set_settings(settings);
        self.narinfos.distrust();
    }

    /// Drops the rendered answers about these paths, because our own store has changed.
    pub fn on_store_changed(&self, parts: &[HashPart]) {
        self.narinfos.on_own_changed(parts);
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<ResolverSettings> {
        self.shared.settings()
    }

    /// Our own store.
    pub fn store(&self) -> &Arc<NixStore> {
        &self.shared.store
    }

    /// Runs a read of our own store on a blocking thread. While the store's database is locked by another process, waits for
    /// up to [`ResolverSettings::narinfo_deadline_max`].
    ///
    /// # Errors
    /// When the store cannot be read, now or at all.
    pub async fn read_own<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, StoreError> + Clone + Send + 'static,
    ) -> Result<T, Unread> {
        let longest = self.settings().narinfo_deadline_max;
        let outcome = self.shared.own_reads.read_within(longest, move || unless_not_now(read())).await;
        outcome.map_err(|NotNow| Unread::NotNow)?.map_err(Unread::Failed)
    }

    /// What is remembered of a path.
    pub fn in_memory(&self, part: &HashPart) -> Option<Remembered> {
        self.narinfos.in_memory(part)
    }

    /// Why a path of our own store is not given to Nix, in words. Reads the disk.
    pub fn explain_own_refusal(&self, part: &HashPart) -> Option<String> {
        self.narinfos.explain_own_refusal(part)
    }

    /// How many narinfos and NARs the policy has refused since the start, by reason, for `/metrics`.
    pub fn refusals(&self) -> &Refused {
        self.narinfos.gate().refusals()
    }

    /// The same, for `status`: only reasons that occurred.
    pub fn refusal_counts(&self) -> BTreeMap<String, u64> {
        self.narinfos.gate().refusal_counts()
    }

    /// The key that Nix has to trust, and no other, if there is one.
    pub fn gateway_public_key(&self) -> Option<NixPublicKey> {
        self.narinfos.gate().public_key()
    }

    /// Whether the policy lets nothing through but what builders agree on, and what proves itself.
    pub fn demands_agreement(&self) -> bool {
        self.narinfos.gate().demands()
    }

    /// Answers from memory alone, without waiting and without reading the disk.
    pub fn look_up(&self, part: HashPart) -> Lookup {
        match self.narinfos.look_up(part) {
            InMemory::Absent => Lookup::Absent,
            InMemory::Known(given) => Lookup::Found(self.give(part, given)),
            InMemory::Unknown => Lookup::Ask,
        }
    }

    /// The narinfo of a path for which [`Self::look_up`] said [`Lookup::Ask`], within the deadline of the settings.
    /// When there is more to ask than may be asked at a time, the users that `find_user` finds take turns.
    pub async fn find_narinfo(&self, part: HashPart, find_user: &FindUser) -> Option<Bytes> {
        self.narinfos.find(part, find_user).await.map(|given| self.give(part, given))
    }

    fn give(&self, part: HashPart, given: GivenNarInfo) -> Bytes {
        // A NAR of our own store is read from the disk, so there is nothing to read ahead.
        if !given.is_own {
            self.nars.expect(part);
        }
        given.rendered
    }

    /// Whether [`Self::fetch_nar`] would find a body now.
    pub async fn has_nar(&self, url: NarUrl, find_user: &FindUser) -> bool {
        self.find_narinfo(url.hash_part, find_user).await.is_some() && self.narinfos.leads_to(&url).await
    }

    /// The bytes of a NAR from `first_byte` on, or `None` for a path that is gone. `resumed` says that Nix asked for a
    /// range.
    ///
    /// Waits for as long as a live source may still send it, and for memory. A client that has to wait gets the first
    /// bytes of the NAR meanwhile. When memory is short, the users that `find_user` finds take turns.
    pub async fn fetch_nar(
        &self,
        url: NarUrl,
        first_byte: u64,
        resumed: bool,
        find_user: FindUser,
    ) -> Result<NarBody, NoNar> {
        self.nars.bring(url, first_byte, resumed, find_user).await
    }

    /// The bytes of a NAR of our own store from `first_byte` on, or `None` if `offer` does not let it leave this machine now.
    /// The mesh is not asked.
    pub async fn fetch_offered_nar(
        &self,
        offer: Arc<Offer>,
        url: NarUrl,
        first_byte: u64,
        resumed: bool,
    ) -> Option<NarBody> {
        self.nars.bring_offered(offer, url, first_byte, resumed).await
    }

    /// Whether a NAR has waited for memory for more than a moment, so that clients that do not read should make place.
    pub fn is_short_of_memory(&self) -> bool {
        self.nars.is_short_of_memory()
    }
}
