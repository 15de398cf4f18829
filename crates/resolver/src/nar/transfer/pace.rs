//! Looks at the pace of the sources under way: a quicker one takes over, a hopeless one is left.

use std::time::Duration;

use super::leaving::{Left, how_stalled};
use super::{Step, Transfer};
use crate::lookup_log::LookupEvent;
use crate::nar::race::{RACE_AFTER, RACE_CACHES_AFTER, RACE_RELATED_AFTER};
use crate::nar::roster::expected_duration;
use crate::source::Observation;

/// A source of unknown pace joins a race only if the transfer would otherwise last longer than this.
const RACE_UNKNOWN_MIN: Duration = Duration::from_secs(2);
/// The same of an upstream cache beside another one: then its rate is known for all NARs that follow.
const RACE_UNKNOWN_CACHE_MIN: Duration = Duration::from_millis(500);

impl Transfer {
    /// Looks at the pace of the sources under way.
    pub(super) fn look(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        self.looked = self.waited;
        self.leave_silent_neighbour();
        // From the end, because whoever is left leaves the list.
        for at in (0..self.runners.len()).rev() {
            let Some(runner) = self.runners.get(at) else { continue };
            let line = self.line(&runner.source);
            if let Some(why) = runner.why_stalled(&line, self.waited, self.settings.stall_timeout) {
                let left = how_stalled(runner, &line);
                self.leave(at, left, why);
            }
        }
        if self.runners.len() > 1 {
            return self.judge_race(out);
        }
        if let Some(step) = self.take_tail(out) {
            return Some(step);
        }
        // Nobody sends leaves of the tree that counts, so maybe that tree is wrong: those whom it contradicts may go
        // on.
        if self.proofs.as_ref().is_some_and(|proofs| proofs.is_out_of_patience(self.waited)) && self.roster.recall() {
            self.stop_parallel();
            self.proofs.iter_mut().for_each(|proofs| proofs.drop_counting(self.waited));
        }
        if self.parallel.is_some() || self.begin_parallel() {
            self.look_at_workers();
            return None;
        }
        self.begin_race();
        self.give_up_hopeless();
        None
    }

    /// Leaves the only source under way if the rest would take too long at its pace.
    pub(super) fn give_up_hopeless(&mut self) {
        let [runner] = self.runners.as_slice() else { return };
        let source = runner.source;
        let rest = self.endurance.hopeless_wait(source, self.offset, self.bytes_left());
        if let Some(rest) = rest.filter(|_| !runner.is_queued()) {
            self.context.sources.observe(source, Observation::TimedOut);
            self.leave(0, Left::SaidNo, format!("at its pace the rest would take {} h", rest.as_secs() / 3_600));
        }
    }

    /// Asks another source for the same bytes if that one should be done in half the time.
    pub(super) fn begin_race(&mut self) {
        let (left, waited) = (self.bytes_left(), self.waited);
        if !self.race.may_begin(waited) {
            return;
        }
        let Some(other) = self.challenger() else { return };
        let Some(runner) = self.runners.first_mut() else { return };
        let are_caches = runner.source.peer().is_none() && other.peer().is_none();
        // How long a cache takes until it sends, says nothing about its rate.
        let (after, unknown_min) = match are_caches && runner.bytes() > 0 {
            true => (RACE_CACHES_AFTER, RACE_UNKNOWN_CACHE_MIN),
            false => (RACE_AFTER, RACE_UNKNOWN_MIN),
        };
        let age = runner.age(waited);
        if age < after {
            return;
        }
        // A source that stands still has no pace, whatever its last window showed.
        let rate = if runner.idle_time(waited) >= after { Some(0) } else { runner.measure_rate_bytes_s(waited) };
        let (Some(rate), source) = (rate, runner.source) else { return };
        // A connection begins slowly: before its first second is over, what the source usually does counts as well.
        let usual = self.line(&source).rate_bytes_s.filter(|_| are_caches && age < RACE_AFTER).unwrap_or(0);
        let at_this_pace = left.saturating_mul(1_000).checked_div(rate.max(usual));
        let at_this_pace = at_this_pace.map_or(Duration::MAX, Duration::from_millis);
        let is_related = self.is_related(&other);
        let is_early = is_related && self.runners.first().is_some_and(|first| first.age(waited) < RACE_RELATED_AFTER);
        if self.roster.is_suspect(&other) || is_early {
            return;
        }
        let line = self.line(&other);
        let is_worth_it = match line.rate_bytes_s {
            Some(_) => expected_duration(&line, left).saturating_mul(2) < at_this_pace,
            None => at_this_pace > unknown_min,
        };
        if !is_worth_it || (self.is_strict && self.offset > 0) {
            return;
        }
        self.race.begin(waited, self.runners.first().map_or(0, |first| first.tail.len()), is_related.then_some(rate));
        self.ask(other);
    }

    /// Ends the race once it is decided; the quicker source goes on.
    pub(super) fn judge_race(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let [first, second] = self.runners.as_slice() else { return None };
        let loser = self.race.decide([first.tail.len(), second.tail.len()], self.bytes_left(), self.waited)?;
        let runner = self.runners.remove(loser);
        self.report_received(&runner);
        self.roster.on_stopped(runner.source);
        let slower = LookupEvent::NarBroken(runner.source, self.offset, "another source is quicker".to_owned());
        self.context.lookup_log.note(self.url.hash_part, slower);
        drop(runner);
        self.take_tail(out)
    }
}
