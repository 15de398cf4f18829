//! Attestations: who may hear of which builder, and the requests and replies of the thread that exchanges them.

use super::Mesh;
use crate::exchange::{ExchangeMessage, ExchangeOrder};
use crate::handle::AudienceView;
use crate::unread::Protocol;
use libp2p::PeerId;
use libp2p::request_response;
use narmesh_gossip::PeerView;
use narmesh_protocol::BuilderKey;
use narmesh_quorum::exchange::{Input, Spoken};
use narmesh_quorum::reconcile::Shared;
use narmesh_quorum::wire::QuorumReply;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Mesh {
    /// Tells the exchange thread which builders count and who is trusted.
    pub(super) fn tell_builders(&mut self) {
        self.exchange.tell(ExchangeMessage::Builders(self.config.builders.clone(), self.config.own_builder));
        let owners = self.builder_nodes();
        self.audiences_kept.retain(|owner, _| owners.contains(owner));
        if let Err(error) = self.state.keep_audiences(&owners) {
            tracing::error!(%error, "state database: audiences of former builders were not removed");
        }
        owners.iter().for_each(|owner| self.keep_audience(owner));
        self.exchange.pass_input(Input::Allowlist(self.config.peers.keys().copied().collect()));
        self.speak_with_all();
    }

    fn builder_nodes(&self) -> BTreeSet<PeerId> {
        self.config.builders.iter().filter_map(|builder| builder.peer).collect()
    }

    /// Remembers the audience of a builder's node, so that after a restart its attestations are relayed to them while
    /// it is away.
    fn keep_audience(&mut self, owner: &PeerId) {
        let Some(audience) = self.gossip.audience(owner) else { return };
        if self.audiences_kept.get(owner).is_some_and(|kept| kept == audience) {
            return;
        }
        match self.state.set_audience(owner, audience) {
            Ok(()) => drop(self.audiences_kept.insert(*owner, Arc::clone(audience))),
            Err(error) => tracing::error!(
                peer = %owner, %error,
                "state database: cannot write; after a restart the builder's earlier audience is used"
            ),
        }
    }

    /// For each builder's node, who of our allowlist may hear of its attestations.
    pub(super) fn audiences(&self) -> BTreeMap<PeerId, AudienceView> {
        // A summary that was kept over a restart does not show that its owner is there.
        let is_heard = |seen: &PeerView| seen.summary.as_ref().is_some_and(|summary| !summary.remembered);
        let held: BTreeSet<PeerId> = self.gossip.peers().filter(is_heard).map(|seen| seen.peer).collect();
        let view = |owner: PeerId| {
            let is_known = self.gossip.audience(&owner).is_some();
            let peers = self.config.peers.keys().filter(|peer| **peer != owner);
            let admitted = peers.filter(|peer| self.gossip.admits(&owner, peer)).copied().collect();
            (owner, AudienceView { is_known, is_present: held.contains(&owner), admitted })
        };
        self.builder_nodes().into_iter().map(view).collect()
    }

    /// Notes that this peer's summary may have another audience than before.
    pub(super) fn on_audience_changed(&mut self, owner: &PeerId) {
        if self.config.builders.iter().any(|builder| builder.peer.as_ref() == Some(owner)) {
            self.keep_audience(owner);
            self.speak_with_all();
        }
    }

    /// Lets peers hear of our own builds once the offer knows which of them are private; nobody is told of any before.
    pub(super) fn on_offer_looked(&mut self) {
        if !self.tells_own && self.offer.has_looked() {
            self.tells_own = true;
            self.speak_with_all();
        }
    }

    fn speak_with_all(&mut self) {
        let connected: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        connected.into_iter().for_each(|peer| self.speak_with(peer));
    }

    /// Tells the thread which builders may be spoken of with this connected peer. A peer that a summary of the
    /// builder's node would not be told to is told nothing; of our own builds everybody on our allowlist may hear.
    pub(super) fn speak_with(&self, peer: PeerId) {
        let owners = self.builder_nodes();
        let admitting: BTreeSet<PeerId> =
            owners.iter().filter(|owner| self.gossip.admits(owner, &peer)).copied().collect();
        let own = self.config.own_builder.filter(|_| self.tells_own);
        let counted = self.config.builders.iter().filter(|builder| {
            let is_own = own == Some(BuilderKey(builder.key.bytes()));
            is_own || builder.peer.is_some_and(|owner| admitting.contains(&owner))
        });
        let counted: Vec<BuilderKey> = counted.map(|builder| BuilderKey(builder.key.bytes())).collect();
        let told = Shared::new(counted.iter().copied().chain(own));
        let spoken = Spoken { told, counted: Shared::new(counted), is_builder: owners.contains(&peer) };
        self.exchange.pass_input(Input::Peer { peer, spoken });
    }

    /// Does what the thread wants.
    pub(super) fn on_order(&mut self, order: ExchangeOrder) {
        match order {
            ExchangeOrder::Request { to, id, bytes } => {
                if self.swarm.is_connected(&to) {
                    let sent = self.swarm.behaviour_mut().quorum.send_request(&to, bytes);
                    self.quorum_sent.insert(sent, (to, id));
                } else {
                    self.exchange.pass_input(Input::RequestFailed { to, id });
                }
            }
            ExchangeOrder::Respond { id, bytes } => {
                if let Some((peer, asked, channel)) = self.quorum_received.remove(&id) {
                    self.give((Protocol::Quorum, asked), peer, channel, bytes);
                }
            }
            ExchangeOrder::Penalize(peer, misdeed) => self.report_misdeed(peer, misdeed),
        }
    }

    pub(super) fn on_quorum(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request_id, request, channel } => {
                    let id = self.new_id();
                    if !self.exchange.pass_request(peer, id, request) {
                        if let Ok(busy) = QuorumReply::Busy.encode() {
                            drop(self.swarm.behaviour_mut().quorum.send_response(channel, busy));
                        }
                        return;
                    }
                    self.quorum_received.insert(id, (peer, request_id, channel));
                }
                request_response::Message::Response { request_id, response } => {
                    self.statistics.on_responsive(&peer);
                    if let Some((from, id)) = self.quorum_sent.remove(&request_id) {
                        self.exchange.pass_input(Input::Response { from, id, bytes: response });
                    }
                }
            },
            request_response::Event::OutboundFailure { request_id, error, peer, .. } => {
                tracing::debug!(%peer, %error, "quorum request failed");
                if let Some((to, id)) = self.quorum_sent.remove(&request_id) {
                    self.exchange.pass_input(Input::RequestFailed { to, id });
                }
            }
            request_response::Event::InboundFailure { request_id, .. } => {
                self.quorum_received.retain(|_, (_, received, _)| *received != request_id);
                self.unread.end(&(Protocol::Quorum, request_id));
            }
            request_response::Event::ResponseSent { request_id, .. } => {
                self.unread.end(&(Protocol::Quorum, request_id));
            }
        }
    }
}
