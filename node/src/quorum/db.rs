//! The ledger on disk.
//!
//! What cannot be had again is one thing: when this node *first stored* an attestation, by which revocations are judged. A file
//! that cannot be used is moved aside; what comes in again then counts as first stored then, and is void if its key was revoked
//! before: the safe side. A write that returned survives the death of the process (WAL); every change is one transaction, so
//! that a process killed at any moment leaves the state before or after it.
//! Methods block. The daemon and the commands open the same file; SQLite locks it for one transaction at a time.

use crate::database_file::{Empty, OpenError, make_directory, prepare, remove_siblings, set_aside};
use narmesh_protocol::{
    Attestation, BuilderKey, HashPart, NarHash, NixPublicKey, NixSignature, Statement, StoreDir, StorePath,
};
use narmesh_quorum::{Evicted, Evidence, Facts, FingerprintDigest, Served, WallMs};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the file in the state directory.
const FILE_NAME: &str = "quorum.sqlite";
/// How long a transaction of another process is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// One step per version; `PRAGMA user_version` counts those already taken. Never edited, only added to.
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
"];

/// By the index: a peer asks for 512 paths at a time.
const ATTESTATIONS: &str = "
    SELECT b.public_key, s.path, s.nar_hash, s.nar_size, s.refs, v.attested_at_ms, v.nix_signature, v.dated_signature
    FROM statements s JOIN votes v ON v.statement = s.id JOIN builders b ON b.id = v.builder
    WHERE s.hash_part = ?1 AND v.dated_signature IS NOT NULL ORDER BY s.path, b.key, s.fingerprint";

/// The open database.
#[derive(Debug)]
pub struct LedgerDb {
    connection: Connection,
    path: PathBuf,
    store_dir: StoreDir,
}

/// An attestation as stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The builder's key, with the name that it came under.
    pub key: NixPublicKey,
    /// The attestation.
    pub attestation: Attestation,
}

/// A Nix signature of a builder that signs nothing but its own builds, as stored: no date, and no second signature.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BareSignature {
    /// The builder's key, with the name that signed.
    pub key: NixPublicKey,
    /// What is signed.
    pub statement: Statement,
    /// Over its fingerprint.
    pub signature: [u8; 64],
}

/// A row to be.
#[derive(Clone, Copy, Debug)]
pub struct NewVote<'a> {
    key: &'a NixPublicKey,
    statement: &'a Statement,
    nix_signature: &'a [u8; 64],
    /// When it was attested, milliseconds since 1970, and the signature over that. `None` for a bare signature.
    dated: Option<(u64, &'a [u8; 64])>,
}

impl<'a> From<&'a Stored> for NewVote<'a> {
    fn from(stored: &'a Stored) -> Self {
        let Attestation { statement, nix_signature, dated_signature, attested_at_ms, .. } = &stored.attestation;
        Self { key: &stored.key, statement, nix_signature, dated: Some((*attested_at_ms, dated_signature)) }
    }
}

impl<'a> From<&'a BareSignature> for NewVote<'a> {
    fn from(bare: &'a BareSignature) -> Self {
        Self { key: &bare.key, statement: &bare.statement, nix_signature: &bare.signature, dated: None }
    }
}

/// A statement, and when it was first stored here, if that is on record.
pub type FirstStored = (Evidence, Option<WallMs>);

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

