//! How fast peers may ask us, and how fast we send to all of them together.

use super::nar_server::Slots;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use libp2p::PeerId;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Narinfo requests of one peer answered per second in the long run; above, it is told *busy*, and asks again. A closure of
/// 20,000 paths goes through at once.
const NARINFOS_PER_S: NonZeroU32 = NonZeroU32::new(2_000).expect("not zero");
/// See [`NARINFOS_PER_S`].
const NARINFOS_BURST: NonZeroU32 = NonZeroU32::new(20_000).expect("not zero");
/// Requests per second told *busy*, above which a peer floods: an honest one has 32 under way and waits 50 ms after a *busy*.
const BUSY_PER_S: NonZeroU32 = NonZeroU32::new(2_000).expect("not zero");
/// A flood is one misdeed per second.
const BLAMED_PER_S: NonZeroU32 = NonZeroU32::new(1).expect("not zero");
/// Bytes sent at a time under a limit, so that bodies take turns and none seems to stall.
const SLICE_BYTES: u32 = 32 << 10;

/// The lowest limit for uploads, bytes per second: below it a body would look stalled to the asker.
pub const UPLOAD_BYTES_PER_S_MIN: u32 = 128 << 10;

/// What to do with a narinfo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Answer it.
    Answer,
    /// Say *busy*.
    Busy,
    /// Say *busy*, and count a misdeed.
    Flood,
}

/// The narinfo requests of each peer.
#[derive(Debug, Default)]
pub(super) struct NarInfoRates {
    peers: HashMap<PeerId, NarInfoRate>,
}

#[derive(Debug)]
struct NarInfoRate {
    answered: DefaultDirectRateLimiter,
    busy: DefaultDirectRateLimiter,
    blamed: DefaultDirectRateLimiter,
}

impl NarInfoRates {
    /// Counts one request.
    pub(super) fn admit(&mut self, peer: PeerId) -> Admission {
        self.peers.entry(peer).or_insert_with(NarInfoRate::new).admit()
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }
}

impl NarInfoRate {
    fn new() -> Self {
        Self {
            answered: RateLimiter::direct(Quota::per_second(NARINFOS_PER_S).allow_burst(NARINFOS_BURST)),
            busy: RateLimiter::direct(Quota::per_second(BUSY_PER_S)),
            blamed: RateLimiter::direct(Quota::per_second(BLAMED_PER_S)),
        }
    }

    fn admit(&self) -> Admission {
        if self.answered.check().is_ok() {
            Admission::Answer
        } else if self.busy.check().is_ok() || self.blamed.check().is_err() {
            Admission::Busy
        } else {
            Admission::Flood
        }
    }
}

/// The bytes of all NARs that we send together.
#[derive(Clone, Debug, Default)]
pub(super) struct UploadRate(Arc<RwLock<Option<Arc<Limit>>>>);

/// A rate, and as many bodies under way as can have [`UPLOAD_BYTES_PER_S_MIN`] each.
#[derive(Debug)]
struct Limit {
    limiter: DefaultDirectRateLimiter,
    bodies: Slots,
}

/// The right to send one body at a share of the rate.
#[derive(Debug)]
pub(super) struct Paced {
    limit: Option<Arc<Limit>>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl UploadRate {
    /// At most so many bytes per second from now on, with a burst of one second; `None` for no limit.
    pub(super) fn set(&self, bytes_per_s: Option<NonZeroU32>) {
        *self.0.write() = bytes_per_s.map(|rate| {
            let bodies = Slots::new((rate.get() / UPLOAD_BYTES_PER_S_MIN).max(1) as usize);
            Arc::new(Limit { limiter: RateLimiter::direct(Quota::per_second(rate)), bodies })
        });
    }

    /// The right to send a NAR of that size; `None` when those under way need the whole rate.
    pub(super) fn admit(&self, nar_size: u64) -> Option<Paced> {
        let Some(limit) = self.0.read().clone() else { return Some(Paced { limit: None, _slot: None }) };
        let slot = Arc::clone(limit.bodies.of(nar_size)).try_acquire_owned().ok()?;
        Some(Paced { limit: Some(limit), _slot: Some(slot) })
    }
}

impl Paced {
    /// Whether there is no limit.
    pub(super) fn is_free(&self) -> bool {
        self.limit.is_none()
    }

    /// Bytes to send at a time.
    pub(super) fn slice_bytes(&self) -> usize {
        if self.limit.is_some() { SLICE_BYTES as usize } else { usize::MAX }
    }

    /// Waits until `bytes` may be sent, at most a slice at a time.
    pub(super) async fn pay(&self, bytes: usize) {
        let Some(limit) = &self.limit else { return };
        let mut left = bytes;
        while let Some(slice) = u32::try_from(left.min(SLICE_BYTES as usize)).ok().and_then(NonZeroU32::new) {
            left -= slice.get() as usize;
            // Fails only for more than the burst, which is at least [`UPLOAD_BYTES_PER_S_MIN`].
            limit.limiter.until_n_ready(slice).await.unwrap_or(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_large_closure_is_answered_and_a_flood_is_named_once_a_second() {
        let (mut rates, peer) = (NarInfoRates::default(), PeerId::random());
        let said: Vec<_> = (0..60_000).map(|_| rates.admit(peer)).collect();
        assert!(said.iter().take(20_000).all(|said| *said == Admission::Answer));
        let floods = said.iter().filter(|said| **said == Admission::Flood).count();
        assert!((1..=3).contains(&floods), "{floods}");
        assert_eq!(rates.admit(PeerId::random()), Admission::Answer, "another peer is none the worse");
    }

    #[tokio::test]
    async fn uploads_together_keep_to_the_rate() {
        let rate = UploadRate::default();
        let free = rate.admit(1).unwrap();
        assert_eq!(free.slice_bytes(), usize::MAX);
        free.pay(usize::MAX).await;
        rate.set(NonZeroU32::new(1 << 20));
        let large: Vec<_> = std::iter::from_fn(|| rate.admit(1 << 30)).collect();
        assert_eq!(large.len(), 8, "1 MiB/s are 8 times 128 KiB/s");
        let small = rate.admit(1).expect("small ones are counted apart");
        large[0].pay(1 << 20).await;
        let since = Instant::now();
        futures::join!(large[0].pay(1 << 18), small.pay(1 << 18));
        assert!(since.elapsed() > Duration::from_millis(400), "{:?} for half of a second's bytes", since.elapsed());
        drop(large);
        assert!(rate.admit(1 << 30).is_some());
    }
}
