//! Decides which peers to dial, when, and at which addresses. It has no sockets: the driver does the dialling.
//!
//! Configured addresses are redialled for ever with a growing, jittered pause. Addresses learned from summaries are not
//! trusted: each is dialled at most once a minute, except the one at which the peer was last reached, and for gossip only
//! while there are fewer connections than wanted. Addresses that were found on the local network are dialled as soon as they are
//! heard of (`found.rs`).

mod found;

use self::found::Found;
use super::addresses::socket_address;
use super::circuits::{Way, over_relay};
use libp2p::{Multiaddr, PeerId};
use narmesh_gossip::Moment;
use rand::{Rng, RngExt};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// First pause after a failure; doubles up to [`PAUSE_MAX_MS`]. Small, so that a restarted neighbour is back at once.
const PAUSE_MIN_MS: u64 = 250;
/// Longest pause between two dials of a configured peer that was there within the last ten minutes or so.
const PAUSE_MAX_MS: u64 = 4_000;
/// After this many failures in a row a peer is not expected back soon, and the pause is [`PAUSE_GONE_MS`].
const FAILURES_SOON_MAX: u32 = 150;
/// The pause of a peer that has been gone for long.
const PAUSE_GONE_MS: u64 = 30_000;
/// The longest pause between two dials of a relay while there is no connection with anybody: then it is our own line that
/// is cut, and a member behind a NAT is reached by nobody before it has its relay back. With the 3 s that a dial takes at
/// the most, of which the last packet is sent after one, it is back within 5 s.
const PAUSE_CUT_OFF_MS: u64 = 2_000;
/// Other addresses of ours end pauses at most this often.
const MOVED_PAUSE_MS: u64 = 4_000;
/// A learned address is dialled at most once in this time, and at most [`ADDRESSES_MAX`] of a peer are, whatever its
/// summaries say meanwhile: otherwise a peer that names other addresses again and again has us dial them without end.
const LEARNED_PAUSE_MS: u64 = 60_000;
/// A new address waits this long before it is dialled for gossip: a lookup dials it at once.
const LEARNED_DELAY_MS: u64 = 1_000;
/// A peer that returns after this many failures in a row was cut off, and others may have been: a network that heals
/// brings all of them back.
const FAILURES_CUT_MIN: u32 = 4;
/// For this long after such a return, pauses do not grow.
const RETURNS_MS: u64 = 4_000;
/// A connection that lasted less than this counts as a failed one, except for the first in a row: two machines with the
/// same node key push each other out without end.
const SHORT_MS: u64 = 5_000;
/// After the first short connection the peer is dialled again within this.
const AGAIN_MS: u64 = 60;
/// A peer whose connection had lasted is dialled again within this: a daemon that is restarted is back in a fraction of
/// a second.
const BACK_FIRST_MS: u64 = 40;
/// If that dial is refused, the next pauses are one [`BACK_SHARE`]th of the time for which the peer has been gone,
/// within these bounds: a lookup just after a restart waits little for us, and a peer that stays away is dialled at
/// most ten times a second.
const BACK_MIN_MS: u64 = 8;
const BACK_MAX_MS: u64 = 100;
const BACK_SHARE: u64 = 8;
/// For how long a peer that is gone is dialled at these pauses.
const BACK_SOON_MS: u64 = 3_000;
/// A lookup waits for a dial that comes within this, the usual deadline of a narinfo. A peer whose next dial is further
/// away has failed some three times, and is gone for longer.
const EXPECTED_MS: u64 = 1_000;
/// A peer that comes and goes does not make us dial all others more often than this.
const RETURNS_PAUSE_MS: u64 = 60_000;
/// Relays that we keep connections with, those with the lowest peer ids: so any two members have one in common.
const RELAYS_KEPT_MAX: usize = 8;
/// Relays over which a peer is dialled at a time.
const RELAYS_TRIED_MAX: usize = 2;
/// Addresses kept for each peer, of the configured and of the learned ones each.
const ADDRESSES_MAX: usize = 8;

