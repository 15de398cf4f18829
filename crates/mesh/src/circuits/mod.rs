//! Connections with members that no dial reaches: a relay, which both can reach, passes bytes on between them, or tells each
//! where it sees the other come from, so that both can connect to each other at the same moment.
//!
//! Walk: [`Circuits::open`] asks a relay for a circuit and connects to it; [`Circuits::join`] is the other end's part.
//! [`Relay`] is the relay's side. [`Circuits::meet`] and `meeting` connect two
//! members behind NATs. [`CircuitTransport`] makes transport connections of all of them, so that TLS, the allowlist
//! and every protocol work on them as on any other connection.
//! Invariants: TLS runs from member to member, so a relay reads nothing; a relay passes on bytes only between two peers of
//! its allowlist, one of which asked for the other, who agreed; all that it keeps for them has a bound; one peer
//! has us connect to few addresses at a time, once a second at most.

mod arrived;
mod connect;
mod meeting;
mod relay;
mod socket;
mod splice;
mod transport;
mod way;

pub(crate) use arrived::{Arrived, arrivals};
pub(crate) use connect::{Circuits, Order};
pub(crate) use meeting::Part;
pub(crate) use relay::Relay;
pub use relay::{RELAY_BYTES_PER_S_MIN, RelayView};
pub(crate) use transport::{CircuitTransport, listen_address};
pub use way::Way;
pub(crate) use way::{meeting_place, over_relay, relay_of};

/// Bytes that a relay holds for the circuits of one member.
#[cfg(test)]
pub(crate) fn relayed_bytes_max() -> usize {
    relay::PER_MEMBER_MAX * 2 * splice::PIECE_BYTES
}
