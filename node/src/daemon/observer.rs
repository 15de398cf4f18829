//! Judges all that is attested whenever it changed: totals for `/metrics`, a warning for each new conflict.

use crate::quorum::{LedgerDb, LedgerDbError};
use anyhow::Context as _;
use narmesh_protocol::{StoreDir, StorePath};
use narmesh_quorum::{LedgerLimits, Mode, Policy, State};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the file is asked whether it changed.
const LOOK: Duration = Duration::from_secs(1);
/// A look at everything rests nine times as long as it took: at most a tenth of one core.
const REST_FACTOR: u32 = 9;
/// Conflicts named in the log at a time; the others are counted.
const WARNINGS_MAX: usize = 10;

/// Paths by verdict; `None` before the first look, and with mode `off`.
pub(super) type Verdicts = Arc<Mutex<Option<BTreeMap<State, u64>>>>;

/// Ends its thread when dropped.
#[derive(Debug)]
pub(super) struct Observer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
    verdicts: Verdicts,
}

#[derive(Debug, Default)]
struct Work {
    policy: Option<Policy>,
    /// Counts policies.
    generation: u64,
    stopping: bool,
}

/// What the thread knows between two looks.
#[derive(Debug, Default)]
struct Seen {
    db: Option<LedgerDb>,
    /// The state of the file and the policy that were judged last.
    judged: Option<(i64, u64)>,
    conflicts: BTreeSet<StorePath>,
}

impl Observer {
    /// Judges by `policy`; with mode `off` it waits for another one.
    pub(super) fn start(state_dir: &Path, store_dir: &StoreDir, policy: Policy) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (working, state_dir, store_dir) = (Arc::clone(&shared), state_dir.to_owned(), store_dir.clone());
        let thread = thread::Builder::new()
            .name("quorum".to_owned())
            .spawn(move || working.run(&state_dir, &store_dir))
            .context("the quorum's thread")?;
        let observer = Self { shared, thread: Some(thread) };
        observer.set_policy(policy);
        Ok(observer)
    }

    /// Another policy from now on.
    pub(super) fn set_policy(&self, policy: Policy) {
        let mut work = self.shared.work.lock();
        work.generation += 1;
        work.policy = Some(policy).filter(|policy| policy.mode() != Mode::Off);
        self.shared.changed.notify_one();
    }

    /// What was found last.
    pub(super) fn verdicts(&self) -> Verdicts {
        Arc::clone(&self.shared.verdicts)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.shared.work.lock().stopping = true;
        self.shared.changed.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the quorum's thread panicked");
        }
    }
}

impl Shared {
    fn run(&self, state_dir: &Path, store_dir: &StoreDir) {
        let mut seen = Seen::default();
        loop {
            let (policy, generation) = {
                let mut work = self.work.lock();
                while work.policy.is_none() && !work.stopping {
                    *self.verdicts.lock() = None;
                    self.changed.wait(&mut work);
                }
                let Some(policy) = work.policy.clone().filter(|_| !work.stopping) else { return };
                (policy, work.generation)
            };
            let started = Instant::now();
            match seen.look(state_dir, store_dir, &policy, generation) {
                Ok(None) => {}
                Ok(Some(verdicts)) => *self.verdicts.lock() = Some(verdicts),
                // Nothing was ever attested here.
                Err(LedgerDbError::Missing { .. }) => {}
                Err(error) => {
                    tracing::debug!(%error, "what is attested cannot be judged now");
                    seen = Seen { conflicts: seen.conflicts, ..Seen::default() };
                }
            }
            let mut work = self.work.lock();
            if !work.stopping && work.generation == generation {
                self.changed.wait_for(&mut work, LOOK.max(started.elapsed() * REST_FACTOR));
            }
        }
    }
}

impl Seen {
    /// Judges everything if anything changed.
    fn look(
        &mut self,
        state_dir: &Path,
        store_dir: &StoreDir,
        policy: &Policy,
        generation: u64,
    ) -> Result<Option<BTreeMap<State, u64>>, LedgerDbError> {
        let db = match self.db.take() {
            Some(db) => db,
            None => LedgerDb::open_existing(state_dir, store_dir)?,
        };
        let db = self.db.insert(db);
        let version = db.data_version()?;
        if self.judged == Some((version, generation)) {
            return Ok(None);
        }
        let ledger = db.load(LedgerLimits::default())?;
        let mut verdicts = BTreeMap::new();
        let mut conflicts = BTreeSet::new();
        for path in db.paths()? {
            let state = policy.verdict(&ledger, &path).state;
            *verdicts.entry(state).or_default() += 1;
            if state == State::Conflict {
                conflicts.insert(path);
            }
        }
        let new: Vec<_> = conflicts.difference(&self.conflicts).collect();
        for path in new.iter().take(WARNINGS_MAX) {
            tracing::warn!(store_path = %path, verdict = "conflict", "builders got different results; see `narmesh quorum why`");
        }
        if new.len() > WARNINGS_MAX {
            tracing::warn!(paths = new.len() - WARNINGS_MAX, verdict = "conflict", "and more paths");
        }
        (self.conflicts, self.judged) = (conflicts, Some((version, generation)));
        Ok(Some(verdicts))
    }
}
