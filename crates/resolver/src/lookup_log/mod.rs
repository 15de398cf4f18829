//! What the resolver did last for each path, kept as sentences for `why`.

mod event;

pub use self::event::{LookupEvent, LookupOutcome, NotFound};

pub(crate) use self::event::AtOnce;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use narmesh_protocol::HashPart;
use parking_lot::Mutex;

use crate::source::SourceId;

/// Paths remembered; the one noted first goes first.
const PATHS_MAX: usize = 1_024;
/// Events kept per path.
const DECISIONS_MAX: usize = 32;
/// Paths answered from memory that are remembered. They are kept apart because Nix asks for thousands of paths that
/// nobody has, which must not push out what was decided about a path that somebody has. Some 80 bytes each.
const AT_ONCE_MAX: usize = 16_384;

/// One lookup event, or the last answer from memory, for `narmesh log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupRecord {
    /// [`LookupLog::changes`] when it was noted.
    pub change: u64,
    /// When it was noted, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The path.
    pub hash_part: HashPart,
    /// The source that it is about.
    pub source: Option<SourceId>,
    /// What came of the lookup, if this ended it.
    pub outcome: Option<LookupOutcome>,
    /// What happened, in words; sources appear by their ids.
    pub sentence: String,
}

/// Which lookup events are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct LookupQuery {
    /// Only of this path.
    pub hash_part: Option<HashPart>,
    /// Only those noted after this [`LookupLog::changes`].
    pub after_change: u64,
    /// Only those of this time or later, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Also the steps that end no lookup.
    pub with_steps: bool,
}

impl fmt::Display for GivenAtOnce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        match self.times {
            1 => Ok(()),
            2 => write!(f, "; the same as once before"),
            times => write!(f, "; the same as {} times before", times - 1),
        }
    }
}

/// The last events of each path.
#[derive(Debug, Default)]
pub struct LookupLog {
    /// Raised by each note, while what it goes into is locked.
    changes: AtomicU64,
    log: Mutex<Log>,
    at_once: Mutex<AnswersAtOnce>,
}

#[derive(Debug, Default)]
struct Log {
    by_path: HashMap<HashPart, VecDeque<Noted>>,
    order: VecDeque<HashPart>,
    has_forgotten: bool,
}

#[derive(Debug)]
struct Noted {
    change: u64,
    at_unix_ms: u64,
    event: LookupEvent,
}

/// The last answer that was given about each path from memory.
#[derive(Debug, Default)]
struct AnswersAtOnce {
    by_path: HashMap<HashPart, GivenAtOnce>,
    order: VecDeque<HashPart>,
    has_forgotten: bool,
}

#[derive(Debug)]
struct GivenAtOnce {
    what: AtOnce,
    change: u64,
    last_unix_ms: u64,
    /// How many times in a row this answer was given.
    times: u64,
}

impl LookupLog {
    /// Notes a decision about a path.
    pub(crate) fn note(&self, hash_part: HashPart, mut decision: LookupEvent) {
        decision.shorten();
        tracing::debug!(%hash_part, %decision, "resolver");
        let at_unix_ms = unix_ms();
        let mut log = self.log.lock();
        let Log { by_path, order, has_forgotten } = &mut *log;
        let lookup_log = by_path.entry(hash_part).or_insert_with(|| {
            order.push_back(hash_part);
            VecDeque::new()
        });
        if lookup_log.len() == DECISIONS_MAX {
            lookup_log.pop_front();
        }
        lookup_log.push_back(Noted { change: self.change(), at_unix_ms, event: decision });
        if order.len() > PATHS_MAX
            && let Some(oldest) = order.pop_front()
        {
            by_path.remove(&oldest);
            *has_forgotten = true;
        }
    }

    /// Notes an answer from memory. Must be as cheap as such an answer, which reads no disk and waits for nobody.
    pub(crate) fn note_at_once(&self, hash_part: HashPart, what: AtOnce) {
        let last_unix_ms = unix_ms();
        let mut answers = self.at_once.lock();
        let AnswersAtOnce { by_path, order, has_forgotten } = &mut *answers;
        let change = self.change();
        // The path keeps its place in the order: moving it to the end would cost a search for each answer.
        if let Some(given) = by_path.get_mut(&hash_part) {
            let times = if given.what == what { given.times + 1 } else { 1 };
            *given = GivenAtOnce { what, change, last_unix_ms, times };
            return;
        }
        if order.len() == AT_ONCE_MAX
            && let Some(oldest) = order.pop_front()
        {
            by_path.remove(&oldest);
            *has_forgotten = true;
        }
        order.push_back(hash_part);
        by_path.insert(hash_part, GivenAtOnce { what, change, last_unix_ms, times: 1 });
    }

    /// The latest events of a path, oldest first: milliseconds since 1970, and a sentence.
    pub fn of(&self, hash_part: &HashPart) -> Vec<(u64, String)> {
        let mut told: Vec<_> = {
            let log = self.log.lock();
            let lookup_log = log.by_path.get(hash_part).into_iter().flatten();
            lookup_log.map(|noted| (noted.at_unix_ms, noted.event.to_string())).collect()
        };
        // The two logs have locks of their own, which are never held together.
        if let Some(given) = self.at_once.lock().by_path.get(hash_part) {
            told.push((given.last_unix_ms, given.to_string()));
            told.sort_by_key(|(at, _)| *at);
        }
        told
    }

