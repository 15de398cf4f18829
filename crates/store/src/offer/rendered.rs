//! Keeps rendered narinfos, so that nothing is signed twice.

use super::OfferedPath;
use crate::by_use::ByUse;
use crate::database::Stamp;
use narmesh_protocol::HashPart;
use std::sync::Arc;

/// Memory for all rendered narinfos, bytes: about 14,000 paths, more than an ordinary store offers.
const BYTES_MAX: usize = 32 << 20;
/// Memory of an entry besides its texts, bytes: two map nodes, the parsed fields and their
/// allocations. A guess, not measured.
const ENTRY_OVERHEAD_BYTES: usize = 512;

/// A rendered narinfo with the row, the database state and the policy for which it is valid.
#[derive(Clone, Debug)]
pub(super) struct Rendered {
    pub(super) path: Arc<OfferedPath>,
    pub(super) row: i64,
    pub(super) stamp: Stamp,
    pub(super) rules_number: u64,
}

/// Rendered narinfos by hash part; the least recently used go first.
#[derive(Debug)]
pub(super) struct RenderedCache(ByUse<Rendered>);

impl Default for RenderedCache {
    fn default() -> Self {
        Self(ByUse::new(BYTES_MAX))
    }
}

impl RenderedCache {
    pub(super) fn get(&mut self, part: &HashPart) -> Option<Rendered> {
        self.0.get(part).cloned()
    }

    pub(super) fn put(&mut self, part: HashPart, rendered: Rendered) {
        self.0.put(part, bytes(&rendered), rendered);
    }

    pub(super) fn remove(&mut self, part: &HashPart) {
        self.0.remove(part);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Memory of an entry, bytes. The text counts twice, because the parsed fields repeat it.
fn bytes(rendered: &Rendered) -> usize {
    2 * rendered.path.narinfo_text.len() + ENTRY_OVERHEAD_BYTES
}
