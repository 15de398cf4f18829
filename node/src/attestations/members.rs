//! What the store, and the statements that are known, say of paths: their references and whether they are held. The
//! other half of a report, the verdicts, comes from the ledger.

use super::ledger::LedgerDb;
use anyhow::Context as _;
use narmesh_protocol::{HashPart, Statement, StorePath};
use narmesh_quorum::FingerprintDigest;
use narmesh_quorum::closure::ClosurePath;
use narmesh_store::{NixStore, PathInfo, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// The most paths that a closure may have; the largest systems have some 20,000.
const CLOSURE_MAX: usize = 1 << 20;

/// A path as the store has it. If the store does not have it, its references are all that any statement gives it.
/// `None` if nothing is known of it.
fn look_up_member(store: &NixStore, db: &LedgerDb, path: &StorePath) -> anyhow::Result<Option<ClosurePath>> {
    let info = store.read_path_info(&path.hash_part()).context("the Nix store")?;
    // Another name under the same hash part is another path, of which this row says nothing.
    if let Some(info) = info.filter(|info| info.path == *path) {
        return Ok(Some(held_member(store, &info)));
    }
    let statements = db.read_statements(&path.hash_part())?;
    // The path itself goes in with them, which tells a path without references from one of which nothing is attested.
    let references: BTreeSet<StorePath> = statements
        .into_iter()
        .filter(|statement| statement.path == *path)
        .flat_map(|statement| statement.references.into_iter().chain([statement.path]))
        .collect();
    let known = !references.is_empty();
    let member = ClosurePath {
        path: path.clone(),
        references: references.into_iter().collect(),
        content_addressed: false,
        held: None,
    };
    Ok(known.then_some(member))
}

/// The same; a path of which nothing is known has no references.
pub(super) fn find_member(store: &NixStore, db: &LedgerDb, path: &StorePath) -> anyhow::Result<ClosurePath> {
    let unknown = || ClosurePath { path: path.clone(), references: Vec::new(), content_addressed: false, held: None };
    Ok(look_up_member(store, db, path)?.unwrap_or_else(unknown))
}

/// A path and everything that it needs, as far as that is known here. `progress` is called with the number of paths so
/// far; its first error ends the search.
pub(super) fn find_closure_members(
    store: &NixStore,
    db: &LedgerDb,
    root: &StorePath,
    mut progress: impl FnMut(usize) -> io::Result<()>,
) -> anyhow::Result<Vec<ClosurePath>> {
    let mut members = BTreeMap::new();
    let mut seen = BTreeSet::from([root.clone()]);
    let mut open = vec![root.clone()];
    while let Some(path) = open.pop() {
        // Nothing is known of it: whoever judges the closure finds that it is missing.
        let Some(member) = look_up_member(store, db, &path)? else { continue };
        open.extend(member.references.iter().filter(|reference| seen.insert((*reference).clone())).cloned());
        // References come from statements of builders, which may name paths without end.
        anyhow::ensure!(seen.len() <= CLOSURE_MAX, "the closure of {root} has more than {CLOSURE_MAX} paths");
        members.insert(path, member);
        progress(members.len())?;
    }
    Ok(members.into_values().collect())
}

fn held_member(store: &NixStore, info: &PathInfo) -> ClosurePath {
    let statement = statement_of(info);
    ClosurePath {
        path: info.path.clone(),
        references: info.references.clone(),
        content_addressed: info.is_certified_by_content(store.store_dir()),
        held: Some(FingerprintDigest::of(store.store_dir(), &statement)),
    }
}

/// The rows of these paths. A path whose row cannot be read goes to `unread`; the others follow all the same.
pub(super) fn read_rows<'a>(
    store: &'a NixStore,
    hash_parts: impl IntoIterator<Item = HashPart> + 'a,
    unread: &'a mut Vec<(HashPart, StoreError)>,
) -> impl Iterator<Item = PathInfo> + 'a {
    hash_parts.into_iter().filter_map(|hash_part| match store.read_path_info(&hash_part) {
        Ok(info) => info,
        Err(error) => {
            unread.push((hash_part, error));
            None
        }
    })
}

/// The statement about a held path that an attestation of it makes.
pub(super) fn statement_of(info: &PathInfo) -> Statement {
    Statement {
        path: info.path.clone(),
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.clone(),
    }
}
