//! What the index has to know of a path, read from its row and from derivations.

use super::Shared;
use super::index::Entry;
use super::policy::{NAR_BYTES_MAX, Origin, Withheld, origin, read_builders_word, read_built_names};
use crate::{PathInfo, StoreError};
use narmesh_protocol::{HashPart, NarInfo, StorePath};

impl Shared {
    pub(super) fn read_entry(&self, row: i64, info: &PathInfo) -> Result<Entry, StoreError> {
        Ok(self.make_entry(row, info, &self.store.read_derivers(info)?))
    }

    /// A derivation counts as an output, so that its contents vouch for it; what is only called so is a source as any other.
    /// What forbids the substitution of its outputs withholds it as well.
    pub(super) fn make_entry(&self, row: i64, info: &PathInfo, derivers: &[StorePath]) -> Entry {
        let is_derivation = info.path.is_derivation();
        let built_names = is_derivation.then(|| read_built_names(&self.store, &info.path)).flatten();
        let itself = if is_derivation { std::slice::from_ref(&info.path) } else { &[] };
        Entry {
            row,
            path: info.path.clone(),
            nar_size: info.nar_size,
            origin: if built_names.is_some() { Origin::Output } else { origin(&self.store, info, derivers) },
            word: read_builders_word(&self.store, &[derivers, itself].concat()),
            builds: is_derivation.then(|| built_names.unwrap_or_default()),
            references: references(info).collect(),
            fault: self.store.find_fault(row, info),
            excess: find_excess(info),
        }
    }
}

/// Why no peer could take this path, as its row alone tells: nothing of its copy is looked at.
pub(super) fn find_excess(info: &PathInfo) -> Option<Withheld> {
    match () {
        () if info.nar_size > NAR_BYTES_MAX => Some(Withheld::NarTooLarge),
        () if narinfo_bytes(info) > NarInfo::BYTES_MAX => Some(Withheld::NarInfoTooLong),
        () => None,
    }
}

/// An upper bound for the length of the path's narinfo, bytes: the base names of its references, each with hash part, dash
/// and blank, and the lines that every narinfo has, with 64 signatures.
fn narinfo_bytes(info: &PathInfo) -> usize {
    const OTHER_LINES_BYTES_MAX: usize = 16 << 10;
    OTHER_LINES_BYTES_MAX + info.references.iter().map(|path| path.name().len() + 34).sum::<usize>()
}

/// Hash parts of all references except the path itself.
fn references(info: &PathInfo) -> impl Iterator<Item = HashPart> {
    info.references.iter().filter(|path| **path != info.path).map(StorePath::hash_part)
}
