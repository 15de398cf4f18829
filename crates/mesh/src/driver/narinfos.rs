//! Narinfo requests: ours under way, and those of peers, which are answered from memory or by blocking threads.

use super::context::Context;
use super::questions::{Answers, Asker, FoundAnswer, Questions, is_admitted};
use super::requests::Event;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::request_response::{InboundRequestId, Message, ResponseChannel};
use narmesh_gossip::Misdeed;
use narmesh_protocol::HashPart;
use narmesh_protocol::wire::{NarInfoReply, NarInfoRequest};
use narmesh_store::Offer;
use std::sync::Arc;

/// Requests of peers answered at the same time; further ones are told *busy*.
const ANSWERS_AT_ONCE_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct NarInfos {
    offer: Arc<Offer>,
    questions: Questions,
    rates: RequestRates,
    answers: Answers,
}

impl NarInfos {
    pub(super) fn new(offer: Arc<Offer>) -> Self {
        let questions = Questions::new(Protocol::NarInfo);
        let answers = Answers::new(Protocol::NarInfo, ANSWERS_AT_ONCE_MAX);
        Self { offer, questions, rates: RequestRates::of_narinfos(), answers }
    }

    /// Asks a connected peer for the narinfo of a path.
    pub(super) fn ask(&mut self, context: &mut Context, peer: PeerId, hash_part: HashPart, reply: Asker) {
        self.questions.ask(context, peer, NarInfoRequest { hash_part }.encode(), reply);
    }

    pub(super) fn on_request(&mut self, context: &mut Context, event: Event) {
        match event {
            Event::Message { peer, message: Message::Request { request_id, request, channel }, .. } => {
                self.answer(context, (peer, request_id), &request, channel);
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some((peer, elapsed)) = self.questions.on_answered(request_id, response) {
                    context.statistics.on_answered(&peer, elapsed);
                }
            }
            Event::OutboundFailure { request_id, error, .. } => self.questions.on_failed(request_id, &error),
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
        if !is_admitted(context, &mut self.rates, peer) {
            return respond(context, channel, &NarInfoReply::Busy);
        }
        if !self.offer.is_offered(&request.hash_part) {
            return respond(context, channel, &NarInfoReply::Absent);
        }
        let offer = Arc::clone(&self.offer);
        let look_up = move || {
            let reply = match offer.find_offered(&request.hash_part) {
                Ok(Some(offered)) => NarInfoReply::Found(offered.narinfo_text.to_vec()),
                Err(error) if error.may_pass() => NarInfoReply::Busy,
                Ok(None) | Err(_) => NarInfoReply::Absent,
            };
            reply.encode()
        };
        if let Err((_, _, channel)) = self.answers.look_up((peer, asked, channel), look_up) {
            respond(context, channel, &NarInfoReply::Busy);
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

fn respond(context: &mut Context, channel: ResponseChannel<Vec<u8>>, reply: &NarInfoReply) {
    if let Ok(bytes) = reply.encode() {
        // The channel is closed if the asker left.
        drop(context.requests_of(Protocol::NarInfo).send_response(channel, bytes));
    }
}
