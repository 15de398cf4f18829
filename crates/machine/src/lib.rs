//! What a state machine without I/O stands on: time, chance, timers, rates, and the requests that it waits for.
//!
//! **Purpose.** The gossip core and the exchange of attestations get time and randomness from outside and are asked for
//! nothing but their outputs. What both need for that is here, once.
//!
//! **Contract.** Nothing here looks at a clock or at the system's randomness. Time is a [`Moment`] that the caller passes, and
//! every choice of [`Chance`] follows from its seed. So the same calls give the same results on any machine.
//!
//! **Walk.** [`Moment`] and [`Now`] are the time of an input. [`Timers`] hold what is due when, [`Tokens`] how much somebody has
//! used up of a [`Bucket`], [`RequestTable`] who owes us an answer, and [`Chance`] draws.
//!
//! **Invariants.** Arithmetic on time and on tokens stops at its ends and never wraps. There is at most one timer for each
//! purpose. No request is answered by a peer that was not asked it, and none waits longer than its table's timeout.

mod chance;
mod requests;
mod time;
mod timers;
mod tokens;

pub use chance::Chance;
pub use requests::RequestTable;
pub use time::{Moment, Now};
pub use timers::Timers;
pub use tokens::{Bucket, Tokens};
