//! The requests of a protocol whose core numbers them, in both directions: gossip, quorum and rosters.

use super::context::Context;
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::request_response::{self, InboundRequestId, Message, OutboundFailure, OutboundRequestId, ResponseChannel};
use std::collections::HashMap;

/// What happens to requests of any protocol.
pub(super) type Event = request_response::Event<Vec<u8>, Vec<u8>>;

/// What the core has to hear of.
#[derive(Debug)]
pub(super) enum RequestEvent {
    Request { from: PeerId, id: u64, bytes: Vec<u8> },
    Response { from: PeerId, id: u64, bytes: Vec<u8> },
    Failed { to: PeerId, id: u64, error: OutboundFailure },
}

#[derive(Debug)]
pub(super) struct NumberedRequests {
    protocol: Protocol,
    /// Ours, with the core's number.
    sent: HashMap<OutboundRequestId, u64>,
    /// Those of peers that the core has not answered, by our number.
    received: HashMap<u64, (PeerId, InboundRequestId, ResponseChannel<Vec<u8>>)>,
    next_id: u64,
}

impl NumberedRequests {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { protocol, sent: HashMap::new(), received: HashMap::new(), next_id: 0 }
    }

    /// Sends a request of ours; false if the peer is not connected.
    pub(super) fn send(&mut self, context: &mut Context, to: PeerId, id: u64, bytes: Vec<u8>) -> bool {
        let is_connected = context.swarm.is_connected(&to);
        if is_connected {
            let sent = context.requests_of(self.protocol).send_request(&to, bytes);
            self.sent.insert(sent, id);
        }
        is_connected
    }

    /// Answers a request, if its asker still waits.
    pub(super) fn respond(&mut self, context: &mut Context, id: u64, bytes: Vec<u8>) {
        if let Some((peer, asked, channel)) = self.received.remove(&id) {
            context.send_reply((self.protocol, asked), peer, channel, bytes);
        }
    }

    /// Takes what happened to a request, and returns what the core has to hear.
    pub(super) fn on_event(&mut self, context: &mut Context, event: Event) -> Option<RequestEvent> {
        match event {
            Event::Message { peer, message: Message::Request { request_id, request, channel }, .. } => {
                self.next_id += 1;
                self.received.insert(self.next_id, (peer, request_id, channel));
                Some(RequestEvent::Request { from: peer, id: self.next_id, bytes: request })
            }
            Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                context.statistics.on_responsive(&peer);
                let id = self.sent.remove(&request_id)?;
                Some(RequestEvent::Response { from: peer, id, bytes: response })
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                let id = self.sent.remove(&request_id)?;
                Some(RequestEvent::Failed { to: peer, id, error })
            }
            Event::InboundFailure { request_id, .. } => {
                // The answer that we still owe has nobody to go to.
                self.received.retain(|_, (_, received, _)| *received != request_id);
                context.unread.end(&(self.protocol, request_id));
                None
            }
            Event::ResponseSent { request_id, .. } => {
                context.unread.end(&(self.protocol, request_id));
                None
            }
        }
    }
}
