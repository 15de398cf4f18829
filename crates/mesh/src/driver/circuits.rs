//! Circuits: asking relays for them, being asked as a relay, and coming when a relay says that somebody waits there.

use super::context::{Context, encode_busy};
use super::questions::{Dialogue, FoundAnswer, Request};
use super::requests::Event;
use super::upgrades::Upgrades;
use super::ways::{Taken, Ways};
use crate::addresses::{describe_dial_error, socket_address};
use crate::circuits::{Arrived, Circuits, Order, Part, Relay, RelayView, Way};
use crate::handle::AskError;
use crate::request_rates::{DialRates, RequestRates};
use crate::swarm::BuiltCircuits;
use crate::unread::Protocol;
use libp2p::core::ConnectedPoint;
use libp2p::swarm::{ConnectionId, DialError};
use libp2p::{Multiaddr, PeerId};
use narmesh_gossip::Moment;
use narmesh_protocol::codec::CodecError;
use narmesh_protocol::wire::{CircuitReply, CircuitRequest};
use narmesh_protocol::{node_key_of, peer_of};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::dials::Dials;

/// Peers that are met at the same time; further ones are told *busy*.
const ANSWERS_AT_ONCE_MAX: usize = 8;

/// What the driver is told beside what peers say.
#[derive(Debug)]
pub(super) enum Next {
    /// A request is to be sent.
    Order(Order),
    /// We are ready to meet a peer.
    Answer(FoundAnswer),
}

#[derive(Debug)]
pub(super) struct CircuitRequests {
    dialogue: Dialogue,
    orders: mpsc::Receiver<Order>,
    circuits: Circuits,
    arrived: mpsc::Sender<Arrived>,
    relay: Relay,
    ways: Ways,
    upgrades: Upgrades,
    /// How often each peer is met.
    meetings: DialRates,
    /// Where each relay was reached that we dialled.
    dialled: BTreeMap<PeerId, SocketAddr>,
}

impl CircuitRequests {
    pub(super) fn new(built: BuiltCircuits) -> Self {
        let BuiltCircuits { circuits, orders, arrived, relay } = built;
        let dialogue = Dialogue::new(Protocol::Circuit, RequestRates::of_circuits(), ANSWERS_AT_ONCE_MAX);
        Self {
            dialogue,
            orders,
            circuits,
            arrived,
            relay,
            ways: Ways::default(),
            upgrades: Upgrades::default(),
            meetings: DialRates::default(),
            dialled: BTreeMap::new(),
        }
    }

