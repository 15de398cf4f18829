//! The one constructor of a swarm: our transport under our protocols.

use super::behaviour::MeshBehaviour;
use super::transport;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Swarm, SwarmBuilder};
use std::time::Duration;

/// A handshake that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that nothing uses is closed after this; mesh members and pooled NAR streams keep theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Streams of one peer that have not said yet what they are for: twice what an honest one opens at once.
const NEGOTIATING_MAX: usize = 64;

/// A swarm for `keypair` that admits `allowed` only. Nothing listens or dials yet.
pub(super) fn build(
    keypair: &Keypair,
    allowed: impl IntoIterator<Item = PeerId>,
    connections_max: u32,
) -> anyhow::Result<Swarm<MeshBehaviour>> {
    let behaviour = MeshBehaviour::new(keypair, allowed, connections_max)?;
    let swarm = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_other_transport(|keypair| transport::build(keypair).map_err(Box::from))?
        .with_behaviour(|_| behaviour)
        .map_err(|never| match never {})?
        .with_swarm_config(|config| {
            config
                .with_idle_connection_timeout(IDLE_TIMEOUT)
                .with_substream_upgrade_protocol_override(Version::V1Lazy)
                .with_max_negotiating_inbound_streams(NEGOTIATING_MAX)
        })
        .with_connection_timeout(HANDSHAKE_TIMEOUT)
        .build();
    Ok(swarm)
}
