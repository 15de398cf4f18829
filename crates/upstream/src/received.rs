//! What has come of a file: how many bytes, and their hash where somebody wants to know it.

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes of one file, counted as they come.
#[derive(Debug)]
pub(crate) struct Received {
    bytes: AtomicU64,
    hasher: Option<Mutex<Sha256>>,
}

impl Received {
    pub(crate) fn new(is_hashed: bool) -> Self {
        Self { bytes: AtomicU64::new(0), hasher: is_hashed.then(Mutex::default) }
    }

    /// Notes the next bytes.
    pub(crate) fn take(&self, bytes: &[u8]) {
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Some(hasher) = &self.hasher {
            hasher.lock().update(bytes);
        }
    }

    /// The number of bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The hash of the bytes so far, if they are hashed.
    pub(crate) fn sha256(&self) -> Option<[u8; 32]> {
        self.hasher.as_ref().map(|hasher| hasher.lock().clone().finalize().into())
    }
}
