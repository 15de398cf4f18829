//! What is due when.

use super::machine::Number;
use crate::agenda::Agenda;
use narmesh_protocol::Statement;

/// What is due at some moment.
pub(super) enum Event {
    Request {
        from: Number,
        to: Number,
        id: u64,
        bytes: Vec<u8>,
    },
    Reply {
        from: Number,
        to: Number,
        id: u64,
        bytes: Vec<u8>,
    },
    Tick(Number),
    /// A machine attests under this date, with its own key or a stolen one.
    Attest {
        machine: Number,
        signer: Number,
        statement: Statement,
        at_ms: u64,
    },
    /// A machine takes in a narinfo with a bare signature of a builder, on what the builder substituted.
    Bare {
        machine: Number,
        signer: Number,
        statement: Statement,
    },
    Cut,
    GivenUp {
        link: usize,
    },
    Redial {
        link: usize,
    },
}

/// The clock of this world.
pub(super) type Schedule = Agenda<Event>;
