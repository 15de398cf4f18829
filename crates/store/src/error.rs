//! Why a store could not answer.

use crate::{CopyFault, DaemonError};
use narmesh_protocol::StorePath;
use std::io;
use std::path::PathBuf;

/// Why the store could not answer. A path that is not there is no error.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such byte.
    #[error("offset {offset} of {path}, whose nar has {nar_size} bytes")]
    BeyondNar {
        /// The path.
        path: StorePath,
        /// Where the NAR was to begin.
        offset: u64,
        /// How many bytes it has.
        nar_size: u64,
    },
    /// SQLite refused.
    #[error("nix database {path}: {source}")]
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was being read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database may not be read, or not without recovery or a write beside it, which only its owner may do.
    #[error("nix database {path}: cannot be read without writing beside it")]
    Unreadable {
        /// The database file.
        path: PathBuf,
    },
    /// It is no database of Nix.
    #[error("{path} is no Nix database: {why}")]
    NotNix {
        /// The database file.
        path: PathBuf,
        /// What it lacks.
        why: String,
    },
    /// So the Nix daemon was asked, and gave no answer.
    #[error("nix daemon at {socket}: {source}")]
    Daemon {
        /// Its socket.
        socket: PathBuf,
        /// What went wrong.
        source: DaemonError,
    },
    /// The database changed during every attempt to read it without locks.
    #[error("nix database {path}: changed during each of {attempts} reads")]
    Changing {
        /// The database file.
        path: PathBuf,
        /// How often it was tried.
        attempts: u32,
    },
    /// A row holds what Nix would not write.
    #[error("nix database: column {column} of row {row} ({path}) is not what nix writes")]
    Row {
        /// The row's id in ValidPaths.
        row: i64,
        /// Its path, in full, as it is written there.
        path: String,
        /// The column that could not be read.
        column: &'static str,
    },
    /// The path is not valid, or valid with another NarHash.
    #[error("{path} is not registered here with this NarHash")]
    NotRegistered {
        /// The path.
        path: StorePath,
    },
    /// Our copy of this path could not be read as it is registered, and was not changed since.
    #[error("our copy of {path} {fault}")]
    CopyFailed {
        /// The path.
        path: StorePath,
        /// What was wrong with it.
        fault: CopyFault,
    },
    /// The operating system gave no thread.
    #[error("no thread for watching the store: {source}")]
    Thread {
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether it says nothing of a path or its copy, and the same may succeed later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Sqlite { .. } | Self::Daemon { .. } | Self::Changing { .. } | Self::Thread { .. } => true,
            Self::Io { source, .. } => !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
            Self::Unreadable { .. }
            | Self::NotNix { .. }
            | Self::BeyondNar { .. }
            | Self::Row { .. }
            | Self::NotRegistered { .. }
            | Self::CopyFailed { .. } => false,
        }
    }
}
