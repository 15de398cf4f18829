//! Decides who may send the next bytes under a limit: deficit round robin over peers (Shreedhar and
//! Varghese, 1995), and within a peer every other turn for its oldest request. No clock, no task: time comes from
//! outside.
//!
//! A body asks for bytes only when it has them in hand and its stream has taken those before. So a body that nobody
//! reads keeps one slice from the others, once.

use super::Ticket;
use libp2p::PeerId;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

/// The lowest limit, bytes per second: with 16 bodies under way each still moves by 1 KiB a second.
pub const BYTES_PER_S_MIN: u32 = 16 << 10;
/// The least that is granted at a time: with fewer bytes, heads and frames would cost more than what they carry.
const SLICE_BYTES_MIN: u64 = 1 << 10;
/// The most that is granted at a time: a chunk.
const SLICE_BYTES_MAX: u64 = 256 << 10;
/// Slices per second of a body that is alone: enough to be smooth, and cheap.
const SLICES_PER_S: u64 = 16;

/// Who may send now, or when to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This body may send this many bytes now.
    Grant(PeerId, Ticket, u64),
    /// No grant before this time.
    At(Duration),
    /// Nobody waits.
    Nobody,
}

/// The rate, and who waits for a share of it.
#[derive(Debug, Default)]
pub(super) struct Shares {
    bytes_per_s: Option<NonZeroU32>,
    /// What may be sent now; at most one second's bytes.
    tokens: u64,
    /// The part of a byte that `tokens` leaves out: bytes times nanoseconds per second.
    rest: u128,
    filled: Duration,
    peers: HashMap<PeerId, Share>,
    /// Peers with a body that waits, in the order of their turns.
    ring: VecDeque<PeerId>,
    bodies: u64,
}

#[derive(Debug, Default)]
struct Share {
    /// Its bodies in the order of asking, and the bytes that each waits for.
    bodies: BTreeMap<Ticket, u64>,
    deficit: u64,
    /// Whether the peer is at its turn, and has got its quantum for it.
    is_at_turn: bool,
    /// Whether the next turn goes to another body than the oldest.
    others_turn: bool,
    last_other: Option<Ticket>,
}

impl Shares {
    pub(super) fn bytes_per_s(&self) -> Option<NonZeroU32> {
        self.bytes_per_s
    }

    /// Sets another rate from now on, with a burst of one second.
    pub(super) fn set_rate(&mut self, now: Duration, bytes_per_s: Option<NonZeroU32>) {
        self.fill(now);
        self.tokens = match self.bytes_per_s {
            Some(_) => self.tokens.min(capacity(bytes_per_s)),
            None => capacity(bytes_per_s),
        };
        (self.bytes_per_s, self.rest) = (bytes_per_s, 0);
    }

    /// Adds a body that is under way from now on.
    pub(super) fn join(&mut self, peer: PeerId, ticket: Ticket) {
        self.peers.entry(peer).or_default().bodies.insert(ticket, 0);
        self.bodies += 1;
    }

    /// Removes a body that has ended.
    pub(super) fn leave(&mut self, peer: PeerId, ticket: Ticket) {
        let Some(share) = self.peers.get_mut(&peer) else { return };
        if share.bodies.remove(&ticket).is_some() {
            self.bodies -= 1;
        }
        if share.bodies.is_empty() {
            self.peers.remove(&peer);
        }
        self.drop_from_ring_unless_waiting(peer);
    }

    /// Notes that the body has this many bytes in hand, which its stream would take.
    pub(super) fn want(&mut self, peer: PeerId, ticket: Ticket, bytes: u64) {
        let Some(wanted) = self.peers.get_mut(&peer).and_then(|share| share.bodies.get_mut(&ticket)) else { return };
        *wanted = bytes;
        if !self.ring.contains(&peer) {
            self.ring.push_back(peer);
        }
    }

