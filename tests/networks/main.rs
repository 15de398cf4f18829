//! Real daemons on networks that break, in namespaces of their own.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "nobody links a test")]
#![expect(clippy::print_stdout, reason = "what was measured, shown with a failure or on demand")]

#[path = "../hostile/bulk.rs"]
mod bulk;
mod clock;
mod crowd;
mod families;
#[path = "../hostile/filter.rs"]
mod filter;
mod first_path;
mod fleet;
#[path = "../hostile/formats.rs"]
#[expect(dead_code, reason = "the second implementation, of which little is needed here")]
mod formats;
mod lan;
mod links;
#[path = "../hostile/log_wire.rs"]
#[expect(dead_code, reason = "the second implementation, of which little is needed here")]
mod log_wire;
mod members;
mod moved;
mod moved_in_nar;
mod nat;
#[path = "../hostile/peer.rs"]
#[expect(dead_code, reason = "the second implementation, of which little is needed here")]
mod peer;
#[path = "../hostile/quorum_wire.rs"]
#[expect(dead_code, reason = "the second implementation, of which little is needed here")]
mod quorum_wire;
mod report;
mod second_connection;
mod several;
mod simulated;
mod sites;
#[path = "../hostile/swarm.rs"]
mod swarm;
#[path = "../hostile/tree_wire.rs"]
#[expect(dead_code, reason = "the second implementation, of which little is needed here")]
mod tree_wire;
mod unresolved;
#[path = "../hostile/wire.rs"]
#[expect(dead_code, reason = "the second implementation, of which little is needed here")]
mod wire;

use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use narmesh_tests::Network;

/// Held by the story that runs: two at a time would disturb each other's measurements.
type Turn = MutexGuard<'static, ()>;

/// Waits for the turn of a story; `None` where networks cannot be made.
fn turn() -> Option<Turn> {
    static ONE: Mutex<()> = Mutex::new(());
    let turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    is_permitted().then_some(turn)
}

/// Whether networks can be made; says on stderr itself that they cannot, because the test runner would hide it. A story that
/// mostly waits, and measures nothing, asks only this: it may run beside the one that has its turn.
fn is_permitted() -> bool {
    let Some(why) = Network::not_permitted() else { return true };
    writeln!(std::io::stderr(), "SKIPPED, a story on real networks: {why}").ok();
    false
}
