//! What a run measures.

use crate::checker::Publication;
use crate::cores::gossip::Misdeed;
use crate::draw::Draw;
use crate::number::Number;
use crate::scenario::Scenario;
use crate::traffic::{self, KINDS, STREAM_OVERHEAD, Traffic};
use narmesh_protocol::{Generation, HASHES_PER_ITEM};
use serde::Serialize;
use std::collections::BTreeMap;

/// Points of each curve.
const BUCKETS: u64 = 60;
/// Random pairs of machines that are looked at for the age of tables, at each point.
const PAIRS: usize = 300;

/// One point of the curves.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Point {
    /// Seconds from the beginning of what is measured; negative while the fleet starts.
    pub at_s: i64,
    /// Bytes a second that a machine sent and received, by kind, mean over the machines.
    pub bytes_per_s: [u64; 5],
    /// Age of the oldest change that a table lacks, seconds, mean over pairs of machines.
    pub age_mean_s: f64,
    /// The same of the worst pair.
    pub age_max_s: f64,
    /// Wasted probes for a thousand absent paths.
    pub wasted_permille: f64,
}

/// A change of a store that is not published yet.
#[derive(Clone, Copy, Debug)]
struct Change {
    at_us: u64,
    removal: bool,
    paths: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Spread {
    /// The version of the store that the publication tells of.
    version: u32,
    /// When the oldest build that it tells of was made, microseconds.
    build_us: Option<u64>,
    /// When the oldest collection that it tells of was made, microseconds.
    removal_us: Option<u64>,
    /// Bytes that holders pulled for it.
    bytes: u64,
    /// How many holders pulled it.
    holders: u64,
    /// The entropy of the filter bits that it changed, bytes; 0 if it was no delta.
    entropy_bytes: f64,
}

#[derive(Clone, Debug, Default)]
struct Owner {
    pending: Vec<Change>,
    published: Vec<Spread>,
    numbers: BTreeMap<Generation, usize>,
}

/// A machine that joins while the others run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joiner {
    pub(crate) number: Number,
    pub(crate) since_us: u64,
    pub(crate) full_us: Option<u64>,
    pub(crate) received: u64,
}

/// Probes that followed from lookups.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Probes {
    /// Lookups of paths that nobody has.
    pub absent: u64,
    /// Probes sent to honest machines for such paths, all in vain.
    pub absent_wasted: u64,
    /// Probes sent to liars for such paths, all in vain.
    pub absent_lied: u64,
    /// Lookups of paths that another machine has.
    pub present: u64,
    /// Lookups of such paths that found one.
    pub found: u64,
    /// Probes for such paths sent to machines that did not have them.
    pub present_wasted: u64,
}

/// What the bodies that were pulled would have taken in other encodings, bytes on the wire of the receiver.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Encodings {
    /// Bloom filters and deltas, as the protocol has them.
    pub filters: u64,
    /// Sorted prefixes of 8 bytes and deltas of them.
    pub prefixes: u64,
    /// A rateless IBLT between what the holder had and what the owner has.
    pub reconciled: u64,
    /// How often something was pulled.
    pub pulls: u64,
}

impl Encodings {
    /// Bytes around a body: generation, count, and request.
    const AROUND: u64 = 60;
    const PREFIX_BYTES: u64 = 8;
    /// A coded symbol: the sum of prefixes, a checksum of 8 bytes, a count.
    const SYMBOL_BYTES: u64 = 8 + 8 + 1;

    /// Counts a pull of `bytes` bytes that told of this many changed paths; `cold` when the holder had nothing before.
    pub(crate) fn count_pull(&mut self, bytes: usize, differences: u64, cold: bool) {
        let wire = |payload: u64| traffic::wire_bytes(usize::try_from(payload).unwrap_or(0) + STREAM_OVERHEAD) as u64;
        self.pulls += 1;
        self.filters += wire(bytes as u64);
        self.prefixes += wire(Self::PREFIX_BYTES * differences + Self::AROUND);
        // 1.35 symbols for each difference (arXiv 2402.02668), somewhat more when there are few. A newcomer takes the whole
        // list.
        let symbols = (differences * 135).div_ceil(100) + 3;
        let payload = if cold { Self::PREFIX_BYTES * differences } else { Self::SYMBOL_BYTES * symbols };
        self.reconciled += wire(payload + Self::AROUND);
    }
}

