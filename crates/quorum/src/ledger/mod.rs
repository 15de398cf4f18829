//! All statements known here, by path and by builder, within bounds.

mod entry;

use self::entry::{Entry, NO_TIME, Record, push, time};
use crate::digests::Digests;
use crate::statement::{Claim, FingerprintDigest, VerifiedStatement, WallMs};
use narmesh_protocol::{BuilderKey, HashPart, StorePath};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Bound, RangeInclusive};

/// The most builders that a ledger can tell apart.
pub const BUILDERS_MAX: usize = 1_024;
/// The most statements kept of one builder for one path: two make its vote void, the others show that it contradicts itself.
pub const STATEMENTS_PER_PATH_MAX: usize = 4;
/// The most paths remembered as asked for; beyond it, the oldest question is forgotten.
pub const ASKED_MAX: usize = 1 << 17;
/// The most paths remembered as served; beyond it, the oldest is forgotten.
pub const SERVED_MAX: usize = 1 << 18;

/// The space on disk that a statement about a pinned path may take on average, bytes, beside [`LedgerLimits::bytes_per_builder`]. Most
/// take less than 1 KiB; one with a thousand references takes 60.
pub const PINNED_BYTES_EACH: u64 = 2_048;

/// Bounds on what one builder can make us keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LedgerLimits {
    /// The most attestations about paths that nobody here has, serves or asked for. About pinned paths there may be
    /// [`STATEMENTS_PER_PATH_MAX`] each.
    pub per_builder: usize,
    /// The most bytes that they take on disk. Those about pinned paths may take as much again, and
    /// [`PINNED_BYTES_EACH`] each.
    pub bytes_per_builder: u64,
}

impl Default for LedgerLimits {
    /// A guess, not measured: more outputs than any one machine has, in at most 10 GB for 100 builders.
    fn default() -> Self {
        Self { per_builder: 200_000, bytes_per_builder: 100 << 20 }
    }
}

/// Why a path's attestations are never evicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pin {
    /// The path is in our store.
    Held,
    /// Our Nix got the path through us.
    Served,
    /// Our Nix asked for the path.
    Asked,
    /// The path is named in the configuration.
    Configured,
}

impl Pin {
    fn bit(self) -> u8 {
        match self {
            Self::Held => 1,
            Self::Served => 2,
            Self::Asked => 4,
            Self::Configured => 8,
        }
    }
}

/// What became of a statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Insertion {
    /// It is new. The builder's oldest attestations may have been evicted for it.
    New {
        /// What was evicted, oldest first; the caller has to delete it on disk too.
        evicted: Vec<Evicted>,
    },
    /// A bare Nix signature was known, and now there is an attestation. The times at which both came are kept.
    Upgraded,
    /// It was known; nothing changed, not even a date.
    Known,
    /// This builder has already made enough different statements about this path, so its vote is void anyway.
    EnoughStatements,
    /// What this builder said about pinned paths takes too much room: see [`PINNED_BYTES_EACH`].
    TooLong,
    /// There are more builders than [`BUILDERS_MAX`].
    TooManyBuilders,
}

/// An attestation that was evicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Evicted {
    /// The builder that made the attestation.
    pub builder: BuilderKey,
    /// The path that it is about.
    pub hash_part: HashPart,
    /// The fingerprint that it states.
    pub fingerprint: FingerprintDigest,
}

/// One statement of one builder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vote {
    /// The builder that made the statement.
    pub builder: BuilderKey,
    /// What it says of the path.
    pub claim: Claim,
    /// When the builder claims to have made it; `None` for a bare Nix signature.
    pub attested_at: Option<WallMs>,
    /// When this node first stored the statement, with a date or without; `None` when that is not on record.
    pub stored_at: Option<WallMs>,
    /// When this node first stored it with its date, in case it first came as a bare Nix signature. Rounded up to the
    /// second, which is the safe side. `None` for a bare signature, and when the time is not on record.
    pub dated_stored_at: Option<WallMs>,
}

