//! What this node says of itself: its paths become a filter, sent as a delta or as a new epoch, and signed
//! with the node key.
//!
//! Additions, new audience members and addresses go into a delta (`seq` + 1). A removal, a peer that lost our trust, or a
//! filter that has become too small starts a new epoch, because bits are never cleared within one.

pub(crate) mod relay;

mod history;

use self::history::{History, Step};
use crate::input::PathChange;
use crate::io::Io;
use crate::output::{Event, Output, Record};
use bloomfilter::Bloom;
use libp2p_identity::{Keypair, PeerId};
use narmesh_machine::{Moment, Now};
use narmesh_protocol::wire::GossipReply;
use narmesh_protocol::{
    Announcement, AudienceDigest, BitPositions, Envelope, FilterClass, Generation, HASH_ID_V1, HashPart, Summary,
    SummaryDelta, filter_seed,
};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// The least time between two announcements of additions, milliseconds. A guess: half of the 1 s in which users may notice.
pub(crate) const PUBLISH_GAP_MS: u64 = 500;
/// A removal waits this long for others, milliseconds, so that a garbage collection starts one epoch and not thousands.
pub(crate) const REMOVAL_DELAY_MS: u64 = 1_000;
/// Removals start a new epoch at most this often, milliseconds, because it costs every peer a whole body. A guess.
pub(crate) const EPOCH_GAP_MS: u64 = 5_000;
/// Being overtaken again within this time counts as a repetition, milliseconds.
const OVERTAKEN_MEMORY_MS: u64 = 60_000;
/// The most paths whatever the configuration says: they fit the largest filter at the rate for 2,048 peers.
pub const PATHS_MAX: usize = 400_000;
/// Expected wasted probes per absent path, over all peers together (half of the 0.05 promised).
const WASTED_PROBES: f64 = 0.025;
/// The filter is sized for the next multiple of this many peers, so that one new peer does not start
/// a new epoch everywhere.
const PEERS_STEP: usize = 4;
/// When the wall clock jumps this far against the monotonic one, we date our announcement anew, milliseconds.
const WALL_JUMP_MS: u64 = 3_600_000;
/// A wall clock before this (2026-01-01) must have a dead battery, so nobody is judged by it. Milliseconds since 1970.
pub(crate) const PLAUSIBLE_WALL_MS: u64 = 1_767_225_600_000;
/// An epoch may be this far ahead of our wall clock, and a first sight this far off, milliseconds.
pub(crate) const DAY_MS: u64 = 86_400_000;

/// Our own summary as others may see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicationView {
    /// The generation that was announced last; `None` before the first announcement.
    pub generation: Option<Generation>,
    /// The number of paths advertised now, announced or about to be.
    pub paths: usize,
    /// The size of the announced filter, bits.
    pub filter_bits: u32,
    /// The size of the announced body, bytes.
    pub body_bytes: usize,
    /// The number of paths left out because of the limit.
    pub withheld: usize,
}

/// The delays of a publication.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PublicationTimes {
    pub(crate) lifetime_s: u32,
    pub(crate) reannounce_ms: u64,
    pub(crate) debounce_ms: u64,
}

