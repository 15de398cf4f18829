//! Carries what the gossip core says and hears: announcements, and requests of its protocol.

use super::context::Context;
use super::requests::{Event, NumberedRequests, RequestEvent};
use crate::behaviour::announce_topic;
use crate::clock::now;
use crate::unread::Protocol;
use libp2p::{PeerId, gossipsub};
use narmesh_gossip::{Forward, Input};
use std::collections::HashMap;

#[derive(Debug)]
pub(super) struct GossipLink {
    requests: NumberedRequests,
    /// Announcements that the core has not judged, by our number: their ids, and who forwarded them.
    unjudged: HashMap<u64, (gossipsub::MessageId, PeerId)>,
    next_id: u64,
}

impl GossipLink {
    pub(super) fn new() -> Self {
        Self { requests: NumberedRequests::new(Protocol::Gossip), unjudged: HashMap::new(), next_id: 0 }
    }

    /// Passes an announcement to the core; returns whether the event was one. The caller performs the core's outputs
    /// then, and ends with [`Self::clear_unjudged`].
    pub(super) fn on_announcement(&mut self, context: &mut Context, event: gossipsub::Event) -> bool {
        let gossipsub::Event::Message { propagation_source: from, message_id, message } = event else { return false };
        let Some(author) = message.source else { return false };
        self.next_id += 1;
        self.unjudged.insert(self.next_id, (message_id, from));
        let announcement = Input::Announcement { id: self.next_id, author, from, bytes: message.data };
        context.gossip.handle(now(), announcement);
        true
    }

    /// Forgets announcements that the core did not judge. It judges at once, and what is left must not pile up.
    pub(super) fn clear_unjudged(&mut self) {
        self.unjudged.clear();
    }

    /// Tells gossipsub whether to forward an announcement.
    pub(super) fn judge(&mut self, context: &mut Context, id: u64, verdict: Forward) {
        if let Some((message, from)) = self.unjudged.remove(&id) {
            let acceptance = match verdict {
                Forward::Accept => gossipsub::MessageAcceptance::Accept,
                Forward::Ignore => gossipsub::MessageAcceptance::Ignore,
            };
            let announcements = &mut context.swarm.behaviour_mut().announcements;
            announcements.report_message_validation_result(&message, &from, acceptance);
        }
    }

    pub(super) fn send_request(&mut self, context: &mut Context, to: PeerId, id: u64, bytes: Vec<u8>) {
        if !self.requests.send(context, to, id, bytes) {
            context.gossip.handle(now(), Input::RequestFailed { to, id });
        }
    }

    pub(super) fn respond(&mut self, context: &mut Context, id: u64, bytes: Vec<u8>) {
        self.requests.respond(context, id, bytes);
    }

    pub(super) fn on_request(&mut self, context: &mut Context, event: Event) {
        let Some(event) = self.requests.on_event(context, event) else { return };
        let input = match event {
            RequestEvent::Request { from, id, bytes } => Input::Request { from, id, bytes },
            RequestEvent::Response { from, id, bytes } => Input::Response { from, id, bytes },
            RequestEvent::Failed { to, id, error } => {
                tracing::debug!(peer = %to, %error, "gossip request failed");
                Input::RequestFailed { to, id }
            }
        };
        context.gossip.handle(now(), input);
    }
}

/// Gossips an announcement of ours.
pub(super) fn publish(context: &mut Context, bytes: Vec<u8>) {
    match context.swarm.behaviour_mut().announcements.publish(announce_topic(), bytes) {
        Ok(_) => {}
        // We are alone: whoever connects later learns it from the greeting.
        Err(error) => tracing::debug!(%error, "announcement not gossiped"),
    }
}
