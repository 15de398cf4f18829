//! What the NAR streams of one peer have in common.

use super::ENCODERS_PER_PEER_MAX;
use crate::byte_rate::ByteRate;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Streams that one peer may hold open; a further one is told *not now* and closed.
pub(super) const STREAMS_PER_PEER_MAX: usize = 64;
/// Streams over that limit that are told so at the same time; the others are reset.
const TURNED_AWAY_MAX: usize = 8;

/// What the streams of one peer have in common.
#[derive(Debug)]
pub(super) struct PeerUploads {
    pub(super) streams: Arc<Semaphore>,
    pub(super) rate: ByteRate,
    pub(super) encoders: Arc<Semaphore>,
    /// Streams over the limit that are being told so.
    pub(super) turned_away: Arc<Semaphore>,
    /// When one of its streams last took a byte.
    pub(super) moved: Mutex<Instant>,
    /// The number of its requests that wait for a place.
    pub(super) waiting: AtomicUsize,
    /// Whether its last piece was taken slowly.
    pub(super) is_slow: AtomicBool,
    /// One of its requests ended: others may have moved up.
    pub(super) advanced: Notify,
}

impl PeerUploads {
    pub(super) fn new(rate: ByteRate) -> Self {
        Self {
            rate,
            streams: Arc::new(Semaphore::new(STREAMS_PER_PEER_MAX)),
            encoders: Arc::new(Semaphore::new(ENCODERS_PER_PEER_MAX)),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY_MAX)),
            moved: Mutex::new(Instant::now()),
            waiting: AtomicUsize::new(0),
            is_slow: AtomicBool::new(false),
            advanced: Notify::new(),
        }
    }

    /// Waits until one more body may be compressed. A body that its asker does not read makes room as it does for a
    /// request that waits in the queue.
    pub(super) async fn wait_for_encoder(&self) -> io::Result<OwnedSemaphorePermit> {
        let _waiting = Waiting::of(self);
        acquire(&self.encoders).await
    }
}

/// One more request of a peer that waits, until it is dropped.
pub(super) struct Waiting<'p>(&'p PeerUploads);

impl<'p> Waiting<'p> {
    pub(super) fn of(peer: &'p PeerUploads) -> Self {
        peer.waiting.fetch_add(1, Ordering::Relaxed);
        Self(peer)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) async fn acquire(semaphore: &Arc<Semaphore>) -> io::Result<OwnedSemaphorePermit> {
    Arc::clone(semaphore).acquire_owned().await.map_err(io::Error::other)
}