/// Our paths, our last summary, and the changes that are not announced yet.
#[derive(Debug)]
pub(crate) struct Publication {
    keypair: Keypair,
    times: PublicationTimes,
    path_count_max: usize,
    ready: bool,
    departed: bool,
    paths: BTreeSet<HashPart>,
    /// Paths that are in `paths` but not in the filter.
    added: BTreeSet<HashPart>,
    /// Paths that are in the filter but not in `paths`.
    stale: BTreeSet<HashPart>,
    withheld: usize,
    /// Digests of the peers that we trust and of ourselves. Ours is included so that all members of a fleet with one
    /// allowlist have the same audience.
    audience: Vec<AudienceDigest>,
    addresses: Vec<SocketAddr>,
    peers: usize,
    /// Since when a change waits that fits into a delta.
    changed: Option<Moment>,
    /// Since when a removal waits.
    removed: Option<Moment>,
    /// When a new epoch is due that must not wait for further removals.
    urgent: Option<Moment>,
    /// When a peer last showed us an announcement of ours that we did not know.
    overtaken: Option<Moment>,
    /// The greatest epoch that may have been used.
    epoch_floor: u64,
    /// Whether the next epoch must not be below the wall clock. True for the first epoch, and after state was lost, because
    /// it may have been lost more than once.
    epoch_by_clock: bool,
    epoch_begun: Option<Moment>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    published: Now,
    reannounce: Moment,
    audience: Vec<AudienceDigest>,
    addresses: Vec<SocketAddr>,
    body: Vec<u8>,
    envelope: Envelope,
    epoch: Epoch,
}

/// The part of a summary that grows from delta to delta.
#[derive(Debug)]
struct Epoch {
    generation: Generation,
    class: FilterClass,
    bloom: Bloom<HashPart>,
    items: u64,
    history: History,
}

/// Whether peers refuse this epoch as too far in the future, as far as our own clock can tell.
fn is_beyond_tomorrow(epoch: u64, now: Now) -> bool {
    now.wall_ms >= PLAUSIBLE_WALL_MS && epoch > now.wall_ms.saturating_add(DAY_MS)
}

impl Publication {
    pub(crate) fn new(
        keypair: Keypair,
        times: PublicationTimes,
        path_count_max: usize,
        own_epoch: Option<u64>,
    ) -> Self {
        Self {
            audience: vec![AudienceDigest::of(&keypair.public().to_peer_id())],
            keypair,
            times,
            path_count_max: path_count_max.min(PATHS_MAX),
            ready: false,
            departed: false,
            paths: BTreeSet::new(),
            added: BTreeSet::new(),
            stale: BTreeSet::new(),
            withheld: 0,
            addresses: Vec::new(),
            peers: 0,
            changed: None,
            removed: None,
            urgent: None,
            overtaken: None,
            epoch_floor: own_epoch.unwrap_or(0),
            epoch_by_clock: true,
            epoch_begun: None,
            current: None,
        }
    }

    /// Notes a change of the paths.
    pub(crate) fn apply_change(&mut self, now: Moment, change: PathChange) {
        match change {
            PathChange::Replace(paths) => {
                // Removals first: the bound on paths then has room for what is added.
                let gone: Vec<_> = self.paths.difference(&paths).copied().collect();
                self.withheld = 0;
                gone.into_iter().for_each(|part| self.remove(now, part));
                paths.into_iter().for_each(|part| self.add(now, part));
                // Nothing is announced before the first whole list: peers would forget what the last run advertised.
                if !self.ready {
                    self.ready = true;
                    self.changed.get_or_insert(now);
                }
            }
            PathChange::Update { added, removed } => {
                removed.into_iter().for_each(|part| self.remove(now, part));
                added.into_iter().for_each(|part| self.add(now, part));
            }
        }
    }

    fn add(&mut self, now: Moment, part: HashPart) {
        if self.paths.contains(&part) {
            return;
        }
        if self.paths.len() >= self.path_count_max {
            self.withheld += 1;
            return;
        }
        self.paths.insert(part);
        // The bits of a path that went and came back are still set. A new epoch stays due, because peers keep what they know of
        // it, and its contents may be others now.
        if !self.stale.remove(&part) {
            self.added.insert(part);
            self.changed.get_or_insert(now);
        }
    }

    fn remove(&mut self, now: Moment, part: HashPart) {
        if !self.paths.remove(&part) {
            // It may be one of the withheld paths, but which they are is not kept.
            self.withheld = self.withheld.saturating_sub(1);
        } else if !self.added.remove(&part) {
            self.stale.insert(part);
            self.removed.get_or_insert(now);
        }
    }

