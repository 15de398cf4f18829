//! Dials, and lookups that wait for a connection. Host names are resolved first, outside the driver's loop.

use super::context::Context;
use super::dial_names::DialNames;
use super::removal_asks::RemovalAsks;
use crate::addresses::{describe_dial_error, may_be_told, multiaddr, socket_address};
use crate::clock::now;
use crate::dial_failure::DialFailure;
use crate::dialer::{Demand, Dialer, NotNow};
use crate::handle::AskError;
use crate::names::{Resolved, is_named};
use libp2p::swarm::DialError;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use narmesh_gossip::Moment;
use rand::rngs::StdRng;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::oneshot;

/// Lookups that wait for a connection with one peer: as many as the resolver has paths under way.
const WAITERS_MAX: usize = 256;
/// A member that refuses us since we were removed is dialled again after this: it may have admitted us meanwhile, and not
/// reach us itself.
const REFUSED_PAUSE: Duration = Duration::from_secs(3_600);

/// Who is to be dialled, and who waits for it.
#[derive(Debug)]
pub(super) struct Dials {
    dialer: Dialer,
    names: DialNames,
    /// Lookups that wait for a connection.
    waiting: HashMap<PeerId, Vec<oneshot::Sender<Result<(), AskError>>>>,
    /// Whether an address of a peer changed since the handshake limits were told.
    are_known_addresses_stale: bool,
    /// Members that refuse us.
    refusing: BTreeSet<PeerId>,
    removal_asks: RemovalAsks,
    rng: StdRng,
}

impl Dials {
    pub(super) fn new(connections_wanted: usize, rng: StdRng, removal_asks: RemovalAsks) -> Self {
        Self {
            dialer: Dialer::new(connections_wanted),
            names: DialNames::default(),
            waiting: HashMap::new(),
            are_known_addresses_stale: false,
            refusing: BTreeSet::new(),
            removal_asks,
            rng,
        }
    }

