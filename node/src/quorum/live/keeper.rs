//! The thread that keeps a ledger and its file together.

use super::LiveLedger;
use anyhow::Context as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often the file is asked whether another process changed it.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Keeps a ledger and its file together; ends its thread when dropped.
#[derive(Debug)]
pub struct Keeper {
    ledger: Arc<LiveLedger>,
    thread: Option<JoinHandle<()>>,
}

impl LiveLedger {
    /// Catches up at once and then every second, on a thread of its own; a file that cannot be used is tried again.
    pub fn keep_up(self: &Arc<Self>) -> anyhow::Result<Keeper> {
        let ledger = Arc::clone(self);
        let thread = thread::Builder::new().name("ledger".to_owned()).spawn(move || ledger.run());
        let thread = Some(thread.context("the ledger's thread")?);
        Ok(Keeper { ledger: Arc::clone(self), thread })
    }

    fn run(&self) {
        let mut is_well = true;
        loop {
            let kept = self.catch_up().and_then(|()| self.flush());
            match kept {
                Ok(()) => is_well = true,
                // Said once, until it works again.
                Err(error) => {
                    if std::mem::take(&mut is_well) {
                        tracing::warn!(%error, "attestations can be neither read nor kept now");
                    }
                }
            }
            let mut notes = self.notes.lock();
            let idle = notes.served.is_empty();
            if (idle || !is_well) && !notes.stopping {
                self.noted.wait_for(&mut notes, LOOK);
            }
            if notes.stopping {
                drop(notes);
                if let Err(error) = self.flush() {
                    tracing::warn!(%error, "what was served last is not on record");
                }
                return;
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.ledger.notes.lock().stopping = true;
        self.ledger.noted.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the ledger's thread panicked");
        }
    }
}
