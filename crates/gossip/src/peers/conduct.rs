//! How a peer has behaved: its false hits and misdeeds, and their consequences.

use super::misdeed::Misdeed;
use crate::table::view::Rank;
use narmesh_machine::{Bucket, Moment, Tokens};

/// So many misdeeds set a peer aside.
const STRIKES: u32 = 3;
/// How long a peer stays set aside, milliseconds: it is asked nothing, and is no candidate.
pub(crate) const SET_ASIDE_MS: u64 = 300_000;
/// Earlier misdeeds are forgiven when the next one comes more than this later, milliseconds.
const STRIKE_MEMORY_MS: u64 = 3_600_000;
/// False hits that a filter may cause whatever its density: paths that were garbage-collected since give honest peers some.
const FALSE_HITS_FREE: u64 = 20;
/// Beyond those, a peer is demoted when its false hits exceed what its density predicts by this factor.
const FALSE_HITS_FACTOR: f64 = 10.0;
/// A demotion ends with the peer's next epoch that counts, or after this, milliseconds.
const DEMOTED_MS: u64 = 300_000;
/// A new epoch resets the counts only this long after the last reset, milliseconds.
const FRESH_MS: u64 = 300_000;
/// Envelopes in a peer's answers to our syncs that we open at once, and per second, beside those that we know. Twice the
/// longest answer: a greeting may bring a thousand that are new to us, and arrives whole.
const NEWS: Bucket = Bucket { burst: 2_048, per_s: 20 };
/// Units of requests that we answer a peer at once, and per second. A request costs one unit, and one more for each 64 KiB
/// of body.
const REQUESTS: Bucket = Bucket { burst: 1_024, per_s: 200 };

/// The bytes of body that cost one further unit.
pub(crate) const REQUEST_UNIT_BYTES: usize = 64 << 10;

/// The record of one peer.
#[derive(Debug, Default)]
pub(crate) struct Conduct {
    pub(crate) misdeeds: u32,
    pub(crate) last_misdeed: Option<Misdeed>,
    last_misdeed_at: Moment,
    strikes: u32,
    pub(crate) set_aside: Option<Moment>,
    pub(crate) held_hits: u64,
    pub(crate) false_hits: u64,
    /// How many lookups the table had counted when the present counts began.
    lookups_before: u64,
    pub(crate) demoted: Option<Moment>,
    /// When the counts of false and true hits were last reset.
    fresh: Option<Moment>,
    requests: Tokens,
    news: Tokens,
}

impl Conduct {
    pub(crate) fn is_set_aside(&self) -> bool {
        self.set_aside.is_some()
    }

    /// Whether the peer is asked at present, and after whom.
    pub(crate) fn rank(&self) -> Rank {
        match (self.set_aside, self.demoted) {
            (Some(_), _) => Rank::Excluded,
            (None, Some(_)) => Rank::Last,
            (None, None) => Rank::Usual,
        }
    }

    /// When the next of both ends.
    pub(crate) fn due(&self) -> Option<Moment> {
        [self.set_aside, self.demoted].into_iter().flatten().min()
    }

    /// Ends what is over.
    pub(crate) fn lift_expired(&mut self, now: Moment) {
        self.set_aside = self.set_aside.filter(|until| *until > now);
        self.demoted = self.demoted.filter(|until| *until > now);
    }

    /// Counts a misdeed; the third that may set it aside does so, until the moment returned.
    pub(crate) fn blame(&mut self, now: Moment, misdeed: Misdeed) -> Option<Moment> {
        if now.since(self.last_misdeed_at) > STRIKE_MEMORY_MS {
            self.strikes = 0;
        }
        self.misdeeds = self.misdeeds.saturating_add(1);
        self.last_misdeed = Some(misdeed);
        self.last_misdeed_at = now;
        // Whoever chooses what we look up can find paths that an honest filter claims by chance, so that false hits
        // may be somebody else's doing: they cost the peer its place in the order, and no more.
        if misdeed == Misdeed::FalseClaims {
            return None;
        }
        self.strikes += 1;
        if self.strikes < STRIKES {
            return None;
        }
        self.strikes = 0;
        self.set_aside = Some(now + SET_ASIDE_MS);
        self.set_aside
    }

    /// Counts a false hit. The peer is demoted until the moment returned when its false hits exceed all of these: the free
    /// ones, ten times what `rate` predicts for the lookups since the last reset, and its true hits.
    pub(crate) fn count_false_hit(&mut self, now: Moment, rate: f64, lookups: u64) -> Option<Moment> {
        self.false_hits = self.false_hits.saturating_add(1);
        let expected = rate * lookups.saturating_sub(self.lookups_before) as f64;
        // All three: few false hits say nothing, a dense filter has more of them, and a peer that is mostly right is
        // worth asking.
        let too_many = self.false_hits > FALSE_HITS_FREE
            && self.false_hits as f64 > FALSE_HITS_FACTOR * expected
            && self.false_hits > self.held_hits;
        if !too_many || self.demoted.is_some() {
            return None;
        }
        self.demoted = Some(now + DEMOTED_MS);
        self.demoted
    }