    /// A number that rises with each note. Whoever reads it first, and then asks for what came before it, misses nothing by
    /// asking later for what came after.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    fn change(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The latest `most` notes that `query` and `is_wanted` let through, the oldest first.
    pub fn find(
        &self,
        query: &LookupQuery,
        most: usize,
        is_wanted: impl Fn(Option<SourceId>, Option<LookupOutcome>) -> bool,
    ) -> Vec<LookupRecord> {
        let fits = |part: &HashPart, change: u64, at_unix_ms: u64| {
            query.hash_part.is_none_or(|wanted| wanted == *part)
                && change > query.after_change
                && at_unix_ms >= query.since_unix_ms
        };
        let latest = |mut found: Vec<LookupRecord>| {
            found.sort_unstable_by_key(|record| record.change);
            found.split_off(found.len().saturating_sub(most))
        };
        let mut found = Vec::new();
        {
            let log = self.log.lock();
            let all = log.by_path.iter().flat_map(|(part, noted)| noted.iter().map(move |noted| (part, noted)));
            for (part, Noted { change, at_unix_ms, event }) in all {
                let (source, outcome) = (event.source(), event.outcome());
                let is_shown = query.with_steps || outcome.is_some();
                if is_shown && fits(part, *change, *at_unix_ms) && is_wanted(source, outcome) {
                    let sentence = event.to_string();
                    let (change, at_unix_ms, hash_part) = (*change, *at_unix_ms, *part);
                    found.push(LookupRecord { change, at_unix_ms, hash_part, source, outcome, sentence });
                }
            }
        }
        let mut found = latest(found);
        {
            let at_once = self.at_once.lock();
            for (part, given) in &at_once.by_path {
                let outcome = Some(given.what.outcome());
                if fits(part, given.change, given.last_unix_ms) && is_wanted(None, outcome) {
                    let (change, at_unix_ms, hash_part) = (given.change, given.last_unix_ms, *part);
                    let sentence = given.to_string();
                    found.push(LookupRecord { change, at_unix_ms, hash_part, source: None, outcome, sentence });
                }
            }
        }
        latest(found)
    }

    /// Whether anything noted was forgotten: if so, a path without a record may have been asked for all the same.
    pub fn has_forgotten(&self) -> bool {
        self.log.lock().has_forgotten || self.at_once.lock().has_forgotten
    }
}

pub(crate) fn unix_ms() -> u64 {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    u64::try_from(at).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u32) -> HashPart {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        HashPart(bytes)
    }

    fn sentences(lookup_log: &LookupLog, number: u32) -> Vec<String> {
        lookup_log.of(&part(number)).into_iter().map(|(_, sentence)| sentence).collect()
    }

    #[test]
    fn repeated_miss_from_memory_is_one_sentence_with_its_count() {
        let lookup_log = LookupLog::default();
        assert!(sentences(&lookup_log, 1).is_empty());
        lookup_log.note_at_once(part(1), AtOnce::NotClaimed);
        let miss = "answered 404 at once, and nobody was asked: no peer's filter said maybe, and no upstream cache may have it";
        assert_eq!(sentences(&lookup_log, 1), [miss]);
        lookup_log.note_at_once(part(1), AtOnce::NotClaimed);
        lookup_log.note_at_once(part(1), AtOnce::NotClaimed);
        assert_eq!(sentences(&lookup_log, 1), [format!("{miss}; the same as 2 times before")]);
        lookup_log.note_at_once(part(1), AtOnce::OwnStore);
        assert_eq!(sentences(&lookup_log, 1), ["answered from memory: our own store has the path"]);
        assert!(lookup_log.of(&part(1))[0].0 > 1_500_000_000_000, "it says when");
    }

    #[test]
    fn long_reason_of_a_source_is_cut() {
        let lookup_log = LookupLog::default();
        let source = SourceId::random();
        let event = [LookupEvent::NoAnswer, LookupEvent::Distrusted];
        for event in event {
            lookup_log.note(part(1), event(source, "ö".repeat(1 << 20)));
        }
        lookup_log.note(part(1), LookupEvent::NarBroken(source, 0, "x".repeat(1 << 20)));
        assert!(sentences(&lookup_log, 1).iter().all(|sentence| sentence.len() < 600));
    }

    #[test]
    fn many_misses_are_bounded_and_push_out_no_decision() {
        let lookup_log = LookupLog::default();
        lookup_log.note(part(0), LookupEvent::NotFound(NotFound::Nobody));
        assert!(!lookup_log.has_forgotten());
        for number in (0..).take(AT_ONCE_MAX + 1) {
            lookup_log.note_at_once(part(number), AtOnce::NotClaimed);
        }
        assert_eq!(lookup_log.at_once.lock().by_path.len(), AT_ONCE_MAX);
        assert_eq!(sentences(&lookup_log, 0).len(), 1, "the decision is kept, the miss is forgotten");
        assert!(lookup_log.has_forgotten());
    }
}
