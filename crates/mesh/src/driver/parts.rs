//! What a mesh is started with, and why it cannot start.

use crate::attestation_link::DriverEnd;
use crate::join::JoinHandler;
use crate::listeners::ListenError;
use crate::state::{MeshState, SummaryStore};
use crate::statistics::PeerStatistics;
use crate::transport::TlsError;
use crate::uploads::Uploads;
use narmesh_protocol::{Removal, SignedRoster};
use narmesh_store::Offer;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;

/// What the mesh works with besides its configuration.
#[expect(missing_debug_implementations, reason = "the join handler is a function")]
pub struct MeshParts {
    /// Says which paths may leave.
    pub offer: Arc<Offer>,
    /// Sends our NARs to peers.
    pub uploads: Uploads,
    /// Counters of each peer.
    pub statistics: Arc<PeerStatistics>,
    /// What survives a restart.
    pub state: Box<dyn MeshState>,
    /// Peers' summaries of the last run, if they can be kept.
    pub summaries: Option<Box<dyn SummaryStore>>,
    /// Leads to the thread that exchanges attestations.
    pub exchange: DriverEnd,
    /// Takes what members tell of our mesh.
    pub news: mpsc::Sender<MeshNews>,
    /// Answers machines that want to join.
    pub join_handler: JoinHandler,
}

/// What a member tells of our mesh. The daemon keeps it, and puts it in force.
#[derive(Clone, Debug)]
pub enum MeshNews {
    /// A roster that is newer than ours.
    Roster(Arc<SignedRoster>),
    /// What says that we were removed after our roster.
    Removed(Removal),
}

/// Why the mesh cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node key makes no certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The node cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The state cannot be read, or no thread can be started that keeps summaries.
    #[error(transparent)]
    State(#[from] io::Error),
}
