//! Decides whose turn it is to be sent a NAR: by peer, then in the order of asking. No clock, no task.
//!
//! There is no bound over all peers: whatever two of them ask for, a third finds its own turns free. What all of them
//! cost together is bounded by what one body may hold (see the parent module).

use crate::byte_rate::Ticket;
use libp2p::PeerId;
use narmesh_protocol::wire::SMALL_NAR_BYTES_MAX;
use std::collections::{HashMap, VecDeque};

/// Requests of one peer that may wait for their turn: as many as it may have streams.
pub(super) const WAITING_MAX: usize = 64;

/// Large and small NARs wait apart, so that the small ones, of which a closure mostly consists, are never behind the
/// large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Up to [`SMALL_NAR_BYTES_MAX`].
    Small,
    /// Above.
    Large,
}

impl Kind {
    pub(super) fn of(nar_size: u64) -> Self {
        if nar_size <= SMALL_NAR_BYTES_MAX { Self::Small } else { Self::Large }
    }
}

/// All requests that were let in.
#[derive(Debug)]
pub(super) struct Queue {
    per_peer: usize,
    peers: HashMap<(PeerId, Kind), Lane>,
    newest: u64,
    under_way: usize,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Lane {
    under_way: usize,
    waiting: VecDeque<Ticket>,
}

impl Queue {
    /// At most `per_peer` bodies of each kind under way per peer.
    pub(super) fn new(per_peer: usize) -> Self {
        Self { per_peer, peers: HashMap::new(), newest: 0, under_way: 0, is_closed: false }
    }

    /// Lets a request in: under way if its turn has come ([`Self::place`] is `None`), else at the end of its peer's
    /// queue. `None` when that is full.
    pub(super) fn enter(&mut self, peer: PeerId, kind: Kind) -> Option<Ticket> {
        let waiting =
            [Kind::Small, Kind::Large].map(|kind| self.peers.get(&(peer, kind)).map_or(0, |lane| lane.waiting.len()));
        // Small and large ones together: the bound is one of streams, and these are the peer's.
        if waiting.iter().sum::<usize>() >= WAITING_MAX {
            return None;
        }
        self.newest += 1;
        let ticket = Ticket(self.newest);
        self.peers.entry((peer, kind)).or_default().waiting.push_back(ticket);
        self.advance(peer, kind);
        Some(ticket)
    }

    /// The request's place in the queue, from 1; `None` once it is under way.
    pub(super) fn place(&self, peer: PeerId, kind: Kind, ticket: Ticket) -> Option<u32> {
        let waiting = &self.peers.get(&(peer, kind))?.waiting;
        let index = waiting.iter().position(|other| *other == ticket)?;
        u32::try_from(index + 1).ok()
    }

    /// Removes a request that is done with, or whose asker left.
    pub(super) fn leave(&mut self, peer: PeerId, kind: Kind, ticket: Ticket) {
        let Some(lane) = self.peers.get_mut(&(peer, kind)) else { return };
        match lane.waiting.iter().position(|other| *other == ticket) {
            Some(index) => drop(lane.waiting.remove(index)),
            None => {
                lane.under_way -= 1;
                self.under_way -= 1;
                // Its place is free, so the next one in the queue begins.
                self.advance(peer, kind);
            }
        }
        self.peers.retain(|_, lane| lane.under_way > 0 || !lane.waiting.is_empty());
    }

    /// From now on no further request gets its turn.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    /// Bodies under way to all peers.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    fn advance(&mut self, peer: PeerId, kind: Kind) {
        let Some(lane) = self.peers.get_mut(&(peer, kind)) else { return };
        while !self.is_closed && lane.under_way < self.per_peer && lane.waiting.pop_front().is_some() {
            lane.under_way += 1;
            self.under_way += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_get_their_turn_in_the_order_of_asking() {
        let (mut queue, peer) = (Queue::new(2), PeerId::random());
        let tickets: Vec<_> = (0..5).map(|_| queue.enter(peer, Kind::Large).unwrap()).collect();
        let places =
            |queue: &Queue| tickets.iter().map(|ticket| queue.place(peer, Kind::Large, *ticket)).collect::<Vec<_>>();
        assert_eq!(places(&queue), [None, None, Some(1), Some(2), Some(3)]);
        queue.leave(peer, Kind::Large, tickets[1]);
        assert_eq!(places(&queue), [None, None, None, Some(1), Some(2)]);
        queue.leave(peer, Kind::Large, tickets[3]);
        assert_eq!(places(&queue)[4], Some(1), "one that waited before it has left");
        assert_eq!(queue.under_way(), 2);
    }

    #[test]
    fn a_full_queue_of_one_peer_does_not_delay_another() {
        let (mut queue, greedy, other) = (Queue::new(2), PeerId::random(), PeerId::random());
        let let_in = (0..1_000).filter_map(|_| queue.enter(greedy, Kind::Large)).count();
        assert_eq!(let_in, 2 + WAITING_MAX);
        for (peer, kind) in [(other, Kind::Large), (other, Kind::Small)] {
            let ticket = queue.enter(peer, kind).unwrap();
            assert_eq!(queue.place(peer, kind, ticket), None);
        }
    }

    #[test]
    fn small_nars_are_not_behind_large_ones() {
        let (mut queue, greedy) = (Queue::new(1), PeerId::random());
        let large = queue.enter(greedy, Kind::Large).unwrap();
        let small = queue.enter(greedy, Kind::Small).unwrap();
        assert_eq!(queue.place(greedy, Kind::Large, large), None);
        assert_eq!(queue.place(greedy, Kind::Small, small), None);
    }

    #[test]
    fn a_closed_queue_lets_bodies_end_and_none_begin() {
        let (mut queue, peer) = (Queue::new(1), PeerId::random());
        let first = queue.enter(peer, Kind::Small).unwrap();
        let second = queue.enter(peer, Kind::Small).unwrap();
        queue.close();
        queue.leave(peer, Kind::Small, first);
        assert_eq!(queue.place(peer, Kind::Small, second), Some(1));
        assert_eq!(queue.under_way(), 0);
    }
}
