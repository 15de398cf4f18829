//! Asking ahead: who asks for a path will ask for what it refers to.
//!
//! Nix up to 2.8 asks for the narinfos of a closure one after the other, so each costs a round trip to a peer; newer ones ask 25 at a
//! time, level by level. Every narinfo that verified names the next questions. They are asked at the same time, in the order found,
//! and what Nix asks next is answered from memory.
//! Only verified narinfos lead to questions, so no peer chooses what we ask; nothing is asked that memory can answer.

use crate::Resolver;
use moka::sync::Cache;
use narmesh_protocol::{HashPart, NarInfo};
use narmesh_store::Store;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Paths that wait to be asked about; further ones are left for Nix to ask.
const WAITING_MAX: usize = 16_384;
/// Questions ahead at a time: half of what one peer is asked at a time, so that Nix's own are not behind them.
const AT_ONCE_MAX: usize = 16;
/// What was asked ahead is not asked ahead again for so long, however many paths refer to it.
const ONCE_IN: Duration = Duration::from_secs(30);
/// Paths remembered for [`ONCE_IN`].
const RECENT_MAX: u64 = 65_536;

/// The questions that wait.
#[derive(Debug)]
pub(crate) struct NarInfosAhead {
    waiting: OnceLock<mpsc::Sender<HashPart>>,
    recent: Cache<HashPart, ()>,
}

impl Default for NarInfosAhead {
    fn default() -> Self {
        Self {
            waiting: OnceLock::new(),
            recent: Cache::builder().max_capacity(RECENT_MAX).time_to_live(ONCE_IN).build(),
        }
    }
}

impl Resolver {
    /// Will ask soon for what this path refers to, unless that is known.
    pub(crate) fn ask_ahead(self: &Arc<Self>, info: &NarInfo) {
        let waiting = self.narinfos_ahead.waiting.get_or_init(|| {
            let (sender, receiver) = mpsc::channel(WAITING_MAX);
            tokio::spawn(ask_all(Arc::downgrade(self), receiver));
            sender
        });
        for reference in info.references.iter().filter(|reference| **reference != info.path) {
            let part = reference.hash_part();
            let is_known = self.answers.in_memory(&part).is_some_and(|answer| answer.is_fresh(&*self.sources));
            if self.store.contains(&part) || is_known || !self.sources.is_claimed(&part) {
                continue;
            }
            let is_first = self.narinfos_ahead.recent.entry(part).or_insert(()).is_fresh();
            if is_first && waiting.try_send(part).is_err() {
                return;
            }
        }
    }
}

async fn ask_all(resolver: Weak<Resolver>, mut waiting: mpsc::Receiver<HashPart>) {
    let at_once = Arc::new(Semaphore::new(AT_ONCE_MAX));
    while let Some(part) = waiting.recv().await {
        let Ok(slot) = Arc::clone(&at_once).acquire_owned().await else { return };
        let Some(resolver) = resolver.upgrade() else { return };
        tokio::spawn(async move {
            if !Arc::clone(&resolver).remembered(part).await.is_some_and(|answer| answer.is_fresh(&*resolver.sources)) {
                resolver.asked_ahead(part).await;
            }
            drop(slot);
        });
    }
}