/// What our Nix got because of a verdict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Served {
    /// The path that was served.
    pub path: StorePath,
    /// The fingerprint of what was served.
    pub fingerprint: FingerprintDigest,
    /// When it was last served.
    pub at: WallMs,
}

/// All statements known here. Cheap to read, bounded, and ordered by path.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    limits: LedgerLimits,
    builders: Vec<BuilderLedger>,
    numbers: BTreeMap<BuilderKey, u16>,
    paths: BTreeMap<HashPart, Entry>,
    votes: usize,
    /// How many of the votes have no date.
    bare: usize,
    asked: VecDeque<HashPart>,
    served: BTreeMap<HashPart, Served>,
    served_order: BTreeSet<(WallMs, HashPart)>,
    pub(crate) digests: Digests,
}

/// One builder and the queue of its votes that may be evicted, oldest first. A queue element whose vote was pinned or is
/// gone counts until it is popped.
#[derive(Clone, Debug)]
struct BuilderLedger {
    key: BuilderKey,
    queue: VecDeque<HashPart>,
    bytes: u64,
    /// Votes that are not in the queue, because their paths are pinned, and the bytes that they take on disk.
    pinned: u64,
    pinned_bytes: u64,
    tally: Tally,
}

/// How much is kept of one builder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// The number of its attestations, without bare Nix signatures.
    pub attestations: usize,
    /// When this node first stored the attestation that came last, if that is on record.
    pub last_stored_at: Option<WallMs>,
}

impl BuilderLedger {
    fn has_room_for_pinned(&self, bytes: u32, bytes_max: u64) -> bool {
        let room = bytes_max.saturating_add(PINNED_BYTES_EACH * (self.pinned + 1));
        self.pinned_bytes + u64::from(bytes) <= room
    }

    fn count_pinned(&mut self, bytes: u32) {
        self.pinned += 1;
        self.pinned_bytes += u64::from(bytes);
    }

    fn uncount_pinned(&mut self, bytes: u32) {
        self.pinned = self.pinned.saturating_sub(1);
        self.pinned_bytes = self.pinned_bytes.saturating_sub(u64::from(bytes));
    }
}