#[derive(Debug)]
pub(crate) struct Figures {
    nodes: usize,
    pub(crate) bucket_us: u64,
    pub(crate) begun_us: Option<u64>,
    owners: Vec<Owner>,
    /// How many publications each holder has seen of each owner.
    seen: Vec<Vec<u32>>,
    up_since_us: Vec<u64>,
    pub(crate) known_us: Vec<u64>,
    pub(crate) forgotten_us: Vec<u64>,
    /// Times from an announcement's publication until each machine had its first copy.
    pub(crate) heard_us: Vec<u64>,
    /// Announcements published in the measured time, and copies of them that arrived.
    pub(crate) announced: u64,
    pub(crate) copies: u64,
    pub(crate) points: Vec<Point>,
    /// Each machine's traffic before the measured time.
    pub(crate) before_begin: Vec<Traffic>,
    before: [u64; 5],
    probes_before: Probes,
    pub(crate) probes: Probes,
    pub(crate) blamed: BTreeMap<&'static str, u64>,
    /// When the first honest machine demoted each liar, microseconds from the beginning.
    pub(crate) demoted: BTreeMap<Number, u64>,
    pub(crate) joiner: Option<Joiner>,
    /// When the first event came, microseconds, and the bytes of all machines until then.
    pub(crate) idle: Option<(u64, u64)>,
    pub(crate) encodings: Encodings,
    draw: Draw,
}

impl Figures {
    pub(crate) fn new(scenario: &Scenario, machines: usize) -> Self {
        Self {
            nodes: scenario.nodes,
            bucket_us: (scenario.run_s / BUCKETS).max(1) * 1_000_000,
            begun_us: None,
            owners: vec![Owner::default(); machines],
            seen: vec![vec![0; machines]; machines],
            up_since_us: vec![0; machines],
            known_us: Vec::new(),
            forgotten_us: Vec::new(),
            heard_us: Vec::new(),
            announced: 0,
            copies: 0,
            points: Vec::new(),
            before_begin: Vec::new(),
            before: [0; 5],
            probes_before: Probes::default(),
            probes: Probes::default(),
            blamed: BTreeMap::new(),
            demoted: BTreeMap::new(),
            joiner: None,
            idle: None,
            encodings: Encodings::default(),
            // Not the draws of the run: measuring must not change what happens.
            draw: Draw::new(0x00f1_60e5),
        }
    }

    /// A machine built this many paths.
    pub(crate) fn on_built(&mut self, now_us: u64, number: Number, paths: u32) {
        self.pend(number, Change { at_us: now_us, removal: false, paths });
    }

    /// A machine collected garbage.
    pub(crate) fn on_collected(&mut self, now_us: u64, number: Number) {
        self.pend(number, Change { at_us: now_us, removal: true, paths: 0 });
    }

    fn pend(&mut self, number: Number, change: Change) {
        if let Some(owner) = self.owners.get_mut(number) {
            owner.pending.push(change);
        }
    }

    /// A machine published a summary whose filter has this many bits.
    pub(crate) fn on_published(&mut self, number: Number, publication: &Publication, filter_bits: u32) {
        let Some(owner) = self.owners.get_mut(number) else { return };
        let generation = publication.generation;
        // Nothing is removed within an epoch: collections wait for the next one.
        let told: Vec<_> =
            owner.pending.iter().copied().filter(|change| !change.removal || generation.seq == 0).collect();
        owner.pending.retain(|change| change.removal && generation.seq > 0);
        let oldest =
            |removal: bool| told.iter().filter(|change| change.removal == removal).map(|change| change.at_us).min();
        let added: u64 = told.iter().map(|change| u64::from(change.paths)).sum();
        let delta = generation.seq > 0 && added > 0;
        let before = publication.announced.saturating_sub(added);
        owner.numbers.insert(generation, owner.published.len());
        owner.published.push(Spread {
            version: publication.version,
            build_us: oldest(false),
            removal_us: oldest(true),
            entropy_bytes: if delta { entropy_bytes(filter_bits, before, added) } else { 0.0 },
            ..Spread::default()
        });
    }

