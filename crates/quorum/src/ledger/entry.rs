//! What is kept of one path: as small as it gets.

use crate::evidence::{Facts, WallMs};

/// One path. Slices, not vectors: half of the memory of a ledger with a million attestations.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub(super) facts: Box<[Facts]>,
    pub(super) records: Box<[Record]>,
    pub(super) pins: u8,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// `u64::MAX` for none.
    pub(super) attested_at: u64,
    /// `u64::MAX` for none.
    pub(super) stored_at: u64,
    /// So many seconds after `stored_at` it came with its date, rounded up; `u32::MAX` when that is not on record. 0 for most: they
    /// came with it.
    pub(super) dated_after_s: u32,
    pub(super) bytes: u32,
    pub(super) builder: u16,
    /// Which of the entry's facts.
    pub(super) fact: u16,
    /// In its builder's queue.
    pub(super) queued: bool,
}

/// For `attested_at` and `stored_at`: none.
pub(super) const NO_TIME: u64 = u64::MAX;
const NO_SPAN: u32 = u32::MAX;

/// Milliseconds as kept.
pub(super) fn time(ms: u64) -> Option<WallMs> {
    (ms != NO_TIME).then_some(WallMs(ms))
}

impl Record {
    /// A bare signature gets its date. Its signature has been here since the earlier of the two.
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
    /// Removes a record, and its facts if nobody else states them.
    pub(super) fn remove(&mut self, at: usize) {
        let mut records = std::mem::take(&mut self.records).into_vec();
        let gone = records.remove(at);
        if !records.iter().any(|record| record.fact == gone.fact) {
            let mut facts = std::mem::take(&mut self.facts).into_vec();
            facts.remove(usize::from(gone.fact));
            self.facts = facts.into_boxed_slice();
            for record in records.iter_mut().filter(|record| record.fact > gone.fact) {
                record.fact -= 1;
            }
        }
        self.records = records.into_boxed_slice();
    }
}

/// Appends to an exact slice: paths have a handful of records, and most of them get one more rarely.
pub(super) fn push<T>(slice: &mut Box<[T]>, value: T) {
    let mut vector = std::mem::take(slice).into_vec();
    vector.reserve_exact(1);
    vector.push(value);
    *slice = vector.into_boxed_slice();
}