#[derive(Debug, Default)]
struct Target {
    /// Its position in the order of dialling.
    rank: u64,
    configured: Vec<Multiaddr>,
    /// Where it says that it can be reached.
    learned: Vec<Multiaddr>,
    /// The one of them at which we last reached it: there it proved who it is.
    proven: Option<Multiaddr>,
    /// The learned addresses that were dialled in the last [`LEARNED_PAUSE_MS`], perhaps no longer in `learned`.
    tried: Vec<(Multiaddr, Moment)>,
    /// Where it was found on the local network.
    found: Found,
    failures: u32,
    next: Moment,
    dialing: bool,
    connected: bool,
    since: Moment,
    /// Short connections in a row.
    short: u32,
    /// When a connection that had lasted ended, or our own last run with it.
    lost: Option<Moment>,
    /// A lookup waits for a connection with it.
    is_demanded: bool,
    /// It is shut out, and not dialled before this.
    left_until: Moment,
    /// Its addresses failed, and the relays come next.
    is_relays_turn: bool,
    /// The last dial was one over relays.
    was_relayed: bool,
    /// It is a relay that we want a connection with, whatever others there are.
    is_kept: bool,
    /// The relays over which it may be dialled, the first to be tried first.
    relays: Vec<PeerId>,
}

/// Why a peer cannot be dialled on demand now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotNow {
    /// Not on the allowlist.
    Unknown,
    /// No address is known, or each was tried a moment ago.
    NoAddress,
    /// It failed again and again, or is shut out; the next try comes by itself, but not soon.
    Gone,
}

/// What to do for a demand.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// There is a connection.
    Connected,
    /// A dial is under way, or comes within [`EXPECTED_MS`]; or the peer was there a moment ago, and may dial us.
    Wait,
    /// Dial these addresses.
    Dial(Vec<Multiaddr>),
}

/// The dial plan of all allowlisted peers.
#[derive(Debug)]
pub(super) struct Dialer {
    targets: BTreeMap<PeerId, Target>,
    connections_wanted: usize,
    /// When a peer that was cut off last returned.
    returned: Option<Moment>,
    /// When another address of ours last ended the pauses.
    moved: Option<Moment>,
    /// Every node has an order of its own, so that a large mesh has no hubs, and no PeerId can be ground to become one.
    order: RandomState,
}

impl Dialer {
    pub(super) fn new(connections_wanted: usize) -> Self {
        Self { targets: BTreeMap::new(), connections_wanted, returned: None, moved: None, order: RandomState::new() }
    }

    /// Makes the plan cover exactly `peers`; a new one is due at once.
    pub(super) fn set_peers(
        &mut self,
        now: Moment,
        peers: &BTreeMap<PeerId, Vec<Multiaddr>>,
        connections_wanted: usize,
    ) {
        self.connections_wanted = connections_wanted;
        self.targets.retain(|peer, _| peers.contains_key(peer));
        for (peer, addresses) in peers {
            let rank = self.order.hash_one(peer);
            let target = self.targets.entry(*peer).or_insert_with(|| Target { rank, ..Target::default() });
            let configured: Vec<_> = addresses.iter().take(ADDRESSES_MAX).cloned().collect();
            // Other addresses are worth a dial at once, whatever failed before.
            if target.configured != configured {
                target.configured = configured;
                target.failures = 0;
                target.next = now;
            }
        }
    }

    /// Sets which peers are relays, and with which of them there is a connection.
    pub(super) fn set_relays(&mut self, now: Moment, relays: &BTreeSet<PeerId>, connected: &BTreeSet<PeerId>) {
        let kept: BTreeSet<_> = relays.iter().take(RELAYS_KEPT_MAX).collect();
        for (peer, target) in &mut self.targets {
            target.is_kept = kept.contains(peer);
            let mut usable: Vec<_> = connected.iter().filter(|relay| *relay != peer).copied().collect();
            // Another order for each peer, the same at every start: so no relay has all the circuits.
            usable.sort_unstable_by_key(|relay| rank_of_relay(relay, peer));
            usable.truncate(RELAYS_TRIED_MAX);
            let is_new = usable.iter().any(|relay| !target.relays.contains(relay));
            target.relays = usable;
            let is_unreached = target.failures > 0 || target.configured.is_empty() && target.learned.is_empty();
            if is_new && !target.connected && !target.dialing && is_unreached {
                (target.is_relays_turn, target.next) = (true, target.next.min(now));
            }
        }
    }

    /// Takes the addresses from a peer's own signed summary, already filtered.
    pub(super) fn learn(&mut self, now: Moment, peer: &PeerId, addresses: Vec<Multiaddr>) {
        let Some(target) = self.targets.get_mut(peer) else { return };
        if addresses.iter().any(|address| !target.learned.contains(address)) {
            target.next = target.next.min(Moment(now.0 + LEARNED_DELAY_MS));
        }
        target.learned = addresses.into_iter().take(ADDRESSES_MAX).collect();
        target.proven.take_if(|proven| !target.learned.contains(proven));
    }

