//! Notes of what our Nix asked for and what it got. Noting waits for nobody; a note is in memory within a second, and
//! in the file at a limited pace.

use super::file::{LedgerDb, LedgerDbError};
use super::{Access, LiveLedger};
use narmesh_protocol::HashPart;
use narmesh_quorum::{Pin, SERVED_MAX, Served};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The most paths asked for that may wait for the thread; more are not noted.
const ASKED_WAITING_MAX: usize = 1 << 16;

/// What answering narinfo and NAR requests leaves for the thread of the ledger.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) asked: BTreeSet<HashPart>,
    pub(super) served: BTreeMap<HashPart, Served>,
}

/// What memory noted and forgot that is not in the file yet. Locked only by whoever has the file.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    /// Paths asked for, oldest first; no more than memory remembers.
    asked: VecDeque<HashPart>,
    /// Paths asked for whose rows have to be deleted; no more than the file holds.
    asked_forgotten: BTreeSet<HashPart>,
    /// The same for paths that were served. Deleted before more is written.
    served_forgotten: BTreeSet<HashPart>,
}

impl Notes {
    /// Puts back what could not be written, except where something newer was noted meanwhile. If that is too much, the
    /// oldest go.
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
    /// Memory has forgotten that this path was asked for.
    fn forget_asked(&mut self, part: HashPart) {
        // Memory forgets in the order of asking. So if the path was not written yet, it is the first of these;
        // otherwise it has a row.
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
    /// Notes that our Nix asks for a path, so that its attestations are kept from now on. Waits for nobody.
    pub fn note_asked(&self, hash_part: HashPart) {
        if self.read(|ledger| ledger.is_pinned(&hash_part, Pin::Asked)) {
            return;
        }
        let mut notes = self.notes.lock();
        if notes.asked.len() < ASKED_WAITING_MAX {
            // The thread pins it within a second. Until then its new attestations are safe: the oldest are evicted
            // first.
            notes.asked.insert(hash_part);
        }
    }

    /// Notes that our Nix gets a path. Waits for nobody.
    pub fn note_served(&self, served: Served) {
        let mut notes = self.notes.lock();
        if notes.served.len() < SERVED_MAX {
            notes.served.insert(served.path.hash_part(), served);
        }
    }

    /// Writes what was noted so far, so that a report knows it. Returns the number of rows.
    pub fn flush(&self) -> Result<usize, LedgerDbError> {
        self.with_file(|db| {
            // Taken out, so that lookups can note more while the disk is slow.
            let (asked, served) = {
                let mut notes = self.notes.lock();
                (std::mem::take(&mut notes.asked), std::mem::take(&mut notes.served))
            };
            let mut unwritten = self.unwritten.lock();
            self.remember_asked(asked, &mut unwritten);
            let rows = unwritten.rows() + served.len();
            let written = unwritten.write_asked(db).and_then(|()| self.write_served(db, &served, &mut unwritten));
            // What could not be written is tried again, within its bound.
            if written.is_err() {
                self.notes.lock().put_back(served, SERVED_MAX);
            }
            written.map(|()| rows)
        })
    }

    /// From now on keeps the attestations of paths asked for; the next [`LiveLedger::flush`] writes this to the file.
    pub(in crate::attestations) fn pin_asked(&self) -> Result<(), LedgerDbError> {
        self.with_file(|_| {
            let asked = std::mem::take(&mut self.notes.lock().asked);
            self.remember_asked(asked, &mut self.unwritten.lock());
            Ok(())
        })
    }

    /// Takes into memory what is noted in the file. The next [`LiveLedger::flush`] deletes what is beyond the bounds.
    pub(super) fn remember_noted(&self, db: &LedgerDb) -> Result<(), LedgerDbError> {
        let (asked, served) = (db.read_asked()?, db.read_served()?);
        let mut unwritten = self.unwritten.lock();
        // Without those that the file holds only because they could not be deleted yet.
        let asked: Vec<_> = asked.into_iter().filter(|part| !unwritten.asked_forgotten.contains(part)).collect();
        self.in_portions(asked, |ledger, part| {
            if let Some(forgotten) = ledger.pin(part, Pin::Asked) {
                unwritten.forget_asked(forgotten);
            }
        });
        self.remember_served(served, &mut unwritten);
        // Whoever only looks deletes nothing.
        if self.access == Access::Look {
            *unwritten = Unwritten::default();
        }
        Ok(())
    }

    fn remember_asked(&self, asked: BTreeSet<HashPart>, unwritten: &mut Unwritten) {
        self.in_portions(asked, |ledger, part| {
            // It was noted a second time just before it was pinned.
            if ledger.is_pinned(&part, Pin::Asked) {
                return;
            }
            unwritten.asked.push_back(part);
            if let Some(forgotten) = ledger.pin(part, Pin::Asked) {
                unwritten.forget_asked(forgotten);
            }
        });
    }

    /// Takes into memory what the file has noted as served.
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
        // The file first: if that fails, `flush` puts the notes back and they are tried again.
        db.note_served(&served)?;
        self.remember_served(served, unwritten);
        unwritten.write_forgotten(db)
    }
}

#[cfg(test)]
mod tests;
