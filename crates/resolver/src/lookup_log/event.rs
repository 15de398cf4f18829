//! What can happen in a lookup, as `why` and `log` tell it.

use std::fmt;
use std::time::Duration;

use narmesh_protocol::NarHash;
use narmesh_protocol::nar::DEPTH_MAX;
use narmesh_quorum::Refusal;

use crate::source::SourceId;

/// Most bytes of a reason that is kept; longer ones lose their end.
const REASON_BYTES_MAX: usize = 400;
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
    /// What came of the lookup, if this ends it.
    pub(super) fn outcome(&self) -> Option<LookupOutcome> {
        match self {
            Self::OwnStore | Self::Remembered | Self::Holder(..) => Some(LookupOutcome::Found),
            Self::Deadline(_) | Self::NotFound(_) => Some(LookupOutcome::NotFound),
            Self::Refused(..) | Self::NarRefused => Some(LookupOutcome::Refused),
            Self::Asked(_)
            | Self::Absent(_)
            | Self::Distrusted(..)
            | Self::NoAnswer(..)
            | Self::NarFrom(..)
            | Self::NarBroken(..)
            | Self::NarUnsent(..)
            | Self::NarVerified(..)
            | Self::NarLie(_)
            | Self::NarTooDeep(_)
            | Self::NarMixedLie(_)
            | Self::NarTree(_)
            | Self::NarLeafRefused(..)
            | Self::NarLeafLie(_)
            | Self::NarTreeLie(_)
            | Self::NarGone
            | Self::NarCutShort(_)
            | Self::NarNotNow(_) => None,
        }
    }

    /// The source that it is about.
    pub(super) fn source(&self) -> Option<SourceId> {
        match self {
            Self::Asked(source)
            | Self::Absent(source)
            | Self::Distrusted(source, _)
            | Self::NoAnswer(source, _)
            | Self::Holder(source, _)
            | Self::NarFrom(source, _)
            | Self::NarBroken(source, _, _)
            | Self::NarUnsent(source, _)
            | Self::NarVerified(source, _, _)
            | Self::NarLie(source)
            | Self::NarTooDeep(source)
            | Self::NarTree(source)
            | Self::NarLeafRefused(source, _)
            | Self::NarLeafLie(source)
            | Self::NarTreeLie(source) => Some(*source),
            Self::OwnStore
            | Self::Remembered
            | Self::Refused(..)
            | Self::NarRefused
            | Self::Deadline(_)
            | Self::NotFound(_)
            | Self::NarMixedLie(_)
            | Self::NarGone
            | Self::NarCutShort(_)
            | Self::NarNotNow(_) => None,
        }
    }

    /// Keeps only the beginning of a long reason: a source may have written part of it.
    pub(super) fn shorten(&mut self) {
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

/// What came of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupOutcome {
    /// Nix got the narinfo.
    Found,
    /// Nix was told 404.
    NotFound,
    /// The policy did not let Nix have it.
    Refused,
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

impl AtOnce {
    pub(super) fn outcome(self) -> LookupOutcome {
        match self {
            Self::OwnStore | Self::Remembered => LookupOutcome::Found,
            Self::NotClaimed => LookupOutcome::NotFound,
        }
    }
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
