//! How the members of a mesh come to the newest roster: a state machine without I/O.
//!
//! **Purpose.** Every member keeps the roster that counts ([`RosterVersion`]), and gets it from any other member.
//!
//! **Contract.** The caller passes each [`Input`] to [`RosterExchange::handle`] with the time, performs what
//! [`RosterExchange::poll`] returns, and passes [`Input::Tick`] at [`RosterExchange::deadline`]. It bounds how often a peer
//! may ask, keeps the rosters that are heard, and says with [`Input::Held`] which one is in force.
//!
//! **Walk.** A new connection, a peer that names a newer roster, and once a minute the next one of the connected peers are
//! reasons to ask. Those peers are asked one after the other, because a roster may have a megabyte and all may have the
//! same one; a peer that does not answer for [`PATIENCE_MS`] holds nobody up longer. When another roster is in force, all
//! connected peers that are not known to have it are asked at once: the question names it, which tells them. A machine that
//! signs rosters notes its edits in a [`Journal`], and makes those again that a newer roster lacks.
//!
//! **Invariants.** No roster is heard that the mesh key did not sign, nor one that is not newer than the one in force.
//! Nobody is given a roster on which it is not. What is kept of peers is bounded by the number of connected ones.
//!
//! [`RosterVersion`]: narmesh_protocol::RosterVersion

mod exchange;
mod journal;
mod membership;

pub use exchange::{Fault, Input, Output, PATIENCE_MS, ROUND_MS, RosterExchange};
pub use journal::Journal;
pub use membership::Membership;
pub use narmesh_machine::Moment;
