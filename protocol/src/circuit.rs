//! The messages by which members that cannot reach each other get a connection: over a relay.

use crate::codec::{self, CodecError};
use crate::wire::message;

/// Request-response protocol of [`CircuitRequest`].
pub const CIRCUIT_PROTOCOL: &str = "/narmesh/1/circuit";
/// What a member speaks with a relay on a connection of its own, in the place of TLS: one [`RelayHello`], and after
/// [`RelayWelcome::Joined`] the bytes of the other member.
pub const RELAY_PROTOCOL: &str = "/narmesh/1/relay";
/// Requests of `/narmesh/1/circuit`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum CircuitRequest {
    /// Asks a relay for a circuit to the member with this node key.
    Open([u8; 32]),
    /// From a relay: the member with this node key waits there for the receiver.
    Come {
        /// Who waits.
        from: [u8; 32],
        /// What the receiver shows the relay.
        ticket: [u8; 16],
    },
}
message!(CircuitRequest, 128);

/// Answers of `/narmesh/1/circuit`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum CircuitReply {
    /// Answers `Open`: what the asker shows the relay.
    Ticket([u8; 16]),
    /// Answers `Come`: it connects.
    Coming,
    /// The answerer is no relay, the member is not there, or it wants no circuit.
    Refused,
    /// There are too many circuits or requests; the asker may ask again later.
    Busy,
}
message!(CircuitReply, 32);

/// The first frame on a connection of `/narmesh/1/relay`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum RelayHello {
    /// Shows a ticket, and waits for the other member.
    Join([u8; 16]),
}
message!(RelayHello, 32);

/// The answer to a [`RelayHello`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum RelayWelcome {
    /// The other member is there: its bytes follow.
    Joined,
    /// There is no such ticket, or the other member did not come.
    Refused,
}
message!(RelayWelcome, 32);
