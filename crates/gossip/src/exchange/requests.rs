//! Our requests that have no answer yet.

use crate::io::{Io, Timer};
use crate::output::Output;
use libp2p_identity::PeerId;
use narmesh_machine::{Moment, RequestTable};
use narmesh_protocol::wire::GossipRequest;

/// A request without an answer counts as failed after this, milliseconds.
const TIMEOUT_MS: u64 = 10_000;

/// What one of our requests was for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Sync,
    Pull {
        owner: PeerId,
        /// The `seq` that a delta may build on, if we hold a body of the same epoch.
        have_seq: Option<u64>,
    },
}

impl Purpose {
    fn is_pull(&self) -> bool {
        matches!(self, Self::Pull { .. })
    }
}

/// All of them: at most one sync for each connection, and 16 pulls.
#[derive(Debug)]
pub(crate) struct Requests {
    sent: RequestTable<PeerId, Purpose>,
    pulls: usize,
}

impl Default for Requests {
    fn default() -> Self {
        Self { sent: RequestTable::new(TIMEOUT_MS), pulls: 0 }
    }
}

impl Requests {
    /// Asks a peer.
    pub(crate) fn send(&mut self, io: &mut Io, to: PeerId, purpose: Purpose, request: &GossipRequest) -> u64 {
        self.pulls += usize::from(purpose.is_pull());
        let id = self.sent.add(io.now.moment, to, purpose);
        io.timers.set(Timer::Requests, self.sent.deadline());
        let bytes = request.encode().expect("a sync has at most 2,048 entries, a pull is small");
        io.push(Output::Request { to, id, bytes });
        id
    }

    /// Takes a request off the list; an answer that comes later is ignored.
    pub(crate) fn take(&mut self, io: &mut Io, id: u64) {
        let purpose = self.sent.take(id);
        self.note_taken(io, purpose.as_ref());
    }

    /// Takes a request that `from` has answered; `None` when it was not asked that.
    pub(crate) fn take_answered(&mut self, io: &mut Io, from: PeerId, id: u64) -> Option<Purpose> {
        let purpose = self.sent.take_answered(from, id);
        self.note_taken(io, purpose.as_ref());
        purpose
    }

    fn note_taken(&mut self, io: &mut Io, purpose: Option<&Purpose>) {
        self.pulls -= usize::from(purpose.is_some_and(Purpose::is_pull));
        io.timers.set(Timer::Requests, self.sent.deadline());
    }

    /// The first request that has waited too long.
    pub(crate) fn find_overdue(&self, now: Moment) -> Option<(u64, PeerId)> {
        self.sent.find_overdue(now)
    }

    /// The requests to one peer.
    pub(crate) fn ids_to(&self, peer: PeerId) -> Vec<u64> {
        self.sent.ids_to(peer)
    }

    /// How many of them are pulls.
    pub(crate) fn pulls(&self) -> usize {
        self.pulls
    }

    /// How many there are; asserts that pulls are counted right.
    #[cfg(test)]
    pub(crate) fn check(&self) -> usize {
        assert_eq!(self.pulls, self.sent.questions().filter(|purpose| purpose.is_pull()).count());
        self.sent.questions().count()
    }
}
