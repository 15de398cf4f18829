//! A race: two sources send the same bytes, and the slower one is left.

use std::time::Duration;

/// A source races with no other before it has been under way for this long.
pub(super) const RACE_AFTER: Duration = Duration::from_secs(1);
/// How far one racer may get ahead of what was taken over, bytes. This bounds the memory of a race.
pub(super) const RACE_BYTES_MAX: usize = 1 << 20;
/// The two are compared when the second source has been sending for this long.
const LASTS: Duration = Duration::from_millis(500);
/// A race ends after this, whatever was sent.
const LASTS_MAX: Duration = Duration::from_secs(3);
/// The first pause after a race; it doubles each time the first source wins.
const PAUSE_MIN: Duration = Duration::from_secs(4);

/// The races of one transfer, one after the other. All times are time spent waiting for sources.
#[derive(Clone, Copy, Debug)]
pub(super) struct Race {
    /// When the second source was asked.
    since: Duration,
    /// Bytes that the first one had sent by then, and that were not taken over: a leaf that is not whole yet.
    ahead: usize,
    /// When the second source sent its first byte.
    second_sends_since: Option<Duration>,
    /// The next race begins no earlier than this.
    next: Duration,
    pause: Duration,
}

impl Race {
    pub(super) fn new() -> Self {
        Self { since: Duration::ZERO, ahead: 0, second_sends_since: None, next: RACE_AFTER, pause: PAUSE_MIN }
    }

    /// Whether a race may begin now.
    pub(super) fn may_begin(&self, waited: Duration) -> bool {
        waited >= self.next
    }

    /// Begins a race: a second source is asked now, and the first one has sent `ahead` of the bytes that are left.
    pub(super) fn begin(&mut self, waited: Duration, ahead: usize) {
        (self.since, self.ahead) = (waited, ahead);
        self.second_sends_since = None;
    }

    /// A source that has sent so much more than was taken over is not read on.
    pub(super) fn tail_bytes_max(&self) -> usize {
        RACE_BYTES_MAX + self.ahead
    }

    /// Notes that the second source sends.
    pub(super) fn on_second_sends(&mut self, waited: Duration) {
        self.second_sends_since.get_or_insert(waited);
    }

    /// The index of the source that is left, once the race is decided. The array is what each has sent of the `left`
    /// bytes.
    pub(super) fn decide(&mut self, [first, second]: [usize; 2], left: u64, waited: Duration) -> Option<usize> {
        let is_done = |bytes: usize| bytes as u64 == left;
        let long_enough = self.second_sends_since.is_some_and(|since| waited - since >= LASTS);
        let too_long = waited.saturating_sub(self.since) >= LASTS_MAX;
        let is_full = first >= self.tail_bytes_max() || second >= RACE_BYTES_MAX;
        if !(is_done(first) || is_done(second) || long_enough || too_long || is_full) {
            return None;
        }
        // The first source stays unless the second has sent more in this race, or all that is left.
        let loser = if second > first.saturating_sub(self.ahead) || is_done(second) { 0 } else { 1 };
        if loser == 1 {
            self.pause *= 2;
        }
        self.next = waited + self.pause;
        Some(loser)
    }
}
