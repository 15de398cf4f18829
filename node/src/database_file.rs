//! The SQLite databases in the state directory. Their files are made, checked, migrated to the current schema, and
//! moved aside when they cannot be used.

use crate::regular_file::{Lies, clear, list_moved_aside, move_aside, tell_moved, with_suffix};
use rusqlite::{Connection, TransactionBehavior};
use std::io;
use std::path::{Path, PathBuf};

/// How many files that could not be used are kept.
pub(crate) const SET_ASIDE_MAX: usize = 3;

/// Why a database was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// SQLite failed.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// Its content is damaged or not ours.
    #[error("{0}")]
    Content(String),
    /// A later version wrote it; nothing else is wrong with it.
    #[error("written by a later narmesh (schema version {0})")]
    Later(i64),
}

/// Whether a database may still be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Empty {
    /// It may be: the file is new.
    Allowed,
    /// It was made before, so an empty one is damaged. SQLite takes an empty file, or one shorter than a page, for a
    /// new database.
    Damaged,
}

/// Suffixes of the files that SQLite keeps beside a database.
const SIBLINGS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Why SQLite must not open a database: the database or a file beside it is not a regular file, so that SQLite would
/// hang or fail.
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

/// Moves aside whatever is not a regular file where SQLite keeps the log of this database. The database itself is sound
/// then.
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

/// Sets WAL mode, checks the pages and runs the missing migrations.
pub(crate) fn prepare(connection: &mut Connection, migrations: &[&str], empty: Empty) -> Result<(), OpenError> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
    if verdict != "ok" {
        return Err(OpenError::Content(verdict));
    }
    migrate(connection, migrations, empty)?;
    let there = read_schema(connection)?;
    // A foreign index or trigger beside ours does no harm.
    match make_expected_schema(migrations)?.into_iter().find(|ours| !there.contains(ours)) {
        Some((missing, _)) => {
            Err(OpenError::Content(format!("its table or index `{missing}` is missing or differs from our schema")))
        }
        None => Ok(()),
    }
}

/// Every table and index, with the statement that made it.
fn read_schema(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let query = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY name";
    connection.prepare(query)?.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// The schema that the migrations give an empty database.
fn make_expected_schema(migrations: &[&str]) -> rusqlite::Result<Vec<(String, String)>> {
    let empty = Connection::open_in_memory()?;
    migrations.iter().try_for_each(|step| empty.execute_batch(step))?;
    read_schema(&empty)
}

/// Runs the missing migrations, one step per version; `PRAGMA user_version` counts the steps already taken.
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

/// Makes a state directory if it is missing (mode 0750).
pub(crate) fn make_directory(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)
}

/// Moves a database and its log to `<name>.corrupt-<unix time>`, and deletes all but the three newest of these, with
/// the files beside them.
pub(crate) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let moved_to = move_aside(path)?;
    // The log belongs to the old file. SQLite finds it under the new name, so it can still be read for a repair.
    move_if_there(&with_suffix(path, "-wal"), &with_suffix(&moved_to, "-wal"))?;
    remove_siblings(path);
    let mut kept = list_moved_aside(path)?;
    kept.sort();
    for (_, old) in kept.iter().rev().skip(SET_ASIDE_MAX) {
        // A directory may hold anything, so it is never deleted.
        if old.is_dir() {
            continue;
        }
        // A process that read what is still readable in it has left an index of its log (`-shm`) beside it.
        for suffix in ["", "-wal", "-shm"] {
            ignore_missing(std::fs::remove_file(with_suffix(old, suffix)))?;
        }
    }
    Ok(moved_to)
}

/// Deletes the logs of a database that does not exist.
pub(crate) fn remove_siblings(path: &Path) {
    for suffix in SIBLINGS {
        // If one cannot be removed, the new database fails to open, and that is reported.
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
