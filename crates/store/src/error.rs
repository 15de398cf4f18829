//! Why a store could not answer.

use crate::{CopyFault, DaemonError};
use narmesh_protocol::StorePath;
use rusqlite::ErrorCode;
use rustix::io::Errno;
use std::io;
use std::path::PathBuf;

/// Why the store could not answer. A path that does not exist is not an error.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A read was to begin beyond the end of a NAR.
    #[error("offset {offset} is beyond the end of the NAR of {path}, which has {nar_size} bytes")]
    BeyondNar {
        /// The store path that was to be read.
        path: StorePath,
        /// Byte of the NAR at which the read was to begin.
        offset: u64,
        /// Size of the NAR, bytes.
        nar_size: u64,
    },
    /// SQLite returned an error.
    #[error("nix database {path}: {source}")]
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
    /// The file system returned an error.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory that was being read.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// We may not read the database, or reading it would need a recovery or a new file beside it, which only its owner may
    /// make.
    #[error("nix database {path}: cannot be read without writing next to it")]
    Unreadable {
        /// The database file.
        path: PathBuf,
    },
    /// The file is not a Nix database.
    #[error("{path} is not a Nix database: {why}")]
    NotNix {
        /// The database file.
        path: PathBuf,
        /// Why it is not one.
        why: String,
    },
    /// The database could not be read, and the Nix daemon, asked instead, gave no answer.
    #[error("nix daemon at {socket}: {source}")]
    NixDaemon {
        /// The daemon's socket.
        socket: PathBuf,
        /// Why the daemon gave no answer.
        source: DaemonError,
    },
    /// The database changed during every attempt to read it without locks.
    #[error("nix database {path}: changed during each of {attempts} reads")]
    Changing {
        /// The database file.
        path: PathBuf,
        /// Number of attempts.
        attempts: u32,
    },
    /// A row contains a value that Nix would not write.
    #[error("nix database: column {column} of row {row} ({path}) is not what nix writes")]
    Row {
        /// The row's id in ValidPaths.
        row: i64,
        /// The row's full path, as written in the database.
        path: String,
        /// The column that could not be parsed.
        column: &'static str,
    },
    /// The path is not valid, or valid with another NarHash.
    #[error("{path} is not registered here with this NarHash")]
    NotRegistered {
        /// The store path that was to be read.
        path: StorePath,
    },
    /// Our copy of this path did not match its registration when it was read, and neither of them has changed since.
    #[error("our copy of {path} {fault}")]
    CopyFailed {
        /// The store path that was to be read.
        path: StorePath,
        /// What was wrong with the copy.
        fault: CopyFault,
    },
    /// What builders attest of this path cannot be read now.
    #[error("what builders attest of {path} cannot be read: {why}")]
    Attestations {
        /// The store path.
        path: StorePath,
        /// The error of reading them.
        why: String,
    },
    /// The operating system could not start a thread.
    #[error("no thread for watching the store: {source}")]
    Thread {
        /// The error of the operating system.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the same call is likely to succeed within seconds: another process holds the lock of the database or writes
    /// to it, or this machine lacks something for a moment. Each of these also [may pass](Self::may_pass).
    #[must_use]
    pub fn passes_soon(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(
                    ErrorCode::DatabaseBusy
                        | ErrorCode::DatabaseLocked
                        | ErrorCode::FileLockingProtocolFailed
                        | ErrorCode::OutOfMemory
                        | ErrorCode::OperationInterrupted
                )
            ),
            Self::Io { source, .. } => is_shortage(source),
            other => other.may_pass(),
        }
    }

    /// Whether the error says nothing about a path or its copy, so that the same call may succeed later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Sqlite { .. }
            | Self::NixDaemon { .. }
            | Self::Changing { .. }
            | Self::Attestations { .. }
            | Self::Thread { .. } => true,
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

/// Whether the machine lacks memory or file descriptors, or a call was interrupted.
fn is_shortage(error: &io::Error) -> bool {
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::INTR];
    Errno::from_io_error(error).is_some_and(|errno| lacking.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_passes_soon_and_a_damaged_database_does_not() {
        let failed = |code| StoreError::Sqlite {
            path: PathBuf::from("db.sqlite"),
            source: rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None),
        };
        let of = |code| (failed(code).passes_soon(), failed(code).may_pass());
        assert_eq!(of(rusqlite::ffi::SQLITE_BUSY), (true, true));
        assert_eq!(of(rusqlite::ffi::SQLITE_CORRUPT), (false, true));
        let io = |errno: Errno| StoreError::Io { path: PathBuf::from("x"), source: errno.into() }.passes_soon();
        assert!(io(Errno::MFILE) && !io(Errno::ACCESS) && !io(Errno::NOENT));
    }
}
