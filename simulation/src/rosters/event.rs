//! What is due when, and the links that it happens on.

use super::machine::Number;
use narmesh_protocol::SignedRoster;
use std::sync::Arc;

/// Two machines that are connected when they can be.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) ends: [Number; 2],
    /// Whether both have each other in their configuration, too.
    pub(super) is_configured: bool,
    pub(super) is_open: bool,
    /// How often it was opened: what was sent before is lost.
    pub(super) opened: u32,
}

impl Link {
    pub(super) fn new(a: Number, b: Number, is_configured: bool) -> Self {
        Self { ends: [a, b], is_configured, is_open: false, opened: 0 }
    }
}

/// What is due at some moment.
#[derive(Debug)]
pub(super) enum Event {
    /// Something arrives over the link, if that is still the same connection.
    Arrives {
        link: usize,
        opened: u32,
        from: Number,
        message: Message,
    },
    /// A request is given up.
    Fails {
        machine: Number,
        id: u64,
    },
    /// A roster that was heard is in force.
    Keep {
        machine: Number,
        roster: Arc<SignedRoster>,
    },
    /// A core's deadline.
    Tick(Number),
    /// A signer admits a machine, removes one, or changes a name.
    Join {
        signer: Number,
    },
    Remove {
        signer: Number,
    },
    Rename {
        signer: Number,
    },
    Crash {
        machine: Number,
    },
    Start {
        machine: Number,
    },
    Cut,
    GivenUp {
        link: usize,
    },
    Redial {
        link: usize,
    },
}

impl Event {
    /// The same edit by this signer.
    pub(super) fn by(self, signer: Number) -> Self {
        match self {
            Self::Join { .. } => Self::Join { signer },
            Self::Remove { .. } => Self::Remove { signer },
            other => other,
        }
    }
}

/// What is sent.
#[derive(Debug)]
pub(super) enum Message {
    Request { id: u64, bytes: Vec<u8> },
    Reply { id: u64, bytes: Vec<u8> },
}
