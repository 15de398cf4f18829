//! The trees of NARs of ours, kept as they are computed.
//!
//! A tree follows from the NAR alone, so it stays true whatever becomes of our copy: whoever is sent something else finds
//! out by the tree.

use std::sync::Arc;

use narmesh_protocol::nar_tree::NarTree;
use narmesh_protocol::{HashPart, NarHash};
use parking_lot::Mutex;

use crate::by_use::ByUse;

/// Memory for all trees together, bytes: those of some 64 GiB of NARs. The least recently used go first, and are computed
/// again when somebody asks.
const BYTES_MAX: usize = 8 << 20;
/// Memory of one entry beside its leaves, bytes: its nodes in two maps. A guess, not measured.
const ENTRY_BYTES: usize = 256;

/// What a peer may hear of the tree of a NAR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OfferedTree {
    /// No such NAR is offered, or one of its size has no tree.
    Absent,
    /// It has to be computed first, by reading [`NarStream::with_tree`](crate::NarStream::with_tree) to the end.
    NotComputed,
    /// This is it.
    Known(Arc<NarTree>),
}

/// All trees that are known, shared by the store and its open streams.
#[derive(Debug)]
pub(crate) struct NarTrees(Mutex<ByUse<(NarHash, Arc<NarTree>)>>);

impl Default for NarTrees {
    fn default() -> Self {
        Self(Mutex::new(ByUse::new(BYTES_MAX)))
    }
}

impl NarTrees {
    /// The tree of this NAR.
    pub(crate) fn get(&self, part: &HashPart, nar_hash: &NarHash) -> Option<Arc<NarTree>> {
        let mut trees = self.0.lock();
        let (known, tree) = trees.get(part)?;
        (known == nar_hash).then(|| Arc::clone(tree))
    }

    /// Keeps the tree of a NAR whose NarHash was right.
    pub(crate) fn keep(&self, part: HashPart, nar_hash: NarHash, tree: NarTree) {
        let bytes = size_of_val(tree.leaves()) + ENTRY_BYTES;
        self.0.lock().put(part, bytes, (nar_hash, Arc::new(tree)));
    }
}
