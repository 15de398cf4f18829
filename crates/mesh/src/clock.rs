//! The two clocks of the cores.

use narmesh_gossip::{Moment, Now};
use rustix::time::{ClockId, clock_gettime};
use std::time::{SystemTime, UNIX_EPOCH};

/// `CLOCK_BOOTTIME`, which runs on in suspend, and the wall clock, both in milliseconds.
pub fn now() -> Now {
    let boot = clock_gettime(ClockId::Boottime);
    let moment_ms =
        u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(boot.tv_nsec).unwrap_or(0) / 1_000_000;
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    Now { moment: Moment(moment_ms), wall_ms: u64::try_from(wall_ms).unwrap_or(u64::MAX) }
}
