//! The memory that all NAR bodies share.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore};

use crate::turns::{Turns, User};

/// A bound on what all bodies together hold. It is counted in KiB.
///
/// There are two queues. In that of [`Buffers::take`] users take [turns](Turns), each of them in the order of his
/// requests, and what comes free is put by for the first. Somebody who waits there for much would keep everybody behind him waiting, so those who do wait in the
/// queue of [`Buffers::take_at_once`]: nothing is put by for them, the first of them tries again whenever something
/// comes free, and gets it if the other queue leaves enough. They may have to wait for as long as others go on taking,
/// so they are to bound their wait themselves.
#[derive(Clone, Debug)]
pub(crate) struct Buffers {
    free_kib: Arc<Semaphore>,
    kib_max: u32,
    /// Held by the first in the queue of [`Buffers::take`].
    turns: Turns,
    /// Held by the first in the queue of [`Buffers::take_at_once`].
    first: Arc<Mutex<()>>,
    freed: Arc<Notify>,
}

/// A share of the memory; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    // Dropped in this order: what is told to be free is free.
    _permit: OwnedSemaphorePermit,
    _notice: Notice,
}

/// Tells when it is dropped that memory may be free.
#[derive(Debug)]
struct Notice(Arc<Notify>);

impl Drop for Notice {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Buffers {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let kib_max = u32::try_from(bytes_max / 1_024).unwrap_or(u32::MAX >> 3);
        let free_kib = Arc::new(Semaphore::new(kib_max as usize));
        Self { free_kib, kib_max, turns: Turns::default(), first: Arc::default(), freed: Arc::default() }
    }

    /// Takes this many bytes, if they are free now.
    pub(crate) fn try_take(&self, bytes: u64) -> Option<Share> {
        let permit = Arc::clone(&self.free_kib).try_acquire_many_owned(self.kib(bytes)).ok()?;
        Some(Share { _permit: permit, _notice: self.notice() })
    }

    /// Takes this many bytes, if they are free now and nobody waits for them in the queue of [`Buffers::take`].
    pub(crate) fn take_if_free(&self, bytes: u64) -> Option<Share> {
        let _turn = self.turns.try_take()?;
        self.try_take(bytes)
    }

    /// Takes this many bytes for this user when it is his turn; waits until they are free.
    pub(crate) async fn take(&self, bytes: u64, user: User) -> Share {
        let turn = self.turns.take(user).await;
        // Before the wait: a caller who gives up gives back what was put by for him.
        let notice = self.notice();
        let permit = Arc::clone(&self.free_kib).acquire_many_owned(self.kib(bytes)).await;
        drop(turn);
        Share { _permit: permit.expect("nobody closes the semaphore"), _notice: notice }
    }

    /// Takes this many bytes, in the order of the callers of this function; waits until they are free all at once, and
    /// keeps no caller of the other functions waiting.
    pub(crate) async fn take_at_once(&self, bytes: u64) -> Share {
        let _first = self.first.lock().await;
        loop {
            if let Some(share) = self.try_take(bytes) {
                return share;
            }
            // A notice that comes before this wait is kept for it.
            self.freed.notified().await;
        }
    }

    fn notice(&self) -> Notice {
        Notice(Arc::clone(&self.freed))
    }

    fn kib(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(1_024)).unwrap_or(u32::MAX).min(self.kib_max)
    }
}

/// Bytes together with their share of the memory. The share stays with the bytes because hyper drops a body as soon as
/// it has taken the last bytes, but may hold those for as long as the client does not read.
pub(crate) struct HeldBytes {
    bytes: Vec<u8>,
    _share: Option<Share>,
}

impl HeldBytes {
    /// `share` covers `bytes`; without one, there are too few bytes to count.
    pub(crate) fn new(bytes: Vec<u8>, share: Option<Share>) -> Self {
        Self { bytes, _share: share }
    }

    /// The share of the memory is free again when the last clone of the bytes is dropped.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_much_delays_nobody_who_wants_little() {
        let buffers = Buffers::new(16 << 10);
        let held = buffers.try_take(8 << 10).unwrap();
        let mut much = pin!(buffers.take_at_once(12 << 10));
        assert!(futures::poll!(&mut much).is_pending());
        let little = buffers.take(6 << 10, None).now_or_never().expect("it is free");
        let mut next = pin!(buffers.take(6 << 10, None));
        assert!(futures::poll!(&mut next).is_pending());
        drop(held);
        let next = next.now_or_never().expect("it is free");
        assert!(futures::poll!(&mut much).is_pending());
        drop((little, next));
        assert!(much.now_or_never().is_some());
    }

    #[tokio::test]
    async fn those_who_wait_for_much_get_it_one_after_the_other() {
        let buffers = Buffers::new(16 << 10);
        let held = buffers.try_take(16 << 10).unwrap();
        let mut first = pin!(buffers.take_at_once(12 << 10));
        let mut given_up = Box::pin(buffers.take_at_once(12 << 10));
        let mut last = pin!(buffers.take_at_once(8 << 10));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut given_up).is_pending());
        assert!(futures::poll!(&mut last).is_pending());
        drop(held);
        assert!(futures::poll!(&mut last).is_pending(), "it came last, though it wants least");
        let first = first.now_or_never().expect("it is free");
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        drop(first);
        assert!(last.now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_was_put_by_for_a_caller_who_gives_up_is_told_to_be_free() {
        let buffers = Buffers::new(16 << 10);
        let [one, other] = [(); 2].map(|()| buffers.try_take(8 << 10).unwrap());
        let mut gives_up = Box::pin(buffers.take(16 << 10, None));
        let waiting = buffers.clone();
        let mut much = Box::pin(async move { waiting.take_at_once(8 << 10).await });
        assert!(futures::poll!(&mut gives_up).is_pending());
        assert!(futures::poll!(&mut much).is_pending());
        drop(one);
        assert!(futures::poll!(&mut much).is_pending(), "it is put by for the other");
        drop(gives_up);
        assert!(much.now_or_never().is_some());
        drop(other);
    }
}
