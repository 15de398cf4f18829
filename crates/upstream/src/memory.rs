//! Memory for decoders: one bound over all NARs that are being unpacked, of all caches. Whoever finds none waits.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory of all decoders, bytes: three of `xz -9`, or two of the largest window of zstd, or some 30 of the 8 MiB that are
/// usual.
const BYTES_MAX: u64 = 264 << 20;
/// Decoders up to this size have memory of their own, so that small NARs never wait behind large ones.
const SMALL_BYTES_MAX: u64 = 4 << 20;
/// Memory of those, bytes.
const ALL_SMALL_BYTES_MAX: u64 = 32 << 20;
/// Memory is short once somebody has waited for it for this long, as the resolver has it.
const MOMENT: Duration = Duration::from_secs(2);

/// The memory that all decoders share; cheap to clone.
#[derive(Clone, Debug)]
pub struct DecoderMemory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes_max: u64,
    large: Arc<Semaphore>,
    small: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
}

/// Those who wait, and since when.
#[derive(Debug, Default)]
struct Waiting {
    newest: u64,
    since: BTreeMap<u64, Instant>,
}

/// Memory for one decoder, until it is dropped.
#[derive(Debug)]
pub struct Memory(Option<OwnedSemaphorePermit>);

impl Default for DecoderMemory {
    fn default() -> Self {
        Self::new(BYTES_MAX)
    }
}

impl DecoderMemory {
    /// What all decoders together may take by default, bytes.
    pub const ALL_BYTES_MAX: u64 = BYTES_MAX + ALL_SMALL_BYTES_MAX;

    /// Memory of `bytes_max` bytes for decoders; small ones have their own beside it.
    pub fn new(bytes_max: u64) -> Self {
        let semaphore = |bytes| Arc::new(Semaphore::new(kib(bytes) as usize));
        let (large, small) = (semaphore(bytes_max), semaphore(ALL_SMALL_BYTES_MAX));
        Self(Arc::new(Inner { bytes_max, large, small, waiting: Mutex::default() }))
    }

    /// Takes memory for a decoder; waits behind whoever waits already. Who asks for more than there is gets all.
    pub async fn take(self, bytes: u64) -> Memory {
        if bytes == 0 {
            return Memory(None);
        }
        let semaphore = if bytes <= SMALL_BYTES_MAX { &self.0.small } else { &self.0.large };
        let kib = kib(bytes.min(self.0.bytes_max));
        if let Ok(permit) = Arc::clone(semaphore).try_acquire_many_owned(kib) {
            return Memory(Some(permit));
        }
        let _waits = Waits::begin(&self.0);
        // There cannot be an error: nobody closes it.
        Memory(Arc::clone(semaphore).acquire_many_owned(kib).await.ok())
    }

    /// Whether somebody has waited for more than a moment, so that clients that do not read should make place.
    pub fn is_short(&self) -> bool {
        self.0.waiting.lock().since.values().next().is_some_and(|since| since.elapsed() >= MOMENT)
    }
}

impl Memory {
    /// Gives back what is above `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        if let Some(permit) = &mut self.0 {
            let excess = permit.num_permits().saturating_sub(kib(bytes) as usize);
            drop(permit.split(excess));
        }
    }
}

struct Waits<'m> {
    memory: &'m Inner,
    number: u64,
}

impl<'m> Waits<'m> {
    fn begin(memory: &'m Inner) -> Self {
        let mut waiting = memory.waiting.lock();
        waiting.newest += 1;
        let number = waiting.newest;
        waiting.since.insert(number, Instant::now());
        Self { memory, number }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.memory.waiting.lock().since.remove(&self.number);
    }
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn decoders_wait_for_each_other_and_small_ones_do_not() {
        let memory = DecoderMemory::new(100 << 20);
        let take = |mib: u64| memory.clone().take(mib << 20).boxed();
        let mut first = take(60).now_or_never().expect("it is free");
        let mut second = take(60);
        assert!((&mut second).now_or_never().is_none());
        assert!(take(5).now_or_never().is_none(), "behind the second");
        let _small: Vec<_> = (0..8).map(|_| take(4).now_or_never().expect("they have their own")).collect();
        assert!(take(1).now_or_never().is_none());
        first.shrink_to(9 << 20);
        let second = second.now_or_never().expect("it was given back");
        drop((first, second));
        assert!(take(1_000).now_or_never().is_some(), "never more than there is");
        assert!(memory.0.waiting.lock().since.is_empty(), "who gave up waits no more");
    }
}
