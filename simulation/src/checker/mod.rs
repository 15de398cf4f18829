//! What must hold, judged from outside: by what owners truly published and truly hold, never by a core's own word.

pub(crate) mod liveness;
mod violation;

pub use violation::Violation;

use crate::cores::gossip::Misdeed;
use crate::machine::Machine;
use crate::number::{ABSENT_FROM, Number, Path, WANTED, part};
use libp2p_identity::PeerId;
use narmesh_protocol::wire::{GossipReply, GossipRequest};
use narmesh_protocol::{AudienceDigest, Envelope, Generation};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Paths looked up when one summary is checked.
const SAMPLES: usize = 12;
/// Removed paths that are remembered for each owner, at most, to see that other tables forget them.
const REMOVED_KEPT: usize = 64;
/// Pulls that a core may have under way: its own limit of 16, and as many that it has given up but whose answers may still
/// come.
const PULLS_MAX: usize = 32;
/// Outputs that one input may cause, besides four for each machine.
const OUTPUTS_MAX: usize = 64;
/// How often an honest machine may publish within `PUBLICATIONS_WINDOW_US`: twice a second, and a new epoch at any time.
const PUBLICATIONS_MAX: usize = 40;
const PUBLICATIONS_WINDOW_US: u64 = 10_000_000;
/// The bounds of a summary's lifetime, seconds: from a minute to a week, whatever its announcement says.
const LIFETIME_S: (u64, u64) = (60, 604_800);
/// How long a core waits for an answer at most, microseconds; after that it counts the request as failed.
const REQUEST_TIMEOUT_US: u64 = 10_000_000;
/// The first bytes of encoded requests and replies: the numbers of their variants.
const SYNC: u8 = 0;
const PULL: u8 = 1;
const BODY: u8 = 2;
const DELTA: u8 = 3;
/// How far an epoch may be ahead of the receiver's wall clock, milliseconds.
const DAY_MS: u64 = 86_400_000;
/// How often a liar may mislead a machine within `LIES_WINDOW_US`: 20 times for free, 20 times more with its next epoch,
/// and as often as the density of its filter predicts.
const LIES_MAX: usize = 100;
const LIES_WINDOW_US: u64 = 300_000_000;
/// How much longer than its lifetime a summary may be used, microseconds: a tick comes within a millisecond.
const GRACE_US: u64 = 2_000;

/// What an owner published under one generation.
#[derive(Clone, Debug)]
pub(crate) struct Publication {
    pub(crate) generation: Generation,
    envelope: Vec<u8>,
    /// The version of the owner's store whose paths are all in the filter.
    pub(crate) version: u32,
    /// The version of the store when the epoch began: paths removed before it are not in the filter.
    pub(crate) epoch_version: u32,
    pub(crate) audience: Arc<BTreeSet<Number>>,
    pub(crate) announced: u64,
    lifetime_us: u64,
    goodbye: bool,
}

/// What one machine has of another, according to the announcements and bodies that it accepted.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The newest announcement accepted, and when, microseconds; forgotten with the machine's disk.
    accepted: Option<(Generation, u64)>,
    /// The body in the table, and when its lifetime ends, microseconds.
    held: Option<(Generation, u64)>,
}

#[derive(Debug, Default)]
struct Owner {
    published: BTreeMap<Generation, Publication>,
    newest: Option<Generation>,
    recent_us: Vec<u64>,
    removed: BTreeSet<Path>,
}

/// The ledger of all publications, and the violations found.
#[derive(Debug)]
pub(crate) struct Checker {
    numbers: BTreeMap<PeerId, Number>,
    by_digest: BTreeMap<AudienceDigest, Number>,
    owners: Vec<Owner>,
    slots: Vec<Vec<Slot>>,
    /// When each machine was misled by each liar, microseconds: by holder and owner.
    lies: BTreeMap<(Number, Number), Vec<u64>>,
    /// Pulls under way, by asker and request id: the machine asked, and since when, microseconds.
    pulls: Vec<BTreeMap<u64, (Number, u64)>>,
    pub(crate) violations: Vec<Violation>,
    /// Bodies that were checked when they entered a table.
    pub(crate) checked: u64,
    turn: usize,
}

