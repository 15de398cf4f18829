//! What the resolver did last for each path, kept as sentences for `why`.

use crate::source::SourceId;
use narmesh_protocol::nar::DEPTH_MAX;
use narmesh_protocol::{HashPart, NarHash};
use narmesh_quorum::Refusal;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Paths remembered; the one noted first goes first.
const PATHS_MAX: usize = 1_024;
/// Events kept per path.
const DECISIONS_MAX: usize = 32;
/// Most bytes of a reason that is kept; longer ones lose their end.
const REASON_BYTES_MAX: usize = 400;
/// Paths answered from memory that are remembered. They are kept apart because Nix asks for thousands of paths that
/// nobody has, which must not push out what was decided about a path that somebody has. Some 80 bytes each.
const AT_ONCE_MAX: usize = 16_384;

/// One thing that the resolver decided or found.
#[derive(Clone, Debug, PartialEq)]
pub enum LookupEvent {
    /// Answered from our own store.
    OwnStore,
    /// Answered with what was learned earlier.
    Remembered,
    /// This candidate was asked.
    Asked(SourceId),
    /// This candidate does not hold the path; the filter of a peer gave a false positive or is out of date.
    Absent(SourceId),
    /// The answer of this candidate is not handed on, for this reason.
    Distrusted(SourceId, String),
    /// This candidate gave no answer, for this reason.
    NoAnswer(SourceId, String),
    /// This candidate answered after so long, and its narinfo verified.
    Holder(SourceId, Duration),
    /// The policy does not let Nix have the NAR with this NarHash.
    Refused(Refusal, NarHash),
    /// Nix may not have the NAR that it asked for: another one is let through, or none at all.
    NarRefused,
    /// Nobody answered within this time.
    Deadline(Duration),
    /// Nix was told that the path is not here.
    NotFound(NotFound),
    /// The NAR is read from this source, from this byte on.
    NarFrom(SourceId, u64),
    /// The NAR cannot be continued from this source, at this byte and for this reason.
    NarBroken(SourceId, u64, String),
    /// This source is there, but the request for the NAR cannot be sent to it now, for this reason.
    NarUnsent(SourceId, String),
    /// The NAR arrived whole and its hash is right: the last source, the size in bytes and the time it took.
    NarVerified(SourceId, u64, Duration),
    /// This source alone sent something else than the NAR that was promised.
    NarLie(SourceId),
    /// This source sent a NAR that is too deep to be passed on, whether it is the one promised or not.
    NarTooDeep(SourceId),
    /// So many sources together sent something else than the NAR that was promised, and nobody knows whose bytes are
    /// wrong.
    NarMixedLie(usize),
    /// This source has signed what each leaf of the NAR is.
    NarTree(SourceId),
    /// This source sent another leaf than others signed, at this byte: who of them lies is open.
    NarLeafRefused(SourceId, u64),
    /// This source sent a leaf that is not one of the NAR.
    NarLeafLie(SourceId),
    /// This source signed leaves that are not those of the NAR.
    NarTreeLie(SourceId),
    /// Nix was told that the NAR is gone.
    NarGone,
    /// The body was closed short at this byte, so that Nix asks again and then builds.
    NarCutShort(u64),
    /// Nix was told to ask again for the NAR from this byte on: a source is there that could not be asked.
    NarNotNow(u64),
}

impl LookupEvent {
    /// Keeps only the beginning of a long reason: a source may have written part of it.
    fn shorten(&mut self) {
        let (Self::Distrusted(_, why) | Self::NoAnswer(_, why) | Self::NarBroken(_, _, why) | Self::NarUnsent(_, why)) =
            self
        else {
            return;
        };
        if why.len() > REASON_BYTES_MAX {
            why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
            why.push('…');
            why.shrink_to_fit();
        }
    }
}

/// Why Nix was told that a path is not here, although a filter claims it or our own store holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFound {
    /// No candidate holds it, or none has an answer that may be handed on.
    Nobody,
    /// A candidate did not answer in time, or is not asked for a while.
    NotNow,
    /// Our own store, which has it, could not be read yet, and nobody else has one.
    OwnLocked,
    /// The policy refuses our own copy, and nobody else has one that may be given.
    OwnRefused(Refusal),
}

/// An answer that was given from memory at once, without asking anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtOnce {
    /// 200 from our own store.
    OwnStore,
    /// 200 with what a peer answered before.
    Remembered,
    /// 404: the path is not here, no filter says maybe, and no upstream cache can be asked.
    NotClaimed,
}

impl fmt::Display for AtOnce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnStore => "answered from memory: our own store has the path",
            Self::Remembered => "answered from memory; a candidate still claims the path",
            Self::NotClaimed => "answered 404 at once, and nobody was asked: no peer's filter said maybe, and no upstream cache may have it",
        })
    }
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => write!(f, "no candidate has an answer that may be handed on"),
            Self::NotNow => write!(f, "a candidate gave no answer, or is not asked for a while"),
            Self::OwnLocked => write!(f, "nobody else has one, and our own store cannot be read now: it is waited for"),
            Self::OwnRefused(refusal) => write!(f, "our own copy is not given ({refusal}), and nobody else has one"),
        }
    }
}

