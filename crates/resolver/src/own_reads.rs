//! Reads of our own store. While its database is locked they wait instead of failing, because "not now" must not become
//! "gone".

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use narmesh_store::StoreError;
use tokio::sync::Mutex;

/// Time between two attempts; each waits up to 250 ms for the lock itself.
const PAUSE: Duration = Duration::from_millis(100);

/// Our own store cannot be read now, and probably can within seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotNow;

/// Why our own store gave no answer.
#[derive(Debug)]
pub enum Unread {
    /// It could not be read for as long as a lookup may take. This says nothing about what is in it.
    NotNow,
    /// It cannot be read.
    Failed(StoreError),
}

/// The result of a read, unless the read failed with an error that passes soon.
pub(crate) fn unless_not_now<T>(outcome: Result<T, StoreError>) -> Result<Result<T, StoreError>, NotNow> {
    match outcome {
        Err(error) if error.passes_soon() => Err(NotNow),
        outcome => Ok(outcome),
    }
}

/// Runs reads on blocking threads. While the store is locked one read tries at a time, so that those that wait take no
/// thread each.
#[derive(Debug, Default)]
pub(crate) struct OwnReads {
    /// Whether the last attempt failed.
    is_locked: AtomicBool,
    trying: Mutex<()>,
}

impl OwnReads {
    /// Reads once, or not at all while others wait for the lock.
    pub(crate) async fn try_read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, NotNow> + Send + 'static,
    ) -> Result<T, NotNow> {
        if self.is_locked.load(Ordering::Relaxed) { Err(NotNow) } else { self.read(read).await }
    }

    /// Reads until it succeeds. The caller bounds the time.
    pub(crate) async fn wait_read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, NotNow> + Clone + Send + 'static,
    ) -> T {
        // Many that tried at once would wait for the same lock, each on a thread of its own.
        let _turn = self.trying.lock().await;
        loop {
            if let Ok(value) = self.read(read.clone()).await {
                return value;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads, and waits for up to `longest` if the store is locked.
    pub(crate) async fn read_within<T: Send + 'static>(
        &self,
        longest: Duration,
        read: impl FnOnce() -> Result<T, NotNow> + Clone + Send + 'static,
    ) -> Result<T, NotNow> {
        match self.try_read(read.clone()).await {
            Err(NotNow) => tokio::time::timeout(longest, self.wait_read(read)).await.map_err(|_| NotNow),
            value => value,
        }
    }

    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, NotNow> + Send + 'static,
    ) -> impl Future<Output = Result<T, NotNow>> {
        let reading = tokio::task::spawn_blocking(read);
        async move {
            // The runtime is ending, or the thread panicked.
            let outcome = reading.await.unwrap_or(Err(NotNow));
            self.is_locked.store(outcome.is_err(), Ordering::Relaxed);
            outcome
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    #[tokio::test(start_paused = true)]
    async fn a_locked_store_is_tried_by_one_at_a_time_until_it_can_be_read() {
        let (reads, is_free) = (Arc::new(OwnReads::default()), Arc::new(AtomicBool::new(false)));
        let (tries, trying_max) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let read = {
            let (is_free, tries, trying_max) = (Arc::clone(&is_free), Arc::clone(&tries), Arc::clone(&trying_max));
            let trying = Arc::new(AtomicUsize::new(0));
            move || {
                tries.fetch_add(1, Ordering::SeqCst);
                trying_max.fetch_max(trying.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                trying.fetch_sub(1, Ordering::SeqCst);
                if is_free.load(Ordering::SeqCst) { Ok(7) } else { Err(NotNow) }
            }
        };
        assert_eq!(reads.try_read(read.clone()).await, Err(NotNow));
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let (reads, read) = (Arc::clone(&reads), read.clone());
                tokio::spawn(async move { reads.read_within(Duration::from_secs(60), read).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!((2..=60).contains(&tries.load(Ordering::SeqCst)), "{tries:?}");
        is_free.store(true, Ordering::SeqCst);
        for waiter in waiting {
            assert_eq!(waiter.await.unwrap(), Ok(7));
        }
        assert_eq!(trying_max.load(Ordering::SeqCst), 1);
        assert_eq!(reads.try_read(read).await, Ok(7), "nobody waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_stays_locked_is_waited_for_until_the_time_is_over() {
        let (reads, started) = (OwnReads::default(), tokio::time::Instant::now());
        let read = || Err::<(), _>(NotNow);
        assert_eq!(reads.read_within(Duration::from_secs(2), read).await, Err(NotNow));
        assert!(started.elapsed() >= Duration::from_secs(2));
    }
}
