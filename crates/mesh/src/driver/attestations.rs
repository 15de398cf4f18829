//! Attestations: who may hear of which builder, and the requests and replies of the thread that exchanges them.

use super::context::{Context, encode_busy};
use super::requests::{Event, NumberedRequests, RequestEvent};
use crate::attestation_link::{DriverEnd, ExchangeLink, ExchangeMessage, ExchangeOrder};
use crate::handle::AudienceView;
use crate::unread::Protocol;
use libp2p::PeerId;
use narmesh_gossip::PeerView;
use narmesh_protocol::{AudienceDigest, BuilderKey};
use narmesh_quorum::exchange::{Input, Spoken};
use narmesh_quorum::reconcile::Shared;
use narmesh_store::Offer;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

#[derive(Debug)]
pub(super) struct Attestations {
    link: ExchangeLink,
    orders: mpsc::Receiver<ExchangeOrder>,
    requests: NumberedRequests,
    offer: Arc<Offer>,
    /// The audiences of builders' nodes, as they stand in the state database.
    audiences_kept: HashMap<PeerId, Arc<[AudienceDigest]>>,
    /// Whether it is known which of our own builds are private, so that peers may be told of the rest.
    tells_own: bool,
}

impl Attestations {
    pub(super) fn new(DriverEnd { link, orders }: DriverEnd, offer: Arc<Offer>) -> Self {
        let requests = NumberedRequests::new(Protocol::Quorum);
        Self { link, orders, requests, offer, audiences_kept: HashMap::new(), tells_own: false }
    }

    /// Tells the exchange thread which builders count and who is trusted.
    pub(super) fn tell_builders(&mut self, context: &Context) {
        self.link.tell(ExchangeMessage::Builders(context.config.builders.clone(), context.config.own_builder));
        let owners = builder_nodes(context);
        // What was kept of a builder that does not count any more would be told for ever.
        self.audiences_kept.retain(|owner, _| owners.contains(owner));
        if let Err(error) = context.state.forget_audiences_except(&owners) {
            tracing::error!(%error, "state database: audiences of former builders were not removed");
        }
        owners.iter().for_each(|owner| self.keep_audience(context, owner));
        self.link.pass_input(Input::Allowlist(context.config.peers.keys().copied().collect()));
        self.speak_with_all(context);
    }

    /// Remembers the audience of a builder's node, so that after a restart its attestations are relayed to them while
    /// it is away.
    fn keep_audience(&mut self, context: &Context, owner: &PeerId) {
        let Some(audience) = context.gossip.audience(owner) else { return };
        // Audiences rarely change, and each write is one of the disk.
        if self.audiences_kept.get(owner).is_some_and(|kept| kept == audience) {
            return;
        }
        match context.state.set_audience(owner, audience) {
            Ok(()) => drop(self.audiences_kept.insert(*owner, Arc::clone(audience))),
            Err(error) => tracing::error!(
                peer = %owner, %error,
                "state database: cannot write; after a restart the builder's earlier audience is used"
            ),
        }
    }

    /// Notes that this peer's summary may have another audience than before.
    pub(super) fn on_audience_changed(&mut self, context: &Context, owner: &PeerId) {
        if context.config.builders.iter().any(|builder| builder.peer.as_ref() == Some(owner)) {
            self.keep_audience(context, owner);
            self.speak_with_all(context);
        }
    }

    /// Lets peers hear of our own builds once the offer knows which of them are private; nobody is told of any before.
    pub(super) fn on_offer_looked(&mut self, context: &Context) {
        if !self.tells_own && self.offer.has_looked() {
            self.tells_own = true;
            self.speak_with_all(context);
        }
    }

    fn speak_with_all(&self, context: &Context) {
        context.swarm.connected_peers().for_each(|peer| self.speak_with(context, *peer));
    }

