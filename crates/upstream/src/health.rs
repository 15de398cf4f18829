//! Whether a cache is asked: one that fails again and again is left alone, and one request at a time, for which nobody waits,
//! tries whether it is back.

use crate::failure::{Failure, FailureKind};
use crate::latency::Latency;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// So many failures in a row, without an answer between them, and the cache is down, if it has failed for long enough.
const FAILURES_UNTIL_DOWN: u32 = 3;
/// For how long it must have failed, unless nothing can be expected of it: many requests are under way together, so three
/// failures may be one moment, such as its restart. Nix asks a cache again for some 4 s.
const FAILING_MIN: Duration = Duration::from_secs(4);
/// How long after it is found down, and after each further try in vain, a cache is tried again: about a third of the outage,
/// so that it is used soon after it is back. Seconds.
const PAUSES_S: [u64; 12] = [1, 2, 2, 2, 3, 4, 6, 9, 15, 30, 60, 150];
/// A cache that refuses certificate or credentials is first left alone for this one of them: it takes a person to mend that.
const LASTING_PAUSE: usize = 8;
/// A pause is this share longer or shorter, so that the machines of a site do not all come back at once.
const JITTER: f64 = 0.2;
/// If somebody wants something of a cache that is down, it is tried again this long after the last try.
const TRY_WANTED_AFTER: Duration = Duration::from_secs(1);
/// A cache that has failed for less than this may be back in a moment, though it is down: questions wait for it.
const MOMENT_MAX: Duration = Duration::from_secs(10);
/// How long a cache is asked last that others overtake, the first, the second, and each further time in a row.
const SILENCES: [Duration; 3] = [Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(150)];
/// A cache counts as silent when another source has answered first this many times in a row: it is then asked last for one of
/// [`SILENCES`]. It is not down, because it may only be slow, and have what no other has.
const OVERTAKEN_UNTIL_SILENT: u32 = 3;
/// What is overtaken within this time counts once: while a first connection is made, many lookups may wait for it.
const SAME_MOMENT: Duration = Duration::from_millis(100);
/// How long a cache that answers 429 is left alone, if it does not say; it doubles each time in a row.
/// Its limit is known soon, and each request beyond it costs this.
const LIMITED_PAUSE: Duration = Duration::from_millis(250);
/// The longest such pause.
const LIMITED_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The longest pause that a `Retry-After` can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// How a cache is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// It answers.
    Up,
    /// Its last requests failed, but it is still asked.
    Degraded,
    /// It is left alone for a while.
    Down,
}

impl HealthState {
    /// The word in `status` and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// What is known of the health of a cache.
#[derive(Clone, Debug)]
pub struct HealthReport {
    /// In one word.
    pub state: HealthState,
    /// How long a cache that is down is still left alone; zero while it is tried again.
    pub down_for: Option<Duration>,
    /// The last failure, and how long ago it was.
    pub last_failure: Option<(Failure, Duration)>,
    /// Number of failures since the start, by kind.
    pub failures: BTreeMap<FailureKind, u64>,
    /// Number of answers since the start; "has it not" is one.
    pub answers: u64,
    /// How long its narinfos usually take.
    pub latency: Option<Latency>,
}

/// The state machine of one cache. Time comes from outside.
#[derive(Debug, Default)]
pub(crate) struct Health {
    in_a_row: u32,
    /// Since when it has only failed.
    failing_since: Option<Instant>,
    /// If it is down.
    down: Option<Down>,
    /// Until when it is asked nothing because it said that it was asked too much.
    limited_until: Option<Instant>,
    /// Number of such pauses in a row.
    limits: u32,
    last_failure: Option<(Failure, Instant)>,
    failures: BTreeMap<FailureKind, u64>,
    answers: u64,
    latency: Option<Latency>,
    /// How often other sources answered first since its last answer.
    overtaken: u32,
    overtaken_at: Option<Instant>,
    /// Number of times in a row that it counted as silent.
    silences: u32,
    silent_until: Option<Instant>,
}

/// A cache that is left alone.
#[derive(Clone, Copy, Debug)]
struct Down {
    /// When it is tried again, if nobody wants anything before.
    until: Instant,
    /// When it was last tried.
    tried: Instant,
    /// Number of pauses in a row.
    pauses: usize,
    /// Whether the failure may be over in a moment.
    is_moment: bool,
    /// Whether trying again is of no use soon.
    is_lasting: bool,
}

impl Health {
    /// Whether a request may go to the cache now.
    pub(crate) fn may_be_asked(&self, now: Instant) -> bool {
        self.limited_for(now).is_none() && self.down.is_none()
    }

    /// Whether it is down and may be back within a moment.
    pub(crate) fn may_be_back_soon(&self, now: Instant) -> bool {
        let is_new = self.failing_since.is_some_and(|since| now.saturating_duration_since(since) < MOMENT_MAX);
        is_new && self.down.is_some_and(|down| down.is_moment)
    }

