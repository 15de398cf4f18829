//! A thread that attests what this machine builds, as soon as it is built. It also takes, from paths that come into the
//! store, the signatures of builders that sign only their own builds.

use super::bare_signatures::StoreSignatures;
use super::ledger::{LedgerDbError, LiveLedger};
use super::own_builds::OwnBuilds;
use anyhow::Context as _;
use narmesh_protocol::{HashPart, NixPublicKey, NixSecretKey};
use narmesh_store::{NixStore, Offer, StoreError, Watcher};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long to wait after a failure (a full disk, a locked database) before the next attempt.
const RETRY: Duration = Duration::from_secs(10);
/// How long to wait for the offer before it is asked again, doubled each time up to [`RETRY`]: it checks a new path
/// within milliseconds.
const LOOK: Duration = Duration::from_millis(20);
/// How often all our attestations are checked for paths that are withheld by now. Most are taken back earlier: when the
/// offer drops the path, when the policy changes, or when a peer asks for it. But the offer says nothing of paths that
/// are gone from the store.
const WITHDRAW_INTERVAL: Duration = Duration::from_secs(600);
/// How often the thread looks whether the ledger has lost anything.
const WATCH: Duration = Duration::from_secs(10);

/// Ends its thread when dropped.
#[derive(Debug)]
pub(super) struct Attester {
    shared: Arc<Shared>,
    _watcher: Watcher,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
}

/// What the thread has to do. Bounded by the number of paths in the store.
#[derive(Debug, Default)]
struct Work {
    /// Paths that came into the store.
    pending: BTreeSet<HashPart>,
    /// Paths that are no longer offered, and perhaps withheld.
    dropped: BTreeSet<HashPart>,
    key: Option<NixSecretKey>,
    signers: Vec<NixPublicKey>,
    /// The policy of the offer changed, so that everything is judged again.
    anew: bool,
    stopping: bool,
}

impl Attester {
    /// Starts with everything in the store. Without a key and without signers it waits until it is given some.
    pub(super) fn start(
        store: &Arc<NixStore>,
        offer: &Arc<Offer>,
        ledger: &Arc<LiveLedger>,
        key: Option<NixSecretKey>,
        signers: Vec<NixPublicKey>,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let watcher = store.watch(Box::new(move |change| {
            // Noted only: this is called while the store looks at its rows, and others wait to be told.
            told.work.lock().pending.extend(change.added);
            told.changed.notify_one();
        }))?;
        let (store, offer) = (Arc::clone(store), Arc::clone(offer));
        let (ledger, working) = (Arc::clone(ledger), Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("attester".to_owned())
            .spawn(move || working.run(&store, &offer, &ledger))
            .context("the attester's thread")?;
        let attester = Self { shared, _watcher: watcher, thread: Some(thread) };
        attester.set_keys(key, signers);
        Ok(attester)
    }

    /// The builder key that it signs with now.
    pub(super) fn key(&self) -> Option<NixSecretKey> {
        self.shared.work.lock().key.clone()
    }

    /// From now on signs with another builder key, or none, and takes the signatures of other builders. Everything in
    /// the store is looked at again.
    pub(super) fn set_keys(&self, key: Option<NixSecretKey>, signers: Vec<NixPublicKey>) {
        let mut work = self.shared.work.lock();
        work.key = key;
        work.signers = signers;
        self.shared.changed.notify_one();
    }

    /// To be called with paths that are no longer offered: if they are withheld now, their attestations are taken back
    /// at once.
    pub(super) fn on_dropped(&self) -> impl Fn(&[HashPart]) + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move |dropped| {
            shared.work.lock().dropped.extend(dropped);
            shared.changed.notify_one();
        }
    }

    /// To be called after the offer was given another policy: everything is judged again.
    pub(super) fn judge_anew(&self) {
        self.shared.work.lock().anew = true;
        self.shared.changed.notify_one();
    }
}

impl Drop for Attester {
    fn drop(&mut self) {
        self.shared.work.lock().stopping = true;
        self.shared.changed.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the attester panicked");
        }
    }
}

