//! What each peer did for us and to us: the counters behind `status`, and whom to ask first.

use super::circuits::Way;
use super::dial_failure::DialFailure;
use libp2p::PeerId;
use narmesh_gossip::{Candidate, Misdeed};
use narmesh_protocol::AudienceDigest;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Timeouts in a row after which a peer is passed over for a while.
const TIMEOUTS_MAX: u32 = 2;
/// Timeouts closer together than this count as one.
const SAME_TIMEOUT: Duration = Duration::from_millis(250);
/// First pause of a peer that does not answer; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// Longest pause of a peer that does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A peer that usually takes longer for a narinfo is not near: an upstream cache may be nearer.
const NEAR_MAX: Duration = Duration::from_millis(20);
/// A peer whose connection ended within this may be on its way to another network, or be restarting (a guess: a laptop
/// takes some ten seconds from one Wi-Fi to the next).
const LATELY: Duration = Duration::from_secs(15);
/// The newest sample is one part in this many of the moving averages of latency and rate (a guess, not measured).
const SAMPLE_PARTS: u128 = 4;
/// Pings of which the quickest counts; there is one every two minutes (a guess, not measured).
const PINGS_KEPT: usize = 4;

/// The rate of a line is measured over at least this many bytes …
const RATE_BYTES_MIN: u64 = 256 << 10;
/// … or this much time: a line on which next to nothing came is a slow one.
const RATE_TIME_MIN: Duration = Duration::from_secs(1);

/// How fast a peer is, as far as that was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Responsiveness {
    /// Bytes per second of all its NAR bodies together.
    pub rate_bytes_s: Option<u64>,
    /// Time to a narinfo answer.
    pub latency: Option<Duration>,
    /// A connection is open.
    pub is_connected: bool,
    /// There is a connection, or there was one within [`LATELY`].
    pub is_there: bool,
    /// It is passed over for a while, because it did not answer.
    pub is_paused: bool,
}

/// What is known of one peer since the daemon started. The fields that are not skipped appear under these names in
/// `narmesh status --json`, and are therefore never renamed.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PeerStats {
    /// A connection is open.
    pub connected: bool,
    /// Why no connection is open, as last seen, in words.
    pub why: Option<String>,
    /// The kind of that reason, for programs.
    #[serde(default)]
    pub why_kind: Option<DialFailure>,
    /// Which way the connection goes: `direct`, `met` (through NATs), or `relayed`.
    pub way: Option<Way>,
    /// The peer id of the relay of a relayed connection.
    pub relay: Option<String>,
    /// Why it was not reached at its addresses, as last seen, in words.
    pub not_direct: Option<String>,
    /// `true` once the peer answered a request of ours: it has us on its allowlist. `null` while unknown.
    pub allowed_there: Option<bool>,
    /// Its store directory, if it differs from ours: nothing can be shared then.
    pub store_dir_differs: Option<String>,
    /// Name and version of what it runs, as it says itself.
    pub software: Option<String>,
    /// Where it may be reached, configured and learned.
    pub addresses: Vec<String>,
    /// Narinfo requests sent to it.
    pub asked: u64,
    /// Requests that it answered with a narinfo that verified.
    pub hits: u64,
    /// Requests that it answered with "absent" although its filter said maybe.
    pub false_hits: u64,
    /// NAR bytes received from it.
    pub bytes_in: u64,
    /// NAR bytes sent to it.
    pub bytes_out: u64,
    /// Moving average of the rate of all NAR bodies from it together, bytes per second.
    pub rate_bytes_s: Option<u64>,
    /// Proven lies and broken rules.
    pub misdeeds: u64,
    /// The last misdeed, in words.
    pub last_misdeed: Option<String>,
    /// The number of misdeeds by reason.
    #[serde(skip)]
    pub misdeeds_by_reason: BTreeMap<Misdeed, u64>,
    /// Whether the connection is to an address of a private network.
    #[serde(skip)]
    pub is_local: bool,
    /// Moving average of the time to a narinfo answer.
    #[serde(skip)]
    pub latency: Option<Duration>,
    /// The last round trips of pings, the newest last.
    #[serde(skip)]
    pub pings: VecDeque<Duration>,
    /// When its newest summary came into the table.
    #[serde(skip)]
    pub summary_since: Option<Instant>,
    /// The epoch of that summary: within one, paths are only added.
    #[serde(skip)]
    pub summary_epoch: Option<u64>,
    /// Until when it is asked nothing because it lied.
    #[serde(skip)]
    pub set_aside_until: Option<Instant>,
    /// When its last connection ended.
    #[serde(skip)]
    pub lost: Option<Instant>,
    /// Its timeouts since it last answered; those that are close together count as one.
    #[serde(skip)]
    pub timeouts_in_a_row: u32,
    /// When the last of them was counted.
    #[serde(skip)]
    pub timed_out_at: Option<Instant>,
    /// Until when it is passed over because it did not answer.
    #[serde(skip)]
    pub paused_until: Option<Instant>,
}

