//! The clock of this machine, when the daemon starts.

use super::unix_s;

/// The start of 2020. No clock that was ever set is earlier; a machine without a battery for its clock starts in 1970.
const CLOCK_MIN_UNIX_S: u64 = 1_577_836_800;

pub(super) fn warn_if_clock_is_unset() {
    if unix_s() < CLOCK_MIN_UNIX_S {
        tracing::warn!(
            "the clock is set to about 1970: until it is right, peers cannot be reached (their certificates are not yet valid)"
        );
    }
}