    /// Notes whom we trust; `audience` is ascending and includes ourselves.
    pub(crate) fn set_audience(&mut self, now: Moment, audience: Vec<AudienceDigest>, peers: usize) {
        if self.audience.iter().any(|member| audience.binary_search(member).is_err()) {
            self.hurry(now);
        }
        if self.audience != audience {
            self.changed.get_or_insert(now);
        }
        self.audience = audience;
        self.peers = peers;
    }

    /// Makes a new epoch due at that moment or earlier.
    fn hurry(&mut self, due: Moment) {
        self.urgent = Some(self.urgent.map_or(due, |before| before.min(due)));
    }

    /// Notes where we listen.
    pub(crate) fn set_addresses(&mut self, now: Moment, mut addresses: Vec<SocketAddr>) {
        let mut seen = BTreeSet::new();
        addresses.retain(|address| seen.insert(*address));
        // Peers refuse a summary with more.
        addresses.truncate(Summary::ADDRESSES_MAX);
        if self.addresses != addresses {
            self.addresses = addresses;
            self.changed.get_or_insert(now);
        }
    }

    /// A peer showed us an envelope with our signature. When it is newer than everything we know of, we lost our state and
    /// continue above it. An epoch more than a day ahead comes from a stolen key and is ignored, unless our own clock is
    /// dead. Returns whether we were overtaken.
    pub(crate) fn continue_above_if_newer(&mut self, now: Now, envelope: &Envelope) -> bool {
        let heard = envelope.announcement();
        let (ours, same) = match &self.current {
            Some(current) => (current.epoch.generation, current.envelope.announcement() == heard),
            None => (Generation { epoch: self.epoch_floor, seq: u64::MAX }, false),
        };
        if heard.generation < ours || same || self.departed {
            return false;
        }
        if is_beyond_tomorrow(heard.generation.epoch, now) {
            return false;
        }
        self.epoch_floor = self.epoch_floor.max(heard.generation.epoch);
        self.epoch_by_clock = true;
        if self.current.is_some() {
            // When this repeats, another machine has our key (a copied disk), and without a pause each would overtake the
            // other at once.
            let again = self.overtaken.is_some_and(|before| now.moment.since(before) < OVERTAKEN_MEMORY_MS);
            let gap_ms = if again { EPOCH_GAP_MS } else { 0 };
            let due = self.epoch_begun.map_or(now.moment, |begun| now.moment.max(begun + gap_ms));
            self.overtaken = Some(now.moment);
            self.hurry(due);
        }
        true
    }

    /// Notices when the wall clock was set: our last announcement may carry a date that others refuse.
    pub(crate) fn watch_clock(&mut self, now: Now) {
        if let Some(current) = &self.current {
            let expected = current.published.wall_ms.saturating_add(now.moment.since(current.published.moment));
            if expected.abs_diff(now.wall_ms) > WALL_JUMP_MS {
                self.changed.get_or_insert(now.moment);
                if is_beyond_tomorrow(current.epoch.generation.epoch, now) {
                    self.hurry(now.moment);
                }
            }
        }
    }

    /// When [`Self::publish`] has something to do.
    pub(crate) fn due(&self) -> Option<Moment> {
        if !self.ready || self.departed {
            return None;
        }
        let debounced = self.changed.map(|changed| changed + self.times.debounce_ms);
        let Some(current) = &self.current else { return debounced };
        let delta = debounced.map(|due| due.max(current.published.moment + PUBLISH_GAP_MS));
        // Each of them has its own pause, so that a busy store costs its peers a bounded number of bodies.
        [delta, self.removal_due(), self.urgent, Some(current.reannounce)].into_iter().flatten().min()
    }

    fn removal_due(&self) -> Option<Moment> {
        let due = self.removed? + REMOVAL_DELAY_MS;
        Some(self.epoch_begun.map_or(due, |begun| due.max(begun + EPOCH_GAP_MS)))
    }

