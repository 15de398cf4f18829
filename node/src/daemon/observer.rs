//! Judges all attested paths again whenever the ledger or the policy changed: counts for `/metrics` and `status`, and a
//! warning for each new conflict.

use crate::quorum::{LedgerDb, LedgerDbError, LiveLedger};
use anyhow::Context as _;
use narmesh_protocol::StorePath;
use narmesh_quorum::{Mode, State};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the thread looks whether anything changed.
const LOOK: Duration = Duration::from_secs(1);
/// After judging everything, the thread rests nine times as long as that took: it uses at most a tenth of one core.
const REST_FACTOR: u32 = 9;
/// Conflicts named in the log at a time; the others are counted.
const WARNINGS_MAX: usize = 10;

/// What was found last; `None` before everything was judged once, and with mode `off`.
pub(super) type Verdicts = Arc<Mutex<Option<Found>>>;

/// The verdicts on all paths of which anything is attested.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Number of paths in each state.
    pub(super) by_state: BTreeMap<State, u64>,
    /// Paths on which builders disagree.
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
    /// Starts the thread. It judges by the policy of the ledger.
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
            // Read before judging: what changes meanwhile is judged the next time.
            let generation = self.ledger.generation();
            if judged != Some(generation) {
                match self.look() {
                    Ok(found) => {
                        *self.verdicts.lock() = found;
                        judged = Some(generation);
                    }
                    Err(error) => tracing::debug!(%error, "the attested paths cannot be judged now"),
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

    /// Judges all paths, and warns of conflicts that were not there the last time.
    fn look(&self) -> Result<Option<Found>, LedgerDbError> {
        let policy = self.ledger.policy();
        if policy.mode() == Mode::Off {
            return Ok(None);
        }
        let mut found = Found::default();
        for path in self.ledger.with_reader(LedgerDb::read_paths)? {
            let state = self.ledger.read(|ledger| policy.judge(ledger, &path)).state;
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
            tracing::warn!(
                paths = new.len() - WARNINGS_MAX,
                verdict = "conflict",
                "builders got different results for more paths"
            );
        }
        Ok(Some(found))
    }
}
