//! Asks the Nix daemon for rows, for a user who may not read the database itself.
//!
//! It is a small client of the worker protocol (`libstore/worker-protocol.hh`), version 1.34 as in Nix 2.8, which newer
//! daemons speak too. It uses no operation that would change the store.

mod wire;

pub use wire::DaemonError;

use crate::StoreError;
use parking_lot::Mutex;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use wire::Wire;

const MAGIC_OF_CLIENT: u64 = 0x6e69_7863;
const MAGIC_OF_DAEMON: u64 = 0x6478_696f;
/// Protocol version 1.34: the major version is in the second byte.
const VERSION: u64 = 0x122;
/// Longest silence of the daemon before we give up on it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most entries accepted in the list of all valid paths.
const PATHS_MAX: u64 = 10_000_000;
/// Most entries accepted in a list within one row.
const ROW_LIST_MAX: u64 = 100_000;

// The operations of the worker protocol that we use.
const QUERY_DERIVATION_OUTPUTS: u64 = 22;
const QUERY_ALL_VALID_PATHS: u64 = 23;
const QUERY_PATH_INFO: u64 = 26;
const QUERY_PATH_FROM_HASH_PART: u64 = 29;
const QUERY_VALID_DERIVERS: u64 = 33;

/// A row as the daemon sends it, unparsed.
#[derive(Debug)]
pub(crate) struct DaemonRow {
    pub(crate) path: String,
    pub(crate) deriver: String,
    pub(crate) nar_hash: String,
    pub(crate) references: Vec<String>,
    pub(crate) registration_time_s: u64,
    pub(crate) nar_size: u64,
    pub(crate) ultimate: bool,
    pub(crate) signatures: Vec<String>,
    pub(crate) content_address: String,
}

/// The daemon of one store. It connects at the first question.
#[derive(Debug)]
pub(crate) struct NixDaemon {
    socket: PathBuf,
    connection: Mutex<Option<Wire<UnixStream>>>,
}

impl NixDaemon {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, connection: Mutex::default() }
    }

    /// All valid paths, as full paths.
    pub(crate) fn ask_all_valid_paths(&self) -> Result<Vec<String>, StoreError> {
        self.ask(|wire| {
            wire.call(QUERY_ALL_VALID_PATHS, &[])?;
            wire.read_strings(PATHS_MAX)
        })
    }

    /// The row of the path with this hash part (32 characters).
    pub(crate) fn ask_row(&self, hash_part: &str) -> Result<Option<DaemonRow>, StoreError> {
        self.ask(|wire| {
            wire.call(QUERY_PATH_FROM_HASH_PART, &[hash_part])?;
            let path = wire.read_string()?;
            // So the daemon says that there is none.
            if path.is_empty() {
                return Ok(None);
            }
            wire.call(QUERY_PATH_INFO, &[&path])?;
            // The path can have been deleted between the two questions.
            if wire.read_number()? == 0 {
                return Ok(None);
            }
            Ok(Some(DaemonRow {
                path,
                deriver: wire.read_string()?,
                nar_hash: wire.read_string()?,
                references: wire.read_strings(ROW_LIST_MAX)?,
                registration_time_s: wire.read_number()?,
                nar_size: wire.read_number()?,
                ultimate: wire.read_number()? != 0,
                signatures: wire.read_strings(ROW_LIST_MAX)?,
                content_address: wire.read_string()?,
            }))
        })
    }

    /// The valid derivations that have this path as an output.
    pub(crate) fn ask_derivers(&self, path: &str) -> Result<Vec<String>, StoreError> {
        self.ask(|wire| {
            wire.call(QUERY_VALID_DERIVERS, &[path])?;
            wire.read_strings(ROW_LIST_MAX)
        })
    }

    /// The outputs of a valid derivation.
    pub(crate) fn ask_outputs(&self, derivation: &str) -> Result<Vec<String>, StoreError> {
        self.ask(|wire| {
            wire.call(QUERY_DERIVATION_OUTPUTS, &[derivation])?;
            wire.read_strings(ROW_LIST_MAX)
        })
    }

    /// Asks on the existing connection; if that fails, on a new one.
    fn ask<T>(&self, question: impl Fn(&mut Wire<UnixStream>) -> Result<T, DaemonError>) -> Result<T, StoreError> {
        let mut slot = self.connection.lock();
        let told = |source| StoreError::NixDaemon { socket: self.socket.clone(), source };
        // The daemon may have closed a connection that was idle, so its failure says nothing.
        if let Some(mut wire) = slot.take()
            && let Ok(answer) = question(&mut wire)
        {
            *slot = Some(wire);
            return Ok(answer);
        }
        let mut wire = self.connect().map_err(told)?;
        let answer = question(&mut wire).map_err(told)?;
        *slot = Some(wire);
        Ok(answer)
    }

    fn connect(&self) -> Result<Wire<UnixStream>, DaemonError> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut wire = Wire::new(stream);
        wire.send(&MAGIC_OF_CLIENT.to_le_bytes())?;
        if wire.read_number()? != MAGIC_OF_DAEMON {
            return Err(DaemonError::Foreign);
        }
        // A daemon with an older version would leave out fields for which we wait.
        if wire.read_number()? < VERSION {
            return Err(DaemonError::TooOld);
        }
        // The version is followed by two obsolete settings: no CPU affinity, no reserved space.
        wire.send(&[VERSION.to_le_bytes(), [0; 8], [0; 8]].concat())?;
        let version = wire.read_string()?;
        wire.read_until_done()?;
        tracing::debug!(version, "asking the nix daemon, because the database cannot be read");
        Ok(wire)
    }
}