impl LedgerDb {
    /// Opens the file in `state_dir` for reading and writing and checks it; makes it if it is missing. With `repair` a damaged
    /// one is moved aside and a new one made; gives where the old one is.
    pub fn open(
        state_dir: &Path,
        store_dir: &StoreDir,
        repair: bool,
    ) -> Result<(Self, Option<PathBuf>), LedgerDbError> {
        let path = state_dir.join(FILE_NAME);
        let file_error = |source| LedgerDbError::File { path: path.clone(), source };
        make_directory(state_dir).map_err(file_error)?;
        let missing = !path.try_exists().map_err(file_error)?;
        if missing {
            remove_siblings(&path);
        }
        match Self::open_file(&path, store_dir, OpenFlags::default()) {
            Ok(db) => {
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

    /// Opens what is there, for reports.
    pub fn open_existing(state_dir: &Path, store_dir: &StoreDir) -> Result<Self, LedgerDbError> {
        let path = state_dir.join(FILE_NAME);
        match path.try_exists() {
            Ok(true) => Self::open_file(&path, store_dir, OpenFlags::default() & !OpenFlags::SQLITE_OPEN_CREATE),
            Ok(false) => Err(LedgerDbError::Missing { path }),
            Err(source) => Err(LedgerDbError::File { path, source }),
        }
    }

    fn open_file(path: &Path, store_dir: &StoreDir, flags: OpenFlags) -> Result<Self, LedgerDbError> {
        let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                LedgerDbError::Unusable { path: path.to_owned(), cause: source.to_string() }
            }
            _ => LedgerDbError::Sqlite { path: path.to_owned(), source },
        };
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        prepare(&mut connection, MIGRATIONS, Empty::Allowed).map_err(|error| match error {
            OpenError::Sqlite(source) => failed(source),
            OpenError::Content(cause) => LedgerDbError::Unusable { path: path.to_owned(), cause },
            later @ OpenError::Later(_) => LedgerDbError::Later { path: path.to_owned(), cause: later.to_string() },
        })?;
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

    /// The attestations that were stored after the row of number `after`, in the order of first storing, at most `rows_max` of
    /// them; and the number of the last. Rows of this and of other processes alike.
    pub fn stored_after(&self, after: i64, rows_max: usize) -> Result<(Vec<FirstStored>, i64), LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT v.id, b.key, s.hash_part, s.fingerprint, s.nar_hash, s.nar_size, v.attested_at_ms, v.stored_at_ms,
                        length(s.refs) FROM votes v JOIN statements s ON s.id = v.statement
                 JOIN builders b ON b.id = v.builder WHERE v.id > ?1 ORDER BY v.id LIMIT ?2",
            )?;
            let mut rows = select.query(params![after, i64::try_from(rows_max).unwrap_or(i64::MAX)])?;
            let (mut found, mut last) = (Vec::new(), after);
            while let Some(row) = rows.next()? {
                last = row.get(0)?;
                let facts = Facts {
                    fingerprint: FingerprintDigest(row.get(3)?),
                    nar_hash: NarHash(row.get(4)?),
                    nar_size: row.get::<_, i64>(5)?.cast_unsigned(),
                };
                let evidence = Evidence::recorded(
                    BuilderKey(row.get(1)?),
                    HashPart(row.get(2)?),
                    facts,
                    wall(row.get(6)?),
                    on_disk_bytes(row.get::<_, i64>(8)?.try_into().unwrap_or(0)),
                );
                found.push((evidence, wall(row.get(7)?)));
            }
            Ok((found, last))
        })
    }

    /// Stores verified statements that are not stored yet, in one transaction.
    pub fn store(&self, verified: &[(NewVote<'_>, &Evidence)], at: WallMs) -> Result<(), LedgerDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            verified.iter().try_for_each(|(vote, evidence)| insert(&transaction, *vote, evidence, at))?;
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

    /// All attestations of a path, in the order of path and key: an export is the same each time.
    pub fn attestations(&self, hash_part: &HashPart) -> Result<Vec<Stored>, LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare_cached(ATTESTATIONS)?;
            // Rows are ours; one that does not parse was not written by this program.
            let rows = select.query_map([hash_part.0], |row| stored(row)?.ok_or(rusqlite::Error::InvalidQuery))?;
            rows.collect()
        })
    }

    /// The Nix signatures over this fingerprint, in the order of the keys.
    pub fn signatures(&self, of: FingerprintDigest) -> Result<Vec<(BuilderKey, NixSignature)>, LedgerDbError> {
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

    /// What is attested of the path with this hash part: whole statements, with references.
    pub fn statements(&self, hash_part: &HashPart) -> Result<Vec<Statement>, LedgerDbError> {
        self.run(|connection| {
            let mut select = connection.prepare_cached(
                "SELECT path, nar_hash, nar_size, refs FROM statements WHERE hash_part = ?1 ORDER BY fingerprint",
            )?;
            let rows = select.query_map([hash_part.0], |row| statement(row, 0))?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// The paths of which anything is known.
    pub fn paths(&self) -> Result<Vec<StorePath>, LedgerDbError> {
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

    /// Forgets that our Nix got these.
    pub fn forget_served(&self, parts: &[HashPart]) -> Result<(), LedgerDbError> {
        self.run(|connection| {
            let transaction = connection.unchecked_transaction()?;
            for part in parts {
                transaction.prepare_cached("DELETE FROM served WHERE hash_part = ?1")?.execute([part.0])?;
            }
            transaction.commit()
        })
    }

    /// Another number after each change by another connection.
    pub fn data_version(&self) -> Result<i64, LedgerDbError> {
        self.run(|connection| connection.query_row("PRAGMA data_version", (), |row| row.get(0)))
    }

    /// The store directory of all that is in it.
    pub fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// What our Nix got, in the order of time.
    pub fn served(&self) -> Result<Vec<Served>, LedgerDbError> {
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
        work(&self.connection).map_err(|source| LedgerDbError::Sqlite { path: self.path.clone(), source })
    }
}

/// What an attestation, or a bare signature, takes in the file, roughly: signatures, hashes, indices, and its references.
pub(super) fn on_disk_bytes(references_bytes: usize) -> u32 {
    u32::try_from(references_bytes + 450).unwrap_or(u32::MAX)
}

fn wall(ms: Option<i64>) -> Option<WallMs> {
    ms.map(|ms| WallMs(ms.cast_unsigned()))
}

fn insert(connection: &Connection, vote: NewVote<'_>, evidence: &Evidence, at: WallMs) -> rusqlite::Result<()> {
    let NewVote { key, statement, nix_signature, dated } = vote;
    connection
        .prepare_cached("INSERT OR IGNORE INTO builders (key, public_key) VALUES (?1, ?2)")?
        .execute(params![key.bytes(), key.to_string()])?;
    let references = statement.references.iter().map(StorePath::to_string).collect::<Vec<_>>().join(" ");
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO statements (hash_part, fingerprint, path, nar_hash, nar_size, refs)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            statement.path.hash_part().0,
            evidence.facts().fingerprint.0,
            statement.path.to_string(),
            statement.nar_hash.0,
            statement.nar_size.cast_signed(),
            references,
        ])?;
    // A bare signature that gets its date goes in as a new row, with the old time of first storing: other processes look for new
    // rows.
    let known: Option<(i64, Option<i64>)> = match dated {
        // Whatever is known of this builder is no less than that.
        None => None,
        Some(_) => connection
            .prepare_cached(
                "SELECT id, stored_at_ms FROM votes WHERE builder = (SELECT id FROM builders WHERE key = ?1)
                 AND statement = (SELECT id FROM statements WHERE fingerprint = ?2) AND dated_signature IS NULL",
            )?
            .query_row(params![key.bytes(), evidence.facts().fingerprint.0], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?,
    };
    if let Some((id, _)) = known {
        connection.prepare_cached("DELETE FROM votes WHERE id = ?1")?.execute([id])?;
    }
    let stored_at = known.map_or(Some(at.0.cast_signed()), |(_, stored_at)| stored_at);
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO votes (builder, statement, stored_at_ms, attested_at_ms, nix_signature, dated_signature)
             VALUES ((SELECT id FROM builders WHERE key = ?1), (SELECT id FROM statements WHERE fingerprint = ?2),
                     ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            key.bytes(),
            evidence.facts().fingerprint.0,
            stored_at,
            dated.map(|(at_ms, _)| at_ms.cast_signed()),
            nix_signature,
            dated.map(|(_, signature)| signature),
        ])?;
    Ok(())
}

fn delete(connection: &Connection, gone: &Evicted) -> rusqlite::Result<()> {
    let statement: Option<i64> = connection
        .prepare_cached("SELECT id FROM statements WHERE fingerprint = ?1")?
        .query_row([gone.fingerprint.0], |row| row.get(0))
        .optional()?;
    let Some(statement) = statement else { return Ok(()) };
    connection
        .prepare_cached(
            "DELETE FROM votes WHERE statement = ?1 AND builder = (SELECT id FROM builders WHERE key = ?2)",
        )?
        .execute(params![statement, gone.builder.0])?;
    connection
        .prepare_cached(
            "DELETE FROM statements WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM votes WHERE statement = ?1)",
        )?
        .execute([statement])?;
    Ok(())
}

/// `None` for what is no attestation of ours.
fn stored(row: &Row<'_>) -> rusqlite::Result<Option<Stored>> {
    let key = NixPublicKey::parse(&row.get::<_, String>(0)?).ok();
    let (Some(key), Some(statement)) = (key, statement(row, 1)?) else { return Ok(None) };
    let attestation = Attestation {
        builder: BuilderKey(key.bytes()),
        statement,
        attested_at_ms: row.get::<_, i64>(5)?.cast_unsigned(),
        nix_signature: row.get(6)?,
        dated_signature: row.get(7)?,
    };
    Ok(Some(Stored { key, attestation }))
}

/// Path, NarHash, NarSize and references, from column `first` on.
fn statement(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Statement>> {
    let path = StorePath::parse(&row.get::<_, String>(first)?).ok();
    let references: String = row.get(first + 3)?;
    let references =
        references.split(' ').filter(|text| !text.is_empty()).map(|text| StorePath::parse(text).ok()).collect();
    let (Some(path), Some(references)) = (path, references) else { return Ok(None) };
    Ok(Some(Statement {
        path,
        nar_hash: NarHash(row.get(first + 1)?),
        nar_size: row.get::<_, i64>(first + 2)?.cast_unsigned(),
        references,
    }))
}

/// A file that root made belongs to whom the directory belongs to: the daemon, which has to write it.
fn give_to_owner(state_dir: &Path, path: &Path) {
    if let Ok(owner) = std::fs::metadata(state_dir) {
        // Fails for who is not root, who then made it for itself.
        drop(chown(path, Some(owner.uid()), Some(owner.gid())));
    }
}

#[cfg(test)]
mod tests;
