//! What survives a restart, in SQLite: our epoch, the newest announcement of each peer, the audiences of builders'
//! nodes, and remembered answers. The peers' summaries lie beside it ([`SummaryFiles`]).
//!
//! All of it can be lost without harm: peers tell us our epoch, announcements come again, nobody is told anything
//! without an audience, and answers are asked for again. So a file that cannot be used is moved aside and a new one is
//! made. A write that returned survives the death of the process. A power failure may take the last writes (WAL with
//! `synchronous = NORMAL`), and then the wall clock gives a higher epoch.
//! Methods block; call them from a blocking thread. One process per directory: the file is locked.

mod failed_copies;
mod summaries;

pub use self::summaries::SummaryFiles;

use crate::database_file::{
    Empty, OpenError, clear_siblings, make_directory, migrate, prepare, remove_siblings, set_aside,
};
use crate::regular_file::Lies;
use crate::state_files::STATE_FILE;
use libp2p::PeerId;
use narmesh_gossip::{Persisted, Record};
use narmesh_mesh::MeshState;
use narmesh_protocol::{AudienceDigest, HashPart};
use narmesh_resolver::{AnswerChange, AnswerStore, Candidate, RememberedAnswer, SourceId};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The most remembered answers. A narinfo with its row takes about 1 KB, so they take at most 100 MB.
pub const ANSWERS_MAX: usize = 100_000;
/// One clean-up drops one answer in this many, so that it is rare.
const DROP_SHARE: usize = 100;
/// How long to wait for a lock of another process: a daemon that is being replaced needs a moment to end.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// One step per schema version; `PRAGMA user_version` counts the steps already taken. Steps are added, never edited.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE own (id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL);
    CREATE TABLE newest (peer BLOB PRIMARY KEY, envelope BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE answers (
        hash_part BLOB PRIMARY KEY, narinfo BLOB NOT NULL, holders TEXT NOT NULL, at_unix_s INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX answers_by_age ON answers (at_unix_s);
",
    "
    CREATE TABLE audiences (peer BLOB PRIMARY KEY, digests BLOB NOT NULL) WITHOUT ROWID;
",
    "
    CREATE TABLE failed_copies (
        hash_part BLOB PRIMARY KEY, fault INTEGER NOT NULL, stamp INTEGER NOT NULL
    ) WITHOUT ROWID;
",
];

/// The database as the parts of the daemon share it: the mesh for what it keeps, the resolver for its answers. Locked
/// for one use at a time.
#[derive(Clone, Debug)]
pub struct SharedStateDb(Arc<Mutex<StateDb>>);

/// The open database.
#[derive(Debug)]
pub struct StateDb {
    connection: Connection,
    path: PathBuf,
    /// At least the number of remembered answers; see [`StateDb::update_answers`].
    answers: usize,
    answers_max: usize,
}

/// Why the database starts empty. Its `Display` is the warning to log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recovered {
    /// There was no file: this is the first start, or somebody deleted it.
    Missing {
        /// The new file.
        path: PathBuf,
    },
    /// The file could not be used.
    SetAside {
        /// The new file.
        path: PathBuf,
        /// Where the old one is.
        moved_to: PathBuf,
        /// What SQLite said.
        cause: String,
    },
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDbError {
    /// The directory cannot be made, read or written.
    #[error("state directory {path}: {source}", path = path.display())]
    Directory {
        /// The state directory, or `:memory:` for the database that has none.
        path: PathBuf,
        /// The error of the file system, or what is wrong with a database that was just made.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("{path} is in use by another narmesh process", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// SQLite failed: on a running daemon the disk is full, or the file was damaged while it was open.
    #[error("state database {path}: {source}", path = path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
}

impl StateDb {
    /// Opens `state.sqlite` in `dir`, which is made (mode 0750) if missing. A torn, foreign or unreadable file is moved
    /// to `state.sqlite.corrupt-<unix time>`; the last three of these are kept.
    pub fn open(dir: &Path) -> Result<(Self, Option<Recovered>), StateDbError> {
        Self::open_bounded(dir, ANSWERS_MAX)
    }

    /// A database that ends with the process: for a daemon whose state directory cannot be used.
    pub fn in_memory() -> Result<Self, StateDbError> {
        let path = PathBuf::from(":memory:");
        let failed = |source| StateDbError::Sqlite { path: path.clone(), source };
        let mut connection = Connection::open_in_memory().map_err(failed)?;
        match migrate(&mut connection, MIGRATIONS, Empty::Allowed).map_err(Unusable::from) {
            Ok(()) => Self::count_answers(connection, path, ANSWERS_MAX),
            Err(Unusable::InUse) => Err(StateDbError::InUse { path }),
            Err(Unusable::Damaged { cause }) => Err(StateDbError::Directory { path, source: io::Error::other(cause) }),
        }
    }

    fn open_bounded(dir: &Path, answers_max: usize) -> Result<(Self, Option<Recovered>), StateDbError> {
        let directory_error = |source| StateDbError::Directory { path: dir.to_owned(), source };
        make_directory(dir).map_err(directory_error)?;
        let path = dir.join(STATE_FILE);
        let lies = Lies::at(&path).map_err(directory_error)?;
        let missing = lies == Lies::Nothing;
        if missing {
            // A log without its database is left over from a deletion: SQLite would discard it or, worse, replay it.
            remove_siblings(&path);
        }
        let empty = if missing { Empty::Allowed } else { Empty::Damaged };
        let opened = match lies.why_no_file() {
            Some(cause) => Err(Unusable::Damaged { cause }),
            None => {
                clear_siblings(&path).map_err(directory_error)?;
                open_checked(&path, empty)
            }
        };
        let cause = match opened {
            Ok(connection) => {
                let db = Self::count_answers(connection, path.clone(), answers_max)?;
                // Pages may be sound and hold values that this program never wrote.
                match db.find_odd_value() {
                    None => return Ok((db, missing.then_some(Recovered::Missing { path }))),
                    Some(cause) => cause,
                }
            }
            Err(Unusable::InUse) => return Err(StateDbError::InUse { path }),
            Err(Unusable::Damaged { cause }) => cause,
        };
        // Moved and not deleted: whoever looks for the cause needs it.
        let moved_to = set_aside(&path).map_err(directory_error)?;
        let connection = open_checked(&path, Empty::Allowed).map_err(|unusable| match unusable {
            Unusable::InUse => StateDbError::InUse { path: path.clone() },
            Unusable::Damaged { cause } => directory_error(io::Error::other(cause)),
        })?;
        let db = Self::count_answers(connection, path.clone(), answers_max)?;
        Ok((db, Some(Recovered::SetAside { path, moved_to, cause })))
    }

    fn count_answers(connection: Connection, path: PathBuf, answers_max: usize) -> Result<Self, StateDbError> {
        let mut db = Self { connection, path, answers: 0, answers_max };
        let count: i64 =
            db.run(|connection| connection.query_row("SELECT count(*) FROM answers", (), |row| row.get(0)))?;
        db.answers = usize::try_from(count).unwrap_or(0);
        Ok(db)
    }

    /// What is wrong with a value of another type than we write. SQLite stores a text where a number belongs, and then
    /// no start would succeed.
    fn find_odd_value(&self) -> Option<String> {
        match self.read_persisted() {
            Err(StateDbError::Sqlite {
                source:
                    source @ (rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::FromSqlConversionFailure(..)),
                ..
            }) => Some(source.to_string()),
            Ok(_) | Err(_) => None,
        }
    }

    /// What the gossip core had written: our epoch, the newest envelopes of peers, and the audiences.
    fn read_persisted(&self) -> Result<Persisted, StateDbError> {
        Ok(Persisted {
            own_epoch: self.read_own_epoch()?,
            newest: self.read_newest()?,
            audiences: self.read_audiences()?,
        })
    }

    /// Our epoch as it was last set.
    pub fn read_own_epoch(&self) -> Result<Option<u64>, StateDbError> {
        self.run(|connection| connection.query_row("SELECT epoch FROM own", (), |row| row.get::<_, i64>(0)).optional())
            .map(|epoch| epoch.map(i64::cast_unsigned))
    }

    /// Sets our epoch.
    pub fn set_own_epoch(&mut self, epoch: u64) -> Result<(), StateDbError> {
        self.persist(&[&Record::OwnEpoch(epoch)])
    }

    /// The newest envelope of each peer.
    pub fn read_newest(&self) -> Result<Vec<Vec<u8>>, StateDbError> {
        self.run(|connection| {
            connection.prepare("SELECT envelope FROM newest")?.query_map((), |row| row.get(0))?.collect()
        })
    }

    /// Sets the newest envelope of a peer.
    pub fn set_newest(&mut self, peer: &PeerId, envelope: &[u8]) -> Result<(), StateDbError> {
        self.persist(&[&Record::Newest { peer: *peer, envelope: envelope.to_vec() }])
    }

    /// Forgets a peer's newest envelope, and its audience.
    pub fn forget(&mut self, peer: &PeerId) -> Result<(), StateDbError> {
        self.persist(&[&Record::Forget(*peer)])
    }

    /// Keeps what the gossip core says, in this order, all in one transaction.
    pub fn persist(&mut self, records: &[&Record]) -> Result<(), StateDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            records.iter().try_for_each(|record| keep(&transaction, record))?;
            transaction.commit()
        })
    }

    /// The stored audiences. Rows that are not audiences are left out, so that nobody is told anything because of them.
    pub fn read_audiences(&self) -> Result<Vec<(PeerId, Vec<AudienceDigest>)>, StateDbError> {
        self.run(|connection| {
            let mut select = connection.prepare("SELECT peer, digests FROM audiences")?;
            let rows = select.query_map((), |row| {
                let (peer, digests): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
                let (digests, rest) = digests.as_chunks::<8>();
                let peer = PeerId::from_bytes(&peer).ok().filter(|_| rest.is_empty());
                Ok(peer.map(|peer| (peer, digests.iter().copied().map(AudienceDigest).collect())))
            })?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// Sets the audience of a peer's last summary.
    pub fn set_audience(&mut self, peer: &PeerId, audience: &[AudienceDigest]) -> Result<(), StateDbError> {
        let digests: Vec<u8> = audience.iter().flat_map(|digest| digest.0).collect();
        self.run(|connection| {
            connection
                .prepare_cached("INSERT OR REPLACE INTO audiences (peer, digests) VALUES (?1, ?2)")?
                .execute(params![peer.to_bytes(), digests])
        })?;
        Ok(())
    }

    /// Forgets the audiences of all peers that are not in `of`. An audience that is not kept up to date might still
    /// name peers that its owner has since removed.
    pub fn forget_audiences_except(&mut self, of: &BTreeSet<PeerId>) -> Result<(), StateDbError> {
        let kept = self.read_audiences()?.into_iter().map(|(peer, _)| peer).filter(|peer| !of.contains(peer));
        let gone: Vec<PeerId> = kept.collect();
        self.run(|connection| {
            gone.iter().try_for_each(|peer| {
                connection.execute("DELETE FROM audiences WHERE peer = ?1", [peer.to_bytes()]).map(drop)
            })
        })
    }

    /// The remembered answer for a path.
    pub fn read_answer(&self, hash_part: &HashPart) -> Result<Option<RememberedAnswer>, StateDbError> {
        self.run(|connection| {
            connection
                .prepare_cached("SELECT narinfo, holders, at_unix_s FROM answers WHERE hash_part = ?1")?
                .query_row([hash_part.0], |row| {
                    Ok(RememberedAnswer {
                        narinfo: row.get(0)?,
                        holders: parse_holders(&row.get::<_, String>(1)?),
                        at_unix_s: row.get::<_, i64>(2)?.cast_unsigned(),
                    })
                })
                .optional()
        })
    }

    /// Remembers and forgets answers in the order given, all in one transaction. Beyond [`ANSWERS_MAX`] the oldest are
    /// dropped.
    pub fn update_answers(&mut self, changes: &[(HashPart, Option<RememberedAnswer>)]) -> Result<(), StateDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for (hash_part, answer) in changes {
                match answer {
                    Some(answer) => insert_answer(&transaction, hash_part, answer)?,
                    None => transaction
                        .prepare_cached("DELETE FROM answers WHERE hash_part = ?1")?
                        .execute([hash_part.0])?,
                };
            }
            transaction.commit()
        })?;
        // This counts a replaced row twice and ignores deleted ones. `drop_oldest` counts exactly, before it drops any.
        self.answers += changes.iter().filter(|(_, answer)| answer.is_some()).count();
        if self.answers > self.answers_max { self.drop_oldest() } else { Ok(()) }
    }

    fn drop_oldest(&mut self) -> Result<(), StateDbError> {
        // More than one at a time, because to find the oldest takes a look at all.
        let keep = self.answers_max - self.answers_max / DROP_SHARE;
        let left: i64 = self.run(|connection| {
            let count: i64 = connection.query_row("SELECT count(*) FROM answers", (), |row| row.get(0))?;
            let keep = i64::try_from(keep).unwrap_or(i64::MAX);
            if count <= keep {
                return Ok(count);
            }
            connection.execute(
                "DELETE FROM answers WHERE hash_part IN (SELECT hash_part FROM answers ORDER BY at_unix_s LIMIT ?1)",
                [count - keep],
            )?;
            Ok(keep)
        })?;
        self.answers = usize::try_from(left).unwrap_or(0);
        Ok(())
    }

    fn run<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateDbError> {
        work(&self.connection).map_err(|source| StateDbError::Sqlite { path: self.path.clone(), source })
    }
}

