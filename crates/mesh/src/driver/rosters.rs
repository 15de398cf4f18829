//! Rosters of our mesh: members compare which one they have, and whoever has the newer one gives it to the other.
//!
//! Both sides ask on each new connection, when there is a new roster, and once a minute one of the connected peers is
//! asked. Who has the older one is told the newer one, or that it may ask.

use super::context::Context;
use super::questions::is_admitted;
use super::requests::{Event, NumberedRequests, RequestEvent};
use crate::clock::moment;
use crate::config::MeshMembership;
use crate::request_rates::RequestRates;
use crate::unread::Protocol;
use libp2p::PeerId;
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
    requests: NumberedRequests,
    /// The peers that were asked, by the number of the question.
    asked: HashMap<u64, PeerId>,
    newest_id: u64,
    rates: RequestRates,
    /// When the next peer is asked, and which one was asked last.
    next: Moment,
    last: Option<PeerId>,
}

impl Rosters {
    pub(super) fn new(heard: mpsc::Sender<Arc<SignedRoster>>) -> Self {
        let next = Moment(moment().0 + COMPARE_MS);
        let (requests, rates) = (NumberedRequests::new(Protocol::Roster), RequestRates::of_rosters());
        Self { heard, requests, asked: HashMap::new(), newest_id: 0, rates, next, last: None }
    }

    /// Compares with a peer, if we are of a mesh and do not compare with it already.
    pub(super) fn compare(&mut self, context: &mut Context, peer: PeerId) {
        let Some(mesh) = &context.config.mesh else { return };
        if self.asked.values().any(|asked| *asked == peer) {
            return;
        }
        let request = RosterRequest { mesh: mesh.key.bytes(), have: mesh.version() };
        self.newest_id += 1;
        if let Ok(bytes) = request.encode()
            && self.requests.send(context, peer, self.newest_id, bytes)
        {
            self.asked.insert(self.newest_id, peer);
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

    pub(super) fn on_event(&mut self, context: &mut Context, event: Event) {
        match self.requests.on_event(context, event) {
            Some(RequestEvent::Request { from, id, bytes }) => self.answer(context, from, id, &bytes),
            Some(RequestEvent::Response { id, bytes, .. }) => {
                if let Some(peer) = self.asked.remove(&id) {
                    self.on_answer(context, peer, &bytes);
                }
            }
            Some(RequestEvent::Failed { id, .. }) => drop(self.asked.remove(&id)),
            None => {}
        }
    }

    fn answer(&mut self, context: &mut Context, peer: PeerId, id: u64, request: &[u8]) {
        let reply = match RosterRequest::decode(request) {
            Ok(request) if is_admitted(context, &mut self.rates, peer) => reply_to(context, &peer, &request),
            Ok(_) => RosterReply::Busy,
            Err(_) => {
                context.report_misdeed(peer, Misdeed::MalformedRequest);
                RosterReply::Absent
            }
        };
        let is_behind = reply == RosterReply::Older;
        if let Ok(bytes) = reply.encode() {
            self.requests.respond(context, id, bytes);
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
