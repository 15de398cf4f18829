//! What the resolver did last about a path, kept for `why`, in sentences.

use crate::source::SourceId;
use narmesh_protocol::{HashPart, NarHash};
use narmesh_quorum::Refusal;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Paths remembered; the one touched longest ago goes first.
const PATHS_MAX: usize = 1_024;
/// Decisions kept per path.
const DECISIONS_MAX: usize = 32;

/// One thing that the resolver decided or found.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Answered from our own store.
    OwnStore,
    /// Answered with what was learned earlier.
    Remembered,
    /// A candidate was asked.
    Asked(SourceId),
    /// It does not hold the path: its filter was wrong or is late.
    Absent(SourceId),
    /// Its answer is not handed on.
    Distrusted(SourceId, String),
    /// It gave no answer.
    NoAnswer(SourceId, String),
    /// It answered, and its narinfo verified.
    Holder(SourceId, Duration),
    /// The policy does not let Nix have what this narinfo says.
    Refused(Refusal, NarHash),
    /// The NAR that Nix asked for is not the one that it may have, or nobody says any more which that is.
    NarRefused,
    /// Nobody answered in time.
    Deadline(Duration),
    /// A NAR is read from it, from this offset on.
    NarFrom(SourceId, u64),
    /// The NAR cannot be continued from it.
    NarBroken(SourceId, u64, String),
    /// The NAR arrived whole, its hash verified.
    NarVerified(SourceId, u64, Duration),
    /// What was sent is not the NAR that was promised.
    NarLie(SourceId),
    /// What several sources together sent is not the NAR that was promised, and nobody knows whose bytes are wrong.
    NarMixedLie(usize),
    /// Nix was told that the NAR is gone.
    NarGone,
    /// The body was closed short, so that Nix asks again and builds.
    NarCutShort(u64),
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnStore => write!(f, "answered from the own store"),
            Self::Remembered => write!(f, "answered from memory; a candidate still claims the path"),
            Self::Asked(peer) => write!(f, "asked candidate {peer}"),
            Self::Absent(peer) => write!(f, "{peer} does not hold it: a false hit of its filter"),
            Self::Distrusted(peer, why) => write!(f, "answer of {peer} not handed on: {why}"),
            Self::NoAnswer(peer, why) => write!(f, "no answer from {peer}: {why}"),
            Self::Holder(peer, elapsed) => {
                write!(f, "{peer} holds it; narinfo verified after {:.1} ms", elapsed.as_secs_f64() * 1e3)
            }
            Self::Refused(refusal, nar_hash) => {
                write!(f, "refused by the policy, {nar_hash}: {refusal} (404); see `narmesh quorum why`")
            }
            Self::NarRefused => {
                write!(f, "the NAR was refused by the policy (404): it is not agreed on, or not any more")
            }
            Self::Deadline(after) => write!(f, "nobody answered within {after:?}"),
            Self::NarFrom(peer, offset) => write!(f, "NAR from {peer}, starting at byte {offset}"),
            Self::NarBroken(peer, offset, why) => write!(f, "NAR from {peer} broke off at byte {offset}: {why}"),
            Self::NarVerified(peer, bytes, elapsed) => {
                let rate = *bytes as f64 / 1e6 / elapsed.as_secs_f64().max(1e-6);
                write!(f, "NAR of {bytes} bytes from {peer}, {rate:.0} MB/s, hash verified")
            }
            Self::NarLie(peer) => write!(f, "{peer} sent another NAR than promised: the hash differs"),
            Self::NarMixedLie(sources) => {
                write!(
                    f,
                    "{sources} sources together sent another NAR than promised: nobody is blamed, each is read alone"
                )
            }
            Self::NarGone => write!(f, "told Nix that the NAR is gone (404): it builds or goes on"),
            Self::NarCutShort(at) => write!(f, "closed the body short at byte {at}: Nix builds or goes on"),
        }
    }
}

/// The last decisions by path.
#[derive(Debug, Default)]
pub struct Decisions {
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    by_path: HashMap<HashPart, VecDeque<(u64, Decision)>>,
    order: VecDeque<HashPart>,
}

impl Decisions {
    /// Notes a decision about a path.
    pub(crate) fn note(&self, hash_part: HashPart, decision: Decision) {
        tracing::debug!(%hash_part, %decision, "resolver");
        let at_unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let at_unix_ms = u64::try_from(at_unix_ms).unwrap_or(u64::MAX);
        let mut log = self.log.lock();
        let Log { by_path, order } = &mut *log;
        let decisions = by_path.entry(hash_part).or_insert_with(|| {
            order.push_back(hash_part);
            VecDeque::new()
        });
        if decisions.len() == DECISIONS_MAX {
            decisions.pop_front();
        }
        decisions.push_back((at_unix_ms, decision));
        if order.len() > PATHS_MAX
            && let Some(oldest) = order.pop_front()
        {
            by_path.remove(&oldest);
        }
    }

    /// What happened to a path last: milliseconds since 1970, and a sentence.
    pub fn of(&self, hash_part: &HashPart) -> Vec<(u64, String)> {
        let log = self.log.lock();
        let decisions = log.by_path.get(hash_part);
        decisions.map_or_else(Vec::new, |all| all.iter().map(|(at, decision)| (*at, decision.to_string())).collect())
    }
}