fn keep(connection: &Connection, record: &Record) -> rusqlite::Result<()> {
    match record {
        Record::OwnEpoch(epoch) => {
            connection.execute("INSERT OR REPLACE INTO own (id, epoch) VALUES (1, ?1)", [epoch.cast_signed()])?;
        }
        Record::Newest { peer, envelope } => {
            connection
                .prepare_cached("INSERT OR REPLACE INTO newest (peer, envelope) VALUES (?1, ?2)")?
                .execute(params![peer.to_bytes(), envelope])?;
        }
        Record::Forget(peer) => {
            connection.execute("DELETE FROM newest WHERE peer = ?1", [peer.to_bytes()])?;
            connection.execute("DELETE FROM audiences WHERE peer = ?1", [peer.to_bytes()])?;
        }
    }
    Ok(())
}

fn insert_answer(connection: &Connection, part: &HashPart, answer: &RememberedAnswer) -> rusqlite::Result<usize> {
    let holders = answer.holders.iter().map(|holder| format!("{}@{}", holder.source, holder.summary_epoch));
    let holders = holders.collect::<Vec<_>>().join(",");
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO answers (hash_part, narinfo, holders, at_unix_s) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![part.0, answer.narinfo, holders, answer.at_unix_s.cast_signed()])
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { path } => {
                write!(f, "no state in {}: starting without memory, as on a first start", path.display())
            }
            Self::SetAside { path, moved_to, cause } => write!(
                f,
                "{} could not be used ({cause}): moved to {}, starting without memory",
                path.display(),
                moved_to.display()
            ),
        }
    }
}

