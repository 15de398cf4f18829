//! Where paths come from, as the resolver sees it: a set of sources that claim paths, answer with narinfos and send
//! NARs.
//!
//! The daemon implements [`Sources`] over the mesh, the tests over scripts. Asked for a NAR, a source says one of three
//! things: it *has it* (bytes follow), it *does not have it*, or *not now*. There are no deadlines here: the caller
//! decides how long to wait, by what moves on the [`Line`].

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use libp2p_identity::PeerId;
use narmesh_protocol::nar_tree::NarTree;
use narmesh_protocol::wire::{NarInfoReply, NarRequest, TreeRequest};
use narmesh_protocol::{HashPart, NarUrl, TrustedKeys};
use tokio::time::Instant;

use crate::turns::User;

/// The name of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceId {
    /// A peer of the mesh.
    Peer(PeerId),
    /// An upstream cache.
    Upstream(UpstreamId),
}

/// The number of an upstream cache: the same for the same name as long as the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamId(pub u16);

impl SourceId {
    /// The peer, if it is one.
    pub fn peer(&self) -> Option<PeerId> {
        match self {
            Self::Peer(peer) => Some(*peer),
            Self::Upstream(_) => None,
        }
    }

    /// A peer that is no other.
    #[cfg(test)]
    pub(crate) fn random() -> Self {
        Self::Peer(PeerId::random())
    }
}

impl fmt::Display for SourceId {
    /// Writes the peer id, or `upstream(N)`; who knows the names puts them in their place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => peer.fmt(f),
            Self::Upstream(UpstreamId(number)) => write!(f, "upstream({number})"),
        }
    }
}

/// The sources that may hold a path, looked up once for each request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Candidates that may be asked now, best first.
    pub ranked: Vec<Candidate>,
    /// Candidates that kept us waiting lately: for a while they are asked for no narinfo, and for NARs after all
    /// others.
    pub paused: Vec<Candidate>,
    /// Candidates whose filters misled us too often lately: asked after all others, and only as long as they make few lookups wait.
    pub demoted: Vec<Candidate>,
}

/// A source that claims a path, or that may have any path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The source.
    pub source: SourceId,
    /// The epoch of its summary; 0 for an upstream cache. When it is another one, what the source said before may no longer hold.
    pub summary_epoch: u64,
}

impl Candidates {
    /// All sources, best first; the paused ones and then the demoted ones come last.
    pub fn sources(&self) -> impl Iterator<Item = SourceId> {
        self.ranked.iter().chain(&self.paused).chain(&self.demoted).map(|candidate| candidate.source)
    }
}

/// What moves between us and a source, and how quick it usually is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line {
    /// Bytes that came in for all our NAR requests together, since the start.
    pub received_bytes: u64,
    /// When the last of these bytes came in.
    pub last_received: Option<Instant>,
    /// Number of our NAR requests that have not ended.
    pub in_flight: usize,
    /// The usual rate of the whole line in bytes per second, if it was ever measured.
    pub rate_bytes_s: Option<u64>,
    /// The usual time until an answer, if there ever was one.
    pub latency: Option<Duration>,
    /// Whether its answer is waited for until the latest deadline: it is not connected yet because we started a moment
    /// ago, or it is an upstream cache, to which a connection may take seconds.
    pub is_awaited: bool,
    /// Whether it is a peer with which there is a connection, or was one a moment ago: a request that cannot be sent to it
    /// now can be sent soon.
    pub is_there: bool,
    /// Whether it kept us waiting lately, so that all others are asked first.
    pub is_paused: bool,
    /// Whether it sends NARs only if no other source does: the preference of this machine.
    pub is_reserve: bool,
    /// Upstream caches of a lower tier are asked before those of a higher one; 0 for peers.
    pub tier: u8,
}

/// Why a source gave no answer to a question.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// It says that it is too busy.
    #[error("busy")]
    Busy,
    /// It cannot be reached, or the connection broke, or it violated the protocol.
    #[error("{0}")]
    Failed(String),
    /// The same of a source that is not known to be down: the next question may be answered.
    #[error("{0}")]
    FailedForNow(String),
    /// It answers whoever asks again after a while, for which [`Sources::take_turn`] waits.
    #[error("{0}")]
    NotYet(String),
}

/// The right to ask a source now; dropping it gives it to the next one.
pub type SourceTurn = Box<dyn Send + Sync>;

/// What a source says of the tree of a NAR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TreeAnswer {
    /// It has none.
    Absent,
    /// It has to be asked again.
    NotYet,
    /// This is it. The source signed that, and the tree is one that such a NAR can have.
    Bound(NarTree),
}

/// What a source did, as reported to the ranking of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// It was asked for a narinfo.
    Asked,
    /// Its narinfo verified and may be used.
    Held,
    /// It does not hold a path that it claims; reported at most once a minute per path.
    FalseHit,
    /// We gave up waiting for it.
    TimedOut,
    /// A request for a NAR ended without it: the connection broke, or nothing had come for a moment when nobody waited
    /// for it any more. A source that counts its own failures has counted this one if it is one.
    Unfinished,
    /// It has said nothing for so long, and another one that was asked has answered.
    Overtaken(Duration),
    /// A request has ended, and this is what it received.
    Received {
        /// Bytes of this request.
        bytes: u64,
        /// Bytes that all requests on the line received in that time.
        line_bytes: u64,
        /// Time spent waiting for the source.
        elapsed: Duration,
    },
    /// Its narinfo breaks a rule.
    FalseNarInfo,
    /// No key that counts for it signed its narinfo, which breaks no rule.
    UntrustedNarInfo,
    /// It sent a NAR that is deeper than any that is passed on. It may be the one promised.
    DeepNar,
    /// It alone sent a NAR that is not the one promised, or signed a tree that is not that of the NAR.
    FalseNar,
}

