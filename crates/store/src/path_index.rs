//! The in-memory index of the hash parts of all valid paths.

use crate::StoreChange;
use crate::database::RowHead;
use narmesh_protocol::HashPart;
use std::collections::HashMap;

/// All valid paths by hash part: about 64 bytes each, or 6 MB for a store of 86,000 paths.
#[derive(Debug, Default)]
pub(crate) struct PathIndex {
    rows: HashMap<HashPart, Mark>,
    id_max: i64,
    scan: u32,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    id: i64,
    digest: u64,
    /// Number of the last scan that met this row.
    scan: u32,
    is_derivation: bool,
}

impl PathIndex {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn contains(&self, part: &HashPart) -> bool {
        self.rows.contains_key(part)
    }

    pub(crate) fn hash_parts(&self) -> impl Iterator<Item = HashPart> {
        self.rows.keys().copied()
    }

    /// All paths except derivations.
    pub(crate) fn outputs_and_sources(&self) -> impl Iterator<Item = HashPart> {
        self.rows.iter().filter(|(_, mark)| !mark.is_derivation).map(|(part, _)| *part)
    }

    pub(crate) fn derivations(&self) -> impl Iterator<Item = HashPart> {
        self.rows.iter().filter(|(_, mark)| mark.is_derivation).map(|(part, _)| *part)
    }

    pub(crate) fn is_derivation(&self, part: &HashPart) -> bool {
        self.rows.get(part).is_some_and(|mark| mark.is_derivation)
    }

    /// The highest row id seen. Rows added later have a higher id, because Nix never reuses ids.
    pub(crate) fn id_max(&self) -> i64 {
        self.id_max
    }

    /// Starts a scan over all rows; [`Self::end_scan`] ends it.
    pub(crate) fn begin_scan(&mut self) {
        self.scan = self.scan.wrapping_add(1);
        // In a store that was created anew, ids start from 1 again.
        self.id_max = 0;
    }

    /// Takes rows of a scan, or new rows. A row that differs from the known one counts as a removal and an addition.
    pub(crate) fn take(&mut self, rows: &[RowHead], change: &mut StoreChange) {
        for row in rows {
            // Also of rows that name no path of ours, or each look would read them again.
            self.id_max = self.id_max.max(row.id);
            let Some(part) = row.hash_part else { continue };
            let mark = Mark { id: row.id, digest: row.digest, scan: self.scan, is_derivation: row.is_derivation };
            match self.rows.insert(part, mark) {
                None => change.added.push(part),
                // Rows of the daemon have neither id nor digest.
                Some(old) if old.id != 0 && row.id != 0 && (old.id != row.id || old.digest != row.digest) => {
                    change.removed.push(part);
                    change.added.push(part);
                }
                Some(_) => {}
            }
        }
    }

    /// Removes the rows that the scan did not meet.
    pub(crate) fn end_scan(&mut self, change: &mut StoreChange) {
        let scan = self.scan;
        // Rows are found gone only by a whole scan, because nothing tells which one was deleted.
        self.rows.retain(|part, mark| {
            let met = mark.scan == scan;
            if !met {
                change.removed.push(*part);
            }
            met
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, byte: u8, digest: u64) -> RowHead {
        RowHead { id, hash_part: Some(HashPart([byte; 20])), is_derivation: false, digest }
    }

    fn scan(index: &mut PathIndex, rows: &[RowHead]) -> StoreChange {
        let mut change = StoreChange::default();
        index.begin_scan();
        index.take(rows, &mut change);
        index.end_scan(&mut change);
        change
    }

    #[test]
    fn scan_reports_new_deleted_and_reregistered_paths() {
        let mut index = PathIndex::default();
        let change = scan(&mut index, &[row(1, 1, 0), row(2, 2, 0), row(3, 3, 0)]);
        assert_eq!(change.added.len(), 3);
        let change = scan(&mut index, &[row(1, 1, 0), row(2, 2, 9), row(4, 4, 0)]);
        assert_eq!(change.added, [HashPart([2; 20]), HashPart([4; 20])]);
        assert_eq!(change.removed, [HashPart([2; 20]), HashPart([3; 20])]);
        assert_eq!((index.len(), index.id_max()), (3, 4));
        assert!(scan(&mut index, &[row(1, 1, 0), row(2, 2, 9), row(4, 4, 0)]).is_empty());
    }

    #[test]
    fn rows_from_the_daemon_do_not_change_known_paths() {
        let mut index = PathIndex::default();
        scan(&mut index, &[row(1, 1, 5), row(2, 2, 5)]);
        let change = scan(&mut index, &[row(0, 1, 0), row(0, 3, 0)]);
        assert_eq!((change.added, change.removed), (vec![HashPart([3; 20])], vec![HashPart([2; 20])]));
        assert!(scan(&mut index, &[row(1, 1, 5), row(3, 3, 5)]).is_empty());
        assert_eq!(scan(&mut index, &[row(1, 1, 6), row(3, 3, 5)]).added, [HashPart([1; 20])]);
    }

    #[test]
    fn deleted_path_that_is_built_again_is_reported() {
        let mut index = PathIndex::default();
        scan(&mut index, &[row(1, 1, 0)]);
        let change = scan(&mut index, &[row(2, 1, 0)]);
        assert_eq!((change.removed, change.added), (vec![HashPart([1; 20])], vec![HashPart([1; 20])]));
    }
}