    /// Tells the thread which builders may be spoken of with this connected peer. A peer that a summary of the
    /// builder's node would not be told to is told nothing; of our own builds everybody on our allowlist may hear.
    pub(super) fn speak_with(&self, context: &Context, peer: PeerId) {
        let owners = builder_nodes(context);
        let admitting: BTreeSet<PeerId> =
            owners.iter().filter(|owner| context.gossip.admits(owner, &peer)).copied().collect();
        let own = context.config.own_builder.filter(|_| self.tells_own);
        let counted = context.config.builders.iter().filter(|builder| {
            let is_own = own == Some(BuilderKey(builder.key.bytes()));
            is_own || builder.peer.is_some_and(|owner| admitting.contains(&owner))
        });
        let counted: Vec<BuilderKey> = counted.map(|builder| BuilderKey(builder.key.bytes())).collect();
        let told = Shared::new(counted.iter().copied().chain(own));
        let spoken = Spoken { told, counted: Shared::new(counted), is_builder: owners.contains(&peer) };
        self.link.pass_input(Input::Peer { peer, spoken });
    }

    pub(super) fn on_disconnected(&self, peer: PeerId) {
        self.link.pass_input(Input::Gone(peer));
    }

    pub(super) fn on_set_aside(&self, peer: PeerId, lasting: Duration) {
        let lasting_ms = u64::try_from(lasting.as_millis()).unwrap_or(u64::MAX);
        self.link.pass_input(Input::SetAside { peer, lasting_ms });
    }

    /// What the thread wants next, for [`Self::on_order`]. Dropping the future loses nothing.
    pub(super) async fn next_order(&mut self) -> Option<ExchangeOrder> {
        self.orders.recv().await
    }

    /// Does what the thread wants.
    pub(super) fn on_order(&mut self, context: &mut Context, order: ExchangeOrder) {
        match order {
            ExchangeOrder::Request { to, id, bytes } => {
                if !self.requests.send(context, to, id, bytes) {
                    self.link.pass_input(Input::RequestFailed { to, id });
                }
            }
            ExchangeOrder::Respond { id, bytes } => self.requests.respond(context, id, bytes),
            ExchangeOrder::ReportMisdeed(peer, misdeed) => context.report_misdeed(peer, misdeed),
        }
    }

    pub(super) fn on_request(&mut self, context: &mut Context, event: Event) {
        match self.requests.on_event(context, event) {
            Some(RequestEvent::Request { from, id, bytes }) => {
                // The thread that answers is behind. *Busy* makes the peer ask later, and silence would look like a
                // break.
                if !self.link.pass_request(from, id, bytes)
                    && let Ok(busy) = encode_busy(Protocol::Quorum)
                {
                    self.requests.respond(context, id, busy);
                }
            }
            Some(RequestEvent::Response { from, id, bytes }) => {
                self.link.pass_input(Input::Response { from, id, bytes });
            }
            Some(RequestEvent::Failed { to, id, error }) => {
                tracing::debug!(peer = %to, %error, "quorum request failed");
                self.link.pass_input(Input::RequestFailed { to, id });
            }
            None => {}
        }
    }
}

fn builder_nodes(context: &Context) -> BTreeSet<PeerId> {
    context.config.builders.iter().filter_map(|builder| builder.peer).collect()
}

/// For each builder's node, who of our allowlist may hear of its attestations.
pub(super) fn view_audiences(context: &Context) -> BTreeMap<PeerId, AudienceView> {
    // A summary that was kept over a restart does not show that its owner is there.
    let is_heard = |seen: &PeerView| seen.summary.as_ref().is_some_and(|summary| !summary.remembered);
    let held: BTreeSet<PeerId> = context.gossip.peers().filter(is_heard).map(|seen| seen.peer).collect();
    let view = |owner: PeerId| {
        let is_known = context.gossip.audience(&owner).is_some();
        let peers = context.config.peers.keys().filter(|peer| **peer != owner);
        let admitted = peers.filter(|peer| context.gossip.admits(&owner, peer)).copied().collect();
        (owner, AudienceView { is_known, is_present: held.contains(&owner), admitted })
    };
    builder_nodes(context).into_iter().map(view).collect()
}
