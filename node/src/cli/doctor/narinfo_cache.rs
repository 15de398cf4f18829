//! What Nix remembers of this gateway: in `binary-cache-v*.sqlite`, which it asks before it asks us.

use super::Facts;
use super::report::Look;
use crate::cli::findings::{Finding, quoted};
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nix's defaults, if nothing says how long it remembers, seconds: `narinfo-cache-negative-ttl` and `-positive-ttl`.
const NEGATIVE_TTL_S: u64 = 3_600;
const POSITIVE_TTL_S: u64 = 30 * 24 * 3_600;
/// Nix may be writing.
const BUSY_MAX: Duration = Duration::from_secs(1);
/// Rows that are looked at, newest first: more would take too long, and show nothing new.
const ROWS_MAX: u32 = 100_000;

/// What one of these files remembers of this gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Remembered {
    /// Paths that Nix takes for missing.
    missing: u64,
    /// Narinfos without a signature that Nix trusts.
    untrusted: u64,
}

pub(super) fn look(facts: &Facts, look: &mut Look) {
    // The builds of a daemon remember in root's directory, and a user's own commands in theirs.
    let mut dirs = BTreeSet::from([PathBuf::from("/root/.cache/nix")]);
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    dirs.extend(
        variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache"))).map(|dir| dir.join("nix")),
    );
    for dir in dirs {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                look.unseen(format!("{}: {error}", dir.display()));
                continue;
            }
        };
        let name =
            |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let all = entries.flatten().map(|entry| entry.path());
        let files = all.filter(|path| name(path).starts_with("binary-cache-v") && name(path).ends_with(".sqlite"));
        for file in files {
            look_at_file(facts, &file, look);
        }
    }
}

fn look_at_file(facts: &Facts, file: &Path, look: &mut Look) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let ttl = |name: &str, default| facts.nix.value(name).and_then(|value| value.parse().ok()).unwrap_or(default);
    let since = |ttl_s: u64| now.saturating_sub(ttl_s);
    let negative_ttl_s = ttl("narinfo-cache-negative-ttl", NEGATIVE_TTL_S);
    let trusted = facts.nix.words("trusted-public-keys");
    let names: BTreeSet<&str> = trusted.into_iter().filter_map(|key| key.split(':').next()).collect();
    let urls = [
        format!("http://{}", facts.settings.gateway.listen),
        format!("http://localhost:{}", facts.settings.gateway.listen.port()),
    ];
    let bounds = Bounds {
        missing_since: since(negative_ttl_s),
        present_since: since(ttl("narinfo-cache-positive-ttl", POSITIVE_TTL_S)),
    };
    let remembered = match read(file, &urls, &names, bounds) {
        Ok(remembered) => remembered,
        Err(error) => return look.unseen(format!("{}: {error}", file.display())),
    };
    let remove = facts.mender.as_root(&format!("rm -f {}*", quoted(&file.display().to_string())));
    if remembered.missing > 0 && negative_ttl_s > 0 {
        look.found(
            Finding::note(format!(
                "Nix remembers of {} paths that this gateway did not have them, for {negative_ttl_s} s each ({}): it does not \
                 ask for them again before",
                remembered.missing,
                file.display()
            ))
            .mended_by(facts.mender.nix_setting("narinfo-cache-negative-ttl", "0"))
            .mended_by(remove.clone()),
        );
    }
    if remembered.untrusted > 0 {
        look.found(
            Finding::warning(format!(
                "Nix remembers {} narinfos of this gateway without a signature that it trusts, for 30 days ({}): it refuses \
                 these paths and asks for no better narinfo",
                remembered.untrusted,
                file.display()
            ))
            .mended_by(remove),
        );
    }
}

/// From when on what was remembered still counts, seconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    missing_since: u64,
    present_since: u64,
}

fn read(file: &Path, urls: &[String; 2], trusted: &BTreeSet<&str>, bounds: Bounds) -> rusqlite::Result<Remembered> {
    // It is Nix's own file, and Nix may be writing to it.
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(BUSY_MAX)?;
    let mut statement = connection.prepare(
        "select NARs.present, NARs.timestamp, NARs.sigs, NARs.ca from NARs join BinaryCaches on NARs.cache = BinaryCaches.id \
         where rtrim(BinaryCaches.url, '/') in (?1, ?2) order by NARs.timestamp desc limit ?3",
    )?;
    let mut rows = statement.query(rusqlite::params![urls[0], urls[1], ROWS_MAX])?;
    let mut remembered = Remembered::default();
    while let Some(row) = rows.next()? {
        let (is_present, at): (bool, u64) = (row.get(0)?, row.get::<_, i64>(1)?.try_into().unwrap_or(0));
        let (signatures, address): (Option<String>, Option<String>) = (row.get(2)?, row.get(3)?);
        let is_signed = signatures
            .unwrap_or_default()
            .split_whitespace()
            .any(|signature| signature.split(':').next().is_some_and(|name| trusted.contains(name)));
        if !is_present {
            remembered.missing += u64::from(at > bounds.missing_since);
        } else if !is_signed && address.is_none_or(|address| address.is_empty()) {
            remembered.untrusted += u64::from(at > bounds.present_since);
        }
    }
    Ok(remembered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_still_counts_of_this_gateway_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("binary-cache-v6.sqlite");
        // The tables as Nix 2.8 makes them.
        Connection::open(&file)
            .unwrap()
            .execute_batch(
                "create table BinaryCaches (id integer primary key autoincrement not null, url text unique not null, \
                 timestamp integer not null, storeDir text not null, wantMassQuery integer not null, priority integer not null);
                 create table NARs (cache integer not null, hashPart text not null, namePart text, url text, \
                 compression text, fileHash text, fileSize integer, narHash text, narSize integer, refs text, deriver text, \
                 sigs text, ca text, timestamp integer not null, present integer not null, primary key (cache, hashPart));
                 insert into BinaryCaches values (1, 'http://127.0.0.1:7281', 0, '/nix/store', 1, 30), (2, 'https://x', 0, '/nix/store', 1, 40);
                 insert into NARs (cache, hashPart, timestamp, present) values (1, 'a', 900, 0), (1, 'b', 100, 0), (2, 'a', 900, 0);
                 insert into NARs (cache, hashPart, timestamp, present, sigs, ca) values \
                 (1, 'c', 900, 1, 'k-1:AA== other:BB==', null), (1, 'd', 900, 1, 'other:BB==', null), \
                 (1, 'e', 900, 1, 'other:BB==', 'fixed:r:x'), (1, 'f', 10, 1, '', null);",
            )
            .unwrap();
        let urls = ["http://127.0.0.1:7281", "http://localhost:7281"].map(str::to_owned);
        let bounds = Bounds { missing_since: 500, present_since: 50 };
        let found = read(&file, &urls, &BTreeSet::from(["k-1"]), bounds).unwrap();
        assert_eq!(found, Remembered { missing: 1, untrusted: 1 });
        fs::write(&file, "no database").unwrap();
        assert!(read(&file, &urls, &BTreeSet::new(), bounds).is_err());
    }
}
