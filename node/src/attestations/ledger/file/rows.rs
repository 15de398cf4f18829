//! The rows of the ledger's file, and the statements that they hold.

use crate::attestations::KeyNames;
use narmesh_protocol::{Attestation, BuilderKey, NarHash, NixPublicKey, Statement, StorePath};
use narmesh_quorum::{Evicted, VerifiedStatement, WallMs};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

/// A key has the name that it was stored under last. Callers store it under its configured name.
const NAME: &str = "
    INSERT INTO builders (key, public_key) VALUES (?1, ?2)
    ON CONFLICT (key) DO UPDATE SET public_key = excluded.public_key WHERE public_key <> excluded.public_key";

/// An attestation as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredStatement {
    /// The builder's key, under the name that it came with.
    pub key: NixPublicKey,
    /// The attestation.
    pub attestation: Attestation,
}

/// A Nix signature of a builder that signs nothing but its own builds, as stored: no date, and no second signature.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BareSignature {
    /// The builder's key, with the name in the signature.
    pub key: NixPublicKey,
    /// The statement that is signed.
    pub statement: Statement,
    /// The signature over the statement's fingerprint.
    pub signature: [u8; 64],
}

/// A row that is to be stored: an attestation or a bare signature.
#[derive(Clone, Copy, Debug)]
pub struct NewStatement<'a> {
    key: &'a NixPublicKey,
    statement: &'a Statement,
    nix_signature: &'a [u8; 64],
    /// When it was attested, milliseconds since 1970, and the signature that covers this date. `None` for a bare
    /// signature.
    dated: Option<(u64, &'a [u8; 64])>,
}

impl<'a> NewStatement<'a> {
    /// The same, with its key under the name that `names` has for it.
    pub fn under(self, names: &'a KeyNames) -> Self {
        Self { key: names.own(self.key), ..self }
    }

    /// The same without its date: its bare signature.
    pub fn undated(self) -> Self {
        Self { dated: None, ..self }
    }
}

impl<'a> From<&'a StoredStatement> for NewStatement<'a> {
    fn from(stored: &'a StoredStatement) -> Self {
        let Attestation { statement, nix_signature, dated_signature, attested_at_ms, .. } = &stored.attestation;
        Self { key: &stored.key, statement, nix_signature, dated: Some((*attested_at_ms, dated_signature)) }
    }
}

impl<'a> From<&'a BareSignature> for NewStatement<'a> {
    fn from(bare: &'a BareSignature) -> Self {
        Self { key: &bare.key, statement: &bare.statement, nix_signature: &bare.signature, dated: None }
    }
}

/// Roughly how many bytes an attestation or a bare signature takes in the file: signatures, hashes, indices,
/// references.
pub(in crate::attestations) fn on_disk_bytes(statement: &Statement) -> u32 {
    // A reference is a hash part of 32 bytes, two separators, and a name.
    bytes_with_references(statement.references.iter().map(|path| 34 + path.name().len()).sum())
}

/// The same, given the bytes of the references.
pub(super) fn bytes_with_references(references_bytes: usize) -> u32 {
    u32::try_from(references_bytes + 450).unwrap_or(u32::MAX)
}

pub(super) fn wall(ms: Option<i64>) -> Option<WallMs> {
    ms.map(|ms| WallMs(ms.cast_unsigned()))
}

pub(super) fn insert(
    connection: &Connection,
    vote: NewStatement<'_>,
    verified: &VerifiedStatement,
    at: Option<WallMs>,
) -> rusqlite::Result<()> {
    let NewStatement { key, statement, nix_signature, dated } = vote;
    connection.prepare_cached(NAME)?.execute(params![key.bytes(), key.to_string()])?;
    let references = statement.references.iter().map(StorePath::to_string).collect::<Vec<_>>().join(" ");
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO statements (hash_part, fingerprint, path, nar_hash, nar_size, refs)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            statement.path.hash_part().0,
            verified.claim().fingerprint.0,
            statement.path.to_string(),
            statement.nar_hash.0,
            statement.nar_size.cast_signed(),
            references,
        ])?;
    // A bare signature that becomes an attestation is stored as a new row, with both times: other processes look only
    // for new rows.
    let known: Option<(i64, Option<i64>)> = match dated {
        // A bare signature replaces nothing: whatever this builder has said of it already is worth at least as much.
        None => None,
        Some(_) => connection
            .prepare_cached(
                "SELECT id, stored_at_ms FROM votes WHERE builder = (SELECT id FROM builders WHERE key = ?1)
                 AND statement = (SELECT id FROM statements WHERE fingerprint = ?2) AND dated_signature IS NULL",
            )?
            .query_row(params![key.bytes(), verified.claim().fingerprint.0], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?,
    };
    if let Some((id, _)) = known {
        connection.prepare_cached("DELETE FROM votes WHERE id = ?1")?.execute([id])?;
    }
    let at = at.map(|at| at.0.cast_signed());
    // The earlier of both times: a revocation looks at when this was first stored.
    let stored_at = known.and_then(|(_, stored_at)| stored_at).into_iter().chain(at).min();
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO votes
                 (builder, statement, stored_at_ms, attested_at_ms, nix_signature, dated_signature, dated_stored_at_ms)
             VALUES ((SELECT id FROM builders WHERE key = ?1), (SELECT id FROM statements WHERE fingerprint = ?2),
                     ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            key.bytes(),
            verified.claim().fingerprint.0,
            stored_at,
            dated.map(|(at_ms, _)| at_ms.cast_signed()),
            nix_signature,
            dated.map(|(_, signature)| signature),
            known.and(at),
        ])?;
    Ok(())
}

pub(super) fn delete(connection: &Connection, gone: &Evicted) -> rusqlite::Result<()> {
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

/// The attestation in a row; `None` if the row is not one that we wrote.
pub(super) fn parse_stored(row: &Row<'_>) -> rusqlite::Result<Option<StoredStatement>> {
    let key = NixPublicKey::parse(&row.get::<_, String>(0)?).ok();
    let (Some(key), Some(statement)) = (key, parse_statement(row, 1)?) else { return Ok(None) };
    let attestation = Attestation {
        builder: BuilderKey(key.bytes()),
        statement,
        attested_at_ms: row.get::<_, i64>(5)?.cast_unsigned(),
        nix_signature: row.get(6)?,
        dated_signature: row.get(7)?,
    };
    Ok(Some(StoredStatement { key, attestation }))
}

/// The bare signature in a row; `None` if the row is not one that we wrote.
pub(super) fn parse_bare_signature(row: &Row<'_>) -> rusqlite::Result<Option<BareSignature>> {
    let key = NixPublicKey::parse(&row.get::<_, String>(0)?).ok();
    let (Some(key), Some(statement)) = (key, parse_statement(row, 1)?) else { return Ok(None) };
    Ok(Some(BareSignature { key, statement, signature: row.get(5)? }))
}

/// The statement in a row: path, NarHash, NarSize and references, from column `first` on.
pub(super) fn parse_statement(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Statement>> {
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