    /// When [`Self::dial_due`] has something to do.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.dialer.deadline()
    }

    pub(super) fn dial_due(&mut self, context: &mut Context) {
        for (peer, addresses) in self.dialer.take_due(now().moment) {
            self.dial(context, peer, addresses);
        }
    }

    /// Dials at once if all addresses are known, else when their names are resolved.
    fn dial(&mut self, context: &mut Context, peer: PeerId, addresses: Vec<Multiaddr>) {
        if addresses.iter().any(is_named) {
            let has_failed = self.dialer.has_failed(&peer);
            self.names.start(peer, addresses, has_failed);
        } else {
            self.dial_at(context, peer, addresses);
        }
    }

    /// Dials: the names are resolved, or were not in time.
    pub(super) fn on_resolved(&mut self, context: &mut Context, peer: PeerId, resolved: Resolved) {
        // A reload may have removed it while its names were resolved.
        if !context.config.peers.contains_key(&peer) {
            return;
        }
        self.are_known_addresses_stale |= self.names.on_resolved(peer, &resolved);
        if resolved.addresses.is_empty() {
            self.on_failed_because(context, peer, None);
        } else {
            self.dial_at(context, peer, resolved.addresses);
        }
    }

    fn dial_at(&mut self, context: &mut Context, peer: PeerId, addresses: Vec<Multiaddr>) {
        let options = DialOpts::peer_id(peer).condition(PeerCondition::Disconnected).addresses(addresses);
        // From the port that we listen on, the new connection would have the addresses and ports of one that has just
        // died. The kernel of the other side may still know that one, and then answers only when the request is
        // repeated, a second later.
        let options = options.allocate_new_port().build();
        if let Err(error) = context.swarm.dial(options) {
            self.on_failed(context, peer, &error);
        }
    }

    pub(super) fn on_failed(&mut self, context: &mut Context, peer: PeerId, error: &DialError) {
        self.on_failed_because(context, peer, Some((describe_dial_error(error), DialFailure::of(error))));
    }

    /// Notes a failed dial; `why` is about the addresses that were dialled, if any were.
    fn on_failed_because(&mut self, context: &mut Context, peer: PeerId, why: Option<(String, DialFailure)>) {
        let unresolved = self.names.take_unresolved(&peer);
        // The peer may have dialled us meanwhile; then nothing has failed.
        if context.swarm.is_connected(&peer) {
            self.dialer.on_connected(now().moment, &peer, None);
            return;
        }
        let reasons = unresolved.map(|why| (why, DialFailure::Unresolved)).into_iter().chain(why);
        let (words, kinds): (Vec<_>, Vec<_>) = reasons.unzip();
        let why = words.join("; ");
        tracing::debug!(%peer, why, "dial failed");
        self.dialer.on_failed(now().moment, &peer, &mut self.rng);
        self.leave_refusing(&peer);
        context.statistics.update(&peer, |stats| {
            if !self.dialer.was_relayed(&peer) {
                stats.not_direct = Some(why.clone());
            }
            (stats.why, stats.why_kind) = (Some(why.clone()), kinds.into_iter().min());
        });
        // Lookups that still wait go on waiting for the next dial, if it comes soon.
        for waiter in self.waiting.remove(&peer).unwrap_or_default() {
            self.connect(context, peer, waiter);
        }
    }

    /// Answers when there is a connection, dialling if need be, or when none is expected soon.
    pub(super) fn connect(
        &mut self,
        context: &mut Context,
        peer: PeerId,
        reply: oneshot::Sender<Result<(), AskError>>,
    ) {
        // The lookup gave up while its command was in the queue, so no dial is worth it.
        if reply.is_closed() {
            return;
        }
        let refuse =
            |reply: oneshot::Sender<_>, why: &str| drop(reply.send(Err(AskError::NotConnected(why.to_owned()))));
        match self.dialer.demand(now().moment, &peer) {
            Ok(Demand::Connected) => drop(reply.send(Ok(()))),
            Ok(demand) => {
                let waiting = self.waiting.entry(peer).or_default();
                // Those who gave up are no longer waited for and must not use up the bound.
                waiting.retain(|waiter| !waiter.is_closed());
                if waiting.len() >= WAITERS_MAX {
                    return refuse(reply, "too many lookups wait for a connection");
                }
                waiting.push(reply);
                if let Demand::Dial(addresses) = demand {
                    self.dial(context, peer, addresses);
                }
            }
            Err(NotNow::Unknown) => refuse(reply, "not on the allowlist"),
            Err(NotNow::NoAddress) => refuse(reply, "no address, or each was just tried"),
            Err(NotNow::Gone) => {
                let why = context.statistics.stats(&peer).and_then(|stats| stats.why);
                refuse(reply, &why.unwrap_or_else(|| "it cannot be reached".to_owned()));
            }
        }
    }

    /// Tells the handshake limits where peers are known to be, if that changed, so that strangers cannot keep those out.
    pub(super) fn tell_handshake_limits(&mut self, context: &mut Context) {
        if !std::mem::take(&mut self.are_known_addresses_stale) {
            return;
        }
        let known = context.config.peers.keys().flat_map(|peer| self.dialer.addresses(peer));
        let known = known.filter_map(|address| socket_address(&address)).map(|address| address.ip());
        let known: Vec<_> = known.chain(self.names.led_to()).collect();
        context.swarm.behaviour_mut().handshake_limits.set_known(known);
    }

    /// Follows the configuration.
    pub(super) fn set_peers(&mut self, context: &mut Context) {
        let (peers, connections_wanted) = (&context.config.peers, context.config.connections_gossip);
        self.dialer.set_peers(now().moment, peers, connections_wanted);
        for peer in peers.keys() {
            self.show_addresses(context, peer);
        }
        let before = std::mem::replace(&mut self.refusing, context.config.refusing.clone());
        for peer in self.refusing.clone().difference(&before) {
            self.leave_refusing(peer);
        }
        for peer in before.difference(&self.refusing) {
            self.dialer.leave(now().moment, peer, Duration::ZERO);
        }
        self.are_known_addresses_stale = true;
        self.tell_handshake_limits(context);
    }

    /// Where a peer may be reached.
    pub(super) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.dialer.addresses(peer)
    }

    /// Sets which peers are relays, and with which of them there is a connection.
    pub(super) fn set_relays(&mut self, relays: &BTreeSet<PeerId>, connected: &BTreeSet<PeerId>) {
        self.dialer.set_relays(now().moment, relays, connected);
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.names.forget(peer);
        for waiter in self.waiting.remove(peer).unwrap_or_default() {
            drop(waiter.send(Err(AskError::NotConnected("no longer on the allowlist".to_owned()))));
        }
    }

    /// Learns where a peer says it is.
    pub(super) fn learn(&mut self, context: &Context, peer: PeerId, addresses: Vec<SocketAddr>) {
        let loopback = context.config.advertise_loopback;
        let usable = addresses.into_iter().filter(|address| may_be_told(address.ip(), loopback)).map(multiaddr);
        self.dialer.learn(now().moment, &peer, usable.collect());
        self.show_addresses(context, &peer);
        self.are_known_addresses_stale = true;
    }

    /// Takes where a peer was found on the local network, and dials it there if there is no connection.
    pub(super) fn find(&mut self, context: &mut Context, peer: PeerId, addresses: Vec<SocketAddr>) {
        // Whoever is heard on the local network need not be a member any more.
        if !context.config.peers.contains_key(&peer) {
            return;
        }
        // No loopback address of another machine is dialled, whoever names it.
        let usable = addresses.into_iter().filter(|address| may_be_told(address.ip(), false)).map(multiaddr);
        let before = self.dialer.addresses(&peer);
        let addresses = self.dialer.find(now().moment, &peer, usable.collect());
        // Mostly it is where it was.
        if self.dialer.addresses(&peer) != before {
            self.are_known_addresses_stale = true;
            self.show_addresses(context, &peer);
        }
        if !addresses.is_empty() {
            tracing::debug!(%peer, ?addresses, "found on the local network");
            self.dial_at(context, peer, addresses);
        }
    }

    fn show_addresses(&self, context: &Context, peer: &PeerId) {
        let all = self.dialer.addresses(peer).iter().map(Multiaddr::to_string).collect();
        context.statistics.update(peer, |stats| stats.addresses = all);
    }

    /// Notes a connection, at the address that we dialled if we did, and answers those that wait for it.
    pub(super) fn on_connected(&mut self, peer: PeerId, dialled: Option<&Multiaddr>) {
        self.dialer.on_connected(now().moment, &peer, dialled);
        self.names.on_connected(&peer);
        for waiter in self.waiting.remove(&peer).unwrap_or_default() {
            drop(waiter.send(Ok(())));
        }
    }

    pub(super) fn on_disconnected(&mut self, context: &Context, peer: &PeerId) {
        self.dialer.on_disconnected(now().moment, peer, &mut self.rng);
        self.leave_refusing(peer);
        // So it is with a member by whose roster we are none any more.
        if self.dialer.was_short(peer) {
            self.removal_asks.ask(context, *peer, self.dialer.addresses(peer));
        }
    }

    fn leave_refusing(&mut self, peer: &PeerId) {
        if self.refusing.contains(peer) {
            self.dialer.leave(now().moment, peer, REFUSED_PAUSE);
        }
    }

    /// Notes that this machine has other addresses than before.
    pub(super) fn on_moved(&mut self) {
        self.dialer.on_moved(now().moment);
    }

    /// Notes that this machine has another address, at which peers may reach it or from which it may reach them.
    pub(super) fn on_new_address(&mut self) {
        self.dialer.on_new_address(now().moment);
    }

    /// Does not dial a peer for a while.
    pub(super) fn leave(&mut self, peer: &PeerId, lasting: Duration) {
        self.dialer.leave(now().moment, peer, lasting);
    }

    /// Notes that a peer was there in the last run.
    pub(super) fn mark_remembered(&mut self, peer: &PeerId) {
        self.dialer.mark_remembered(now().moment, peer);
    }

    /// The next dial whose names are resolved, for [`Self::on_resolved`]; `None` while none is under way. Dropping the
    /// future loses nothing.
    pub(super) async fn next_resolved(&mut self) -> Option<(PeerId, Resolved)> {
        self.names.next().await
    }
}
