//! The mesh as sources of the resolver: peers whose filters say maybe.

use futures::future::BoxFuture;
use libp2p::PeerId;
use narmesh_gossip::{Misdeed, ProbeOutcome};
use narmesh_mesh::TreeAnswer as MeshAnswer;
use narmesh_mesh::{AskError, MeshHandle, NarPiece, NarSource, Ranked, Uploads};
use narmesh_protocol::wire::{NarInfoReply, NarRequest, Referral, TreeRequest};
use narmesh_protocol::{AudienceDigest, HashPart, NarHash, NarUrl};
use narmesh_resolver::{
    Candidate, Candidates, Line, MeetingPlace, NarFeed, NoAnswer, Observation, Piece, SourceId, TreeAnswer,
};
use std::io;
use std::time::{Duration, Instant};

/// For this long after a start, peers that are not connected are waited for, because one side or the other is still
/// dialling. If a peer never comes, each narinfo request in that time may wait as long.
const AWAITED: Duration = Duration::from_secs(5);

/// The peers; the methods are those of [`Sources`](narmesh_resolver::Sources).
#[derive(Clone, Debug)]
pub(crate) struct MeshSources {
    mesh: MeshHandle,
    me: PeerId,
    uploads: Uploads,
    since: Instant,
}

impl MeshSources {
    pub(crate) fn new(mesh: MeshHandle, me: PeerId, uploads: Uploads) -> Self {
        Self { mesh, me, uploads, since: Instant::now() }
    }

    pub(super) fn candidates(&self, part: &HashPart) -> Candidates {
        let claiming = self.mesh.table().peek_candidates(part);
        let statistics = self.mesh.statistics();
        let Ranked { now, paused, demoted } = statistics.rank(claiming);
        let candidate = |peer| Candidate {
            source: SourceId::Peer(peer),
            summary_epoch: statistics.summary_epoch(&peer).unwrap_or(0),
        };
        Candidates {
            ranked: now.into_iter().map(candidate).collect(),
            paused: paused.into_iter().map(candidate).collect(),
            demoted: demoted.into_iter().map(candidate).collect(),
        }
    }

    pub(super) fn look_up(&self, part: &HashPart) -> bool {
        !self.mesh.table().find_candidates(part).is_empty()
    }

    pub(super) fn is_claimed(&self, part: &HashPart) -> bool {
        !self.mesh.table().peek_candidates(part).is_empty()
    }

    pub(super) fn are_gathering(&self) -> bool {
        self.mesh.awaits_first_words()
    }

    pub(super) fn summary_epoch(&self, source: &PeerId) -> Option<u64> {
        self.mesh.statistics().summary_epoch(source)
    }

    pub(super) fn ask(&self, source: PeerId, part: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>> {
        let mesh = self.mesh.clone();
        Box::pin(async move {
            mesh.ask_narinfo(source, part).await.map_err(|error| match error {
                AskError::Busy => NoAnswer::Busy,
                AskError::NotConnected(_) | AskError::Failed(_) | AskError::Stopping => {
                    NoAnswer::Failed(error.to_string())
                }
            })
        })
    }

    pub(super) fn prepare(&self, source: PeerId) {
        self.mesh.nar().prepare(source);
    }

    pub(super) fn request(
        &self,
        source: PeerId,
        request: NarRequest,
    ) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>> {
        let mesh = self.mesh.clone();
        Box::pin(async move {
            mesh.connect(source).await.map_err(io::Error::other)?;
            let source = mesh.nar().request(source, request).await?;
            Ok(Box::new(PeerFeed { source, mesh }) as Box<dyn NarFeed>)
        })
    }

    pub(super) fn ask_tree(&self, source: PeerId, request: TreeRequest) -> BoxFuture<'static, Option<TreeAnswer>> {
        let mesh = self.mesh.clone();
        Box::pin(async move {
            Some(match mesh.ask_tree(source, request).await.ok()? {
                MeshAnswer::Absent => TreeAnswer::Absent,
                MeshAnswer::NotYet => TreeAnswer::NotYet,
                MeshAnswer::Bound(tree) => TreeAnswer::Bound(tree),
            })
        })
    }

    /// Which of the machines on our network is asked who else is fetching this NAR from a cache: the same for all of them, as
    /// long as they know each other, and another one for each NAR.
    pub(super) fn meeting_place(&self, url: &NarUrl, passes_on: bool) -> Option<MeetingPlace> {
        let near = self.mesh.statistics().find_near();
        let place = near.iter().max_by_key(|peer| closeness(peer, &url.nar_hash))?;
        if closeness(place, &url.nar_hash) > closeness(&self.me, &url.nar_hash) {
            return Some(MeetingPlace::At(SourceId::Peer(*place)));
        }
        let NarUrl { hash_part, nar_hash, nar_size, .. } = *url;
        let (offset, end, accept_zstd, referral) = (0, nar_size, false, Referral::Welcome);
        let request = NarRequest { hash_part, nar_hash, nar_size, offset, end, accept_zstd, passes_on, referral };
        let before = self.uploads.meet(self.me, &request);
        let near = before.into_iter().filter(|peer| near.contains(peer));
        Some(MeetingPlace::Here(near.map(SourceId::Peer).collect()))
    }