impl Ledger {
    /// An empty ledger.
    pub fn new(limits: LedgerLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes a statement that this node first stored at `stored_at`. `None` means that nobody knows; then a revocation of
    /// its key voids it whatever its date.
    pub fn insert(&mut self, statement: &VerifiedStatement, stored_at: Option<WallMs>) -> Insertion {
        let Some(builder) = self.assign_number(statement.builder) else { return Insertion::TooManyBuilders };
        let entry = self.paths.entry(statement.hash_part).or_default();
        let (attested_at, stored_at) =
            (statement.attested_at.map_or(NO_TIME, |at| at.0), stored_at.map_or(NO_TIME, |at| at.0));
        let claim = entry.claims.iter().position(|known| known.fingerprint == statement.claim.fingerprint);
        let known = entry.records.iter_mut().find(|it| it.builder == builder && Some(usize::from(it.claim)) == claim);
        // The same statement again: all that can be new is its date.
        if let Some(known) = known {
            if known.attested_at != NO_TIME || attested_at == NO_TIME {
                return Insertion::Known;
            }
            known.upgrade(attested_at, stored_at);
            self.bare -= 1;
            self.forget_digest(builder, &statement.hash_part);
            if let Some(builder_ledger) = self.builders.get_mut(usize::from(builder)) {
                builder_ledger.tally.attestations += 1;
            }
            return Insertion::Upgraded;
        }
        let said = entry.records.iter().filter(|it| it.builder == builder).count();
        let claim = claim.unwrap_or(entry.claims.len());
        let Ok(claim_number) = u16::try_from(claim) else { return Insertion::EnoughStatements };
        if said >= STATEMENTS_PER_PATH_MAX {
            return Insertion::EnoughStatements;
        }
        let is_pinned = entry.pins != 0;
        // Nothing makes room for it later: what is pinned is never evicted.
        if is_pinned
            && let Some(builder_ledger) = self.builders.get(usize::from(builder))
            && !builder_ledger.has_room_for_pinned(statement.bytes, self.limits.bytes_per_builder)
        {
            return Insertion::TooLong;
        }
        if claim == entry.claims.len() {
            push(&mut entry.claims, statement.claim);
        }
        // Only votes on paths without a pin use up the builder's bounds and can be evicted.
        let queued = !is_pinned;
        let (bytes, claim) = (statement.bytes, claim_number);
        let record = Record { attested_at, stored_at, dated_after_s: 0, bytes, builder, claim, queued };
        push(&mut entry.records, record);
        self.votes += 1;
        self.bare += usize::from(attested_at == NO_TIME);
        self.forget_digest(builder, &statement.hash_part);
        if let Some(builder_ledger) = self.builders.get_mut(usize::from(builder))
            && attested_at != NO_TIME
        {
            builder_ledger.tally.attestations += 1;
            builder_ledger.tally.last_stored_at = builder_ledger.tally.last_stored_at.max(time(stored_at));
        }
        if let Some(builder_ledger) = self.builders.get_mut(usize::from(builder)) {
            if queued {
                builder_ledger.queue.push_back(statement.hash_part);
                builder_ledger.bytes += u64::from(statement.bytes);
            } else {
                builder_ledger.count_pinned(statement.bytes);
            }
        }
        Insertion::New { evicted: self.evict(builder) }
    }

    /// Takes a statement back, pinned or not, as if it had never been made.
    pub fn withdraw(&mut self, gone: &Evicted) {
        let (Some(builder), Some(entry)) = (self.number_of(&gone.builder), self.paths.get_mut(&gone.hash_part)) else {
            return;
        };
        let claim = entry.claims.iter().position(|claim| claim.fingerprint == gone.fingerprint);
        let is_it = |it: &Record| it.builder == builder && Some(usize::from(it.claim)) == claim;
        let Some(at) = entry.records.iter().position(is_it) else { return };
        let Some(Record { queued, bytes, attested_at, .. }) = entry.records.get(at).copied() else { return };
        entry.remove(at);
        if entry.records.is_empty() && entry.pins == 0 {
            self.paths.remove(&gone.hash_part);
        }
        // Its queue element counts until it is popped.
        if let Some(builder_ledger) = self.builders.get_mut(usize::from(builder)) {
            if queued {
                builder_ledger.bytes = builder_ledger.bytes.saturating_sub(u64::from(bytes));
            } else {
                builder_ledger.uncount_pinned(bytes);
            }
            builder_ledger.tally.attestations -= usize::from(attested_at != NO_TIME);
        }
        self.votes -= 1;
        self.bare -= usize::from(attested_at == NO_TIME);
        self.forget_digest(builder, &gone.hash_part);
    }

    /// Whether inserting it would change nothing: the ledger holds it, with a date if it has one.
    pub fn knows(&self, statement: &VerifiedStatement) -> bool {
        self.votes(&statement.hash_part).any(|vote| {
            vote.builder == statement.builder
                && vote.claim.fingerprint == statement.claim.fingerprint
                && (vote.attested_at.is_some() || statement.attested_at.is_none())
        })
    }

    /// Whether anything was said about a path.
    pub fn has_votes(&self, hash_part: &HashPart) -> bool {
        self.paths.get(hash_part).is_some_and(|entry| !entry.records.is_empty())
    }

    /// Whether a path is pinned for this reason.
    pub fn is_pinned(&self, hash_part: &HashPart, pin: Pin) -> bool {
        self.paths.get(hash_part).is_some_and(|entry| entry.pins & pin.bit() != 0)
    }

    /// Pins a path, so that its attestations are kept. Beyond [`ASKED_MAX`] questions, the one asked longest ago loses that
    /// pin; its path is returned.
    pub fn pin(&mut self, hash_part: HashPart, pin: Pin) -> Option<HashPart> {
        let entry = self.paths.entry(hash_part).or_default();
        let before = entry.pins;
        entry.pins |= pin.bit();
        if pin != Pin::Asked || before & pin.bit() != 0 {
            return None;
        }
        self.asked.push_back(hash_part);
        let oldest = if self.asked.len() > ASKED_MAX { self.asked.pop_front() } else { None }?;
        self.unpin(oldest, Pin::Asked);
        Some(oldest)
    }

    /// The paths that our Nix asked for, oldest first.
    pub fn asked_paths(&self) -> impl Iterator<Item = HashPart> {
        self.asked.iter().copied()
    }

    /// Removes a pin. If it was the last one, the path's attestations may be evicted, and count as the newest.
    pub fn unpin(&mut self, hash_part: HashPart, pin: Pin) {
        let Some(entry) = self.paths.get_mut(&hash_part) else { return };
        entry.pins &= !pin.bit();
        if entry.pins != 0 {
            return;
        }
        if entry.records.is_empty() {
            self.paths.remove(&hash_part);
            return;
        }
        for record in entry.records.iter_mut().filter(|record| !record.queued) {
            if let Some(builder_ledger) = self.builders.get_mut(usize::from(record.builder)) {
                record.queued = true;
                builder_ledger.uncount_pinned(record.bytes);
                builder_ledger.queue.push_back(hash_part);
                builder_ledger.bytes += u64::from(record.bytes);
            }
        }
    }

    /// Notes that our Nix got this fingerprint. Beyond [`SERVED_MAX`] paths, the one served longest ago is
    /// forgotten; it is returned.
    pub fn note_served(&mut self, served: Served) -> Option<HashPart> {
        let (hash_part, at) = (served.path.hash_part(), served.at);
        self.pin(hash_part, Pin::Served);
        if let Some(before) = self.served.insert(hash_part, served) {
            self.served_order.remove(&(before.at, hash_part));
        }
        self.served_order.insert((at, hash_part));
        if self.served_order.len() <= SERVED_MAX {
            return None;
        }
        let (_, oldest) = self.served_order.pop_first()?;
        self.served.remove(&oldest);
        self.unpin(oldest, Pin::Served);
        Some(oldest)
    }

    /// What was served, ordered by hash part, beginning after `after`.
    pub fn served_after(&self, after: Option<HashPart>) -> impl Iterator<Item = &Served> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.served.range((from, Bound::Unbounded)).map(|(_, served)| served)
    }

