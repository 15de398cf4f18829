//! Attests what this machine builds, as it builds it, on a thread of its own.

use crate::quorum::{LiveLedger, OwnBuilds};
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
    stopping: bool,
}

impl Attester {
    /// Begins with all that is in the store. Without a key it waits for one.
    pub(super) fn start(
        store: &Arc<NixStore>,
        ledger: &Arc<LiveLedger>,
        key: Option<NixSecretKey>,
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
        attester.set_key(key);
        Ok(attester)
    }

    /// What it signs with now.
    pub(super) fn public_key(&self) -> Option<NixPublicKey> {
        self.shared.work.lock().key.as_ref().map(NixSecretKey::public)
    }

    /// Another key, or none, from now on; what is in the store is attested with it.
    pub(super) fn set_key(&self, key: Option<NixSecretKey>) {
        let mut work = self.shared.work.lock();
        let same = match (&work.key, &key) {
            (Some(old), Some(new)) => old.public() == new.public(),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same {
            work.key = key;
            self.shared.changed.notify_one();
        }
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
        let mut attested_with: Option<NixPublicKey> = None;
        loop {
            let mut work = self.work.lock();
            let (key, pending) = loop {
                if work.stopping {
                    return;
                }
                let pending = std::mem::take(&mut work.pending);
                match work.key.clone() {
                    // What changes meanwhile is attested with all the rest once there is a key.
                    None => attested_with = None,
                    Some(key) if attested_with.as_ref() != Some(&key.public()) => break (key, store.hash_parts()),
                    Some(key) if !pending.is_empty() => break (key, pending),
                    Some(_) => {}
                }
                self.changed.wait(&mut work);
            };
            drop(work);
            match (OwnBuilds { store, ledger, key: &key }).attest(pending.iter().copied()) {
                Ok(attested) => {
                    if attested > 0 {
                        tracing::info!(attested, "attested what was built here");
                    }
                    attested_with = Some(key.public());
                }
                Err(error) => {
                    tracing::warn!(%error, "what was built here cannot be attested now");
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
