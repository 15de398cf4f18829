//! The one constructor of a swarm: our transport under our protocols, and the bulk connections beside it.

use super::behaviour::MeshBehaviour;
use super::bulk::Bulk;
use super::transport::{self, Arrival, Tls, TlsError};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Swarm, SwarmBuilder};
use std::time::Duration;
use tokio::sync::mpsc;

/// A handshake that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that nothing uses is closed after this; mesh members, and bulk connections that are in use, keep
/// theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Streams of one connection that have not said yet what they are for: twice what an honest peer opens at once.
const NEGOTIATING_MAX: usize = 64;

/// A swarm for `keypair` that admits only `allowed`, its bulk connections, and the channel of those that come in.
/// Nothing listens or dials yet.
pub(super) fn build(
    keypair: &Keypair,
    allowed: impl IntoIterator<Item = PeerId>,
    connections_max: u32,
) -> Result<(Swarm<MeshBehaviour>, Bulk, mpsc::Receiver<Arrival>), TlsError> {
    let tls = Tls::new(keypair)?;
    let (arrivals_sender, arrivals) = transport::arrivals();
    let bulk = Bulk::new(transport::bulk(tls.clone()));
    let behaviour = MeshBehaviour::new(keypair, allowed, connections_max, bulk.clone());
    let swarm = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_other_transport(|_| transport::control(tls, arrivals_sender))
        .unwrap_or_else(|never| match never {})
        .with_behaviour(|_| behaviour)
        .unwrap_or_else(|never| match never {})
        .with_swarm_config(|config| {
            config
                .with_idle_connection_timeout(IDLE_TIMEOUT)
                .with_substream_upgrade_protocol_override(Version::V1Lazy)
                .with_max_negotiating_inbound_streams(NEGOTIATING_MAX)
        })
        .with_connection_timeout(HANDSHAKE_TIMEOUT)
        .build();
    Ok((swarm, bulk, arrivals))
}
