//! Why the ledger's file cannot be used.

use std::io;
use std::path::{Path, PathBuf};

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerDbError {
    /// The file or its directory.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing was ever stored.
    #[error("{path} is not there: the daemon makes it at its start, and `narmesh quorum import` does", path = path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// Fingerprints hold the store directory.
    #[error("{path} holds attestations of {found}, the configuration says store.store_dir = {wanted:?}; move it away", path = path.display())]
    StoreDir {
        /// Which.
        path: PathBuf,
        /// Its.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// By a later version: left as it is.
    #[error("{path} was {cause}; run that one, or move the file away", path = path.display())]
    Later {
        /// Which.
        path: PathBuf,
        /// In words, with its version.
        cause: String,
    },
    /// Damaged.
    #[error("{path} cannot be used: {cause}", path = path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// In words.
        cause: String,
    },
    /// SQLite failed.
    #[error("{path}: {source}", path = path.display())]
    Sqlite {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

impl LedgerDbError {
    /// A failure of SQLite over the file at `path`.
    pub(super) fn of(path: &Path, source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                Self::Unusable { path: path.to_owned(), cause: source.to_string() }
            }
            _ => Self::Sqlite { path: path.to_owned(), source },
        }
    }

    /// Whether the file is damaged, and not merely locked, full or gone.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Unusable { .. })
    }
}