    /// What comes next, for [`Self::on_next`]. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Next> {
        tokio::select! {
            Some(order) = self.orders.recv() => Some(Next::Order(order)),
            Some(answer) = self.dialogue.next_answer() => Some(Next::Answer(answer)),
            else => None,
        }
    }

    pub(super) fn on_next(&mut self, context: &mut Context, next: Next) {
        match next {
            Next::Order(order) => self.dialogue.ask(context, order.peer, order.request.encode(), order.reply),
            Next::Answer(answer) => answer.send(context),
        }
    }

    pub(super) fn on_event(&mut self, context: &mut Context, event: Event) {
        let Some((request, bytes)) = self.dialogue.on_event(context, event) else { return };
        let decoded = CircuitRequest::decode(&bytes).ok();
        let Some((question, request)) = self.dialogue.admit(context, request, decoded) else { return };
        match question {
            CircuitRequest::Open(to) => self.answer_open(context, request, &to),
            CircuitRequest::Come { from, ticket } => self.answer_come(context, request, &from, ticket),
            CircuitRequest::Meet { addresses, token } => self.answer_meet(context, request, addresses, token),
        }
    }

    /// As a relay: a member wants a circuit to another one.
    fn answer_open(&mut self, context: &mut Context, request: Request, to: &[u8; 32]) {
        let asker = request.0;
        let is_near = |peer: &PeerId| self.ways.best(peer).is_some_and(|taken| taken.way > Way::Relayed);
        // Only between members that are both connected here without a relay: circuits over circuits would go round.
        let to = peer_of(to).filter(|to| self.relay.is_on() && *to != asker && is_near(to) && is_near(&asker));
        let (Some(to), Some(from)) = (to, node_key_of(&asker)) else {
            return self.dialogue.respond(context, request, CircuitReply::Refused.encode());
        };
        let Some([own, theirs]) = self.relay.issue([asker, to]) else {
            return self.dialogue.respond(context, request, encode_busy(Protocol::Circuit));
        };
        let (reply, answered) = oneshot::channel();
        self.dialogue.ask(context, to, CircuitRequest::Come { from, ticket: theirs }.encode(), reply);
        // Its place must not stay taken until the ticket is over if the other one refuses at once.
        tokio::spawn(give_up_if_refused(self.relay.clone(), theirs, answered));
        self.dialogue.respond(context, request, CircuitReply::Ticket(own).encode());
    }

    /// A relay says that somebody waits there.
    fn answer_come(&mut self, context: &mut Context, request: Request, from: &[u8; 32], ticket: [u8; 16]) {
        let relay = request.0;
        let is_wanted = peer_of(from).is_some_and(|from| context.config.peers.contains_key(&from));
        // Otherwise any peer could have us connect to it again and again.
        if !is_wanted || !context.config.relays.contains(&relay) {
            return self.dialogue.respond(context, request, CircuitReply::Refused.encode());
        }
        let (circuits, arrived) = (self.circuits.clone(), self.arrived.clone());
        tokio::spawn(async move {
            match circuits.join(relay, ticket).await {
                // If too many wait to be taken, the other side tries again later.
                Ok(circuit) => drop(arrived.try_send(circuit)),
                Err(error) => tracing::debug!(%relay, %error, "no circuit, although the relay said that a peer waits"),
            }
        });
        self.dialogue.respond(context, request, CircuitReply::Coming.encode());
    }

    /// A peer wants to be met.
    fn answer_meet(&mut self, context: &mut Context, request: Request, named: Vec<SocketAddr>, token: [u8; 16]) {
        let peer = request.0;
        // Who is reached directly needs no meeting, and has us connect to nobody else.
        let is_far = self.ways.best(&peer).is_some_and(|best| best.way < Way::Direct);
        let theirs = self.circuits.choose_met(named);
        if !is_far || theirs.is_empty() {
            return self.dialogue.respond(context, request, CircuitReply::Refused.encode());
        }
        // Each meeting takes ports and connects to addresses that the peer names.
        if !self.meetings.admit(peer) {
            return self.dialogue.respond(context, request, encode_busy(Protocol::Circuit));
        }
        let (circuits, arrived, runtime) = (self.circuits.clone(), self.arrived.clone(), Handle::current());
        // On a thread that may block, because preparing a meeting asks relays where they see us.
        self.dialogue.look_up(context, request, move || {
            let meeting = runtime.block_on(circuits.prepare_meeting());
            let reply = CircuitReply::Meeting(meeting.addresses().to_vec()).encode();
            runtime.spawn(async move {
                match meeting.meet(&theirs, token, Part::Listener).await {
                    Ok(socket) => drop(arrived.try_send(Arrived::met(socket))),
                    Err(error) => tracing::debug!(%peer, ?theirs, %error, "the peer was not met"),
                }
            });
            reply
        });
    }

    /// Tries better ways that are due, and closes connections that others have replaced.
    pub(super) fn run_due(&mut self, context: &mut Context, dials: &Dials) {
        self.upgrades.run_due(context, &self.ways, dials);
    }

    /// When [`Self::run_due`] has something to do.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.upgrades.deadline()
    }

    /// Notes that a dial of this peer failed.
    pub(super) fn on_dial_failed(&self, context: &Context, peer: &PeerId, error: &DialError) {
        if self.ways.best(peer).is_some_and(|best| best.way == Way::Relayed) {
            let why = describe_dial_error(error);
            context.statistics.update(peer, |stats| stats.not_direct = Some(why));
        }
    }

    /// Notes a control connection that was opened.
    pub(super) fn on_opened(
        &mut self,
        context: &mut Context,
        dials: &mut Dials,
        (peer, id): (PeerId, ConnectionId),
        endpoint: &ConnectedPoint,
    ) {
        self.ways.on_opened(peer, id, endpoint);
        // Where we dialled a relay, it can be dialled again for circuits; where it came from says nothing.
        if let ConnectedPoint::Dialer { address, .. } = endpoint
            && let Some(address) = socket_address(address)
            && context.config.relays.contains(&peer)
        {
            self.dialled.insert(peer, address);
        }
        self.on_ways_changed(context, dials, &peer);
    }

    /// Notes a control connection that was closed.
    pub(super) fn on_closed(&mut self, context: &mut Context, dials: &mut Dials, peer: &PeerId, id: ConnectionId) {
        self.ways.on_closed(peer, id);
        self.on_ways_changed(context, dials, peer);
    }

    fn on_ways_changed(&mut self, context: &mut Context, dials: &mut Dials, peer: &PeerId) {
        let best = self.ways.best(peer);
        context.statistics.update(peer, |stats| {
            stats.way = best.map(|taken| taken.way);
            stats.relay = best.and_then(|taken| taken.relay).map(|relay| relay.to_string());
            if stats.way > Some(Way::Relayed) {
                stats.not_direct = None;
            }
        });
        self.upgrades.on_ways_changed(&self.ways, peer);
        if context.config.relays.contains(peer) {
            self.tell_relays(context, dials);
        }
    }

    /// Notes that other addresses of a peer may be known.
    pub(super) fn on_addresses_learned(&mut self, context: &mut Context, dials: &mut Dials, peer: &PeerId) {
        self.upgrades.on_addresses_learned(context, dials, peer);
        if context.config.relays.contains(peer) {
            self.tell_relays(context, dials);
        }
    }

    /// Tells whoever dials which relays there are, and which of them we are connected with.
    fn tell_relays(&mut self, context: &Context, dials: &mut Dials) {
        let relays = &context.config.relays;
        self.dialled.retain(|relay, _| relays.contains(relay));
        let is_near = |relay: &&PeerId| self.ways.best(relay).is_some_and(|taken: Taken| taken.way == Way::Direct);
        let reached = relays.iter().filter(is_near).map(|relay| {
            // The address that led there comes first; a relay that dialled us may be reached at those that it tells.
            let told = dials.addresses(relay);
            let told = told.iter().filter_map(|address: &Multiaddr| socket_address(address));
            (*relay, self.dialled.get(relay).copied().into_iter().chain(told).collect::<Vec<_>>())
        });
        let reached: BTreeMap<_, _> = reached.collect();
        dials.set_relays(relays, &reached.keys().copied().collect());
        self.circuits.set_relays(reached);
    }

    /// Follows the configuration.
    pub(super) fn on_reconfigured(&mut self, context: &mut Context, dials: &mut Dials) {
        // Over who relays no more no further circuit opens, so a NAR would find no way to a peer that counts as connected.
        for id in self.ways.relayed_by_others(&context.config.relays) {
            context.swarm.close_connection(id);
        }
        self.relay.set_on(context.config.is_relay);
        self.relay.set_rate(context.config.relay_bytes_per_s);
        self.circuits.set_loopback_told(context.config.advertise_loopback);
        self.tell_relays(context, dials);
    }

    /// This node as a relay.
    pub(super) fn view_relay(&self) -> RelayView {
        self.relay.view()
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.dialogue.forget(peer);
        self.meetings.forget(peer);
    }
}

/// Spares who waits for a peer the rest of the time if that one does not come.
async fn give_up_if_refused(relay: Relay, ticket: [u8; 16], answered: oneshot::Receiver<Result<Vec<u8>, AskError>>) {
    let reply = answered.await.ok().and_then(Result::ok);
    let is_coming =
        |bytes: &Vec<u8>| -> Result<bool, CodecError> { Ok(CircuitReply::decode(bytes)? == CircuitReply::Coming) };
    if reply.as_ref().is_none_or(|bytes| !is_coming(bytes).unwrap_or(false)) {
        relay.give_up(&ticket).await;
    }
}