/// What a source says next about a NAR that it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The request waits in the source's queue.
    NotNow {
        /// Its place among our requests there, from 1; 0 means that it was refused for now and is asked again.
        place: u32,
    },
    /// It has the NAR, and names others who have it on their way; the first is to be asked first. Those that cannot be asked
    /// are left out.
    Others(Vec<SourceId>),
    /// The source is not asked yet, because there is no memory here for what it would send. That says nothing about it.
    NoMemory,
    /// Bytes were appended.
    Data,
    /// The source does not have that NAR.
    Absent,
    /// The NAR is complete.
    Complete,
    /// The source cannot finish.
    Failed,
}

/// One NAR on its way from one source. Dropping it ends the request.
pub trait NarFeed: Send {
    /// Waits for what comes next; appends bytes of the NAR to `out`, at most `bytes_max`. An error of the kind
    /// [`io::ErrorKind::InvalidData`] means that what was sent is not a NAR; one of the kind
    /// [`io::ErrorKind::InvalidInput`] means that the answer was malformed, which the feed itself has charged to the
    /// source.
    fn next<'a>(&'a mut self, out: &'a mut Vec<u8>, bytes_max: u64) -> BoxFuture<'a, io::Result<Piece>>;

    /// Bytes received over the wire for this request so far.
    fn wire_bytes(&self) -> u64;
}

/// Where those meet who fetch the same NAR from an upstream cache at the same time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MeetingPlace {
    /// At this peer: it is asked for the NAR before the cache.
    At(SourceId),
    /// Here: these have wanted the NAR before us and pass it on; the first is to be asked first.
    Here(Vec<SourceId>),
}

/// All sources that this machine knows.
pub trait Sources: Send + Sync + 'static {
    /// The sources that may hold this path. From memory.
    fn candidates(&self, part: &HashPart) -> Candidates;

    /// Whether any source claims this path: the first question of a request, and the only one that counts as a lookup
    /// where it is counted how often chance alone would have a source claim a path. From memory.
    fn look_up(&self, part: &HashPart) -> bool {
        self.is_claimed(part)
    }

    /// Whether any source claims this path. From memory, and quicker than [`Self::candidates`].
    fn is_claimed(&self, part: &HashPart) -> bool;

    /// Whether we started a moment ago and a source may still tell us for the first time what it has. From memory.
    fn are_gathering(&self) -> bool {
        false
    }

    /// The current epoch of this source's summary, if it has one. From memory.
    fn summary_epoch(&self, source: &SourceId) -> Option<u64>;

    /// The keys that count for narinfos of this source; `None` for those of the settings. From memory.
    fn trusted_keys(&self, _source: &SourceId) -> Option<Arc<TrustedKeys>> {
        None
    }

    /// Waits until this user may ask this source, which may bound how much it is asked at a time; `None` if that takes
    /// too long. The caller sets the deadline.
    fn take_turn(&self, _source: SourceId, _user: User) -> BoxFuture<'static, Option<SourceTurn>> {
        Box::pin(std::future::ready(Some(Box::new(()) as SourceTurn)))
    }

    /// Asks for a narinfo, after connecting if necessary. The caller sets the deadline.
    fn ask(&self, source: SourceId, part: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>>;

    /// Says that a NAR may soon be requested from this source.
    fn prepare(&self, source: SourceId);

    /// Requests a NAR, after connecting if necessary. Ready when the request is on its way. An error of the kind
    /// [`io::ErrorKind::ResourceBusy`] may be over in a moment, so the source is asked again.
    fn request(&self, source: SourceId, request: NarRequest) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>>;

    /// Asks for the tree of a NAR, after connecting if necessary; `None` if there is no answer. The caller sets the
    /// deadline.
    fn ask_tree(&self, _source: SourceId, _request: TreeRequest) -> BoxFuture<'static, Option<TreeAnswer>> {
        Box::pin(std::future::ready(None))
    }

    /// Whether anybody else could want what a peer sends us while it is coming. From memory.
    fn has_listeners(&self) -> bool {
        false
    }

    /// Whether anybody is there who shares our line to upstream caches. From memory.
    fn has_neighbours(&self) -> bool {
        false
    }

    /// Where those meet who fetch this NAR from an upstream cache now, if others share our line; `passes_on` says whether they
    /// get from us what has come. From memory.
    fn meeting_place(&self, _url: &NarUrl, _passes_on: bool) -> Option<MeetingPlace> {
        None
    }

    /// What moves between us and this source. From memory.
    fn line(&self, source: &SourceId) -> Line;

    /// Notes what a source did, without waiting.
    fn observe(&self, source: SourceId, observation: Observation);
}

impl fmt::Debug for dyn Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

impl fmt::Debug for dyn NarFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NarFeed")
    }
}
