//! What a node knows of its mesh.

use libp2p_identity::PeerId;
use narmesh_protocol::wire::{RosterReply, RosterRequest};
use narmesh_protocol::{NixPublicKey, RosterVersion, SignedRoster, node_key_of};
use std::sync::Arc;

/// The mesh of whose roster we are.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The mesh key, which signs rosters: that of the roster, if there is one.
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

    /// Whether this is our mesh key, or one that it has replaced.
    pub(crate) fn knows(&self, key: &[u8; 32]) -> bool {
        self.key.bytes() == *key || self.roster.as_ref().is_some_and(|roster| roster.lineage().replaced(key))
    }

    /// Answers a peer. Only members hear of a roster: who was removed is told nothing by anybody who has heard of that.
    pub(crate) fn reply_to(&self, peer: &PeerId, request: &RosterRequest) -> RosterReply {
        let ours = self.version();
        let is_our_key = self.key.bytes() == request.mesh;
        // Before we look who asks: it may be a member that only the newer roster names.
        if is_our_key && request.have > ours {
            return RosterReply::Older;
        }
        let is_member =
            |roster: &&Arc<SignedRoster>| node_key_of(peer).is_some_and(|key| roster.member(&key).is_some());
        match self.roster.as_ref().filter(is_member) {
            None => RosterReply::Absent,
            Some(_) if is_our_key && request.have == ours => RosterReply::Same,
            Some(roster) if self.knows(&request.mesh) => RosterReply::Newer(roster.as_bytes().to_vec()),
            // Our key has taken nobody's place, so it cannot have taken that of the key which the peer follows.
            Some(roster) if roster.lineage().successions().is_empty() => RosterReply::Absent,
            Some(roster) => RosterReply::OtherKey(roster.as_bytes().to_vec()),
        }
    }
}
