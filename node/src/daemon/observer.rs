//! Judges all that is attested whenever it changed: totals for `/metrics` and `status`, a warning for each new conflict.

use crate::quorum::{LedgerDb, LedgerDbError, LiveLedger};
use anyhow::Context as _;
use narmesh_protocol::StorePath;
use narmesh_quorum::{Mode, State};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often it is looked whether anything changed.
const LOOK: Duration = Duration::from_secs(1);
/// A look at everything rests nine times as long as it took: at most a tenth of one core.
const REST_FACTOR: u32 = 9;
/// Conflicts named in the log at a time; the others are counted.
const WARNINGS_MAX: usize = 10;

/// What was found at the last look; `None` before the first one, and with mode `off`.
pub(super) type Verdicts = Arc<Mutex<Option<Found>>>;

/// All paths of which anything is attested.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// How many are in each state.
    pub(super) by_state: BTreeMap<State, u64>,
    /// Those on which builders disagree.
    pub(super) conflicts: BTreeSet<StorePath>,
}

/// Ends its thread when dropped.
#[derive(Debug)]
pub(super) struct Observer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    ledger: Arc<LiveLedger>,
    stopping: Mutex<bool>,
    stopped: Condvar,
    verdicts: Verdicts,
}

impl Observer {
    /// Judges by the policy of the ledger.
    pub(super) fn start(ledger: Arc<LiveLedger>) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            ledger,
            stopping: Mutex::default(),
            stopped: Condvar::new(),
            verdicts: Verdicts::default(),
        });
        let working = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("quorum".to_owned())
            .spawn(move || working.run())
            .context("the quorum's thread")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What was found last.
    pub(super) fn verdicts(&self) -> Verdicts {
        Arc::clone(&self.shared.verdicts)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        *self.shared.stopping.lock() = true;
        self.shared.stopped.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the quorum's thread panicked");
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut judged = None;
        loop {
            let started = Instant::now();
            let generation = self.ledger.generation();
            if judged != Some(generation) {
                match self.look() {
                    Ok(found) => {
                        *self.verdicts.lock() = found;
                        judged = Some(generation);
                    }
                    Err(error) => tracing::debug!(%error, "what is attested cannot be judged now"),
                }
            }
            let mut stopping = self.stopping.lock();
            if !*stopping {
                self.stopped.wait_for(&mut stopping, LOOK.max(started.elapsed() * REST_FACTOR));
            }
            if *stopping {
                return;
            }
        }
    }

    /// Judges everything.
    fn look(&self) -> Result<Option<Found>, LedgerDbError> {
        let policy = self.ledger.policy();
        if policy.mode() == Mode::Off {
            return Ok(None);
        }
        let mut found = Found::default();
        for path in self.ledger.on_disk(LedgerDb::paths)? {
            let state = self.ledger.read(|ledger| policy.verdict(ledger, &path)).state;
            *found.by_state.entry(state).or_default() += 1;
            if state == State::Conflict {
                found.conflicts.insert(path);
            }
        }
        let known = self.verdicts.lock().clone().unwrap_or_default();
        let new: Vec<_> = found.conflicts.difference(&known.conflicts).collect();
        for path in new.iter().take(WARNINGS_MAX) {
            tracing::warn!(store_path = %path, verdict = "conflict", "builders got different results; see `narmesh quorum why`");
        }
        if new.len() > WARNINGS_MAX {
            tracing::warn!(paths = new.len() - WARNINGS_MAX, verdict = "conflict", "and more paths");
        }
        Ok(Some(found))
    }
}
