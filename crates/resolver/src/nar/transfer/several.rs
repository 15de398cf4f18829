//! How a transfer reads from several sources at once; what is asked of whom is decided in [`Parallel`].

use std::time::Duration;

use super::leaving::{Left, how_stalled};
use super::{Step, Transfer};
use crate::lookup_log::LookupEvent;
use crate::nar::parallel::{
    Order, Parallel, ReadyLeaf, SHARE_MIN, Tick, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN, WORTH_IT, Worker,
};
use crate::nar::proofs::{Judgement, Proofs};
use crate::nar::runner::Said;
use crate::source::{Piece, SourceId};

/// After reading from several was given up, it is tried again after this.
const REST: Duration = Duration::from_secs(30);
/// Sources that join the first one together.
const FIRST_HELPERS: usize = 3;

impl Transfer {
    /// Reads from several sources from now on, if that promises to be quicker and there is memory for it.
    pub(super) fn begin_parallel(&mut self) -> bool {
        // Ranges of several sources can be told apart only where each leaf proves itself.
        let (Some(leaf_bytes), false) = (self.proofs.as_ref().and_then(Proofs::leaf_bytes), self.is_strict) else {
            return false;
        };
        let (left, waited) = (self.bytes_left(), self.waited);
        let [runner] = self.runners.as_mut_slice() else { return false };
        if waited < self.parallel_after || runner.is_queued() || runner.is_opening() || runner.source.peer().is_none() {
            return false;
        }
        // The leaf that it is sending is its own, so that in the last one nothing is left to give to others: a race asks another
        // source for the same bytes.
        let begun = self.offset + runner.tail.len() as u64;
        if (begun + 1).next_multiple_of(leaf_bytes) >= self.url.nar_size {
            return false;
        }
        let Some(rate) = runner.measure_rate_bytes_s(waited) else { return false };
        let would_end_soon = left.checked_div(rate).is_some_and(|left_s| Duration::from_secs(left_s) <= WORTH_IT);
        if would_end_soon || self.helpers(1, rate).is_empty() {
            return false;
        }
        let take = |bytes| Some((bytes, self.context.buffers.take_if_free(bytes)?));
        let Some(window) = take(WINDOW_BYTES_MAX).or_else(|| take(WINDOW_BYTES_MIN)) else { return false };
        let Some(runner) = self.runners.pop() else { return false };
        let sizes = (self.url.nar_size, leaf_bytes);
        self.parallel = Some(Parallel::begin(runner, rate, self.offset, sizes, window, waited));
        self.admit(FIRST_HELPERS);
        true
    }

    /// Peers that were not asked yet, the one that should be quickest first. Upstream caches are left out: the whole site
    /// shares the line to them; and so are those that are known to bring next to nothing beside `rate`, bytes per second.
    fn helpers(&self, most: usize, rate: u64) -> Vec<SourceId> {
        let fresh = self.roster.fresh(self.bytes_left(), |source| self.context.sources.line(source));
        let is_useful = |source: &SourceId| {
            let may_join = self.parallel.as_ref().is_none_or(|parallel| parallel.may_join(source));
            let line = self.line(source);
            let brings_something = line.rate_bytes_s.is_none_or(|usual| usual >= rate / SHARE_MIN);
            let is_trusted =
                source.peer().is_some() && !self.roster.is_suspect(source) && !self.roster.is_named(source);
            is_trusted && !line.is_paused && brings_something && may_join
        };
        fresh.into_iter().filter(is_useful).take(most).collect()
    }

