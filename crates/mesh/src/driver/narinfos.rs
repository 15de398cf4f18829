//! Narinfo requests: ours under way, and those of peers, which are answered from memory or by blocking threads.

use super::context::Context;
use super::requests::Event;
use crate::handle::AskError;
use crate::rates::{Admission, NarInfoRates};
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::request_response::{InboundRequestId, Message, OutboundFailure, OutboundRequestId, ResponseChannel};
use narmesh_gossip::Misdeed;
use narmesh_protocol::HashPart;
use narmesh_protocol::wire::{NarInfoReply, NarInfoRequest};
use narmesh_store::Offer;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Requests of peers answered at the same time; further ones are told *busy*.
const ANSWERS_AT_ONCE_MAX: usize = 64;

/// A narinfo that a blocking thread looked up.
#[derive(Debug)]
pub(super) struct NarInfoAnswer {
    peer: PeerId,
    asked: InboundRequestId,
    channel: ResponseChannel<Vec<u8>>,
    bytes: Vec<u8>,
}

/// A question under way: the peer that was asked, since when, and who waits for the answer.
type Asked = (PeerId, Instant, oneshot::Sender<Result<Vec<u8>, AskError>>);

#[derive(Debug)]
pub(super) struct NarInfos {
    offer: Arc<Offer>,
    asked: HashMap<OutboundRequestId, Asked>,
    rates: NarInfoRates,
    answers: mpsc::Receiver<NarInfoAnswer>,
    answers_sender: mpsc::Sender<NarInfoAnswer>,
    answering: Arc<Semaphore>,
}

impl NarInfos {
    pub(super) fn new(offer: Arc<Offer>) -> Self {
        let (answers_sender, answers) = mpsc::channel(ANSWERS_AT_ONCE_MAX);
        Self {
            offer,
            asked: HashMap::new(),
            rates: NarInfoRates::default(),
            answers,
            answers_sender,
            answering: Arc::new(Semaphore::new(ANSWERS_AT_ONCE_MAX)),
        }
    }

    /// Asks a connected peer for the narinfo of a path.
    pub(super) fn ask(
        &mut self,
        context: &mut Context,
        peer: PeerId,
        hash_part: HashPart,
        reply: oneshot::Sender<Result<Vec<u8>, AskError>>,
    ) {
        let bytes = match (NarInfoRequest { hash_part }).encode() {
            Ok(bytes) => bytes,
            Err(error) => return drop(reply.send(Err(AskError::Failed(error.to_string())))),
        };
        if !context.swarm.is_connected(&peer) {
            return drop(reply.send(Err(AskError::NotConnected("connection closed".to_owned()))));
        }
        self.asked.retain(|_, (_, _, waiting)| !waiting.is_closed());
        let id = context.requests_of(Protocol::NarInfo).send_request(&peer, bytes);
        self.asked.insert(id, (peer, Instant::now(), reply));
    }

    pub(super) fn on_request(&mut self, context: &mut Context, event: Event) {
        match event {
            Event::Message { peer, message: Message::Request { request_id, request, channel }, .. } => {
                self.answer(context, (peer, request_id), &request, channel);
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some((peer, since, waiting)) = self.asked.remove(&request_id) {
                    context.statistics.on_answered(&peer, since.elapsed());
                    drop(waiting.send(Ok(response)));
                }
            }
            Event::OutboundFailure { request_id, error, .. } => {
                if let Some((_, _, waiting)) = self.asked.remove(&request_id) {
                    drop(waiting.send(Err(ask_error(&error))));
                }
            }
            Event::InboundFailure { request_id, .. } | Event::ResponseSent { request_id, .. } => {
                context.unread.end(&(Protocol::NarInfo, request_id));
            }
        }
    }

    /// Answers a request: "no" comes from memory; for "yes" a blocking thread asks the predicate again.
    fn answer(
        &mut self,
        context: &mut Context,
        (peer, asked): (PeerId, InboundRequestId),
        request: &[u8],
        channel: ResponseChannel<Vec<u8>>,
    ) {
        let Ok(request) = NarInfoRequest::decode(request) else {
            return context.report_misdeed(peer, Misdeed::MalformedRequest);
        };
        match self.rates.admit(peer) {
            Admission::Answer => {}
            Admission::Busy => return respond(context, channel, &NarInfoReply::Busy),
            Admission::Flood => {
                context.report_misdeed(peer, Misdeed::RequestFlood);
                return respond(context, channel, &NarInfoReply::Busy);
            }
        }
        if !self.offer.is_offered(&request.hash_part) {
            return respond(context, channel, &NarInfoReply::Absent);
        }
        let Ok(permit) = Arc::clone(&self.answering).try_acquire_owned() else {
            return respond(context, channel, &NarInfoReply::Busy);
        };
        let (offer, answers) = (Arc::clone(&self.offer), self.answers_sender.clone());
        tokio::task::spawn_blocking(move || {
            let reply = match offer.find_offered(&request.hash_part) {
                Ok(Some(offered)) => NarInfoReply::Found(offered.narinfo_text.to_vec()),
                Err(error) if error.may_pass() => NarInfoReply::Busy,
                Ok(None) | Err(_) => NarInfoReply::Absent,
            };
            if let Ok(bytes) = reply.encode() {
                // Fails only when the driver is gone.
                drop(answers.blocking_send(NarInfoAnswer { peer, asked, channel, bytes }));
            }
            drop(permit);
        });
    }

    /// The next answer that a blocking thread looked up, for [`NarInfoAnswer::send`]. Dropping the future loses nothing.
    pub(super) async fn next_answer(&mut self) -> Option<NarInfoAnswer> {
        self.answers.recv().await
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.rates.forget(peer);
    }
}

impl NarInfoAnswer {
    pub(super) fn send(self, context: &mut Context) {
        context.send_reply((Protocol::NarInfo, self.asked), self.peer, self.channel, self.bytes);
    }
}

fn respond(context: &mut Context, channel: ResponseChannel<Vec<u8>>, reply: &NarInfoReply) {
    if let Ok(bytes) = reply.encode() {
        // The channel is closed if the asker left.
        drop(context.requests_of(Protocol::NarInfo).send_response(channel, bytes));
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
