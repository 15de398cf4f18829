//! A virtual clock in milliseconds, and what is due when.

use std::collections::BTreeMap;

/// The clock, and all that is due.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    now_ms: u64,
    due: BTreeMap<(u64, u64), E>,
    counter: u64,
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { now_ms: 0, due: BTreeMap::new(), counter: 0 }
    }
}

impl<E> Agenda<E> {
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// A number that nothing else of this run has.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(crate) fn at_ms(&mut self, at_ms: u64, event: E) {
        let number = self.next_number();
        self.due.insert((at_ms.max(self.now_ms), number), event);
    }

    /// Moves the clock to what is due next and takes it out, or moves it to `end_ms` if nothing is due until then.
    pub(crate) fn pop_until(&mut self, end_ms: u64) -> Option<E> {
        let next = self.due.first_entry().filter(|first| first.key().0 <= end_ms);
        let next = next.map(|first| first.remove_entry());
        self.now_ms = next.as_ref().map_or(end_ms, |((at_ms, _), _)| *at_ms);
        next.map(|(_, event)| event)
    }
}
