//! Where paths that our own store lacks come from: peers of the mesh, and upstream caches.
//!
//! [`AllSources`] is what the resolver sees. It puts both kinds in one order and hands each call on to the kind that the
//! source is of: `mesh.rs` or `upstreams.rs`.

mod logs;
mod mesh;
mod pace;
mod peer_realisations;
mod realisations;
mod upstream_feed;
mod upstream_source;
mod upstreams;

pub(crate) use logs::{PeerLog, PeerLogs};
pub(crate) use peer_realisations::PeerRealisations;
pub(crate) use upstreams::{PreparedUpstreams, UpstreamSources};

use crate::settings::Prefer;
use futures::future::BoxFuture;
use libp2p::PeerId;
use mesh::MeshSources;
use narmesh_mesh::{MeshHandle, Uploads};
use narmesh_protocol::wire::{NarInfoReply, NarRequest, TreeRequest};
use narmesh_protocol::{HashPart, NarUrl, TrustedKeys};
use narmesh_resolver::{
    Candidate, Candidates, Line, MeetingPlace, NarFeed, NoAnswer, Observation, SourceId, SourceTurn, Sources,
    TreeAnswer, User,
};
use parking_lot::RwLock;
use std::io;
use std::sync::Arc;

/// All sources of this machine.
#[derive(Debug)]
pub(crate) struct AllSources {
    mesh: MeshSources,
    upstreams: Arc<UpstreamSources>,
    prefer: RwLock<Prefer>,
}

impl AllSources {
    /// The peers of `mesh`, whom `uploads` answers, and the caches.
    pub(crate) fn new(
        (mesh, me): (MeshHandle, PeerId),
        uploads: Uploads,
        upstreams: Arc<UpstreamSources>,
        prefer: Prefer,
    ) -> Self {
        Self { mesh: MeshSources::new(mesh, me, uploads), upstreams, prefer: RwLock::new(prefer) }
    }

    /// Sets which kind of source is asked first.
    pub(crate) fn set_preference(&self, prefer: Prefer) {
        *self.prefer.write() = prefer;
    }

    /// Both kinds in the order in which they are asked.
    fn order(&self, peers: Vec<Candidate>, upstreams: Vec<Candidate>) -> Vec<Candidate> {
        match *self.prefer.read() {
            Prefer::Mesh => interleave(peers, upstreams),
            Prefer::Upstream => interleave(upstreams, peers),
            Prefer::Fastest => {
                let mut all = interleave(peers, upstreams);
                // Whoever never answered comes first, or it would never be measured.
                all.sort_by_key(|candidate| self.line(&candidate.source).latency);
                all
            }
        }
    }
}

/// Two kinds of source in turn, the best of the `first` kind first: the other kind is asked when that one is late, and the
/// second best of the first kind when the best of the other kind is.
fn interleave(first: Vec<Candidate>, second: Vec<Candidate>) -> Vec<Candidate> {
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::with_capacity(first.len() + second.len());
    while first.len() + second.len() > 0 {
        all.extend(first.next());
        all.extend(second.next());
    }
    all
}

impl Sources for AllSources {
    fn candidates(&self, part: &HashPart) -> Candidates {
        let mut candidates = self.mesh.candidates(part);
        candidates.ranked = self.order(candidates.ranked, self.upstreams.candidates(part));
        candidates.paused.extend(self.upstreams.paused(part));
        candidates
    }

    fn look_up(&self, part: &HashPart) -> bool {
        // Not short-circuited: the table counts each lookup.
        let is_claimed = self.mesh.look_up(part);
        is_claimed || self.upstreams.may_any_have(part)
    }

    fn is_claimed(&self, part: &HashPart) -> bool {
        self.mesh.is_claimed(part) || self.upstreams.may_any_have(part)
    }

    fn are_gathering(&self) -> bool {
        self.mesh.are_gathering()
    }

    fn summary_epoch(&self, source: &SourceId) -> Option<u64> {
        match source {
            SourceId::Peer(peer) => self.mesh.summary_epoch(peer),
            SourceId::Upstream(id) => self.upstreams.is_configured(*id).then_some(0),
        }
    }

    fn trusted_keys(&self, source: &SourceId) -> Option<Arc<TrustedKeys>> {
        match source {
            SourceId::Peer(_) => None,
            SourceId::Upstream(id) => Some(self.upstreams.trusted_keys(*id)),
        }
    }

    fn take_turn(&self, source: SourceId, user: User) -> BoxFuture<'static, Option<SourceTurn>> {
        match source {
            // What a peer is asked at a time is bounded where it is asked.
            SourceId::Peer(_) => Box::pin(std::future::ready(Some(Box::new(()) as SourceTurn))),
            SourceId::Upstream(id) => self.upstreams.take_turn(id, user),
        }
    }

    fn ask(&self, source: SourceId, part: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>> {
        match source {
            SourceId::Peer(peer) => self.mesh.ask(peer, part),
            SourceId::Upstream(id) => self.upstreams.ask(id, part),
        }
    }

    fn prepare(&self, source: SourceId) {
        match source {
            SourceId::Peer(peer) => self.mesh.prepare(peer),
            // A connection for a body is made when it is requested.
            SourceId::Upstream(_) => {}
        }
    }

    fn request(&self, source: SourceId, request: NarRequest) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>> {
        match source {
            SourceId::Peer(peer) => self.mesh.request(peer, request),
            SourceId::Upstream(id) => self.upstreams.request(id, request),
        }
    }

    fn ask_tree(&self, source: SourceId, request: TreeRequest) -> BoxFuture<'static, Option<TreeAnswer>> {
        match source {
            SourceId::Peer(peer) => self.mesh.ask_tree(peer, request),
            // Nobody signs for it what a part of a NAR is.
            SourceId::Upstream(_) => Box::pin(std::future::ready(None)),
        }
    }

    fn has_listeners(&self) -> bool {
        self.mesh.has_listeners()
    }

    fn has_neighbours(&self) -> bool {
        *self.prefer.read() != Prefer::Upstream && self.mesh.has_neighbours()
    }

    fn meeting_place(&self, url: &NarUrl, passes_on: bool) -> Option<MeetingPlace> {
        match *self.prefer.read() {
            Prefer::Upstream => None,
            Prefer::Mesh | Prefer::Fastest => self.mesh.meeting_place(url, passes_on),
        }
    }

    fn line(&self, source: &SourceId) -> Line {
        let prefer = *self.prefer.read();
        match source {
            SourceId::Peer(peer) => Line { is_reserve: prefer == Prefer::Upstream, ..self.mesh.line(peer) },
            SourceId::Upstream(id) => Line { is_reserve: prefer == Prefer::Mesh, ..self.upstreams.line(*id) },
        }
    }

    fn observe(&self, source: SourceId, observation: Observation) {
        match source {
            SourceId::Peer(peer) => self.mesh.observe(peer, observation),
            SourceId::Upstream(id) => self.upstreams.observe(id, observation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_resolver::UpstreamId;

    #[test]
    fn the_best_peer_comes_first_and_an_upstream_second() {
        let candidate = |source| Candidate { source, summary_epoch: 0 };
        let peers: Vec<_> = (0..3).map(|_| candidate(SourceId::Peer(PeerId::random()))).collect();
        let upstreams: Vec<_> = (0..2).map(|number| candidate(SourceId::Upstream(UpstreamId(number)))).collect();
        let expected = [peers[0], upstreams[0], peers[1], upstreams[1], peers[2]];
        assert_eq!(interleave(peers, upstreams), expected);
    }
}