/// Why a file cannot be opened.
enum Unusable {
    InUse,
    Damaged { cause: String },
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::InUse,
            Some(_) | None => Self::Damaged { cause: error.to_string() },
        }
    }
}

impl From<OpenError> for Unusable {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Sqlite(error) => error.into(),
            // All of its content can be learned again.
            OpenError::Content(_) | OpenError::Later(_) => Self::Damaged { cause: error.to_string() },
        }
    }
}

/// Opens the database at `path`, which has to be new or to have a schema of ours.
fn open_checked(path: &Path, empty: Empty) -> Result<Connection, Unusable> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Exclusive: the lock is taken at the first read and held, so that a second daemon on this directory fails to open
    // it.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    prepare(&mut connection, MIGRATIONS, empty)?;
    Ok(connection)
}

/// Parses holders, `peer@epoch` with commas between them. What does not parse is left out: the answer is only
/// worth less then.
fn parse_holders(text: &str) -> Vec<Candidate> {
    let parse = |holder: &str| {
        let (source, epoch) = holder.split_once('@')?;
        Some(Candidate { source: SourceId::Peer(source.parse().ok()?), summary_epoch: epoch.parse().ok()? })
    };
    text.split(',').filter_map(parse).collect()
}

impl SharedStateDb {
    /// Shares the database.
    pub fn new(db: StateDb) -> Self {
        Self(Arc::new(Mutex::new(db)))
    }
}

impl MeshState for SharedStateDb {
    fn read(&self) -> io::Result<Persisted> {
        self.0.lock().read_persisted().map_err(io::Error::other)
    }

    fn persist(&self, records: &[&Record]) -> io::Result<()> {
        self.0.lock().persist(records).map_err(io::Error::other)
    }

    fn set_audience(&self, peer: &PeerId, audience: &[AudienceDigest]) -> io::Result<()> {
        self.0.lock().set_audience(peer, audience).map_err(io::Error::other)
    }

    fn forget_audiences_except(&self, of: &BTreeSet<PeerId>) -> io::Result<()> {
        self.0.lock().forget_audiences_except(of).map_err(io::Error::other)
    }
}

impl AnswerStore for SharedStateDb {
    fn read_answer(&self, part: &HashPart) -> Result<Option<RememberedAnswer>, String> {
        self.0.lock().read_answer(part).map_err(|error| error.to_string())
    }

    fn update(&self, changes: &[AnswerChange]) -> Result<(), String> {
        self.0.lock().update_answers(changes).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests;
