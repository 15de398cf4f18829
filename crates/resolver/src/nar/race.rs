//! When two sources are compared that send the same bytes, and which of them is left.

use std::time::Duration;

/// A source is not compared with others before it has been under way for so long.
pub(super) const RACE_AFTER: Duration = Duration::from_secs(1);
/// What one racer may be ahead of what was taken over, bytes: the memory of a race.
pub(super) const RACE_BYTES_MAX: usize = 1 << 20;
/// The one who was asked later has sent for so long when the two are compared.
const LASTS: Duration = Duration::from_millis(500);
/// A race ends after this, whoever has sent what.
const LASTS_MAX: Duration = Duration::from_secs(3);
/// The first pause after a race in which the one before won; it doubles.
const PAUSE_MIN: Duration = Duration::from_secs(4);

/// The races of one transfer, one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Race {
    /// When the second one was asked.
    since: Duration,
    /// When it sent its first byte.
    second_sends_since: Option<Duration>,
    /// Not before then again.
    next: Duration,
    pause: Duration,
}

impl Race {
    pub(super) fn new() -> Self {
        Self { since: Duration::ZERO, second_sends_since: None, next: RACE_AFTER, pause: PAUSE_MIN }
    }

    /// Whether one may begin now.
    pub(super) fn may_begin(&self, waited: Duration) -> bool {
        waited >= self.next
    }

    /// A second source is asked.
    pub(super) fn begin(&mut self, waited: Duration) {
        self.since = waited;
        self.second_sends_since = None;
    }

    /// The second one sends.
    pub(super) fn second_sends(&mut self, waited: Duration) {
        self.second_sends_since.get_or_insert(waited);
    }

    /// Which of the two is left, when it is decided: of `left` bytes both have sent so many.
    pub(super) fn loser(&mut self, [first, second]: [usize; 2], left: u64, waited: Duration) -> Option<usize> {
        let is_done = |bytes: usize| bytes as u64 == left;
        let long_enough = self.second_sends_since.is_some_and(|since| waited - since >= LASTS);
        let too_long = waited.saturating_sub(self.since) >= LASTS_MAX;
        let is_full = first >= RACE_BYTES_MAX || second >= RACE_BYTES_MAX;
        if !(is_done(first) || is_done(second) || long_enough || too_long || is_full) {
            return None;
        }
        // What the first one sent since the second sends: the head start of the question counts for nobody.
        let loser = if second > first || is_done(second) { 0 } else { 1 };
        if loser == 1 {
            self.pause *= 2;
        }
        self.next = waited + self.pause;
        Some(loser)
    }
}