    /// When a cache that is down is to be tried again; `is_wanted` says whether somebody wants something of it. `None` if it is
    /// not down.
    pub(crate) fn try_at(&self, is_wanted: bool) -> Option<Instant> {
        let Down { until, tried, is_lasting, .. } = self.down?;
        Some(if is_wanted && !is_lasting { until.min(tried + TRY_WANTED_AFTER) } else { until })
    }

    /// How long it is still to be asked nothing because it was asked too much. It is well, and answers after that.
    pub(crate) fn limited_for(&self, now: Instant) -> Option<Duration> {
        let left = self.limited_until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Notes an answer, and how long it took where that is to count.
    pub(crate) fn on_answer(&mut self, took: Option<Duration>, now: Instant) {
        self.answers += 1;
        // What it was asked before it said so says nothing about how much it may be asked.
        if self.limited_for(now).is_none() {
            (self.limits, self.limited_until) = (0, None);
        }
        (self.in_a_row, self.failing_since) = (0, None);
        self.down = None;
        (self.overtaken, self.silences, self.silent_until) = (0, 0, None);
        if let Some(took) = took {
            self.latency = Some(Latency::after(self.latency, took));
        }
    }

    /// Notes that another source answered while this one had said nothing for so long: it takes at least that.
    pub(crate) fn on_overtaken(&mut self, waited: Duration, now: Instant) {
        // All requests of one moment are overtaken together, which is one sign and not many.
        if self.overtaken_at.is_none_or(|at| now.saturating_duration_since(at) >= SAME_MOMENT) {
            self.overtaken_at = Some(now);
            self.overtaken += 1;
        }
        if self.overtaken >= OVERTAKEN_UNTIL_SILENT && !self.is_silent(now) {
            self.silent_until = Some(now + silence_after(self.silences));
            self.silences += 1;
        }
        if self.latency.is_none_or(|latency| latency.mean() < waited) {
            self.latency = Some(Latency::after(self.latency, waited));
        }
    }

    /// Whether it has answered nothing lately, although it was asked, so that all others are asked first.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.silent_until.is_some_and(|until| now < until)
    }

    /// Notes a failure; `chance` in 0 to 1 chooses the jitter of a pause. Returns the pause, if one begins.
    pub(crate) fn on_failure(&mut self, failure: Failure, now: Instant, chance: f64) -> Option<Duration> {
        let (kind, retry_after) = (failure.kind, failure.retry_after);
        *self.failures.entry(kind).or_default() += 1;
        self.last_failure = Some((failure, now));
        if !kind.is_of_cache() {
            // The cache was reached, so it is not down.
            self.down = None;
            return None;
        }
        // It answers, and says itself when it wants to be asked again.
        if kind == FailureKind::RateLimited {
            self.down = None;
            return self.limit(retry_after, now);
        }
        self.in_a_row += 1;
        let failing = now.saturating_duration_since(*self.failing_since.get_or_insert(now));
        // Failures that may be over in a moment make it down only when they go on: all requests of one moment fail
        // together.
        let is_long = failing >= FAILING_MIN || !kind.may_be_a_moment();
        let is_down = kind.is_lasting() || (is_long && self.in_a_row >= FAILURES_UNTIL_DOWN);
        (self.down.is_none() && is_down).then(|| self.go_down(kind, 0, now, chance))
    }

    /// Notes that a try whether it is back failed, and which pause follows.
    pub(crate) fn on_tried_in_vain(&mut self, failure: Failure, now: Instant, chance: f64) {
        let (kind, pauses) = (failure.kind, self.down.map_or(0, |down| down.pauses));
        self.on_failure(failure, now, chance);
        // If it still is.
        if self.down.is_some() {
            self.go_down(kind, pauses, now, chance);
        }
    }

    fn go_down(&mut self, kind: FailureKind, pauses: usize, now: Instant, chance: f64) -> Duration {
        let is_lasting = kind.is_lasting();
        let index = if is_lasting { pauses.max(LASTING_PAUSE) } else { pauses };
        let pause = PAUSES_S
            .get(index.min(PAUSES_S.len() - 1))
            .map_or(RETRY_AFTER_MAX, |seconds| Duration::from_secs(*seconds));
        // Machines of one site that saw the same failure would else all try again together.
        let pause = pause.mul_f64(1.0 + JITTER * (2.0 * chance.clamp(0.0, 1.0) - 1.0));
        let is_moment = kind.may_be_a_moment() && !is_lasting;
        self.down = Some(Down { until: now + pause, tried: now, pauses: index + 1, is_moment, is_lasting });
        pause
    }

