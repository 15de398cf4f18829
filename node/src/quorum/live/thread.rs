//! The thread that keeps a ledger and its file together.

use super::LiveLedger;
use anyhow::Context as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the file is asked whether another process changed it.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// After notes were written, the next ones wait so long for each row of them: whoever may ask the gateway makes notes as fast as
/// he likes, and each row is one page of 4 KiB in each of two trees, once in the log and once in the file. Some 230 MB an hour.
const REST_PER_ROW: Duration = Duration::from_millis(250);
/// But no longer: a daemon that is killed has forgotten what it noted in that time. What is noted at most in it, 131,072 new rows
/// for as many old ones, is some 25 MB; 300 MB an hour.
const REST_MAX: Duration = Duration::from_secs(300);

/// When notes are written: the first ones at once.
#[derive(Debug, Default)]
struct Pace {
    rests_until: Option<Instant>,
}

impl Pace {
    fn is_due(&self, now: Instant) -> bool {
        self.rests_until.is_none_or(|until| until <= now)
    }

    fn wrote(&mut self, now: Instant, rows: usize) {
        let rest = REST_PER_ROW.saturating_mul(u32::try_from(rows).unwrap_or(u32::MAX));
        self.rests_until = Some(now + rest.min(REST_MAX));
    }
}

/// Keeps a ledger and its file together; ends its thread when dropped.
#[derive(Debug)]
pub struct LedgerThread {
    ledger: Arc<LiveLedger>,
    thread: Option<JoinHandle<()>>,
}

impl LiveLedger {
    /// Catches up at once and then every second, on a thread of its own; a file that cannot be used is tried again.
    pub fn keep_up(self: &Arc<Self>) -> anyhow::Result<LedgerThread> {
        let ledger = Arc::clone(self);
        let thread = thread::Builder::new().name("ledger".to_owned()).spawn(move || ledger.run());
        let thread = Some(thread.context("the ledger's thread")?);
        Ok(LedgerThread { ledger: Arc::clone(self), thread })
    }

    fn run(&self) {
        let (mut is_well, mut pace) = (true, Pace::default());
        loop {
            let kept = self.catch_up().and_then(|()| match pace.is_due(Instant::now()) {
                true => self.flush().map(|rows| pace.wrote(Instant::now(), rows)),
                false => self.pin_asked(),
            });
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
            if !notes.stopping {
                self.stopped.wait_for(&mut notes, LOOK);
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

impl Drop for LedgerThread {
    fn drop(&mut self) {
        self.ledger.notes.lock().stopping = true;
        self.ledger.stopped.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the ledger's thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_written_the_slower_the_more_there_are() {
        // Rows noted in a second: one, as many as a page has, more than a file holds.
        for per_second in [1, 3, 100, 10_000, 1_000_000] {
            let (mut pace, start) = (Pace::default(), Instant::now());
            let (mut waiting, mut pages) = (0, 0);
            for second in 0..3_600 {
                waiting = (waiting + per_second).min(2 * 131_072);
                let now = start + Duration::from_secs(second);
                if pace.is_due(now) {
                    // Two trees, no more than 3,000 pages of them, into the log and into the file.
                    pages += 2 * (2 * waiting).min(3_000);
                    pace.wrote(now, waiting);
                    waiting = 0;
                }
            }
            assert!(pages * 4_096 <= 400 << 20, "{per_second} a second: {} bytes", pages * 4_096);
            assert!(pages > 0 && waiting <= 300 * per_second, "{per_second} a second: {waiting} wait");
        }
    }

    #[test]
    fn nothing_written_is_followed_by_no_rest() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.wrote(now, 0);
        assert!(pace.is_due(now));
        pace.wrote(now, 20);
        assert!(!pace.is_due(now + Duration::from_secs(4)) && pace.is_due(now + Duration::from_secs(5)));
    }
}
