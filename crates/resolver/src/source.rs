//! Where paths come from, as the resolver sees it: a set of sources that claim paths, answer for narinfos and send NARs.
//!
//! The daemon implements [`Sources`] over the mesh, the tests over scripts. What a source says of a NAR is one of three things: it
//! *has it* (bytes follow), it *has it not*, or *not now*. Nothing here is a deadline: whoever asks decides how long to wait, from
//! what moves ([`Line`]).

use std::fmt;
use std::io;
use std::time::Duration;

use futures::future::BoxFuture;
use narmesh_protocol::HashPart;
use narmesh_protocol::wire::{NarInfoReply, NarRequest};
use tokio::time::Instant;

/// Names a source: today always a peer.
pub type SourceId = libp2p_identity::PeerId;

/// Who may hold a path, looked up once for each request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Those that may be asked now, best first.
    pub ranked: Vec<Candidate>,
    /// Those that let us wait lately and are passed over for a while, if there is anybody else.
    pub paused: Vec<Candidate>,
    /// Those whose filters misled us too often lately: asked after all others, and at a bounded pace.
    pub demoted: Vec<Candidate>,
}

/// A source that claims a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which one.
    pub source: SourceId,
    /// Under which generation of its summary. Another number means that what it said before may have changed.
    pub generation: u64,
}

impl Candidates {
    /// The sources, best first; those that are passed over, and then the demoted ones, come last.
    pub fn sources(&self) -> impl Iterator<Item = SourceId> {
        self.ranked.iter().chain(&self.paused).chain(&self.demoted).map(|candidate| candidate.source)
    }
}

/// What moves between us and a source, and what is known of its pace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line {
    /// Bytes that came in for all our NAR requests together, since the start.
    pub received_bytes: u64,
    /// When the last of them came.
    pub last_received: Option<Instant>,
    /// Our NAR requests that have not ended.
    pub in_flight: usize,
    /// Usual bytes per second of the whole line, if it was ever measured.
    pub rate_bytes_s: Option<u64>,
    /// Usual time to an answer, if there ever was one.
    pub latency: Option<Duration>,
    /// We started a moment ago, and it is not connected yet.
    pub is_awaited: bool,
    /// It let us wait lately: anybody else is asked first.
    pub is_paused: bool,
}

/// Why a source gave no answer to a question.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// It has too much to do, and says so.
    #[error("busy")]
    Busy,
    /// It cannot be reached, or the connection or the protocol broke.
    #[error("{0}")]
    Failed(String),
}

/// What a source did, for its standing with whoever ranks the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// It was asked for a narinfo.
    Asked,
    /// Its narinfo verified and may be used.
    Held,
    /// It does not hold what it claims; told once a minute for one path.
    FalseHit,
    /// It let us wait until nobody waited any more.
    TimedOut,
    /// So many bytes of NARs came from it in so much time of waiting, over the whole line.
    Received {
        /// Of this request.
        bytes: u64,
        /// Of all requests of that time.
        line_bytes: u64,
        /// Waiting for it.
        elapsed: Duration,
    },
    /// Its narinfo breaks a rule.
    FalseNarInfo,
    /// It alone sent a NAR that is not the one promised.
    FalseNar,
}

/// What comes next of a NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The request stands in the source's queue, at this place; 0 means that it was refused for now and is asked again.
    NotNow {
        /// Counted from 1 among our requests at this source.
        place: u32,
    },
    /// Bytes were appended.
    Data,
    /// The source does not have that NAR.
    Absent,
    /// That was all.
    Complete,
    /// The source cannot finish.
    Failed,
}

/// One NAR on its way from one source. Dropping it ends the request.
pub trait NarFeed: Send {
    /// Waits for what comes next; appends the bytes of a NAR to `out`, at most `bytes_max`. An error of the kind
    /// [`io::ErrorKind::InvalidData`] means that what was sent is no NAR, one of the kind [`io::ErrorKind::InvalidInput`] that the
    /// answer was malformed, which the feed has told whoever counts that.
    fn next<'a>(&'a mut self, out: &'a mut Vec<u8>, bytes_max: u64) -> BoxFuture<'a, io::Result<Piece>>;

    /// Bytes that came over the wire for it so far.
    fn wire_bytes(&self) -> u64;
}

/// All sources of this machine.
pub trait Sources: Send + Sync + 'static {
    /// Who may hold this path. From memory.
    fn candidates(&self, part: &HashPart) -> Candidates;

    /// Whether any source claims this path. From memory, and quicker than [`Self::candidates`].
    fn is_claimed(&self, part: &HashPart) -> bool;

    /// The generation of this source's summary now, if there is one. From memory.
    fn generation(&self, source: &SourceId) -> Option<u64>;

    /// Asks for a narinfo, connecting first if need be. The caller sets the deadline.
    fn ask(&self, source: SourceId, part: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>>;

    /// A NAR of this source may be asked for soon.
    fn prepare(&self, source: SourceId);

    /// Asks for a NAR, connecting first if need be; ready when the request is on its way.
    fn request(&self, source: SourceId, request: NarRequest) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>>;

    /// What moves between us and this source. From memory.
    fn line(&self, source: &SourceId) -> Line;

    /// Takes note of what a source did; does not wait.
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
