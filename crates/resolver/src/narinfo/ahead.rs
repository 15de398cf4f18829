//! Asking ahead: who asks for a path will ask for what it refers to.
//!
//! Nix up to 2.8 asks for the narinfos of a closure one after the other, so each costs a round trip to a peer; newer ones ask 25 at a
//! time, level by level. Every narinfo that verified names the next questions. They are asked at the same time, in the order found,
//! and what Nix asks next is answered from memory.
//! Only verified narinfos lead to questions, so no peer chooses what we ask; nothing is asked that memory can answer.

use super::answers::Answers;
use super::ask::Asking;
use moka::sync::Cache;
use narmesh_protocol::{HashPart, NarInfo};
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
    answers: Arc<Answers>,
    waiting: OnceLock<mpsc::Sender<HashPart>>,
    recent: Cache<HashPart, ()>,
}

impl NarInfosAhead {
    pub(super) fn new(answers: Arc<Answers>) -> Self {
        let recent = Cache::builder().max_capacity(RECENT_MAX).time_to_live(ONCE_IN).build();
        Self { answers, waiting: OnceLock::new(), recent }
    }

    /// Will ask soon for what this path refers to, unless that is known.
    pub(super) fn ask(&self, asking: &Arc<Asking>, info: &NarInfo) {
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
            if is_first && waiting.try_send(part).is_err() {
                return;
            }
        }
    }
}

async fn ask_all(asking: Weak<Asking>, answers: Arc<Answers>, mut waiting: mpsc::Receiver<HashPart>) {
    let at_once = Arc::new(Semaphore::new(AT_ONCE_MAX));
    while let Some(part) = waiting.recv().await {
        let Ok(slot) = Arc::clone(&at_once).acquire_owned().await else { return };
        let Some(asking) = asking.upgrade() else { return };
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            if answers.fresh(part).await.is_none() {
                asking.asked_ahead(part).await;
            }
            drop(slot);
        });
    }
}
