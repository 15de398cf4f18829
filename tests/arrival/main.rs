//! What somebody holds arrives: slow lines, parallel clients, restarts, queues, with the three versions of Nix that users have.
//!
//! Every story adds a row to a table that `./test.sh` prints: what was before, what is now, what must be.

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

/// Held by a story that takes processors, for writing; by one that waits for slow lines, for reading.
static MACHINE: RwLock<()> = RwLock::new(());

/// The turn of a story that mostly waits: others of its kind run beside it.
fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// The turn of a story that compares how quick things are.
fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Whether networks can be made here; where not, that is said loudly, past the test runner that would hide it.
fn has_networks() -> bool {
    let Some(why) = Network::not_permitted() else { return true };
    writeln!(std::io::stderr(), "SKIPPED, a story on real networks: {why}").ok();
    false
}
