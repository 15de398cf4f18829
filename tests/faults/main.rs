//! Faults of the machine that a daemon runs on: power cuts, full disks, locked databases, wrong clocks, sleep.
//!
//! Under each of them users are promised the same: no request is answered with an error or later than its deadline, builds
//! succeed with the gateway as the only substituter, the log names the fault, and all is well again when the fault ends.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what was measured, shown with a failure or on demand")]

mod addresses;
mod clock;
mod database;
mod descriptors;
mod disk;
mod kills;
mod ledger;
mod load;
mod slow_readers;
mod suspend;
