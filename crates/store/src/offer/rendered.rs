//! Rendered narinfos, so that nothing is signed twice.

use super::OfferedPath;
use crate::database::Stamp;
use narmesh_protocol::HashPart;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Bytes of all rendered answers: about 14,000 paths, more than an ordinary store offers.
const BYTES_MAX: usize = 32 << 20;
/// What an entry takes besides its texts: two map nodes, the parsed fields and their allocations. A guess, not measured.
const ENTRY_OVERHEAD_BYTES: usize = 512;

/// An answer and the state of the world in which it was true.
#[derive(Clone, Debug)]
pub(super) struct Rendered {
    pub(super) path: Arc<OfferedPath>,
    pub(super) row: i64,
    pub(super) stamp: Stamp,
    pub(super) generation: u64,
}

/// Least recently used answers go first.
#[derive(Debug, Default)]
pub(super) struct RenderedCache {
    entries: HashMap<HashPart, (u64, Rendered)>,
    by_use: BTreeMap<u64, HashPart>,
    uses: u64,
    bytes: usize,
}

impl RenderedCache {
    pub(super) fn get(&mut self, part: &HashPart) -> Option<Rendered> {
        let (last_use, rendered) = self.entries.get_mut(part)?;
        self.by_use.remove(last_use);
        self.uses += 1;
        *last_use = self.uses;
        self.by_use.insert(self.uses, *part);
        Some(rendered.clone())
    }

    pub(super) fn put(&mut self, part: HashPart, rendered: Rendered) {
        self.remove(&part);
        self.bytes += bytes(&rendered);
        self.uses += 1;
        self.by_use.insert(self.uses, part);
        self.entries.insert(part, (self.uses, rendered));
        while self.bytes > BYTES_MAX {
            let Some((_, oldest)) = self.by_use.first_key_value() else { break };
            let oldest = *oldest;
            self.remove(&oldest);
        }
    }

    pub(super) fn remove(&mut self, part: &HashPart) {
        let Some((last_use, rendered)) = self.entries.remove(part) else { return };
        self.by_use.remove(&last_use);
        self.bytes -= bytes(&rendered);
    }

    pub(super) fn clear(&mut self) {
        *self = Self { uses: self.uses, ..Self::default() };
    }
}

/// The text twice, because the parsed fields repeat it.
fn bytes(rendered: &Rendered) -> usize {
    2 * rendered.path.narinfo_text.len() + ENTRY_OVERHEAD_BYTES
}
