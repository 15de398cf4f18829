//! One direction of a link, without sockets and without a clock: what happens to a frame, and when.

use std::collections::VecDeque;
use std::time::Duration;

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Preamble, checksum and gap of an Ethernet frame, bytes: they keep the line busy too.
const FRAME_OVERHEAD_BYTES: usize = 24;

/// What a line does to frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Time from sending the last bit of a frame to its arrival.
    pub delay: Duration,
    /// Most that is added to `delay`, drawn evenly from zero to this; frames keep their order.
    pub jitter: Duration,
    /// Frames lost by chance, per thousand.
    pub loss_permille: u32,
    /// Bits a second; `None` means no limit.
    pub rate_bits_s: Option<u64>,
    /// How long a frame may wait until the line is free; a frame that would wait longer is dropped.
    pub queue_max: Duration,
    /// Whether the line is cut: nothing gets through.
    pub cut: bool,
}

impl Link {
    /// Nothing is lost and nothing waits.
    pub const PERFECT: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss_permille: 0,
        rate_bits_s: None,
        queue_max: Duration::from_millis(100),
        cut: false,
    };

    /// Within a site, as in `simulation/scenarios/wan-3-sites.toml`.
    pub const SITE: Self = Self { delay: Duration::from_millis(1), jitter: Duration::from_millis(1), ..Self::PERFECT };

    /// Between sites, as in the same scenario: 40 ms one way, 1 % loss.
    pub const WAN: Self = Self {
        delay: Duration::from_millis(40),
        jitter: Duration::from_millis(5),
        loss_permille: 10,
        rate_bits_s: Some(100_000_000),
        ..Self::PERFECT
    };
}

/// What became of the frames of a line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct LineCounts {
    /// Handed over to the receiver.
    pub delivered: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped because they would have waited longer than [`Link::queue_max`].
    pub overflown: u64,
    /// Lost because the line was cut.
    pub cut: u64,
}

/// One direction between two places. Times are durations since a moment of the caller's choice.
#[derive(Debug)]
pub(super) struct Line<T> {
    link: Link,
    rng: ChaCha8Rng,
    free_at: Duration,
    last_due: Duration,
    on_the_way: VecDeque<(Duration, T)>,
    pub(super) counts: LineCounts,
}

