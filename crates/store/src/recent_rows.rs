//! Rows of the database, kept as long as the database is as it was when they were read.
//!
//! Without a write-ahead log (Nix before 2.23 deletes it) each question opens SQLite anew, about 0.8 ms: a path is asked about
//! three times on its way to a peer, and nothing changed in between.

use crate::PathInfo;
use crate::database::Stamp;
use narmesh_protocol::HashPart;
use std::collections::HashMap;

/// Rows and references kept in all; beyond it everything is forgotten, and read again when asked for. About 4 MiB.
const WEIGHT_MAX: usize = 32_768;

/// The rows read under one stamp.
#[derive(Debug, Default)]
pub(crate) struct RecentRows {
    stamp: Option<Stamp>,
    rows: HashMap<HashPart, (i64, PathInfo)>,
    weight: usize,
}

impl RecentRows {
    /// The row, if the database still has `stamp`.
    pub(crate) fn get(&self, stamp: Stamp, part: &HashPart) -> Option<(i64, PathInfo)> {
        if self.stamp == Some(stamp) { self.rows.get(part).cloned() } else { None }
    }

    /// Keeps a row; `stamp` was taken before it was read.
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
