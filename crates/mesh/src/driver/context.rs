//! What the parts of the driver work on together. A part is given it for each call, and keeps nothing of it.

use crate::behaviour::MeshBehaviour;
use crate::clock::now;
use crate::codec::BytesCodec;
use crate::config::MeshConfig;
use crate::state::MeshState;
use crate::statistics::PeerStatistics;
use crate::unread::{Protocol, Request, UnreadReplies};
use libp2p::request_response::{self, ResponseChannel};
use libp2p::{PeerId, Swarm};
use narmesh_gossip::{Gossip, Input, Misdeed, Output, Record};
use narmesh_protocol::codec::CodecError;
use narmesh_protocol::wire::{
    CircuitReply, GossipReply, LogReply, NarInfoReply, RealisationReply, RosterReply, TreeReply,
};
use narmesh_quorum::wire::QuorumReply;
use std::sync::Arc;

pub(super) struct Context {
    pub(super) swarm: Swarm<MeshBehaviour>,
    pub(super) gossip: Gossip,
    pub(super) statistics: Arc<PeerStatistics>,
    pub(super) config: MeshConfig,
    pub(super) state: Box<dyn MeshState>,
    pub(super) unread: UnreadReplies,
}

impl Context {
    pub(super) fn report_misdeed(&mut self, peer: PeerId, misdeed: Misdeed) {
        self.gossip.handle(now(), Input::Misbehaved { peer, misdeed });
    }

    /// Writes what of `outputs` must be durable before any of them is performed.
    pub(super) fn persist(&self, outputs: &[Output]) {
        let records: Vec<&Record> = outputs.iter().filter_map(record_of).collect();
        if records.is_empty() {
            return;
        }
        if let Err(error) = self.state.persist(&records) {
            tracing::error!(%error, "state database: cannot write; peers may hear old epochs again after a restart");
        }
    }

    /// The behaviour that carries a protocol's requests.
    pub(super) fn requests_of(&mut self, protocol: Protocol) -> &mut request_response::Behaviour<BytesCodec> {
        let behaviour = self.swarm.behaviour_mut();
        match protocol {
            Protocol::Gossip => &mut behaviour.gossip,
            Protocol::NarInfo => &mut behaviour.narinfo,
            Protocol::Tree => &mut behaviour.tree,
            Protocol::Log => &mut behaviour.log,
            Protocol::Realisation => &mut behaviour.realisation,
            Protocol::Quorum => &mut behaviour.quorum,
            Protocol::Roster => &mut behaviour.roster,
            Protocol::Circuit => &mut behaviour.circuit,
        }
    }

    /// Sends `reply`, or *busy* while too much that `to` was sent before is not read.
    pub(super) fn send_reply(
        &mut self,
        request: Request,
        to: PeerId,
        channel: ResponseChannel<Vec<u8>>,
        reply: Vec<u8>,
    ) {
        let is_admitted = self.unread.admit(request, to, reply.len());
        let reply = if is_admitted { Ok(reply) } else { encode_busy(request.0) };
        // The channel is closed if the asker left.
        if !reply.is_ok_and(|reply| self.requests_of(request.0).send_response(channel, reply).is_ok()) {
            self.unread.end(&request);
        }
    }
}

/// The *busy* of each protocol.
pub(super) fn encode_busy(protocol: Protocol) -> Result<Vec<u8>, CodecError> {
    match protocol {
        Protocol::Gossip => GossipReply::Busy.encode(),
        Protocol::NarInfo => NarInfoReply::Busy.encode(),
        Protocol::Tree => TreeReply::Busy.encode(),
        Protocol::Log => LogReply::Busy.encode(),
        Protocol::Realisation => RealisationReply::Busy.encode(),
        Protocol::Quorum => QuorumReply::Busy.encode(),
        Protocol::Roster => RosterReply::Busy.encode(),
        Protocol::Circuit => CircuitReply::Busy.encode(),
    }
}

fn record_of(output: &Output) -> Option<&Record> {
    match output {
        Output::Persist(record) => Some(record),
        Output::Publish(_)
        | Output::Judge { .. }
        | Output::Request { .. }
        | Output::Respond { .. }
        | Output::Penalize { .. }
        | Output::Event(_) => None,
    }
}
