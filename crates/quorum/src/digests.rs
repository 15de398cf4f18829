//! What [`crate::reconcile`] computed of a ledger and need not compute again.

use crate::reconcile::NodeDigest;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Digests of what one builder said of the paths under a first byte, made when asked for: by readers of the ledger, hence the
/// lock, which nobody holds while computing. A copy of a ledger begins without.
#[derive(Debug, Default)]
pub(crate) struct Digests(Mutex<BTreeMap<(u16, u8), NodeDigest>>);

impl Clone for Digests {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Digests {
    pub(crate) fn forget(&self, builder: u16, top: u8) {
        self.all().remove(&(builder, top));
    }

    pub(crate) fn known(&self, builder: u16, top: u8) -> Option<NodeDigest> {
        self.all().get(&(builder, top)).copied()
    }

    pub(crate) fn remember(&self, builder: u16, top: u8, digest: NodeDigest) {
        self.all().insert((builder, top), digest);
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<(u16, u8), NodeDigest>> {
        // Each change of the map is whole, so that a panic elsewhere spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
