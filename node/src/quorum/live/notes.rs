//! What our Nix asked for, and what it got: noted without waiting, in memory and in the file within moments.

use super::super::db::{LedgerDb, LedgerDbError};
use super::{Access, LiveLedger};
use narmesh_protocol::HashPart;
use narmesh_quorum::{Pin, SERVED_MAX, Served};
use std::collections::{BTreeMap, BTreeSet};

/// Questions that wait to be noted; more are not.
const ASKED_WAITING_MAX: usize = 1 << 16;

/// What the narinfo and NAR paths leave for the thread that keeps up.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) asked: BTreeSet<HashPart>,
    pub(super) served: BTreeMap<HashPart, Served>,
    pub(super) stopping: bool,
}

impl LiveLedger {
    /// Our Nix asks for it: its attestations are kept from now on. Waits for nobody.
    pub fn note_asked(&self, hash_part: HashPart) {
        if self.read(|ledger| ledger.is_pinned(&hash_part, Pin::Asked)) {
            return;
        }
        let mut notes = self.notes.lock();
        if notes.asked.len() < ASKED_WAITING_MAX {
            // Written with the next look, a second later at most: what is attested of it now would be the last to be evicted.
            notes.asked.insert(hash_part);
        }
    }

    /// Our Nix gets it. Waits for nobody; in the file within moments.
    pub fn note_served(&self, served: Served) {
        let mut notes = self.notes.lock();
        if notes.served.len() < SERVED_MAX {
            notes.served.insert(served.path.hash_part(), served);
            self.noted.notify_one();
        }
    }

    /// Writes what was noted so far; after it a report knows it.
    pub fn flush(&self) -> Result<(), LedgerDbError> {
        self.on_file(|db| {
            let (asked, served) = {
                let mut notes = self.notes.lock();
                (std::mem::take(&mut notes.asked), std::mem::take(&mut notes.served))
            };
            let written = self.write_asked(db, &asked).and_then(|()| self.write_served(db, &served));
            if written.is_err() {
                let mut notes = self.notes.lock();
                notes.asked.extend(asked);
                for (part, served) in served {
                    notes.served.entry(part).or_insert(served);
                }
            }
            written
        })
    }

    fn write_asked(&self, db: &LedgerDb, asked: &BTreeSet<HashPart>) -> Result<(), LedgerDbError> {
        if asked.is_empty() {
            return Ok(());
        }
        let forgotten = self.remember_asked(asked);
        db.note_asked(asked.iter().copied(), &forgotten)
    }

    fn write_served(&self, db: &LedgerDb, served: &BTreeMap<HashPart, Served>) -> Result<(), LedgerDbError> {
        if served.is_empty() {
            return Ok(());
        }
        let served: Vec<Served> = served.values().cloned().collect();
        db.note_served(&served)?;
        self.remember_served(db, served)
    }

    /// What was asked for, in memory; gives what is forgotten for it.
    pub(super) fn remember_asked<'a>(&self, asked: impl IntoIterator<Item = &'a HashPart>) -> Vec<HashPart> {
        let mut forgotten = Vec::new();
        self.in_portions(asked, |ledger, part| forgotten.extend(ledger.pin(*part, Pin::Asked)));
        forgotten
    }

    /// What was noted in the file, in memory too; what that forgets for it goes from the file.
    pub(super) fn remember_served(&self, db: &LedgerDb, served: Vec<Served>) -> Result<(), LedgerDbError> {
        let mut forgotten = Vec::new();
        self.in_portions(served, |ledger, served| forgotten.extend(ledger.note_served(served)));
        if forgotten.is_empty() || self.access == Access::Look { Ok(()) } else { db.forget_served(&forgotten) }
    }
}
