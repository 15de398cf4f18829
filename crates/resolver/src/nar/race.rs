//! A race: two sources send the same bytes, and the slower one is left.

use std::time::Duration;

/// A source races with no other before it has been under way for this long.
pub(super) const RACE_AFTER: Duration = Duration::from_secs(1);
/// The same of an upstream cache, if another one is to race with it: it answers at once or hardly ever, and most of its NARs
/// take less than a second.
pub(super) const RACE_CACHES_AFTER: Duration = Duration::from_millis(300);
/// How far one racer may get ahead of what was taken over, bytes. This bounds the memory of a race.
pub(super) const RACE_BYTES_MAX: usize = 1 << 20;
/// A source races with the one from which it gets the NAR only after this: by then its own pace is known.
pub(super) const RACE_RELATED_AFTER: Duration = Duration::from_secs(3);
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
    /// If both get the NAR over the same line, how quick the first one was before, bytes per second.
    alone: Option<u64>,
    /// When the second source sent its first byte.
    second_sends_since: Option<Duration>,
    /// The next race begins no earlier than this.
    next: Duration,
    pause: Duration,
}

impl Race {
    pub(super) fn new() -> Self {
        let (since, next, pause) = (Duration::ZERO, RACE_CACHES_AFTER, PAUSE_MIN);
        Self { since, ahead: 0, alone: None, second_sends_since: None, next, pause }
    }

    /// Whether a race may begin now.
    pub(super) fn may_begin(&self, waited: Duration) -> bool {
        waited >= self.next
    }

    /// Begins a race: a second source is asked now, and the first one has sent `ahead` of the bytes that are left.
    /// If the first one gets the NAR from the second one, directly or over others, `alone` is how quick it was before, bytes
    /// per second: the second one slows it down.
    pub(super) fn begin(&mut self, waited: Duration, ahead: usize, alone: Option<u64>) {
        (self.since, self.ahead, self.alone) = (waited, ahead, alone);
        self.second_sends_since = None;
    }

    /// A source that has sent so much more than was taken over is not read on.
    pub(super) fn tail_bytes_max(&self) -> usize {
        RACE_BYTES_MAX + self.ahead
    }

    /// Notes that the second source names others instead of sending: the first one goes on.
    pub(super) fn on_refused(&mut self, waited: Duration) {
        self.next = waited + self.pause;
        self.pause *= 2;
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
        // The first source stays unless the second has sent more in this race, or all that is left. Two that share a line
        // slow each other down: there the second one must be quicker by half than the first one was before.
        let sending = self.second_sends_since.map_or(Duration::ZERO, |since| waited.saturating_sub(since));
        let would_have_come = |rate: u64| usize::try_from(u128::from(rate) * sending.as_millis() / 1_000);
        let alone = self.alone.map_or(0, |rate| would_have_come(rate + rate / 2).unwrap_or(usize::MAX));
        let to_beat = first.saturating_sub(self.ahead).max(alone);
        let loser = if second > to_beat || is_done(second) { 0 } else { 1 };
        if loser == 1 {
            self.pause *= 2;
        }
        self.next = waited + self.pause;
        Some(loser)
    }
}
