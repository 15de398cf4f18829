//! The SQLite databases in the state directory: their files made, checked, brought to today's schema, moved aside when they
//! cannot be used.

use rusqlite::{Connection, TransactionBehavior};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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

/// Sets WAL, checks the pages and takes the migrations that lack.
pub(crate) fn prepare(connection: &mut Connection, migrations: &[&str], empty: Empty) -> Result<(), OpenError> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
    if verdict != "ok" {
        return Err(OpenError::Content(verdict));
    }
    migrate(connection, migrations, empty)
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
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut names = set_aside_files(path)?;
    // Later than all others, so that the clock may stand still or go back and still the oldest goes first.
    let stamp = names.iter().map(|(taken, _)| taken + 1).max().unwrap_or(0).max(now_s);
    let moved_to = with_suffix(path, &format!(".corrupt-{stamp}"));
    std::fs::rename(path, &moved_to)?;
    // The log belongs to the old file; SQLite finds it under the new name.
    move_if_there(&with_suffix(path, "-wal"), &with_suffix(&moved_to, "-wal"))?;
    remove_siblings(path);
    names.push((stamp, moved_to.clone()));
    names.sort();
    for (_, old) in names.iter().rev().skip(SET_ASIDE_MAX) {
        // Who read what can be read of it left an index of its log beside it.
        for suffix in ["", "-wal", "-shm"] {
            remove_if_there(&with_suffix(old, suffix))?;
        }
    }
    Ok(moved_to)
}

/// The files moved aside, with their numbers.
pub(crate) fn set_aside_files(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let prefix = format!("{name}.corrupt-");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path.parent().unwrap_or(Path::new(".")))? {
        let entry = entry?;
        let stamp = entry.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
        found.extend(stamp.map(|stamp: u64| (stamp, entry.path())));
    }
    Ok(found)
}

/// Deletes the logs of a database that is not there.
pub(crate) fn remove_siblings(path: &Path) {
    for suffix in ["-wal", "-shm", "-journal"] {
        // What cannot be removed makes the new file fail to open, and that is reported.
        drop(std::fs::remove_file(with_suffix(path, suffix)));
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn move_if_there(from: &Path, to: &Path) -> io::Result<()> {
    ignore_missing(std::fs::rename(from, to))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    ignore_missing(std::fs::remove_file(path))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
