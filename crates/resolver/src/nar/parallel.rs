//! Reads one NAR from several sources at once: each reads ranges of whole leaves, which are proven as they come, and what
//! comes before its turn is kept until then.
//!
//! A range is as long as its source takes for about a second, and no longer than its part of the whole rate lets it be: while
//! a slow one brings its range, the others must not fill the window. What lies between the first byte that is missing and the last
//! one that was asked for is bounded, and so is the memory. The range that everybody waits for is asked of another source as
//! well if that one would be done in half the time. Sources join one by one, two by two and so on, while that makes the
//! whole quicker.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::task::{Context, Poll};
use std::time::Duration;

use narmesh_protocol::nar_tree::LeafHash;

use super::buffers::Share;
use super::runner::{Runner, Said};
use crate::source::{Line, SourceId};

/// The most that may have been asked for and not been given out.
pub(super) const WINDOW_BYTES_MAX: u64 = 16 << 20;
/// With less than this, a second source is not worth its requests.
pub(super) const WINDOW_BYTES_MIN: u64 = 4 << 20;
/// Sources read at the same time.
const MEMBERS_MAX: usize = 8;
/// A NAR that would end sooner from the sources it has is not read from more.
pub(super) const WORTH_IT: Duration = Duration::from_secs(2);
/// How long sources are measured.
const TICK: Duration = Duration::from_secs(1);
/// Sources that joined stay if the whole has become quicker by one in this many.
const GAIN: u64 = 10;
/// After sources joined in vain, none joins for so long.
const REST: Duration = Duration::from_secs(30);
/// A source that brings less than one in this many bytes is let go.
pub(super) const SHARE_MIN: u64 = 50;
/// How long the last source that is left may take for what lies before what has come already.
const ALONE_MAX: Duration = Duration::from_secs(10);
/// Leaves of the first range of a source: while nothing is known of its pace, little waits for it.
const FIRST_LEAVES: u64 = 1;

/// One range on its way.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) runner: Runner,
    /// The byte of the NAR at which its tail begins.
    pub(super) at: u64,
    /// The end of its range,
    pub(super) end: u64,
    /// and of what was asked of the source, which may be more.
    pub(super) asked_end: u64,
}

/// A source that reads ranges.
#[derive(Clone, Copy, Debug)]
struct RangeSource {
    source: SourceId,
    /// Bytes that came since the last tick.
    bytes: u64,
    /// Bytes per second, once it was measured.
    rate: Option<u64>,
}

/// A leaf that was proven before its turn.
#[derive(Debug)]
pub(super) struct ReadyLeaf {
    pub(super) source: SourceId,
    pub(super) bytes: Vec<u8>,
    pub(super) hash: LeafHash,
}

/// What is to be asked next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) source: SourceId,
    pub(super) range: Range<u64>,
}

/// What follows from a second of measurement.
#[derive(Debug, Default)]
pub(super) struct Tick {
    /// These are let go.
    pub(super) let_go: Vec<SourceId>,
    /// So many sources may join.
    pub(super) may_join: usize,
}

/// The sources of one NAR that is read in ranges.
#[derive(Debug)]
pub(super) struct Parallel {
    pub(super) workers: Vec<Worker>,
    pub(super) ready: BTreeMap<u64, ReadyLeaf>,
    members: Vec<RangeSource>,
    /// Ranges that were given back.
    gaps: Vec<Range<u64>>,
    /// Nothing from this byte on was asked for.
    next: u64,
    nar_size: u64,
    leaf_bytes: u64,
    window: u64,
    _share: Share,
    ticked: Duration,
    /// Those who joined last, and the rate of all before that.
    joined: Vec<SourceId>,
    rate_before: u64,
    /// The most that one source has brought in a second.
    best_alone: u64,
    rest_until: Duration,
    alone_since: Option<Duration>,
    /// Sources that made nothing quicker.
    useless: HashSet<SourceId>,
}

