//! Requests for realisations: ours under way, and those of peers, which blocking threads answer.

use super::context::Context;
use super::questions::{Answers, Asker, FoundAnswer, Questions, is_admitted};
use super::requests::Event;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::request_response::{InboundRequestId, Message, ResponseChannel};
use narmesh_gossip::Misdeed;
use narmesh_protocol::wire::{RealisationReply, RealisationRequest};
use narmesh_store::{Offer, OfferedRealisation};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Requests of peers answered at the same time; further ones are told *busy*.
const ANSWERS_AT_ONCE_MAX: usize = 16;
/// A "no" comes this long after the request was taken up, so that its time does not tell whether one is withheld. The
/// question takes less, unless the database is locked.
const ABSENT_AFTER: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Realisations {
    offer: Arc<Offer>,
    questions: Questions,
    rates: RequestRates,
    answers: Answers,
}

impl Realisations {
    pub(super) fn new(offer: Arc<Offer>) -> Self {
        Self {
            offer,
            questions: Questions::new(Protocol::Realisation),
            rates: RequestRates::of_realisations(),
            answers: Answers::new(Protocol::Realisation, ANSWERS_AT_ONCE_MAX),
        }
    }

    /// Asks a connected peer which path an output is.
    pub(super) fn ask(&mut self, context: &mut Context, peer: PeerId, request: &RealisationRequest, reply: Asker) {
        self.questions.ask(context, peer, request.encode(), reply);
    }

    pub(super) fn on_request(&mut self, context: &mut Context, event: Event) {
        match event {
            Event::Message { peer, message: Message::Request { request_id, request, channel }, .. } => {
                self.answer(context, (peer, request_id), &request, channel);
            }
            Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                context.statistics.on_responsive(&peer);
                self.questions.on_answered(request_id, response);
            }
            Event::OutboundFailure { request_id, error, .. } => self.questions.on_failed(request_id, &error),
            Event::InboundFailure { request_id, .. } | Event::ResponseSent { request_id, .. } => {
                context.unread.end(&(Protocol::Realisation, request_id));
            }
        }
    }

    fn answer(
        &mut self,
        context: &mut Context,
        (peer, asked): (PeerId, InboundRequestId),
        request: &[u8],
        channel: ResponseChannel<Vec<u8>>,
    ) {
        let id = RealisationRequest::decode(request).ok().and_then(|request| request.id().ok());
        let Some(id) = id else {
            return context.report_misdeed(peer, Misdeed::MalformedRequest);
        };
        if !is_admitted(context, &mut self.rates, peer) {
            return respond(context, channel, &RealisationReply::Busy);
        }
        let offer = Arc::clone(&self.offer);
        let look_up = move || {
            let since = Instant::now();
            let reply = match offer.find_realisation(&id) {
                Ok(OfferedRealisation::Offered(realisation)) => {
                    RealisationReply::Found(realisation.render().into_bytes())
                }
                Err(error) if error.may_pass() => RealisationReply::Busy,
                Ok(OfferedRealisation::Withheld | OfferedRealisation::Absent) | Err(_) => RealisationReply::Absent,
            };
            if reply == RealisationReply::Absent {
                thread::sleep(ABSENT_AFTER.saturating_sub(since.elapsed()));
            }
            // One that is too long is not given.
            reply.encode().or_else(|_| RealisationReply::Absent.encode())
        };
        if let Err((_, _, channel)) = self.answers.look_up((peer, asked, channel), look_up) {
            respond(context, channel, &RealisationReply::Busy);
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

fn respond(context: &mut Context, channel: ResponseChannel<Vec<u8>>, reply: &RealisationReply) {
    if let Ok(bytes) = reply.encode() {
        // The channel is closed if the asker left.
        drop(context.requests_of(Protocol::Realisation).send_response(channel, bytes));
    }
}
