//! Connections with members that no dial reaches: a relay, which both can reach, passes bytes on between them.
//!
//! Walk: [`Circuits::open`] asks a relay for a circuit and connects to it; [`Circuits::join`] is the other end's part.
//! [`Relay`] is the relay's side. [`CircuitTransport`] makes transport connections of circuits, so that TLS, the allowlist
//! and every protocol work on them as on any other connection.
//! Invariants: TLS runs from member to member, so a relay reads nothing; a relay passes on bytes only between two peers of
//! its allowlist, one of which asked for the other, who agreed; all that it keeps for them has a bound.

mod connect;
mod relay;
mod splice;
mod transport;
mod way;

pub(crate) use connect::{Circuits, Order};
pub(crate) use relay::Relay;
pub use relay::RelayView;
pub(crate) use transport::{Arrived, CircuitTransport, arrivals, listen_address};
pub use way::Way;
pub(crate) use way::{over_relay, relay_of};
