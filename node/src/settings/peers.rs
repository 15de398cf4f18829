//! `[[peer]]`, checked.

use super::addresses::{self, AddressUse};
use super::{ADDRESSES_MAX, Count, NAME_FORM, PEERS_MAX, SettingsError, check_upload_rate, is_name, refused};
use crate::config::PeerConfig;
use libp2p::{Multiaddr, PeerId};
use narmesh_protocol::node_key_of;
use std::collections::BTreeSet;
use std::num::NonZeroU32;

/// One checked `[[peer]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerSettings {
    /// Our name for the peer, 1 to 64 bytes without control characters.
    pub name: String,
    /// Its peer id, which contains an Ed25519 key.
    pub peer_id: PeerId,
    /// At most [`ADDRESSES_MAX`] addresses to dial, `/ip4|ip6|dns|dns4|dns6/…/tcp/…`, no port 0.
    pub addresses: Vec<Multiaddr>,
    /// Whether it relays for this node.
    pub relay: bool,
    /// Bytes per second of NARs to it, at least [`BYTES_PER_S_MIN`](narmesh_mesh::BYTES_PER_S_MIN); `None` for no limit of its own.
    pub upload_bytes_per_s: Option<NonZeroU32>,
}

pub(super) fn check_all(configs: &[PeerConfig]) -> Result<Vec<PeerSettings>, SettingsError> {
    if configs.len() > PEERS_MAX {
        return Err(refused("peer", Count(configs.len(), "entries"), "at most 1024 [[peer]]"));
    }
    let mut peers: Vec<PeerSettings> = Vec::with_capacity(configs.len());
    let mut names = BTreeSet::new();
    for (index, config) in configs.iter().enumerate() {
        let peer = check_peer(config, index)?;
        let duplicate = |field: &str, value: &str, first: usize, accepted| SettingsError::Duplicate {
            key: format!("peer[{index}].{field}"),
            value: value.to_owned(),
            first: format!("peer[{first}].{field}"),
            accepted,
        };
        if let Some(first) = peers.iter().position(|known| known.peer_id == peer.peer_id) {
            return Err(duplicate("peer_id", &config.peer_id, first, "one [[peer]] per peer id"));
        }
        if !names.insert(peer.name.clone()) {
            let first = peers.iter().position(|known| known.name == peer.name).unwrap_or_default();
            return Err(duplicate("name", &config.name, first, "one [[peer]] per name"));
        }
        peers.push(peer);
    }
    Ok(peers)
}

fn check_peer(config: &PeerConfig, index: usize) -> Result<PeerSettings, SettingsError> {
    let key = |field: &str| format!("peer[{index}].{field}");
    if !is_name(&config.name) {
        return Err(refused(key("name"), &config.name, NAME_FORM));
    }
    // Other key types can connect, but cannot sign announcements.
    let peer_id = config.peer_id.parse().ok().filter(|peer| node_key_of(peer).is_some()).ok_or_else(|| {
        refused(
            key("peer_id"),
            &config.peer_id,
            "the peer id of an Ed25519 key, 12D3KooW…, as `narmesh id` prints it on that machine",
        )
    })?;
    if config.addresses.len() > ADDRESSES_MAX {
        return Err(refused(key("addresses"), Count(config.addresses.len(), "addresses"), "at most 8 addresses"));
    }
    let addresses = addresses::check(&key("addresses"), &config.addresses, AddressUse::Dial)?;
    let upload_bytes_per_s = check_upload_rate(&key("upload_bytes_per_s"), config.upload_bytes_per_s)?;
    Ok(PeerSettings { name: config.name.clone(), peer_id, addresses, relay: config.relay, upload_bytes_per_s })
}
