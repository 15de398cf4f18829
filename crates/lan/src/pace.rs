//! When we ask and when we say that we are there.

use narmesh_machine::Moment;
use rand::{Rng, RngExt};
use std::ops::Range;

/// After a start or a change of our addresses we ask and announce ourselves at these times, milliseconds: some of it may be
/// lost, and a wireless network may take seconds until it carries anything.
const BURST_MS: [u64; 4] = [0, 1_000, 3_000, 8_000];
/// Then we announce ourselves at this pace, milliseconds. Nobody asks again, so a network of N members carries N packets in
/// this time, not N x N.
const REPEAT_MS: Range<u64> = 45_000..55_000;
/// An answer waits for this long, milliseconds, so that not all members answer at once. RFC 6762, section 6.
const ANSWER_MS: Range<u64> = 20..120;
/// We announce ourselves no more often than this, milliseconds, whoever asks. RFC 6762, section 6.
const PAUSE_MS: u64 = 1_000;
/// The clock, which runs on in suspend, is looked at this often, milliseconds.
const LOOK_MS: u64 = 4_000;
/// If we looked at the clock this long ago, milliseconds, the machine was suspended.
const SUSPENDED_MS: u64 = 10_000;

/// What to say now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Due {
    /// Whether to ask who is there.
    pub(crate) asks: bool,
}

/// The plan.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When the burst began, and how much of it was said.
    begun: Moment,
    said_of_burst: usize,
    /// When we announce ourselves next although nobody asks, once the burst is over.
    repeat: Moment,
    /// When we answer a question.
    answer: Option<Moment>,
    said: Option<Moment>,
    looked: Moment,
}

impl Pace {
    pub(crate) fn new(now: Moment) -> Self {
        Self { begun: now, said_of_burst: 0, repeat: now, answer: None, said: None, looked: now }
    }

    /// Our addresses changed: everything is said anew.
    pub(crate) fn restart(&mut self, now: Moment) {
        (self.begun, self.said_of_burst) = (now, 0);
    }

    /// Somebody asked.
    pub(crate) fn on_question(&mut self, now: Moment, rng: &mut impl Rng) {
        let soon = now.0 + rng.random_range(ANSWER_MS);
        let allowed = self.said.map_or(0, |said| said.0 + PAUSE_MS);
        self.answer.get_or_insert(Moment(soon.max(allowed)));
    }

    /// What to say now, if anything; notes that it was said.
    pub(crate) fn take_due(&mut self, now: Moment, rng: &mut impl Rng) -> Option<Due> {
        // After a suspend the machine may be on another network, where nobody has heard of it.
        if now.since(self.looked) >= SUSPENDED_MS {
            self.restart(now);
        }
        self.looked = now;
        let is_in_burst = self.next_of_burst().is_some_and(|at| at <= now);
        let is_answer = self.answer.is_some_and(|at| at <= now);
        let is_repeat = self.next_of_burst().is_none() && self.repeat <= now;
        if !(is_in_burst || is_answer || is_repeat) {
            return None;
        }
        self.said_of_burst += usize::from(is_in_burst);
        (self.answer, self.said) = (None, Some(now));
        self.repeat = Moment(now.0 + rng.random_range(REPEAT_MS));
        Some(Due { asks: is_in_burst })
    }

    /// How long until [`Self::take_due`] has to be called again, milliseconds.
    pub(crate) fn wait_ms(&self, now: Moment) -> u64 {
        let next = self.next_of_burst().unwrap_or(self.repeat);
        let next = self.answer.map_or(next, |answer| answer.min(next));
        next.since(now).min(LOOK_MS)
    }

    fn next_of_burst(&self) -> Option<Moment> {
        BURST_MS.get(self.said_of_burst).map(|after| Moment(self.begun.0 + after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    /// When something is said within `lasting_ms`, and whether it asks, while somebody asks every `asked_ms`.
    fn play(pace: &mut Pace, from: u64, lasting_ms: u64, asked_ms: Option<u64>) -> Vec<(u64, bool)> {
        let mut rng = StdRng::seed_from_u64(1);
        let mut said = Vec::new();
        for at in from..from + lasting_ms {
            let now = Moment(at);
            if asked_ms.is_some_and(|every| at % every == 0) {
                pace.on_question(now, &mut rng);
            }
            if let Some(Due { asks }) = pace.take_due(now, &mut rng) {
                said.push((at - from, asks));
            }
            assert!(pace.wait_ms(now) <= LOOK_MS);
        }
        said
    }

    #[test]
    fn a_change_is_told_at_once_and_four_times_and_then_about_once_a_minute() {
        let mut pace = Pace::new(Moment(5));
        let said = play(&mut pace, 5, 600_000, None);
        assert_eq!(said[..4], BURST_MS.map(|at| (at, true)));
        assert!((14..=18).contains(&said.len()) && said[4..].iter().all(|(_, asks)| !asks), "{said:?}");
        pace.restart(Moment(600_005));
        assert_eq!(play(&mut pace, 600_005, 10_000, None), BURST_MS.map(|at| (at, true)));
    }

    #[test]
    fn who_asks_without_end_gets_one_answer_a_second() {
        let mut pace = Pace::new(Moment(0));
        play(&mut pace, 0, 20_000, None);
        let said = play(&mut pace, 20_000, 60_000, Some(1));
        assert!(said.first().is_some_and(|(at, _)| *at < 120), "the first one at once: {said:?}");
        assert!((50..=61).contains(&said.len()), "{said:?}");
        assert!(said.windows(2).all(|pair| pair[1].0 - pair[0].0 >= PAUSE_MS), "{said:?}");
    }

    #[test]
    fn a_machine_that_wakes_up_says_everything_anew() {
        let mut pace = Pace::new(Moment(0));
        play(&mut pace, 0, 20_000, None);
        assert_eq!(play(&mut pace, 3_620_000, 10_000, None), BURST_MS.map(|at| (at, true)));
    }
}