impl Checker {
    pub(crate) fn new(machines: &[Machine]) -> Self {
        let count = machines.len();
        Self {
            numbers: machines.iter().enumerate().map(|(number, machine)| (machine.peer, number)).collect(),
            by_digest: machines.iter().enumerate().map(|(n, machine)| (AudienceDigest::of(&machine.peer), n)).collect(),
            owners: std::iter::repeat_with(Owner::default).take(count).collect(),
            slots: vec![vec![Slot::default(); count]; count],
            pulls: vec![BTreeMap::new(); count],
            lies: BTreeMap::new(),
            violations: Vec::new(),
            checked: 0,
            turn: 0,
        }
    }

    pub(crate) fn number(&self, peer: &PeerId) -> Option<Number> {
        self.numbers.get(peer).copied()
    }

    fn add_violation(&mut self, violation: Violation) {
        // One bug can break the same promise again and again.
        if self.violations.len() < 100 {
            self.violations.push(violation);
        }
    }

    fn slot(&mut self, holder: Number, owner: Number) -> Option<&mut Slot> {
        self.slots.get_mut(holder)?.get_mut(owner)
    }

    /// Records what an honest machine published. Returns the new entry of the ledger, but nothing for a goodbye.
    pub(crate) fn on_published(
        &mut self,
        owner: Number,
        machine: &Machine,
        envelope: &[u8],
        now_us: u64,
    ) -> Option<Publication> {
        let opened = Envelope::open(envelope).ok();
        if envelope.len() > 1_000 || opened.is_none() {
            self.add_violation(Violation::Malformed { owner });
        }
        let announcement = *opened?.announcement();
        let generation = announcement.generation;
        let ledger = self.owners.get_mut(owner)?;
        ledger.recent_us.retain(|at_us| at_us + PUBLICATIONS_WINDOW_US > now_us);
        ledger.recent_us.push(now_us);
        let often = ledger.recent_us.len() > PUBLICATIONS_MAX;
        // Only a machine that lost its disk may go back (see `on_disk_lost`): it is overtaken by its own newer
        // announcements.
        let back = ledger.newest.is_some_and(|newest| newest > generation);
        ledger.newest = Some(generation);
        let first = Generation { seq: 0, ..generation };
        // Filters only grow within an epoch, so all of its summaries leave out what was removed before its first one.
        let epoch_version = match ledger.published.get(&first) {
            Some(first) if generation.seq > 0 => first.epoch_version,
            Some(_) | None => machine.store.version,
        };
        let lifetime_us = u64::from(announcement.lifetime_s).clamp(LIFETIME_S.0, LIFETIME_S.1) * 1_000_000;
        let publication = Publication {
            generation,
            envelope: envelope.to_vec(),
            version: machine.store.version,
            epoch_version,
            audience: Arc::clone(&machine.told),
            announced: announcement.path_count,
            lifetime_us,
            goodbye: announcement.is_goodbye(),
        };
        let before = ledger.published.insert(generation, publication.clone());
        if often {
            self.add_violation(Violation::Bound {
                machine: owner,
                what: "publications in 10 s",
                value: PUBLICATIONS_MAX + 1,
            });
        }
        if back {
            self.add_violation(Violation::EpochBack { owner, generation });
        }
        if before.is_some_and(|before| before.envelope != envelope) {
            self.add_violation(Violation::GenerationRepeated { owner, generation });
        }
        (!announcement.is_goodbye()).then_some(publication)
    }

