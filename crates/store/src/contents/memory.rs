//! The memory that listings of directories may hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all listings hold together beyond [`FREE_BYTES`] each. A directory of 100,000 entries takes 2 to 5 MiB.
const SHARED_BYTES_MAX: usize = 32 << 20;
/// What each listing may hold without asking: the directories of nearly all store paths. The gateway's 512 connections then
/// hold 32 MiB together.
const FREE_BYTES: usize = 64 << 10;
/// What is taken from the shared memory at a time.
const STEP_BYTES: usize = 64 << 10;

/// Counts what listings hold.
#[derive(Debug, Default)]
pub(crate) struct ListingMemory {
    shared_bytes: AtomicUsize,
}

/// The memory of one listing; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ListingShare {
    memory: Arc<ListingMemory>,
    held_bytes: usize,
    taken_bytes: usize,
}

impl ListingShare {
    pub(crate) fn new(memory: &Arc<ListingMemory>) -> Self {
        Self { memory: Arc::clone(memory), held_bytes: 0, taken_bytes: 0 }
    }

    /// Takes memory for as many more bytes; `false` if there is none.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        self.held_bytes += bytes;
        while self.held_bytes > FREE_BYTES + self.taken_bytes {
            let before = self.memory.shared_bytes.fetch_add(STEP_BYTES, Ordering::Relaxed);
            self.taken_bytes += STEP_BYTES;
            if before + STEP_BYTES > SHARED_BYTES_MAX {
                return false;
            }
        }
        true
    }

    /// Gives back the memory of a directory that was listed to its end.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
        while self.taken_bytes >= STEP_BYTES && self.held_bytes + STEP_BYTES <= FREE_BYTES + self.taken_bytes {
            self.taken_bytes -= STEP_BYTES;
            self.memory.shared_bytes.fetch_sub(STEP_BYTES, Ordering::Relaxed);
        }
    }
}

impl Drop for ListingShare {
    fn drop(&mut self) {
        self.memory.shared_bytes.fetch_sub(self.taken_bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let memory = Arc::<ListingMemory>::default();
        let mut small = ListingShare::new(&memory);
        assert!(small.take(FREE_BYTES));
        assert_eq!(memory.shared_bytes.load(Ordering::Relaxed), 0);
        let mut large = ListingShare::new(&memory);
        assert!(large.take(SHARED_BYTES_MAX));
        let mut other = ListingShare::new(&memory);
        assert!(other.take(FREE_BYTES) && other.take(FREE_BYTES) && !other.take(1));
        drop(other);
        large.give_back(SHARED_BYTES_MAX / 2);
        assert!(ListingShare::new(&memory).take(SHARED_BYTES_MAX / 4));
        drop((small, large));
        assert_eq!(memory.shared_bytes.load(Ordering::Relaxed), 0);
    }
}
