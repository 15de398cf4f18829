//! The two clocks of the cores.

use narmesh_machine::{Moment, Now};
use rustix::time::{ClockId, clock_gettime};
use std::time::{SystemTime, UNIX_EPOCH};

/// Both, in milliseconds.
pub fn now() -> Now {
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    Now { moment: moment(), wall_ms: u64::try_from(wall_ms).unwrap_or(u64::MAX) }
}

/// `CLOCK_BOOTTIME`, which runs on in suspend.
pub(crate) fn moment() -> Moment {
    let boot = clock_gettime(ClockId::Boottime);
    Moment(u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(boot.tv_nsec).unwrap_or(0) / 1_000_000)
}
