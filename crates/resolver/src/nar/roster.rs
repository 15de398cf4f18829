//! Which sources were asked for one NAR, what came of it, and which one is asked next.
//!
//! A NAR is gone only when every source on the roster has said no, was proven wrong, or is dead. A source whose
//! connection broke in the middle of a body is tried again for a while: a daemon that restarts means *not now*, not
//! *no*.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::source::{Line, SourceId};

/// How long a source is tried again after its connection broke, if it had sent bytes of this NAR or had our request in
/// its queue. A daemon restarts within a second or two; if it is really gone, each path that it alone holds costs this
/// long.
const RETURN_MAX: Duration = Duration::from_secs(3);
/// The same of an upstream cache, also if it failed before it sent anything, for as long as it may be back in a moment: Nix
/// itself asks a cache again for some 4 s.
const MOMENT_MAX: Duration = Duration::from_millis(9_500);
/// How long a source is tried again that is there, and that our request cannot be sent to: a firewall, a full table, a slow
/// machine. Nix's clients bear 30 s without a byte, and ask again four times when this is over.
const UNREACHED_MAX: Duration = Duration::from_secs(20);
/// The first pause before such a source is asked again; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause before a source is asked again.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The assumed rate of a line that was never measured, bytes per second (a guess: an ordinary home line, so that a line
/// measured as quick is preferred to it, and one measured as crawling is not).
const UNKNOWN_RATE_BYTES_S: u64 = 1_000_000;
/// The same of an upstream cache that is to replace a slow one of a lower tier (a guess, too: 32 Mbit/s). To try it costs one
/// NAR, after which its rate is known.
const UNKNOWN_CACHE_RATE_BYTES_S: u64 = 4_000_000;
/// A cache of a higher tier that was never measured is tried only where the one before it would take at least this long.
const TRY_UNKNOWN_MIN: Duration = Duration::from_millis(250);

/// What is known of one source in this transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It was not asked yet.
    Fresh,
    /// It is being asked, or sends.
    UnderWay,
    /// It broke off after it had answered: it is asked again at `next`, and given up at `until`.
    Returning { next: Instant, until: Instant, pause: Duration },
    /// It is not asked for now, because a tree contradicts it.
    PutBy,
    /// It has named others, who are asked before it.
    Referred,
    /// It said no, was proven wrong, or is dead.
    Out,
}

/// Which source is asked next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask this one now.
    Ask(SourceId),
    /// Ask nobody before then.
    Wait(Instant),
    /// Nobody is left to ask.
    Nobody,
}

/// The sources of one transfer.
#[derive(Debug)]
pub(super) struct Roster {
    entries: Vec<(SourceId, State)>,
    /// The source that is asked before all others.
    preferred: Option<SourceId>,
    /// Sources that are asked when no other is left.
    suspects: HashSet<SourceId>,
    /// Sources that have the NAR only on its way, in the order in which they are asked.
    named: Vec<SourceId>,
    /// Sources that have named others.
    referred: HashSet<SourceId>,
    /// Sources that are there and could not be asked, and until when they are tried again.
    unreached: HashMap<SourceId, Instant>,
}

impl Roster {
    /// `preferred` is asked first, then the others by their lines; of equals, the first one given.
    pub(super) fn new(sources: impl IntoIterator<Item = SourceId>, preferred: Option<SourceId>) -> Self {
        let (suspects, referred, unreached) = (HashSet::new(), HashSet::new(), HashMap::new());
        let mut roster = Self { entries: Vec::new(), preferred, suspects, named: Vec::new(), referred, unreached };
        roster.add(sources);
        roster
    }

    /// Has these sources asked after all others.
    pub(super) fn suspect(&mut self, sources: impl IntoIterator<Item = SourceId>) {
        self.suspects.extend(sources);
    }

    pub(super) fn is_suspect(&self, source: &SourceId) -> bool {
        self.suspects.contains(source)
    }

    /// Adds the sources that are not on the roster yet.
    pub(super) fn add(&mut self, sources: impl IntoIterator<Item = SourceId>) {
        for source in sources {
            if self.entries.iter().all(|(known, _)| *known != source) {
                self.entries.push((source, State::Fresh));
            }
        }
    }

    /// Has these sources, which have the NAR on its way, asked before `source`, which has named them.
    pub(super) fn refer(&mut self, source: SourceId, named: &[SourceId]) {
        self.referred.insert(source);
        self.change(source, |state| *state = State::Referred);
        self.name(named);
    }