impl Parallel {
    /// Goes on with the only source under way, which has sent what is in its tail from byte `at` on at this rate.
    pub(super) fn begin(
        runner: Runner,
        rate: u64,
        at: u64,
        (nar_size, leaf_bytes): (u64, u64),
        (window, share): (u64, Share),
        waited: Duration,
    ) -> Self {
        let source = runner.source;
        let tail = at + runner.tail.len() as u64;
        let mut this = Self {
            workers: Vec::new(),
            ready: BTreeMap::new(),
            members: vec![RangeSource { source, bytes: 0, rate: Some(rate) }],
            gaps: Vec::new(),
            next: at,
            nar_size,
            leaf_bytes,
            window,
            _share: share,
            ticked: waited,
            joined: Vec::new(),
            rate_before: rate,
            best_alone: rate,
            rest_until: Duration::ZERO,
            alone_since: None,
            useless: HashSet::new(),
        };
        // Its request goes on, and is cut off where the first range ends; the others are given what comes after.
        let end = this.align(tail.max(at + this.range_bytes(Some(rate)))).min(nar_size);
        this.workers.push(Worker { runner, at, end, asked_end: nar_size });
        this.next = end;
        this
    }

    fn align(&self, at: u64) -> u64 {
        at.next_multiple_of(self.leaf_bytes)
    }

    /// Bytes of a range for a source of this rate: a second of it, but no more than lets all have two in the window, and of a
    /// slow source no more than it brings while the others fill half of the window.
    fn range_bytes(&self, rate: Option<u64>) -> u64 {
        let Some(rate) = rate else { return FIRST_LEAVES * self.leaf_bytes };
        let all: u64 = self.members.iter().filter_map(|member| member.rate).sum();
        let share = u128::from(self.window / 2) * u128::from(rate) / u128::from(all.max(rate).max(1));
        let fair = self.window / (2 * (self.members.len() as u64).max(2));
        self.align(rate.min(u64::try_from(share).unwrap_or(u64::MAX)).min(fair).max(1))
    }

    /// Whether this source may join.
    pub(super) fn may_join(&self, source: &SourceId) -> bool {
        self.members().all(|member| member != *source) && !self.useless.contains(source)
    }

    /// The sources that read.
    pub(super) fn members(&self) -> impl Iterator<Item = SourceId> {
        self.members.iter().map(|member| member.source)
    }

    /// What all brought together when they were last measured, bytes per second.
    pub(super) fn rate(&self) -> u64 {
        self.rate_before
    }

    /// Whether there is one source at most.
    pub(super) fn is_alone(&self) -> bool {
        self.members.len() < 2
    }

    /// Whether the source that is left has brought all that was asked for, or takes too long for it.
    pub(super) fn is_over(&mut self, waited: Duration) -> bool {
        let since = *self.alone_since.get_or_insert(waited);
        let has_brought_all = self.ready.is_empty() && self.gaps.is_empty() && self.workers.is_empty();
        has_brought_all || self.members.is_empty() || waited.saturating_sub(since) > ALONE_MAX
    }

    /// Lets a source join.
    pub(super) fn join(&mut self, source: SourceId) {
        self.members.push(RangeSource { source, bytes: 0, rate: None });
        self.joined.push(source);
        self.alone_since = None;
    }

