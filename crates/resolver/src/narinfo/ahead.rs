//! Asks ahead for narinfos: when Nix asks for a path, it will ask for what the path refers to.
//!
//! Nix up to 2.8 asks for the narinfos of a closure one after the other, so each costs a round trip to a peer; newer
//! ones ask 25 at a time, level by level. Every narinfo that has verified names the next questions. Several of them are
//! asked at the same time, in the order found, so that what Nix asks next is answered from memory. Only verified
//! narinfos lead to questions, so that no peer chooses what we ask. Nothing is asked that memory can answer.

use super::answers::Answers;
use super::ask::Asking;
use crate::turns::User;
use moka::sync::Cache;
use narmesh_protocol::{HashPart, NarInfo};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// The most paths that wait to be asked about; for further ones, Nix has to ask itself.
const WAITING_MAX: usize = 16_384;
/// Questions ahead at a time: half of what one peer is asked at a time, so that Nix's own questions do not wait behind
/// them.
const AT_ONCE_MAX: usize = 16;
/// A path that was asked about ahead is not asked about ahead again for this long, however many paths refer to it.
const ONCE_IN: Duration = Duration::from_secs(30);
/// Paths remembered for [`ONCE_IN`].
const RECENT_MAX: u64 = 65_536;

/// The paths that wait to be asked about ahead.
#[derive(Debug)]
pub(crate) struct NarInfosAhead {
    answers: Arc<Answers>,
    waiting: OnceLock<mpsc::Sender<(HashPart, User)>>,
    recent: Cache<HashPart, ()>,
}

impl NarInfosAhead {
    pub(super) fn new(answers: Arc<Answers>) -> Self {
        let recent = Cache::builder().max_capacity(RECENT_MAX).time_to_live(ONCE_IN).build();
        Self { answers, waiting: OnceLock::new(), recent }
    }

    /// Queues questions about the paths that this one refers to, except those that are known. They count as questions of
    /// the user who asked for this one.
    pub(super) fn ask(&self, asking: &Arc<Asking>, info: &NarInfo, user: User) {
        let waiting = self.waiting.get_or_init(|| {
            let (sender, receiver) = mpsc::channel(WAITING_MAX);
            tokio::spawn(ask_all(Arc::downgrade(asking), Arc::clone(&self.answers), receiver));
            sender
        });
        for reference in info.references.iter().filter(|reference| **reference != info.path) {
            let part = reference.hash_part();
            if !self.answers.is_open(&part) {
                continue;
            }
            let is_first = self.recent.entry(part).or_insert(()).is_fresh();
            // When the queue is full, the other references would not fit either.
            if is_first && waiting.try_send((part, user)).is_err() {
                return;
            }
        }
    }
}

async fn ask_all(asking: Weak<Asking>, answers: Arc<Answers>, mut waiting: mpsc::Receiver<(HashPart, User)>) {
    let at_once = Arc::new(Semaphore::new(AT_ONCE_MAX));
    while let Some((part, user)) = waiting.recv().await {
        let Ok(slot) = Arc::clone(&at_once).acquire_owned().await else { return };
        // The queue must not keep the resolver alive when the daemon stops.
        let Some(asking) = asking.upgrade() else { return };
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            // The answer may have come while this waited in the queue.
            if answers.recall_fresh(part).await.is_none() {
                asking.ask_ahead(part, user).await;
            }
            drop(slot);
        });
    }
}
