//! How fast peers may ask us.

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use libp2p::PeerId;
use std::collections::HashMap;
use std::num::NonZeroU32;

/// Narinfo requests of one peer that are answered per second in the long run. Above that it is told *busy*, and asks
/// again. A closure of 20,000 paths goes through at once.
const NARINFOS_PER_S: NonZeroU32 = NonZeroU32::new(2_000).expect("not zero");
/// See [`NARINFOS_PER_S`].
const NARINFOS_BURST: NonZeroU32 = NonZeroU32::new(20_000).expect("not zero");
/// Requests per second that are told *busy*; above that a peer floods: an honest one has 32 under way and waits 50 ms
/// after a *busy*.
const BUSY_PER_S: NonZeroU32 = NonZeroU32::new(2_000).expect("not zero");
/// A flood counts as one misdeed per second.
const BLAMED_PER_S: NonZeroU32 = NonZeroU32::new(1).expect("not zero");
/// Bulk connections that are dialled at one peer's request per second: it keeps one for hours, and each costs a
/// handshake.
const DIALS_PER_S: NonZeroU32 = NonZeroU32::new(1).expect("not zero");
/// See [`DIALS_PER_S`].
const DIALS_BURST: NonZeroU32 = NonZeroU32::new(4).expect("not zero");

/// NAR requests of one peer answered per second in the long run; further ones wait. A small NAR costs some 75 us, and a request for
/// one that is not here half of that.
const NARS_PER_S: NonZeroU32 = NonZeroU32::new(4_000).expect("not zero");
/// See [`NARS_PER_S`]: a closure of 20,000 small paths at once.
const NARS_BURST: NonZeroU32 = NonZeroU32::new(20_000).expect("not zero");

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

/// Requests of each peer to dial a bulk connection to it.
#[derive(Debug, Default)]
pub(super) struct DialRates {
    peers: HashMap<PeerId, DefaultDirectRateLimiter>,
}

impl DialRates {
    /// Counts one request, and says whether it is to be followed.
    pub(super) fn admit(&mut self, peer: PeerId) -> bool {
        let quota = Quota::per_second(DIALS_PER_S).allow_burst(DIALS_BURST);
        self.peers.entry(peer).or_insert_with(|| RateLimiter::direct(quota)).check().is_ok()
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }
}

/// The NAR requests of each peer, on all its streams together. It keeps a few bytes of each peer that was on the allowlist.
#[derive(Debug)]
pub(super) struct NarRates(DefaultKeyedRateLimiter<PeerId>);

impl Default for NarRates {
    fn default() -> Self {
        Self(RateLimiter::keyed(Quota::per_second(NARS_PER_S).allow_burst(NARS_BURST)))
    }
}

impl NarRates {
    /// Counts one request, once it may be answered.
    pub(super) async fn wait(&self, peer: &PeerId) {
        while let Err(early) = self.0.check_key(peer) {
            tokio::time::sleep(early.wait_time_from(DefaultClock::default().now())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_closure_is_answered_and_a_flood_is_blamed_once_a_second() {
        let (mut rates, peer) = (NarInfoRates::default(), PeerId::random());
        let said: Vec<_> = (0..60_000).map(|_| rates.admit(peer)).collect();
        assert!(said.iter().take(20_000).all(|said| *said == Admission::Answer));
        let floods = said.iter().filter(|said| **said == Admission::Flood).count();
        assert!((1..=3).contains(&floods), "{floods}");
        assert_eq!(rates.admit(PeerId::random()), Admission::Answer, "another peer is none the worse");
    }

    #[test]
    fn a_peer_cannot_have_us_dial_without_end() {
        let (mut rates, peer) = (DialRates::default(), PeerId::random());
        let dials = (0..1_000).filter(|_| rates.admit(peer)).count();
        assert!((4..=6).contains(&dials), "{dials}");
        assert!(rates.admit(PeerId::random()), "another peer is none the worse");
    }

    #[tokio::test]
    async fn nar_requests_above_a_large_closure_wait() {
        use futures::FutureExt as _;
        let (rates, peer) = (NarRates::default(), PeerId::random());
        let at_once = (0..100_000).take_while(|_| rates.wait(&peer).now_or_never().is_some()).count();
        // A busy machine has earned some more meanwhile.
        assert!((20_000..30_000).contains(&at_once), "{at_once}");
        assert!(rates.wait(&PeerId::random()).now_or_never().is_some(), "another peer is none the worse");
        rates.wait(&peer).await;
    }
}
