//! The virtual clock, and what is due when.

use super::machine::Number;
use narmesh_protocol::Statement;
use std::collections::BTreeMap;

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

/// The clock, and all that is due.
#[derive(Default)]
pub(super) struct Schedule {
    now_ms: u64,
    due: BTreeMap<(u64, u64), Event>,
    counter: u64,
}

impl Schedule {
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// A number that nothing else of this run has.
    pub(super) fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(super) fn at_ms(&mut self, at_ms: u64, event: Event) {
        let number = self.next_number();
        self.due.insert((at_ms.max(self.now_ms), number), event);
    }

    /// Moves the clock to what is due next and takes it out, or moves it to `end_ms` if nothing is due until then.
    pub(super) fn pop_until(&mut self, end_ms: u64) -> Option<Event> {
        let next = self.due.first_entry().filter(|first| first.key().0 <= end_ms);
        let next = next.map(|first| first.remove_entry());
        self.now_ms = next.as_ref().map_or(end_ms, |((at_ms, _), _)| *at_ms);
        next.map(|(_, event)| event)
    }
}
