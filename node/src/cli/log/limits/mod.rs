//! Bounds on how much is logged, so that nobody can fill the disk, or bury an important line, by repeating an event.
//!
//! Each event has a *kind* (its place in a program and, where given, its cause) and often names a *peer*. Three bounds
//! apply: lines per minute for each kind and peer; bytes per minute for each peer, and for all events without one;
//! bytes per minute for everything together. The first event of a kind in each minute passes whatever else was logged:
//! that is what an operator must see. What is left out is counted, and reported with the next line that passes, or a
//! minute later.
//!
//! A core: it takes the time from outside and writes nothing. Its memory is bounded, whatever peers are named.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tracing::Level;

/// Lines of one kind about one peer: at once, and per minute in the long run. Guesses: more of the same tells nobody
/// anything.
const PEER_LINES: Rate = Rate { burst: 10, per_minute: 6 };

/// Lines of one kind that name no peer. At a start the same line may come for sixty addresses, rules or files.
const OTHER_LINES: Rate = Rate { burst: 60, per_minute: 6 };

/// Bytes of all lines about one peer. With [`OTHER_BYTES`], which it can use up as well, one peer causes at most 32 +
/// 60 * 6 + 64 + 60 * 4 = 696 KiB in its first hour and 600 KiB in every other. That is below the promised 1 MB and
/// leaves 280 kB for the first lines of kinds (23 lines of 200 bytes in each minute).
const PEER_BYTES: Rate = Rate { burst: 32 << 10, per_minute: 6 << 10 };

/// Bytes of all lines that name no peer.
const OTHER_BYTES: Rate = Rate { burst: 64 << 10, per_minute: 4 << 10 };

/// Bytes of all lines: a start with 200 peers needs some 80 KiB at once. Eight or more hostile peers can cause 3 MB an
/// hour.
const ALL_BYTES: Rate = Rate { burst: 256 << 10, per_minute: 48 << 10 };

const MINUTE: Duration = Duration::from_secs(60);

/// The most kinds known at once; all others share one. The program and its libraries have some three hundred places
/// that log.
const KINDS_MAX: usize = 1_024;

/// The most pairs of kind and peer known at once; all others are counted per kind alone.
const PAIRS_MAX: usize = 4_096;

/// The most peers known at once; all others share one allowance.
const PEERS_MAX: usize = 1_024;

/// The shortest time between two searches of a full table for entries to drop. A search visits every entry.
const SEARCHED_EVERY: Duration = Duration::from_secs(1);

/// The most lines that one report of what was left out has; one more line sums up the rest.
const TOLD_MAX: usize = 32;

/// The key shared by all that have no room in a table.
const SHARED: u64 = 0;

/// A bound on lines or bytes: at once, and per minute in the long run.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: i64,
    per_minute: i64,
}

/// What may still be used of a rate, as of the moment `at`.
#[derive(Debug)]
struct Allowance {
    rate: Rate,
    /// Units times [`MINUTE_MS`], so that refilling for a millisecond loses nothing to rounding. Below zero if used in
    /// advance.
    left: i64,
    at: Instant,
}

const MINUTE_MS: i64 = 60_000;

impl Allowance {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst * MINUTE_MS, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let passed_ms = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        let gained = passed_ms.saturating_mul(self.rate.per_minute);
        self.left = self.left.saturating_add(gained).min(self.rate.burst * MINUTE_MS);
        // A fraction of a millisecond is kept for the next time.
        self.at += Duration::from_millis(passed_ms.unsigned_abs());
    }

    /// Whether at least one unit is left.
    fn has_some(&self) -> bool {
        self.left >= MINUTE_MS
    }

    /// Takes `units`, in advance if need be, but never more than a burst in advance.
    fn take(&mut self, units: i64) {
        let floor = -self.rate.burst * MINUTE_MS;
        self.left = self.left.saturating_sub(units.saturating_mul(MINUTE_MS)).max(floor);
    }

    fn is_full(&self) -> bool {
        self.left >= self.rate.burst * MINUTE_MS
    }
}

/// Where an event belongs. The numbers are keyed hashes, so nobody outside can find two origins with the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) kind: u64,
    pub(super) peer: Option<u64>,
    pub(super) level: Level,
}

/// The message and the peer of an event, for the report of what was left out.
#[derive(Debug, Default)]
pub(super) struct Description {
    pub(super) text: String,
    pub(super) peer: String,
}

