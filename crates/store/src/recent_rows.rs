//! Keeps recently read rows as long as the database is in the state in which they were read.
//!
//! Without a write-ahead log (Nix before 2.23 deletes it) each query opens SQLite anew, which takes about 0.8 ms. Sending
//! one path to a peer needs its row three times, usually without a change in between.

use crate::PathInfo;
use crate::database::Stamp;
use narmesh_protocol::HashPart;
use std::collections::HashMap;

/// Most rows, references and signatures kept in all, about 4 MiB. Beyond it everything is
/// dropped and read again when needed.
const WEIGHT_MAX: usize = 32_768;

/// Rows that were read under the same stamp.
#[derive(Debug, Default)]
pub(crate) struct RecentRows {
    stamp: Option<Stamp>,
    rows: HashMap<HashPart, (i64, PathInfo)>,
    weight: usize,
}

impl RecentRows {
    /// The row, if it was read while the database had `stamp`.
    pub(crate) fn get(&self, stamp: Stamp, part: &HashPart) -> Option<(i64, PathInfo)> {
        if self.stamp == Some(stamp) { self.rows.get(part).cloned() } else { None }
    }

    /// Keeps a row. `stamp` must have been taken before the row was read.
    pub(crate) fn put(&mut self, stamp: Stamp, part: HashPart, row: i64, info: &PathInfo) {
        let weight = 1 + info.references.len() + info.signatures.len();
        if self.stamp != Some(stamp) || self.weight + weight > WEIGHT_MAX {
            *self = Self { stamp: Some(stamp), ..Self::default() };
        }
        if self.rows.insert(part, (row, info.clone())).is_none() {
            self.weight += weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::{NarHash, StorePath};

    fn path(number: usize) -> StorePath {
        StorePath::parse(&format!("{number:032}-x")).unwrap()
    }

    fn info(number: usize, references: usize) -> PathInfo {
        PathInfo {
            path: path(number),
            nar_hash: NarHash([0; 32]),
            nar_size: 1,
            references: (0..references).map(path).collect(),
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
            ultimate: true,
            registration_time_s: 0,
        }
    }

    fn put(rows: &mut RecentRows, stamp: i64, number: usize, references: usize) {
        let info = info(number, references);
        rows.put(Stamp::fixed(stamp), info.path.hash_part(), 7, &info);
    }

    fn has(rows: &RecentRows, stamp: i64, number: usize) -> bool {
        rows.get(Stamp::fixed(stamp), &path(number).hash_part()).is_some()
    }

    #[test]
    fn row_is_kept_until_the_database_changes() {
        let mut rows = RecentRows::default();
        put(&mut rows, 1, 1, 2);
        assert_eq!(rows.get(Stamp::fixed(1), &path(1).hash_part()), Some((7, info(1, 2))));
        assert!(!has(&rows, 2, 1) && !has(&rows, 1, 2));
        // Rows read under another stamp may be outdated, even if that stamp comes back.
        put(&mut rows, 2, 2, 0);
        assert!(has(&rows, 2, 2) && !has(&rows, 2, 1) && !has(&rows, 1, 1));
    }

    #[test]
    fn row_put_twice_is_counted_once() {
        let mut rows = RecentRows::default();
        put(&mut rows, 1, 1, 0);
        for _ in 0..2 * WEIGHT_MAX {
            put(&mut rows, 1, 2, 0);
        }
        assert!(has(&rows, 1, 1) && has(&rows, 1, 2));
    }

    #[test]
    fn exceeding_the_limit_drops_all_rows() {
        let mut rows = RecentRows::default();
        let each = 1_023;
        for number in 0..WEIGHT_MAX / (each + 1) {
            put(&mut rows, 1, number, each);
        }
        assert!(has(&rows, 1, 0) && has(&rows, 1, WEIGHT_MAX / (each + 1) - 1));
        put(&mut rows, 1, 1_000, 0);
        assert!(has(&rows, 1, 1_000) && !has(&rows, 1, 0));
        assert_eq!(rows.weight, 1);
    }
}
