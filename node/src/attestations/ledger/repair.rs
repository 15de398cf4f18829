//! Repairs a ledger whose file turned out damaged while the ledger was in memory. By then the file was moved aside, and
//! there is a new one.
//!
//! Memory holds neither signatures nor references. So what can still be read from the old file, and verifies, goes into
//! the new one, with the times that memory knows. What cannot be read is forgotten in memory, too: it would be gone
//! after a restart, and until then be promised to peers and never handed over. It comes again from them, and this node
//! attests its own builds again.

use super::file::{BareSignature, LedgerDb, LedgerDbError, NewStatement, StoredStatement};
use super::{LiveLedger, itself};
use crate::attestations::verification::{verify_all, verify_bare};
use narmesh_protocol::{BuilderKey, HashPart, NixSignature};
use narmesh_quorum::{Evicted, FingerprintDigest, Ledger, VerifiedStatement, Vote, WallMs};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;

/// How many paths are read, verified and written at a time.
const PATHS_AT_ONCE: usize = 1_024;

/// The statements about some paths that could be read and that verify.
#[derive(Default)]
struct Readable {
    attestations: Vec<(StoredStatement, VerifiedStatement)>,
    bare: Vec<(BareSignature, VerifiedStatement)>,
}

impl LiveLedger {
    /// Restores into `db` what memory knows and the damaged file at `moved_to` still holds. When the daemon starts,
    /// memory is empty, so nothing is restored: the times in a damaged file are not believed.
    pub(super) fn restore(&self, db: &LedgerDb, moved_to: &Path) -> Result<(), LedgerDbError> {
        {
            // These connections still read the old file.
            let mut readers = self.readers.lock();
            readers.idle.clear();
            readers.file += 1;
        }
        let (asked, served): (Vec<HashPart>, Vec<_>) =
            self.read(|ledger| (ledger.asked_paths().collect(), ledger.served_after(None).cloned().collect()));
        // Memory knows these better than a file that is damaged.
        db.note_asked(&asked, &[])?;
        db.note_served(&served)?;
        let old = LedgerDb::open_damaged(moved_to, &self.store_dir).ok();
        let paths: Vec<HashPart> = self.read(|ledger| ledger.hash_parts().collect());
        let (mut restored, mut lost) = (0, 0);
        // In portions, because the old file may be large and is read beside a daemon at work.
        for paths in paths.chunks(PATHS_AT_ONCE) {
            let found = old.as_ref().map(|old| self.read_and_verify(old, paths)).unwrap_or_default();
            let kept = self.write_again(db, &found)?;
            // What memory shows has to be in the file, or it would be gone at the next start.
            let gone = self.read(|ledger| not_among(ledger, paths, &kept));
            self.in_portions(&gone, Ledger::withdraw);
            restored += kept.len();
            lost += gone.len();
        }
        tracing::warn!(
            moved_to = %moved_to.display(), restored, lost,
            "the attestations could not be read and were moved aside: those that come again count as first stored then"
        );
        if lost > 0 {
            self.losses.fetch_add(1, Ordering::Release);
            self.tell();
        }
        Ok(())
    }

    /// Reads these paths from the old file and verifies them. If one path cannot be read, the others are read all the
    /// same.
    fn read_and_verify(&self, old: &LedgerDb, paths: &[HashPart]) -> Readable {
        let stored: Vec<StoredStatement> =
            paths.iter().flat_map(|path| old.read_attestations(path).unwrap_or_default()).collect();
        let attestations = verify_all(&self.store_dir, stored.into_iter().map(|it| (it.key, it.attestation)).collect());
        let bare = paths.iter().flat_map(|path| old.read_bare_signatures(path).unwrap_or_default());
        let verify = |bare: BareSignature| {
            let signature = NixSignature { key_name: bare.key.name().to_owned(), bytes: bare.signature };
            verify_bare(&self.store_dir, &bare.key, &bare.statement, &signature)
        };
        Readable { attestations, bare: bare.filter_map(verify).collect() }
    }

    /// Writes those statements that memory knows, with the times that it knows. Returns what was written.
    fn write_again(
        &self,
        db: &LedgerDb,
        found: &Readable,
    ) -> Result<BTreeSet<(BuilderKey, FingerprintDigest)>, LedgerDbError> {
        let names = self.names();
        let dated = found.attestations.iter().map(|(stored, verified)| (NewStatement::from(stored), verified));
        let bare = found.bare.iter().map(|(bare, verified)| (NewStatement::from(bare), verified));
        let undated: Vec<VerifiedStatement> = dated.clone().map(|(_, verified)| verified.undated()).collect();
        let (mut rows, mut kept) = (Vec::new(), BTreeSet::new());
        // The dated ones come first, so exactly these have an entry in `undated`.
        for (number, (vote, verified)) in dated.chain(bare).enumerate() {
            let Some(known) = self.read(|ledger| find_known(ledger, verified)) else { continue };
            let vote = vote.under(&names);
            let stored_at: Option<WallMs> = match (known.dated_stored_at, undated.get(number)) {
                // It was first a bare signature, so both are written, each with its time.
                (Some(dated), Some(undated)) if known.stored_at != Some(dated) => {
                    rows.push((vote.undated(), undated, known.stored_at));
                    Some(dated)
                }
                (dated, Some(_)) => dated,
                (_, None) => known.stored_at,
            };
            rows.push((vote, verified, stored_at));
            kept.insert((verified.builder(), verified.claim().fingerprint));
        }
        db.restore(&rows)?;
        Ok(kept)
    }
}

/// What memory knows of the same statement in the same form, as an attestation or as a bare signature.
fn find_known(ledger: &Ledger, verified: &VerifiedStatement) -> Option<Vote> {
    let what = itself(verified);
    ledger.votes(&what.hash_part).find(|vote| {
        (vote.builder, vote.claim.fingerprint) == (what.builder, what.fingerprint)
            && vote.attested_at.is_some() == verified.is_dated()
    })
}

/// Statements about `paths` in memory that are not among `kept`.
fn not_among(ledger: &Ledger, paths: &[HashPart], kept: &BTreeSet<(BuilderKey, FingerprintDigest)>) -> Vec<Evicted> {
    let votes = paths.iter().flat_map(|path| ledger.votes(path).map(|vote| (*path, vote)));
    let gone = votes.filter(|(_, vote)| !kept.contains(&(vote.builder, vote.claim.fingerprint)));
    gone.map(|(hash_part, vote)| Evicted { builder: vote.builder, hash_part, fingerprint: vote.claim.fingerprint })
        .collect()
}