    /// Ready when a source says something, with the number of its worker.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<(usize, Said)> {
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let left = worker.asked_end - worker.at - worker.runner.tail.len() as u64;
            // A worker whose range has all come waits for its leaves to be taken, and has nothing to say.
            if left > 0
                && let Poll::Ready(said) = worker.runner.poll(context, left)
            {
                return Poll::Ready((number, said));
            }
        }
        Poll::Pending
    }

    /// Notes that the request of a worker waits in a queue.
    pub(super) fn on_queued(&mut self, number: usize, place: u32, waited: Duration, line: &Line) {
        if let Some(worker) = self.workers.get_mut(number) {
            worker.runner.on_queued(place, waited, line);
        }
    }

    /// Appends what a worker's source sent.
    pub(super) fn on_data(&mut self, number: usize, bytes: &[u8], waited: Duration, line: &Line) {
        let Some(worker) = self.workers.get_mut(number) else { return };
        worker.runner.on_data(waited, line);
        worker.runner.tail.extend_from_slice(bytes);
        let source = worker.runner.source;
        if let Some(member) = self.members.iter_mut().find(|member| member.source == source) {
            member.bytes += bytes.len() as u64;
        }
    }

    /// Takes the next whole leaf of this worker's range out of its tail, with its offset.
    pub(super) fn next_leaf(&mut self, number: usize) -> Option<(u64, Vec<u8>)> {
        let (leaf_bytes, nar_size) = (self.leaf_bytes, self.nar_size);
        let worker = self.workers.get_mut(number)?;
        let bytes = usize::try_from(leaf_bytes.min(nar_size - worker.at)).ok()?;
        if worker.at >= worker.end || worker.runner.tail.len() < bytes {
            return None;
        }
        let rest = worker.runner.tail.split_off(bytes);
        let (leaf, at) = (std::mem::replace(&mut worker.runner.tail, rest), worker.at);
        worker.at += bytes as u64;
        Some((at, leaf))
    }

    /// Puts back a leaf that is not right, so that others bring it.
    pub(super) fn refuse_leaf(&mut self, number: usize, at: u64) {
        if let Some(worker) = self.workers.get_mut(number) {
            worker.at = at;
        }
    }

    /// Takes out a worker that has brought its whole range.
    pub(super) fn take_done(&mut self) -> Option<Worker> {
        let number = self.workers.iter().position(|worker| worker.at >= worker.end)?;
        Some(self.workers.swap_remove(number))
    }

    /// Takes out a worker whose range others have brought, from `frontier` on.
    pub(super) fn take_overtaken(&mut self, frontier: u64) -> Option<Worker> {
        let is_there = |worker: &Worker| {
            let mut at = worker.at.max(frontier);
            while at < worker.end && self.ready.contains_key(&at) {
                at = self.align(at + 1);
            }
            at >= worker.end
        };
        let number = self.workers.iter().position(is_there)?;
        Some(self.workers.swap_remove(number))
    }

    /// Takes out a worker; others will bring its range.
    pub(super) fn give_back(&mut self, number: usize) -> Option<Worker> {
        if number >= self.workers.len() {
            return None;
        }
        let worker = self.workers.swap_remove(number);
        // Another source is reading that range as well, so it needs no new one.
        let is_twice = self.workers.iter().any(|other| other.at <= worker.at && other.end >= worker.end);
        if !is_twice && worker.at < worker.end {
            self.gaps.push(worker.at..worker.end);
        }
        Some(worker)
    }

    /// Lets a source go; returns its workers.
    pub(super) fn dismiss(&mut self, source: SourceId) -> Vec<Worker> {
        self.members.retain(|member| member.source != source);
        self.joined.retain(|joined| *joined != source);
        let mut workers = Vec::new();
        while let Some(number) = self.workers.iter().position(|worker| worker.runner.source == source) {
            workers.extend(self.give_back(number));
        }
        workers
    }

    /// What to ask next, if anybody has time for it.
    pub(super) fn next_order(&mut self, frontier: u64) -> Option<Order> {
        self.gaps.retain(|gap| gap.end > frontier && gap.start < gap.end);
        let free = self.members.iter().filter(|member| self.has_time(member.source));
        // Whoever is quickest takes the first range.
        let member = free.max_by_key(|member| member.rate)?;
        let (source, bytes) = (member.source, self.range_bytes(member.rate));
        if let Some(number) = (0..self.gaps.len()).min_by_key(|number| self.gaps.get(*number).map(|gap| gap.start)) {
            let gap = self.gaps.swap_remove(number);
            let start = gap.start.max(frontier);
            let end = gap.end.min(self.align(start + bytes));
            if end < gap.end {
                self.gaps.push(end..gap.end);
            }
            return Some(Order { source, range: start..end });
        }
        // What is asked for here is what was begun: whoever is alone goes on without ranges.
        if self.is_alone() {
            return None;
        }
        // Towards the end ranges become shorter, so that all end at about the same time.
        let fair = (self.nar_size - self.next) / (2 * self.members.len() as u64).max(1);
        let bytes = bytes.min(self.align(fair.max(1)));
        let end = (self.next + bytes).min(frontier + self.window).min(self.nar_size);
        let end = if end == self.nar_size { end } else { end / self.leaf_bytes * self.leaf_bytes };
        if end > self.next {
            let range = self.next..end;
            self.next = end;
            return Some(Order { source, range });
        }
        self.overtake()
    }

    /// A source takes a range when it has none, and one more when the half of that has come.
    fn has_time(&self, source: SourceId) -> bool {
        let mut own = self.workers.iter().filter(|worker| worker.runner.source == source);
        match (own.next(), own.next()) {
            (None, _) => true,
            (Some(worker), None) => {
                let left = (worker.end - worker.at).saturating_sub(worker.runner.tail.len() as u64);
                left <= self.range_bytes(self.rate_of(source)) / 2
            }
            (Some(_), Some(_)) => false,
        }
    }

    fn rate_of(&self, source: SourceId) -> Option<u64> {
        self.members.iter().find(|member| member.source == source)?.rate
    }

    /// The range that all wait for, if the quickest of those who have nothing to do would bring it in half the time; one whose pace
    /// is not known tries it where the other one would still take a while.
    fn overtake(&self) -> Option<Order> {
        let is_idle = |member: &&RangeSource| self.workers.iter().all(|worker| worker.runner.source != member.source);
        let RangeSource { source, rate, .. } = *self.members.iter().filter(is_idle).max_by_key(|member| member.rate)?;
        let first = self.first_worker()?;
        let is_twice = self.workers.iter().filter(|worker| worker.at < first.end).count() > 1;
        let (takes_s, its_rate, whole) =
            (self.first_takes_s()?, self.rate_of(first.runner.source).unwrap_or(0), first.end - first.at);
        let is_quicker = match rate {
            Some(rate) => takes_s >= 1 && whole / rate.max(1) < takes_s / 2 + 1 && rate > its_rate,
            None => takes_s >= WORTH_IT.as_secs(),
        };
        (!is_twice && is_quicker).then_some(Order { source, range: first.at..first.end })
    }

    /// The range that all wait for.
    fn first_worker(&self) -> Option<&Worker> {
        self.workers.iter().min_by_key(|worker| worker.at)
    }

    /// How long that will still take at the pace of its source, seconds.
    fn first_takes_s(&self) -> Option<u64> {
        let first = self.first_worker()?;
        let left = (first.end - first.at).saturating_sub(first.runner.tail.len() as u64);
        Some(left / self.rate_of(first.runner.source).unwrap_or(0).max(1))
    }

    /// Measures once a second, and decides who stays and whether others may join.
    pub(super) fn tick(&mut self, frontier: u64, waited: Duration) -> Option<Tick> {
        let elapsed = waited.saturating_sub(self.ticked);
        if elapsed < TICK {
            return None;
        }
        self.ticked = waited;
        let per_s = |bytes: u64| bytes * 1_000 / u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        for member in &mut self.members {
            let rate = per_s(std::mem::take(&mut member.bytes));
            // Who waited for the window was not slow, and who had next to nothing to bring was not measured.
            let is_busy = self.workers.iter().any(|worker| worker.runner.source == member.source);
            member.rate = if is_busy { Some(rate) } else { member.rate.map(|before| rate.max(before)) };
        }
        let total: u64 = self.members.iter().filter_map(|member| member.rate).sum();
        let quickest = self.members.iter().max_by_key(|member| member.rate).map(|member| (member.source, member.rate));
        let (quickest, best) = quickest.unzip();
        self.best_alone = self.best_alone.max(best.flatten().unwrap_or(0));
        let mut tick = Tick::default();
        // Where the whole waits for one that crawls, the others are not why it is slow, and one of them can bring that range.
        let is_held_up = self.first_takes_s().is_some_and(|seconds| seconds >= WORTH_IT.as_secs());
        if !self.is_alone() && total < self.best_alone && !is_held_up {
            // One of them was quicker when it did not wait for the others.
            let others = self.members.iter().map(|member| member.source).filter(|source| Some(*source) != quickest);
            tick.let_go.extend(others);
            self.joined.clear();
            self.rest_until = waited + REST;
        }
        // Who joined last has to make the whole quicker by a tenth, or goes again.
        let is_measured = self.joined.iter().all(|joined| self.rate_of(*joined).is_some());
        if !self.joined.is_empty() && is_measured && !is_held_up && total < self.rate_before + self.rate_before / GAIN {
            tick.let_go.append(&mut self.joined);
            self.rest_until = waited + REST;
        }
        self.joined.clear();
        let slow = self.members.iter().filter(|member| member.rate.is_some_and(|rate| rate < total / SHARE_MIN));
        let slow: Vec<_> = slow.map(|member| member.source).filter(|source| !tick.let_go.contains(source)).collect();
        tick.let_go.extend(slow);
        self.useless.extend(tick.let_go.iter().copied());
        let left = Duration::from_secs((self.nar_size - frontier) / total.max(1));
        if waited >= self.rest_until && left > WORTH_IT {
            // As many again as there are: the number doubles for as long as that helps.
            let members = self.members.len() - tick.let_go.len().min(self.members.len());
            tick.may_join = members.clamp(1, MEMBERS_MAX.saturating_sub(members).max(1));
        }
        self.rate_before = total;
        Some(tick)
    }
}
