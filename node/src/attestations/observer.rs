//! Judges all attested paths again whenever the ledger or the policy changed: counts for `/metrics` and `status`, and a
//! warning for each new conflict.

use super::ledger::{LedgerDb, LedgerDbError, LiveLedger};
use narmesh_protocol::StorePath;
use narmesh_quorum::{Mode, State};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// After judging everything, nothing is judged for nine times as long as that took: it uses at most a tenth of one core.
const REST_FACTOR: u32 = 9;
/// Conflicts named in the log at a time; the others are counted.
const WARNINGS_MAX: usize = 10;

/// What was found last; `None` before everything was judged once, and with mode `off`.
pub(crate) type Verdicts = Arc<Mutex<Option<Found>>>;

/// The verdicts on all paths of which anything is attested.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Number of paths in each state.
    pub(crate) by_state: BTreeMap<State, u64>,
    /// Paths on which builders disagree.
    pub(crate) conflicts: BTreeSet<StorePath>,
}

/// Judges all paths when they have to be judged again.
#[derive(Debug)]
pub(super) struct Observer {
    verdicts: Verdicts,
    /// The revision of the ledger that was judged last.
    judged: Option<u64>,
    rests_until: Option<Instant>,
}

impl Observer {
    /// Leaves what it finds in `verdicts`.
    pub(super) fn new(verdicts: Verdicts) -> Self {
        Self { verdicts, judged: None, rests_until: None }
    }

    /// Judges everything by the policy of the ledger, if anything changed since, and the last time is long enough ago.
    pub(super) fn look_if_due(&mut self, ledger: &LiveLedger) {
        let started = Instant::now();
        // Read before judging: what changes meanwhile is judged the next time.
        let revision = ledger.revision();
        if self.judged == Some(revision) || self.rests_until.is_some_and(|until| started < until) {
            return;
        }
        match self.look(ledger) {
            Ok(found) => {
                *self.verdicts.lock() = found;
                self.judged = Some(revision);
            }
            Err(error) => tracing::debug!(%error, "the attested paths cannot be judged now"),
        }
        // In proportion to what it took, so that a large ledger does not keep a core busy.
        self.rests_until = Some(Instant::now() + started.elapsed() * REST_FACTOR);
    }

    /// Judges all paths, and warns of conflicts that were not there the last time.
    fn look(&self, ledger: &LiveLedger) -> Result<Option<Found>, LedgerDbError> {
        let policy = ledger.policy();
        if policy.mode() == Mode::Off {
            return Ok(None);
        }
        let mut found = Found::default();
        for path in ledger.with_reader(LedgerDb::read_paths)? {
            let state = ledger.read(|ledger| policy.judge(ledger, &path)).state;
            *found.by_state.entry(state).or_default() += 1;
            if state == State::Conflict {
                found.conflicts.insert(path);
            }
        }
        let known = self.verdicts.lock().clone().unwrap_or_default();
        let new: Vec<_> = found.conflicts.difference(&known.conflicts).collect();
        // A builder that goes wrong does so for many paths at once: the log gets some of them.
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