    /// Takes addresses at which a peer was found on the local network. Returns what is to be dialled at once, if it is: also
    /// beside a dial under way, which may take seconds to fail at an address that is no longer right.
    pub(super) fn find(&mut self, now: Moment, peer: &PeerId, addresses: Vec<Multiaddr>) -> Vec<Multiaddr> {
        let is_full = self.connections() >= self.connections_wanted;
        let Some(target) = self.targets.get_mut(peer) else { return Vec::new() };
        let is_worth_it = target.found.hear(now, addresses);
        // Whoever shuts it out does not want it back so soon.
        if !is_worth_it || target.connected || target.left_until > now || (is_full && !target.dialing) {
            return Vec::new();
        }
        let addresses = target.found.dialable(now).cloned().collect();
        target.found.start(now);
        target.dialing = true;
        addresses
    }

    /// Notes that we have just started, and knew this peer before.
    pub(super) fn mark_remembered(&mut self, now: Moment, peer: &PeerId) {
        if let Some(target) = self.targets.get_mut(peer) {
            target.lost = Some(now);
        }
    }

    /// Notes a connection; `via` is the address at which the peer was dialled and proved who it is.
    pub(super) fn on_connected(&mut self, now: Moment, peer: &PeerId, via: Option<&Multiaddr>) {
        let Some(target) = self.targets.get_mut(peer) else { return };
        let was_cut_off = target.failures >= FAILURES_CUT_MIN;
        (target.connected, target.dialing, target.failures, target.since) = (true, false, 0, now);
        (target.lost, target.is_demanded) = (None, false);
        // If this one ends, the way that led to it comes first.
        target.is_relays_turn = via.is_some_and(|via| Way::of(via) == Way::Relayed);
        if let Some(via) = via.and_then(socket_address) {
            target.found.prove(via);
            // The address is proven now: it may be dialled again if this connection is refused.
            target.tried.retain(|(address, _)| socket_address(address) != Some(via));
            let is_it = |address: &&Multiaddr| socket_address(address) == Some(via);
            target.proven = target.learned.iter().find(is_it).cloned().or(target.proven.take());
        }
        // The network may have healed, so the pauses of all others end now.
        if was_cut_off && self.returned.is_none_or(|before| now.since(before) >= RETURNS_PAUSE_MS) {
            self.returned = Some(now);
            for target in self.targets.values_mut().filter(|target| target.failures > 0) {
                target.next = target.next.min(now);
            }
        }
    }

    /// An address of ours is gone, and its connections with it. However short they were, that says nothing about the
    /// peers.
    pub(super) fn on_moved(&mut self, now: Moment) {
        for target in self.targets.values_mut() {
            (target.short, target.since) = (0, Moment(now.0.saturating_sub(SHORT_MS)));
        }
    }

    /// This machine has another address, so what failed before may not fail now: the pauses end.
    pub(super) fn on_new_address(&mut self, now: Moment) {
        // Several addresses change together, and each change must not begin all dials anew.
        if self.moved.is_some_and(|before| now.since(before) < MOVED_PAUSE_MS) {
            return;
        }
        self.moved = Some(now);
        for target in self.targets.values_mut().filter(|target| target.failures > 0 && !target.connected) {
            target.next = target.next.min(now);
        }
    }

    /// The last connection closed: the first redial comes after a jittered moment, so that two sides do not collide for
    /// ever.
    pub(super) fn on_disconnected(&mut self, now: Moment, peer: &PeerId, rng: &mut impl Rng) {
        if let Some(target) = self.targets.get_mut(peer) {
            target.connected = false;
            target.short = if now.since(target.since) < SHORT_MS { target.short.saturating_add(1) } else { 0 };
            let growth = target.short.saturating_sub(1).min(16);
            target.lost = (target.short == 0).then_some(now);
            let pause = match target.short {
                0 => BACK_FIRST_MS,
                // Refused because the other side still had an earlier connection: it takes the next one.
                1 => AGAIN_MS,
                _ => (PAUSE_MIN_MS << growth).min(PAUSE_MAX_MS),
            };
            target.next = Moment(now.0 + rng.random_range(pause / 12..pause));
        }
    }

