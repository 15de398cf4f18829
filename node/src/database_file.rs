//! The SQLite databases in the state directory: their files made, checked, brought to today's schema, moved aside when they
//! cannot be used.

use crate::regular_file::{Lies, clear, move_aside, moved_aside, tell_moved, with_suffix};
use rusqlite::{Connection, TransactionBehavior};
use std::io;
use std::path::{Path, PathBuf};

/// Most files kept that could not be used.
pub(crate) const SET_ASIDE_MAX: usize = 3;

/// Why a database is not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// SQLite failed.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// What is in it is damaged or not ours.
    #[error("{0}")]
    Content(String),
    /// Nothing is wrong with it.
    #[error("written by a later narmesh (schema version {0})")]
    Later(i64),
}

/// Whether a database may hold nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Empty {
    /// It is to be made.
    Allowed,
    /// It was made before. SQLite takes a file that is empty, or shorter than a page, for a new database.
    Damaged,
}

/// What SQLite keeps beside a database.
const SIBLINGS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Why SQLite is not to be let near a database: it, or what belongs to it, is something else than a file, and would hang it
/// or break it.
pub(crate) fn why_no_file(path: &Path) -> io::Result<Option<String>> {
    if let Some(why) = Lies::at(path)?.why_no_file() {
        return Ok(Some(why));
    }
    for sibling in SIBLINGS.map(|suffix| with_suffix(path, suffix)) {
        if let Some(why) = Lies::at(&sibling)?.why_no_file() {
            return Ok(Some(format!("{}: {why}", sibling.display())));
        }
    }
    Ok(None)
}

/// Moves aside what lies where SQLite keeps the log of this database, if that is no file. With the database itself
/// nothing is wrong then.
pub(crate) fn clear_siblings(path: &Path) -> io::Result<()> {
    for sibling in SIBLINGS.map(|suffix| with_suffix(path, suffix)) {
        match Lies::at(&sibling)? {
            Lies::Nothing | Lies::File => {}
            Lies::Directory => tell_moved(&sibling, "a directory")?,
            Lies::Other(what) => tell_moved(&sibling, what)?,
        }
    }
    Ok(())
}

/// Sets WAL, checks the pages and takes the migrations that lack.
pub(crate) fn prepare(connection: &mut Connection, migrations: &[&str], empty: Empty) -> Result<(), OpenError> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
    if verdict != "ok" {
        return Err(OpenError::Content(verdict));
    }
    migrate(connection, migrations, empty)?;
    let there = schema(connection)?;
    // Somebody's index or trigger beside ours does no harm.
    match expected_schema(migrations)?.into_iter().find(|ours| !there.contains(ours)) {
        Some((missing, _)) => {
            Err(OpenError::Content(format!("`{missing}` of its schema version is missing or differs")))
        }
        None => Ok(()),
    }
}

/// Every table and index, with the statement that made it.
fn schema(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let query = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY name";
    connection.prepare(query)?.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// What the migrations make of an empty database.
fn expected_schema(migrations: &[&str]) -> rusqlite::Result<Vec<(String, String)>> {
    let empty = Connection::open_in_memory()?;
    migrations.iter().try_for_each(|step| empty.execute_batch(step))?;
    schema(&empty)
}

/// One step per version; `PRAGMA user_version` counts those already taken.
pub(crate) fn migrate(connection: &mut Connection, migrations: &[&str], empty: Empty) -> Result<(), OpenError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let taken: i64 = transaction.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    let Some(missing) = usize::try_from(taken).ok().and_then(|taken| migrations.get(taken..)) else {
        return Err(OpenError::Later(taken));
    };
    if taken == 0 && empty == Empty::Damaged {
        return Err(OpenError::Content("it holds no state".to_owned()));
    }
    for step in missing {
        transaction.execute_batch(step)?;
    }
    if !missing.is_empty() {
        transaction.pragma_update(None, "user_version", i64::try_from(migrations.len()).unwrap_or(i64::MAX))?;
    }
    transaction.commit()?;
    Ok(())
}

/// Makes a state directory that is missing (mode 0750).
pub(crate) fn make_directory(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)
}

/// Moves a database and its log to `<name>.corrupt-<unix time>`, and deletes the oldest such files beyond three, with all that
/// belongs to them.
pub(crate) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let moved_to = move_aside(path)?;
    // The log belongs to the old file; SQLite finds it under the new name.
    move_if_there(&with_suffix(path, "-wal"), &with_suffix(&moved_to, "-wal"))?;
    remove_siblings(path);
    let mut kept = moved_aside(path)?;
    kept.sort();
    for (_, old) in kept.iter().rev().skip(SET_ASIDE_MAX) {
        // Of a directory nobody knows what is in it.
        if old.is_dir() {
            continue;
        }
        // Who read what can be read of it left an index of its log beside it.
        for suffix in ["", "-wal", "-shm"] {
            ignore_missing(std::fs::remove_file(with_suffix(old, suffix)))?;
        }
    }
    Ok(moved_to)
}

/// Deletes the logs of a database that is not there.
pub(crate) fn remove_siblings(path: &Path) {
    for suffix in SIBLINGS {
        // What cannot be removed makes the new file fail to open, and that is reported.
        drop(clear(&with_suffix(path, suffix)));
    }
}

fn move_if_there(from: &Path, to: &Path) -> io::Result<()> {
    ignore_missing(std::fs::rename(from, to))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
