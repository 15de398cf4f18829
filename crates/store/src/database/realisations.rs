//! The queries on what Nix notes of content-addressed derivations. Their tables are there only if the experimental feature
//! was ever switched on.

use super::Database;
use super::rows::parse_signatures;
use crate::StoreError;
use narmesh_protocol::{Realisation, RealisationId};
use rusqlite::{Connection, OptionalExtension, params};

/// Most dependents of a realisation; one that has more is not given, as its text would be longer than any that is read.
const DEPENDENTS_MAX: usize = 5_000;

const REALISATION_SQL: &str = "SELECT Realisations.id, ValidPaths.path, Realisations.signatures FROM Realisations \
    JOIN ValidPaths ON Realisations.outputPath = ValidPaths.id WHERE drvPath = ?1 AND outputName = ?2 \
    ORDER BY Realisations.id LIMIT 1";
const DEPENDENTS_SQL: &str = "SELECT Realisations.drvPath, Realisations.outputName, ValidPaths.path FROM RealisationsRefs \
    JOIN Realisations ON RealisationsRefs.realisationReference = Realisations.id \
    JOIN ValidPaths ON Realisations.outputPath = ValidPaths.id WHERE RealisationsRefs.referrer = ?1 LIMIT ?2";

/// A realisation as its rows say it, unparsed.
struct RawRealisation {
    out_path: String,
    signatures: Option<String>,
    dependents: Vec<[String; 3]>,
}

impl Database {
    /// The realisation with this id, with the signatures that Nix noted.
    pub(crate) fn read_realisation(&self, id: &RealisationId) -> Result<Option<Realisation>, StoreError> {
        let found = self.query(|connection| match read_raw(connection, id) {
            Ok(found) => Ok(found),
            // SQLite has no code of its own for this error.
            Err(error) if error.to_string().contains("no such table: Realisations") => Ok(None),
            Err(error) => Err(self.sqlite(error)),
        })?;
        let Some(raw) = found.flatten() else { return Ok(None) };
        let wrong = |column| StoreError::Row { row: 0, path: raw.out_path.clone(), column };
        let path = |text: &str, column| self.store_dir.parse_path(text).map_err(|_| wrong(column));
        let dependents = raw.dependents.iter().map(|[hash, output, dependent]| {
            let id = RealisationId::new(hash, output).map_err(|_| wrong("Realisations.drvPath"))?;
            Ok((id, path(dependent, "Realisations.outputPath")?))
        });
        Ok(Some(Realisation {
            id: id.clone(),
            out_path: path(&raw.out_path, "Realisations.outputPath")?,
            dependents: dependents.collect::<Result<_, StoreError>>()?,
            signatures: parse_signatures(raw.signatures.as_deref()),
        }))
    }
}

fn read_raw(connection: &Connection, id: &RealisationId) -> rusqlite::Result<Option<RawRealisation>> {
    // One transaction for both queries, so that the dependents belong to this row.
    let transaction = connection.unchecked_transaction()?;
    let found = transaction
        .prepare_cached(REALISATION_SQL)?
        .query_row([id.derivation_hash().as_str(), id.output()], |row| {
            Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let Some((row, out_path, signatures)) = found else { return Ok(None) };
    let mut statement = transaction.prepare_cached(DEPENDENTS_SQL)?;
    let limit = i64::try_from(DEPENDENTS_MAX + 1).unwrap_or(i64::MAX);
    let dependents = statement.query_map(params![row, limit], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?]))?;
    let dependents = dependents.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok((dependents.len() <= DEPENDENTS_MAX).then_some(RawRealisation { out_path, signatures, dependents }))
}
