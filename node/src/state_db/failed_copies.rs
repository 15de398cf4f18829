//! Our copies that failed their hash, or could not be read, so that a restart does not offer them again.

use super::{SharedStateDb, StateDb, StateDbError};
use narmesh_protocol::HashPart;
use narmesh_store::{CopyFault, FAILED_MAX, KeptFault, NixStore, StoreChange};
use rusqlite::params;

impl StateDb {
    /// All that are kept. A row that means nothing to this version is left out.
    fn read_failed_copies(&self) -> Result<Vec<(HashPart, KeptFault)>, StateDbError> {
        let kept = |row: &rusqlite::Row<'_>| {
            let (part, fault, stamp) = (row.get(0).ok()?, row.get(1).ok()?, row.get::<_, i64>(2).ok()?);
            let fault = CopyFault::from_number(fault)?;
            Some((HashPart(part), KeptFault { fault, stamp: stamp.cast_unsigned() }))
        };
        self.run(|connection| {
            let mut select = connection.prepare("SELECT hash_part, fault, stamp FROM failed_copies")?;
            select.query_map((), |row| Ok(kept(row)))?.filter_map(Result::transpose).collect()
        })
    }

    /// Keeps and forgets copies, all in one transaction. Of more than [`FAILED_MAX`] the first by hash part are forgotten,
    /// as the store does.
    fn update_failed_copies(&mut self, changes: &[(HashPart, Option<KeptFault>)]) -> Result<(), StateDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for (part, kept) in changes {
                match kept {
                    Some(KeptFault { fault, stamp }) => transaction
                        .prepare_cached("INSERT OR REPLACE INTO failed_copies (hash_part, fault, stamp) VALUES (?1, ?2, ?3)")?
                        .execute(params![part.0, fault.number(), stamp.cast_signed()])?,
                    None => transaction
                        .prepare_cached("DELETE FROM failed_copies WHERE hash_part = ?1")?
                        .execute([part.0])?,
                };
            }
            transaction.execute(
                "DELETE FROM failed_copies WHERE hash_part IN (SELECT hash_part FROM failed_copies ORDER BY hash_part DESC \
                 LIMIT -1 OFFSET ?1)",
                [i64::try_from(FAILED_MAX).unwrap_or(i64::MAX)],
            )?;
            transaction.commit()
        })
    }
}

impl SharedStateDb {
    /// Tells the store what was wrong with its copies before the restart, and forgets those that are others now. To be
    /// called before anything is offered. Blocks.
    pub(crate) fn restore_failed_copies(&self, store: &NixStore) {
        let kept = self.0.lock().read_failed_copies();
        let restored = kept.and_then(|kept| {
            // What cannot be told now is left as it is: the next restart may tell.
            let is_other = |(part, kept): &(HashPart, KeptFault)| matches!(store.restore_fault(part, *kept), Ok(false));
            let others: Vec<_> = kept.into_iter().filter(is_other).map(|(part, _)| (part, None)).collect();
            if others.is_empty() { Ok(()) } else { self.0.lock().update_failed_copies(&others) }
        });
        if let Err(error) = restored {
            tracing::warn!(%error, "copies that failed before the restart are not known");
        }
    }

    /// To be called with each change of the store. Blocks.
    pub(crate) fn keep_failed_copies(&self, store: &NixStore, change: &StoreChange) {
        let failed = change.failed.iter().map(|part| (*part, store.kept_fault(part)));
        let changes: Vec<_> = failed.chain(change.mended.iter().map(|part| (*part, None))).collect();
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.0.lock().update_failed_copies(&changes) {
            tracing::warn!(%error, "copies that failed are forgotten at a restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: usize) -> HashPart {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        HashPart(bytes)
    }

    #[test]
    fn failed_copies_are_kept_until_they_are_mended_and_never_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let kept = |fault| KeptFault { fault, stamp: u64::MAX - 1 };
        let both = [(part(1), kept(CopyFault::Corrupt)), (part(2), kept(CopyFault::NotArchivable))];
        {
            let (mut db, _) = StateDb::open(dir.path()).unwrap();
            db.update_failed_copies(&both.map(|(part, kept)| (part, Some(kept)))).unwrap();
        }
        let (mut db, recovered) = StateDb::open(dir.path()).unwrap();
        assert_eq!((db.read_failed_copies().unwrap(), recovered), (both.to_vec(), None));
        db.update_failed_copies(&[(part(1), None), (part(3), None)]).unwrap();
        assert_eq!(db.read_failed_copies().unwrap(), both[1..]);
        let many: Vec<_> = (10..FAILED_MAX + 15).map(|at| (part(at), Some(kept(CopyFault::Gone)))).collect();
        db.update_failed_copies(&many).unwrap();
        let left = db.read_failed_copies().unwrap();
        assert_eq!((left.len(), left[0].0), (FAILED_MAX, part(15)));
        // What a later version wrote.
        db.run(|connection| connection.execute("UPDATE failed_copies SET fault = 77", ())).unwrap();
        assert!(db.read_failed_copies().unwrap().is_empty());
        // One that nobody wrote hides no other.
        db.run(|connection| connection.execute("UPDATE failed_copies SET fault = 'x'", ())).unwrap();
        db.update_failed_copies(&[many[0]]).unwrap();
        assert_eq!(db.read_failed_copies().unwrap().len(), 0);
        db.update_failed_copies(&[many[FAILED_MAX + 4]]).unwrap();
        assert_eq!(db.read_failed_copies().unwrap(), [(many[FAILED_MAX + 4].0, kept(CopyFault::Gone))]);
    }
}
