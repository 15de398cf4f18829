//! The memory that all NAR bodies share.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A bound on what all bodies together hold. It is counted in KiB.
#[derive(Clone, Debug)]
pub(crate) struct Buffers {
    free_kib: Arc<Semaphore>,
    kib_max: u32,
}

impl Buffers {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let kib_max = u32::try_from(bytes_max / 1_024).unwrap_or(u32::MAX >> 3);
        Self { free_kib: Arc::new(Semaphore::new(kib_max as usize)), kib_max }
    }

    /// Takes this many bytes, if they are free now.
    pub(crate) fn try_take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free_kib).try_acquire_many_owned(self.kib(bytes)).ok()
    }

    /// Takes this many bytes, in the order of the callers; waits until they are free.
    pub(crate) async fn take(&self, bytes: u64) -> OwnedSemaphorePermit {
        Arc::clone(&self.free_kib).acquire_many_owned(self.kib(bytes)).await.expect("nobody closes the semaphore")
    }

    fn kib(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(1_024)).unwrap_or(u32::MAX).min(self.kib_max)
    }
}

/// Bytes together with their share of the memory. The share stays with the bytes because hyper drops a body as soon as
/// it has taken the last bytes, but may hold those for as long as the client does not read.
pub(crate) struct Held {
    bytes: Vec<u8>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// `permit` covers `bytes`; without one, there are too few bytes to count.
    pub(crate) fn new(bytes: Vec<u8>, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { bytes, _permit: permit }
    }

    /// The share of the memory is free again when the last clone of the bytes is dropped.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