    /// A holder has a body of this generation. Returns the version of the store that it knew before, if any, and the one
    /// that it knows now.
    pub(crate) fn on_known(
        &mut self,
        now_us: u64,
        holder: Number,
        owner: Number,
        generation: Generation,
        bytes: usize,
    ) -> Option<(Option<u32>, u32)> {
        let owned = self.owners.get_mut(owner)?;
        let at = owned.numbers.get(&generation).copied()?;
        let seen = self.seen.get_mut(holder).and_then(|seen| seen.get_mut(owner))?;
        let up_since_us = self.up_since_us.get(holder).copied().unwrap_or(0);
        let first = *seen as usize;
        *seen = u32::try_from(at + 1).unwrap_or(u32::MAX).max(*seen);
        let before = first.checked_sub(1).and_then(|at| owned.published.get(at)).map(|spread| spread.version);
        // With this publication the holder also knows what the ones before it told.
        let spreads = owned.published.get_mut(first..=at)?;
        if let Some(last) = spreads.last_mut() {
            last.bytes += bytes as u64;
            last.holders += 1;
        }
        let now = spreads.last()?.version;
        self.begun_us?;
        for spread in spreads {
            // What came while a machine was down is not its delay.
            self.known_us.extend(spread.build_us.filter(|at| *at >= up_since_us).map(|at_us| now_us - at_us));
            self.forgotten_us.extend(spread.removal_us.filter(|at| *at >= up_since_us).map(|at_us| now_us - at_us));
        }
        Some((before, now))
    }

    /// An announcement is published.
    pub(crate) fn on_announced(&mut self, now_us: u64) {
        self.announced += u64::from(self.begun_us.is_some_and(|begun_us| begun_us <= now_us));
    }

    /// A copy of an announcement that was published at `at_us` arrived.
    pub(crate) fn on_copy(&mut self, at_us: u64, now_us: u64, first: bool) {
        if self.begun_us.is_some_and(|begun_us| begun_us <= at_us) {
            self.copies += 1;
            self.heard_us.extend(first.then_some(now_us - at_us));
        }
    }

    /// A machine's core started.
    pub(crate) fn on_restarted(&mut self, now_us: u64, number: Number) {
        if let Some(since) = self.up_since_us.get_mut(number) {
            *since = now_us;
        }
    }

    pub(crate) fn on_blamed(&mut self, misdeed: Misdeed) {
        *self.blamed.entry(misdeed.label()).or_default() += 1;
    }

    pub(crate) fn on_demoted(&mut self, now_us: u64, owner: Number) {
        if let Some(begun_us) = self.begun_us {
            self.demoted.entry(owner).or_insert(now_us - begun_us);
        }
    }

    pub(crate) fn on_joined(&mut self, now_us: u64, number: Number) {
        self.joiner = Some(Joiner { number, since_us: now_us, full_us: None, received: 0 });
    }