/// What becomes of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// It is logged, with a remark that `left_out` events like it were not. The caller passes its bytes to
    /// [`Limits::charge`].
    Log { left_out: u64 },
    /// It is only counted. `is_first`: nothing else is left out and unreported, so the reporting thread has to be
    /// woken.
    LeaveOut { is_first: bool },
}

/// A report of what was left out about one peer, or about none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) count: u64,
    /// The most severe level among them.
    pub(super) level: Level,
    /// The message of their most frequent kind.
    pub(super) like: String,
    /// The name of the peer; `None` if they named none, or too many peers to name each.
    pub(super) peer: Option<String>,
}

/// What is known of a kind.
#[derive(Debug)]
struct Kind {
    /// When an event of this kind last passed as the first of its minute, which no limit holds back.
    assured: Option<Instant>,
    text: String,
}

/// Events of one kind about one peer.
#[derive(Debug)]
struct Pair {
    lines: Allowance,
    left_out: u64,
    /// When the first of those left out came.
    since: Instant,
    level: Level,
}

/// All lines about one peer.
#[derive(Debug)]
struct Peer {
    bytes: Allowance,
    name: String,
}

/// Decides what is logged.
#[derive(Debug)]
pub(super) struct Limits {
    kinds: HashMap<u64, Kind>,
    /// Keyed by kind and peer; without a peer, by kind alone.
    pairs: HashMap<(u64, Option<u64>), Pair>,
    peers: HashMap<u64, Peer>,
    others: Allowance,
    all: Allowance,
    /// The number of pairs of which something was left out and not yet reported.
    untold: usize,
    searched: Option<Instant>,
}

