//! What changed in a store.

use narmesh_protocol::HashPart;

/// Changes of a store. A path that was registered anew is in both `removed` and `added`: apply removals first.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct StoreChange {
    /// Paths that became valid.
    pub added: Vec<HashPart>,
    /// Paths that are no longer valid.
    pub removed: Vec<HashPart>,
    /// Paths that are still valid, but whose copy failed its NarHash or could not be read.
    pub failed: Vec<HashPart>,
    /// Paths that failed before, and whose files were replaced or which were registered anew since.
    pub mended: Vec<HashPart>,
}

impl StoreChange {
    /// Whether there is no change.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.failed.is_empty() && self.mended.is_empty()
    }
}
