//! Reads NARs ahead. Nix up to 2.8 copies a closure one NAR after the other, and a small NAR is verified whole before
//! its first byte goes out. While Nix unpacks one NAR, the next ones are read.
//!
//! The next ones are guessed: those whose narinfos Nix has asked for and whose NARs it has not, in the order of
//! [`copy_order`]. Guesses have to come true first: each NAR that was the next one of the plan doubles how many are
//! read ahead, and one that was not ends reading ahead. So for a build, which fetches in another order, nothing is read
//! in vain.

mod copy_order;

use crate::nar::transfers::Transfers;
use crate::narinfo::NarInfos;
use crate::request_log::Origins;
use crate::shared::Shared;
use bytes::Bytes;
use copy_order::copy_order;
use narmesh_protocol::wire::SMALL_NAR_BYTES_MAX;
use narmesh_protocol::{HashPart, NarUrl};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The most narinfos given to Nix whose NARs it may still ask for; when there are more, all are forgotten.
const EXPECTED_MAX: usize = 16_384;
/// The most NARs read ahead: half of what a holder grants by default.
const AHEAD_MAX: usize = 8;
/// The most bytes read ahead. What does not fit into the free part of `limits.nar_buffer_bytes` is not read ahead
/// either.
const AHEAD_BYTES_MAX: u64 = 16 << 20;
/// What was read ahead is thrown away if Nix does not ask for it within this time.
const UNUSED_MAX: Duration = Duration::from_secs(10);
/// A new plan is made only when at least one in this many of the expected narinfos was given since the last plan, so
/// that planning costs a constant per narinfo, however Nix asks.
const PLAN_SHARE: usize = 8;

/// The NARs that Nix is expected to ask for, and those that are being read ahead.
#[derive(Debug)]
pub(crate) struct NarsAhead {
    shared: Arc<Shared>,
    narinfos: Arc<NarInfos>,
    transfers: Arc<Transfers>,
    guesses: Mutex<Guesses>,
}

#[derive(Debug, Default)]
struct Guesses {
    expected: HashSet<HashPart>,
    /// Number of narinfos given since the plan was made.
    given: usize,
    plan: VecDeque<NarUrl>,
    /// How many NARs of the plan are read ahead; 0 until a guess comes true.
    window: usize,
    reading: HashMap<NarUrl, Reading>,
    /// Whether a task runs that drops what nobody asks for ([`throw_away`]).
    is_tidied: bool,
}

#[derive(Debug)]
struct Reading {
    since: Instant,
    origins: Arc<Origins>,
    task: JoinHandle<Option<Bytes>>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NarsAhead {
    pub(super) fn new(shared: Arc<Shared>, narinfos: Arc<NarInfos>, transfers: Arc<Transfers>) -> Self {
        Self { shared, narinfos, transfers, guesses: Mutex::default() }
    }

    /// Notes that Nix was given the narinfo of this path.
    pub(crate) fn expect(&self, part: HashPart) {
        let mut guesses = self.guesses.lock();
        // Whatever was expected and never asked for would else stay here for ever.
        if guesses.expected.len() >= EXPECTED_MAX {
            guesses.expected.clear();
        }
        if guesses.expected.insert(part) {
            guesses.given += 1;
        }
    }

    /// Takes the NAR that Nix asks for, if it is being read ahead, and begins to read the next ones. The future returns
    /// `None` if it could not be read; the origins say who sent it.
    pub(super) fn take(
        self: &Arc<Self>,
        url: NarUrl,
    ) -> Option<(impl Future<Output = Option<Bytes>> + use<>, Arc<Origins>)> {
        let reading = {
            let mut guesses = self.guesses.lock();
            let plan = |expected: &HashSet<HashPart>| {
                let answers = self.narinfos.answers_in_memory(expected);
                copy_order(answers.iter().map(|answer| &answer.info))
            };
            self.shared.counters.ahead_wasted.inc_by(guesses.on_asked(&url, plan));
            let reading = guesses.reading.remove(&url);
            // The place of this one is free for the next.
            self.begin_reading(&mut guesses);
            reading
        };
        let mut reading = reading?;
        let origins = Arc::clone(&reading.origins);
        Some((async move { (&mut reading.task).await.ok().flatten() }, origins))
    }

    fn begin_reading(self: &Arc<Self>, guesses: &mut Guesses) {
        for next in guesses.next() {
            // It came into our own store meanwhile, by this very copy.
            if self.shared.has(&next.hash_part) {
                continue;
            }
            let origins = Arc::<Origins>::default();
            let task = tokio::spawn(Arc::clone(&self.transfers).read_in_advance(next, Arc::clone(&origins)));
            guesses.reading.insert(next, Reading { since: Instant::now(), origins, task });
        }
        if !guesses.is_tidied && !guesses.reading.is_empty() {
            guesses.is_tidied = true;
            tokio::spawn(throw_away(Arc::downgrade(self)));
        }
    }
}

impl Guesses {
    /// Notes that Nix asks for this NAR; `plan` puts the expected ones in order. Returns how many NARs were read in
    /// vain.
    fn on_asked(&mut self, url: &NarUrl, plan: impl FnOnce(&HashSet<HashPart>) -> VecDeque<NarUrl>) -> u64 {
        let is_expected = self.expected.contains(&url.hash_part);
        let mut at = self.plan.iter().position(|next| next == url);
        if at.is_none() && is_expected && self.given * PLAN_SHARE >= self.expected.len() {
            self.plan = plan(&self.expected);
            self.given = 0;
            at = self.plan.iter().position(|next| next == url);
        }
        self.expected.remove(&url.hash_part);
        match at {
            Some(0) => {
                self.plan.pop_front();
                // The guess came true, so twice as many are read ahead: at first, little is wasted on a wrong order.
                self.window = (self.window * 2).clamp(1, AHEAD_MAX);
                0
            }
            Some(skipped) => {
                for passed in self.plan.drain(..=skipped) {
                    // Nix skipped it, because it has it or does not want it.
                    self.expected.remove(&passed.hash_part);
                }
                // The order is not the planned one, so nothing is read ahead until a guess comes true again.
                self.give_up(url)
            }
            None => self.give_up(url),
        }
    }