    /// Forgets what a machine accepted and published: without its disk it is no longer bound by it.
    pub(crate) fn on_disk_lost(&mut self, number: Number) {
        if let Some(owner) = self.owners.get_mut(number) {
            owner.newest = None;
        }
        self.slots.get_mut(number).into_iter().flatten().for_each(|slot| slot.accepted = None);
    }

    /// A machine's core is gone, and its table with it.
    pub(crate) fn on_stopped(&mut self, number: Number) {
        self.slots.get_mut(number).into_iter().flatten().for_each(|slot| slot.held = None);
        self.pulls.get_mut(number).into_iter().for_each(BTreeMap::clear);
        self.lies.retain(|(holder, _), _| *holder != number);
    }

    /// A machine forgot a peer.
    pub(crate) fn on_forgot(&mut self, holder: Number, peer: &PeerId) {
        let owner = self.number(peer);
        self.lies.retain(|(h, o), _| *h != holder || Some(*o) != owner);
        if let Some(slot) = self.number(peer).and_then(|owner| self.slot(holder, owner)) {
            *slot = Slot::default();
        }
    }

    /// A machine took a body out of its table.
    pub(crate) fn on_dropped(&mut self, holder: Number, peer: &PeerId) {
        if let Some(slot) = self.number(peer).and_then(|owner| self.slot(holder, owner)) {
            slot.held = None;
        }
    }

    /// A machine accepted an announcement.
    pub(crate) fn on_announced(
        &mut self,
        holder: Number,
        machine: &Machine,
        peer: &PeerId,
        generation: Generation,
        now_us: u64,
    ) {
        let Some(owner) = self.number(peer) else { return };
        let Some(slot) = self.slot(holder, owner) else { return };
        let before = slot.accepted;
        let wall_ms = machine.now(now_us / 1_000).wall_ms;
        if before.is_none_or(|(before, _)| before < generation) {
            slot.accepted = Some((generation, now_us));
        }
        if generation.epoch > wall_ms + DAY_MS {
            self.add_violation(Violation::Tomorrow { holder, owner, generation });
        }
        if before.is_some_and(|(before, _)| before > generation) {
            self.add_violation(Violation::WentBack { holder, owner, generation });
        }
    }

    /// Checks a body that a machine took into its table.
    pub(crate) fn check_body(
        &mut self,
        holder: Number,
        machine: &Machine,
        owner: Number,
        owned: &Machine,
        generation: Generation,
    ) {
        self.checked += 1;
        if !machine.told.contains(&owner) {
            return self.add_violation(Violation::Audience { holder, owner, generation });
        }
        let back = self.slot(holder, owner).and_then(|slot| slot.held).is_some_and(|(held, _)| held > generation);
        if back {
            self.add_violation(Violation::WentBack { holder, owner, generation });
        }
        // A liar may publish anything, so all that can be checked is that it signed it.
        if let Some(liar) = &owned.malice {
            if !liar.has_signed(generation) {
                self.add_violation(Violation::NeverPublished { holder, owner, generation });
            }
            return;
        }
        let Some(publication) = self.owners.get(owner).and_then(|owner| owner.published.get(&generation)) else {
            return self.add_violation(Violation::NeverPublished { holder, owner, generation });
        };
        let (admitted, version) = (publication.audience.contains(&holder), publication.version);
        let lifetime_us = publication.lifetime_us;
        if let Some(slot) = self.slot(holder, owner) {
            // The lifetime counts from the announcement, not from the body, which may come much later.
            let since_us = slot.accepted.filter(|(accepted, _)| *accepted == generation).map(|(_, at_us)| at_us);
            slot.held = Some((generation, since_us.unwrap_or(0) + lifetime_us));
        }
        if !admitted {
            return self.add_violation(Violation::Audience { holder, owner, generation });
        }
        self.turn = self.turn.wrapping_add(7);
        // In a large fleet only some bodies are looked into: the check takes as long as taking the body in.
        if !self.checked.is_multiple_of(1 + self.owners.len() as u64 / 200) {
            return;
        }
        if let Some(path) = find_missing(machine, owned, version, self.turn) {
            self.add_violation(Violation::FalseNegative { holder, owner, path });
        }
        if claims_too_much(machine, &owned.peer, self.turn) {
            self.add_violation(Violation::Overfull { holder, owner, generation });
        }
    }

