//! Attests what this machine builds, as it builds it, and takes signatures of builders that sign only their own builds from what
//! comes into the store, on a thread of its own.

use crate::quorum::{LiveLedger, OwnBuilds, StoreSignatures};
use anyhow::Context as _;
use narmesh_protocol::{HashPart, NixPublicKey, NixSecretKey};
use narmesh_store::{NixStore, Watcher};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// After a failure (a full disk, a locked database) it is tried again so much later.
const RETRY: Duration = Duration::from_secs(10);

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

/// Bounded by what is in the store.
#[derive(Debug, Default)]
struct Work {
    pending: BTreeSet<HashPart>,
    key: Option<NixSecretKey>,
    signers: Vec<NixPublicKey>,
    stopping: bool,
}

impl Attester {
    /// Begins with all that is in the store. Without a key and signers it waits for them.
    pub(super) fn start(
        store: &Arc<NixStore>,
        ledger: &Arc<LiveLedger>,
        key: Option<NixSecretKey>,
        signers: Vec<NixPublicKey>,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let watcher = store.watch(Box::new(move |change| {
            told.work.lock().pending.extend(change.added);
            told.changed.notify_one();
        }))?;
        let (store, ledger, working) = (Arc::clone(store), Arc::clone(ledger), Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("attester".to_owned())
            .spawn(move || working.run(&store, &ledger))
            .context("the attester's thread")?;
        let attester = Self { shared, _watcher: watcher, thread: Some(thread) };
        attester.set_keys(key, signers);
        Ok(attester)
    }

    /// What it signs with now.
    pub(super) fn public_key(&self) -> Option<NixPublicKey> {
        self.shared.work.lock().key.as_ref().map(NixSecretKey::public)
    }

    /// Another key of ours, or none, and other builders whose signatures are taken, from now on; all that is in the store is
    /// looked at again.
    pub(super) fn set_keys(&self, key: Option<NixSecretKey>, signers: Vec<NixPublicKey>) {
        let mut work = self.shared.work.lock();
        work.key = key;
        work.signers = signers;
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
    fn run(&self, store: &NixStore, ledger: &LiveLedger) {
        let mut looked_with = (None, Vec::new());
        loop {
            let mut work = self.work.lock();
            let (key, signers, pending) = loop {
                if work.stopping {
                    return;
                }
                let pending = std::mem::take(&mut work.pending);
                let (key, signers) = (work.key.clone(), work.signers.clone());
                if looked_with != (key.as_ref().map(NixSecretKey::public), signers.clone()) {
                    break (key, signers, store.hash_parts());
                }
                let is_idle = key.is_none() && signers.is_empty();
                if !is_idle && !pending.is_empty() {
                    break (key, signers, pending);
                }
                self.changed.wait(&mut work);
            };
            drop(work);
            match look(store, ledger, key.as_ref(), &signers, &pending) {
                Ok(()) => looked_with = (key.map(|key| key.public()), signers),
                Err(error) => {
                    tracing::warn!(%error, "what came into the store cannot be attested, or taken from, now");
                    let mut work = self.work.lock();
                    work.pending.extend(pending);
                    if !work.stopping {
                        self.changed.wait_for(&mut work, RETRY);
                    }
                }
            }
        }
    }
}

fn look(
    store: &NixStore,
    ledger: &LiveLedger,
    key: Option<&NixSecretKey>,
    signers: &[NixPublicKey],
    pending: &BTreeSet<HashPart>,
) -> anyhow::Result<()> {
    if let Some(key) = key {
        let attested = OwnBuilds { store, ledger, key }.attest(pending.iter().copied())?;
        if attested > 0 {
            tracing::info!(attested, "attested what was built here");
        }
    }
    if !signers.is_empty() {
        let taken = StoreSignatures { store, ledger, signers }.take(pending.iter().copied())?;
        if taken > 0 {
            tracing::info!(taken, "signatures of builders that sign only their own builds, found in the store");
        }
    }
    Ok(())
}
