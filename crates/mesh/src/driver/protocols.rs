//! What peers say: announcements, gossip requests and answers, narinfo requests and answers.

use super::Mesh;
use crate::clock::now;
use crate::handle::AskError;
use crate::rates::Admission;
use crate::unread::{Protocol, Request};
use libp2p::request_response::{self, InboundRequestId, OutboundFailure, ResponseChannel};
use libp2p::{PeerId, gossipsub};
use narmesh_gossip::{Input, Misdeed};
use narmesh_protocol::codec::CodecError;
use narmesh_protocol::wire::{GossipReply, NarInfoReply, NarInfoRequest};
use narmesh_quorum::wire::QuorumReply;
use std::sync::Arc;

/// A narinfo that a blocking thread looked up.
#[derive(Debug)]
pub(super) struct NarInfoAnswer {
    pub(super) peer: PeerId,
    pub(super) asked: InboundRequestId,
    pub(super) channel: ResponseChannel<Vec<u8>>,
    pub(super) bytes: Vec<u8>,
}

impl Mesh {
    pub(super) fn on_announcement(&mut self, event: gossipsub::Event) {
        let gossipsub::Event::Message { propagation_source: from, message_id, message } = event else { return };
        let Some(author) = message.source else { return };
        let id = self.new_id();
        self.judged.insert(id, (message_id, from));
        self.gossip.handle(now(), Input::Announcement { id, author, from, bytes: message.data });
        self.perform();
        // The core judges at once; what is left was not judged, and must not pile up.
        self.judged.clear();
    }

    pub(super) fn on_gossip(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request_id, request, channel } => {
                    let id = self.new_id();
                    self.gossip_received.insert(id, (request_id, channel));
                    self.gossip.handle(now(), Input::Request { from: peer, id, bytes: request });
                }
                request_response::Message::Response { request_id, response } => {
                    self.statistics.on_responsive(&peer);
                    if let Some((from, id)) = self.gossip_sent.remove(&request_id) {
                        self.gossip.handle(now(), Input::Response { from, id, bytes: response });
                    }
                }
            },
            request_response::Event::OutboundFailure { request_id, error, peer, .. } => {
                tracing::debug!(%peer, %error, "gossip request failed");
                if let Some((to, id)) = self.gossip_sent.remove(&request_id) {
                    self.gossip.handle(now(), Input::RequestFailed { to, id });
                }
            }
            request_response::Event::InboundFailure { request_id, .. } => {
                self.gossip_received.retain(|_, (received, _)| *received != request_id);
                self.unread.end(&(Protocol::Gossip, request_id));
            }
            request_response::Event::ResponseSent { request_id, .. } => {
                self.unread.end(&(Protocol::Gossip, request_id));
            }
        }
    }

    pub(super) fn on_narinfo(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request_id, request, channel } => {
                    self.answer_narinfo((peer, request_id), &request, channel);
                }
                request_response::Message::Response { request_id, response } => {
                    if let Some((peer, since, waiting)) = self.asked.remove(&request_id) {
                        self.statistics.on_answered(&peer, since.elapsed());
                        drop(waiting.send(Ok(response)));
                    }
                }
            },
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                if let Some((_, _, waiting)) = self.asked.remove(&request_id) {
                    drop(waiting.send(Err(ask_error(&error))));
                }
            }
            request_response::Event::InboundFailure { request_id, .. }
            | request_response::Event::ResponseSent { request_id, .. } => {
                self.unread.end(&(Protocol::NarInfo, request_id));
            }
        }
    }

    /// Answers a narinfo request: "no" comes from memory; for "yes" a blocking thread asks the predicate again.
    fn answer_narinfo(
        &mut self,
        (peer, asked): (PeerId, InboundRequestId),
        request: &[u8],
        channel: ResponseChannel<Vec<u8>>,
    ) {
        let Ok(request) = NarInfoRequest::decode(request) else {
            self.gossip.handle(now(), Input::Misbehaved { peer, misdeed: Misdeed::MalformedRequest });
            return;
        };
        match self.narinfo_rates.admit(peer) {
            Admission::Answer => {}
            Admission::Busy => return self.respond(channel, &NarInfoReply::Busy),
            Admission::Flood => {
                self.gossip.handle(now(), Input::Misbehaved { peer, misdeed: Misdeed::RequestFlood });
                return self.respond(channel, &NarInfoReply::Busy);
            }
        }
        if !self.offer.is_offered(&request.hash_part) {
            self.respond(channel, &NarInfoReply::Absent);
            return;
        }
        let Ok(permit) = Arc::clone(&self.answering).try_acquire_owned() else {
            self.respond(channel, &NarInfoReply::Busy);
            return;
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

    /// Sends `reply`, or *busy* while too much that `to` was sent before is not read.
    pub(super) fn give(&mut self, asked: Request, to: PeerId, channel: ResponseChannel<Vec<u8>>, reply: Vec<u8>) {
        let reply = if self.unread.admit(asked, to, reply.len()) { Ok(reply) } else { busy(asked.0) };
        let behaviour = self.swarm.behaviour_mut();
        let protocol = match asked.0 {
            Protocol::Gossip => &mut behaviour.gossip,
            Protocol::NarInfo => &mut behaviour.narinfo,
            Protocol::Quorum => &mut behaviour.quorum,
        };
        // The channel is closed if the asker left.
        if !reply.is_ok_and(|reply| protocol.send_response(channel, reply).is_ok()) {
            self.unread.end(&asked);
        }
    }

    fn respond(&mut self, channel: ResponseChannel<Vec<u8>>, reply: &NarInfoReply) {
        if let Ok(bytes) = reply.encode() {
            // The channel is closed if the asker left.
            drop(self.swarm.behaviour_mut().narinfo.send_response(channel, bytes));
        }
    }
}

fn busy(protocol: Protocol) -> Result<Vec<u8>, CodecError> {
    match protocol {
        Protocol::Gossip => GossipReply::Busy.encode(),
        Protocol::NarInfo => NarInfoReply::Busy.encode(),
        Protocol::Quorum => QuorumReply::Busy.encode(),
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
