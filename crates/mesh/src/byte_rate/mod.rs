//! A rate that many share fairly: waits for a share of `limits.upload_bytes_per_s`, of a peer's own `upload_bytes_per_s`, or of
//! `limits.relay_bytes_per_s`. [`Shares`] decides; here are the clock and the wakers that it lacks.

mod shares;

use libp2p::PeerId;
use parking_lot::Mutex;
pub use shares::BYTES_PER_S_MIN;
use shares::{Next, Shares};
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Who asks for a share, numbered in the order of asking: a request for a NAR, or a direction of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// The rate of all uploads together, of all to one peer, or of all that a relay passes on; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ByteRate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    shares: Shares,
    waiting: HashMap<Ticket, oneshot::Sender<u64>>,
    /// Whether the task that grants is running.
    is_running: bool,
}

/// A body under way, with its share of the rate.
#[derive(Debug)]
pub(crate) struct RateShare {
    rate: ByteRate,
    peer: PeerId,
    ticket: Ticket,
    /// Its share of what its peer may get.
    of_peer: Option<Box<Self>>,
}

impl Default for ByteRate {
    fn default() -> Self {
        Self(Arc::new(Inner { began: Instant::now(), state: Mutex::default(), changed: Notify::new() }))
    }
}

impl ByteRate {
    /// Allows at most this many bytes per second from now on; `None` for no limit. Bodies that wait go by the new rate
    /// at once.
    pub(crate) fn set_rate(&self, bytes_per_s: Option<NonZeroU32>) {
        self.0.state.lock().shares.set_rate(self.now(), bytes_per_s);
        self.0.changed.notify_one();
    }

    pub(crate) fn join(&self, peer: PeerId, ticket: Ticket) -> RateShare {
        self.0.state.lock().shares.join(peer, ticket);
        RateShare { rate: self.clone(), peer, ticket, of_peer: None }
    }

    fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Hands out what is due, and says how long until the next grant; `None` when nobody waits any more.
    fn grant(&self) -> Option<Duration> {
        let now = self.now();
        let state = &mut *self.0.state.lock();
        loop {
            match state.shares.next(now) {
                Next::Grant(_, ticket, bytes) => {
                    let is_taken = state.waiting.remove(&ticket).is_some_and(|waiting| waiting.send(bytes).is_ok());
                    // Its stream has ended meanwhile; the bytes go to the next in turn.
                    if !is_taken {
                        state.shares.give_back(bytes);
                    }
                }
                Next::At(then) => return Some(then.saturating_sub(now)),
                Next::Nobody => {
                    state.is_running = false;
                    return None;
                }
            }
        }
    }

    /// Grants until nobody waits.
    async fn run(self) {
        while let Some(wait) = self.grant() {
            // Until the time comes, or the rate changes.
            drop(tokio::time::timeout(wait, self.0.changed.notified()).await);
        }
    }
}

impl RateShare {
    /// The same, and a share of what its peer may get.
    pub(crate) fn under(mut self, of_peer: &ByteRate) -> Self {
        self.of_peer = Some(Box::new(of_peer.join(self.peer, self.ticket)));
        self
    }

    /// Whether there is no limit.
    pub(crate) fn is_free(&self) -> bool {
        self.rate.0.state.lock().shares.bytes_per_s().is_none()
            && self.of_peer.as_ref().is_none_or(|of_peer| of_peer.is_free())
    }

    /// Waits for the right to send some of `wanted` bytes, and says how many. The peer's own rate comes first, so that
    /// whoever waits for it keeps nothing from other peers.
    pub(crate) async fn pay(&self, wanted: usize) -> usize {
        let Some(of_peer) = &self.of_peer else { return self.pay_here(wanted).await };
        let allowed = of_peer.pay_here(wanted).await;
        let granted = self.pay_here(allowed).await;
        of_peer.rate.0.state.lock().shares.give_back(allowed.saturating_sub(granted) as u64);
        granted
    }

    async fn pay_here(&self, wanted: usize) -> usize {
        if wanted == 0 {
            return 0;
        }
        let granted = {
            let mut state = self.rate.0.state.lock();
            if state.shares.bytes_per_s().is_none() {
                return wanted;
            }
            let (sender, granted) = oneshot::channel();
            state.shares.want(self.peer, self.ticket, wanted as u64);
            state.waiting.insert(self.ticket, sender);
            if !std::mem::replace(&mut state.is_running, true) {
                tokio::spawn(self.rate.clone().run());
            }
            granted
        };
        // There cannot be an error: the sender is kept until it is used, and a body waits for one grant at a time.
        let granted = granted.await.unwrap_or(wanted as u64);
        usize::try_from(granted).unwrap_or(wanted)
    }
}

impl Drop for RateShare {
    fn drop(&mut self) {
        let mut state = self.rate.0.state.lock();
        state.shares.leave(self.peer, self.ticket);
        state.waiting.remove(&self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a body that pays for so many bytes takes.
    async fn time_for(share: RateShare, bytes: usize) -> Duration {
        let since = Instant::now();
        let mut paid = 0;
        while paid < bytes {
            paid += share.pay(bytes - paid).await;
        }
        since.elapsed()
    }

    #[tokio::test]
    async fn a_peers_own_limit_holds_for_all_its_bodies_and_for_nobody_else() {
        const LIMIT: u32 = 128 << 10;
        let (all, of_peer, limited, other) =
            (ByteRate::default(), ByteRate::default(), PeerId::random(), PeerId::random());
        all.set_rate(NonZeroU32::new(8 << 20));
        of_peer.set_rate(NonZeroU32::new(LIMIT));
        let bodies = (0..4).map(|number| {
            let share = all.join(limited, Ticket(number)).under(&of_peer);
            assert!(!share.is_free());
            tokio::spawn(time_for(share, LIMIT as usize / 2))
        });
        let bodies: Vec<_> = bodies.collect();
        let unlimited = all.join(other, Ticket(9)).under(&ByteRate::default());
        let quick = time_for(unlimited, 8 << 20).await;
        let slow = futures::future::join_all(bodies).await.into_iter().map(Result::unwrap).max().unwrap();
        // Two seconds' bytes, of which the first second's are a burst.
        assert!(slow > Duration::from_millis(900), "{slow:?}");
        assert!(quick < Duration::from_millis(900), "{quick:?}");
    }
}
