//! Dials, and lookups that wait for a connection. Host names are resolved first, outside the driver's loop.

use super::Mesh;
use crate::addresses::{describe_dial_error, socket_address};
use crate::clock::now;
use crate::dialer::{Demand, NotNow};
use crate::handle::AskError;
use crate::names::{Names, Resolved, is_named};
use libp2p::swarm::DialError;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Lookups that wait for a connection with one peer: as many as the resolver has paths under way.
const WAITERS_MAX: usize = 256;
/// A dial waits no longer than this for its names: as long as for a handshake.
const NAMES_MAX: Duration = Duration::from_secs(3);
/// A dial waits no longer than this for its names if it has other addresses and the last dial did not fail: half of the
/// usual deadline of a narinfo. A guess.
const NAMES_BESIDE_MAX: Duration = Duration::from_millis(500);

/// Names that are resolved for dials: at most one entry for each peer of the allowlist.
#[derive(Debug)]
pub(super) struct Lookups {
    names: Names,
    under_way: JoinSet<(PeerId, Resolved)>,
    /// Why names of the dial under way led nowhere.
    unresolved: HashMap<PeerId, String>,
    /// The IP addresses of the last dial with names.
    led_to: HashMap<PeerId, Vec<IpAddr>>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self {
            names: Names::of_the_system(),
            under_way: JoinSet::new(),
            unresolved: HashMap::new(),
            led_to: HashMap::new(),
        }
    }
}

impl Lookups {
    fn start(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, has_failed: bool) {
        // If its other addresses did not lead to the peer, its names are worth waiting for.
        let can_go_on = !has_failed && !addresses.iter().all(is_named);
        let patience = if can_go_on { NAMES_BESIDE_MAX } else { NAMES_MAX };
        let names = self.names.clone();
        self.under_way.spawn(async move { (peer, names.resolve(&addresses, patience).await) });
    }

    /// The next dial whose names are resolved; `None` while none is under way. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<(PeerId, Resolved)> {
        // No task panics or is stopped while the driver runs.
        self.under_way.join_next().await?.ok()
    }

    /// Notes the result; says whether the names lead elsewhere than before.
    fn on_resolved(&mut self, peer: PeerId, resolved: &Resolved) -> bool {
        if !resolved.failures.is_empty() {
            self.unresolved.insert(peer, resolved.failures.join("; "));
        }
        let ips: Vec<_> = resolved.addresses.iter().filter_map(socket_address).map(|address| address.ip()).collect();
        // A resolver that fails for a moment says nothing new about where the peer is.
        !ips.is_empty() && self.led_to.insert(peer, ips.clone()) != Some(ips)
    }

    fn take_unresolved(&mut self, peer: &PeerId) -> Option<String> {
        self.unresolved.remove(peer)
    }

    fn led_to(&self) -> impl Iterator<Item = IpAddr> {
        self.led_to.values().flatten().copied()
    }

    pub(super) fn on_connected(&mut self, peer: &PeerId) {
        self.unresolved.remove(peer);
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.unresolved.remove(peer);
        self.led_to.remove(peer);
    }
}

impl Mesh {
    pub(super) fn dial_due(&mut self) {
        for (peer, addresses) in self.dialer.take_due(now().moment) {
            self.dial(peer, addresses);
        }
    }

    /// Dials at once if all addresses are known, else when their names are resolved.
    fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if addresses.iter().any(is_named) {
            let has_failed = self.dialer.has_failed(&peer);
            self.lookups.start(peer, addresses, has_failed);
        } else {
            self.dial_at(peer, addresses);
        }
    }

    /// Dials: the names are resolved, or were not in time.
    pub(super) fn on_resolved(&mut self, peer: PeerId, resolved: Resolved) {
        if !self.config.peers.contains_key(&peer) {
            return;
        }
        self.are_known_addresses_stale |= self.lookups.on_resolved(peer, &resolved);
        if resolved.addresses.is_empty() {
            self.on_dial_failed_because(peer, None);
        } else {
            self.dial_at(peer, resolved.addresses);
        }
    }

    fn dial_at(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let options = DialOpts::peer_id(peer).condition(PeerCondition::Disconnected).addresses(addresses);
        // From the port that we listen on, the new connection would have the addresses and ports of one that has just
        // died. The kernel of the other side may still know that one, and then answers only when the request is
        // repeated, a second later.
        let options = options.allocate_new_port().build();
        if let Err(error) = self.swarm.dial(options) {
            self.on_dial_failed(peer, &error);
        }
    }

    pub(super) fn on_dial_failed(&mut self, peer: PeerId, error: &DialError) {
        self.on_dial_failed_because(peer, Some(describe_dial_error(error)));
    }

    /// Notes a failed dial; `why` is about the addresses that were dialled, if any were.
    fn on_dial_failed_because(&mut self, peer: PeerId, why: Option<String>) {
        let unresolved = self.lookups.take_unresolved(&peer);
        // The peer may have dialled us meanwhile; then nothing has failed.
        if self.swarm.is_connected(&peer) {
            self.dialer.on_connected(now().moment, &peer, None);
            return;
        }
        let why = unresolved.into_iter().chain(why).collect::<Vec<_>>().join("; ");
        tracing::debug!(%peer, why, "dial failed");
        self.dialer.on_failed(now().moment, &peer, &mut self.rng);
        self.statistics.update(&peer, |stats| stats.why = Some(why.clone()));
        // Lookups that still wait go on waiting for the next dial, if it comes soon.
        for waiter in self.connecting.remove(&peer).unwrap_or_default() {
            self.connect(peer, waiter);
        }
    }

    pub(super) fn connect(&mut self, peer: PeerId, reply: oneshot::Sender<Result<(), AskError>>) {
        if reply.is_closed() {
            return;
        }
        let refuse =
            |reply: oneshot::Sender<_>, why: &str| drop(reply.send(Err(AskError::NotConnected(why.to_owned()))));
        match self.dialer.demand(now().moment, &peer) {
            Ok(Demand::Connected) => drop(reply.send(Ok(()))),
            Ok(demand) => {
                let waiting = self.connecting.entry(peer).or_default();
                waiting.retain(|waiter| !waiter.is_closed());
                if waiting.len() >= WAITERS_MAX {
                    return refuse(reply, "too many lookups wait for a connection");
                }
                waiting.push(reply);
                if let Demand::Dial(addresses) = demand {
                    self.dial(peer, addresses);
                }
            }
            Err(NotNow::Unknown) => refuse(reply, "not on the allowlist"),
            Err(NotNow::NoAddress) => refuse(reply, "no address, or each was just tried"),
            Err(NotNow::Gone) => {
                let why = self.statistics.stats(&peer).and_then(|stats| stats.why);
                refuse(reply, &why.unwrap_or_else(|| "it cannot be reached".to_owned()));
            }
        }
    }

    /// Tells the handshake limits where peers are known to be, so that strangers cannot keep those out.
    pub(super) fn tell_handshake_limits(&mut self) {
        let known = self.config.peers.keys().flat_map(|peer| self.dialer.addresses(peer));
        let known = known.filter_map(|address| socket_address(&address)).map(|address| address.ip());
        let known: Vec<_> = known.chain(self.lookups.led_to()).collect();
        self.swarm.behaviour_mut().handshake_limits.set_known(known);
    }
}
