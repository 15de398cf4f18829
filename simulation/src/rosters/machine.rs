//! One machine: its identity, and what it knows of the mesh.

use super::liar::Lie;
use crate::cores::roster::{Journal, Membership, Moment, RosterExchange};
use crate::draw::Draw;
use libp2p_identity::{Keypair, PeerId};
use narmesh_protocol::{Member, MemberRole, NixPublicKey, RosterVersion, SignedRoster, node_key_of};
use std::sync::Arc;

pub(super) type Number = usize;

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) peer: PeerId,
    pub(super) node_key: [u8; 32],
    pub(super) exchange: RosterExchange,
    /// The roster on its disk, which is in force.
    pub(super) held: Option<Arc<SignedRoster>>,
    /// Where it holds the mesh key.
    pub(super) journal: Option<Journal>,
    pub(super) lie: Option<Lie>,
    pub(super) is_up: bool,
    /// Whether it is in the far half of a cut network.
    pub(super) is_far: bool,
    pub(super) tick_ms: Option<u64>,
    /// The numbers of its links.
    pub(super) links: Vec<usize>,
}

impl Machine {
    pub(super) fn new(draw: &mut Draw) -> Self {
        let peer = Keypair::ed25519_from_bytes(draw.seed()).expect("32 bytes are a key").public().to_peer_id();
        Self {
            peer,
            node_key: node_key_of(&peer).expect("the PeerId of an Ed25519 key holds the key"),
            exchange: RosterExchange::new(Moment(0)),
            held: None,
            journal: None,
            lie: None,
            is_up: true,
            is_far: false,
            tick_ms: None,
            links: Vec::new(),
        }
    }

    /// It as a member of a roster.
    pub(super) fn to_member(&self, number: Number) -> Member {
        Member {
            node_key: self.node_key,
            name: format!("machine-{number}"),
            role: MemberRole::Client,
            builder_key: None,
            group: None,
            relay: false,
            ephemeral_s: 0,
            addresses: vec![format!("/ip4/10.0.{}.{}/tcp/7280", number / 250, number % 250)],
        }
    }

    pub(super) fn version(&self) -> RosterVersion {
        self.held.as_ref().map_or_else(RosterVersion::default, |roster| roster.version())
    }

    pub(super) fn knows(&self, node_key: &[u8; 32]) -> bool {
        self.held.as_ref().is_some_and(|roster| roster.member(node_key).is_some())
    }

    pub(super) fn membership(&self, mesh: &NixPublicKey) -> Membership {
        Membership { key: mesh.clone(), roster: self.held.clone() }
    }
}
