//! The only place in the harness that waits.

use std::thread;
use std::time::{Duration, Instant};

/// A promise counts as broken after this many times the time that users are promised.
pub const PROMISE_FACTOR: u32 = 10;

/// Pause between two looks at a condition; short compared with every promise (the shortest is one second).
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The time a story gives to something that users are promised within `bound`.
#[must_use]
pub fn promised(bound: Duration) -> Duration {
    bound * PROMISE_FACTOR
}

/// Calls `look` until it returns a value; `None` after `timeout`.
pub fn poll<T>(timeout: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if started.elapsed() > timeout {
            return None;
        }
        thread::park_timeout(LOOK_INTERVAL);
    }
}

/// Calls `look` until it returns a value, and returns that.
///
/// # Panics
/// When nothing came within `timeout`; the message names `what`.
#[track_caller]
pub fn wait_for<T>(what: &str, timeout: Duration, look: impl FnMut() -> Option<T>) -> T {
    poll(timeout, look).unwrap_or_else(|| panic!("waited {timeout:?} in vain for: {what}"))
}

/// Waits until the condition holds.
///
/// # Panics
/// As [`wait_for`].
#[track_caller]
pub fn wait_until(what: &str, timeout: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, timeout, || holds().then_some(()));
}
