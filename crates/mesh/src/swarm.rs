//! The one constructor of a swarm: our transport under our protocols, and the bulk connections beside it.

use super::behaviour::MeshBehaviour;
use super::bulk::Bulk;
use super::transport::{self, Arrival, Elsewhere, Tls, TlsError};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Swarm, SwarmBuilder};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::mpsc;

/// A handshake that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that nothing uses is closed after this; mesh members, and bulk connections that are in use, keep
/// theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Streams of one connection that have not said yet what they are for: twice what an honest peer opens at once.
const NEGOTIATING_MAX: usize = 64;

/// What [`build`] makes.
pub(super) struct Built {
    /// The swarm. Nothing listens or dials yet.
    pub(super) swarm: Swarm<MeshBehaviour>,
    /// Its bulk connections.
    pub(super) bulk: Bulk,
    /// Bulk connections that come in.
    pub(super) bulk_arrivals: mpsc::Receiver<Arrival>,
    /// Connections of machines that want to join.
    pub(super) joins: mpsc::Receiver<Arrival>,
    /// Whether any may.
    pub(super) is_open: Arc<AtomicBool>,
}

/// A swarm for `keypair` that admits only `allowed`.
pub(super) fn build(
    keypair: &Keypair,
    allowed: impl IntoIterator<Item = PeerId>,
    connections_max: u32,
) -> Result<Built, TlsError> {
    let tls = Tls::new(keypair)?;
    let ((bulk_sender, bulk_arrivals), (joins_sender, joins)) = (transport::arrivals(), transport::arrivals());
    let is_open = Arc::new(AtomicBool::new(false));
    let elsewhere = Elsewhere { bulk: bulk_sender, joins: joins_sender, is_open: Arc::clone(&is_open) };
    let bulk = Bulk::new(transport::bulk(tls.clone()));
    let behaviour = MeshBehaviour::new(keypair, allowed, connections_max, bulk.clone());
    let swarm = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_other_transport(|_| transport::control(tls, elsewhere))
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
    Ok(Built { swarm, bulk, bulk_arrivals, joins, is_open })
}
