//! Time as the core sees it: passed in by the caller, never read from a clock.

use std::ops::Add;

/// Milliseconds of a monotonic clock that runs on in suspend (CLOCK_BOOTTIME in the daemon, virtual in the simulation).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// Milliseconds from `earlier` to here, 0 when `earlier` is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Later by that many milliseconds; stops at the end of time instead of wrapping.
impl Add<u64> for Moment {
    type Output = Self;
    fn add(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// Both clocks at one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// For every duration: lifetimes, timeouts, delays.
    pub moment: Moment,
    /// Wall clock, milliseconds since 1970: dates our announcements, and refuses first sights that are more than a day off.
    pub wall_ms: u64,
}
