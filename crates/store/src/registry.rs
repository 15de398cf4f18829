//! Gets the rows from the database, or from the Nix daemon if the database may not be read.

use crate::database::{Database, RowHead, Stamp};
use crate::nix_daemon::{DaemonRow, NixDaemon};
use crate::recent_rows::RecentRows;
use crate::{PathInfo, StoreError, StoreLocation};
use narmesh_protocol::{
    ContentAddress, HashPart, NarHash, NixSignature, Realisation, RealisationId, StoreDir, StorePath,
};
use parking_lot::Mutex;

/// The row id of rows from the daemon, which does not send ids.
const NO_ROW: i64 = 0;

/// The registered rows of one store.
#[derive(Debug)]
pub(crate) struct Registry {
    database: Database,
    daemon: NixDaemon,
    store_dir: StoreDir,
    recent: Mutex<RecentRows>,
}

impl Registry {
    pub(crate) fn new(location: &StoreLocation) -> Self {
        Self {
            database: Database::new(&location.database_dir(), location.store_dir.clone()),
            daemon: NixDaemon::new(location.daemon_socket()),
            store_dir: location.store_dir.clone(),
            recent: Mutex::default(),
        }
    }

    /// The current state of the rows.
    pub(crate) fn read_stamp(&self) -> Result<Stamp, StoreError> {
        or_else_unreadable(self.database.read_stamp(), || self.database.read_stamp_of_files())
    }

    /// What [`Self::read_path_info`] would return, if that is in memory and nobody has to be waited for.
    pub(crate) fn recall_path_info(&self, part: &HashPart) -> Option<(i64, PathInfo)> {
        let stamp = self.read_stamp_at_once()?;
        self.recent.lock().get(stamp, part)
    }

    /// The current state of the rows, if nobody has to be waited for.
    pub(crate) fn read_stamp_at_once(&self) -> Option<Stamp> {
        self.database.read_stamp_at_once()
    }

    /// The next page of rows with an id above `after_id`. The daemon gives all rows in one page, after id -1.
    pub(crate) fn read_rows_after(&self, after_id: i64) -> Result<Vec<RowHead>, StoreError> {
        or_else_unreadable(self.database.read_rows_after(after_id), || {
            if after_id >= NO_ROW {
                return Ok(Vec::new());
            }
            let paths = self.daemon.ask_all_valid_paths()?;
            Ok(paths.iter().map(|path| self.database.head_of(NO_ROW, path.as_bytes(), 0)).collect())
        })
    }

    /// Everything about the valid path with this hash part, and its row id.
    pub(crate) fn read_path_info(&self, part: &HashPart) -> Result<Option<(i64, PathInfo)>, StoreError> {
        // Taken before the row is read, so that a change in between makes the next stamp differ.
        let stamp = self.read_stamp()?;
        if let Some(recent) = self.recent.lock().get(stamp, part) {
            return Ok(Some(recent));
        }
        let found = or_else_unreadable(self.database.read_path_info(part), || {
            let Some(row) = self.daemon.ask_row(&part.to_string())? else { return Ok(None) };
            Ok(Some((NO_ROW, self.parse(&row)?)))
        })?;
        if let Some((row, info)) = &found {
            self.recent.lock().put(stamp, *part, *row, info);
        }
        Ok(found)
    }

    /// The valid derivations that have this path as an output.
    pub(crate) fn read_derivers(&self, path: &StorePath) -> Result<Vec<StorePath>, StoreError> {
        or_else_unreadable(self.database.read_derivers(path), || {
            let paths = self.daemon.ask_derivers(&self.store_dir.display(path))?;
            let wrong = |_| StoreError::Row { row: NO_ROW, path: self.store_dir.display(path), column: "derivers" };
            paths.iter().map(|text| self.store_dir.parse_path(text).map_err(wrong)).collect()
        })
    }

    /// The outputs of the valid derivation with this hash part, whether or not they are valid.
    pub(crate) fn read_outputs(&self, derivation: &HashPart) -> Result<Vec<HashPart>, StoreError> {
        or_else_unreadable(self.database.read_outputs(derivation), || {
            let Some(row) = self.daemon.ask_row(&derivation.to_string())? else { return Ok(Vec::new()) };
            let paths = self.daemon.ask_outputs(&row.path)?;
            let parsed = paths.iter().filter_map(|text| self.store_dir.parse_path(text).ok());
            Ok(parsed.map(|path| path.hash_part()).collect())
        })
    }

    /// The valid paths that came with the name of this derivation. There are none where the database may not be read.
    pub(crate) fn read_derived(&self, derivation: &StorePath) -> Result<Vec<HashPart>, StoreError> {
        or_else_unreadable(self.database.read_derived(derivation), || Ok(Vec::new()))
    }

    /// The realisation with this id. It is absent where the database may not be read.
    pub(crate) fn read_realisation(&self, id: &RealisationId) -> Result<Option<Realisation>, StoreError> {
        or_else_unreadable(self.database.read_realisation(id), || Ok(None))
    }

    fn parse(&self, row: &DaemonRow) -> Result<PathInfo, StoreError> {
        let wrong = |column| StoreError::Row { row: NO_ROW, path: row.path.clone(), column };
        let full = |text: &String, column| self.store_dir.parse_path(text).map_err(|_| wrong(column));
        let references = row.references.iter().map(|text| full(text, "references"));
        let mut references = references.collect::<Result<Vec<_>, _>>()?;
        references.sort();
        Ok(PathInfo {
            path: full(&row.path, "path")?,
            // The protocol sends the NarHash as base-16 without a prefix.
            nar_hash: NarHash::parse(&format!("sha256:{}", row.nar_hash)).map_err(|_| wrong("narHash"))?,
            nar_size: row.nar_size,
            references,
            deriver: self.store_dir.parse_path(&row.deriver).ok(),
            signatures: row.signatures.iter().filter_map(|text| NixSignature::parse(text).ok()).collect(),
            content_address: match row.content_address.as_str() {
                "" => None,
                text => Some(ContentAddress::parse_or_other(text)),
            },
            ultimate: row.ultimate,
            registration_time_s: row.registration_time_s,
        })
    }
}

fn or_else_unreadable<T>(
    outcome: Result<T, StoreError>,
    other: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    match outcome {
        Err(StoreError::Unreadable { .. }) => other(),
        outcome => outcome,
    }
}
