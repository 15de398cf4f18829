//! What our Nix asked for, and what it got: noted without waiting, in memory within a second, in the file at a pace.

use super::super::db::{LedgerDb, LedgerDbError};
use super::{Access, LiveLedger};
use narmesh_protocol::HashPart;
use narmesh_quorum::{Pin, SERVED_MAX, Served};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Questions that wait to be noted; more are not.
const ASKED_WAITING_MAX: usize = 1 << 16;

/// What the narinfo and NAR paths leave for the thread that keeps up.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) asked: BTreeSet<HashPart>,
    pub(super) served: BTreeMap<HashPart, Served>,
    pub(super) stopping: bool,
}

/// What memory remembers and forgot that the file does not know yet, for as long as it cannot be written. Locked by who has the
/// file.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    /// Asked for, oldest first; no more than memory remembers.
    asked: VecDeque<HashPart>,
    /// Rows of what was asked for that are to go; no more than the file holds.
    asked_forgotten: BTreeSet<HashPart>,
    /// The same of what was served; goes before more is written.
    served_forgotten: BTreeSet<HashPart>,
}

impl Notes {
    /// What could not be written comes back, under what was noted meanwhile; the newest of both.
    fn put_back(&mut self, served: BTreeMap<HashPart, Served>, served_max: usize) {
        for (part, served) in served {
            self.served.entry(part).or_insert(served);
        }
        let excess = self.served.len().saturating_sub(served_max);
        if excess > 0 {
            let mut oldest: Vec<_> = self.served.iter().map(|(part, served)| (served.at, *part)).collect();
            oldest.sort_unstable();
            for (_, part) in oldest.iter().take(excess) {
                self.served.remove(part);
            }
        }
    }
}

impl Unwritten {
    /// Memory has forgotten that it was asked for.
    fn forget_asked(&mut self, part: HashPart) {
        // Memory forgets in the same order.
        if self.asked.front() == Some(&part) {
            self.asked.pop_front();
        } else {
            self.asked_forgotten.insert(part);
        }
    }

    fn rows(&self) -> usize {
        self.asked.len() + self.asked_forgotten.len() + self.served_forgotten.len()
    }

    fn write_asked(&mut self, db: &LedgerDb) -> Result<(), LedgerDbError> {
        if !self.asked.is_empty() || !self.asked_forgotten.is_empty() {
            db.note_asked(&self.asked, &self.asked_forgotten)?;
            self.asked.clear();
            self.asked_forgotten.clear();
        }
        Ok(())
    }

    fn write_forgotten(&mut self, db: &LedgerDb) -> Result<(), LedgerDbError> {
        if !self.served_forgotten.is_empty() {
            db.forget_served(&self.served_forgotten)?;
            self.served_forgotten.clear();
        }
        Ok(())
    }
}

impl LiveLedger {
    /// Our Nix asks for it: its attestations are kept from now on. Waits for nobody.
    pub fn note_asked(&self, hash_part: HashPart) {
        if self.read(|ledger| ledger.is_pinned(&hash_part, Pin::Asked)) {
            return;
        }
        let mut notes = self.notes.lock();
        if notes.asked.len() < ASKED_WAITING_MAX {
            // Pinned with the next look, a second later at most: what is attested of it now would be the last to be evicted.
            notes.asked.insert(hash_part);
        }
    }

    /// Our Nix gets it. Waits for nobody.
    pub fn note_served(&self, served: Served) {
        let mut notes = self.notes.lock();
        if notes.served.len() < SERVED_MAX {
            notes.served.insert(served.path.hash_part(), served);
        }
    }

    /// Writes what was noted so far; after it a report knows it. Gives how many rows that were.
    pub fn flush(&self) -> Result<usize, LedgerDbError> {
        self.on_file(|db| {
            let (asked, served) = {
                let mut notes = self.notes.lock();
                (std::mem::take(&mut notes.asked), std::mem::take(&mut notes.served))
            };
            let mut unwritten = self.unwritten.lock();
            self.remember_asked(asked, &mut unwritten);
            let rows = unwritten.rows() + served.len();
            let written = unwritten.write_asked(db).and_then(|()| self.write_served(db, &served, &mut unwritten));
            if written.is_err() {
                self.notes.lock().put_back(served, SERVED_MAX);
            }
            written.map(|()| rows)
        })
    }

    /// Keeps the attestations of what was asked for; the file learns of it with the next [`LiveLedger::flush`].
    pub(super) fn pin_asked(&self) -> Result<(), LedgerDbError> {
        self.on_file(|_| {
            let asked = std::mem::take(&mut self.notes.lock().asked);
            self.remember_asked(asked, &mut self.unwritten.lock());
            Ok(())
        })
    }

    /// Takes into memory what the file holds. What is too much of it goes with the next [`LiveLedger::flush`].
    pub(super) fn remember_noted(&self, db: &LedgerDb) -> Result<(), LedgerDbError> {
        let (asked, served) = (db.asked()?, db.served()?);
        let mut unwritten = self.unwritten.lock();
        // Those that it holds only because they could not be deleted.
        let asked: Vec<_> = asked.into_iter().filter(|part| !unwritten.asked_forgotten.contains(part)).collect();
        self.in_portions(asked, |ledger, part| {
            if let Some(forgotten) = ledger.pin(part, Pin::Asked) {
                unwritten.forget_asked(forgotten);
            }
        });
        self.remember_served(served, &mut unwritten);
        if self.access == Access::Look {
            *unwritten = Unwritten::default();
        }
        Ok(())
    }

    fn remember_asked(&self, asked: BTreeSet<HashPart>, unwritten: &mut Unwritten) {
        self.in_portions(asked, |ledger, part| {
            // Noted again just before it was remembered.
            if ledger.is_pinned(&part, Pin::Asked) {
                return;
            }
            unwritten.asked.push_back(part);
            if let Some(forgotten) = ledger.pin(part, Pin::Asked) {
                unwritten.forget_asked(forgotten);
            }
        });
    }

    /// What was noted in the file, in memory too.
    fn remember_served(&self, served: Vec<Served>, unwritten: &mut Unwritten) {
        self.in_portions(served, |ledger, served| {
            unwritten.served_forgotten.remove(&served.path.hash_part());
            unwritten.served_forgotten.extend(ledger.note_served(served));
        });
    }

    fn write_served(
        &self,
        db: &LedgerDb,
        served: &BTreeMap<HashPart, Served>,
        unwritten: &mut Unwritten,
    ) -> Result<(), LedgerDbError> {
        unwritten.write_forgotten(db)?;
        if served.is_empty() {
            return Ok(());
        }
        let served: Vec<Served> = served.values().cloned().collect();
        db.note_served(&served)?;
        self.remember_served(served, unwritten);
        unwritten.write_forgotten(db)
    }
}

#[cfg(test)]
mod tests;
