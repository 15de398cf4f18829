//! Reads the Nix database without writing anything and without disturbing a writer.
//!
//! Nix keeps the database in WAL mode. While `-wal` and `-shm` lie beside it, a `mode=ro` connection sees every commit at
//! once. Nix before 2.23 deletes both when its last connection closes. Such a connection would then have to create them, so
//! the file is read as `immutable` instead, and an answer counts only if the file was the same before and after.

mod realisations;
mod rows;

pub(crate) use rows::RowHead;

use crate::StoreError;
use crate::location::DATABASE_FILE;
use narmesh_protocol::StoreDir;
use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest wait for a writer's lock. WAL readers hardly ever wait. A guess, not measured.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);
/// Most attempts at a lock-free read while Nix processes come and go; with the pauses below about 0.4 s in all.
const ATTEMPTS_MAX: u32 = 8;
/// First pause between two attempts; it doubles up to 100 ms.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(4);
/// Age from which a modification time is distinct: five ticks of a kernel with 250 ticks a second.
const TICK: Duration = Duration::from_millis(20);
/// Offset of the read version in SQLite's header: 2 in WAL mode, 1 with a rollback journal.
const HEADER_READ_VERSION_OFFSET: u64 = 19;

/// The Nix database of one store.
#[derive(Debug)]
pub(crate) struct Database {
    file: PathBuf,
    store_dir: StoreDir,
    session: Mutex<Session>,
}

/// State that outlives one query.
#[derive(Debug, Default)]
struct Session {
    kept: Option<Kept>,
    /// Never set together with `kept`: closing a descriptor of the file would drop the locks of the kept connection.
    unshared: Option<Unshared>,
    /// Grows with each new kept connection and, without one, with each new state of the file.
    epoch: u64,
    /// The state of the file in the current epoch; the inner `None` means that there was no file.
    seen: Option<Option<FileState>>,
    /// The states of the database and its `-wal`, used when only their metadata can be read.
    seen_files: Option<[Option<FileState>; 2]>,
}

/// A connection kept between queries; valid while its three files stay the same ones.
#[derive(Debug)]
struct Kept {
    connection: Connection,
    files: Identities,
}

/// A connection without locks; valid while the file is in this settled state.
#[derive(Debug)]
struct Unshared {
    connection: Connection,
    state: FileState,
}

/// Device and inode of the database, of its `-wal` and of its `-shm`.
type Identities = [Option<(u64, u64)>; 3];

/// The part of a file's metadata that shows whether somebody wrote to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileState {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl FileState {
    /// Whether another write would change this state. File systems count time in ticks of up to 4 ms, so a second write can
    /// fall into the tick of a very recent one and not show. A stamp taken then must differ from every other.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified = Duration::from_secs(u64::try_from(self.modified_s).unwrap_or(0))
            + Duration::from_nanos(u64::try_from(self.modified_ns).unwrap_or(0));
        now.abs_diff(modified) > TICK
    }
}

/// A state of the database: two equal stamps mean that it held the same rows both times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    epoch: u64,
    data_version: i64,
}

#[cfg(test)]
impl Stamp {
    /// A stamp without a database, for tests that only compare stamps.
    pub(crate) fn fixed(data_version: i64) -> Self {
        Self { epoch: 0, data_version }
    }
}

impl Database {
    /// The database in `dir`. If it does not exist, it reads as an empty store.
    pub(crate) fn new(dir: &Path, store_dir: StoreDir) -> Self {
        Self { file: dir.join(DATABASE_FILE), store_dir, session: Mutex::default() }
    }

    /// The current state of the database.
    pub(crate) fn read_stamp(&self) -> Result<Stamp, StoreError> {
        self.read_stamp_in(&mut self.session.lock())
    }

    /// The same, if no query is under way that would have to be waited for.
    pub(crate) fn read_stamp_at_once(&self) -> Option<Stamp> {
        self.read_stamp_in(&mut *self.session.try_lock()?).ok()
    }

