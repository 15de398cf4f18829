//! What is kept of one path, as compact as possible.

use crate::statement::{Claim, WallMs};

/// One path. Boxed slices instead of vectors halve the memory of a ledger with a million attestations.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub(super) claims: Box<[Claim]>,
    pub(super) records: Box<[Record]>,
    pub(super) pins: u8,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// When the builder claims to have made the statement, milliseconds since 1970; [`NO_TIME`] for a bare Nix signature.
    pub(super) attested_at: u64,
    /// When this node first stored it, milliseconds since 1970; [`NO_TIME`] when that is not on record.
    pub(super) stored_at: u64,
    /// How long after `stored_at` the statement came with its date, seconds, rounded up. 0 for most, which came with it;
    /// [`NO_SPAN`] when that is not on record.
    pub(super) dated_after_s: u32,
    pub(super) bytes: u32,
    pub(super) builder: u16,
    /// The index of its claim in the entry.
    pub(super) claim: u16,
    /// Whether it is in its builder's queue.
    pub(super) queued: bool,
}

/// The value of `attested_at` and `stored_at` when there is none.
pub(super) const NO_TIME: u64 = u64::MAX;
const NO_SPAN: u32 = u32::MAX;

/// A kept time as an option.
pub(super) fn time(ms: u64) -> Option<WallMs> {
    (ms != NO_TIME).then_some(WallMs(ms))
}

impl Record {
    /// Adds the date to a bare signature. The signature has been here since the earlier of the two times.
    pub(super) fn upgrade(&mut self, attested_at: u64, stored_at: u64) {
        self.attested_at = attested_at;
        self.dated_after_s = match (self.stored_at, stored_at) {
            (_, NO_TIME) => NO_SPAN,
            (bare, dated) if dated <= bare => 0,
            (bare, dated) => u32::try_from((dated - bare).div_ceil(1_000)).unwrap_or(NO_SPAN),
        };
        self.stored_at = self.stored_at.min(stored_at);
    }

    pub(super) fn dated_stored_at(&self) -> Option<WallMs> {
        let stored_at =
            time(self.stored_at).filter(|_| self.attested_at != NO_TIME && self.dated_after_s != NO_SPAN)?;
        Some(WallMs(stored_at.0.saturating_add(u64::from(self.dated_after_s) * 1_000)))
    }
}

impl Entry {
    /// Removes a record, and its claim if no other record makes it.
    pub(super) fn remove(&mut self, at: usize) {
        let mut records = std::mem::take(&mut self.records).into_vec();
        let gone = records.remove(at);
        if !records.iter().any(|record| record.claim == gone.claim) {
            let mut claims = std::mem::take(&mut self.claims).into_vec();
            claims.remove(usize::from(gone.claim));
            self.claims = claims.into_boxed_slice();
            // Records name claims by their place, which has moved for all after the one that is gone.
            for record in records.iter_mut().filter(|record| record.claim > gone.claim) {
                record.claim -= 1;
            }
        }
        self.records = records.into_boxed_slice();
    }
}

/// Appends to a slice without spare room: a path has a handful of records, and most paths rarely get another.
pub(super) fn push<T>(slice: &mut Box<[T]>, value: T) {
    let mut vector = std::mem::take(slice).into_vec();
    vector.reserve_exact(1);
    vector.push(value);
    *slice = vector.into_boxed_slice();
}