    /// A machine removed these paths from its store.
    pub(crate) fn on_collected(&mut self, owner: Number, removed: &[Path]) {
        let Some(owner) = self.owners.get_mut(owner) else { return };
        let step = (removed.len() / 16).max(1);
        owner.removed.extend(removed.iter().step_by(step));
        while owner.removed.len() > REMOVED_KEPT {
            owner.removed.pop_first();
        }
    }

    /// A core asks somebody.
    pub(crate) fn on_requested(&mut self, machine: Number, to: Number, id: u64, bytes: &[u8], now_us: u64) {
        if bytes.len() > GossipRequest::BYTES_MAX {
            self.add_violation(Violation::Bound { machine, what: "bytes of a request", value: bytes.len() });
        }
        if bytes.first() != Some(&PULL) {
            return;
        }
        let Some(pulls) = self.pulls.get_mut(machine) else { return };
        pulls.retain(|_, (_, since_us)| *since_us + REQUEST_TIMEOUT_US > now_us);
        pulls.insert(id, (to, now_us));
        let count = pulls.len();
        if count > PULLS_MAX {
            self.add_violation(Violation::Bound { machine, what: "pulls under way", value: count });
        }
    }

    /// A core got an answer to a request, whatever it says.
    pub(crate) fn on_answered(&mut self, machine: Number, id: u64) {
        self.pulls.get_mut(machine).and_then(|pulls| pulls.remove(&id));
    }

    /// A connection ended.
    pub(crate) fn on_disconnected(&mut self, machine: Number, other: Number) {
        self.pulls.get_mut(machine).into_iter().for_each(|pulls| pulls.retain(|_, (to, _)| *to != other));
    }

    /// Checks what an honest machine answers: nothing may go to anyone outside its audience.
    pub(crate) fn check_reply(&mut self, machine: Number, asker: Number, question: &[u8], reply: &[u8]) {
        if reply.len() > GossipReply::BYTES_MAX {
            self.add_violation(Violation::Bound { machine, what: "bytes of a reply", value: reply.len() });
        }
        let told: Vec<(Number, Generation)> = match (GossipRequest::decode(question), reply.first()) {
            (Ok(GossipRequest::Pull { owner, generation, .. }), Some(&(BODY | DELTA))) => {
                self.by_digest.get(&owner).map(|owner| (*owner, generation)).into_iter().collect()
            }
            (Ok(GossipRequest::Sync(_)), Some(&SYNC)) => match GossipReply::decode(reply) {
                // A machine may tell its own announcement to anyone whom it answers, but not its body.
                Ok(GossipReply::Sync { news, .. }) => news
                    .iter()
                    .filter_map(|news| self.parse_named(news))
                    .filter(|(owner, _)| *owner != machine)
                    .collect(),
                Ok(_) | Err(_) => Vec::new(),
            },
            (Ok(_) | Err(_), _) => Vec::new(),
        };
        for (owner, generation) in told {
            let publication = self.owners.get(owner).and_then(|owner| owner.published.get(&generation));
            // A goodbye may go to everyone who has the body, even if the audience has changed since.
            let publication = publication.filter(|publication| owner != asker && !publication.goodbye);
            if publication.is_some_and(|publication| !publication.audience.contains(&asker)) {
                self.add_violation(Violation::HandedOut { machine, asker, owner, generation });
            }
        }
    }