    fn read_stamp_in(&self, session: &mut Session) -> Result<Stamp, StoreError> {
        // The files on the disk say whether Nix writes with a WAL, and may become others while we run.
        let files = self.read_identities();
        if has_wal(&files) {
            let connection = self.open_kept(session, files)?;
            let data_version = self.read_data_version(connection);
            return match data_version {
                Ok(data_version) => Ok(Stamp { epoch: session.epoch, data_version }),
                Err(error) => Err(self.forget(session, error)),
            };
        }
        // It was opened beside a `-wal` that is gone.
        session.kept = None;
        if needs_recovery(&files) {
            return Err(StoreError::Unreadable { path: self.file.clone() });
        }
        let state = self.read_state()?;
        let is_settled = state.as_ref().is_none_or(FileState::is_settled);
        // While it is still being written, the next look must not take it for known.
        if !is_settled || session.seen != Some(state) {
            session.epoch += 1;
            session.seen = is_settled.then_some(state);
        }
        Ok(Stamp { epoch: session.epoch, data_version: 0 })
    }

    /// The current state as far as file metadata shows it, for when the rows may not be read.
    pub(crate) fn read_stamp_of_files(&self) -> Result<Stamp, StoreError> {
        let files = [self.read_state_of(&self.file)?, self.read_state_of(&self.beside("-wal"))?];
        let is_settled = files.iter().flatten().all(FileState::is_settled);
        let mut session = self.session.lock();
        // A file that is just being written may change again within the same time stamp.
        if !is_settled || session.seen_files != Some(files) {
            session.epoch += 1;
            session.seen_files = is_settled.then_some(files);
        }
        Ok(Stamp { epoch: session.epoch, data_version: 0 })
    }

