//! The queries on the Nix database: pages of rows, and everything about one path.

use super::Database;
use crate::{PathInfo, StoreError};
use narmesh_protocol::{ContentAddress, HashPart, NarHash, NixSignature, StorePath};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Params, Row, params};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Rows per page of a scan. A page takes a read transaction of about 5 ms; 100 ms are allowed.
const PAGE_ROWS: i64 = 2_000;
/// Length of a hash part's text, characters.
const HASH_PART_CHARS: usize = 32;

const PAGE_SQL: &str = "SELECT id, path, hash, narSize, ultimate, sigs, ca FROM ValidPaths \
    WHERE id > ?1 ORDER BY id LIMIT ?2";
const INFO_SQL: &str = "SELECT id, path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca FROM ValidPaths \
    WHERE path >= ?1 ORDER BY path LIMIT 1";
const REFERENCES_SQL: &str =
    "SELECT path FROM Refs JOIN ValidPaths ON Refs.reference = ValidPaths.id WHERE Refs.referrer = ?1";
const DERIVERS_SQL: &str = "SELECT ValidPaths.path FROM DerivationOutputs \
    JOIN ValidPaths ON DerivationOutputs.drv = ValidPaths.id WHERE DerivationOutputs.path = ?1";
/// No index has the derivers: of 100,000 rows each is looked at.
const DERIVED_SQL: &str = "SELECT path FROM ValidPaths WHERE deriver = ?1 LIMIT 64";
const OUTPUTS_SQL: &str = "SELECT DerivationOutputs.path FROM DerivationOutputs \
    JOIN ValidPaths ON DerivationOutputs.drv = ValidPaths.id WHERE ValidPaths.path >= ?1 AND ValidPaths.path < ?2";

/// The part of a row that the in-memory index uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowHead {
    pub(crate) id: i64,
    /// `None` if the path is not in our store directory.
    pub(crate) hash_part: Option<HashPart>,
    pub(crate) is_derivation: bool,
    /// Digest of NarHash, NarSize, signatures, content address and `ultimate`: it changes when one of them does.
    pub(crate) digest: u64,
}

/// The columns of `INFO_SQL`, unparsed.
struct RawRow {
    id: i64,
    path: String,
    hash: String,
    registration_time: Option<i64>,
    deriver: Option<String>,
    nar_size: Option<i64>,
    ultimate: Option<i64>,
    signatures: Option<String>,
    content_address: Option<String>,
}

impl Database {
    /// The next page of rows with an id above `after_id`, in order of id; empty at the end or without a database.
    pub(crate) fn read_rows_after(&self, after_id: i64) -> Result<Vec<RowHead>, StoreError> {
        let page = self.query(|connection| {
            let read = || -> rusqlite::Result<Vec<RowHead>> {
                let mut statement = connection.prepare_cached(PAGE_SQL)?;
                let rows = statement.query_map(params![after_id, PAGE_ROWS], |row| self.head(row))?;
                rows.collect()
            };
            read().map_err(|source| self.sqlite(source))
        })?;
        Ok(page.unwrap_or_default())
    }

    /// Everything about the valid path with this hash part, and its row id.
    pub(crate) fn read_path_info(&self, part: &HashPart) -> Result<Option<(i64, PathInfo)>, StoreError> {
        let prefix = format!("{}/{part}", self.store_dir.as_str());
        let row = self.query(|connection| {
            // One transaction for both queries, so that the references belong to this row.
            let transaction = connection.unchecked_transaction().map_err(|source| self.sqlite(source))?;
            let Some(raw) = read_raw_row(&transaction, &prefix).map_err(|source| self.sqlite(source))? else {
                return Ok(None);
            };
            let references =
                read_texts(&transaction, REFERENCES_SQL, [raw.id]).map_err(|source| self.sqlite(source))?;
            Ok(Some((raw, references)))
        })?;
        let Some((raw, references)) = row.flatten() else { return Ok(None) };
        let id = raw.id;
        Ok(Some((id, self.parse(raw, &references)?)))
    }

    /// The valid derivations that have this path as an output.
    pub(crate) fn read_derivers(&self, path: &StorePath) -> Result<Vec<StorePath>, StoreError> {
        let full = self.store_dir.display(path);
        let found = self
            .query(|connection| read_texts(connection, DERIVERS_SQL, [&full]).map_err(|source| self.sqlite(source)))?
            .unwrap_or_default();
        // One that cannot be read may forbid substitutes.
        let wrong = |_| StoreError::Row { row: 0, path: full.clone(), column: "DerivationOutputs.drv" };
        found.iter().map(|text| self.store_dir.parse_path(text).map_err(wrong)).collect()
    }

