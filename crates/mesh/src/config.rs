//! What the mesh is told at its start and at a reload.

use libp2p::{Multiaddr, PeerId};
use narmesh_protocol::{BuilderKey, NixPublicKey};
use narmesh_roster::Membership;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

/// A builder whose attestations are kept here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CountedBuilder {
    /// Its builder key, which its attestations are signed with.
    pub key: NixPublicKey,
    /// Its node in the mesh; the audience of that node is also the audience of its attestations.
    pub peer: Option<PeerId>,
}

/// What the mesh needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// The allowlist with its configured addresses.
    pub peers: BTreeMap<PeerId, Vec<Multiaddr>>,
    /// The peers that relay.
    pub relays: BTreeSet<PeerId>,
    /// Whether this node relays for its peers.
    pub is_relay: bool,
    /// Bytes per second over all circuits of this node as a relay, in both directions; `None` for no limit.
    pub relay_bytes_per_s: Option<NonZeroU32>,
    /// The addresses to listen on.
    pub listen: Vec<Multiaddr>,
    /// Addresses told to peers besides the listen addresses.
    pub external_addresses: Vec<Multiaddr>,
    /// Tell and accept loopback addresses (several nodes on one machine).
    pub advertise_loopback: bool,
    /// Connections kept for gossip.
    pub connections_gossip: usize,
    /// The builders whose attestations are kept and asked for.
    pub builders: Vec<CountedBuilder>,
    /// The mesh of whose roster we are, if we are of one.
    pub mesh: Option<Membership>,
    /// Members that refuse us, since we were removed from their mesh: they are hardly ever dialled.
    pub refusing: BTreeSet<PeerId>,
    /// Whether machines that are no members may ask to join.
    pub is_open: bool,
    /// Our own builder key: everybody on the allowlist may hear what it attests.
    pub own_builder: Option<BuilderKey>,
}