impl Limits {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            kinds: HashMap::new(),
            pairs: HashMap::new(),
            peers: HashMap::new(),
            others: Allowance::full(OTHER_BYTES, now),
            all: Allowance::full(ALL_BYTES, now),
            untold: 0,
            searched: None,
        }
    }

    /// Whether [`Self::admit`] needs no description: kind and peer are known already, or there is no room to remember
    /// them.
    pub(super) fn knows(&self, origin: Origin) -> bool {
        let is_kind_known = self.kinds.contains_key(&origin.kind) || self.kinds.len() >= KINDS_MAX;
        let is_known = |peer| self.peers.contains_key(&peer) || self.peers.len() >= PEERS_MAX;
        is_kind_known && origin.peer.is_none_or(is_known)
    }

    /// Whether an event is logged.
    pub(super) fn admit(&mut self, now: Instant, origin: Origin, description: Option<Description>) -> Passage {
        self.make_room(now);
        let Description { text, peer: name } = description.unwrap_or_default();
        // A full table does not grow: what is new shares one entry with everything else that is new.
        let kind_key = room(&self.kinds, origin.kind, KINDS_MAX);
        let kind = self.kinds.entry(kind_key).or_insert(Kind { assured: None, text });
        // The first of its kind in a minute passes without any allowance, or a flood of other kinds could hide it.
        let is_assured = kind.assured.is_none_or(|at| now.saturating_duration_since(at) >= MINUTE);

        let peer_key = origin.peer.map(|peer| room(&self.peers, peer, PEERS_MAX));
        self.all.refill(now);
        let bytes = match peer_key {
            Some(key) => {
                let new = || Peer { bytes: Allowance::full(PEER_BYTES, now), name };
                &mut self.peers.entry(key).or_insert_with(new).bytes
            }
            None => &mut self.others,
        };
        bytes.refill(now);
        let has_bytes = bytes.has_some() && self.all.has_some();

        // Beyond the bound a pair is counted per kind alone, so that ever new peers take no memory.
        let mut pair_key = (kind_key, peer_key);
        if self.pairs.len() >= PAIRS_MAX && !self.pairs.contains_key(&pair_key) {
            pair_key = (kind_key, None);
        }
        let rate = if pair_key.1.is_some() { PEER_LINES } else { OTHER_LINES };
        let new = || Pair { lines: Allowance::full(rate, now), left_out: 0, since: now, level: origin.level };
        let pair = self.pairs.entry(pair_key).or_insert_with(new);
        pair.lines.refill(now);
        if is_assured || (has_bytes && pair.lines.has_some()) {
            pair.lines.take(1);
            let left_out = std::mem::take(&mut pair.left_out);
            self.untold -= usize::from(left_out > 0);
            if is_assured {
                kind.assured = Some(now);
            }
            return Passage::Log { left_out };
        }
        if pair.left_out == 0 {
            (pair.since, pair.level) = (now, origin.level);
            self.untold += 1;
        }
        pair.left_out += 1;
        // `Level` orders by verbosity: the more severe level is the smaller one.
        pair.level = pair.level.min(origin.level);
        Passage::LeaveOut { is_first: self.untold == 1 && pair.left_out == 1 }
    }

    /// Charges the bytes of a logged line to the allowances.
    pub(super) fn charge(&mut self, peer: Option<u64>, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.all.take(bytes);
        match peer {
            Some(peer) => {
                // Beyond the bound of peers that are told apart, all others share one allowance.
                let key = if self.peers.contains_key(&peer) { peer } else { SHARED };
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.bytes.take(bytes);
                }
            }
            None => self.others.take(bytes),
        }
    }

    /// When the next report of what was left out is due; `None` if nothing was left out.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.untold == 0 {
            return None;
        }
        self.pairs.values().filter(|pair| pair.left_out > 0).map(|pair| pair.since + MINUTE).min()
    }

    /// Takes what has been left out and unreported for a minute, or `all` of it: one entry per peer and one for events
    /// that name none, the largest first. At most [`TOLD_MAX`] entries, and one for the rest.
    pub(super) fn take_left_out(&mut self, now: Instant, all: bool) -> Vec<LeftOut> {
        // By peer: the sum, the most severe level, the most frequent kind and its count.
        let mut sums: HashMap<Option<u64>, (u64, Level, u64, u64)> = HashMap::new();
        for (&(kind, peer), pair) in &mut self.pairs {
            if pair.left_out == 0 || !(all || now.saturating_duration_since(pair.since) >= MINUTE) {
                continue;
            }
            let count = std::mem::take(&mut pair.left_out);
            self.untold -= 1;
            let (sum, level, most, most_count) = sums.entry(peer).or_insert((0, pair.level, kind, count));
            *sum += count;
            *level = (*level).min(pair.level);
            if count > *most_count {
                (*most, *most_count) = (kind, count);
            }
        }
        let mut told: Vec<_> = sums
            .into_iter()
            .map(|(peer, (count, level, most, _))| LeftOut {
                count,
                level,
                like: self.kinds.get(&most).map_or_else(String::new, |kind| kind.text.clone()),
                peer: peer
                    .and_then(|peer| self.peers.get(&peer))
                    .map(|peer| peer.name.clone())
                    .filter(|name| !name.is_empty()),
            })
            .collect();
        told.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.peer.cmp(&b.peer)));
        // What others can repeat at will must not fill the log by being summed up, either.
        let rest = told.split_off(told.len().min(TOLD_MAX));
        let rest = rest.into_iter().reduce(|sum, next| LeftOut {
            count: sum.count + next.count,
            level: sum.level.min(next.level),
            peer: None,
            ..sum
        });
        told.extend(rest);
        told
    }

    /// When a table is full, drops the entries whose allowance is full again: without them the limits are the same.
    fn make_room(&mut self, now: Instant) {
        let is_full = self.kinds.len() >= KINDS_MAX || self.pairs.len() >= PAIRS_MAX || self.peers.len() >= PEERS_MAX;
        if !is_full || self.searched.is_some_and(|at| now.saturating_duration_since(at) < SEARCHED_EVERY) {
            return;
        }
        self.searched = Some(now);
        self.pairs.retain(|_, pair| {
            pair.lines.refill(now);
            pair.left_out > 0 || !pair.lines.is_full()
        });
        // The pairs that stay need the names of their kind and peer for the report.
        let (kinds, peers): (HashSet<_>, HashSet<_>) = self.pairs.keys().copied().unzip();
        self.kinds.retain(|key, kind| {
            kinds.contains(key) || kind.assured.is_some_and(|at| now.saturating_duration_since(at) < MINUTE)
        });
        self.peers.retain(|key, peer| {
            peer.bytes.refill(now);
            peers.contains(&Some(*key)) || !peer.bytes.is_full()
        });
    }
}

/// `key` if it is known or there is room for it, else the shared key.
fn room<V>(table: &HashMap<u64, V>, key: u64, len_max: usize) -> u64 {
    if table.len() < len_max || table.contains_key(&key) { key } else { SHARED }
}

#[cfg(test)]
mod tests;