    /// Begins a pause, or makes the present one longer. Returns it if it is a new one.
    fn limit(&mut self, retry_after: Option<Duration>, now: Instant) -> Option<Duration> {
        let usual = LIMITED_PAUSE.saturating_mul(2_u32.saturating_pow(self.limits)).min(LIMITED_PAUSE_MAX);
        let pause = retry_after.map_or(usual, bounded);
        if let Some(left) = self.limited_for(now) {
            // Of those that were under way together, only what the cache itself says counts.
            if retry_after.is_some_and(|_| pause > left) {
                self.limited_until = Some(now + pause);
            }
            return None;
        }
        self.limits += 1;
        self.limited_until = Some(now + pause);
        Some(pause)
    }

    /// The state, the pause that is left, and the counters, as `status` shows them.
    pub(crate) fn report(&self, now: Instant) -> HealthReport {
        let limited_for = self.limited_for(now);
        let down_for = self.down.map(|down| down.until.saturating_duration_since(now)).max(limited_for);
        let state = match (down_for, self.in_a_row + self.limits) {
            (Some(_), _) => HealthState::Down,
            (None, 0) => HealthState::Up,
            (None, _) => HealthState::Degraded,
        };
        HealthReport {
            state,
            down_for,
            last_failure: self.last_failure.as_ref().map(|(failure, at)| (failure.clone(), now.duration_since(*at))),
            failures: self.failures.clone(),
            answers: self.answers,
            latency: self.latency,
        }
    }

    /// How long narinfos usually take.
    pub(crate) fn latency(&self) -> Option<Latency> {
        self.latency
    }
}

/// What a `Retry-After` asks for, within bounds.
fn bounded(asked: Duration) -> Duration {
    asked.clamp(Duration::from_secs(1), RETRY_AFTER_MAX)
}

/// How long it is asked last after so many such times in a row.
fn silence_after(earlier: u32) -> Duration {
    let index = usize::try_from(earlier).unwrap_or(usize::MAX).min(SILENCES.len() - 1);
    SILENCES.get(index).copied().unwrap_or(RETRY_AFTER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(health: &mut Health, kind: FailureKind, now: Instant) -> Option<Duration> {
        health.on_failure(Failure::new(kind, "x"), now, 0.5)
    }

    #[test]
    fn three_failures_pause_a_cache_until_a_try_is_answered() {
        let (mut health, start) = (Health::default(), Instant::now());
        assert_eq!(fail(&mut health, FailureKind::Timeout, start), None);
        assert_eq!(health.report(start).state, HealthState::Degraded);
        assert_eq!(fail(&mut health, FailureKind::Connect, start), None);
        let third = start + FAILING_MIN;
        assert_eq!(fail(&mut health, FailureKind::ServerError, third), Some(Duration::from_secs(PAUSES_S[0])));
        assert_eq!(health.report(third).state, HealthState::Down);
        let mut now = third;
        for pause in PAUSES_S.map(Duration::from_secs) {
            assert_eq!(health.try_at(false), Some(now + pause), "longer each time");
            assert_eq!(health.try_at(true), Some(now + pause.min(TRY_WANTED_AFTER)), "somebody wants something");
            now += pause;
            assert!(!health.may_be_asked(now), "only whoever tries asks it");
            health.on_tried_in_vain(Failure::new(FailureKind::Connect, "x"), now, 0.5);
        }
        health.on_answer(None, now);
        assert!(health.may_be_asked(now), "it answered");
        assert_eq!(health.report(now).state, HealthState::Up);
    }

    #[test]
    fn a_cache_that_failed_for_the_first_time_lately_may_be_back_soon() {
        let (mut health, start) = (Health::default(), Instant::now());
        for now in [start, start, start + FAILING_MIN] {
            fail(&mut health, FailureKind::Connect, now);
        }
        let last = start + MOMENT_MAX - Duration::from_millis(1);
        assert!(!health.may_be_asked(last) && health.may_be_back_soon(last));
        assert!(!health.may_be_back_soon(start + MOMENT_MAX));
        let mut offline = Health::default();
        for _ in 0..3 {
            fail(&mut offline, FailureKind::Dns, start);
        }
        assert!(!offline.may_be_asked(start) && !offline.may_be_back_soon(start), "there is no network");
    }

    #[test]
    fn failures_with_answers_between_them_pause_nothing() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 0..20 {
            assert_eq!(fail(&mut health, FailureKind::Interrupted, now), None);
            health.on_answer(Some(Duration::from_millis(10)), now);
        }
    }

    #[test]
    fn a_moment_of_failures_pauses_nothing_however_many_they_are() {
        let (mut health, start) = (Health::default(), Instant::now());
        for millis in 0..FAILING_MIN.as_millis() {
            let now = start + Duration::from_millis(millis.try_into().unwrap());
            assert_eq!(fail(&mut health, FailureKind::Connect, now), None);
        }
        health.on_answer(None, start + FAILING_MIN);
        assert_eq!(fail(&mut health, FailureKind::Connect, start + FAILING_MIN), None, "it answered in between");
    }

    #[test]
    fn where_names_are_not_found_there_is_no_network() {
        let (mut health, now) = (Health::default(), Instant::now());
        let pauses: Vec<_> = (0..3).map(|_| fail(&mut health, FailureKind::Dns, now)).collect();
        assert_eq!(pauses, [None, None, Some(Duration::from_secs(PAUSES_S[0]))]);
    }

    #[test]
    fn what_lasts_pauses_at_once() {
        let (mut health, now) = (Health::default(), Instant::now());
        assert_eq!(fail(&mut health, FailureKind::Tls, now), Some(Duration::from_secs(PAUSES_S[LASTING_PAUSE])));
        assert_eq!(health.try_at(true), health.try_at(false), "nobody mends it because somebody wants something");
        assert!(!health.may_be_back_soon(now));
    }

    #[test]
    fn a_cache_that_is_asked_too_much_is_left_alone_for_as_long_as_it_says_and_is_not_down() {
        let limited = |seconds| Failure {
            retry_after: Some(Duration::from_secs(seconds)),
            ..Failure::new(FailureKind::RateLimited, "x")
        };
        let (mut health, now) = (Health::default(), Instant::now());
        assert_eq!(health.on_failure(limited(7), now, 0.5), Some(Duration::from_secs(7)));
        assert_eq!(health.on_failure(limited(9), now, 0.5), None, "they were under way together");
        health.on_answer(None, now);
        assert_eq!(health.limited_for(now), Some(Duration::from_secs(9)), "the answer was under way, too");
        assert!(!health.may_be_asked(now) && health.report(now).state == HealthState::Down);
        let later = now + Duration::from_secs(9);
        assert!(health.may_be_asked(later), "there is no trial");
        assert_eq!(health.report(later).state, HealthState::Degraded);
        health.on_answer(None, later);
        assert_eq!(health.report(later).state, HealthState::Up);
        assert_eq!(Health::default().on_failure(limited(u64::MAX), now, 0.5), Some(RETRY_AFTER_MAX));
        let pauses = [0, 1, 3, 7].map(|quarters| {
            let at = later + LIMITED_PAUSE * quarters;
            fail(&mut health, FailureKind::RateLimited, at).unwrap()
        });
        assert_eq!(pauses, [1, 2, 4, 8].map(|times| LIMITED_PAUSE * times), "it does not say for how long");
    }

    #[test]
    fn a_false_path_says_nothing_about_the_cache() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 0..20 {
            assert_eq!(fail(&mut health, FailureKind::Untrusted, now), None);
        }
        assert!(health.may_be_asked(now));
    }