    pub(super) fn on_failed(&mut self, now: Moment, peer: &PeerId, rng: &mut impl Rng) {
        let are_returning = self.returned.is_some_and(|since| now.since(since) < RETURNS_MS);
        let are_cut_off = self.targets.values().all(|target| !target.connected);
        if let Some(target) = self.targets.get_mut(peer) {
            target.dialing = false;
            // A direct dial has failed. The relays have their turn at once, and the pause comes only after them.
            target.is_relays_turn = !target.was_relayed && !target.relays.is_empty();
            if target.is_relays_turn {
                target.next = now;
                return;
            }
            let longest = match target.failures < FAILURES_SOON_MAX {
                _ if target.is_kept && are_cut_off => PAUSE_CUT_OFF_MS,
                true => PAUSE_MAX_MS,
                false => PAUSE_GONE_MS,
            };
            // A peer that was cut off is back, so others may be, too: they are tried again soon, whatever failed
            // meanwhile.
            let growth = if are_returning { 0 } else { target.failures.min(16) };
            let mut pause = (PAUSE_MIN_MS << growth).min(longest);
            if let Some(gone) = target.lost.map(|lost| now.since(lost)).filter(|gone| *gone < BACK_SOON_MS) {
                // It is a daemon being restarted that refuses here, not a peer that was cut off.
                (target.failures, pause) = (1, (gone / BACK_SHARE).clamp(BACK_MIN_MS, BACK_MAX_MS));
            } else {
                target.failures = target.failures.saturating_add(1);
            }
            target.found.on_failed(target.failures >= FAILURES_SOON_MAX);
            // Peers that lost each other at the same moment would otherwise dial each other in step.
            target.next = Moment(now.0 + pause * 3 / 4 + rng.random_range(0..=pause / 2));
        }
    }

    /// Does not dial `peer` for this long, whoever asks for it.
    pub(super) fn leave(&mut self, now: Moment, peer: &PeerId, lasting: Duration) {
        if let Some(target) = self.targets.get_mut(peer) {
            let lasting_ms = u64::try_from(lasting.as_millis()).unwrap_or(u64::MAX);
            target.left_until = Moment(now.0.saturating_add(lasting_ms));
            target.is_demanded = false;
        }
    }

    /// Whether the last connection ended as soon as it was there.
    pub(super) fn was_short(&self, peer: &PeerId) -> bool {
        self.targets.get(peer).is_some_and(|target| target.short > 0)
    }

    /// Whether the last dial was one over relays.
    pub(super) fn was_relayed(&self, peer: &PeerId) -> bool {
        self.targets.get(peer).is_some_and(|target| target.was_relayed)
    }

    /// Whether the last dial failed.
    pub(super) fn has_failed(&self, peer: &PeerId) -> bool {
        self.targets.get(peer).is_some_and(|target| target.failures > 0)
    }