impl PeerStats {
    /// How long it will still be asked nothing because it lied.
    pub fn set_aside_left(&self) -> Option<Duration> {
        self.set_aside_until
            .and_then(|until| until.checked_duration_since(Instant::now()))
            .filter(|left| !left.is_zero())
    }

    /// Whether there is a connection, or one ended a moment ago and not because the peer was caught lying.
    fn is_there(&self) -> bool {
        let was_there = self.lost.is_some_and(|lost| lost.elapsed() < LATELY);
        self.connected || (was_there && self.set_aside_left().is_none())
    }

    /// Notes that its last connection ended, and why.
    pub(super) fn on_lost(&mut self, why: String) {
        (self.connected, self.why, self.lost) = (false, Some(why), Some(Instant::now()));
        self.why_kind = Some(DialFailure::Closed);
        // The next connection may go another way.
        self.pings.clear();
    }

    /// Notes the round trip of a ping.
    pub(super) fn on_ping(&mut self, round_trip: Duration) {
        // An answer to a lookup says more about how long answers take.
        self.latency.get_or_insert(round_trip);
        if self.pings.len() == PINGS_KEPT {
            self.pings.pop_front();
        }
        self.pings.push_back(round_trip);
    }

    /// How far away it is: the quickest of its last pings. One that a machine slept through, or a full line held up, does not
    /// count beside the others.
    pub fn distance(&self) -> Option<Duration> {
        self.pings.iter().min().copied()
    }

    /// Whether it is passed over for a while because it did not answer.
    pub fn is_paused(&self) -> bool {
        self.paused_until.is_some_and(|until| until > Instant::now())
    }
}

/// Candidates in the order in which they are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranked {
    /// Those that may be asked now.
    pub now: Vec<PeerId>,
    /// Those that did not answer lately, and are passed over for a while.
    pub paused: Vec<PeerId>,
    /// Those whose filters misled us too often lately: asked after all others.
    pub demoted: Vec<PeerId>,
}

/// The counters of all allowlisted peers; an unknown peer leaves no trace.
#[derive(Debug, Default)]
pub struct PeerStatistics {
    peers: Mutex<BTreeMap<PeerId, PeerStats>>,
}

impl PeerStatistics {
    /// Makes the statistics hold exactly `peers`.
    pub fn retain_only(&self, peers: impl IntoIterator<Item = PeerId>) {
        let mut statistics = self.peers.lock();
        let mut old = std::mem::take(&mut *statistics);
        *statistics = peers.into_iter().map(|peer| (peer, old.remove(&peer).unwrap_or_default())).collect();
    }

    /// A copy of one peer's counters.
    pub fn stats(&self, peer: &PeerId) -> Option<PeerStats> {
        self.peers.lock().get(peer).cloned()
    }

    /// A copy of all.
    pub fn all(&self) -> BTreeMap<PeerId, PeerStats> {
        self.peers.lock().clone()
    }

    /// Changes one peer's counters.
    pub fn update(&self, peer: &PeerId, change: impl FnOnce(&mut PeerStats)) {
        if let Some(stats) = self.peers.lock().get_mut(peer) {
            change(stats);
        }
    }

    /// Who may be asked now, best first: connected peers before others, then those with the fewest timeouts, then the
    /// quickest; and, in the same order, those that are paused or demoted. Peers set aside are left out.
    pub fn rank(&self, candidates: impl IntoIterator<Item = Candidate>) -> Ranked {
        let statistics = self.peers.lock();
        let mut sorted: Vec<_> = candidates
            .into_iter()
            .filter_map(|candidate| statistics.get(&candidate.peer).map(|stats| (candidate, stats)))
            .filter(|(_, stats)| stats.set_aside_left().is_none())
            .collect();
        // One that was never measured comes last of its kind.
        sorted.sort_by_key(|(_, stats)| {
            (!stats.connected, stats.timeouts_in_a_row, stats.latency.unwrap_or(Duration::MAX))
        });
        let mut ranked = Ranked::default();
        for (candidate, stats) in sorted {
            let place = match (stats.is_paused(), candidate.is_demoted) {
                (true, _) => &mut ranked.paused,
                (false, true) => &mut ranked.demoted,
                (false, false) => &mut ranked.now,
            };
            place.push(candidate.peer);
        }
        ranked
    }

