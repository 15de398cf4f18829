//! How many requests for NARs may be under way at one peer.

use std::io;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests under way at one peer, together with [`TINY_MAX`]; further ones wait for one to end. A holder takes 64 streams,
/// and may not have heard yet that some were given up.
const IN_FLIGHT_MAX: usize = 48;
/// Requests for tiny NARs for which there is a slot although clients that do not read hold all others.
const TINY_MAX: usize = 8;
/// A NAR up to this size is tiny, as in the resolver.
const TINY_NAR_BYTES_MAX: u64 = 256 << 10;

/// The slots for requests at one peer.
pub(super) struct Slots {
    all: Arc<Semaphore>,
    tiny: Arc<Semaphore>,
}

impl Default for Slots {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(IN_FLIGHT_MAX)), tiny: Arc::new(Semaphore::new(TINY_MAX)) }
    }
}

impl Slots {
    /// Takes a slot for a NAR of this size; waits for one to be free.
    pub(super) async fn take(&self, nar_size: u64) -> io::Result<OwnedSemaphorePermit> {
        let of_all = Arc::clone(&self.all).acquire_owned();
        let slot = if nar_size <= TINY_NAR_BYTES_MAX {
            tokio::select! {
                // Whoever needs no slot of the tiny ones takes none.
                biased;
                slot = of_all => slot,
                slot = Arc::clone(&self.tiny).acquire_owned() => slot,
            }
        } else {
            of_all.await
        };
        slot.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn tiny_nar_gets_a_slot_although_large_ones_hold_all() {
        let slots = Slots::default();
        let large: Vec<_> = std::iter::from_fn(|| slots.take(60 << 20).now_or_never()).collect();
        assert_eq!(large.len(), IN_FLIGHT_MAX);
        let mut tiny: Vec<_> = std::iter::from_fn(|| slots.take(120).now_or_never()).collect();
        assert_eq!(tiny.len(), TINY_MAX);
        tiny.pop();
        assert!(slots.take(60 << 20).now_or_never().is_none());
        assert!(slots.take(120).now_or_never().is_some());
    }
}