impl fmt::Display for LookupEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnStore => write!(f, "answered from our own store"),
            Self::Remembered => write!(f, "answered from memory; a candidate still claims the path"),
            Self::Asked(peer) => write!(f, "asked candidate {peer}"),
            Self::Absent(source @ SourceId::Peer(_)) => {
                write!(f, "{source} does not hold it: a false hit of its filter")
            }
            Self::Absent(source @ SourceId::Upstream(_)) => write!(f, "{source} does not have it"),
            Self::Distrusted(peer, why) => write!(f, "the answer of {peer} is not handed on: {why}"),
            Self::NoAnswer(peer, why) => write!(f, "no answer from {peer}: {why}"),
            Self::Holder(peer, elapsed) => {
                write!(f, "{peer} holds it; narinfo verified after {:.1} ms", elapsed.as_secs_f64() * 1e3)
            }
            Self::Refused(refusal, nar_hash) => {
                write!(f, "refused by the policy, {nar_hash}: {refusal} (404); see `narmesh quorum why`")
            }
            Self::NarRefused => {
                write!(f, "the NAR was refused by the policy (404): it is not agreed on, or no longer")
            }
            Self::Deadline(after) => write!(f, "nobody answered within {after:?}"),
            Self::NotFound(why) => write!(f, "answered 404: {why}"),
            Self::NarFrom(peer, offset) => write!(f, "NAR from {peer}, starting at byte {offset}"),
            Self::NarBroken(peer, offset, why) => write!(f, "NAR from {peer} broke off at byte {offset}: {why}"),
            Self::NarUnsent(source, why) => {
                write!(
                    f,
                    "{source} is there, but the connection for NARs cannot be opened now: {why}; it is tried again"
                )
            }
            Self::NarVerified(peer, bytes, elapsed) => {
                let rate = *bytes as f64 / 1e6 / elapsed.as_secs_f64().max(1e-6);
                write!(f, "NAR of {bytes} bytes from {peer}, {rate:.0} MB/s, hash verified")
            }
            Self::NarLie(peer) => write!(f, "{peer} sent another NAR than promised: the hash differs"),
            Self::NarTooDeep(source) => {
                write!(
                    f,
                    "the NAR of {source} is not taken: it is over {DEPTH_MAX} nodes deep (directories below each other), which a \
                     current Nix does not unpack"
                )
            }
            Self::NarMixedLie(sources) => {
                write!(
                    f,
                    "parts from {sources} sources made another NAR than promised: which of them sent wrong bytes is not known, \
                     so nobody is blamed, and each is read alone"
                )
            }
            Self::NarTree(peer) => {
                write!(f, "{peer} signed what each part of the NAR is: parts are checked as they come")
            }
            Self::NarLeafRefused(peer, offset) => {
                write!(
                    f,
                    "{peer} sent another part at byte {offset} than others signed: not used, and nobody is blamed yet"
                )
            }
            Self::NarLeafLie(peer) => write!(f, "{peer} sent a part that is not of the NAR"),
            Self::NarTreeLie(peer) => write!(f, "{peer} signed parts that are not those of the NAR"),
            Self::NarGone => write!(f, "told Nix that the NAR is gone (404): it builds or asks elsewhere"),
            Self::NarNotNow(at) => {
                write!(
                    f,
                    "told Nix to ask again for the NAR, from byte {at} on: who holds it is there, but could not be asked"
                )
            }
            Self::NarCutShort(at) => write!(f, "closed the body short at byte {at}: Nix builds or asks elsewhere"),
        }
    }
}

/// The last events of each path.
#[derive(Debug, Default)]
pub struct LookupLog {
    log: Mutex<Log>,
    at_once: Mutex<AnswersAtOnce>,
}

#[derive(Debug, Default)]
struct Log {
    by_path: HashMap<HashPart, VecDeque<(u64, LookupEvent)>>,
    order: VecDeque<HashPart>,
    has_forgotten: bool,
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
        lookup_log.push_back((at_unix_ms, decision));
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
        // The path keeps its place in the order: moving it to the end would cost a search for each answer.
        if let Some(given) = by_path.get_mut(&hash_part) {
            let times = if given.what == what { given.times + 1 } else { 1 };
            *given = GivenAtOnce { what, last_unix_ms, times };
            return;
        }
        if order.len() == AT_ONCE_MAX
            && let Some(oldest) = order.pop_front()
        {
            by_path.remove(&oldest);
            *has_forgotten = true;
        }
        order.push_back(hash_part);
        by_path.insert(hash_part, GivenAtOnce { what, last_unix_ms, times: 1 });
    }

    /// The latest events of a path, oldest first: milliseconds since 1970, and a sentence.
    pub fn of(&self, hash_part: &HashPart) -> Vec<(u64, String)> {
        let mut told: Vec<_> = {
            let log = self.log.lock();
            let lookup_log = log.by_path.get(hash_part).into_iter().flatten();
            lookup_log.map(|(at, decision)| (*at, decision.to_string())).collect()
        };
        if let Some(given) = self.at_once.lock().by_path.get(hash_part) {
            let before = match given.times {
                1 => String::new(),
                2 => "; the same as once before".to_owned(),
                times => format!("; the same as {} times before", times - 1),
            };
            told.push((given.last_unix_ms, format!("{}{before}", given.what)));
            told.sort_by_key(|(at, _)| *at);
        }
        told
    }

    /// Whether anything noted was forgotten: if so, a path without a record may have been asked for all the same.
    pub fn has_forgotten(&self) -> bool {
        self.log.lock().has_forgotten || self.at_once.lock().has_forgotten
    }
}

fn unix_ms() -> u64 {
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