    /// Counts a probe that found the path. It ends a demotion: the peer holds what is wanted.
    pub(crate) fn count_held_hit(&mut self) {
        self.held_hits = self.held_hits.saturating_add(1);
        self.demoted = None;
    }

    /// False hits per 1,024 probes, which order the candidates.
    pub(crate) fn false_share(&self) -> u32 {
        let probes = self.false_hits.saturating_add(self.held_hits).saturating_add(1);
        u32::try_from(self.false_hits.saturating_mul(1_024) / probes).unwrap_or(1_024)
    }

    /// A new epoch is a new filter, so its hits are counted anew. But not more often than every 5 min, or a liar would
    /// begin an epoch whenever it is about to be demoted.
    pub(crate) fn on_new_epoch(&mut self, now: Moment, lookups: u64) {
        if self.fresh.is_some_and(|fresh| now.since(fresh) < FRESH_MS) {
            return;
        }
        self.fresh = Some(now);
        self.held_hits = 0;
        self.false_hits = 0;
        self.lookups_before = lookups;
        self.demoted = None;
    }

    /// Charges an envelope in an answer that has to be opened; false when the peer has spent what it may tell.
    pub(crate) fn charge_news(&mut self, now: Moment) -> bool {
        self.news.try_take(NEWS, now)
    }

    /// Whether the peer has asked so much that it is told to come back later.
    pub(crate) fn has_spent_requests(&mut self, now: Moment) -> bool {
        self.requests.is_full(REQUESTS, now)
    }

    /// Charges a request whose answer has `answer_bytes` bytes.
    pub(crate) fn charge_request(&mut self, answer_bytes: usize) {
        self.requests.take(1 + (answer_bytes / REQUEST_UNIT_BYTES) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_misdeed_sets_aside_and_time_forgives() {
        let mut conduct = Conduct::default();
        let hours = |hours: u64| Moment(hours * STRIKE_MEMORY_MS + hours);
        assert_eq!(conduct.blame(hours(1), Misdeed::WrongBody), None);
        assert_eq!(conduct.blame(hours(1), Misdeed::WrongBody), None);
        assert_eq!(conduct.blame(hours(2), Misdeed::WrongBody), None, "the first two are forgiven");
        assert_eq!(conduct.blame(hours(2), Misdeed::WrongBody), None);
        let until = conduct.blame(hours(2), Misdeed::FalseNar).unwrap();
        assert_eq!(until, hours(2) + SET_ASIDE_MS);
        conduct.lift_expired(Moment(until.0 - 1));
        assert!(conduct.is_set_aside());
        conduct.lift_expired(until);
        assert!(!conduct.is_set_aside());
        assert_eq!((conduct.misdeeds, conduct.last_misdeed), (5, Some(Misdeed::FalseNar)));
    }

    #[test]
    fn more_false_hits_than_the_density_predicts_demote_a_peer() {
        let mut liar = Conduct::default();
        let demoted = (0..30).position(|_| liar.count_false_hit(Moment(0), 0.0005, 1_000).is_some());
        assert_eq!(demoted, Some(20));
        let mut unlucky = Conduct::default();
        assert!(
            (0..30).all(|_| unlucky.count_false_hit(Moment(0), 0.0005, 100_000).is_none()),
            "50 were to be expected"
        );
        let mut useful = Conduct { held_hits: 100, ..Conduct::default() };
        assert!((0..30).all(|_| useful.count_false_hit(Moment(0), 0.0005, 1_000).is_none()));
        assert!(useful.false_share() < liar.false_share());
        liar.on_new_epoch(Moment(0), 0);
        assert_eq!(liar.rank(), Rank::Usual, "another filter, another chance");
        assert!((0..30).any(|_| liar.count_false_hit(Moment(5), 0.0005, 1_000).is_some()));
        liar.on_new_epoch(Moment(FRESH_MS - 1), 0);
        assert_eq!(liar.rank(), Rank::Last, "but one in five minutes");
        liar.on_new_epoch(Moment(FRESH_MS), 0);
        assert_eq!((liar.rank(), liar.false_hits), (Rank::Usual, 0));
    }

    #[test]
    fn a_demoted_peer_that_holds_what_is_wanted_is_asked_as_before() {
        let mut peer = Conduct::default();
        assert!((0..30).any(|_| peer.count_false_hit(Moment(0), 0.0005, 1_000).is_some()));
        assert_eq!(peer.rank(), Rank::Last);
        peer.count_held_hit();
        assert_eq!(peer.rank(), Rank::Usual);
        assert!(peer.count_false_hit(Moment(0), 0.0005, 1_000).is_some(), "its false hits still count");
    }

    #[test]
    fn false_claims_set_nobody_aside() {
        let mut peer = Conduct::default();
        assert!((0..30).all(|_| peer.blame(Moment(1), Misdeed::FalseClaims).is_none()));
        assert_eq!((peer.rank(), peer.misdeeds), (Rank::Usual, 30));
    }
}
