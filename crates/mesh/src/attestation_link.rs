//! The link between the driver and the thread that exchanges attestations. The thread is not part of the mesh: it reads
//! the ledger and verifies signatures, and speaks with peers through this link alone.
//!
//! The driver tells the thread who is connected and which builders may be spoken of there, and passes requests and
//! replies on. The thread orders what is sent. It may wait for the driver, so the driver never waits for the thread.
//! Bounds: at most [`REQUESTS_WAITING_MAX`] requests of peers wait for the thread, and at most [`ORDERS_MAX`] orders for
//! the driver; the exchange core bounds our own requests.

use super::config::CountedBuilder;
use libp2p::PeerId;
use narmesh_gossip::Misdeed;
use narmesh_protocol::{BuilderKey, HashPart};
use narmesh_quorum::exchange::Input;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Requests of peers that wait for an answer; further ones are told *busy*.
const REQUESTS_WAITING_MAX: usize = 64;
/// Orders of the thread that the driver has not carried out yet.
const ORDERS_MAX: usize = 256;

/// What the thread is told.
#[derive(Debug)]
pub enum ExchangeMessage {
    /// An input for the exchange core.
    Input(Input),
    /// A peer's request.
    Request {
        /// The peer that asks.
        from: PeerId,
        /// The number of the request, for the answer.
        id: u64,
        /// The request as it came.
        bytes: Vec<u8>,
        /// Bounds what waits here: it is given back when the thread takes the request, even if the asker has left
        /// meanwhile.
        permit: OwnedSemaphorePermit,
    },
    /// The builders that count from now on, and our own builder key.
    Builders(Vec<CountedBuilder>, Option<BuilderKey>),
    /// The ledger, or the policy, changed.
    Changed,
    /// A lookup waits this long for a verdict on this path. The sender is told of each answer, and dropped after the
    /// last.
    Wanted(HashPart, Duration, mpsc::Sender<()>),
}

/// What the thread wants the driver to do.
#[derive(Debug)]
pub enum ExchangeOrder {
    /// Send a request.
    Request {
        /// The peer to ask.
        to: PeerId,
        /// The number of the request, for the reply.
        id: u64,
        /// The request to send.
        bytes: Vec<u8>,
    },
    /// Answer a peer's request.
    Respond {
        /// The number of the request.
        id: u64,
        /// The reply to send.
        bytes: Vec<u8>,
    },
    /// Tell the gossip core, which counts it, what a peer did wrong.
    ReportMisdeed(PeerId, Misdeed),
}

/// Tells the thread; cheap to clone.
#[derive(Clone, Debug)]
pub struct ExchangeLink {
    sender: blocking::Sender<ExchangeMessage>,
    /// One permit for each request that may wait.
    waiting: Arc<Semaphore>,
}

/// The driver's end of the link.
#[derive(Debug)]
pub struct DriverEnd {
    /// Tells the thread.
    pub link: ExchangeLink,
    /// What the thread wants sent.
    pub(super) orders: mpsc::Receiver<ExchangeOrder>,
}

/// The thread's end of the link.
#[derive(Debug)]
pub struct ThreadEnd {
    /// What the thread is told.
    pub messages: blocking::Receiver<ExchangeMessage>,
    /// Tells the driver what to do; closed once the driver is gone.
    pub orders: mpsc::Sender<ExchangeOrder>,
}

/// Makes both ends of a link.
pub fn link_exchange() -> (DriverEnd, ThreadEnd) {
    let (sender, messages) = blocking::channel();
    let (orders, received) = mpsc::channel(ORDERS_MAX);
    let link = ExchangeLink { sender, waiting: Arc::new(Semaphore::new(REQUESTS_WAITING_MAX)) };
    (DriverEnd { link, orders: received }, ThreadEnd { messages, orders })
}

impl ExchangeLink {
    /// Tells the thread that the ledger or the policy changed; false once the thread is gone.
    pub fn tell_changed(&self) -> bool {
        self.sender.send(ExchangeMessage::Changed).is_ok()
    }

    /// Passes a message on without waiting. An error may be ignored: the thread ends only with the daemon.
    pub(super) fn tell(&self, message: ExchangeMessage) {
        drop(self.sender.send(message));
    }

    /// Passes a request on if fewer than [`REQUESTS_WAITING_MAX`] wait; returns whether it did.
    pub(super) fn pass_request(&self, from: PeerId, id: u64, bytes: Vec<u8>) -> bool {
        let permit = Arc::clone(&self.waiting).try_acquire_owned();
        permit.is_ok_and(|permit| self.sender.send(ExchangeMessage::Request { from, id, bytes, permit }).is_ok())
    }

    pub(super) fn pass_input(&self, input: Input) {
        self.tell(ExchangeMessage::Input(input));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_requests_are_bounded_even_if_their_askers_left() {
        let (DriverEnd { link, .. }, ThreadEnd { messages, .. }) = link_exchange();
        let peer = PeerId::random();
        let passed = (0..1_000).filter(|id| link.pass_request(peer, *id, vec![0; 1_000])).count();
        assert_eq!(passed, REQUESTS_WAITING_MAX);
        // Only the thread makes room.
        let Ok(ExchangeMessage::Request { id: 0, .. }) = messages.recv() else { panic!("the first request") };
        assert!(link.pass_request(peer, 1_000, Vec::new()) && !link.pass_request(peer, 1_001, Vec::new()));
        assert_eq!(messages.try_iter().count(), REQUESTS_WAITING_MAX);
    }
}