    /// A narinfo answer (or a NAR's first byte) arrived after `elapsed`.
    pub fn on_answered(&self, peer: &PeerId, elapsed: Duration) {
        self.update(peer, |stats| {
            stats.timeouts_in_a_row = 0;
            stats.paused_until = None;
            stats.allowed_there = Some(true);
            let latency_us = average(stats.latency.map(|old| old.as_micros()), elapsed.as_micros());
            stats.latency = Some(Duration::from_micros(latency_us));
        });
    }

    /// It has not answered for `elapsed`, and another peer has. An answer in that time would have counted as quicker.
    pub fn on_overtaken(&self, peer: &PeerId, elapsed: Duration) {
        self.update(peer, |stats| {
            let usual = stats.latency.unwrap_or_default();
            // To average in a shorter time would make it quicker for not answering.
            if elapsed > usual {
                let latency_us = average(stats.latency.map(|old| old.as_micros()), elapsed.as_micros());
                stats.latency = Some(Duration::from_micros(latency_us));
            }
        });
    }

    /// The peer answered something, whatever it was: it may be asked again.
    pub fn on_responsive(&self, peer: &PeerId) {
        self.update(peer, |stats| (stats.timeouts_in_a_row, stats.paused_until) = (0, None));
    }

    /// No answer came within the deadline, or the connection failed. Many at the same moment count as one: whoever
    /// stops a build gives up everything that waits for it.
    pub fn on_timed_out(&self, peer: &PeerId) {
        self.update(peer, |stats| {
            if stats.timed_out_at.is_some_and(|at| at.elapsed() < SAME_TIMEOUT) {
                return;
            }
            stats.timed_out_at = Some(Instant::now());
            stats.timeouts_in_a_row = stats.timeouts_in_a_row.saturating_add(1);
            if let Some(over) = stats.timeouts_in_a_row.checked_sub(TIMEOUTS_MAX) {
                let pause = (PAUSE_MIN * 2_u32.pow(over.min(4))).min(PAUSE_MAX);
                stats.paused_until = Some(Instant::now() + pause);
            }
        });
    }

    /// Whether a connection is open.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.peers.lock().get(peer).is_some_and(|stats| stats.connected)
    }

    /// The epoch of the summary of this peer that is in the table.
    pub fn summary_epoch(&self, peer: &PeerId) -> Option<u64> {
        self.peers.lock().get(peer)?.summary_epoch
    }

    /// The connected peers that may be asked now, best first, as [`Self::rank`] has them. Those that are paused are left out.
    pub fn rank_connected(&self) -> Vec<PeerId> {
        let connected: Vec<_> = {
            let statistics = self.peers.lock();
            statistics.iter().filter(|(_, stats)| stats.connected).map(|(peer, _)| *peer).collect()
        };
        self.rank(connected.into_iter().map(|peer| Candidate { peer, is_demoted: false })).now
    }

    /// The connected peers with these digests, in this order; those that are not connected or not known are left out.
    pub fn find_connected(&self, digests: &[AudienceDigest]) -> Vec<PeerId> {
        let statistics = self.peers.lock();
        let connected = statistics.iter().filter(|(_, stats)| stats.connected);
        let known: HashMap<_, _> = connected.map(|(peer, _)| (AudienceDigest::of(peer), *peer)).collect();
        digests.iter().filter_map(|digest| known.get(digest).copied()).collect()
    }

    /// The connected peers on our own network that answer without delay, as far as is known.
    pub fn find_near(&self) -> Vec<PeerId> {
        let is_near = |stats: &PeerStats| {
            stats.connected
                && stats.is_local
                && !stats.is_paused()
                && stats.latency.is_none_or(|usual| usual < NEAR_MAX)
        };
        let statistics = self.peers.lock();
        statistics.iter().filter(|(_, stats)| is_near(stats)).map(|(peer, _)| *peer).collect()
    }

    /// Number of connected peers.
    pub fn count_connected(&self) -> usize {
        self.peers.lock().values().filter(|stats| stats.connected).count()
    }

    /// How fast this peer is, and whether it can be asked.
    pub fn responsiveness(&self, peer: &PeerId) -> Responsiveness {
        let statistics = self.peers.lock();
        statistics.get(peer).map_or_else(Responsiveness::default, |stats| Responsiveness {
            rate_bytes_s: stats.rate_bytes_s,
            latency: stats.latency,
            is_connected: stats.connected,
            is_there: stats.is_there(),
            is_paused: stats.is_paused(),
        })
    }

    /// `bytes` of one NAR body arrived in `elapsed`, and `line_bytes` of all bodies from this peer in that time.
    pub fn on_received(&self, peer: &PeerId, bytes: u64, line_bytes: u64, elapsed: Duration) {
        self.update(peer, |stats| {
            stats.bytes_in += bytes;
            // A few bytes that came in one packet say nothing of the line.
            if line_bytes >= RATE_BYTES_MIN || elapsed >= RATE_TIME_MIN {
                let rate = u128::from(line_bytes) * 1_000_000 / elapsed.as_micros().max(1);
                stats.rate_bytes_s = Some(average(stats.rate_bytes_s.map(u128::from), rate));
            }
        });
    }

    /// Notes a proven lie or broken rule, as the gossip core counts them.
    pub(super) fn count_misdeed(&self, peer: &PeerId, misdeed: Misdeed) {
        self.update(peer, |stats| {
            stats.misdeeds = stats.misdeeds.saturating_add(1);
            let count = stats.misdeeds_by_reason.entry(misdeed).or_default();
            *count = count.saturating_add(1);
            stats.last_misdeed = Some(misdeed.to_string());
        });
    }

    /// The core wants this peer to be asked nothing for this long.
    pub(super) fn set_aside(&self, peer: &PeerId, lasting: Duration) {
        self.update(peer, |stats| stats.set_aside_until = Some(Instant::now() + lasting));
    }
}

