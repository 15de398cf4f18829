//! How fast peers may ask us.

use super::clock::moment;
use libp2p::PeerId;
use narmesh_machine::{Bucket, Tokens};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// Narinfo requests of one peer that are answered. Above that it is told *busy*, and asks again. A closure of 20,000 paths
/// goes through at once.
const NARINFOS: Bucket = Bucket { burst: 20_000, per_s: 2_000 };
/// Requests that are told *busy*; above that a peer floods: an honest one has 32 under way and waits 50 ms after a *busy*.
const BUSY: Bucket = Bucket { burst: 2_000, per_s: 2_000 };
/// Requests of one peer for trees that are answered; it asks once for each large NAR, and again while a tree is being
/// computed. Above that it is told *busy*.
const TREES: Bucket = Bucket { burst: 1_024, per_s: 64 };
/// Requests for trees that are told *busy*; above that a peer floods.
const TREES_BUSY: Bucket = Bucket { burst: 1_024, per_s: 64 };
/// Comparisons of rosters by one peer that are answered: it compares when a connection is new, once a minute, and when there
/// is a new roster. A reply may have 1 MiB. Above that it is told *busy*.
const ROSTERS: Bucket = Bucket { burst: 32, per_s: 1 };
/// Comparisons that are told *busy*; above that a peer floods.
const ROSTERS_BUSY: Bucket = Bucket { burst: 256, per_s: 16 };
/// Requests of one peer for parts of build logs that are answered: 16 MiB at once, and 4 MiB a second. Above that it is told
/// *busy*.
const LOGS: Bucket = Bucket { burst: 256, per_s: 64 };
/// Requests for logs that are told *busy*; above that a peer floods: an honest one has 4 under way and waits 200 ms after a
/// *busy*.
const LOGS_BUSY: Bucket = Bucket { burst: 256, per_s: 64 };
/// Requests of one peer for realisations that are answered: a closure of 4,096 outputs goes through at once. Above that it is
/// told *busy*.
const REALISATIONS: Bucket = Bucket { burst: 4_096, per_s: 256 };
/// Requests for realisations that are told *busy*; above that a peer floods: an honest one has 16 under way and waits 200 ms
/// after a *busy*.
const REALISATIONS_BUSY: Bucket = Bucket { burst: 1_024, per_s: 256 };
/// Requests of one peer about circuits that are answered: a member that has lost all its connections opens two to each of
/// thirty others, and a relay passes on what all members ask for.
const CIRCUITS: Bucket = Bucket { burst: 128, per_s: 16 };
/// Requests about circuits that are told *busy*; above that a peer floods.
const CIRCUITS_BUSY: Bucket = Bucket { burst: 256, per_s: 32 };
/// A flood counts as one misdeed per second.
const BLAMED: Bucket = Bucket { burst: 1, per_s: 1 };
/// Bulk connections that are dialled at one peer's request: it keeps one for hours, and each costs a handshake.
const DIALS: Bucket = Bucket { burst: 4, per_s: 1 };

/// NAR requests of one peer that are answered; further ones wait. A small NAR costs some 75 us, and a request for one that is
/// not here half of that. A closure of 20,000 small paths goes through at once.
const NARS: Bucket = Bucket { burst: 20_000, per_s: 4_000 };
/// A request that has to wait looks again after this.
const NARS_PAUSE: Duration = Duration::from_millis(1);

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Answer it.
    Answer,
    /// Say *busy*.
    Busy,
    /// Say *busy*, and count a misdeed.
    Flood,
}

/// The requests of each peer for narinfos, for trees, for logs, for realisations, or for rosters.
#[derive(Debug)]
pub(super) struct RequestRates {
    answered: Bucket,
    busy: Bucket,
    peers: HashMap<PeerId, RequestRate>,
}

#[derive(Debug, Default)]
struct RequestRate {
    answered: Tokens,
    busy: Tokens,
    blamed: Tokens,
}

impl RequestRates {
    pub(super) fn of_narinfos() -> Self {
        Self { answered: NARINFOS, busy: BUSY, peers: HashMap::new() }
    }

    pub(super) fn of_trees() -> Self {
        Self { answered: TREES, busy: TREES_BUSY, peers: HashMap::new() }
    }

    pub(super) fn of_rosters() -> Self {
        Self { answered: ROSTERS, busy: ROSTERS_BUSY, peers: HashMap::new() }
    }
    pub(super) fn of_logs() -> Self {
        Self { answered: LOGS, busy: LOGS_BUSY, peers: HashMap::new() }
    }

