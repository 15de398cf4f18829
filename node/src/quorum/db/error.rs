//! Why the ledger's file cannot be used.

use std::io;
use std::path::{Path, PathBuf};

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerDbError {
    /// The file or its directory.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The ledger's file, also where its directory is what failed.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Nothing was ever stored.
    #[error("{path} is not there: the daemon makes it at its start, and `narmesh quorum import` does", path = path.display())]
    Missing {
        /// The path at which the ledger's file was expected.
        path: PathBuf,
    },
    /// Fingerprints hold the store directory.
    #[error("{path} holds attestations of {found}, the configuration says store.store_dir = {wanted:?}; move it away", path = path.display())]
    StoreDir {
        /// The ledger's file.
        path: PathBuf,
        /// Its.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// By a later version: left as it is.
    #[error("{path} was {cause}; run that one, or move the file away", path = path.display())]
    Later {
        /// The ledger's file, written by a later version.
        path: PathBuf,
        /// In words, with its version.
        cause: String,
    },
    /// Damaged.
    #[error("{path} cannot be used: {cause}", path = path.display())]
    Unusable {
        /// The damaged file: the ledger's own, or one that was moved aside.
        path: PathBuf,
        /// In words.
        cause: String,
    },
    /// SQLite failed.
    #[error("{path}: {source}", path = path.display())]
    Sqlite {
        /// The file that SQLite worked on: the ledger's own, or one that was moved aside.
        path: PathBuf,
        /// The error of SQLite.
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
