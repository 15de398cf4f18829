//! The one constructor of the transport: TCP, TLS 1.3, yamux.

use super::behaviour::MeshBehaviour;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Swarm, SwarmBuilder, tcp, tls, yamux};
use std::time::Duration;

/// A handshake that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that nothing uses is closed after this; mesh members and pooled NAR streams keep theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// A swarm for `keypair` that admits `allowed` only. Nothing listens or dials yet.
pub(super) fn build(
    keypair: &Keypair,
    allowed: impl IntoIterator<Item = PeerId>,
    connections_max: u32,
) -> anyhow::Result<Swarm<MeshBehaviour>> {
    let behaviour = MeshBehaviour::new(keypair, allowed, connections_max)?;
    let swarm = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_tcp(tcp::Config::new().nodelay(true), tls::Config::new, yamux::Config::default)?
        .with_behaviour(|_| behaviour)
        .map_err(|never| match never {})?
        .with_swarm_config(|config| {
            config.with_idle_connection_timeout(IDLE_TIMEOUT).with_substream_upgrade_protocol_override(Version::V1Lazy)
        })
        .with_connection_timeout(HANDSHAKE_TIMEOUT)
        .build();
    Ok(swarm)
}
