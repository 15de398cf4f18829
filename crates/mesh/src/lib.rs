//! Speaks with the peers of the allowlist over libp2p: one swarm around the gossip core, and a handle by which the rest
//! of the daemon asks peers for things.
//!
//! Purpose: carry summaries, narinfos, NARs and attestations between this node and its peers, and keep connections with
//! them, within bounds for each peer.
//! Contract: [`Mesh::start`] gives the driver, which the caller spawns on tokio, and a [`MeshHandle`] for everybody else.
//! [`MeshParts`] is what it works with: an offer that says which paths may leave, [`Uploads`], the [`MeshState`] and the
//! [`SummaryStore`] that survive a restart, and the [`DriverEnd`] of the link with the thread that exchanges attestations
//! (that thread, HTTP, SQL and the configuration file are not known here).
//! Walk: [`transport`] carries bytes, and `swarm::build` puts our protocols on it. `driver` owns the swarm and the core,
//! and turns events of one into inputs of the other. `listeners` opens our listen addresses; `dialer` decides which
//! peers to dial and when, and `names` resolves host names for it; `dead_connections` finds connections that are dead.
//! `bulk` keeps the connections on which NARs travel, `nar_client` asks for NARs, and `uploads` sends ours, at a rate that
//! `byte_rate` shares out. `circuits` passes bytes on for others. `statistics` counts what each peer did.
//! Invariants:
//! - no peer outside the allowlist gets past its handshake;
//! - no lookup that memory can answer waits for the driver;
//! - a peer is answered from our own store alone, and never by asking another peer;
//! - whatever a peer makes us keep, read or wait for has a bound.

mod addresses;
mod ask_error;
mod attestation_link;
mod behaviour;
mod bulk;
mod byte_rate;
mod circuits;
mod clock;
mod codec;
mod config;
mod connection_rates;
mod connection_rule;
mod dead_connections;
mod dial_failure;
mod dialer;
mod driver;
mod first_words;
mod framing;
mod handle;
mod handshake_limits;
mod join;
mod listeners;
mod message_limits;
mod names;
mod nar_client;
#[cfg(test)]
mod peer_costs;
mod probe;
mod removals;
mod request_rates;
mod shut_out;
mod state;
mod statistics;
mod swarm;
pub mod transport;
mod unread;
mod uploads;

pub use addresses::{find_outward_v4, find_outward_v6};
pub use attestation_link::{DriverEnd, ExchangeLink, ExchangeMessage, ExchangeOrder, ThreadEnd, link_exchange};
pub use byte_rate::BYTES_PER_S_MIN;
pub use circuits::{RELAY_BYTES_PER_S_MIN, RelayView, Way};
pub use clock::now;
pub use config::{CountedBuilder, MeshConfig};
pub use dial_failure::DialFailure;
pub use driver::{Mesh, MeshNews, MeshParts, StartError};
pub use handle::{AskError, AudienceView, MeshHandle, MeshView, TreeAnswer};
pub use join::{JoinError, JoinHandler, join};
pub use listeners::ListenError;
pub use nar_client::{LineView, NarPiece, NarPool, NarRequestError, NarSource};
pub use narmesh_roster::{Journal, Membership};
pub use probe::{PROBE_QUESTION, ProbeResult, probe};
pub use state::{MeshState, SummaryStore};
pub use statistics::{PeerStatistics, PeerStats, Ranked};
pub use uploads::{UploadLimits, Uploads};
