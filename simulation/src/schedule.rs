//! The virtual clock, and what is due when.

use crate::message::Message;
use crate::number::Number;
use crate::traffic::Kind;
use std::cmp::{Ordering, Reverse};

/// The wall clock of a machine without skew at the beginning, milliseconds since 1970: 2026-11-21.
pub(crate) const WALL_MS: u64 = 1_795_219_200_000;

/// What is due at some moment.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Tick(Number),
    Heartbeat(Number, u64),
    /// A message reaches the receiver's end of the link.
    Arrive {
        from: Number,
        to: Number,
        connection: u64,
        kind: Kind,
        payload: usize,
        message: Message,
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
pub(crate) struct Due {
    pub(crate) order: Reverse<(u64, u64)>,
    /// Boxed: a heap moves its entries about.
    pub(crate) happening: Box<Happening>,
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
