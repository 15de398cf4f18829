//! Requests that somebody waits for, in both directions: questions of ours under way, and answers to peers that blocking
//! threads look up. Narinfos, trees, logs and realisations have them.

use super::context::Context;
use crate::handle::AskError;
use crate::request_rates::{Admission, RequestRates};
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::request_response::{InboundRequestId, OutboundFailure, OutboundRequestId, ResponseChannel};
use narmesh_gossip::Misdeed;
use narmesh_protocol::codec::CodecError;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Who waits for the answer to a question.
pub(super) type Asker = oneshot::Sender<Result<Vec<u8>, AskError>>;

/// Whether a request of this peer is answered now; if not, it is told *busy*. One that floods is blamed for it.
pub(super) fn is_admitted(context: &mut Context, rates: &mut RequestRates, peer: PeerId) -> bool {
    match rates.admit(peer) {
        Admission::Answer => true,
        Admission::Busy => false,
        Admission::Flood => {
            context.report_misdeed(peer, Misdeed::RequestFlood);
            false
        }
    }
}

/// Questions of ours under way.
#[derive(Debug)]
pub(super) struct Questions {
    protocol: Protocol,
    /// The peer that was asked, since when, and who waits for the answer.
    asked: HashMap<OutboundRequestId, (PeerId, Instant, Asker)>,
}

impl Questions {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { protocol, asked: HashMap::new() }
    }

    /// Sends a question to a connected peer.
    pub(super) fn ask(
        &mut self,
        context: &mut Context,
        peer: PeerId,
        request: Result<Vec<u8>, CodecError>,
        reply: Asker,
    ) {
        let bytes = match request {
            Ok(bytes) => bytes,
            Err(error) => return drop(reply.send(Err(AskError::Failed(error.to_string())))),
        };
        if !context.swarm.is_connected(&peer) {
            return drop(reply.send(Err(AskError::NotConnected("connection closed".to_owned()))));
        }
        self.asked.retain(|_, (_, _, waiting)| !waiting.is_closed());
        let id = context.requests_of(self.protocol).send_request(&peer, bytes);
        self.asked.insert(id, (peer, Instant::now(), reply));
    }

    /// Hands an answer to whoever waits for it; returns who gave it, and after how long.
    pub(super) fn on_answered(&mut self, id: OutboundRequestId, answer: Vec<u8>) -> Option<(PeerId, Duration)> {
        let (peer, since, waiting) = self.asked.remove(&id)?;
        drop(waiting.send(Ok(answer)));
        Some((peer, since.elapsed()))
    }

    pub(super) fn on_failed(&mut self, id: OutboundRequestId, error: &OutboundFailure) {
        if let Some((_, _, waiting)) = self.asked.remove(&id) {
            drop(waiting.send(Err(ask_error(error))));
        }
    }
}

/// A question that was lost with its connection may be asked again on the next one.
fn ask_error(error: &OutboundFailure) -> AskError {
    match error {
        OutboundFailure::ConnectionClosed | OutboundFailure::DialFailure => AskError::NotConnected(error.to_string()),
        OutboundFailure::Timeout | OutboundFailure::UnsupportedProtocols | OutboundFailure::Io(_) => {
            AskError::Failed(error.to_string())
        }
    }
}

/// A request of a peer, and where the answer goes.
pub(super) type Request = (PeerId, InboundRequestId, ResponseChannel<Vec<u8>>);

/// An answer that a blocking thread looked up.
#[derive(Debug)]
pub(super) struct FoundAnswer {
    protocol: Protocol,
    request: Request,
    bytes: Vec<u8>,
}

impl FoundAnswer {
    pub(super) fn send(self, context: &mut Context) {
        let (peer, asked, channel) = self.request;
        context.send_reply((self.protocol, asked), peer, channel, self.bytes);
    }
}

/// Answers to peers that are being looked up, and those that were.
#[derive(Debug)]
pub(super) struct Answers {
    protocol: Protocol,
    found: mpsc::Receiver<FoundAnswer>,
    found_sender: mpsc::Sender<FoundAnswer>,
    permits: Arc<Semaphore>,
}

impl Answers {
    /// At most `at_once_max` are looked up at the same time.
    pub(super) fn new(protocol: Protocol, at_once_max: usize) -> Self {
        let (found_sender, found) = mpsc::channel(at_once_max);
        Self { protocol, found, found_sender, permits: Arc::new(Semaphore::new(at_once_max)) }
    }

    /// Has `look_up` called on a blocking thread. Gives the request back if too many are under way.
    pub(super) fn look_up(
        &self,
        request: Request,
        look_up: impl FnOnce() -> Result<Vec<u8>, CodecError> + Send + 'static,
    ) -> Result<(), Request> {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return Err(request) };
        let (protocol, found) = (self.protocol, self.found_sender.clone());
        tokio::task::spawn_blocking(move || {
            if let Ok(bytes) = look_up() {
                // Fails only when the driver is gone.
                drop(found.blocking_send(FoundAnswer { protocol, request, bytes }));
            }
            drop(permit);
        });
        Ok(())
    }

    /// The next answer that was looked up, for [`FoundAnswer::send`]. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<FoundAnswer> {
        self.found.recv().await
    }
}