    /// The outputs of the valid derivation with this hash part, whether or not they are valid.
    pub(crate) fn read_outputs(&self, derivation: &HashPart) -> Result<Vec<HashPart>, StoreError> {
        let prefix = format!("{}/{derivation}-", self.store_dir.as_str());
        // `.` is the byte after `-`, so every path with this hash part sorts between the two.
        let end = format!("{}/{derivation}.", self.store_dir.as_str());
        let found = self
            .query(|connection| {
                read_texts(connection, OUTPUTS_SQL, [&prefix, &end]).map_err(|source| self.sqlite(source))
            })?
            .unwrap_or_default();
        Ok(found.iter().filter_map(|text| self.hash_part(text.as_bytes())).collect())
    }

    /// The valid paths whose registration names this derivation, 64 at most.
    pub(crate) fn read_derived(&self, derivation: &StorePath) -> Result<Vec<HashPart>, StoreError> {
        let full = self.store_dir.display(derivation);
        let found = self
            .query(|connection| read_texts(connection, DERIVED_SQL, [&full]).map_err(|source| self.sqlite(source)))?
            .unwrap_or_default();
        Ok(found.iter().filter_map(|text| self.hash_part(text.as_bytes())).collect())
    }

    fn head(&self, row: &Row<'_>) -> rusqlite::Result<RowHead> {
        let path = row.get_ref(1)?.as_bytes_or_null()?.unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        for column in 2..7 {
            match row.get_ref(column)? {
                ValueRef::Null => 0_u8.hash(&mut hasher),
                ValueRef::Integer(number) => number.hash(&mut hasher),
                ValueRef::Real(number) => number.to_bits().hash(&mut hasher),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.hash(&mut hasher),
            }
        }
        Ok(self.head_of(row.get(0)?, path, hasher.finish()))
    }

    /// The row head for a full path.
    pub(crate) fn head_of(&self, id: i64, path: &[u8], digest: u64) -> RowHead {
        RowHead { id, hash_part: self.hash_part(path), is_derivation: path.ends_with(b".drv"), digest }
    }

    /// The hash part of a full path. It does not parse the rest, because a scan calls it for every row.
    fn hash_part(&self, full: &[u8]) -> Option<HashPart> {
        let base = full.strip_prefix(self.store_dir.as_str().as_bytes())?.strip_prefix(b"/")?;
        HashPart::parse(std::str::from_utf8(base.get(..HASH_PART_CHARS)?).ok()?).ok()
    }

    fn parse(&self, raw: RawRow, references: &[String]) -> Result<PathInfo, StoreError> {
        let wrong = |column| StoreError::Row { row: raw.id, path: raw.path.clone(), column };
        let full = |text: &str, column| self.store_dir.parse_path(text).map_err(|_| wrong(column));
        let mut references =
            references.iter().map(|text| full(text, "Refs.reference")).collect::<Result<Vec<_>, _>>()?;
        references.sort();
        Ok(PathInfo {
            path: full(&raw.path, "path")?,
            nar_hash: NarHash::parse(&raw.hash).map_err(|_| wrong("hash"))?,
            nar_size: u64::try_from(raw.nar_size.unwrap_or(0)).map_err(|_| wrong("narSize"))?,
            references,
            // Derivers are unsigned and can be very old, so one that we cannot parse counts as unknown.
            deriver: raw.deriver.as_deref().and_then(|text| self.store_dir.parse_path(text).ok()),
            signatures: parse_signatures(raw.signatures.as_deref()),
            content_address: match raw.content_address.as_deref() {
                None | Some("") => None,
                Some(text) => Some(ContentAddress::parse_or_other(text)),
            },
            ultimate: raw.ultimate == Some(1),
            registration_time_s: raw.registration_time.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0),
        })
    }
}

/// The signatures in a column; those that are malformed are left out.
pub(super) fn parse_signatures(column: Option<&str>) -> Vec<NixSignature> {
    let texts = column.unwrap_or_default().split_ascii_whitespace();
    texts.filter_map(|text| NixSignature::parse(text).ok()).collect()
}

fn read_raw_row(connection: &Connection, prefix: &str) -> rusqlite::Result<Option<RawRow>> {
    let mut statement = connection.prepare_cached(INFO_SQL)?;
    let found = statement.query_row([prefix], |row| {
        Ok(RawRow {
            id: row.get(0)?,
            path: row.get(1)?,
            hash: row.get(2)?,
            registration_time: row.get(3)?,
            deriver: row.get(4)?,
            nar_size: row.get(5)?,
            ultimate: row.get(6)?,
            signatures: row.get(7)?,
            content_address: row.get(8)?,
        })
    });
    Ok(found.optional()?.filter(|row| row.path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-'))))
}

fn read_texts(connection: &Connection, sql: &str, keys: impl Params) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_map(keys, |row| row.get(0))?.collect()
}
