//! Our requests that have no answer yet.

use crate::io::Io;
use crate::output::Output;
use crate::time::Moment;
use crate::timers::Timer;
use libp2p_identity::PeerId;
use narmesh_protocol::wire::GossipRequest;
use std::collections::BTreeMap;

/// A request without an answer counts as failed after this, milliseconds.
const TIMEOUT_MS: u64 = 10_000;

/// What one of our requests was for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    Sync,
    Pull {
        owner: PeerId,
        /// The `seq` that a delta may build on, if we hold a body of the same epoch.
        have_seq: Option<u64>,
    },
}

/// All of them: at most one sync for each connection, and 16 pulls.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// By id. Ids grow with time and all wait equally long, so the first one is overdue first.
    sent: BTreeMap<u64, (PeerId, Question, Moment)>,
    last_id: u64,
    pulls: usize,
}

impl Requests {
    /// Asks a peer.
    pub(crate) fn send(&mut self, io: &mut Io, to: PeerId, question: Question, request: &GossipRequest) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        self.pulls += usize::from(matches!(question, Question::Pull { .. }));
        self.sent.insert(id, (to, question, io.now.moment + TIMEOUT_MS));
        self.set_timer(io);
        let bytes = request.encode().expect("a sync has at most 2,048 entries, a pull is small");
        io.push(Output::Request { to, id, bytes });
        id
    }

    /// Takes a request off the list; an answer that comes later is ignored.
    pub(crate) fn take(&mut self, io: &mut Io, id: u64) -> Option<Question> {
        let (_, question, _) = self.sent.remove(&id)?;
        self.pulls -= usize::from(matches!(question, Question::Pull { .. }));
        self.set_timer(io);
        Some(question)
    }

    /// Takes a request that `from` has answered; `None` when it was not asked that.
    pub(crate) fn take_answered(&mut self, io: &mut Io, from: PeerId, id: u64) -> Option<Question> {
        self.sent.get(&id).filter(|(to, ..)| *to == from)?;
        self.take(io, id)
    }

    /// The first request that has waited too long.
    pub(crate) fn find_overdue(&self, now: Moment) -> Option<(u64, PeerId)> {
        let (id, (to, _, overdue)) = self.sent.first_key_value()?;
        (*overdue <= now).then_some((*id, *to))
    }

    /// The requests to one peer.
    pub(crate) fn ids_to(&self, peer: &PeerId) -> Vec<u64> {
        self.sent.iter().filter(|(_, (to, ..))| to == peer).map(|(id, _)| *id).collect()
    }

    /// How many of them are pulls.
    pub(crate) fn pulls(&self) -> usize {
        self.pulls
    }

    fn set_timer(&self, io: &mut Io) {
        io.timers.set(Timer::Requests, self.sent.first_key_value().map(|(_, (.., overdue))| *overdue));
    }

    /// How many there are; asserts that pulls are counted right.
    #[cfg(test)]
    pub(crate) fn check(&self) -> usize {
        assert_eq!(self.pulls, self.sent.values().filter(|(_, it, _)| matches!(it, Question::Pull { .. })).count());
        self.sent.len()
    }
}