    /// Runs one short query; `None` when there is no database. `run` may be called more than once.
    fn query<T>(&self, run: impl Fn(&Connection) -> Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        let mut session = self.session.lock();
        let mut pause = ATTEMPT_PAUSE;
        let mut is_whole = true;
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            let files = self.read_identities();
            if has_wal(&files) {
                let connection = match self.open_kept(&mut session, files) {
                    Ok(connection) => connection,
                    // The files disappeared after we looked and before we opened them: look again.
                    Err(StoreError::Unreadable { .. }) if !has_wal(&self.read_identities()) => continue,
                    Err(error) => return Err(error),
                };
                let outcome = run(connection);
                return outcome.map(Some).map_err(|error| self.forget(&mut session, error));
            }
            if needs_recovery(&files) {
                // Either recovery is needed, or Nix is about to create or delete the other file: look again.
                is_whole = false;
                continue;
            }
            is_whole = true;
            session.kept = None;
            let Some(before) = self.read_state()? else {
                session.unshared = None;
                return Ok(None);
            };
            // Decided before the read: a state that settles only during the read could also stand for a
            // write that this read missed.
            let is_settled = before.is_settled();
            let connection = match session.unshared.take().filter(|unshared| unshared.state == before) {
                Some(unshared) => Ok(unshared.connection),
                None => self.open_unshared(),
            };
            let outcome = connection.and_then(|connection| Ok((run(&connection)?, connection)));
            let [_, wal, _] = self.read_identities();
            if self.read_state()? == Some(before) && wal.is_none() {
                let (found, connection) = outcome?;
                session.unshared = is_settled.then_some(Unshared { connection, state: before });
                return Ok(Some(found));
            }
        }
        if !is_whole {
            return Err(StoreError::Unreadable { path: self.file.clone() });
        }
        Err(StoreError::Changing { path: self.file.clone(), attempts: ATTEMPTS_MAX })
    }

    /// The kept connection. It is opened anew if the files are no longer those it was opened on.
    fn open_kept<'a>(&self, session: &'a mut Session, files: Identities) -> Result<&'a Connection, StoreError> {
        // Whoever replaced the database left our connection with the old one.
        if session.kept.as_ref().is_some_and(|kept| kept.files != files) {
            session.kept = None;
        }
        if session.kept.is_none() {
            session.unshared = None;
            let connection = self.open("mode=ro")?;
            // Opening succeeds even if the file cannot be read; only the first read shows that.
            self.read_data_version(&connection)?;
            session.epoch += 1;
            session.seen = None;
            session.kept = Some(Kept { connection, files });
        }
        match &session.kept {
            Some(kept) => Ok(&kept.connection),
            None => Err(StoreError::Unreadable { path: self.file.clone() }),
        }
    }

    /// Drops the kept connection after an error, so that the next call opens a new one.
    fn forget(&self, session: &mut Session, error: StoreError) -> StoreError {
        if let StoreError::Sqlite { .. } | StoreError::Unreadable { .. } = error {
            session.kept = None;
        }
        error
    }

    /// Opens a database that has no `-wal`: without locks if the file is in WAL mode, with locks
    /// if it has a rollback journal.
    fn open_unshared(&self) -> Result<Connection, StoreError> {
        self.check_is_file()?;
        let mut version = [0_u8; 1];
        File::open(&self.file).and_then(|file| file.read_exact_at(&mut version, HEADER_READ_VERSION_OFFSET)).map_err(
            |source| match source.kind() {
                io::ErrorKind::PermissionDenied => StoreError::Unreadable { path: self.file.clone() },
                io::ErrorKind::UnexpectedEof => self.not_nix("it is too short for a database"),
                _ => StoreError::Io { path: self.file.clone(), source },
            },
        )?;
        // Without a `-wal` nobody writes, and in WAL mode a reader would have to make files beside the database.
        self.open(if version == [1] { "mode=ro" } else { "mode=ro&immutable=1" })
    }

    /// SQLite would wait for a writer at a FIFO, for ever, and read nothing in a directory.
    fn check_is_file(&self) -> Result<(), StoreError> {
        match fs::metadata(&self.file) {
            Ok(metadata) if !metadata.is_file() => Err(self.not_nix("it is no file")),
            // Whoever opens it says what is wrong.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn open(&self, parameters: &str) -> Result<Connection, StoreError> {
        self.check_is_file()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open_with_flags(uri(&self.file, parameters), flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            connection.pragma_update(None, "query_only", true)?;
            Ok(connection)
        };
        open().map_err(|source| self.sqlite(source))
    }

    fn read_data_version(&self, connection: &Connection) -> Result<i64, StoreError> {
        let read = || connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0));
        read().map_err(|source| self.sqlite(source))
    }

    /// Maps SQLite's errors. Those that only a process with write permission could resolve become `Unreadable`.
    fn sqlite(&self, source: rusqlite::Error) -> StoreError {
        match source.sqlite_error_code() {
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen) => StoreError::Unreadable { path: self.file.clone() },
            Some(ErrorCode::NotADatabase) => self.not_nix("it is not an SQLite database"),
            // SQLite has no code of its own for these errors.
            Some(ErrorCode::Unknown) | None if source.to_string().contains("no such table") => {
                self.not_nix("it lacks one of Nix's tables")
            }
            Some(ErrorCode::Unknown) | None if source.to_string().contains("no such column") => {
                self.not_nix("its tables lack one of Nix's columns")
            }
            _ => StoreError::Sqlite { path: self.file.clone(), source },
        }
    }

    fn not_nix(&self, why: &str) -> StoreError {
        StoreError::NotNix { path: self.file.clone(), why: why.to_owned() }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(&self.file);
        name.push(suffix);
        PathBuf::from(name)
    }

    fn read_identities(&self) -> Identities {
        ["", "-wal", "-shm"].map(|suffix| {
            // Only regular files count: opening a FIFO would wait for a writer.
            let metadata = fs::metadata(self.beside(suffix)).ok().filter(fs::Metadata::is_file)?;
            Some((metadata.dev(), metadata.ino()))
        })
    }

    fn read_state(&self) -> Result<Option<FileState>, StoreError> {
        self.read_state_of(&self.file)
    }

    /// `None` if there is no such file, or if it is not a regular file.
    fn read_state_of(&self, file: &Path) -> Result<Option<FileState>, StoreError> {
        match fs::metadata(file) {
            Ok(metadata) if !metadata.is_file() => Ok(None),
            Ok(metadata) => Ok(Some(FileState {
                device: metadata.dev(),
                inode: metadata.ino(),
                size_bytes: metadata.size(),
                modified_s: metadata.mtime(),
                modified_ns: metadata.mtime_nsec(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path: file.to_path_buf(), source }),
        }
    }
}

fn has_wal([_, wal, shm]: &Identities) -> bool {
    wal.is_some() && shm.is_some()
}

/// Whether there is a `-wal` without its index, as a crash or a copy leaves it: it can hold commits
/// that only a writer recovers.
fn needs_recovery([_, wal, shm]: &Identities) -> bool {
    wal.is_some() && shm.is_none()
}

/// A `file:` URI; every character of the path that is not plain is percent-encoded.
fn uri(file: &Path, parameters: &str) -> String {
    let mut uri = String::from("file:");
    for byte in file.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' => uri.push(char::from(*byte)),
            _ => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri + "?" + parameters
}

#[cfg(test)]
mod tests {
    use super::uri;
    use std::path::Path;

    #[test]
    fn uri_escapes_characters_with_meaning_for_sqlite() {
        assert_eq!(uri(Path::new("/a b/c?d#e%f"), "mode=ro"), "file:/a%20b/c%3fd%23e%25f?mode=ro");
    }
}
