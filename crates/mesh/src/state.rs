//! What the mesh keeps over a restart. Where it is kept is up to whoever starts the mesh.

use libp2p::PeerId;
use narmesh_gossip::{KeptSummary, Persisted, Record};
use narmesh_protocol::AudienceDigest;
use std::collections::BTreeSet;
use std::fmt;
use std::io;

/// What the gossip core and the driver keep, except summaries. Methods block; a write that returned survives the death
/// of the process.
pub trait MeshState: fmt::Debug + Send {
    /// What was kept when the last run ended.
    fn read(&self) -> io::Result<Persisted>;

    /// Keeps what the gossip core says, in this order, all of it or nothing.
    fn persist(&self, records: &[&Record]) -> io::Result<()>;

    /// Keeps the audience of a peer's last summary.
    fn set_audience(&self, peer: &PeerId, audience: &[AudienceDigest]) -> io::Result<()>;

    /// Forgets the audiences of all peers that are not in `of`.
    fn forget_audiences_except(&self, of: &BTreeSet<PeerId>) -> io::Result<()>;
}

/// The newest summary of each peer. Methods block.
pub trait SummaryStore: fmt::Debug + Send {
    /// The peers whose summaries are kept.
    fn owners(&self) -> Vec<PeerId>;

    /// The kept summary of this owner. An error of kind `InvalidData` or `InvalidInput` says that it is not a summary.
    fn read(&self, owner: &PeerId) -> io::Result<KeptSummary>;

    /// Keeps this summary instead of the previous one, whole or not at all. False when there is no room for it; then
    /// none is kept.
    fn write(&mut self, owner: &PeerId, kept: &KeptSummary) -> io::Result<bool>;

    /// Replaces the announcement of the kept body, which was announced again.
    fn renew(&mut self, owner: &PeerId, envelope: &[u8], accepted_ms: u64) -> io::Result<()>;

    /// Removes the summary of this owner.
    fn remove(&mut self, owner: &PeerId) -> io::Result<()>;
}
