//! How much a peer may announce, and how much of that others may hand over.

use libp2p_identity::PeerId;
use narmesh_machine::{Bucket, Moment, Tokens};
use std::collections::BTreeMap;

/// Announcements that a peer may hand over itself at once, and per second; honest nodes publish at most 2 per second.
pub const ANNOUNCEMENTS: Bucket = Bucket { burst: 40, per_s: 4 };
/// Announcements of one author that one other peer may hand over. The author's own pace is the most that an honest one
/// needs.
const HEARSAY: Bucket = Bucket { burst: 40, per_s: 2 };
/// The same of all other peers together. Else an author could say something else to each of them, and each of it would
/// be written to our disk. Two liars and all honest peers together do not use it up.
const HEARSAY_OF_ALL: Bucket = Bucket { burst: 120, per_s: 6 };

/// What came lately of one peer's announcements. Only those count that had to be opened.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    own: Tokens,
    /// By who handed it over. Each is forgotten when its whole bucket is there again, and what all may hand over bounds
    /// how many there are until then.
    hearsay: BTreeMap<PeerId, Tokens>,
    hearsay_of_all: Tokens,
}

impl Announced {
    /// Whether so many came that the next one is not even opened. `teller` is the peer that hands it over, if that is
    /// not the author. Each teller is counted by itself: what one replays keeps nobody else from telling what is new.
    pub(super) fn is_spent(&mut self, now: Moment, teller: Option<&PeerId>) -> bool {
        let Some(teller) = teller else { return self.own.is_full(ANNOUNCEMENTS, now) };
        let is_spent = self.hearsay.get_mut(teller).is_some_and(|hearsay| hearsay.is_full(HEARSAY, now));
        is_spent || self.hearsay_of_all.is_full(HEARSAY_OF_ALL, now)
    }

    /// Charges one that has to be opened; true when that used up what the author itself may hand over.
    pub(super) fn charge(&mut self, now: Moment, teller: Option<&PeerId>) -> bool {
        let Some(teller) = teller else {
            self.own.take(1);
            return self.own.is_full(ANNOUNCEMENTS, now);
        };
        self.hearsay.retain(|_, hearsay| !hearsay.is_unused(HEARSAY, now));
        let hearsay = self.hearsay.entry(*teller).or_default();
        // A bucket that was not looked at before begins now, and not at moment 0.
        hearsay.is_full(HEARSAY, now);
        hearsay.take(1);
        self.hearsay_of_all.take(1);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn teller(number: u8) -> PeerId {
        let seed = [number; 32];
        libp2p_identity::Keypair::ed25519_from_bytes(seed).unwrap().public().to_peer_id()
    }

    /// How many are opened of 1,000 that come at once.
    fn flood(announced: &mut Announced, now: Moment, teller: Option<&PeerId>) -> usize {
        let mut open = || {
            let is_open = !announced.is_spent(now, teller);
            if is_open {
                announced.charge(now, teller);
            }
            is_open
        };
        (0..1_000).filter(|_| open()).count()
    }

    #[test]
    fn a_bucket_drains_at_its_rate() {
        let mut announced = Announced::default();
        let taken = (0..100).take_while(|_| !announced.charge(Moment(0), None)).count();
        assert_eq!(taken, 39);
        let mut announced = Announced::default();
        assert_eq!(flood(&mut announced, Moment(0), None), 40);
        assert!(announced.is_spent(Moment(0), None));
        assert!(!announced.is_spent(Moment(250), None));
    }

    #[test]
    fn each_teller_is_counted_by_itself_and_all_together() {
        let (mut announced, start) = (Announced::default(), Moment(5_000_000));
        let [first, second, third, fourth] = [1, 2, 3, 4].map(teller);
        assert_eq!(flood(&mut announced, start, Some(&first)), 40);
        assert_eq!(flood(&mut announced, start, Some(&second)), 40, "it is not charged for the first");
        assert_eq!(flood(&mut announced, start, None), 40, "nor is the author");
        assert_eq!(flood(&mut announced, start, Some(&third)), 40);
        assert_eq!(flood(&mut announced, start, Some(&fourth)), 0, "many liars do not add up");
        assert_eq!(flood(&mut announced, start + 10_000, Some(&first)), 20);
    }

    #[test]
    fn tellers_whose_rate_is_unused_are_forgotten() {
        let mut announced = Announced::default();
        let tellers: Vec<_> = (0..250).map(teller).collect();
        for second in 0..500_u64 {
            let teller = &tellers[usize::try_from(second % 250).unwrap()];
            assert!(flood(&mut announced, Moment(second * 1_000), Some(teller)) >= 6);
            assert!(announced.hearsay.len() <= 24, "{}", announced.hearsay.len());
        }
    }
}
