//! The ledger on disk.
//!
//! Only one thing in it cannot be had again: when this node *first stored* an attestation, which decides what a
//! revocation voids. If the file cannot be used, it is moved aside. Attestations that come again then count as first
//! stored at that time, and are void if their key was revoked before, which is the safe side. A write that returned
//! survives the death of the process (WAL). Every change is one transaction, so that a process killed at any moment
//! leaves the state before or after it.
//! Methods block. The daemon and the commands open the same file; SQLite locks it for one transaction at a time.

mod error;
mod rows;

pub use self::error::LedgerDbError;
pub(in crate::attestations) use self::rows::on_disk_bytes;
pub use self::rows::{BareSignature, NewStatement, StoredStatement};

use self::rows::{bytes_with_references, delete, insert, parse_bare_signature, parse_statement, parse_stored, wall};
use crate::database_file::{
    Empty, OpenError, clear_siblings, make_directory, prepare, remove_siblings, set_aside, why_no_file,
};
use crate::regular_file::Lies;
use crate::state_files::LEDGER_FILE;
use narmesh_protocol::{BuilderKey, HashPart, NarHash, NixPublicKey, NixSignature, Statement, StoreDir, StorePath};
use narmesh_quorum::{Claim, Evicted, FingerprintDigest, NameDigest, Served, VerifiedStatement, WallMs};
use rusqlite::{Connection, OpenFlags, params};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long to wait for a transaction of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// One step per schema version; `PRAGMA user_version` counts the steps already taken. Steps are added, never edited.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), store_dir TEXT NOT NULL);
    CREATE TABLE builders (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, public_key TEXT NOT NULL);
    CREATE TABLE statements (
        id INTEGER PRIMARY KEY, hash_part BLOB NOT NULL, fingerprint BLOB NOT NULL UNIQUE, path TEXT NOT NULL,
        nar_hash BLOB NOT NULL, nar_size INTEGER NOT NULL, refs TEXT NOT NULL
    );
    CREATE INDEX statements_by_path ON statements (hash_part);
    CREATE TABLE votes (
        id INTEGER PRIMARY KEY AUTOINCREMENT, builder INTEGER NOT NULL REFERENCES builders (id),
        statement INTEGER NOT NULL REFERENCES statements (id), stored_at_ms INTEGER, attested_at_ms INTEGER,
        nix_signature BLOB NOT NULL, dated_signature BLOB, UNIQUE (statement, builder)
    );
    CREATE TABLE served (hash_part BLOB PRIMARY KEY, path TEXT NOT NULL, fingerprint BLOB NOT NULL, at_ms INTEGER NOT NULL)
        WITHOUT ROWID;
", "
    -- When a row that was a bare signature first got its date; NULL for one that came with it.
    ALTER TABLE votes ADD COLUMN dated_stored_at_ms INTEGER;
    -- Oldest first.
    CREATE TABLE asked (id INTEGER PRIMARY KEY AUTOINCREMENT, hash_part BLOB NOT NULL UNIQUE);
"];

/// Uses the index, because a peer asks for 512 paths at a time.
const ATTESTATIONS: &str = "
    SELECT b.public_key, s.path, s.nar_hash, s.nar_size, s.refs, v.attested_at_ms, v.nix_signature, v.dated_signature
    FROM statements s JOIN votes v ON v.statement = s.id JOIN builders b ON b.id = v.builder
    WHERE s.hash_part = ?1 AND v.dated_signature IS NOT NULL ORDER BY s.path, b.key, s.fingerprint";

const BARE_SIGNATURES: &str = "
    SELECT b.public_key, s.path, s.nar_hash, s.nar_size, s.refs, v.nix_signature
    FROM statements s JOIN votes v ON v.statement = s.id JOIN builders b ON b.id = v.builder
    WHERE s.hash_part = ?1 AND v.dated_signature IS NULL ORDER BY s.path, b.key, s.fingerprint";

/// The open database.
#[derive(Debug)]
pub struct LedgerDb {
    connection: Connection,
    path: PathBuf,
    store_dir: StoreDir,
}

/// A statement, and when this node first stored it, if that is on record.
pub type FirstStored = (VerifiedStatement, Option<WallMs>);