    /// Begins the time that is measured: what was counted before does not count.
    pub(crate) fn begin<'a>(&mut self, now_us: u64, traffic: impl Iterator<Item = &'a Traffic>) {
        self.begun_us = Some(now_us);
        self.before_begin = traffic.cloned().collect();
        self.before = sum_by_kind(self.before_begin.iter());
        self.probes_before = self.probes;
        self.points.clear();
    }

    /// Notes the traffic before the first event: until then nothing happened.
    pub(crate) fn on_first_event<'a>(&mut self, now_us: u64, traffic: impl Iterator<Item = &'a Traffic>) {
        if self.idle.is_none() {
            self.idle = Some((now_us, traffic.map(Traffic::total).sum()));
        }
    }

    /// Adds a point to each curve.
    pub(crate) fn sample<'a>(&mut self, now_us: u64, traffic: impl Iterator<Item = &'a Traffic>) {
        let sums = sum_by_kind(traffic);
        let per = self.bucket_us / 1_000_000 * self.nodes as u64;
        let mut bytes_per_s = [0; 5];
        for (rate, (now, before)) in bytes_per_s.iter_mut().zip(sums.iter().zip(&self.before)) {
            *rate = now.saturating_sub(*before).checked_div(per).unwrap_or(0);
        }
        self.before = sums;
        let (age_mean_s, age_max_s) = self.sample_ages(now_us);
        let absent = self.probes.absent - self.probes_before.absent;
        let wasted = self.probes.absent_wasted + self.probes.absent_lied
            - self.probes_before.absent_wasted
            - self.probes_before.absent_lied;
        self.probes_before = self.probes;
        let seconds = |us: u64| i64::try_from(us / 1_000_000).unwrap_or(0);
        self.points.push(Point {
            at_s: seconds(now_us) - seconds(self.begun_us.unwrap_or(now_us)),
            bytes_per_s,
            age_mean_s,
            age_max_s,
            wasted_permille: if absent > 0 { wasted as f64 * 1_000.0 / absent as f64 } else { 0.0 },
        });
    }

    fn sample_ages(&mut self, now_us: u64) -> (f64, f64) {
        let (mut sum_us, mut max_us) = (0, 0);
        for _ in 0..PAIRS {
            let (holder, owner) = (self.draw.index(self.nodes), self.draw.index(self.nodes));
            let Some(owned) = self.owners.get(owner).filter(|_| holder != owner) else { continue };
            let seen = self.seen.get(holder).and_then(|seen| seen.get(owner)).copied().unwrap_or(0) as usize;
            let unseen = owned.published.iter().skip(seen).filter_map(|spread| spread.build_us.or(spread.removal_us));
            let oldest = unseen.chain(owned.pending.iter().map(|change| change.at_us)).min();
            let age_us = oldest.map_or(0, |at_us| now_us - at_us);
            sum_us += age_us;
            max_us = max_us.max(age_us);
        }
        (sum_us as f64 / 1e6 / PAIRS as f64, max_us as f64 / 1e6)
    }

    /// Bytes that holders pulled for the builds measured, in percent of the entropy of the changed bits. Only publications
    /// that could be pulled as a delta count; a holder that pulled the whole body counts with all of its bytes.
    pub(crate) fn entropy_percent(&self) -> Option<f64> {
        let spreads =
            self.owners.iter().flat_map(|owner| &owner.published).filter(|spread| spread.entropy_bytes > 100.0);
        let (mut pulled, mut needed) = (0.0, 0.0);
        for spread in spreads.filter(|spread| spread.holders > 0) {
            pulled += spread.bytes as f64;
            needed += spread.entropy_bytes * spread.holders as f64;
        }
        (needed > 0.0).then(|| 100.0 * pulled / needed)
    }
}

fn sum_by_kind<'a>(traffic: impl Iterator<Item = &'a Traffic>) -> [u64; 5] {
    let mut sums = [0; 5];
    for traffic in traffic {
        for (sum, kind) in sums.iter_mut().zip(KINDS) {
            let (sent, received) = traffic.of(kind);
            *sum += sent + received;
        }
    }
    sums
}

/// The entropy, in bytes, of the bits that `added` items set in a filter of `bits` with `before` items: the logarithm of
/// the number of ways to choose these bits among the zeros.
fn entropy_bytes(bits: u32, before: u64, added: u64) -> f64 {
    let (bits, k) = (f64::from(bits), HASHES_PER_ITEM as f64);
    let zeros = |items: f64| bits * libm::exp(-k * items / bits);
    let (zeros_before, zeros_after) = (zeros(before as f64), zeros((before + added) as f64));
    let changed = zeros_before - zeros_after;
    let share = changed / zeros_before;
    if !(0.0 < share && share < 1.0) {
        return 0.0;
    }
    let entropy = -share * libm::log2(share) - (1.0 - share) * libm::log2(1.0 - share);
    zeros_before * entropy / 8.0
}

/// The quantile of sorted samples, by nearest rank; `None` without samples.
pub(crate) fn quantile(sorted: &[u64], permille: usize) -> Option<u64> {
    let at = (sorted.len() * permille).div_ceil(1_000).saturating_sub(1);
    sorted.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_matches_the_ways_to_choose_bits() {
        // 1,000 more paths in 2^19 bits that hold 20,000: some 7,150 of 344,000 zeros are set.
        let bytes = entropy_bytes(1 << 19, 20_000, 1_000);
        assert!((6_000.0..6_700.0).contains(&bytes), "{bytes}");
        assert_eq!(entropy_bytes(1 << 13, 10, 0), 0.0);
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let sorted: Vec<u64> = (1..=100).collect();
        assert_eq!(quantile(&sorted, 500), Some(50));
        assert_eq!(quantile(&sorted, 990), Some(99));
        assert_eq!(quantile(&sorted, 1_000), Some(100));
        assert_eq!(quantile(&[], 500), None);
    }
}
