//! The virtual clock, and what is due when.

use crate::message::{Message, Transmission};
use crate::number::Number;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// The wall clock of a machine without skew at the beginning, milliseconds since 1970: 2026-11-21.
pub(crate) const WALL_MS: u64 = 1_795_219_200_000;

/// What is due at some moment.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Tick(Number),
    Heartbeat(Number, u64),
    /// A message reaches the receiver's end of the link.
    Arrive {
        connection: u64,
        sent: Transmission,
    },
    /// A message is received in full, at the bandwidth of the receiver's line.
    Deliver {
        from: Number,
        to: Number,
        connection: u64,
        message: Message,
    },
    Dial {
        link: usize,
        plan: u64,
    },
    Connected {
        link: usize,
        plan: u64,
        dialler: Number,
    },
    Resume {
        link: usize,
        connection: u64,
    },
    GivenUp {
        link: usize,
        connection: u64,
        blocked_us: u64,
    },
    Fault,
    Churn {
        number: Number,
        collect: bool,
    },
    Lookups,
    Sample,
    Trick(Number),
    Scripted {
        event: usize,
        number: Number,
    },
    Wake(Number),
    Stop(Number),
    Start {
        number: Number,
        keep_disk: bool,
    },
    /// A machine has read its store.
    Read {
        number: Number,
        reading: u64,
    },
    Mend(usize),
    Reunite(u64),
    /// A machine is somewhere else now.
    Moved(Number),
    /// A machine no longer withholds anything.
    Frank(Number),
    /// An event ended: from now on the time until all tables are equal counts for this figure.
    Watched(usize),
    Look,
    Trust(Number, Number),
}

/// What is due, in its order: by time, then by when it was planned.
#[derive(Debug)]
struct Due {
    order: Reverse<(u64, u64)>,
    /// Boxed: a heap moves its entries about.
    happening: Box<Happening>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order)
    }
}

/// The clock, and all that is due.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    now_us: u64,
    due: BinaryHeap<Due>,
    counter: u64,
}

impl Schedule {
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// A number that nothing else of this run has.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(crate) fn at_us(&mut self, at_us: u64, happening: Happening) {
        let order = Reverse((at_us, self.next_number()));
        self.due.push(Due { order, happening: Box::new(happening) });
    }

    pub(crate) fn after_us(&mut self, us: u64, happening: Happening) {
        self.at_us(self.now_us + us, happening);
    }

    /// Moves the clock to what is due next and takes it out, or moves it to `end_us` if nothing is due until then.
    pub(crate) fn pop_until(&mut self, end_us: u64) -> Option<Happening> {
        let is_due = self.due.peek().is_some_and(|due| due.order.0.0 <= end_us);
        let next = if is_due { self.due.pop() } else { None };
        self.now_us = next.as_ref().map_or(end_us, |due| due.order.0.0);
        next.map(|due| *due.happening)
    }

    /// Takes out everything that ends a fault, in its order, and drops faults, changes and events that are still to come.
    pub(crate) fn take_ends_of_faults(&mut self) -> Vec<Happening> {
        let (mut ends, mut rest) = (Vec::new(), Vec::new());
        for due in std::mem::take(&mut self.due).into_sorted_vec().into_iter().rev() {
            match *due.happening {
                Happening::Start { .. }
                | Happening::Wake(_)
                | Happening::Stop(_)
                | Happening::Read { .. }
                | Happening::Mend(_)
                | Happening::Reunite(_)
                | Happening::Moved(_)
                | Happening::Frank(_)
                | Happening::Trust(..) => ends.push(*due.happening),
                Happening::Fault | Happening::Churn { .. } | Happening::Scripted { .. } => {}
                Happening::Tick(_)
                | Happening::Heartbeat(..)
                | Happening::Arrive { .. }
                | Happening::Deliver { .. }
                | Happening::Dial { .. }
                | Happening::Connected { .. }
                | Happening::Resume { .. }
                | Happening::GivenUp { .. }
                | Happening::Lookups
                | Happening::Sample
                | Happening::Watched(_)
                | Happening::Look
                | Happening::Trick(_) => rest.push(due),
            }
        }
        self.due.extend(rest);
        ends
    }
}