    /// Where `peer` may be reached, configured first.
    pub(super) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.targets.get(peer).map_or_else(Vec::new, |target| {
            let mut all = target.configured.clone();
            add_new(&mut all, target.found.all());
            add_new(&mut all, &target.learned);
            all
        })
    }

    /// Everything to dial now, for gossip and for lookups that wait; marks it as being dialled.
    pub(super) fn take_due(&mut self, now: Moment) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut connections = self.connections();
        let is_due = |target: &Target| !target.connected && !target.dialing && target.due_at() <= now;
        let is_wanted = |target: &Target, connections| {
            target.is_demanded || target.is_kept || connections < self.connections_wanted
        };
        let mut dials = Vec::new();
        // Mostly nothing is due, and then no order is needed.
        if !self.targets.values().any(|target| is_due(target) && is_wanted(target, connections)) {
            return dials;
        }
        let mut in_order: Vec<_> = self.targets.iter_mut().collect();
        in_order.sort_unstable_by_key(|(_, target)| (!target.is_demanded, !target.is_kept, target.rank));
        for (peer, target) in in_order {
            if !is_wanted(target, connections) {
                break;
            }
            if !is_due(target) {
                continue;
            }
            let addresses = target.dialable(now);
            if addresses.is_empty() {
                // Nothing to dial until an address is learned or becomes due again.
                target.next = Moment(now.0 + PAUSE_GONE_MS);
                target.is_demanded = false;
                continue;
            }
            target.start(now);
            connections += 1;
            dials.push((*peer, addresses));
        }
        dials
    }

    /// A lookup wants `peer` now. After [`Demand::Wait`] it is dialled when its pause is over, however many connections
    /// there are.
    pub(super) fn demand(&mut self, now: Moment, peer: &PeerId) -> Result<Demand, NotNow> {
        let target = self.targets.get_mut(peer).ok_or(NotNow::Unknown)?;
        if target.connected {
            return Ok(Demand::Connected);
        }
        if target.dialing {
            return Ok(Demand::Wait);
        }
        // It is shut out here or there, so a dial would end at once.
        if target.left_until > now {
            return Err(NotNow::Gone);
        }
        let addresses = target.dialable(now);
        if addresses.is_empty() {
            // The peer may know our address, and dial us as quickly as we would dial it.
            let is_awaited = target.lost.is_some_and(|lost| now.since(lost) < BACK_SOON_MS);
            return if is_awaited { Ok(Demand::Wait) } else { Err(NotNow::NoAddress) };
        }
        // A dial before the pause is over would fail for the same reason; a lookup waits for it only if it comes soon.
        if target.failures > 0 && target.next > now {
            target.is_demanded = target.next.since(now) <= EXPECTED_MS;
            return if target.is_demanded { Ok(Demand::Wait) } else { Err(NotNow::Gone) };
        }
        target.start(now);
        Ok(Demand::Dial(addresses))
    }

    /// When [`Self::take_due`] may next have something to dial.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let is_full = self.connections() >= self.connections_wanted;
        let waiting = self.targets.values().filter(|target| !target.connected && !target.dialing);
        waiting.filter(|target| target.is_demanded || target.is_kept || !is_full).map(Target::due_at).min()
    }

    fn connections(&self) -> usize {
        self.targets.values().filter(|target| target.connected || target.dialing).count()
    }
}

impl Target {
    fn due_at(&self) -> Moment {
        self.next.max(self.left_until)
    }

    /// Its addresses, or the relays if it is their turn or there is no address.
    fn dialable(&self, now: Moment) -> Vec<Multiaddr> {
        let mut addresses = self.configured.clone();
        add_new(&mut addresses, &self.proven);
        add_new(&mut addresses, self.found.dialable(now));
        add_new(&mut addresses, &self.learned_untried(now));
        // Either the one or the other: a direct connection must not lose against a circuit that is quicker to make.
        if addresses.is_empty() || (self.is_relays_turn && !self.relays.is_empty()) {
            return self.relays.iter().copied().map(over_relay).collect();
        }
        addresses
    }

    /// Learned addresses that may be dialled now.
    fn learned_untried(&self, now: Moment) -> Vec<Multiaddr> {
        let recent = || self.tried.iter().filter(|(_, at)| now.since(*at) < LEARNED_PAUSE_MS);
        let may_be_dialled =
            |address: &&Multiaddr| !self.is_redialled(address) && recent().all(|(tried, _)| tried != *address);
        let left = ADDRESSES_MAX.saturating_sub(recent().count());
        self.learned.iter().filter(may_be_dialled).take(left).cloned().collect()
    }

    /// Whether an address is dialled again for ever.
    fn is_redialled(&self, address: &Multiaddr) -> bool {
        self.configured.contains(address) || self.proven.as_ref() == Some(address)
    }

    fn start(&mut self, now: Moment) {
        self.dialing = true;
        self.is_demanded = false;
        let is_relayed = |address: &Multiaddr| Way::of(address) == Way::Relayed;
        self.was_relayed = self.dialable(now).iter().any(is_relayed);
        let dialled = if self.was_relayed { Vec::new() } else { self.learned_untried(now) };
        self.found.start(now);
        self.tried.retain(|(_, at)| now.since(*at) < LEARNED_PAUSE_MS);
        self.tried.extend(dialled.into_iter().map(|address| (address, now)));
    }
}

/// Adds those that are not there yet.
fn add_new<'a>(all: &mut Vec<Multiaddr>, more: impl IntoIterator<Item = &'a Multiaddr>) {
    for address in more {
        if !all.contains(address) {
            all.push(address.clone());
        }
    }
}

fn rank_of_relay(relay: &PeerId, peer: &PeerId) -> [u8; 32] {
    Sha256::new().chain_update(relay.to_bytes()).chain_update(peer.to_bytes()).finalize().into()
}

#[cfg(test)]
mod tests;
