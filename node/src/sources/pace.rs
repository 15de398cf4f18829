//! How much a cache is asked at a time and how often, and whose turn it is.
//!
//! A cache that has never answered gets a few questions at a time, and one more for each answer. One that says that it is
//! asked too much (429) is asked nothing until the time that it names, then so many times a second, evenly: about as often
//! as it answered before. That rate doubles each second until it refuses again, goes back by some percent, and rises slowly
//! from there, and quickly again where it is not refused any more. Users take turns all the while, so that whoever asks for much waits behind himself and behind nobody else.

use narmesh_resolver::{Turn, Turns, User};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// The most questions at a time: what HTTP/2 servers usually allow on one connection.
const AT_ONCE_MAX: usize = 128;
/// The most of them of one user. Below [`AT_ONCE_MAX`] at a time there is no such share: whoever is answered quickly would
/// get more turns than whoever is not.
const AT_ONCE_OF_ONE_USER_MAX: usize = 96;
/// The questions at a time before the first answer: of a cache that allows no more than one at a time, so many are refused.
const AT_ONCE_FIRST: usize = 8;
/// The lowest rate after a first refusal, requests per second. A guess: what any cache allows.
const RATE_FIRST: f64 = 8.0;
/// The lowest rate at all, requests per second; for longer pauses a cache has `Retry-After`.
const RATE_MIN: f64 = 0.5;
/// A cache that is asked so often without a refusal, requests per second, has no limit that matters.
const RATE_MAX: f64 = 1_000.0;
/// What remains of the rate after a refusal.
const DECREASE: f64 = 0.85;
/// How the rate grows each second in which it is used, before it is known where the limit is.
const SEEKING_GROWTH: f64 = 2.0;
/// The same near the limit: it is met again after some 8 s, which costs one refusal.
const STEADY_GROWTH: f64 = 1.02;
/// The same where the cache did not refuse at the rate at which it refused before: the limit is another one, or it was a
/// matter of chance.
const BEYOND_GROWTH: f64 = 1.25;
/// So much above the last rate that was refused is beyond it.
const BEYOND: f64 = 1.05;

/// The pace of one cache.
#[derive(Debug)]
pub(super) struct Pace {
    turns: Turns,
    /// Of a cache that limits us, the turn to ask next.
    next: Turns,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    at_once: usize,
    answered: Answered,
    limited: Option<Limited>,
}

/// How often a cache answered lately.
#[derive(Debug)]
struct Answered {
    since: Instant,
    count: u32,
    /// Answers in the second before.
    last: u32,
}

/// What is known of the limit of a cache.
#[derive(Debug)]
struct Limited {
    /// Requests per second.
    rate: f64,
    /// The rate at which it last refused, if we chose that.
    too_high: Option<f64>,
    refused: Instant,
    /// When the rate was last raised.
    raised: Instant,
    /// When it may be asked next.
    next: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        let answered = Answered { since: Instant::now(), count: 0, last: 0 };
        let state = State { at_once: AT_ONCE_FIRST, answered, limited: None };
        Self { turns: Turns::new(AT_ONCE_FIRST, AT_ONCE_FIRST), next: Turns::default(), state: Mutex::new(state) }
    }
}

impl Pace {
    /// Waits until this user may ask.
    pub(super) async fn take(&self, user: User) -> Turn {
        let turn = self.turns.take(user).await;
        if self.is_limited() {
            // Not by the time of each who waits: a user who comes later would wait for all of them.
            let next = self.next.take(user).await;
            while let Some(at) = self.start() {
                tokio::time::sleep_until(at).await;
            }
            drop(next);
        }
        turn
    }

    /// Whether the cache has said that it is asked too much, so that it is asked only so many times a second.
    pub(super) fn is_limited(&self) -> bool {
        self.state.lock().limited.is_some()
    }

    /// Takes the next time at which the cache may be asked, if that is now; otherwise returns it.
    fn start(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let limited = state.limited.as_mut()?;
        if limited.next > now {
            return Some(limited.next);
        }
        limited.next = now + Duration::from_secs_f64(1.0 / limited.rate);
        None
    }

    /// Notes an answer.
    pub(super) fn on_answer(&self) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.answered.add(now);
        let Some(limited) = &mut state.limited else {
            if state.at_once < AT_ONCE_MAX {
                self.allow_at_once(&mut state, 1);
            }
            return;
        };
        limited.grow(now);
        // It allows more than anybody here asks, so it need not be watched.
        if limited.rate >= RATE_MAX {
            state.limited = None;
        }
    }

    fn allow_at_once(&self, state: &mut State, more: usize) {
        state.at_once = (state.at_once + more).min(AT_ONCE_MAX);
        let is_full = state.at_once == AT_ONCE_MAX;
        self.turns.set_bounds(state.at_once, if is_full { AT_ONCE_OF_ONE_USER_MAX } else { state.at_once });
    }

    /// Notes that the cache refused, as too much, a request that was made at this time.
    pub(super) fn on_limited(&self, asked: Instant) {
        let now = Instant::now();
        let mut state = self.state.lock();
        match &mut state.limited {
            // What was under way together is told so together.
            Some(limited) if asked <= limited.refused => {}
            Some(limited) => {
                limited.too_high = Some(limited.rate);
                limited.rate = (limited.rate * DECREASE).max(RATE_MIN);
                (limited.refused, limited.raised) = (now, now);
            }
            None => {
                let rate = (state.answered.rate(now) * DECREASE).max(RATE_FIRST);
                state.limited = Some(Limited { rate, too_high: None, refused: now, raised: now, next: now });
                // From now on the rate is the bound.
                self.allow_at_once(&mut state, AT_ONCE_MAX);
            }
        }
    }
}

