//! How much may be logged: so that nobody fills the disk, or buries what counts, by repeating what is logged.
//!
//! Each event is of a *kind* (a place in a program, and what is said to be wrong there) and often about a *peer*. Per kind and
//! peer some lines pass a minute; per peer, for all that names no peer, and for everything together some bytes. The first event
//! of a kind in each minute passes whatever else was logged: that is what an operator must see. What is left out is counted,
//! and said with the next line that passes, or a minute later.
//!
//! A core: it takes the time from outside and writes nothing. Its memory is bounded, whatever peers are named.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tracing::Level;

/// Lines of one kind about one peer: at once, and a minute in the long run. Guesses: more of the same tells nobody anything.
const PEER_LINES: Rate = Rate { burst: 10, per_minute: 6 };

/// Lines of one kind that name no peer. A start may say the same of sixty addresses, rules or files.
const OTHER_LINES: Rate = Rate { burst: 60, per_minute: 6 };

/// Bytes of all lines about one peer. With [`OTHER_BYTES`], which it can use up as well, one peer makes
/// 32 + 60 * 6 + 64 + 60 * 4 = 696 KiB in its first hour and 600 KiB in every other: below the 1 MB that it may, with 280 kB
/// to spare for the first lines of kinds (23 lines of 200 bytes in each minute).
const PEER_BYTES: Rate = Rate { burst: 32 << 10, per_minute: 6 << 10 };

/// Bytes of all lines that name no peer.
const OTHER_BYTES: Rate = Rate { burst: 64 << 10, per_minute: 4 << 10 };

/// Bytes of all lines: a start with 200 peers needs some 80 KiB at once; 3 MB an hour when eight peers and more are hostile.
const ALL_BYTES: Rate = Rate { burst: 256 << 10, per_minute: 48 << 10 };

const MINUTE: Duration = Duration::from_secs(60);

/// Kinds known at once: the program and its libraries have some three hundred places that log. What is beyond shares one.
const KINDS_MAX: usize = 1_024;

/// Pairs of kind and peer known at once. What is beyond is counted per kind alone.
const PAIRS_MAX: usize = 4_096;

/// Peers known at once. What is beyond shares one allowance.
const PEERS_MAX: usize = 1_024;

/// How often a full table is searched for what is not needed any more, which takes its length in steps.
const SEARCHED_EVERY: Duration = Duration::from_secs(1);

/// Lines that say what was left out, in one minute; all that is beyond is told in one more.
const TOLD_MAX: usize = 32;

/// The key of whatever finds no room in a table.
const SHARED: u64 = 0;

/// How fast something may go.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: i64,
    per_minute: i64,
}

/// What is left to be used, as of a moment.
#[derive(Debug)]
struct Allowance {
    rate: Rate,
    /// In units per minute times a millisecond, so that nothing is lost in rounding. Below zero: used in advance.
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
        // A millisecond that has not passed whole counts the next time.
        self.at += Duration::from_millis(passed_ms.unsigned_abs());
    }

    /// There is one unit at least.
    fn has_some(&self) -> bool {
        self.left >= MINUTE_MS
    }

    /// Takes `units`, also in advance, but never more than a burst of them.
    fn take(&mut self, units: i64) {
        let floor = -self.rate.burst * MINUTE_MS;
        self.left = self.left.saturating_sub(units.saturating_mul(MINUTE_MS)).max(floor);
    }

    fn is_full(&self) -> bool {
        self.left >= self.rate.burst * MINUTE_MS
    }
}

/// Where an event belongs. The numbers are hashes, of which nobody outside can know two that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) kind: u64,
    pub(super) peer: Option<u64>,
    pub(super) level: Level,
}

/// What is said of an event that was left out.
#[derive(Debug, Default)]
pub(super) struct Description {
    pub(super) text: String,
    pub(super) peer: String,
}

/// What becomes of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is logged, with a remark that so many like it were not. Its bytes go to [`Limits::charge`].
    Log { left_out: u64 },
    /// It is only counted; whether it is the first since all was told.
    LeaveOut { is_first: bool },
}

/// What was left out about one peer, or about none, and has to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) count: u64,
    /// The most severe of them.
    pub(super) level: Level,
    /// What most of them said.
    pub(super) like: String,
    /// Nothing: about no peer, or about too many to name each.
    pub(super) peer: Option<String>,
}

/// What is known of a kind.
#[derive(Debug)]
struct Kind {
    /// When its last event passed that nothing could have kept back.
    assured: Option<Instant>,
    text: String,
}

/// Events of one kind about one peer.
#[derive(Debug)]
struct Pair {
    lines: Allowance,
    left_out: u64,
    /// When the first of those came.
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
    /// By kind and peer; without a peer by kind alone.
    pairs: HashMap<(u64, Option<u64>), Pair>,
    peers: HashMap<u64, Peer>,
    others: Allowance,
    all: Allowance,
    /// Pairs of which something was left out and not told.
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

    /// Whether [`Self::admit`] needs no description: all is known already, or there is no room to remember it.
    pub(super) fn knows(&self, origin: Origin) -> bool {
        let is_kind_known = self.kinds.contains_key(&origin.kind) || self.kinds.len() >= KINDS_MAX;
        let is_known = |peer| self.peers.contains_key(&peer) || self.peers.len() >= PEERS_MAX;
        is_kind_known && origin.peer.is_none_or(is_known)
    }

    /// Whether an event is logged.
    pub(super) fn admit(&mut self, now: Instant, origin: Origin, description: Option<Description>) -> Verdict {
        self.make_room(now);
        let Description { text, peer: name } = description.unwrap_or_default();
        let kind_key = room(&self.kinds, origin.kind, KINDS_MAX);
        let kind = self.kinds.entry(kind_key).or_insert(Kind { assured: None, text });
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
            return Verdict::Log { left_out };
        }
        if pair.left_out == 0 {
            (pair.since, pair.level) = (now, origin.level);
            self.untold += 1;
        }
        pair.left_out += 1;
        // The more severe level is the smaller one.
        pair.level = pair.level.min(origin.level);
        Verdict::LeaveOut { is_first: self.untold == 1 && pair.left_out == 1 }
    }

    /// Takes the bytes of a line that was logged off the allowances.
    pub(super) fn charge(&mut self, peer: Option<u64>, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.all.take(bytes);
        match peer {
            Some(peer) => {
                let key = if self.peers.contains_key(&peer) { peer } else { SHARED };
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.bytes.take(bytes);
                }
            }
            None => self.others.take(bytes),
        }
    }

    /// When something is to be told that was left out; nothing if nothing was.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.untold == 0 {
            return None;
        }
        self.pairs.values().filter(|pair| pair.left_out > 0).map(|pair| pair.since + MINUTE).min()
    }

    /// What was left out and not told since a minute, or `all` of it: one entry per peer and one for what names none, the
    /// largest first. At most [`TOLD_MAX`] and one for the rest.
    pub(super) fn take_left_out(&mut self, now: Instant, all: bool) -> Vec<LeftOut> {
        // By peer: the sum, the worst level, the most frequent kind and how often it was.
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

    /// Forgets what is as if it had never been, when a table is full.
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
        // Kinds and peers are named when what was left out of them is told.
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

/// The key itself where it is known or there is room for it, else the one that all share.
fn room<V>(table: &HashMap<u64, V>, key: u64, len_max: usize) -> u64 {
    if table.len() < len_max || table.contains_key(&key) { key } else { SHARED }
}

#[cfg(test)]
mod tests;