    /// The owner and the generation that an envelope names. Its signature is not checked.
    fn parse_named(&self, envelope: &[u8]) -> Option<(Number, Generation)> {
        // The PeerId of an Ed25519 key: an identity multihash of 36 bytes, which holds the key as protobuf.
        let mut id = vec![0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
        id.extend_from_slice(envelope.get(1..33)?);
        let word = |at: usize| Some(u64::from_le_bytes(envelope.get(at..at + 8)?.try_into().ok()?));
        let generation = Generation { epoch: word(97)?, seq: word(105)? };
        Some((self.number(&PeerId::from_bytes(&id).ok()?)?, generation))
    }

    /// Checks that no running machine uses a summary beyond its lifetime.
    pub(crate) fn check_lifetimes(&mut self, machines: &[Machine], now_us: u64) {
        let mut found = Vec::new();
        for (holder, (slots, machine)) in self.slots.iter().zip(machines).enumerate() {
            for (owner, slot) in slots.iter().enumerate().filter(|_| machine.is_running()) {
                if let Some((generation, _)) = slot.held.filter(|(_, expires_us)| expires_us + GRACE_US < now_us) {
                    found.push(Violation::Immortal { holder, owner, generation });
                }
            }
        }
        found.into_iter().for_each(|violation| self.add_violation(violation));
    }

    /// Checks that a machine forgot all peers that left its allowlist, in its table and on its disk.
    pub(crate) fn check_allowlist(&mut self, holder: Number, machine: &Machine) {
        let known = machine.core.peers().filter_map(|view| self.number(&view.peer)).collect::<BTreeSet<_>>();
        let disk = machine.disk_envelopes();
        if !known.is_subset(&machine.told) || machine.core.table().peers() > machine.told.len() {
            self.add_violation(Violation::NotForgotten { holder });
        }
        if disk > machine.told.len() {
            self.add_violation(Violation::Bound { machine: holder, what: "envelopes on disk", value: disk });
        }
    }

    /// An honest machine was blamed.
    pub(crate) fn on_blamed(&mut self, accuser: Number, accused: Option<Number>, misdeed: Misdeed) {
        self.add_violation(Violation::Blamed { accuser, accused, misdeed });
    }

    /// A machine asked a liar in vain.
    pub(crate) fn on_lied(&mut self, holder: Number, owner: Number, now_us: u64) {
        let times = self.lies.entry((holder, owner)).or_default();
        times.retain(|at_us| at_us + LIES_WINDOW_US > now_us);
        times.push(now_us);
        let false_hits = times.len();
        if false_hits > LIES_MAX {
            times.clear();
            self.add_violation(Violation::NotDemoted { holder, owner, false_hits });
        }
    }

    /// Checks how many outputs a core gave for one input.
    pub(crate) fn check_outputs(&mut self, machine: Number, count: usize, machines: usize) {
        if count > OUTPUTS_MAX + 4 * machines {
            self.add_violation(Violation::Bound { machine, what: "outputs for one input", value: count });
        }
    }
}

/// A path of this version of the owner's store that the holder's filter misses, among a sample and the newest paths.
fn find_missing(holder: &Machine, owned: &Machine, version: u32, turn: usize) -> Option<Path> {
    let table = holder.core.table();
    let held = &owned.store.held;
    let step = (held.len() / SAMPLES).max(1);
    let sampled = held.iter().skip(turn % step).step_by(step).chain(held.iter().rev().take(SAMPLES / 2));
    let mut covered = sampled.filter(|held| held.is_in(version)).map(|held| held.path);
    covered.find(|path| !table.claims(&owned.peer, &part(*path)))
}

/// Whether a filter claims so many paths that nobody ever had that it cannot be its owner's: more than 3 of 24.
fn claims_too_much(holder: &Machine, owner: &PeerId, turn: usize) -> bool {
    let table = holder.core.table();
    let first = ABSENT_FROM + WANTED + u32::try_from(turn % 1_000_000).unwrap_or(0);
    (first..first + 24).filter(|path| table.claims(owner, &part(*path))).count() > 3
}