    /// Asks these before all others: they may have the NAR on its way.
    pub(super) fn name(&mut self, named: &[SourceId]) {
        self.named.extend(named.iter().filter(|name| self.entries.iter().all(|(known, _)| known != *name)));
        self.add(named.iter().copied());
    }

    /// Whether it has the NAR only on its way, as far as is known.
    pub(super) fn is_named(&self, source: &SourceId) -> bool {
        self.named.contains(source)
    }

    /// Whether it has named others.
    pub(super) fn has_referred(&self, source: &SourceId) -> bool {
        self.referred.contains(source)
    }

    /// Asks none any more that has the NAR only on its way.
    pub(super) fn rule_out_named(&mut self) {
        for named in std::mem::take(&mut self.named) {
            self.change(named, |state| *state = State::Out);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The next source to ask for `bytes_left`: of those not asked yet, the one that should be done first judging by
    /// its line; after those, one that has named others; after those, one that may have come back.
    pub(super) fn next(&self, now: Instant, bytes_left: u64, line: impl Fn(&SourceId) -> Line) -> Next {
        if let Some(source) = self.quickest_fresh(bytes_left, line) {
            return Next::Ask(source);
        }
        if let Some(source) = self.first_referred() {
            return Next::Ask(source);
        }
        let returning = |entry: &(SourceId, State)| match entry.1 {
            State::Returning { next, .. } => Some((next, entry.0)),
            State::Fresh | State::UnderWay | State::PutBy | State::Referred | State::Out => None,
        };
        match self.entries.iter().filter_map(returning).min_by_key(|(next, _)| *next) {
            Some((next, source)) if next <= now => Next::Ask(source),
            Some((next, _)) => Next::Wait(next),
            None => Next::Nobody,
        }
    }

    /// Of the sources not asked yet, the preferred one, else the one that should be done first with `bytes_left`;
    /// suspects come last, before them paused ones, and before these the reserve; upstream caches go by tier, and in a tier
    /// those that have answered something come first. A cache that takes more than twice as long as one of a higher tier
    /// comes after that one.
    pub(super) fn quickest_fresh(&self, bytes_left: u64, line: impl Fn(&SourceId) -> Line) -> Option<SourceId> {
        self.fresh(bytes_left, line).first().copied()
    }

    /// Who could be quicker than a source under way: of those not asked yet that have the NAR, the one that should be done
    /// first; after those, one that has named others.
    pub(super) fn challenger(&self, bytes_left: u64, line: impl Fn(&SourceId) -> Line) -> Option<SourceId> {
        let fresh = self.quickest_fresh(bytes_left, line).filter(|source| !self.is_named(source));
        fresh.or_else(|| self.first_referred())
    }

    /// A source that has named others, if there is one that was not asked again.
    pub(super) fn first_referred(&self) -> Option<SourceId> {
        self.entries.iter().find(|(_, state)| *state == State::Referred).map(|(source, _)| *source)
    }

    /// All sources not asked yet, in that order.
    pub(super) fn fresh(&self, bytes_left: u64, line: impl Fn(&SourceId) -> Line) -> Vec<SourceId> {
        let fresh = self.entries.iter().filter(|(_, state)| *state == State::Fresh);
        let mut fresh: Vec<_> = fresh.map(|(source, _)| (*source, line(source))).collect();
        let is_cache = |source: &SourceId| source.peer().is_none() && !self.is_suspect(source);
        let caches: Vec<_> = fresh.iter().filter(|(source, _)| is_cache(source)).map(|(_, line)| *line).collect();
        // Equals keep their order, so the order of the roster counts.
        fresh.sort_by_cached_key(|(source, line)| {
            let is_upstream = source.peer().is_none();
            (
                self.preferred != Some(*source),
                self.is_suspect(source),
                line.is_paused,
                line.is_reserve,
                is_upstream && caches.iter().any(|other| is_outpaced(line, other, bytes_left)),
                line.tier,
                // One that has never answered may never do, and whether it has the path, nobody knows.
                is_upstream && line.latency.is_none(),
                // Who has the NAR is asked before those who do not have it yet.
                self.named.iter().position(|named| named == source).map_or(0, |at| at + 1),
                expected_duration(line, bytes_left),
            )
        });
        fresh.into_iter().map(|(source, _)| source).collect()
    }

    pub(super) fn on_asked(&mut self, source: SourceId) {
        // A source that may have come back keeps its `until`: it gains no time by taking a request and breaking off
        // before it answers.
        let keeps_until = |state: &mut State| {
            if !matches!(state, State::Returning { .. }) {
                *state = State::UnderWay;
            }
        };
        self.change(source, keeps_until);
    }

    /// Notes that it was stopped in favour of a quicker one, and may be asked again.
    pub(super) fn on_stopped(&mut self, source: SourceId) {
        let state = if self.has_referred(&source) { State::Referred } else { State::Fresh };
        self.change(source, |known| *known = state);
    }

    /// Asks it no more until [`Self::recall`].
    pub(super) fn put_by(&mut self, source: SourceId) {
        self.change(source, |state| *state = State::PutBy);
    }

    /// Lets those be asked again that were put by; returns whether there are any.
    pub(super) fn recall(&mut self) -> bool {
        let mut any = false;
        for (_, state) in self.entries.iter_mut().filter(|(_, state)| *state == State::PutBy) {
            (*state, any) = (State::Fresh, true);
        }
        any
    }

    /// Notes that it is not asked again: it said no, was proven wrong, or broke off too often.
    pub(super) fn rule_out(&mut self, source: SourceId) {
        self.unreached.remove(&source);
        self.change(source, |state| *state = State::Out);
    }

    /// Notes that its connection broke or stands still; `has_answered` says whether it had answered before. Returns
    /// whether it is asked again.
    pub(super) fn on_broke(&mut self, source: SourceId, has_answered: bool, now: Instant) -> bool {
        let granted = match (has_answered, source.peer()) {
            (false, _) => Duration::ZERO,
            (true, Some(_)) => RETURN_MAX,
            (true, None) => MOMENT_MAX,
        };
        self.ask_later(source, granted, has_answered, now)
    }

    /// Notes that an upstream cache failed in a way that may be over in a moment. Returns whether it is asked again.
    pub(super) fn on_failed_for_now(&mut self, source: SourceId, now: Instant) -> bool {
        self.ask_later(source, MOMENT_MAX, false, now)
    }

    /// Notes that a source is there, but that our request, which was begun then, could not be sent to it.
    pub(super) fn on_unreached(&mut self, source: SourceId, begun: Instant, now: Instant) {
        let until = *self.unreached.entry(source).or_insert(begun + UNREACHED_MAX);
        self.change(source, |state| {
            let pause = match *state {
                State::Returning { pause, .. } => (pause * 2).min(PAUSE_MAX),
                State::Fresh | State::UnderWay | State::PutBy | State::Referred | State::Out => PAUSE_MIN,
            };
            let next = now + pause;
            *state = if next <= until { State::Returning { next, until, pause } } else { State::Out };
        });
    }

    /// Notes that a source was asked, and answered.
    pub(super) fn on_reached(&mut self, source: &SourceId) {
        self.unreached.remove(source);
    }

    /// The sources that are not asked any more only because no request could be sent to them.
    pub(super) fn unreached(&self) -> impl Iterator<Item = SourceId> {
        let is_out = |entry: &&(SourceId, State)| entry.1 == State::Out && self.unreached.contains_key(&entry.0);
        self.entries.iter().filter(is_out).map(|(source, _)| *source)
    }

    /// Has a source asked again after a pause, for as long as is `granted`: from the first failure on, or from this one on if
    /// that `renews` it. Returns whether that time is not over.
    fn ask_later(&mut self, source: SourceId, granted: Duration, renews: bool, now: Instant) -> bool {
        let mut returns = false;
        self.change(source, |state| {
            let (until, pause) = match *state {
                State::Returning { until, pause, .. } if !renews => (until, (pause * 2).min(PAUSE_MAX)),
                State::Fresh
                | State::UnderWay
                | State::PutBy
                | State::Referred
                | State::Out
                | State::Returning { .. } => (now + granted, PAUSE_MIN),
            };
            returns = now + pause <= until;
            *state = if returns { State::Returning { next: now + pause, until, pause } } else { State::Out };
        });
        returns
    }

    /// Lets all sources that are not out be asked again, because the NAR is begun anew; `first` is asked first.
    pub(super) fn begin_anew(&mut self, first: Option<SourceId>) {
        for (_, state) in &mut self.entries {
            if *state != State::Out {
                *state = State::Fresh;
            }
        }
        self.preferred = first;
    }

    fn change(&mut self, source: SourceId, change: impl FnOnce(&mut State)) {
        if let Some((_, state)) = self.entries.iter_mut().find(|(known, _)| *known == source) {
            change(state);
        }
    }
}

/// How long a line should take to deliver `bytes`, shared with the requests under way on it; a guess if it was never
/// measured.
pub(super) fn expected_duration(line: &Line, bytes: u64) -> Duration {
    let rate = line.rate_bytes_s.unwrap_or(UNKNOWN_RATE_BYTES_S).max(1);
    let sharers = u64::try_from(line.in_flight).unwrap_or(u64::MAX).saturating_add(1);
    let millis = u128::from(bytes) * u128::from(sharers) * 1_000 / u128::from(rate);
    line.latency.unwrap_or_default() + Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX >> 12))
}

