//! How many bytes may be written to a disk because of what others repeat at will.

use std::time::{Duration, Instant};

/// How many times the space that copies may take is written at once at most. A guess: an update of a large system.
const BURST_FACTOR: u64 = 4;
/// In how many seconds as much as that space may be written again.
const REFILL_S: u64 = 3_600;

/// What was written lately; it counts for less as time passes.
#[derive(Debug, Default)]
pub(crate) struct WriteBudget {
    /// In parts of a byte, of which there are [`REFILL_S`]: so nothing is lost in rounding.
    used: u128,
    /// When `used` was counted down last.
    at: Option<Instant>,
}

impl WriteBudget {
    /// Bytes that may be written now, where copies may take `space` bytes.
    pub(crate) fn left(&mut self, now: Instant, space: u64) -> u64 {
        let at = *self.at.get_or_insert(now);
        let seconds = now.saturating_duration_since(at).as_secs();
        self.at = Some(at + Duration::from_secs(seconds));
        self.used = self.used.saturating_sub(u128::from(space) * u128::from(seconds));
        let used = u64::try_from(self.used.div_ceil(REFILL_S.into())).unwrap_or(u64::MAX);
        space.saturating_mul(BURST_FACTOR).saturating_sub(used)
    }

    /// Whether `bytes` may be written now. If so, they count as written.
    pub(crate) fn take(&mut self, now: Instant, space: u64, bytes: u64) -> bool {
        let is_granted = self.left(now, space) >= bytes;
        if is_granted {
            self.used += u128::from(bytes) * u128::from(REFILL_S);
        }
        is_granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_times_the_space_is_written_at_once_and_once_the_space_in_an_hour() {
        let (mut budget, start) = (WriteBudget::default(), Instant::now());
        let writes = |budget: &mut WriteBudget, after_s: u64| {
            let now = start + Duration::from_secs(after_s);
            (0..100).take_while(|_| budget.take(now, 1_000, 100)).count()
        };
        assert_eq!(writes(&mut budget, 0), 40);
        assert_eq!(writes(&mut budget, 359), 0);
        assert_eq!(writes(&mut budget, 1_800), 5);
        assert_eq!(writes(&mut budget, 5_400), 10);
        assert_eq!(writes(&mut budget, 1_000_000), 40);
        // Asked every second, it comes back all the same.
        let asked = (1_000_001..=1_003_600).map(|second| writes(&mut budget, second)).sum::<usize>();
        assert_eq!(asked, 10);
        assert_eq!(budget.left(start, 0), 0, "switched off");
    }
}