    #[test]
    fn an_overtaken_cache_counts_as_slow_until_it_answers_quickly() {
        let (mut health, now) = (Health::default(), Instant::now());
        health.on_overtaken(Duration::from_millis(250), now);
        assert_eq!(health.latency().unwrap().mean(), Duration::from_millis(250));
        health.on_overtaken(Duration::from_millis(20), now);
        assert_eq!(health.latency().unwrap().mean(), Duration::from_millis(250), "20 ms say nothing new");
        (0..50).for_each(|_| health.on_answer(Some(Duration::from_millis(10)), now));
        assert!(health.latency().unwrap().mean() < Duration::from_millis(20));
    }

    #[test]
    fn a_cache_that_others_overtake_is_silent_for_a_while_and_never_down() {
        let (mut health, start) = (Health::default(), Instant::now());
        let overtake = |health: &mut Health, now| health.on_overtaken(Duration::from_millis(250), now);
        (0..30).for_each(|_| overtake(&mut health, start));
        assert!(!health.is_silent(start), "one slow moment says little");
        let third = start + 2 * SAME_MOMENT;
        [start + SAME_MOMENT, third].into_iter().for_each(|now| overtake(&mut health, now));
        let after = third + SILENCES[0];
        assert!(health.is_silent(third) && !health.is_silent(after));
        overtake(&mut health, after);
        assert!(health.is_silent(after + SILENCES[0]), "longer each time");
        assert!(health.may_be_asked(after) && health.report(after).state == HealthState::Up);
        health.on_answer(None, after);
        assert!(!health.is_silent(after), "it answered");
    }

    #[test]
    fn requests_that_fail_together_begin_one_pause() {
        let (mut health, now) = (Health::default(), Instant::now());
        assert_eq!(fail(&mut health, FailureKind::Connect, now), None);
        let then = now + FAILING_MIN;
        let pauses = (0..30).filter_map(|_| fail(&mut health, FailureKind::Connect, then)).count();
        assert_eq!(pauses, 1);
    }
}