impl Shared {
    fn run(&self, store: &NixStore, offer: &Offer, ledger: &LiveLedger) {
        let mut looked_with = (None, Vec::new(), 0);
        let mut named = BTreeSet::new();
        let mut withdrawn_at: Option<Instant> = None;
        let mut wait = LOOK;
        while self.wait_for_look(offer) {
            let mut work = self.work.lock();
            let (key, signers, losses, changes) = loop {
                if work.stopping {
                    return;
                }
                let (pending, dropped) = (std::mem::take(&mut work.pending), std::mem::take(&mut work.dropped));
                let (key, signers, losses) = (work.key.clone(), work.signers.clone(), ledger.losses());
                let all = || Changes { pending: store.hash_parts(), dropped: BTreeSet::new() };
                // The lock is held from here to the wait, so that nothing that comes meanwhile is overlooked.
                if std::mem::take(&mut work.anew) {
                    withdrawn_at = None;
                    break (key, signers, losses, all());
                }
                // With another key, other signers or after a loss, what was looked at before has to be looked at again.
                if looked_with != (key.as_ref().map(NixSecretKey::public), signers.clone(), losses) {
                    withdrawn_at = None;
                    break (key, signers, losses, all());
                }
                let is_idle = key.is_none() && signers.is_empty();
                if !is_idle && (!pending.is_empty() || !dropped.is_empty() || is_due(withdrawn_at)) {
                    break (key, signers, losses, Changes { pending, dropped });
                }
                // Not for ever: whether something has to be taken back is asked from time to time.
                self.changed.wait_for(&mut work, WATCH);
            };
            drop(work);
            let own = key.as_ref().map(|key| OwnBuilds { store, offer, ledger, key });
            let withdraws = is_due(withdrawn_at);
            match look(own.as_ref(), withdraws, StoreSignatures { store, ledger, signers: &signers }, &changes) {
                Ok(Looked { unchecked, unread }) => {
                    tell_unread(&mut named, unread);
                    if withdraws {
                        withdrawn_at = Some(Instant::now());
                    }
                    // Only now: after a failure with another key or other signers, all is looked at again.
                    looked_with = (key.map(|key| key.public()), signers, losses);
                    wait = if unchecked.is_empty() { LOOK } else { self.retry(unchecked, wait) };
                }
                Err(error) => {
                    tracing::warn!(%error, "new paths cannot be attested now, nor their signatures taken; tried again soon");
                    // `dropped` is not put back, so the next pass checks all our attestations for what to take back.
                    withdrawn_at = None;
                    self.retry(changes.pending, RETRY);
                }
            }
        }
    }

    /// Waits until the offer knows what is private. False when the thread is to stop.
    fn wait_for_look(&self, offer: &Offer) -> bool {
        let mut work = self.work.lock();
        while !work.stopping && !offer.has_looked() {
            self.changed.wait_for(&mut work, LOOK);
        }
        !work.stopping
    }

    /// Puts the paths back and waits. Returns how long to wait if the next attempt fails, too.
    fn retry(&self, parts: impl IntoIterator<Item = HashPart>, wait: Duration) -> Duration {
        let mut work = self.work.lock();
        work.pending.extend(parts);
        if !work.stopping {
            self.changed.wait_for(&mut work, wait);
        }
        (wait * 2).min(RETRY)
    }
}

fn is_due(withdrawn_at: Option<Instant>) -> bool {
    withdrawn_at.is_none_or(|at| at.elapsed() >= WITHDRAW_INTERVAL)
}

/// What changed in the store.
#[derive(Debug)]
struct Changes {
    /// Paths that came into it.
    pending: BTreeSet<HashPart>,
    /// Paths that are no longer offered.
    dropped: BTreeSet<HashPart>,
}

/// What one pass could not finish.
#[derive(Debug, Default)]
struct Looked {
    /// Paths to be looked at again: the offer cannot say yet whether peers may hear of them, or the database was busy.
    unchecked: BTreeSet<HashPart>,
    /// Paths whose rows could not be read, and why.
    unread: Vec<(HashPart, StoreError)>,
}

/// How many paths with unreadable rows one pass names in the log. Each path is named at most once.
const NAMED_MAX: usize = 3;

fn tell_unread(named: &mut BTreeSet<HashPart>, unread: Vec<(HashPart, StoreError)>) {
    // Once for each path, because it is tried again and again.
    let new: Vec<_> = unread.into_iter().filter(|(part, _)| named.insert(*part)).collect();
    for (part, error) in new.iter().take(NAMED_MAX) {
        tracing::warn!(store_path = %part, %error, "not attested: its row in the Nix database cannot be read");
    }
    if let Some(more) = new.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        tracing::warn!(more, "more paths are not attested: their rows in the Nix database cannot be read");
    }
}

fn look(
    own: Option<&OwnBuilds<'_>>,
    withdraws: bool,
    signatures: StoreSignatures<'_>,
    changes: &Changes,
) -> Result<Looked, LedgerDbError> {
    let mut looked = Looked::default();
    if let Some(own) = own {
        // What may no longer be told is taken back before anything new is said.
        let withdrawn = if withdraws { own.withdraw()? } else { own.withdraw_of(changes.dropped.iter().copied())? };
        if withdrawn > 0 {
            tracing::info!(withdrawn, "attestations of paths that are withheld now were taken back");
        }
        let attested = own.attest(changes.pending.iter().copied())?;
        if attested.new > 0 {
            tracing::info!(attested = attested.new, "attested what was built here");
        }
        looked.unchecked.extend(attested.unchecked);
        looked.unread = attested.unread;
    }
    if !signatures.signers.is_empty() {
        let taken = signatures.take(changes.pending.iter().copied())?;
        if taken.new > 0 {
            tracing::info!(
                taken = taken.new,
                "took signatures of builders that sign only their own builds from paths in the store"
            );
        }
        looked.unread.extend(taken.unread);
    }
    // A row that cannot be read because it is damaged would be tried for ever.
    let may_pass = looked.unread.iter().filter(|(_, error)| error.may_pass());
    looked.unchecked.extend(may_pass.map(|(part, _)| *part));
    Ok(looked)
}