impl Answered {
    fn roll(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.since).as_secs();
        if seconds > 0 {
            (self.since, self.last, self.count) = (now, if seconds == 1 { self.count } else { 0 }, 0);
        }
    }

    fn add(&mut self, now: Instant) {
        self.roll(now);
        self.count = self.count.saturating_add(1);
    }

    /// Answers per second.
    fn rate(&mut self, now: Instant) -> f64 {
        self.roll(now);
        f64::from(self.last.max(self.count))
    }
}

impl Limited {
    /// Raises the rate for the time since the last answer, as far as the cache was asked at this rate meanwhile.
    fn grow(&mut self, now: Instant) {
        let used = now.saturating_duration_since(self.raised).as_secs_f64().min(2.0 / self.rate);
        let growth = match self.too_high {
            None => SEEKING_GROWTH,
            Some(too_high) if self.rate >= too_high * BEYOND => BEYOND_GROWTH,
            Some(_) => STEADY_GROWTH,
        };
        self.rate *= growth.powf(used);
        self.raised = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use narmesh_resolver::Caller;
    use std::sync::Arc;

    /// How many one user may ask at a time.
    fn places(pace: &Pace, user: u32) -> usize {
        let taken: Vec<_> = std::iter::from_fn(|| pace.take(Some(Caller::User(user))).now_or_never()).collect();
        taken.len()
    }

    #[tokio::test]
    async fn a_cache_is_asked_for_more_at_a_time_as_it_answers() {
        let pace = Pace::default();
        assert_eq!(places(&pace, 1), 8);
        (0..8).for_each(|_| pace.on_answer());
        assert_eq!(places(&pace, 1), 16);
        (0..200).for_each(|_| pace.on_answer());
        assert_eq!(places(&pace, 1), 96);
    }

    /// What a cache with such a limit says to somebody who always has something to ask.
    #[derive(Default)]
    struct Told {
        answered: u32,
        refused: u32,
    }

    /// Asks for so long a cache that answers `per_s` requests a second, `burst` of them at once, and names a pause.
    async fn ask(pace: &Arc<Pace>, per_s: f64, burst: f64, pause: Duration, lasts: Duration) -> Told {
        let (mut told, since) = (Told::default(), Instant::now());
        let (mut level, mut at, mut paused) = (0.0_f64, Instant::now(), Instant::now());
        while since.elapsed() < lasts {
            tokio::time::sleep_until(paused).await;
            drop(pace.take(None).await);
            let now = Instant::now();
            level = (level - (now - at).as_secs_f64() * per_s).max(0.0);
            at = now;
            if level <= burst {
                level += 1.0;
                told.answered += 1;
                pace.on_answer();
            } else {
                told.refused += 1;
                pace.on_limited(now);
                paused = now + pause;
            }
            // The way to the cache takes a while.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        told
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_that_a_cache_allows_is_found_and_kept_to() {
        let lasts = Duration::from_secs(60);
        for (per_s, burst) in [(20.0, 0.0), (20.0, 10.0), (5.0, 0.0), (100.0, 20.0)] {
            for pause in [Duration::from_millis(250), Duration::from_secs(1)] {
                let pace = Arc::new(Pace::default());
                let told = ask(&pace, per_s, burst, pause, lasts).await;
                let share = f64::from(told.answered) / (per_s * 60.0);
                assert!(share > 0.75, "{per_s}/s, {burst}, {pause:?}: {share:.2} of what is allowed");
                let refused = f64::from(told.refused) / f64::from(told.answered);
                assert!(refused < 0.06, "{per_s}/s, {burst}, {pause:?}: {} refused", told.refused);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_lifted_is_forgotten() {
        let pace = Arc::new(Pace::default());
        ask(&pace, 20.0, 0.0, Duration::from_secs(1), Duration::from_secs(20)).await;
        assert!(pace.is_limited());
        let told = ask(&pace, 1e9, 0.0, Duration::ZERO, Duration::from_secs(60)).await;
        assert_eq!(told.refused, 0);
        assert!(!pace.is_limited());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_refused_together_lower_the_rate_once() {
        let pace = Pace::default();
        let asked = Instant::now();
        (0..50).for_each(|_| pace.on_limited(asked));
        let rate = |pace: &Pace| pace.state.lock().limited.as_ref().unwrap().rate;
        assert!((rate(&pace) - RATE_FIRST).abs() < 0.01);
        tokio::time::advance(Duration::from_secs(1)).await;
        pace.on_limited(Instant::now());
        assert!((rate(&pace) - RATE_FIRST * DECREASE).abs() < 0.01);
        (0..100).for_each(|_| pace.on_answer());
        assert!(rate(&pace) < RATE_FIRST, "only time in which it answers raises the rate");
    }

    #[tokio::test(start_paused = true)]
    async fn users_take_turns_at_a_cache_that_limits_us() {
        let pace = Arc::new(Pace::default());
        pace.on_limited(Instant::now());
        let order = Arc::new(Mutex::new(Vec::new()));
        let asked = |user| {
            let (pace, order) = (Arc::clone(&pace), Arc::clone(&order));
            tokio::spawn(async move {
                let turn = pace.take(Some(Caller::User(user))).await;
                order.lock().push(user);
                drop(turn);
            })
        };
        let flood: Vec<_> = (0..90).map(|_| asked(1)).collect();
        tokio::task::yield_now().await;
        asked(2).await.unwrap();
        assert!(order.lock().len() <= 3, "{:?}", order.lock());
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
