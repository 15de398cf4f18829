//! The thread that keeps the ledger and its file in step, and judges all attested paths again when anything changed.

use super::ledger::LiveLedger;
use super::observer::{Observer, Verdicts};
use anyhow::Context as _;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the thread looks whether another process changed the file.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// After notes were written, the next ones wait this long for each row that was written. Whoever may use the gateway
/// can cause notes as fast as they like, and each row is one page of 4 KiB in each of two trees, once in the log and
/// once in the file: some 230 MB an hour.
const REST_PER_ROW: Duration = Duration::from_millis(250);
/// The longest such wait, because a daemon that is killed forgets what it noted in that time. At most 131,072 new rows
/// in place of as many old ones are noted in it, which is some 25 MB; 300 MB an hour.
const REST_MAX: Duration = Duration::from_secs(300);

/// Decides when notes are written: the first ones at once.
#[derive(Debug, Default)]
struct NoteSchedule {
    rests_until: Option<Instant>,
}

impl NoteSchedule {
    fn is_due(&self, now: Instant) -> bool {
        self.rests_until.is_none_or(|until| until <= now)
    }

    fn on_written(&mut self, now: Instant, rows: usize) {
        let rest = REST_PER_ROW.saturating_mul(u32::try_from(rows).unwrap_or(u32::MAX));
        self.rests_until = Some(now + rest.min(REST_MAX));
    }
}

/// Ends its thread when dropped.
#[derive(Debug)]
pub(super) struct LedgerThread {
    stop: Arc<Stop>,
    verdicts: Verdicts,
    thread: Option<JoinHandle<()>>,
}

/// How the thread is told to end.
#[derive(Debug, Default)]
struct Stop {
    is_wanted: Mutex<bool>,
    changed: Condvar,
}

impl LedgerThread {
    /// Starts the thread, which catches up at once and then every second. A file that cannot be used is tried again
    /// each time.
    pub(super) fn start(ledger: &Arc<LiveLedger>) -> anyhow::Result<Self> {
        let (stop, verdicts) = (Arc::<Stop>::default(), Verdicts::default());
        let (ledger, stopping, observer) =
            (Arc::clone(ledger), Arc::clone(&stop), Observer::new(Arc::clone(&verdicts)));
        let thread = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || keep_up(&ledger, observer, &stopping))
            .context("the ledger's thread")?;
        Ok(Self { stop, verdicts, thread: Some(thread) })
    }

    /// How many paths have which verdict, as counted last.
    pub(super) fn verdicts(&self) -> Verdicts {
        Arc::clone(&self.verdicts)
    }
}

fn keep_up(ledger: &LiveLedger, mut observer: Observer, stop: &Stop) {
    let (mut is_well, mut schedule) = (true, NoteSchedule::default());
    loop {
        let kept = ledger.catch_up().and_then(|()| match schedule.is_due(Instant::now()) {
            true => ledger.flush().map(|rows| schedule.on_written(Instant::now(), rows)),
            false => ledger.pin_asked(),
        });
        match kept {
            Ok(()) => is_well = true,
            // Logged once, until it works again.
            Err(error) => {
                if std::mem::take(&mut is_well) {
                    tracing::warn!(%error, "attestations can be neither read nor kept now");
                }
            }
        }
        observer.look_if_due(ledger);
        let mut is_wanted = stop.is_wanted.lock();
        // Asked under the lock, so that an order to stop just before the wait is not missed.
        if !*is_wanted {
            stop.changed.wait_for(&mut is_wanted, LOOK);
        }
        if *is_wanted {
            break;
        }
    }
    // What waits for its turn to be written has no other turn.
    if let Err(error) = ledger.flush() {
        tracing::warn!(%error, "what Nix got last could not be recorded");
    }
}

impl Drop for LedgerThread {
    fn drop(&mut self) {
        *self.stop.is_wanted.lock() = true;
        self.stop.changed.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the ledger's thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_written_for_notes_are_bounded_at_any_rate() {
        // Rows noted in a second: from one to more than the file holds.
        for per_second in [1, 3, 100, 10_000, 1_000_000] {
            let (mut schedule, start) = (NoteSchedule::default(), Instant::now());
            let (mut waiting, mut pages) = (0, 0);
            for second in 0..3_600 {
                waiting = (waiting + per_second).min(2 * 131_072);
                let now = start + Duration::from_secs(second);
                if schedule.is_due(now) {
                    // Pages of two trees, at most 3,000 of them, each into the log and into the file.
                    pages += 2 * (2 * waiting).min(3_000);
                    schedule.on_written(now, waiting);
                    waiting = 0;
                }
            }
            assert!(pages * 4_096 <= 400 << 20, "{per_second} a second: {} bytes", pages * 4_096);
            assert!(pages > 0 && waiting <= 300 * per_second, "{per_second} a second: {waiting} wait");
        }
    }

    #[test]
    fn after_writing_nothing_the_next_notes_do_not_wait() {
        let (mut schedule, now) = (NoteSchedule::default(), Instant::now());
        schedule.on_written(now, 0);
        assert!(schedule.is_due(now));
        schedule.on_written(now, 20);
        assert!(!schedule.is_due(now + Duration::from_secs(4)) && schedule.is_due(now + Duration::from_secs(5)));
    }
}
