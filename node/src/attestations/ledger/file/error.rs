//! The errors of the ledger's file.

use std::io;
use std::path::{Path, PathBuf};

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerDbError {
    /// The file or its directory cannot be made, read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The ledger's file, also where its directory is what failed.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// There is no file: nothing was ever stored.
    #[error("{path} is not there: the daemon makes it when it starts, and so does `narmesh quorum import`", path = path.display())]
    Missing {
        /// The path at which the ledger's file was expected.
        path: PathBuf,
    },
    /// The file is about another store directory, which is part of every fingerprint in it.
    #[error("{path} holds attestations of {found}, but the configuration says store.store_dir = {wanted:?}; move the file away", path = path.display())]
    StoreDir {
        /// The ledger's file.
        path: PathBuf,
        /// The store directory of the file.
        found: String,
        /// The store directory of the configuration.
        wanted: String,
    },
    /// The file was written by a later version, and is left as it is.
    #[error("{path} was {cause}; run that version, or move the file away", path = path.display())]
    Later {
        /// The ledger's file, written by a later version.
        path: PathBuf,
        /// What is wrong, in words, with the version of the schema.
        cause: String,
    },
    /// The file is damaged.
    #[error("{path} cannot be used: {cause}", path = path.display())]
    Unusable {
        /// The damaged file: the ledger's own, or one that was moved aside.
        path: PathBuf,
        /// What is wrong with it, in words.
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
    /// The error for a failure of SQLite on the file at `path`.
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