impl LedgerDb {
    /// Opens the file in `state_dir` for reading and writing and checks it; makes it if it is missing. With `repair`, a
    /// damaged file is moved aside and a new one made; then the path of the old one is returned, too.
    pub fn open(
        state_dir: &Path,
        store_dir: &StoreDir,
        repair: bool,
    ) -> Result<(Self, Option<PathBuf>), LedgerDbError> {
        let path = state_dir.join(LEDGER_FILE);
        let file_error = |source| LedgerDbError::File { path: path.clone(), source };
        make_directory(state_dir).map_err(file_error)?;
        let missing = Lies::at(&path).map_err(file_error)? == Lies::Nothing;
        // A journal beside a missing file belongs to another one, and SQLite would play it into the new one.
        if missing {
            remove_siblings(&path);
        } else if repair {
            clear_siblings(&path).map_err(file_error)?;
        }
        match Self::open_file(&path, store_dir, OpenFlags::default()) {
            Ok(db) => {
                // The command may run as root, and the daemon has to be able to write what it made.
                if missing {
                    give_to_owner(state_dir, &path);
                }
                Ok((db, None))
            }
            Err(LedgerDbError::Unusable { .. }) if repair => {
                let moved_to = set_aside(&path).map_err(file_error)?;
                let db = Self::open_file(&path, store_dir, OpenFlags::default())?;
                give_to_owner(state_dir, &path);
                Ok((db, Some(moved_to)))
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the file if there is one, for reports.
    pub fn open_existing(state_dir: &Path, store_dir: &StoreDir) -> Result<Self, LedgerDbError> {
        let path = state_dir.join(LEDGER_FILE);
        match Lies::at(&path) {
            Ok(Lies::Nothing) => Err(LedgerDbError::Missing { path }),
            Ok(Lies::File | Lies::Directory | Lies::Other(_)) => {
                Self::open_file(&path, store_dir, OpenFlags::default() & !OpenFlags::SQLITE_OPEN_CREATE)
            }
            Err(source) => Err(LedgerDbError::File { path, source }),
        }
    }

    /// Opens a file that was moved aside, unchecked, to read what is still readable in it.
    pub fn open_damaged(path: &Path, store_dir: &StoreDir) -> Result<Self, LedgerDbError> {
        refuse_others(path)?;
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let connection = connection.map_err(|source| LedgerDbError::of(path, source))?;
        Ok(Self { connection, path: path.to_owned(), store_dir: store_dir.clone() })
    }

    fn open_file(path: &Path, store_dir: &StoreDir, flags: OpenFlags) -> Result<Self, LedgerDbError> {
        refuse_others(path)?;
        let failed = |source| LedgerDbError::of(path, source);
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        prepare(&mut connection, MIGRATIONS, Empty::Allowed).map_err(|error| match error {
            OpenError::Sqlite(source) => failed(source),
            OpenError::Content(cause) => LedgerDbError::Unusable { path: path.to_owned(), cause },
            later @ OpenError::Later(_) => LedgerDbError::Later { path: path.to_owned(), cause: later.to_string() },
        })?;
        // Both in one go: whoever comes second finds what the first one wrote, and compares.
        connection
            .execute("INSERT OR IGNORE INTO meta (id, store_dir) VALUES (1, ?1)", [store_dir.as_str()])
            .map_err(failed)?;
        let found: String = connection.query_row("SELECT store_dir FROM meta", (), |row| row.get(0)).map_err(failed)?;
        if found != store_dir.as_str() {
            let wanted = store_dir.as_str().to_owned();
            return Err(LedgerDbError::StoreDir { path: path.to_owned(), found, wanted });
        }
        Ok(Self { connection, path: path.to_owned(), store_dir: store_dir.clone() })
    }

    /// What is in at most `rows_max` rows after the row with number `after`, in the order of storing, and the number of
    /// the last row. It does not matter which process stored them. An attestation that was first a bare signature is
    /// returned as both.
    pub fn read_stored_after(&self, after: i64, rows_max: usize) -> Result<(Vec<FirstStored>, i64), LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT v.id, b.key, s.hash_part, s.fingerprint, s.nar_hash, s.nar_size, v.attested_at_ms, v.stored_at_ms,
                        length(s.refs), v.dated_stored_at_ms, s.path FROM votes v JOIN statements s ON s.id = v.statement
                 JOIN builders b ON b.id = v.builder WHERE v.id > ?1 ORDER BY v.id LIMIT ?2",
            )?;
            let mut rows = select.query(params![after, i64::try_from(rows_max).unwrap_or(i64::MAX)])?;
            let (mut found, mut last) = (Vec::new(), after);
            while let Some(row) = rows.next()? {
                last = row.get(0)?;
                let claim = Claim {
                    fingerprint: FingerprintDigest(row.get(3)?),
                    nar_hash: NarHash(row.get(4)?),
                    nar_size: row.get::<_, i64>(5)?.cast_unsigned(),
                    name: NameDigest::of(row.get_ref(10)?.as_str()?.get(33..).unwrap_or_default()),
                };
                let verified = VerifiedStatement::from_record(
                    BuilderKey(row.get(1)?),
                    HashPart(row.get(2)?),
                    claim,
                    wall(row.get(6)?),
                    bytes_with_references(row.get::<_, i64>(8)?.try_into().unwrap_or(0)),
                );
                let (stored_at, dated_stored_at) = (wall(row.get(7)?), wall(row.get(9)?));
                match dated_stored_at {
                    None => found.push((verified, stored_at)),
                    // It was first a bare signature. Without that its earlier time would be lost.
                    Some(_) => found.extend([(verified.undated(), stored_at), (verified, dated_stored_at)]),
                }
            }
            Ok((found, last))
        })
    }

    /// Stores verified statements that are not stored yet, in one transaction.
    pub fn store(
        &self,
        statements: &[(NewStatement<'_>, &VerifiedStatement)],
        at: WallMs,
    ) -> Result<(), LedgerDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            statements.iter().try_for_each(|(vote, verified)| insert(&transaction, *vote, verified, Some(at)))?;
            transaction.commit()
        })
    }

    /// Stores statements from another file, with the time when they were first stored if that is on record, in one
    /// transaction.
    pub fn restore(
        &self,
        known: &[(NewStatement<'_>, &VerifiedStatement, Option<WallMs>)],
    ) -> Result<(), LedgerDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            known.iter().try_for_each(|(vote, verified, at)| insert(&transaction, *vote, verified, *at))?;
            transaction.commit()
        })
    }

    /// From now on these keys have these names, whatever names they came under.
    pub fn name<'a>(&self, keys: impl IntoIterator<Item = &'a NixPublicKey>) -> Result<(), LedgerDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let mut rename = transaction
                .prepare_cached("UPDATE builders SET public_key = ?2 WHERE key = ?1 AND public_key <> ?2")?;
            for key in keys {
                rename.execute(params![key.bytes(), key.to_string()])?;
            }
            drop(rename);
            transaction.commit()
        })
    }

    /// Removes attestations, in one transaction.
    pub fn remove(&self, gone: &[Evicted]) -> Result<(), LedgerDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            gone.iter().try_for_each(|gone| delete(&transaction, gone))?;
            transaction.commit()
        })
    }

    /// All attestations of a path, in the order of path and key, so that an export is the same each time.
    pub fn read_attestations(&self, hash_part: &HashPart) -> Result<Vec<StoredStatement>, LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare_cached(ATTESTATIONS)?;
            // We wrote the rows. One that does not parse was not written by this program.
            let rows =
                select.query_map([hash_part.0], |row| parse_stored(row)?.ok_or(rusqlite::Error::InvalidQuery))?;
            rows.collect()
        })
    }

    /// All bare signatures over statements about a path.
    pub fn read_bare_signatures(&self, hash_part: &HashPart) -> Result<Vec<BareSignature>, LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare_cached(BARE_SIGNATURES)?;
            let rows = select
                .query_map([hash_part.0], |row| parse_bare_signature(row)?.ok_or(rusqlite::Error::InvalidQuery))?;
            rows.collect()
        })
    }

    /// The Nix signatures over this fingerprint, in the order of the keys.
    pub fn read_signatures(&self, of: FingerprintDigest) -> Result<Vec<(BuilderKey, NixSignature)>, LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT b.key, b.public_key, v.nix_signature FROM votes v JOIN statements s ON s.id = v.statement
                 JOIN builders b ON b.id = v.builder WHERE s.fingerprint = ?1 ORDER BY b.key",
            )?;
            let rows = select.query_map([of.0], |row| {
                let key = NixPublicKey::parse(&row.get::<_, String>(1)?).map_err(|_| rusqlite::Error::InvalidQuery)?;
                let signature = NixSignature { key_name: key.name().to_owned(), bytes: row.get(2)? };
                Ok((BuilderKey(row.get(0)?), signature))
            })?;
            rows.collect()
        })
    }

    /// Everything that is stated about the path with this hash part: whole statements, with references.
    pub fn read_statements(&self, hash_part: &HashPart) -> Result<Vec<Statement>, LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT path, nar_hash, nar_size, refs FROM statements WHERE hash_part = ?1 ORDER BY fingerprint",
            )?;
            let rows = select.query_map([hash_part.0], |row| parse_statement(row, 0))?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// All paths that there is a statement about.
    pub fn read_paths(&self) -> Result<Vec<StorePath>, LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare("SELECT DISTINCT path FROM statements ORDER BY path")?;
            let rows = select.query_map((), |row| row.get::<_, String>(0))?;
            rows.map(|path| path.map(|path| StorePath::parse(&path).ok())).filter_map(Result::transpose).collect()
        })
    }

    /// Notes what our Nix got, in one transaction.
    pub fn note_served(&self, served: &[Served]) -> Result<(), LedgerDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for served in served {
                transaction
                    .prepare_cached(
                        "INSERT OR REPLACE INTO served (hash_part, path, fingerprint, at_ms) VALUES (?1, ?2, ?3, ?4)",
                    )?
                    .execute(params![
                        served.path.hash_part().0,
                        served.path.to_string(),
                        served.fingerprint.0,
                        served.at.0.cast_signed()
                    ])?;
            }
            transaction.commit()
        })
    }

    /// Forgets some paths that our Nix asked for, and notes others as the newest, in one transaction. A path among both
    /// is noted.
    pub fn note_asked<'a>(
        &self,
        asked: impl IntoIterator<Item = &'a HashPart>,
        forgotten: impl IntoIterator<Item = &'a HashPart>,
    ) -> Result<(), LedgerDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            // First the one and then the other, so that a path among both is there in the end.
            for part in forgotten {
                transaction.prepare_cached("DELETE FROM asked WHERE hash_part = ?1")?.execute([part.0])?;
            }
            for part in asked {
                transaction.prepare_cached("INSERT OR IGNORE INTO asked (hash_part) VALUES (?1)")?.execute([part.0])?;
            }
            transaction.commit()
        })
    }

    /// The paths that our Nix asked for, oldest first.
    pub fn read_asked(&self) -> Result<Vec<HashPart>, LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare("SELECT hash_part FROM asked ORDER BY id")?;
            let rows = select.query_map((), |row| Ok(HashPart(row.get(0)?)))?;
            rows.collect()
        })
    }

    /// Forgets that our Nix got these paths.
    pub fn forget_served<'a>(&self, parts: impl IntoIterator<Item = &'a HashPart>) -> Result<(), LedgerDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for part in parts {
                transaction.prepare_cached("DELETE FROM served WHERE hash_part = ?1")?.execute([part.0])?;
            }
            transaction.commit()
        })
    }

    /// A number that changes whenever another connection changes the file.
    pub fn read_data_version(&self) -> Result<i64, LedgerDbError> {
        self.run(|connection| connection.query_row("PRAGMA data_version", (), |row| row.get(0)))
    }

    /// The store directory of all paths in it.
    pub fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// What our Nix got, oldest first.
    pub fn read_served(&self) -> Result<Vec<Served>, LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare("SELECT path, fingerprint, at_ms FROM served ORDER BY at_ms")?;
            let rows = select.query_map((), |row| {
                let path = StorePath::parse(&row.get::<_, String>(0)?).ok();
                let (fingerprint, at) = (FingerprintDigest(row.get(1)?), WallMs(row.get::<_, i64>(2)?.cast_unsigned()));
                Ok(path.map(|path| Served { path, fingerprint, at }))
            })?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    fn run<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, LedgerDbError> {
        work(&self.connection).map_err(|source| LedgerDbError::of(&self.path, source))
    }
}

/// Refuses anything but a regular file: SQLite would wait for ever on a FIFO.
fn refuse_others(path: &Path) -> Result<(), LedgerDbError> {
    match why_no_file(path) {
        Ok(None) => Ok(()),
        Ok(Some(cause)) => Err(LedgerDbError::Unusable { path: path.to_owned(), cause }),
        Err(source) => Err(LedgerDbError::File { path: path.to_owned(), source }),
    }
}

/// Gives a file that root made to the owner of the directory: to the daemon, which has to write it.
fn give_to_owner(state_dir: &Path, path: &Path) {
    if let Ok(owner) = std::fs::metadata(state_dir) {
        // Fails for anybody but root. Then the file already belongs to the user who made it.
        drop(chown(path, Some(owner.uid()), Some(owner.gid())));
    }
}

#[cfg(test)]
mod tests;
