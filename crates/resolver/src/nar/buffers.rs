//! The memory that NAR bodies share.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A bound on what all bodies together hold, in KiB.
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

    /// So many bytes, if they are free now.
    pub(crate) fn try_take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free_kib).try_acquire_many_owned(self.kib(bytes)).ok()
    }

    /// So many bytes, after those who came before.
    pub(crate) async fn take(&self, bytes: u64) -> OwnedSemaphorePermit {
        Arc::clone(&self.free_kib).acquire_many_owned(self.kib(bytes)).await.expect("nobody closes the semaphore")
    }

    fn kib(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(1_024)).unwrap_or(u32::MAX).min(self.kib_max)
    }
}

/// Bytes and their share of the memory, which goes with them: hyper lets go of a body as soon as it has taken the last of it, and
/// may hold that for as long as the client does not read.
pub(crate) struct Held {
    bytes: Vec<u8>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// `permit` covers `bytes`; without one they are too few to count.
    pub(crate) fn new(bytes: Vec<u8>, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { bytes, _permit: permit }
    }

    /// The permit is given back when the last clone of the bytes is dropped.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
