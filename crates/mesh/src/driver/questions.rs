//! Requests that somebody waits for, in both directions: questions of ours under way, and answers to peers that blocking
//! threads look up. Narinfos, trees, logs and realisations have them.

use super::context::{Context, encode_busy};
use super::requests::Event;
use crate::handle::AskError;
use crate::request_rates::{Admission, RequestRates};
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::request_response::{InboundRequestId, Message, OutboundFailure, OutboundRequestId, ResponseChannel};
use narmesh_gossip::Misdeed;
use narmesh_protocol::codec::CodecError;
use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// A "no" that a thread has to look up comes this long after it was taken up, so that its time does not tell whether what is
/// asked for is here and withheld. The look-up takes less, unless the database is locked.
const ABSENT_AFTER: Duration = Duration::from_millis(10);

/// Waits until a "no" looked up `since` then may be told.
pub(super) fn level_absence(since: Instant) {
    thread::sleep(ABSENT_AFTER.saturating_sub(since.elapsed()));
}

/// The questions of one protocol, ours and those of peers.
#[derive(Debug)]
pub(super) struct Dialogue {
    protocol: Protocol,
    questions: Questions,
    rates: RequestRates,
    answers: Answers,
}

impl Dialogue {
    /// Peers are answered at these rates, at most `at_once_max` at the same time; further ones are told *busy*.
    pub(super) fn new(protocol: Protocol, rates: RequestRates, at_once_max: usize) -> Self {
        let (questions, answers) = (Questions::new(protocol), Answers::new(protocol, at_once_max));
        Self { protocol, questions, rates, answers }
    }

    /// Sends a question to a connected peer.
    pub(super) fn ask(
        &mut self,
        context: &mut Context,
        peer: PeerId,
        request: Result<Vec<u8>, CodecError>,
        reply: Asker,
    ) {
        self.questions.ask(context, peer, request, reply);
    }

    /// Takes what happened. Returns a request of a peer, for [`Self::admit`].
    pub(super) fn on_event(&mut self, context: &mut Context, event: Event) -> Option<(Request, Vec<u8>)> {
        match event {
            Event::Message { peer, message: Message::Request { request_id, request, channel }, .. } => {
                return Some(((peer, request_id, channel), request));
            }
            Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                match (self.protocol, self.questions.on_answered(request_id, response)) {
                    // Narinfos alone measure how quick a peer is: only there is nothing else waited for.
                    (Protocol::NarInfo, answered) => {
                        if let Some((peer, elapsed)) = answered {
                            context.statistics.on_answered(&peer, elapsed);
                        }
                    }
                    (_, _) => context.statistics.on_responsive(&peer),
                }
            }
            Event::OutboundFailure { request_id, error, .. } => self.questions.on_failed(request_id, &error),
            Event::InboundFailure { request_id, .. } | Event::ResponseSent { request_id, .. } => {
                context.unread.end(&(self.protocol, request_id));
            }
        }
        None
    }

    /// What a peer asks, if it is a question and the peer does not ask too fast. Otherwise it is blamed, or told *busy*.
    pub(super) fn admit<Q>(
        &mut self,
        context: &mut Context,
        request: Request,
        decoded: Option<Q>,
    ) -> Option<(Q, Request)> {
        let Some(question) = decoded else {
            context.report_misdeed(request.0, Misdeed::MalformedRequest);
            return None;
        };
        if is_admitted(context, &mut self.rates, request.0) {
            return Some((question, request));
        }
        self.respond(context, request, encode_busy(self.protocol));
        None
    }

    /// Answers at once.
    pub(super) fn respond(&self, context: &mut Context, (_, _, channel): Request, reply: Result<Vec<u8>, CodecError>) {
        if let Ok(bytes) = reply {
            // The channel is closed if the asker left.
            drop(context.requests_of(self.protocol).send_response(channel, bytes));
        }
    }

    /// Has a blocking thread look up the answer, or says *busy* if too many are under way.
    pub(super) fn look_up(
        &self,
        context: &mut Context,
        request: Request,
        look_up: impl FnOnce() -> Result<Vec<u8>, CodecError> + Send + 'static,
    ) {
        if let Err(request) = self.answers.look_up(request, look_up) {
            self.respond(context, request, encode_busy(self.protocol));
        }
    }

    /// The next answer that a blocking thread looked up. Dropping the future loses nothing.
    pub(super) async fn next_answer(&mut self) -> Option<FoundAnswer> {
        self.answers.next().await
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.rates.forget(peer);
    }
}

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
struct Questions {
    protocol: Protocol,
    /// The peer that was asked, since when, and who waits for the answer.
    asked: HashMap<OutboundRequestId, (PeerId, Instant, Asker)>,
}

impl Questions {
    fn new(protocol: Protocol) -> Self {
        Self { protocol, asked: HashMap::new() }
    }

    /// Sends a question to a connected peer.
    fn ask(&mut self, context: &mut Context, peer: PeerId, request: Result<Vec<u8>, CodecError>, reply: Asker) {
        let bytes = match request {
            Ok(bytes) => bytes,
            Err(error) => return drop(reply.send(Err(AskError::Failed(error.to_string())))),
        };
        // libp2p would dial, at addresses and at a pace that nobody here has chosen.
        if !context.swarm.is_connected(&peer) {
            return drop(reply.send(Err(AskError::NotConnected("connection closed".to_owned()))));
        }
        // Whoever gave up is not waited for, and lookups that come and go must not pile up here.
        self.asked.retain(|_, (_, _, waiting)| !waiting.is_closed());
        let id = context.requests_of(self.protocol).send_request(&peer, bytes);
        self.asked.insert(id, (peer, Instant::now(), reply));
    }

    /// Hands an answer to whoever waits for it; returns who gave it, and after how long.
    fn on_answered(&mut self, id: OutboundRequestId, answer: Vec<u8>) -> Option<(PeerId, Duration)> {
        let (peer, since, waiting) = self.asked.remove(&id)?;
        drop(waiting.send(Ok(answer)));
        Some((peer, since.elapsed()))
    }

    fn on_failed(&mut self, id: OutboundRequestId, error: &OutboundFailure) {
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
struct Answers {
    protocol: Protocol,
    found: mpsc::Receiver<FoundAnswer>,
    found_sender: mpsc::Sender<FoundAnswer>,
    permits: Arc<Semaphore>,
}

impl Answers {
    /// At most `at_once_max` are looked up at the same time.
    fn new(protocol: Protocol, at_once_max: usize) -> Self {
        let (found_sender, found) = mpsc::channel(at_once_max);
        Self { protocol, found, found_sender, permits: Arc::new(Semaphore::new(at_once_max)) }
    }

    /// Has `look_up` called on a blocking thread. Gives the request back if too many are under way.
    fn look_up(
        &self,
        request: Request,
        look_up: impl FnOnce() -> Result<Vec<u8>, CodecError> + Send + 'static,
    ) -> Result<(), Request> {
        // Blocking threads serve the whole process, so only so many of them look up for peers.
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
    async fn next(&mut self) -> Option<FoundAnswer> {
        self.found.recv().await
    }
}
