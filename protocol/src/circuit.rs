//! The messages by which members that cannot reach each other get a connection: over a relay, or at addresses that others
//! have seen.

use crate::codec::{self, CodecError};
use crate::wire::message;
use std::net::SocketAddr;

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
        /// The node key of the member that waits.
        from: [u8; 32],
        /// What the receiver shows the relay.
        ticket: [u8; 16],
    },
    /// Asks the receiver to connect to all of these addresses now, while the sender connects to those of the answer.
    Meet {
        /// Where the sender waits, at most [`CircuitRequest::ADDRESSES_MAX`].
        addresses: Vec<SocketAddr>,
        /// What the sender shows on the connection that it chooses.
        token: [u8; 16],
    },
}
message!(CircuitRequest, 160);

impl CircuitRequest {
    /// Most addresses in a request or an answer.
    pub const ADDRESSES_MAX: usize = 4;
}

/// Answers of `/narmesh/1/circuit`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum CircuitReply {
    /// Answers `Open`: what the asker shows the relay.
    Ticket([u8; 16]),
    /// Answers `Come`: it connects.
    Coming,
    /// The answerer is no relay, the member is not there, or it wants no circuit.
    Refused,
    /// Answers `Meet`: where the answerer waits, at most [`CircuitRequest::ADDRESSES_MAX`].
    Meeting(Vec<SocketAddr>),
    /// There are too many circuits or requests; the asker may ask again later.
    Busy,
}
message!(CircuitReply, 128);

/// The first frame on a connection of `/narmesh/1/relay`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum RelayHello {
    /// Shows a ticket, and waits for the other member.
    Join([u8; 16]),
    /// Asks from which address the connection comes.
    Observe,
}
message!(RelayHello, 32);

/// The answer to a [`RelayHello`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum RelayWelcome {
    /// The other member is there: its bytes follow.
    Joined,
    /// There is no such ticket, or the other member did not come.
    Refused,
    /// Answers `Observe`.
    Observed(SocketAddr),
}
message!(RelayWelcome, 32);