    /// Signs and publishes what is due.
    pub(crate) fn publish(&mut self, io: &mut Io) {
        let now = io.now;
        // Machines that were started together would otherwise announce together for ever.
        let jitter_ms = io.chance.draw_below(self.times.reannounce_ms / 10);
        let in_filter = self.current.as_ref().map_or(0, |current| current.epoch.items);
        let wanted = self.class_for(in_filter + self.added.len() as u64);
        let removal = self.removal_due().is_some_and(|due| due <= now.moment);
        // A delta can only set bits of the same filter. Everything else needs a new epoch.
        let epoch = match self.current.take() {
            Some(current) if self.urgent.is_none() && !removal && wanted <= current.epoch.class => {
                self.extend_epoch(current)
            }
            Some(_) | None => {
                let epoch = self.begin_epoch(now);
                // Persisted before it is published: a node that forgot the epoch in a crash could sign two
                // announcements under one generation.
                io.push(Output::Persist(Record::OwnEpoch(epoch.generation.epoch)));
                epoch
            }
        };
        self.changed = None;
        // A delta, too, is announced by the digest of the whole body: the digest proves its result, and peers that lack the
        // base pull the body.
        let body = Summary {
            hash_id: HASH_ID_V1,
            items: epoch.items,
            audience: self.audience.clone(),
            addresses: self.addresses.clone(),
            filter_bytes: filter_bytes(&epoch.bloom).to_vec(),
        };
        let body = body.encode().expect("the largest filter, audience and address list together are within the limit");
        let announcement = Announcement {
            generation: epoch.generation,
            path_count: epoch.items,
            body_digest: Summary::digest(&body),
            body_bytes: u32::try_from(body.len()).expect("a body is at most 2.1 MB"),
            lifetime_s: self.times.lifetime_s.max(1),
            issued_at_ms: now.wall_ms,
        };
        let envelope = Envelope::seal(&self.keypair, announcement).expect("the node key is Ed25519");
        io.push(Output::Publish(envelope.as_bytes().to_vec()));
        io.push_event(Event::Published {
            generation: announcement.generation,
            paths: announcement.path_count,
            body_bytes: announcement.body_bytes,
        });
        self.current = Some(Current {
            published: now,
            reannounce: now.moment + self.times.reannounce_ms.saturating_sub(jitter_ms).max(PUBLISH_GAP_MS),
            audience: self.audience.clone(),
            addresses: self.addresses.clone(),
            body,
            envelope,
            epoch,
        });
    }

    /// Continues the same epoch with the additions.
    fn extend_epoch(&mut self, current: Current) -> Epoch {
        let mut epoch = current.epoch;
        let mut positions = BTreeSet::new();
        for part in std::mem::take(&mut self.added) {
            let bits = filter_bytes(&epoch.bloom);
            // A bit that is set already needs no byte on the wire, and the base has it as well.
            let unset = |bit: &u32| bits.get(*bit as usize / 8).is_some_and(|byte| byte & (1 << (bit % 8)) == 0);
            positions.extend(BitPositions::of(&part).in_class(epoch.class).filter(unset));
            epoch.bloom.set(&part);
            epoch.items += 1;
        }
        // Also without additions: a renewal has a new date, and the same generation with another date would be
        // equivocation.
        epoch.generation.seq += 1;
        epoch.history.push(Step {
            positions: positions.into_iter().collect(),
            audience: self.audience != current.audience,
            addresses: self.addresses != current.addresses,
        });
        epoch
    }