fn average(old: Option<u128>, sample: u128) -> u64 {
    let average = old.map_or(sample, |old| (old * (SAMPLE_PARTS - 1) + sample) / SAMPLE_PARTS);
    u64::try_from(average).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(peer: PeerId) -> Candidate {
        Candidate { peer, is_demoted: false }
    }

    #[test]
    fn ranks_by_connection_then_latency_and_leaves_liars_out() {
        let [near, far, away, liar] = [(); 4].map(|()| PeerId::random());
        let statistics = PeerStatistics::default();
        statistics.retain_only([near, far, away, liar]);
        for (peer, ms) in [(near, 1), (far, 80), (liar, 1)] {
            statistics.update(&peer, |stats| stats.connected = true);
            statistics.on_answered(&peer, Duration::from_millis(ms));
        }
        statistics.set_aside(&liar, Duration::from_secs(300));
        assert_eq!(statistics.rank([liar, away, far, near].map(candidate)).now, [near, far, away]);
        assert!(statistics.stats(&liar).unwrap().set_aside_left().is_some());
    }

    #[test]
    fn a_silent_peer_is_paused_and_comes_back_when_it_answers() {
        let peer = PeerId::random();
        let statistics = PeerStatistics::default();
        statistics.retain_only([peer]);
        let now = Ranked { now: vec![peer], ..Ranked::default() };
        for _ in 0..8 {
            statistics.on_timed_out(&peer);
        }
        assert_eq!(statistics.rank([candidate(peer)]), now, "eight at once are one");
        statistics.update(&peer, |stats| stats.timed_out_at = None);
        statistics.on_timed_out(&peer);
        assert_eq!(statistics.rank([candidate(peer)]), Ranked { paused: vec![peer], ..Ranked::default() });
        statistics.on_answered(&peer, Duration::from_millis(1));
        assert_eq!(statistics.rank([candidate(peer)]), now);
    }

    #[test]
    fn peer_that_is_overtaken_comes_after_the_one_that_answers() {
        let [quick, silent] = [PeerId::random(), PeerId::random()];
        let statistics = PeerStatistics::default();
        statistics.retain_only([quick, silent]);
        statistics.on_answered(&quick, Duration::from_millis(2));
        statistics.on_answered(&silent, Duration::from_millis(1));
        assert_eq!(statistics.rank([quick, silent].map(candidate)).now, [silent, quick]);
        statistics.on_overtaken(&silent, Duration::from_micros(500));
        assert_eq!(statistics.rank([quick, silent].map(candidate)).now, [silent, quick], "no time to answer");
        statistics.on_overtaken(&silent, Duration::from_millis(22));
        assert_eq!(statistics.rank([quick, silent].map(candidate)).now, [quick, silent]);
    }

    #[test]
    fn whoever_is_demoted_comes_after_all_others() {
        let [usual, demoted] = [PeerId::random(), PeerId::random()];
        let statistics = PeerStatistics::default();
        statistics.retain_only([usual, demoted]);
        let candidates = [Candidate { peer: demoted, is_demoted: true }, candidate(usual)];
        let ranked = Ranked { now: vec![usual], demoted: vec![demoted], ..Ranked::default() };
        assert_eq!(statistics.rank(candidates), ranked);
    }

    #[test]
    fn ping_that_was_slept_through_says_nothing_about_the_distance() {
        let mut stats = PeerStats::default();
        let ms = Duration::from_millis;
        [ms(20), Duration::from_secs(90)].into_iter().for_each(|took| stats.on_ping(took));
        assert_eq!((stats.distance(), stats.latency), (Some(ms(20)), Some(ms(20))));
        // What has become slow for good is seen soon.
        (0..PINGS_KEPT).for_each(|_| stats.on_ping(ms(80)));
        assert_eq!((stats.distance(), stats.pings.len()), (Some(ms(80)), PINGS_KEPT));
    }
}
