//! The connected peers, and when we sync with each.

use crate::io::{Io, Timer};
use libp2p_identity::PeerId;
use narmesh_machine::Moment;
use std::collections::BTreeMap;

/// The least time between two syncs with a peer that shows us newer summaries than we have heard of, milliseconds.
const ASK_BACK_MS: u64 = 5_000;
/// News from a sync did not come by gossip. So after this time, and up to as much again, we sync with the other
/// peers too, and news crosses a healed network hop by hop in seconds. It is long enough to have pulled the
/// bodies. Milliseconds, a guess.
const SPREAD_MS: u64 = 1_000;
/// The most greetings under way or just answered: when a node starts, each of them brings the same news.
const GREETINGS_AT_ONCE: usize = 2;
/// Further greetings wait this long and up to as much again, milliseconds: by then most news is known. A guess.
const GREETING_WAIT_MS: u64 = 200;
/// Wait after an unanswered greeting, milliseconds; doubled each time, up to 64 times this.
const GREET_AGAIN_MS: u64 = 1_000;

/// A connected peer.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// How many of our syncs were answered on this connection.
    answers: u64,
    /// How many syncs in a row were not answered.
    failures: u32,
    /// Whether a sync of ours waits for its answer.
    asking: bool,
    /// When we last sent a sync.
    asked: Moment,
    /// When either side last sent a sync.
    compared: Moment,
}

/// Connected peers of the allowlist, each once.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    by_peer: BTreeMap<PeerId, Connection>,
}

impl Connections {
    pub(crate) fn contains(&self, peer: &PeerId) -> bool {
        self.by_peer.contains_key(peer)
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.by_peer.keys()
    }

    /// Adds a peer. Returns how long its greeting waits, milliseconds, so that not every answer brings the same news.
    pub(crate) fn add(&mut self, io: &mut Io, peer: PeerId) -> u64 {
        self.by_peer.insert(peer, Connection::default());
        let moment = io.now.moment;
        let just_asked = |connection: &&Connection| {
            connection.asking || (connection.answers > 0 && moment.since(connection.asked) < GREETING_WAIT_MS)
        };
        if self.by_peer.values().filter(just_asked).count() < GREETINGS_AT_ONCE {
            return 0;
        }
        GREETING_WAIT_MS + io.chance.draw_below(GREETING_WAIT_MS)
    }

    /// Removes a peer; false when it was not connected.
    pub(crate) fn remove(&mut self, io: &mut Io, peer: &PeerId) -> bool {
        let was_connected = self.by_peer.remove(peer).is_some();
        if was_connected {
            io.timers.set(Timer::Greet(*peer), None);
        }
        was_connected
    }

    /// Schedules the next sync with a connected peer.
    pub(crate) fn schedule_sync(&self, io: &mut Io, peer: PeerId, in_ms: u64) {
        if self.by_peer.contains_key(&peer) {
            io.timers.set(Timer::Greet(peer), Some(io.now.moment + in_ms));
        }
    }

    /// Schedules a sync with all other peers: they see what we hold, and ask back for what they lack.
    pub(crate) fn schedule_spread(&self, io: &mut Io, told_by: PeerId) {
        let moment = io.now.moment;
        for (peer, connection) in self.by_peer.iter().filter(|(peer, _)| **peer != told_by) {
            let due = (moment + SPREAD_MS + io.chance.draw_below(SPREAD_MS)).max(connection.asked + ASK_BACK_MS);
            let set = io.timers.get(Timer::Greet(*peer));
            if set.is_none_or(|set| set > due || set < moment + SPREAD_MS) {
                self.schedule_sync(io, *peer, due.since(moment));
            }
        }
    }

    /// The peer among those that `may_ask` allows whose last comparison is longest ago, so that each gets its turn within as
    /// many intervals as there are connections.
    pub(crate) fn find_longest_uncompared(&self, may_ask: impl Fn(&PeerId) -> bool) -> Option<PeerId> {
        let idle = self.by_peer.iter().filter(|(peer, connection)| !connection.asking && may_ask(peer));
        idle.min_by_key(|(_, connection)| connection.compared).map(|(peer, _)| *peer)
    }

    /// Notes that we sync with a peer; false when it is not connected, or has not answered the last sync yet.
    pub(crate) fn begin_sync(&mut self, now: Moment, peer: &PeerId) -> bool {
        let Some(connection) = self.by_peer.get_mut(peer).filter(|connection| !connection.asking) else { return false };
        (connection.asking, connection.asked, connection.compared) = (true, now, now);
        true
    }

    /// Notes that our sync is over; false when the peer is not connected.
    pub(crate) fn end_sync(&mut self, peer: &PeerId) -> bool {
        self.by_peer.get_mut(peer).map(|connection| connection.asking = false).is_some()
    }

    /// Notes that a peer heard us, whether or not it has anything to share.
    pub(crate) fn note_heard(&mut self, peer: &PeerId) {
        if let Some(connection) = self.by_peer.get_mut(peer) {
            connection.failures = 0;
        }
    }

    /// Counts an answer to a sync; true when it is the first on this connection.
    pub(crate) fn count_answer(&mut self, peer: &PeerId) -> bool {
        self.note_heard(peer);
        let Some(connection) = self.by_peer.get_mut(peer) else { return false };
        connection.answers += 1;
        connection.answers == 1
    }

    /// Our sync was not answered: it is tried again later, with a longer wait each time.
    pub(crate) fn retry_later(&mut self, io: &mut Io, peer: PeerId) {
        let Some(connection) = self.by_peer.get_mut(&peer) else { return };
        let wait_ms = GREET_AGAIN_MS << connection.failures.min(6);
        connection.failures = connection.failures.saturating_add(1);
        self.schedule_sync(io, peer, wait_ms);
    }

    /// A peer synced with us. When it holds newer summaries than we have heard of, we soon sync with it.
    pub(crate) fn note_compared(&mut self, io: &mut Io, peer: PeerId, holds_newer: bool) {
        let moment = io.now.moment;
        let Some(connection) = self.by_peer.get_mut(&peer) else { return };
        connection.compared = moment;
        let recently = moment.since(connection.asked) < ASK_BACK_MS;
        // The greeting of a new connection comes soon enough, and its answer is smaller by then.
        let greeting = connection.answers == 0 && io.timers.get(Timer::Greet(peer)).is_some();
        if holds_newer && !recently && !greeting {
            self.schedule_sync(io, peer, 0);
        }
    }
}