    pub(super) fn of_circuits() -> Self {
        Self { answered: CIRCUITS, busy: CIRCUITS_BUSY, peers: HashMap::new() }
    }

    pub(super) fn of_realisations() -> Self {
        Self { answered: REALISATIONS, busy: REALISATIONS_BUSY, peers: HashMap::new() }
    }

    /// Counts one request.
    pub(super) fn admit(&mut self, peer: PeerId) -> Admission {
        let (rate, now) = (self.peers.entry(peer).or_default(), moment());
        // An honest peer that is told *busy* slows down. Whoever does not is a flood, once a second at most.
        if rate.answered.try_take(self.answered, now) {
            Admission::Answer
        } else if rate.busy.try_take(self.busy, now) || !rate.blamed.try_take(BLAMED, now) {
            Admission::Busy
        } else {
            Admission::Flood
        }
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }
}

/// Requests of each peer to dial a bulk connection to it.
#[derive(Debug, Default)]
pub(super) struct DialRates {
    peers: HashMap<PeerId, Tokens>,
}

impl DialRates {
    /// Counts one request, and says whether it is to be followed.
    pub(super) fn admit(&mut self, peer: PeerId) -> bool {
        self.peers.entry(peer).or_default().try_take(DIALS, moment())
    }

    /// Forgets a peer that left the allowlist.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }
}

/// The NAR requests of each peer, on all its streams together. It keeps a few bytes of each peer that was on the allowlist.
#[derive(Debug, Default)]
pub(super) struct NarRates {
    peers: Mutex<HashMap<PeerId, Tokens>>,
}

impl NarRates {
    /// Counts one request, once it may be answered.
    pub(super) async fn wait(&self, peer: &PeerId) {
        while !self.admit(peer) {
            tokio::time::sleep(NARS_PAUSE).await;
        }
    }

    fn admit(&self, peer: &PeerId) -> bool {
        self.peers.lock().entry(*peer).or_default().try_take(NARS, moment())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_closure_is_answered_and_a_flood_is_blamed_once_a_second() {
        let (mut rates, peer) = (RequestRates::of_narinfos(), PeerId::random());
        let said: Vec<_> = (0..60_000).map(|_| rates.admit(peer)).collect();
        assert!(said.iter().take(20_000).all(|said| *said == Admission::Answer));
        let floods = said.iter().filter(|said| **said == Admission::Flood).count();
        assert!((1..=3).contains(&floods), "{floods}");
        assert_eq!(rates.admit(PeerId::random()), Admission::Answer, "another peer is none the worse");
    }

    #[test]
    fn trees_are_asked_for_at_a_pace_and_a_flood_is_blamed_once_a_second() {
        let (mut rates, peer) = (RequestRates::of_trees(), PeerId::random());
        let said: Vec<_> = (0..10_000).map(|_| rates.admit(peer)).collect();
        assert!(said.iter().take(1_024).all(|said| *said == Admission::Answer));
        assert!(said.iter().filter(|said| **said == Admission::Answer).count() < 2_000);
        let floods = said.iter().filter(|said| **said == Admission::Flood).count();
        assert!((1..=3).contains(&floods), "{floods}");
    }

    #[test]
    fn logs_are_asked_for_at_a_pace_and_a_flood_is_blamed_once_a_second() {
        let (mut rates, peer) = (RequestRates::of_logs(), PeerId::random());
        let said: Vec<_> = (0..10_000).map(|_| rates.admit(peer)).collect();
        assert!(said.iter().take(256).all(|said| *said == Admission::Answer));
        assert!(said.iter().filter(|said| **said == Admission::Answer).count() < 512);
        let floods = said.iter().filter(|said| **said == Admission::Flood).count();
        assert!((1..=3).contains(&floods), "{floods}");
        assert_eq!(rates.admit(PeerId::random()), Admission::Answer, "another peer is none the worse");
    }

    #[test]
    fn realisations_are_asked_for_at_a_pace_and_a_flood_is_blamed_once_a_second() {
        let (mut rates, peer) = (RequestRates::of_realisations(), PeerId::random());
        let said: Vec<_> = (0..20_000).map(|_| rates.admit(peer)).collect();
        assert!(said.iter().take(4_096).all(|said| *said == Admission::Answer));
        assert!(said.iter().filter(|said| **said == Admission::Answer).count() < 6_000);
        let floods = said.iter().filter(|said| **said == Admission::Flood).count();
        assert!((1..=3).contains(&floods), "{floods}");
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
