//! The one constructor of a swarm: our transport under our protocols, and the bulk connections beside it.

use super::behaviour::MeshBehaviour;
use super::bulk::Bulk;
use super::circuits::{self, Arrived, Circuits, Order, Relay};
use super::removals::Removals;
use super::transport::{self, Arrival, Elsewhere, Tls, TlsError};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Swarm, SwarmBuilder};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::mpsc;

/// A connection is made within this, or given up: a circuit may take 8 s, and the handshake on it 3 s.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(12);
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
    /// What machines are told that were removed.
    pub(super) removals: Removals,
    /// Its circuits.
    pub(super) circuits: BuiltCircuits,
}

/// What circuits need of the driver.
pub(super) struct BuiltCircuits {
    pub(super) circuits: Circuits,
    /// Requests that the driver is to send.
    pub(super) orders: mpsc::Receiver<Order>,
    /// Takes the circuits at whose end others dial us.
    pub(super) arrived: mpsc::Sender<Arrived>,
    /// This node as a relay.
    pub(super) relay: Relay,
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
    let relay = Relay::default();
    let removals = Removals::default();
    let elsewhere = Elsewhere {
        bulk: bulk_sender,
        joins: joins_sender,
        is_open: Arc::clone(&is_open),
        removals: removals.clone(),
        relay: relay.clone(),
    };
    let (circuits, orders) = Circuits::new();
    let (arrived_sender, arrived) = circuits::arrivals();
    let bulk = Bulk::new(transport::bulk(tls.clone(), circuits.clone()));
    let behaviour = MeshBehaviour::new(keypair, allowed, connections_max, bulk.clone());
    let on_circuits = circuits.clone();
    let mut swarm = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_other_transport(|_| transport::control(tls, elsewhere, on_circuits, arrived))
        .unwrap_or_else(|never| match never {})
        .with_behaviour(|_| behaviour)
        .unwrap_or_else(|never| match never {})
        .with_swarm_config(|config| {
            config
                .with_idle_connection_timeout(IDLE_TIMEOUT)
                // Saves a round trip for each request: the first bytes go out with the proposal.
                .with_substream_upgrade_protocol_override(Version::V1Lazy)
                .with_max_negotiating_inbound_streams(NEGOTIATING_MAX)
        })
        .with_connection_timeout(CONNECTION_TIMEOUT)
        .build();
    swarm.listen_on(circuits::listen_address()).expect("our own transport listens there");
    let circuits = BuiltCircuits { circuits, orders, arrived: arrived_sender, relay };
    Ok(Built { swarm, bulk, bulk_arrivals, joins, is_open, removals, circuits })
}
