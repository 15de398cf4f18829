//! Where paths that our own store lacks come from: peers of the mesh, and upstream caches.
//!
//! [`AllSources`] is what the resolver sees. It puts both kinds in one order and hands each call on to the kind that the
//! source is of: `mesh.rs` or `upstreams.rs`.

mod mesh;
mod upstreams;

pub(crate) use upstreams::{PreparedUpstreams, UpstreamSources};

use futures::future::BoxFuture;
use mesh::MeshSources;
use narmesh_mesh::MeshHandle;
use narmesh_protocol::wire::{NarInfoReply, NarRequest};
use narmesh_protocol::{HashPart, TrustedKeys};
use narmesh_resolver::{Candidate, Candidates, Line, NarFeed, NoAnswer, Observation, SourceId, Sources};
use std::io;
use std::sync::Arc;

/// All sources of this machine.
#[derive(Clone, Debug)]
pub(crate) struct AllSources {
    mesh: MeshSources,
    upstreams: Arc<UpstreamSources>,
}

impl AllSources {
    pub(crate) fn new(mesh: MeshHandle, upstreams: Arc<UpstreamSources>) -> Self {
        Self { mesh: MeshSources::new(mesh), upstreams }
    }
}

/// Peers and upstreams in turn, the best peer first: an upstream is asked when the best peer is late, and the second best
/// peer when that upstream is.
fn interleave(peers: Vec<Candidate>, upstreams: Vec<Candidate>) -> Vec<Candidate> {
    let (mut peers, mut upstreams) = (peers.into_iter(), upstreams.into_iter());
    let mut all = Vec::with_capacity(peers.len() + upstreams.len());
    while peers.len() + upstreams.len() > 0 {
        all.extend(peers.next());
        all.extend(upstreams.next());
    }
    all
}

impl Sources for AllSources {
    fn candidates(&self, part: &HashPart) -> Candidates {
        let mut candidates = self.mesh.candidates(part);
        candidates.ranked = interleave(candidates.ranked, self.upstreams.candidates());
        candidates
    }

    fn look_up(&self, part: &HashPart) -> bool {
        // Not short-circuited: the table counts each lookup.
        let is_claimed = self.mesh.look_up(part);
        is_claimed || self.upstreams.may_any_be_asked()
    }

    fn is_claimed(&self, part: &HashPart) -> bool {
        self.mesh.is_claimed(part) || self.upstreams.may_any_be_asked()
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

    fn line(&self, source: &SourceId) -> Line {
        match source {
            SourceId::Peer(peer) => self.mesh.line(peer),
            SourceId::Upstream(id) => self.upstreams.line(*id),
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
        let peers: Vec<_> = (0..3).map(|_| candidate(SourceId::Peer(libp2p::PeerId::random()))).collect();
        let upstreams: Vec<_> = (0..2).map(|number| candidate(SourceId::Upstream(UpstreamId(number)))).collect();
        let expected = [peers[0], upstreams[0], peers[1], upstreams[1], peers[2]];
        assert_eq!(interleave(peers, upstreams), expected);
    }
}
