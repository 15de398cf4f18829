//! What some peer holds arrives: over slow lines, for parallel clients, through restarts and queues, with the three
//! versions of Nix that users have.
//!
//! Every story adds a row to a table that `./test.sh` prints: the result before, the result now, and what must be.

#![expect(clippy::unwrap_used, reason = "a story fails by panicking")]
#![expect(clippy::print_stdout, reason = "what was measured, shown with a failure or on demand")]

mod burst;
mod holders;
mod queues;
mod report;
mod restarts;
mod slow_lines;
mod waiting;

use std::io::Write as _;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use narmesh_tests::Network;

/// A story that needs the processors locks it for writing; one that waits for slow lines, for reading.
static MACHINE: RwLock<()> = RwLock::new(());

/// Waits for the turn of a story that mostly waits: others of its kind run beside it.
fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the turn of a story that measures speed: nothing runs beside it.
fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Whether networks can be made here. If not, says so on stderr itself, because the test runner would hide it.
fn has_networks() -> bool {
    let Some(why) = Network::not_permitted() else { return true };
    writeln!(std::io::stderr(), "SKIPPED, a story on real networks: {why}").ok();
    false
}
