//! Requests for build logs: ours under way, and those of peers, which blocking threads answer a part at a time.

use super::context::Context;
use super::questions::{Answers, Asker, FoundAnswer, Questions, is_admitted};
use super::requests::Event;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::request_response::{InboundRequestId, Message, ResponseChannel};
use narmesh_gossip::Misdeed;
use narmesh_protocol::wire::{LOG_BYTES_MAX, LOG_PART_BYTES_MAX, LogPart, LogReply, LogRequest};
use narmesh_store::{BuildLog, Offer};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Requests of peers answered at the same time; further ones are told *busy*. A reply has up to 64 KiB.
const ANSWERS_AT_ONCE_MAX: usize = 16;

/// A "no" comes this long after the request was taken up, so that its time does not tell whether we have the derivation. The
/// question takes less, unless the database is locked.
const ABSENT_AFTER: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Logs {
    offer: Arc<Offer>,
    questions: Questions,
    rates: RequestRates,
    answers: Answers,
}

impl Logs {
    pub(super) fn new(offer: Arc<Offer>) -> Self {
        Self {
            offer,
            questions: Questions::new(Protocol::Log),
            rates: RequestRates::of_logs(),
            answers: Answers::new(Protocol::Log, ANSWERS_AT_ONCE_MAX),
        }
    }

    /// Asks a connected peer for a part of a log.
    pub(super) fn ask(&mut self, context: &mut Context, peer: PeerId, request: LogRequest, reply: Asker) {
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
                context.unread.end(&(Protocol::Log, request_id));
            }
        }
    }

    /// Answers a request. Memory does not know the outputs of derivations, so that a blocking thread says "no", too.
    fn answer(
        &mut self,
        context: &mut Context,
        (peer, asked): (PeerId, InboundRequestId),
        request: &[u8],
        channel: ResponseChannel<Vec<u8>>,
    ) {
        let Ok(request) = LogRequest::decode(request) else {
            return context.report_misdeed(peer, Misdeed::MalformedRequest);
        };
        if !is_admitted(context, &mut self.rates, peer) {
            return respond(context, channel, &LogReply::Busy);
        }
        let offer = Arc::clone(&self.offer);
        let look_up = move || {
            let since = Instant::now();
            let reply = match offer.find_log_of(&request.derivation) {
                Ok(Some(log)) => read_part(&log, request.offset),
                Err(error) if error.may_pass() => LogReply::Busy,
                Ok(None) | Err(_) => LogReply::Absent,
            };
            if reply == LogReply::Absent {
                thread::sleep(ABSENT_AFTER.saturating_sub(since.elapsed()));
            }
            reply.encode()
        };
        if let Err((_, _, channel)) = self.answers.look_up((peer, asked, channel), look_up) {
            respond(context, channel, &LogReply::Busy);
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

fn read_part(log: &BuildLog, offset: u64) -> LogReply {
    let size_bytes = log.size_bytes();
    if size_bytes > LOG_BYTES_MAX || offset > size_bytes {
        return LogReply::Absent;
    }
    match log.read_part(offset, LOG_PART_BYTES_MAX) {
        Ok(bytes) => {
            LogReply::Part(LogPart { is_compressed: log.is_compressed(), size_bytes, version: log.version(), bytes })
        }
        Err(error) => {
            tracing::debug!(%error, "one of our logs cannot be read");
            LogReply::Absent
        }
    }
}

fn respond(context: &mut Context, channel: ResponseChannel<Vec<u8>>, reply: &LogReply) {
    if let Ok(bytes) = reply.encode() {
        // The channel is closed if the asker left.
        drop(context.requests_of(Protocol::Log).send_response(channel, bytes));
    }
}
