//! Rosters of our mesh: members compare which one they have, and whoever has the newer one gives it to the other.
//!
//! Both sides ask on each new connection, when there is a new roster, and once a minute one of the connected peers is
//! asked. Who has the older one is told the newer one, or that it may ask.

use super::context::Context;
use super::questions::is_admitted;
use super::requests::Event;
use crate::clock::moment;
use crate::config::MeshMembership;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::request_response::{InboundRequestId, Message, OutboundRequestId, ResponseChannel};
use narmesh_gossip::{Misdeed, Moment};
use narmesh_protocol::wire::{RosterReply, RosterRequest};
use narmesh_protocol::{SignedRoster, node_key_of};
use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::mpsc;

/// How often one peer after the other is asked, milliseconds.
const COMPARE_MS: u64 = 60_000;

#[derive(Debug)]
pub(super) struct Rosters {
    /// Where newer rosters go; the daemon keeps them and puts them in force.
    heard: mpsc::Sender<Arc<SignedRoster>>,
    asked: HashMap<OutboundRequestId, PeerId>,
    rates: RequestRates,
    /// When the next peer is asked, and which one was asked last.
    next: Moment,
    last: Option<PeerId>,
}

impl Rosters {
    pub(super) fn new(heard: mpsc::Sender<Arc<SignedRoster>>) -> Self {
        let next = Moment(moment().0 + COMPARE_MS);
        Self { heard, asked: HashMap::new(), rates: RequestRates::of_rosters(), next, last: None }
    }

    /// Compares with a peer, if we are of a mesh and do not compare with it already.
    pub(super) fn compare(&mut self, context: &mut Context, peer: PeerId) {
        let Some(mesh) = &context.config.mesh else { return };
        if self.asked.values().any(|asked| *asked == peer) || !context.swarm.is_connected(&peer) {
            return;
        }
        let request = RosterRequest { mesh: mesh.key.bytes(), have: mesh.version() };
        if let Ok(bytes) = request.encode() {
            let id = context.requests_of(Protocol::Roster).send_request(&peer, bytes);
            self.asked.insert(id, peer);
        }
    }

    /// Tells all connected peers if there is another roster than in the configuration of before.
    pub(super) fn on_reconfigured(&mut self, context: &mut Context, before: Option<&MeshMembership>) {
        if before.map(MeshMembership::version) == context.config.mesh.as_ref().map(MeshMembership::version) {
            return;
        }
        // A question under way names the roster of before.
        self.asked.clear();
        let peers: Vec<PeerId> = context.swarm.connected_peers().copied().collect();
        for peer in peers {
            self.compare(context, peer);
        }
    }

    /// Compares with the next peer if a minute is over.
    pub(super) fn compare_due(&mut self, context: &mut Context) {
        if context.config.mesh.is_none() || moment() < self.next {
            return;
        }
        self.next = Moment(moment().0 + COMPARE_MS);
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let connected = |peer: &&PeerId| context.swarm.is_connected(peer);
        let next = context.config.peers.range((after, Bound::Unbounded)).map(|(peer, _)| peer).find(connected);
        let next = next.or_else(|| context.config.peers.keys().find(connected)).copied();
        self.last = next;
        if let Some(peer) = next {
            self.compare(context, peer);
        }
    }

    pub(super) fn on_request(&mut self, context: &mut Context, event: Event) {
        match event {
            Event::Message { peer, message: Message::Request { request_id, request, channel }, .. } => {
                self.answer(context, (peer, request_id), &request, channel);
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some(peer) = self.asked.remove(&request_id) {
                    self.on_answer(context, peer, &response);
                }
            }
            Event::OutboundFailure { request_id, .. } => drop(self.asked.remove(&request_id)),
            Event::InboundFailure { request_id, .. } | Event::ResponseSent { request_id, .. } => {
                context.unread.end(&(Protocol::Roster, request_id));
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
        let Ok(request) = RosterRequest::decode(request) else {
            return context.report_misdeed(peer, Misdeed::MalformedRequest);
        };
        let reply = if is_admitted(context, &mut self.rates, peer) {
            reply_to(context, &peer, &request)
        } else {
            RosterReply::Busy
        };
        let is_behind = reply == RosterReply::Older;
        if let Ok(bytes) = reply.encode() {
            context.send_reply((Protocol::Roster, asked), peer, channel, bytes);
        }
        if is_behind {
            self.compare(context, peer);
        }
    }

    fn on_answer(&mut self, context: &mut Context, peer: PeerId, response: &[u8]) {
        let Some(mesh) = &context.config.mesh else { return };
        match RosterReply::decode(response) {
            Ok(RosterReply::Newer(bytes)) => match SignedRoster::open(&mesh.key, &bytes) {
                Ok(roster) if roster.version() > mesh.version() => {
                    tracing::info!(%peer, version = roster.roster().version, "newer roster heard");
                    // While the daemon is busy with another one, this one comes again with the next comparison.
                    drop(self.heard.try_send(Arc::new(roster)));
                }
                // We have heard it elsewhere meanwhile.
                Ok(_) => {}
                Err(_) => context.report_misdeed(peer, Misdeed::MalformedReply),
            },
            Ok(RosterReply::Absent | RosterReply::Same | RosterReply::Older | RosterReply::Busy) => {}
            Err(_) => context.report_misdeed(peer, Misdeed::MalformedReply),
        }
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.rates.forget(peer);
        self.asked.retain(|_, asked| asked != peer);
    }
}

/// Only members hear of a roster: who was removed is told nothing by anybody who has heard of that.
fn reply_to(context: &Context, peer: &PeerId, request: &RosterRequest) -> RosterReply {
    let Some(mesh) = context.config.mesh.as_ref().filter(|mesh| mesh.key.bytes() == request.mesh) else {
        return RosterReply::Absent;
    };
    let ours = mesh.version();
    if request.have > ours {
        return RosterReply::Older;
    }
    let is_member = |roster: &&Arc<SignedRoster>| node_key_of(peer).is_some_and(|key| roster.member(&key).is_some());
    match mesh.roster.as_ref().filter(is_member) {
        None => RosterReply::Absent,
        Some(_) if request.have == ours => RosterReply::Same,
        Some(roster) => RosterReply::Newer(roster.as_bytes().to_vec()),
    }
}