    /// What was last served of a path.
    pub fn served_of(&self, hash_part: &HashPart) -> Option<&Served> {
        self.served.get(hash_part)
    }

    /// All statements about a path, in no particular order.
    pub fn votes(&self, hash_part: &HashPart) -> impl Iterator<Item = Vote> + use<'_> {
        let entry = self.paths.get(hash_part);
        entry.into_iter().flat_map(move |entry| {
            entry.records.iter().filter_map(move |record| {
                Some(Vote {
                    builder: self.builders.get(usize::from(record.builder))?.key,
                    claim: *entry.claims.get(usize::from(record.claim))?,
                    attested_at: time(record.attested_at),
                    stored_at: time(record.stored_at),
                    dated_stored_at: record.dated_stored_at(),
                })
            })
        })
    }

    /// The paths about which something was said, in ascending order.
    pub fn hash_parts(&self) -> impl Iterator<Item = HashPart> {
        self.paths.iter().filter(|(_, entry)| !entry.records.is_empty()).map(|(hash_part, _)| *hash_part)
    }

    /// The paths about which this builder said something, in ascending order.
    pub fn hash_parts_of(&self, builder: &BuilderKey) -> Vec<HashPart> {
        let Some(number) = self.number_of(builder) else { return Vec::new() };
        let said = |(_, entry): &(&HashPart, &Entry)| entry.records.iter().any(|record| record.builder == number);
        self.paths.iter().filter(said).map(|(hash_part, _)| *hash_part).collect()
    }

    /// Whether anything is known about any path in `range`.
    pub(crate) fn has_paths_in(&self, range: RangeInclusive<HashPart>) -> bool {
        self.paths.range(range).next().is_some()
    }

    /// What these builders, given in ascending order, attested about the paths in `range`, ordered by path
    /// and then by builder.
    pub(crate) fn attested_in(
        &self,
        range: RangeInclusive<HashPart>,
        builders: &[u16],
    ) -> impl Iterator<Item = (HashPart, Vec<(u16, FingerprintDigest)>)> {
        self.paths.range(range).map(move |(hash_part, entry)| {
            let wanted = |it: &&Record| it.attested_at != NO_TIME && builders.binary_search(&it.builder).is_ok();
            let fingerprint = |it: &Record| Some((it.builder, entry.claims.get(usize::from(it.claim))?.fingerprint));
            let mut said: Vec<_> = entry.records.iter().filter(wanted).filter_map(fingerprint).collect();
            said.sort_unstable();
            (*hash_part, said)
        })
    }

    /// The number of statements held.
    pub fn len(&self) -> usize {
        self.votes
    }

    /// How much is held of one builder.
    pub fn tally_of(&self, builder: &BuilderKey) -> Tally {
        let builder_ledger = self.number_of(builder).and_then(|number| self.builders.get(usize::from(number)));
        builder_ledger.map(|builder_ledger| builder_ledger.tally).unwrap_or_default()
    }

    /// How many of the statements are bare Nix signatures.
    pub fn bare_signatures(&self) -> usize {
        self.bare
    }

    /// Whether no statement is held.
    pub fn is_empty(&self) -> bool {
        self.votes == 0
    }

    pub(crate) fn number_of(&self, builder: &BuilderKey) -> Option<u16> {
        self.numbers.get(builder).copied()
    }

    /// The builder that has this number.
    pub(crate) fn key_of(&self, number: u16) -> Option<BuilderKey> {
        self.builders.get(usize::from(number)).map(|builder_ledger| builder_ledger.key)
    }

    fn assign_number(&mut self, builder: BuilderKey) -> Option<u16> {
        if let Some(number) = self.number_of(&builder) {
            return Some(number);
        }
        let number = u16::try_from(self.builders.len()).ok().filter(|number| usize::from(*number) < BUILDERS_MAX)?;
        self.builders.push(BuilderLedger {
            key: builder,
            queue: VecDeque::new(),
            bytes: 0,
            pinned: 0,
            pinned_bytes: 0,
            tally: Tally::default(),
        });
        self.numbers.insert(builder, number);
        Some(number)
    }

    fn forget_digest(&self, builder: u16, hash_part: &HashPart) {
        self.digests.forget(builder, crate::hash_tree::first_byte(hash_part));
    }

    /// Evicts this builder's oldest attestations until it is within its bounds; pinned paths are passed over.
    fn evict(&mut self, builder: u16) -> Vec<Evicted> {
        let mut evicted = Vec::new();
        while let Some(builder_ledger) = self.builders.get_mut(usize::from(builder))
            && (builder_ledger.queue.len() > self.limits.per_builder
                || builder_ledger.bytes > self.limits.bytes_per_builder)
        {
            let Some(hash_part) = builder_ledger.queue.pop_front() else { break };
            let Some(entry) = self.paths.get_mut(&hash_part) else { continue };
            // The element may be outdated: its vote may be gone, or its path pinned since.
            let Some(at) = entry.records.iter().position(|it| it.builder == builder && it.queued) else { continue };
            let Some(record) = entry.records.get_mut(at) else { continue };
            record.queued = false;
            builder_ledger.bytes = builder_ledger.bytes.saturating_sub(u64::from(record.bytes));
            if entry.pins != 0 {
                builder_ledger.count_pinned(record.bytes);
                continue;
            }
            builder_ledger.tally.attestations -= usize::from(record.attested_at != NO_TIME);
            let (key, claim) = (builder_ledger.key, usize::from(record.claim));
            let fingerprint = entry.claims.get(claim).map(|claim| claim.fingerprint);
            self.bare -= usize::from(record.attested_at == NO_TIME);
            entry.remove(at);
            if entry.records.is_empty() {
                self.paths.remove(&hash_part);
            }
            self.votes -= 1;
            self.forget_digest(builder, &hash_part);
            evicted.extend(fingerprint.map(|fingerprint| Evicted { builder: key, hash_part, fingerprint }));
        }
        evicted
    }
}