    /// Whether anybody is on our network.
    pub(super) fn has_neighbours(&self) -> bool {
        !self.mesh.statistics().find_near().is_empty()
    }

    /// Whether anybody is there who could want what another peer sends us.
    pub(super) fn has_listeners(&self) -> bool {
        self.mesh.statistics().count_connected() > 1
    }

    pub(super) fn line(&self, source: &PeerId) -> Line {
        let (view, stats) = (self.mesh.nar().line(source), self.mesh.statistics().responsiveness(source));
        Line {
            received_bytes: view.received_bytes,
            last_received: view.last_received.map(Into::into),
            in_flight: view.in_flight,
            rate_bytes_s: stats.rate_bytes_s,
            latency: stats.latency,
            is_there: stats.is_there,
            is_paused: stats.is_paused,
            is_reserve: false,
            is_awaited: !stats.is_connected && self.since.elapsed() < AWAITED,
            tier: 0,
        }
    }

    pub(super) fn observe(&self, source: PeerId, observation: Observation) {
        let (mesh, statistics) = (&self.mesh, self.mesh.statistics());
        match observation {
            Observation::Asked => statistics.update(&source, |stats| stats.asked += 1),
            Observation::Held => {
                statistics.update(&source, |stats| stats.hits += 1);
                mesh.report_probe(source, ProbeOutcome::Held);
            }
            Observation::FalseHit => {
                statistics.update(&source, |stats| stats.false_hits += 1);
                mesh.report_probe(source, ProbeOutcome::FalseHit);
            }
            Observation::TimedOut | Observation::Unfinished => statistics.on_timed_out(&source),
            Observation::Overtaken(elapsed) => statistics.on_overtaken(&source, elapsed),
            Observation::Received { bytes, line_bytes, elapsed } => {
                statistics.on_received(&source, bytes, line_bytes, elapsed);
            }
            // It trusts other keys than we do.
            Observation::UntrustedNarInfo => {}
            Observation::FalseNarInfo => mesh.report_misdeed(source, Misdeed::FalseNarInfo),
            // The protocol forbids such a NAR, so it is as false as any other.
            Observation::DeepNar | Observation::FalseNar => mesh.report_misdeed(source, Misdeed::FalseNar),
        }
    }
}

/// How close a peer is to a NAR: any function will do that all compute alike and that scatters NARs over peers
/// (rendezvous hashing, Thaler and Ravishankar 1998; the mixer is that of `SplitMix64`).
fn closeness(peer: &PeerId, nar_hash: &NarHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = nar_hash.0;
    let mut mixed = u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ u64::from_le_bytes(AudienceDigest::of(peer).0);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A NAR from a peer.
#[derive(Debug)]
struct PeerFeed {
    source: NarSource,
    mesh: MeshHandle,
}

impl PeerFeed {
    /// The error for the resolver. A reply that is malformed before its body began proves nothing about the NAR, so the
    /// peer is charged with a malformed reply, and the resolver is not told of invalid data.
    fn judge_error(&self, error: io::Error) -> io::Error {
        if self.source.has_begun() || error.kind() != io::ErrorKind::InvalidData {
            return error;
        }
        self.mesh.report_misdeed(self.source.peer(), Misdeed::MalformedReply);
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

impl NarFeed for PeerFeed {
    fn next<'a>(&'a mut self, out: &'a mut Vec<u8>, bytes_max: u64) -> BoxFuture<'a, io::Result<Piece>> {
        Box::pin(async move {
            let piece = self.source.next(out, bytes_max).await;
            Ok(match piece.map_err(|error| self.judge_error(error))? {
                NarPiece::NotNow { place } => Piece::NotNow { place },
                NarPiece::Others(digests) => {
                    let peers = self.mesh.statistics().find_connected(&digests);
                    Piece::Others(peers.into_iter().map(SourceId::Peer).collect())
                }
                NarPiece::Data => Piece::Data,
                NarPiece::Absent => Piece::Absent,
                NarPiece::Complete => Piece::Complete,
                NarPiece::Failed => Piece::Failed,
            })
        })
    }

    fn wire_bytes(&self) -> u64 {
        self.source.wire_bytes()
    }
}