    /// Starts a new epoch, with a new filter of the present paths.
    fn begin_epoch(&mut self, now: Now) -> Epoch {
        if is_beyond_tomorrow(self.epoch_floor, now) {
            // Our clock was days ahead when this number was used. No peer with a correct clock accepted it, nor would
            // accept a greater one.
            (self.epoch_floor, self.epoch_by_clock) = (0, true);
        }
        let after = self.epoch_floor.saturating_add(1);
        let epoch = if self.epoch_by_clock { after.max(now.wall_ms) } else { after };
        self.epoch_by_clock = false;
        self.epoch_floor = epoch;
        self.epoch_begun = Some(now.moment);
        self.added.clear();
        self.stale.clear();
        self.removed = None;
        self.urgent = None;
        let items = self.paths.len() as u64;
        let class = self.class_for(items);
        let mut bloom = Bloom::new_with_seed(class.bytes(), class.nominal_items(), filter_seed())
            .expect("a class has a size and an item count above 0");
        self.paths.iter().for_each(|part| bloom.set(part));
        Epoch { generation: Generation { epoch, seq: 0 }, class, bloom, items, history: History::default() }
    }

    fn class_for(&self, items: u64) -> FilterClass {
        let peers = self.peers.max(1).next_multiple_of(PEERS_STEP);
        let rate = WASTED_PROBES / peers as f64;
        FilterClass::for_items(items, rate).unwrap_or_else(|| {
            FilterClass::of_bytes(1 << (FilterClass::LOG2_BITS_MAX - 3)).expect("the largest class has this size")
        })
    }

    /// Our newest envelope.
    pub(crate) fn envelope(&self) -> Option<&Envelope> {
        self.current.as_ref().map(|current| &current.envelope)
    }

    /// The answer to `asker`'s pull of our summary: a delta if that is smaller, else the body; `None` when the asker may
    /// not have it, or the generation is another.
    pub(crate) fn serve(&self, asker: &PeerId, generation: Generation, have_seq: Option<u64>) -> Option<GossipReply> {
        let current = self.current.as_ref().filter(|current| current.epoch.generation == generation)?;
        current.audience.binary_search(&AudienceDigest::of(asker)).ok()?;
        let delta = have_seq
            .and_then(|base_seq| current.encode_delta(base_seq))
            .filter(|delta| delta.len() < current.body.len());
        Some(delta.map_or_else(|| GossipReply::Body(current.body.clone()), GossipReply::Delta))
    }

    /// Publishes a signed goodbye, if anything was published before; nothing is published after it.
    pub(crate) fn depart(&mut self, io: &mut Io) {
        // From here on nothing else is due: an announcement after it would bring us back.
        self.departed = true;
        let Some(Current { epoch: Epoch { generation, .. }, .. }) = self.current.take() else { return };
        let announcement = Announcement {
            generation: Generation { seq: generation.seq.saturating_add(1), ..generation },
            path_count: 0,
            body_digest: [0; 32],
            body_bytes: 0,
            lifetime_s: 0,
            issued_at_ms: io.now.wall_ms,
        };
        let envelope = Envelope::seal(&self.keypair, announcement).expect("the node key is Ed25519");
        io.push(Output::Publish(envelope.as_bytes().to_vec()));
    }

    /// For status.
    pub(crate) fn view(&self) -> PublicationView {
        let current = self.current.as_ref();
        PublicationView {
            generation: current.map(|current| current.epoch.generation),
            paths: self.paths.len(),
            filter_bits: current.map_or(0, |current| current.epoch.class.bits()),
            body_bytes: current.map_or(0, |current| current.body.len()),
            withheld: self.withheld,
        }
    }
}

/// The bits alone: the `bloomfilter` crate puts its version (1 byte), length (8), number of hash functions (4) and seed
/// (32) before them.
fn filter_bytes(bloom: &Bloom<HashPart>) -> &[u8] {
    bloom.as_slice().get(1 + 8 + 4 + 32..).unwrap_or_default()
}

impl Current {
    fn encode_delta(&self, base_seq: u64) -> Option<Vec<u8>> {
        let step = self.epoch.history.merge_last(self.epoch.generation.seq.checked_sub(base_seq)?)?;
        let delta = SummaryDelta {
            base_seq,
            items: self.epoch.items,
            positions: step.positions,
            audience: step.audience.then(|| self.audience.clone()),
            addresses: step.addresses.then(|| self.addresses.clone()),
        };
        delta.encode().ok()
    }
}
