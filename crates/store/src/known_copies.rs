//! The layouts of copies that were walked, and whether their NarHash was right. Memory is bounded; the
//! least recently used go first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use narmesh_protocol::HashPart;
use parking_lot::Mutex;

use crate::by_use::ByUse;
use crate::failed_copies::Registration;
use crate::layout::Layout;
use crate::nar_trees::NarTrees;

/// Memory for all layouts together, bytes.
const BYTES_MAX: usize = 32 << 20;
/// Memory of one entry beside its layout, bytes: its nodes in two maps. A guess, not measured.
const ENTRY_BYTES: usize = 256;

/// What we know about one copy.
#[derive(Clone, Debug)]
pub(crate) struct KnownCopy {
    pub(crate) layout: Arc<Layout>,
    /// Whether its whole NAR was hashed and the NarHash was right.
    pub(crate) is_verified: bool,
}

/// All known copies, shared by the store and its open streams.
#[derive(Debug)]
pub(crate) struct KnownCopies {
    copies: Mutex<ByUse<(Registration, KnownCopy)>>,
    hashed_bytes: AtomicU64,
    /// The trees of their NARs.
    pub(crate) trees: NarTrees,
}

impl Default for KnownCopies {
    fn default() -> Self {
        Self { copies: Mutex::new(ByUse::new(BYTES_MAX)), hashed_bytes: AtomicU64::new(0), trees: NarTrees::default() }
    }
}

impl KnownCopies {
    /// What we know about the copy with this registration.
    pub(crate) fn get(&self, part: &HashPart, registration: &Registration) -> Option<KnownCopy> {
        let mut copies = self.copies.lock();
        let (registered, copy) = copies.get(part)?;
        // Registered anew, its contents may be others.
        if registered != registration {
            copies.remove(part);
            return None;
        }
        Some(copy.clone())
    }

    /// Keeps a layout. A verified copy is not replaced by one that is not verified.
    pub(crate) fn keep(&self, part: HashPart, registration: Registration, layout: Layout, is_verified: bool) {
        let mut copies = self.copies.lock();
        if !is_verified && copies.get(&part).is_some_and(|(known, copy)| *known == registration && copy.is_verified) {
            return;
        }
        let bytes = layout.bytes() + ENTRY_BYTES;
        copies.put(part, bytes, (registration, KnownCopy { layout: Arc::new(layout), is_verified }));
    }

    /// Drops a copy that has changed.
    pub(crate) fn forget(&self, part: &HashPart) {
        self.copies.lock().remove(part);
    }

    /// Counts bytes that were hashed.
    pub(crate) fn count_hashed(&self, bytes: usize) {
        self.hashed_bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Relaxed);
    }

    /// Bytes hashed since the start.
    pub(crate) fn hashed_bytes(&self) -> u64 {
        self.hashed_bytes.load(Relaxed)
    }
}