    /// Stops reading ahead, except for `but`, which Nix asks for. Returns how many NARs were read in vain.
    fn give_up(&mut self, but: &NarUrl) -> u64 {
        self.window = 0;
        let before = self.reading.len();
        self.reading.retain(|url, _| url == but);
        (before - self.reading.len()) as u64
    }

    /// The next NARs to begin to read.
    fn next(&self) -> Vec<NarUrl> {
        let mut bytes = self.reading.keys().map(|url| url.nar_size).sum::<u64>();
        let next = self.plan.iter().take(self.window).filter(|url| !self.reading.contains_key(url));
        next.take_while(|url| {
            bytes += url.nar_size;
            url.nar_size <= SMALL_NAR_BYTES_MAX && bytes <= AHEAD_BYTES_MAX
        })
        .copied()
        .collect()
    }
}

/// Throws away what Nix did not ask for in time; ends when nothing is being read ahead.
async fn throw_away(ahead: Weak<NarsAhead>) {
    loop {
        tokio::time::sleep(UNUSED_MAX / 10).await;
        let Some(ahead) = ahead.upgrade() else { return };
        let mut guesses = ahead.guesses.lock();
        let before = guesses.reading.len();
        guesses.reading.retain(|_, reading| reading.since.elapsed() < UNUSED_MAX);
        let wasted = before - guesses.reading.len();
        if wasted > 0 {
            ahead.shared.counters.ahead_wasted.inc_by(wasted as u64);
            // The guesses are wrong. Nothing is read ahead until the next one comes true.
            guesses.window = 0;
        }
        if guesses.reading.is_empty() {
            guesses.is_tidied = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::NarHash;

    fn url(number: u8) -> NarUrl {
        NarUrl::new(HashPart([number; 20]), NarHash([number; 32]), 1_000)
    }

    fn sorted(expected: &HashSet<HashPart>) -> VecDeque<NarUrl> {
        let mut numbers: Vec<_> = expected.iter().map(|part| part.0[0]).collect();
        numbers.sort_unstable();
        numbers.into_iter().map(url).collect()
    }

    fn expecting(numbers: std::ops::Range<u8>) -> Guesses {
        let expected: HashSet<_> = numbers.map(|number| url(number).hash_part).collect();
        Guesses { given: expected.len(), expected, ..Guesses::default() }
    }

    #[test]
    fn each_guess_that_comes_true_doubles_how_many_are_read_ahead() {
        let mut guesses = expecting(0..40);
        let ahead: Vec<_> = (0..6)
            .map(|number| {
                guesses.on_asked(&url(number), sorted);
                guesses.next().len()
            })
            .collect();
        assert_eq!(ahead, [1, 2, 4, 8, 8, 8]);
    }

    #[test]
    fn requests_in_another_order_read_nothing_ahead_and_make_one_plan() {
        let mut guesses = expecting(0..40);
        let mut plans = 0;
        for number in [7, 3, 20, 11, 30, 29, 1] {
            guesses.on_asked(&url(number), |expected| {
                plans += 1;
                sorted(expected)
            });
            assert_eq!(guesses.next(), []);
        }
        assert_eq!(plans, 1);
    }

    #[test]
    fn nars_that_nix_skips_are_no_longer_expected() {
        let mut guesses = expecting(0..10);
        guesses.on_asked(&url(0), sorted);
        assert_eq!(guesses.next(), [url(1)]);
        // Nix skips 1 to 4.
        guesses.on_asked(&url(5), sorted);
        assert_eq!((guesses.next(), guesses.expected.len()), (vec![], 4));
        guesses.on_asked(&url(6), sorted);
        assert_eq!(guesses.next(), [url(7)]);
    }

    #[test]
    fn unexpected_nar_makes_no_plan() {
        let mut guesses = expecting(0..10);
        guesses.on_asked(&url(77), |_| panic!("a plan for a path that Nix never looked up"));
        assert_eq!(guesses.next(), []);
    }

    #[test]
    fn bytes_read_ahead_are_bounded() {
        let mut guesses = expecting(0..0);
        guesses.plan = (0..8).map(|number| NarUrl { nar_size: 6 << 20, ..url(number) }).collect();
        guesses.window = 8;
        assert_eq!(guesses.next().len(), 2);
        guesses.plan = VecDeque::from([NarUrl { nar_size: SMALL_NAR_BYTES_MAX + 1, ..url(0) }, url(1)]);
        assert_eq!(guesses.next(), [], "a large NAR is streamed, and nothing after it is read ahead");
    }
}
