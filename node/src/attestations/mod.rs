//! Attestations: where they come from, where they are kept, and what is said of them. Verdicts are decided in
//! `narmesh-quorum`.
//!
//! Walk: [`LiveLedger`] holds attestations, and when this node first stored them, in memory and in a file. Four ways lead
//! into it, each through `verification`: `exchange` hears from peers, [`import`] reads a text file, `attester` attests what
//! this machine built ([`OwnBuilds`]), and [`StoreSignatures`] and `builders` take bare signatures from the store and from
//! narinfos. Out of it come the answers to peers (`exchange`), to the resolver (`builders`), to the offer
//! (`counted`), to `narmesh quorum`
//! ([`Queries`], with `members` for the store's side of a report and [`Page`] for one in HTML), and to `status` and
//! `/metrics` (`observer`). `Attestations` starts all of this for the daemon: three threads, which are `exchange`,
//! `attester`, and `ledger_thread` for the ledger and the observer.

mod attester;
mod bare_signatures;
mod builders;
mod counted;
mod exchange;
mod import;
mod key_names;
mod ledger;
mod ledger_thread;
mod members;
mod observer;
mod own_builds;
mod page;
mod queries;
mod verification;

pub use bare_signatures::{StoreSignatures, TakenSignatures, find_unheard_signatures};
pub(crate) use exchange::ExchangeCounters;
pub use import::{ImportError, Imported, import, read_file};
pub use key_names::KeyNames;
pub use ledger::{
    BareSignature, FirstStored, IsHeld, LedgerDb, LedgerDbError, LiveLedger, NewStatement, StoredStatement, TakeOutcome,
};
pub(crate) use observer::Verdicts;
pub use own_builds::{Attested, OwnBuilds, OwnStatement};
pub use page::Page;
pub use queries::{Part, Queries, Question, Scope};

use self::attester::Attester;
use self::builders::LedgerAndPeers;
use self::ledger_thread::LedgerThread;
use anyhow::Context as _;
use narmesh_mesh::{DriverEnd, MeshHandle};
use narmesh_protocol::{HashPart, NixPublicKey, NixSecretKey, StoreDir, StorePath};
use narmesh_quorum::WallMs;
use narmesh_resolver::Builders;
use narmesh_store::{NixStore, Offer};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The attestations of a running daemon. Its threads end when it is dropped, and with the mesh.
#[derive(Debug)]
pub(crate) struct Attestations {
    ledger: Arc<LiveLedger>,
    ledger_thread: LedgerThread,
    attester: Attester,
    counters: ExchangeCounters,
}

impl Attestations {
    /// Starts the threads around a ledger. The mesh gets the other end of the exchange with peers. `key` signs what this
    /// machine built; the signatures of `signers` are taken from the store.
    pub(crate) fn start(
        ledger: LiveLedger,
        store: &Arc<NixStore>,
        offer: &Arc<Offer>,
        key: Option<NixSecretKey>,
        signers: Vec<NixPublicKey>,
    ) -> anyhow::Result<(Self, DriverEnd)> {
        let (ledger, counters) = (Arc::new(ledger), ExchangeCounters::default());
        counted::tell_offer(&ledger, offer);
        let ledger_thread = LedgerThread::start(&ledger)?;
        let attester = Attester::start(store, offer, &ledger, key, signers)?;
        let driver_end = exchange::start(&ledger, offer, attester.on_dropped(), counters.clone())?;
        Ok((Self { ledger, ledger_thread, attester, counters }, driver_end))
    }

    /// The ledger that all of it fills and asks.
    pub(crate) fn ledger(&self) -> &Arc<LiveLedger> {
        &self.ledger
    }

    /// What the resolver knows about builders.
    pub(crate) fn builders(&self, mesh: MeshHandle) -> Arc<dyn Builders> {
        Arc::new(LedgerAndPeers { ledger: Arc::clone(&self.ledger), mesh })
    }

    /// What the verdicts on all attested paths were when they were last judged.
    pub(crate) fn verdicts(&self) -> Verdicts {
        self.ledger_thread.verdicts()
    }

    /// Counts of the exchange with peers.
    pub(crate) fn counters(&self) -> &ExchangeCounters {
        &self.counters
    }

    /// The builder key that signs now.
    pub(crate) fn key(&self) -> Option<NixSecretKey> {
        self.attester.key()
    }

    /// To be called with paths that are no longer offered: if they are withheld now, their attestations are taken back
    /// at once.
    pub(crate) fn on_dropped(&self) -> impl Fn(&[HashPart]) + Send + Sync + 'static {
        self.attester.on_dropped()
    }

    /// From now on signs with another builder key, or none, and takes the signatures of other builders.
    pub(crate) fn set_keys(&self, key: Option<NixSecretKey>, signers: Vec<NixPublicKey>) {
        self.attester.set_keys(key, signers);
    }

    /// To be called after the offer was given another policy: everything is judged again.
    pub(crate) fn judge_anew(&self) {
        self.attester.judge_anew();
    }
}

/// The time of the wall clock.
pub(crate) fn now() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A store path as a user writes it: whole, or its base name alone.
fn parse_path(store_dir: &StoreDir, text: &str) -> anyhow::Result<StorePath> {
    let parsed = if text.starts_with('/') { store_dir.parse_path(text) } else { StorePath::parse(text) };
    parsed.with_context(|| format!("{text:?} is not a path in {}", store_dir.as_str()))
}