impl<T> Line<T> {
    /// The same seed loses the same frames.
    pub(super) fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            rng: ChaCha8Rng::seed_from_u64(seed),
            free_at: Duration::ZERO,
            last_due: Duration::ZERO,
            on_the_way: VecDeque::new(),
            counts: LineCounts::default(),
        }
    }

    pub(super) fn link(&self) -> Link {
        self.link
    }

    /// Changes the line. Frames on the way arrive as they would have, unless the line is cut.
    pub(super) fn set(&mut self, link: Link) {
        self.link = link;
        if link.cut {
            self.counts.cut += self.on_the_way.len() as u64;
            self.on_the_way.clear();
        }
    }

    /// Takes a frame of `bytes` bytes, or drops it.
    pub(super) fn offer(&mut self, now: Duration, bytes: usize, frame: T) {
        if self.link.cut {
            self.counts.cut += 1;
            return;
        }
        if self.rng.random_range(0..1_000) < self.link.loss_permille {
            self.counts.lost += 1;
            return;
        }
        // The line sends one frame at a time, so this one starts when the line is free.
        let start = self.free_at.max(now);
        if start - now > self.link.queue_max {
            self.counts.overflown += 1;
            return;
        }
        let bits = 8 * (bytes + FRAME_OVERHEAD_BYTES) as u64;
        let busy = self.link.rate_bits_s.map_or(0, |rate| bits * 1_000_000_000 / rate.max(1));
        self.free_at = start + Duration::from_nanos(busy);
        let jitter_ns = u64::try_from(self.link.jitter.as_nanos()).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(self.rng.next_u64() % jitter_ns.saturating_add(1).max(1));
        // Whatever its jitter, a frame never overtakes the one before it.
        self.last_due = self.last_due.max(self.free_at + self.link.delay + jitter);
        self.on_the_way.push_back((self.last_due, frame));
    }

    /// The next frame that has arrived by `now`.
    pub(super) fn take(&mut self, now: Duration) -> Option<T> {
        let frame = self.on_the_way.pop_front_if(|(due, _)| *due <= now).map(|(_, frame)| frame)?;
        self.counts.delivered += 1;
        Some(frame)
    }

    /// When the next frame arrives.
    pub(super) fn due(&self) -> Option<Duration> {
        self.on_the_way.front().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn arrivals(link: Link, every: Duration, count: u32) -> (Vec<(Duration, u32)>, LineCounts) {
        let mut line = Line::new(link, 7);
        (0..count).for_each(|number| line.offer(every * number, 976, number));
        let mut arrived = Vec::new();
        while let Some(due) = line.due() {
            arrived.push((due, line.take(due).unwrap()));
        }
        (arrived, line.counts)
    }

    #[test]
    fn a_perfect_line_changes_nothing() {
        let (arrived, counts) = arrivals(Link::PERFECT, MS, 100);
        assert_eq!(arrived, (0..100).map(|number| (MS * number, number)).collect::<Vec<_>>());
        assert_eq!(counts, LineCounts { delivered: 100, ..LineCounts::default() });
    }

    #[test]
    fn frames_keep_their_order_under_delay_and_jitter() {
        let (arrived, _) = arrivals(Link { delay: 40 * MS, jitter: 5 * MS, ..Link::PERFECT }, MS, 1_000);
        assert!(arrived.is_sorted(), "in order");
        assert!(arrived.iter().map(|(_, number)| *number).eq(0..1_000), "all of them");
        let late: Vec<_> = arrived.iter().map(|(at, number)| *at - MS * *number).collect();
        assert!(late.iter().all(|late| (40 * MS..=45 * MS).contains(late)));
        assert!(late.iter().any(|late| *late > 44 * MS) && late.iter().any(|late| *late < 43 * MS), "not all alike");
    }

    #[test]
    fn a_line_loses_the_share_asked_for() {
        let (arrived, counts) = arrivals(Link { loss_permille: 100, ..Link::PERFECT }, MS, 10_000);
        assert_eq!(counts.delivered + counts.lost, 10_000);
        assert_eq!(arrived.len() as u64, counts.delivered);
        assert!((900..1_100).contains(&counts.lost), "{} of 10,000", counts.lost);
    }

    #[test]
    fn a_line_of_one_megabit_carries_125_frames_of_a_kilobyte_in_a_second() {
        let link = Link { rate_bits_s: Some(1_000_000), queue_max: Duration::from_secs(10), ..Link::PERFECT };
        let (arrived, _) = arrivals(link, Duration::ZERO, 125);
        assert_eq!(arrived.last().unwrap().0, Duration::from_secs(1));
    }

    #[test]
    fn a_frame_that_would_wait_too_long_is_dropped() {
        let link = Link { rate_bits_s: Some(1_000_000), queue_max: 80 * MS, ..Link::PERFECT };
        let (arrived, counts) = arrivals(link, Duration::ZERO, 100);
        assert_eq!((arrived.len(), counts.overflown), (11, 89), "eleven of eight ms each begin within 80 ms");
    }

    #[test]
    fn a_cut_loses_frames_on_the_way_and_later_ones() {
        let link = Link { delay: 40 * MS, ..Link::PERFECT };
        let mut line = Line::new(link, 7);
        line.offer(Duration::ZERO, 100, ());
        line.set(Link { cut: true, ..link });
        line.offer(MS, 100, ());
        assert_eq!((line.due(), line.counts.cut), (None, 2));
        line.set(link);
        line.offer(2 * MS, 100, ());
        assert_eq!(line.due(), Some(42 * MS));
    }
}