    /// Takes back granted bytes that nobody uses any more.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_add(bytes).min(capacity(self.bytes_per_s));
    }

    /// The next grant. Call it until it returns something else.
    pub(super) fn next(&mut self, now: Duration) -> Next {
        self.fill(now);
        let slice = self.slice_bytes();
        while let Some(peer) = self.ring.front().copied() {
            let Some((share, (ticket, wanted))) = self.peers.get_mut(&peer).and_then(|share| {
                let chosen = share.next_body()?;
                Some((share, chosen))
            }) else {
                // It has nothing to send, and comes to the end of the ring when it has.
                self.ring.pop_front();
                continue;
            };
            // One quantum for each turn. What a peer left over is capped, so that it cannot save up for a long burst.
            if !share.is_at_turn {
                (share.is_at_turn, share.deficit) = (true, (share.deficit + slice).min(2 * slice));
            }
            // Without a rate there is nothing to share, and every wish is granted whole.
            let bytes = if self.bytes_per_s.is_some() { wanted.min(slice) } else { wanted };
            if self.bytes_per_s.is_some() && share.deficit < bytes {
                share.is_at_turn = false;
                self.ring.rotate_left(1);
                continue;
            }
            if let Some(rate) = self.bytes_per_s
                && let Some(missing) = bytes.checked_sub(self.tokens).filter(|missing| *missing > 0)
            {
                // The peer keeps its turn: if others were served first, a large slice would never be.
                return Next::At(now + time_for(missing, rate));
            }
            share.deficit = share.deficit.saturating_sub(bytes);
            share.on_served(ticket);
            self.tokens = self.tokens.saturating_sub(bytes);
            self.drop_from_ring_unless_waiting(peer);
            return Next::Grant(peer, ticket, bytes);
        }
        Next::Nobody
    }

    /// Every other turn is for the oldest body, so all of a peer's bodies have had a turn after twice as many turns as
    /// there are bodies. If all of them together get a second's bytes once, each gets something about every two
    /// seconds.
    fn slice_bytes(&self) -> u64 {
        let Some(rate) = self.bytes_per_s else { return SLICE_BYTES_MAX };
        let rate = u64::from(rate.get());
        let slice = (rate / self.bodies.max(1)).min(rate / SLICES_PER_S);
        slice.clamp(SLICE_BYTES_MIN, SLICE_BYTES_MAX)
    }

    fn fill(&mut self, now: Duration) {
        let Some(rate) = self.bytes_per_s else {
            self.filled = now;
            return;
        };
        let nanos = now.saturating_sub(self.filled).as_nanos();
        // The clock of the caller may stand still for a moment, and tokens must not come twice for one span.
        self.filled = now.max(self.filled);
        let parts = self.rest + nanos * u128::from(rate.get());
        let whole = parts / NANOS_PER_S;
        // What is less than a byte is kept, or a low rate with many calls would never give one.
        self.rest = parts % NANOS_PER_S;
        let tokens = u128::from(self.tokens) + whole;
        self.tokens = u64::try_from(tokens).unwrap_or(u64::MAX).min(capacity(self.bytes_per_s));
    }

    fn drop_from_ring_unless_waiting(&mut self, peer: PeerId) {
        if self.peers.get(&peer).is_some_and(|share| share.bodies.values().any(|wanted| *wanted > 0)) {
            return;
        }
        if let Some(share) = self.peers.get_mut(&peer) {
            share.is_at_turn = false;
        }
        self.ring.retain(|other| *other != peer);
    }
}

const NANOS_PER_S: u128 = 1_000_000_000;

fn capacity(bytes_per_s: Option<NonZeroU32>) -> u64 {
    bytes_per_s.map_or(0, |rate| u64::from(rate.get()))
}

fn time_for(bytes: u64, rate: NonZeroU32) -> Duration {
    let nanos = (u128::from(bytes) * NANOS_PER_S).div_ceil(u128::from(rate.get()));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Share {
    /// The body whose turn it is, and how many bytes it waits for.
    fn next_body(&self) -> Option<(Ticket, u64)> {
        let mut waiting =
            self.bodies.iter().filter(|(_, wanted)| **wanted > 0).map(|(ticket, wanted)| (*ticket, *wanted));
        let oldest = waiting.next()?;
        if !self.others_turn {
            return Some(oldest);
        }
        let others: Vec<_> = waiting.collect();
        let next = others.iter().find(|(ticket, _)| Some(*ticket) > self.last_other).or(others.first());
        Some(next.copied().unwrap_or(oldest))
    }

    fn on_served(&mut self, ticket: Ticket) {
        if self.others_turn {
            self.last_other = Some(ticket);
        }
        self.others_turn = !self.others_turn;
        if let Some(wanted) = self.bodies.get_mut(&ticket) {
            *wanted = 0;
        }
    }
}

#[cfg(test)]
mod tests;