    fn admit(&mut self, most: usize) {
        let rate = self.parallel.as_ref().map_or(0, Parallel::rate);
        for source in self.helpers(most, rate) {
            self.roster.on_asked(source);
            self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarFrom(source, self.offset));
            self.parallel.iter_mut().for_each(|parallel| parallel.join(source));
        }
    }

    /// Goes on with one source.
    pub(super) fn stop_parallel(&mut self) {
        let Some(parallel) = self.parallel.take() else { return };
        parallel.members().for_each(|source| self.roster.on_stopped(source));
        parallel.workers.iter().for_each(|worker| self.report_received(&worker.runner));
        self.parallel_after = self.waited + REST;
    }

    /// Takes over the next leaf, if it has come.
    pub(super) fn take_ready(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let ReadyLeaf { source, bytes, hash } = self.parallel.as_mut()?.ready.remove(&self.offset)?;
        // Another tree may count by now.
        if !self.proofs.as_ref().is_some_and(|proofs| proofs.is_right(self.offset, &hash)) {
            self.stop_parallel();
            return None;
        }
        let step = self.take(source, bytes, Some(hash), out);
        while let Some(worker) = self.parallel.as_mut().and_then(|parallel| parallel.take_overtaken(self.offset)) {
            self.report_received(&worker.runner);
        }
        step
    }

    /// Has ranges read by whoever has time.
    pub(super) fn give_orders(&mut self) {
        let offset = self.offset;
        while let Some(Order { source, range }) =
            self.parallel.as_mut().and_then(|parallel| parallel.next_order(offset))
        {
            let runner = self.start(source, range.clone());
            let worker = Worker { runner, at: range.start, end: range.end, asked_end: range.end };
            if let Some(parallel) = &mut self.parallel {
                parallel.workers.push(worker);
            }
        }
    }

    /// Handles what the source of one range says.
    pub(super) fn hear_worker(&mut self, number: usize, said: Said) {
        let Some(worker) = self.parallel.as_mut().and_then(|parallel| parallel.workers.get_mut(number)) else { return };
        let source = worker.runner.source;
        if let Said::Other(Piece::Others(named)) = &said {
            self.note_referral(source, named);
            return self.lose(source, Left::Referred, super::referral::NAMES_OTHERS.to_owned());
        }
        if let Some((left, why)) = self.ending(source, &said) {
            return self.lose(source, left, why);
        }
        let (line, waited) = (self.line(&source), self.waited);
        let Some(parallel) = &mut self.parallel else { return };
        match said {
            Said::Other(Piece::NotNow { place }) => parallel.on_queued(number, place, waited, &line),
            Said::Data(bytes) => {
                parallel.on_data(number, &bytes, waited, &line);
                self.prove(number, source);
            }
            Said::Opened => self.roster.on_reached(&source),
            Said::Other(_) | Said::Unsent(_) | Said::Broke(_) => {}
        }
    }

    /// Checks the whole leaves of a range that have come.
    fn prove(&mut self, number: usize, source: SourceId) {
        while let (Some(parallel), Some(proofs)) = (&mut self.parallel, &mut self.proofs)
            && let Some((at, bytes)) = parallel.next_leaf(number)
        {
            match proofs.judge(source, at, &bytes) {
                Judgement::Right(hash) => {
                    // A range that all wait for is asked of two; what the other one brought may be taken over already.
                    if at >= self.offset {
                        parallel.ready.insert(at, ReadyLeaf { source, bytes, hash });
                    }
                    continue;
                }
                Judgement::AgainstItself => {
                    parallel.refuse_leaf(number, at);
                    self.blame(source, LookupEvent::NarLeafLie(source));
                    self.lose(source, Left::SaidNo, super::WRONG_LEAF.to_owned());
                }
                Judgement::Disputed => {
                    // Nobody is blamed yet: which of two trees is wrong shows only when the whole NAR is here.
                    parallel.refuse_leaf(number, at);
                    self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarLeafRefused(source, at));
                    self.lose(source, Left::SaidNo, super::WRONG_LEAF.to_owned());
                    self.roster.put_by(source);
                }
            }
            return;
        }
        while let Some(worker) = self.parallel.as_mut().and_then(Parallel::take_done) {
            // The first source was asked for all the rest.
            if worker.end == worker.asked_end {
                self.read_end(worker.runner);
            } else {
                self.report_received(&worker.runner);
            }
        }
    }

    /// Leaves a source and all its ranges; others will bring these.
    fn lose(&mut self, source: SourceId, left: Left, why: String) {
        let workers = self.parallel.as_mut().map(|parallel| parallel.dismiss(source)).unwrap_or_default();
        if let Some((first, others)) = workers.split_first() {
            self.part_with(&first.runner, left, why);
            others.iter().for_each(|worker| self.report_received(&worker.runner));
        }
        self.stop_if_alone();
    }

    /// Goes on with one source if only that is left, once nothing is lost by it.
    fn stop_if_alone(&mut self) {
        let is_alone = |this: &Self| this.parallel.as_ref().is_some_and(Parallel::is_alone);
        if is_alone(self) {
            self.admit(1);
        }
        if is_alone(self) && self.parallel.as_mut().is_some_and(|parallel| parallel.is_over(self.waited)) {
            self.stop_parallel();
        }
    }

    /// Looks at the pace of the sources.
    pub(super) fn look_at_workers(&mut self) {
        let (offset, waited) = (self.offset, self.waited);
        let why_stalled = |worker: &Worker| {
            let line = self.line(&worker.runner.source);
            let why = worker.runner.why_stalled(&line, waited, self.settings.stall_timeout)?;
            Some((worker.runner.source, how_stalled(&worker.runner, &line), why))
        };
        let stalled: Vec<_> =
            self.parallel.iter().flat_map(|parallel| &parallel.workers).filter_map(why_stalled).collect();
        for (source, left, why) in stalled {
            self.lose(source, left, why);
        }
        let Some(Tick { let_go, may_join }) = self.parallel.as_mut().and_then(|parallel| parallel.tick(offset, waited))
        else {
            return;
        };
        for source in let_go {
            for worker in self.parallel.as_mut().map(|parallel| parallel.dismiss(source)).unwrap_or_default() {
                self.report_received(&worker.runner);
            }
            self.roster.on_stopped(source);
            let why = LookupEvent::NarBroken(source, self.offset, "it makes nothing quicker".to_owned());
            self.context.lookup_log.note(self.url.hash_part, why);
        }
        self.admit(may_join);
        self.stop_if_alone();
    }
}
