//! Waits for a share of `limits.upload_bytes_per_s`: [`Shares`], with the clock and the wakers that it lacks.

use super::queue::Ticket;
use super::shares::{Next, Shares};
use libp2p::PeerId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// The rate of all uploads together; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct UploadRate(Arc<Inner>);

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
pub(super) struct RateShare {
    rate: UploadRate,
    peer: PeerId,
    ticket: Ticket,
}

impl Default for UploadRate {
    fn default() -> Self {
        Self(Arc::new(Inner { began: Instant::now(), state: Mutex::default(), changed: Notify::new() }))
    }
}

impl UploadRate {
    /// Allows at most this many bytes per second from now on; `None` for no limit. Bodies that wait go by the new rate
    /// at once.
    pub(super) fn set_rate(&self, bytes_per_s: Option<NonZeroU32>) {
        self.0.state.lock().shares.set_rate(self.now(), bytes_per_s);
        self.0.changed.notify_one();
    }

    pub(super) fn join(&self, peer: PeerId, ticket: Ticket) -> RateShare {
        self.0.state.lock().shares.join(peer, ticket);
        RateShare { rate: self.clone(), peer, ticket }
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
    /// Whether there is no limit.
    pub(super) fn is_free(&self) -> bool {
        self.rate.0.state.lock().shares.bytes_per_s().is_none()
    }

    /// Waits for the right to send some of `wanted` bytes, and says how many.
    pub(super) async fn pay(&self, wanted: usize) -> usize {
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
