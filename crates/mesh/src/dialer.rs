//! Decides which peers to dial, when, and at which addresses. It has no sockets: the driver does the dialling.
//!
//! Configured addresses are redialled for ever with a growing, jittered pause. Addresses learned from summaries are not
//! trusted: each is dialled at most once a minute, unless the peer was just reached there, and for gossip only while
//! there are fewer connections than wanted.

use super::addresses::socket_address;
use libp2p::{Multiaddr, PeerId};
use narmesh_gossip::Moment;
use rand::{Rng, RngExt};
use std::collections::BTreeMap;
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
/// Addresses kept for each peer, of the configured and of the learned ones each.
const ADDRESSES_MAX: usize = 8;

#[derive(Debug, Default)]
struct Target {
    /// Its position in the order of dialling.
    rank: u64,
    configured: Vec<Multiaddr>,
    /// Where it says that it can be reached.
    learned: Vec<Multiaddr>,
    /// The learned addresses that were dialled in the last [`LEARNED_PAUSE_MS`], perhaps no longer in `learned`.
    tried: Vec<(Multiaddr, Moment)>,
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
    /// Every node has an order of its own, so that a large mesh has no hubs, and no PeerId can be ground to become one.
    order: RandomState,
}

impl Dialer {
    pub(super) fn new(connections_wanted: usize) -> Self {
        Self { targets: BTreeMap::new(), connections_wanted, returned: None, order: RandomState::new() }
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

    /// Takes the addresses from a peer's own signed summary, already filtered.
    pub(super) fn learn(&mut self, now: Moment, peer: &PeerId, addresses: Vec<Multiaddr>) {
        let Some(target) = self.targets.get_mut(peer) else { return };
        if addresses.iter().any(|address| !target.learned.contains(address)) {
            target.next = target.next.min(Moment(now.0 + LEARNED_DELAY_MS));
        }
        target.learned = addresses.into_iter().take(ADDRESSES_MAX).collect();
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
        if let Some(via) = via.and_then(socket_address) {
            // The address is proven now: it may be dialled again if this connection is refused.
            target.tried.retain(|(address, _)| socket_address(address) != Some(via));
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
        if let Some(target) = self.targets.get_mut(peer) {
            target.dialing = false;
            let longest = if target.failures < FAILURES_SOON_MAX { PAUSE_MAX_MS } else { PAUSE_GONE_MS };
            let growth = if are_returning { 0 } else { target.failures.min(16) };
            let mut pause = (PAUSE_MIN_MS << growth).min(longest);
            if let Some(gone) = target.lost.map(|lost| now.since(lost)).filter(|gone| *gone < BACK_SOON_MS) {
                // It is a daemon being restarted that refuses here, not a peer that was cut off.
                (target.failures, pause) = (1, (gone / BACK_SHARE).clamp(BACK_MIN_MS, BACK_MAX_MS));
            } else {
                target.failures = target.failures.saturating_add(1);
            }
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

    /// Whether the last dial failed.
    pub(super) fn has_failed(&self, peer: &PeerId) -> bool {
        self.targets.get(peer).is_some_and(|target| target.failures > 0)
    }

    /// Where `peer` may be reached, configured first.
    pub(super) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.targets.get(peer).map_or_else(Vec::new, |target| {
            let mut all = target.configured.clone();
            all.extend(target.learned.iter().filter(|address| !target.configured.contains(address)).cloned());
            all
        })
    }

    /// Everything to dial now, for gossip and for lookups that wait; marks it as being dialled.
    pub(super) fn take_due(&mut self, now: Moment) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut connections = self.connections();
        let is_due = |target: &Target| !target.connected && !target.dialing && target.due_at() <= now;
        let is_wanted = |target: &Target, connections| target.is_demanded || connections < self.connections_wanted;
        let mut dials = Vec::new();
        // Mostly nothing is due, and then no order is needed.
        if !self.targets.values().any(|target| is_due(target) && is_wanted(target, connections)) {
            return dials;
        }
        let mut in_order: Vec<_> = self.targets.iter_mut().collect();
        in_order.sort_unstable_by_key(|(_, target)| (!target.is_demanded, target.rank));
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
        if target.left_until > now {
            return Err(NotNow::Gone);
        }
        let addresses = target.dialable(now);
        if addresses.is_empty() {
            // The peer may know our address, and dial us as quickly as we would dial it.
            let is_awaited = target.lost.is_some_and(|lost| now.since(lost) < BACK_SOON_MS);
            return if is_awaited { Ok(Demand::Wait) } else { Err(NotNow::NoAddress) };
        }
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
        waiting.filter(|target| target.is_demanded || !is_full).map(Target::due_at).min()
    }

    fn connections(&self) -> usize {
        self.targets.values().filter(|target| target.connected || target.dialing).count()
    }
}

impl Target {
    fn due_at(&self) -> Moment {
        self.next.max(self.left_until)
    }

    fn dialable(&self, now: Moment) -> Vec<Multiaddr> {
        let mut addresses = self.configured.clone();
        addresses.extend(self.learned_untried(now));
        addresses
    }

    /// Learned addresses that may be dialled now.
    fn learned_untried(&self, now: Moment) -> Vec<Multiaddr> {
        let recent = || self.tried.iter().filter(|(_, at)| now.since(*at) < LEARNED_PAUSE_MS);
        let may_be_dialled =
            |address: &&Multiaddr| !self.configured.contains(address) && recent().all(|(tried, _)| tried != *address);
        let left = ADDRESSES_MAX.saturating_sub(recent().count());
        self.learned.iter().filter(may_be_dialled).take(left).cloned().collect()
    }

    fn start(&mut self, now: Moment) {
        self.dialing = true;
        self.is_demanded = false;
        let dialled = self.learned_untried(now);
        self.tried.retain(|(_, at)| now.since(*at) < LEARNED_PAUSE_MS);
        self.tried.extend(dialled.into_iter().map(|address| (address, now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn redials_configured_peers_with_a_growing_pause() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let peer = PeerId::random();
        let mut dialer = Dialer::new(32);
        dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)])]), 32);
        let mut now = Moment(0);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(dialer.take_due(now), [(peer, vec![address(1)])]);
            assert!(dialer.take_due(now).is_empty(), "one dial at a time");
            dialer.on_failed(now, &peer, &mut rng);
            let next = dialer.deadline().unwrap();
            let is_soon = next.since(now) <= EXPECTED_MS;
            assert_eq!(dialer.demand(now, &peer), if is_soon { Ok(Demand::Wait) } else { Err(NotNow::Gone) });
            pauses.push(next.0 - now.0);
            now = next;
        }
        assert!(pauses[0] <= PAUSE_MIN_MS * 5 / 4 && pauses[11] >= PAUSE_MAX_MS * 3 / 4, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX_MS * 5 / 4));
        for _ in 0..FAILURES_SOON_MAX {
            dialer.on_failed(now, &peer, &mut rng);
        }
        assert!(dialer.deadline().unwrap().0 - now.0 >= PAUSE_GONE_MS * 3 / 4, "gone for long");
    }

    #[test]
    fn when_a_cut_off_peer_returns_all_others_are_dialled_at_once() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let [one, other] = [(); 2].map(|()| PeerId::random());
        let mut dialer = Dialer::new(32);
        dialer.set_peers(Moment(0), &BTreeMap::from([(one, vec![address(1)]), (other, vec![address(2)])]), 32);
        let mut now = Moment(0);
        let cut_off = |dialer: &mut Dialer, now: &mut Moment, rng: &mut rand::rngs::StdRng| {
            for _ in 0..5 {
                dialer.take_due(*now);
                [one, other].iter().for_each(|peer| dialer.on_failed(*now, peer, rng));
                *now = Moment(now.0 + 2 * PAUSE_MAX_MS);
            }
            *now = Moment(now.0 - 2 * PAUSE_MAX_MS);
        };
        cut_off(&mut dialer, &mut now, &mut rng);
        assert!(dialer.take_due(now).is_empty(), "both pause");
        dialer.on_connected(now, &one, None);
        assert_eq!(dialer.take_due(now), [(other, vec![address(2)])]);
        dialer.on_failed(now, &other, &mut rng);
        assert!(
            dialer.deadline().unwrap().since(now) <= PAUSE_MIN_MS * 5 / 4,
            "soon again: it may have been on the way"
        );
        // When a peer comes and goes, the other is not dialled more often.
        dialer.on_disconnected(now, &one, &mut rng);
        now = Moment(now.0 + RETURNS_MS);
        cut_off(&mut dialer, &mut now, &mut rng);
        dialer.on_connected(now, &one, None);
        assert!(dialer.take_due(now).is_empty(), "within a minute");
    }

    #[test]
    fn a_peer_whose_connections_end_at_once_is_dialled_ever_more_rarely() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let peer = PeerId::random();
        let mut dialer = Dialer::new(32);
        dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)])]), 32);
        let mut now = Moment(0);
        let mut pause = |dialer: &mut Dialer, lasted_ms: u64| {
            assert_eq!(dialer.take_due(now).len(), 1);
            dialer.on_connected(now, &peer, None);
            now = Moment(now.0 + lasted_ms);
            dialer.on_disconnected(now, &peer, &mut rng);
            let pause = dialer.deadline().unwrap().since(now);
            now = Moment(now.0 + pause);
            pause
        };
        assert!(pause(&mut dialer, 10) < PAUSE_MIN_MS, "refused once: back at once");
        let all: u64 = (0..40).map(|_| pause(&mut dialer, 10)).sum();
        assert!(all > 40 * PAUSE_MAX_MS / 3, "{all} ms");
        assert!(pause(&mut dialer, SHORT_MS) < PAUSE_MIN_MS, "it lasted: as before");
    }

    #[test]
    fn peers_are_redialled_at_once_however_often_our_address_changes() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let peer = PeerId::random();
        let mut dialer = Dialer::new(32);
        dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)])]), 32);
        let mut now = Moment(SHORT_MS);
        for _ in 0..10 {
            // Our address changes soon after connecting; the first dial from the new one is refused.
            for (has_moved, pause_max) in [(true, PAUSE_MIN_MS), (false, AGAIN_MS)] {
                assert_eq!(dialer.take_due(now).len(), 1);
                dialer.on_connected(now, &peer, None);
                now = Moment(now.0 + 1_000);
                if has_moved {
                    dialer.on_moved(now);
                }
                dialer.on_disconnected(now, &peer, &mut rng);
                let pause = dialer.deadline().unwrap().since(now);
                assert!(pause < pause_max, "{pause} ms");
                now = Moment(now.0 + pause);
            }
        }
    }

    #[test]
    fn each_node_dials_peers_in_an_order_of_its_own() {
        let peers: BTreeMap<_, _> = (0..100).map(|_| (PeerId::random(), vec![address(1)])).collect();
        let mut dialled = BTreeMap::new();
        for _ in 0..100 {
            let mut dialer = Dialer::new(32);
            dialer.set_peers(Moment(0), &peers, 32);
            let due = dialer.take_due(Moment(0));
            assert_eq!(due.len(), 32);
            due.into_iter().for_each(|(peer, _)| *dialled.entry(peer).or_insert(0) += 1);
        }
        // 32 of 100 nodes on the average; a hub would have 100.
        assert!(dialled.values().all(|count| *count < 60), "{:?}", dialled.values().max());
        assert!(dialled.len() > 90);
    }

    #[test]
    fn a_learned_address_is_dialled_once_a_minute() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let peer = PeerId::random();
        let mut dialer = Dialer::new(32);
        dialer.set_peers(Moment(0), &BTreeMap::from([(peer, Vec::new())]), 32);
        assert_eq!(dialer.demand(Moment(0), &peer), Err(NotNow::NoAddress));
        dialer.learn(Moment(0), &peer, vec![address(2)]);
        assert_eq!(dialer.demand(Moment(0), &peer), Ok(Demand::Dial(vec![address(2)])));
        dialer.on_failed(Moment(0), &peer, &mut rng);
        assert_eq!(dialer.demand(Moment(30_000), &peer), Err(NotNow::NoAddress));
        dialer.learn(Moment(0), &peer, vec![address(2)]);
        assert_eq!(dialer.demand(Moment(59_000), &peer), Err(NotNow::NoAddress), "learning it again renews nothing");
        assert_eq!(dialer.demand(Moment(60_000), &peer), Ok(Demand::Dial(vec![address(2)])));
    }

    #[test]
    fn peer_that_names_other_addresses_each_time_is_dialled_at_eight_a_minute() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let peer = PeerId::random();
        let mut dialer = Dialer::new(32);
        dialer.set_peers(Moment(0), &BTreeMap::from([(peer, Vec::new())]), 32);
        let mut dialled = Vec::new();
        for turn in 0..240_u16 {
            // Two sets in turn, and then ever new ones.
            let first = if turn < 120 { turn % 2 * 8 } else { turn * 8 };
            let now = Moment(u64::from(turn) * 250);
            dialer.learn(now, &peer, (first..first + 8).map(address).collect());
            if let Ok(Demand::Dial(addresses)) = dialer.demand(now, &peer) {
                dialled.extend(addresses);
                dialer.on_failed(now, &peer, &mut rng);
            }
        }
        assert_eq!(dialled, (0..8).map(address).collect::<Vec<_>>(), "in a minute");
        let now = Moment(60_000);
        assert!(matches!(dialer.demand(now, &peer), Ok(Demand::Dial(addresses)) if addresses.len() == 8));
    }

    #[test]
    fn learned_peers_are_not_dialled_while_there_are_enough_connections() {
        let [configured, learned] = [(); 2].map(|()| PeerId::random());
        let mut dialer = Dialer::new(1);
        dialer.set_peers(Moment(0), &BTreeMap::from([(configured, vec![address(1)]), (learned, Vec::new())]), 1);
        dialer.on_connected(Moment(0), &configured, None);
        dialer.learn(Moment(0), &learned, vec![address(2)]);
        assert!(dialer.take_due(Moment(100_000)).is_empty());
        assert_eq!(dialer.deadline(), None);
        assert_eq!(dialer.demand(Moment(100_000), &learned), Ok(Demand::Dial(vec![address(2)])));
    }

    #[test]
    fn peer_that_a_lookup_waits_for_is_dialled_after_its_pause_despite_enough_connections() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let [there, wanted] = [(); 2].map(|()| PeerId::random());
        let mut dialer = Dialer::new(1);
        dialer.set_peers(Moment(0), &BTreeMap::from([(there, vec![address(1)]), (wanted, vec![address(2)])]), 1);
        dialer.on_connected(Moment(0), &there, None);
        assert_eq!(dialer.demand(Moment(0), &wanted), Ok(Demand::Dial(vec![address(2)])));
        assert_eq!(dialer.demand(Moment(1), &wanted), Ok(Demand::Wait), "another one waits for the same dial");
        dialer.on_failed(Moment(5), &wanted, &mut rng);
        assert_eq!(dialer.deadline(), None, "for gossip it is not needed");
        assert_eq!(dialer.demand(Moment(5), &wanted), Ok(Demand::Wait));
        let again = dialer.deadline().unwrap();
        assert!(again > Moment(5) && dialer.take_due(Moment(again.0 - 1)).is_empty());
        assert_eq!(dialer.take_due(again), [(wanted, vec![address(2)])]);
    }

    #[test]
    fn a_peer_that_is_restarted_is_dialled_often_at_first_and_then_ever_more_rarely() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let peer = PeerId::random();
        let mut dialer = Dialer::new(32);
        dialer.set_peers(Moment(0), &BTreeMap::from([(peer, vec![address(1)])]), 32);
        dialer.take_due(Moment(0));
        dialer.on_connected(Moment(0), &peer, None);
        let lost = Moment(2 * SHORT_MS);
        dialer.on_disconnected(lost, &peer, &mut rng);
        let mut dials = Vec::new();
        let mut now = dialer.deadline().unwrap();
        while now.since(lost) < 60_000 {
            assert_eq!(dialer.take_due(now).len(), 1);
            dials.push(now.since(lost));
            dialer.on_failed(now, &peer, &mut rng);
            now = dialer.deadline().unwrap();
        }
        assert!(dials[0] <= BACK_FIRST_MS);
        let soon: Vec<_> = dials.iter().take_while(|at| **at < BACK_SOON_MS).collect();
        let waits =
            soon.windows(2).all(|pair| pair[1] - pair[0] <= (pair[0] / 6).clamp(BACK_MIN_MS * 2, BACK_MAX_MS * 5 / 4));
        assert!(waits, "a fraction of the time that has passed: {soon:?}");
        assert!((30..=65).contains(&soon.len()) && dials.len() - soon.len() < 25, "{dials:?}");
    }

    #[test]
    fn a_peer_without_an_address_is_awaited_for_a_moment_after_a_start() {
        let peer = PeerId::random();
        let mut dialer = Dialer::new(32);
        dialer.set_peers(Moment(0), &BTreeMap::from([(peer, Vec::new())]), 32);
        assert_eq!(dialer.demand(Moment(0), &peer), Err(NotNow::NoAddress), "never heard of");
        dialer.mark_remembered(Moment(0), &peer);
        assert_eq!(dialer.demand(Moment(BACK_SOON_MS - 1), &peer), Ok(Demand::Wait));
        assert_eq!(dialer.demand(Moment(BACK_SOON_MS), &peer), Err(NotNow::NoAddress));
    }

    #[test]
    fn a_learned_address_where_the_peer_was_reached_is_dialled_again_at_once() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let peer = PeerId::random();
        let mut dialer = Dialer::new(32);
        dialer.set_peers(Moment(0), &BTreeMap::from([(peer, Vec::new())]), 32);
        dialer.learn(Moment(0), &peer, vec![address(2), address(3)]);
        assert_eq!(dialer.demand(Moment(0), &peer), Ok(Demand::Dial(vec![address(2), address(3)])));
        let via = format!("{}/p2p/{peer}", address(3)).parse().unwrap();
        dialer.on_connected(Moment(5), &peer, Some(&via));
        dialer.on_disconnected(Moment(6), &peer, &mut rng);
        assert_eq!(dialer.demand(Moment(7), &peer), Ok(Demand::Dial(vec![address(3)])), "refused once");
    }
}
