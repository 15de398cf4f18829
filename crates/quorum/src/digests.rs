//! Digests that [`crate::reconcile`] has computed from a ledger and need not compute again.

use crate::hash_tree::{Node, NodeDigest};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The root, its 16 children and their 256 children.
const SLOTS: usize = 1 + 16 + 256;

/// For each builder, the digests of the nodes down to the first byte. They are made on demand by readers of the ledger,
/// hence the lock, which nobody holds while computing. They take at most 5 kB for a builder. A copy of a ledger begins
/// without them.
#[derive(Debug, Default)]
pub(crate) struct Digests(Mutex<Vec<Slots>>);

/// The digests of one builder; empty before the first is known.
type Slots = Box<[Option<NodeDigest>]>;

impl Clone for Digests {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Digests {
    /// Forgets the digests that no longer hold: what this builder says of a path under this first byte has changed.
    pub(crate) fn forget(&self, builder: u16, top: u8) {
        if let Some(slots) = self.lock().get_mut(usize::from(builder)) {
            for slot in [0, 1, 2].map(|depth| slot(depth, top)).into_iter().flatten() {
                slots.iter_mut().skip(slot).take(1).for_each(|digest| *digest = None);
            }
        }
    }

    /// The known digests of this node, for each builder in the given order. Deeper nodes are never known.
    pub(crate) fn recall(&self, builders: &[u16], node: Node) -> Vec<Option<NodeDigest>> {
        let Some(slot) = slot_of(node) else { return vec![None; builders.len()] };
        let all = self.lock();
        let known = |builder: &u16| all.get(usize::from(*builder))?.get(slot).copied()?;
        builders.iter().map(known).collect()
    }

    /// Remembers the digests that were computed for these builders.
    pub(crate) fn remember(&self, builders: &[u16], node: Node, digests: impl Iterator<Item = NodeDigest>) {
        // Deeper nodes are too many to remember, and are compared only where the upper ones differ.
        let Some(slot) = slot_of(node) else { return };
        let mut all = self.lock();
        for (builder, digest) in builders.iter().zip(digests) {
            let builder = usize::from(*builder);
            // Builders are numbered as they are first heard of.
            if all.len() <= builder {
                all.resize_with(builder + 1, Box::default);
            }
            let Some(slots) = all.get_mut(builder) else { continue };
            // A builder takes this memory only once its statements are compared.
            if slots.is_empty() {
                *slots = vec![None; SLOTS].into_boxed_slice();
            }
            slots.iter_mut().skip(slot).take(1).for_each(|known| *known = Some(digest));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slots>> {
        // Each change is complete in itself, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slot_of(node: Node) -> Option<usize> {
    slot(node.depth, node.prefix.first().copied().unwrap_or(0))
}

/// The slot of the node at this depth above the hash parts that begin with the byte `top`.
fn slot(depth: u8, top: u8) -> Option<usize> {
    match depth {
        0 => Some(0),
        1 => Some(1 + usize::from(top >> 4)),
        2 => Some(1 + 16 + usize::from(top)),
        _ => None,
    }
}