/// Whether a cache would deliver `bytes` in more than twice the time of another one, which is of a higher tier: tiers say who
/// is preferred, not who is waited for. Each has as many requests under way as it had when it was measured, about.
fn is_outpaced(line: &Line, other: &Line, bytes: u64) -> bool {
    let (Some(rate), true, false) = (line.rate_bytes_s, other.tier > line.tier, other.is_paused) else { return false };
    let takes = |rate: u64| Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
    let (this, latency) = (takes(rate), other.latency.unwrap_or_default());
    match other.rate_bytes_s {
        // It may have to be asked for the narinfo first.
        Some(rate) => (takes(rate) + latency * 2) * 2 < this,
        None => this >= TRY_UNKNOWN_MIN && (takes(UNKNOWN_CACHE_RATE_BYTES_S) + latency * 2) * 2 < this,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::UpstreamId;

    fn line(rate_bytes_s: Option<u64>, in_flight: usize) -> Line {
        Line { rate_bytes_s, in_flight, ..Line::default() }
    }

    #[test]
    fn measured_quick_line_is_asked_first_and_measured_crawling_one_last() {
        let [quick, unknown, slow] = [(); 3].map(|()| SourceId::random());
        let lines = |source: &SourceId| match source {
            source if *source == quick => line(Some(100_000_000), 3),
            source if *source == slow => line(Some(2_000), 0),
            _ => line(None, 0),
        };
        let mut roster = Roster::new([slow, unknown, quick], None);
        for expected in [quick, unknown, slow] {
            assert_eq!(roster.next(Instant::now(), 4 << 20, lines), Next::Ask(expected));
            roster.rule_out(expected);
        }
        assert_eq!(roster.next(Instant::now(), 1, lines), Next::Nobody);
    }

    #[test]
    fn preferred_one_is_asked_before_a_quicker_one_and_a_paused_one_after_a_slower_one() {
        let [quick, slow, paused] = [(); 3].map(|()| SourceId::random());
        let lines = |source: &SourceId| match source {
            source if *source == slow => line(Some(2_000), 0),
            source if *source == quick => line(Some(100_000_000), 0),
            _ => Line { is_paused: true, ..line(Some(100_000_000), 0) },
        };
        let mut roster = Roster::new([paused, quick, slow], Some(slow));
        for expected in [slow, quick, paused] {
            assert_eq!(roster.next(Instant::now(), 4 << 20, lines), Next::Ask(expected));
            roster.rule_out(expected);
        }
    }

    #[test]
    fn reserve_is_asked_after_a_slower_source() {
        let [slow, reserve] = [(); 2].map(|()| SourceId::random());
        let lines = |source: &SourceId| match source {
            source if *source == slow => line(Some(2_000), 0),
            _ => Line { is_reserve: true, ..line(Some(100_000_000), 0) },
        };
        let mut roster = Roster::new([reserve, slow], None);
        for expected in [slow, reserve] {
            assert_eq!(roster.next(Instant::now(), 4 << 20, lines), Next::Ask(expected));
            roster.rule_out(expected);
        }
    }

    #[test]
    fn caches_are_asked_tier_by_tier_and_those_that_have_answered_before_silent_ones() {
        let [far, silent, near] = [0, 1, 2].map(|number| SourceId::Upstream(UpstreamId(number)));
        let answered = Some(Duration::from_millis(40));
        let lines = |source: &SourceId| match source {
            source if *source == far => Line { tier: 1, latency: answered, ..line(Some(100_000_000), 0) },
            source if *source == near => Line { latency: answered, ..line(None, 0) },
            _ => Line::default(),
        };
        let mut roster = Roster::new([far, silent, near], None);
        for expected in [near, silent, far] {
            assert_eq!(roster.next(Instant::now(), 4 << 20, lines), Next::Ask(expected));
            roster.rule_out(expected);
        }
    }

    #[test]
    fn slow_cache_is_asked_after_one_of_a_higher_tier_that_is_more_than_twice_as_quick() {
        let [near, far] = [0, 1].map(|number| SourceId::Upstream(UpstreamId(number)));
        let first = |near_rate: Option<u64>, far_rate: Option<u64>, bytes: u64, far_pauses: bool| {
            let roster = Roster::new([near, far], None);
            roster.quickest_fresh(bytes, |source| match source {
                source if *source == far => Line { tier: 1, is_paused: far_pauses, ..line(far_rate, 0) },
                _ => Line { latency: Some(Duration::from_millis(1)), ..line(near_rate, 7) },
            })
        };
        let (slow, quick) = (Some(200_000), Some(10_000_000));
        assert_eq!(first(slow, quick, 100_000, false), Some(far));
        assert_eq!(first(slow, None, 100_000, false), Some(far), "it may be quicker");
        assert_eq!(first(slow, None, 10_000, false), Some(near), "which is not worth trying for so little");
        assert_eq!(first(slow, Some(350_000), 100_000, false), Some(near), "a little quicker is not enough");
        assert_eq!(first(slow, quick, 100_000, true), Some(near), "it keeps others waiting");
        assert_eq!(first(None, quick, 100_000, false), Some(near), "it was not measured lately");
        assert_eq!(first(Some(6_000_000), quick, 100_000, false), Some(near));
    }

    #[test]
    fn suspect_is_asked_after_all_others_however_quick_it_is() {
        let [quick, slow, paused] = [(); 3].map(|()| SourceId::random());
        let lines = |source: &SourceId| match source {
            source if *source == quick => line(Some(100_000_000), 0),
            source if *source == slow => line(Some(2_000), 0),
            _ => Line { is_paused: true, ..Line::default() },
        };
        let mut roster = Roster::new([quick, slow, paused], None);
        roster.suspect([quick]);
        for expected in [slow, paused, quick] {
            assert_eq!(roster.next(Instant::now(), 4 << 20, lines), Next::Ask(expected));
            roster.rule_out(expected);
        }
    }

    #[test]
    fn source_that_cannot_be_asked_is_tried_again_for_a_while_and_then_it_is_known_why() {
        let source = SourceId::random();
        let begun = Instant::now();
        let (mut now, mut asked) = (begun, 0);
        let mut roster = Roster::new([source], None);
        loop {
            match roster.next(now, 1, |_| Line::default()) {
                Next::Ask(_) => {
                    asked += 1;
                    roster.on_asked(source);
                    roster.on_unreached(source, now, now);
                }
                Next::Wait(until) => now = until,
                Next::Nobody => break,
            }
        }
        assert!((20..30).contains(&asked), "{asked}");
        assert!(now - begun <= UNREACHED_MAX && now - begun > UNREACHED_MAX - 2 * PAUSE_MAX);
        assert_eq!(roster.unreached().collect::<Vec<_>>(), [source]);
        roster.rule_out(source);
        assert_eq!(roster.unreached().count(), 0, "it said no");
    }

    #[test]
    fn source_that_broke_off_is_asked_again_for_a_while_and_one_that_never_sent_is_not() {
        let [sent, silent] = [(); 2].map(|()| SourceId::random());
        let mut now = Instant::now();
        let mut roster = Roster::new([sent, silent], None);
        assert!(!roster.on_broke(silent, false, now));
        let mut asked = 0;
        assert!(roster.on_broke(sent, true, now));
        loop {
            match roster.next(now, 1, |_| Line::default()) {
                Next::Ask(source) => {
                    assert_eq!(source, sent);
                    asked += 1;
                    roster.on_asked(source);
                    roster.on_broke(source, false, now);
                }
                Next::Wait(until) => now = until,
                Next::Nobody => break,
            }
        }
        assert!((3..8).contains(&asked), "{asked}");
    }
}
