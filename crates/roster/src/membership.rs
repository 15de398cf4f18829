//! What a node knows of its mesh.

use libp2p_identity::PeerId;
use narmesh_protocol::wire::{RosterReply, RosterRequest};
use narmesh_protocol::{NixPublicKey, RosterVersion, SignedRoster, node_key_of};
use std::sync::Arc;

/// The mesh of whose roster we are.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The mesh key, which signs rosters.
    pub key: NixPublicKey,
    /// The newest roster that we know.
    pub roster: Option<Arc<SignedRoster>>,
}

impl Membership {
    /// Which roster we know; version 0 for none.
    pub fn version(&self) -> RosterVersion {
        self.roster.as_ref().map_or_else(RosterVersion::default, |roster| roster.version())
    }

    /// The question whether somebody has another roster.
    pub(crate) fn request(&self) -> RosterRequest {
        RosterRequest { mesh: self.key.bytes(), have: self.version() }
    }

    /// Answers a peer. Only members hear of a roster: who was removed is told nothing by anybody who has heard of that.
    pub(crate) fn reply_to(&self, peer: &PeerId, request: &RosterRequest) -> RosterReply {
        if self.key.bytes() != request.mesh {
            return RosterReply::Absent;
        }
        let ours = self.version();
        if request.have > ours {
            return RosterReply::Older;
        }
        let is_member =
            |roster: &&Arc<SignedRoster>| node_key_of(peer).is_some_and(|key| roster.member(&key).is_some());
        match self.roster.as_ref().filter(is_member) {
            None => RosterReply::Absent,
            Some(_) if request.have == ours => RosterReply::Same,
            Some(roster) => RosterReply::Newer(roster.as_bytes().to_vec()),
        }
    }
}
