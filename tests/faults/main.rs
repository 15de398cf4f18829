//! What the machine does to a daemon: power cuts, full disks, locked databases, wrong clocks, sleep.
//!
//! In each of them users are promised the same: no request is answered with an error or later than its deadline, builds
//! succeed with the gateway as the only substituter, it is said in the log, and it ends by itself when the fault does.

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
