//! What `status` shows of each peer.

use super::misdeed::Misdeed;
use libp2p_identity::PeerId;
use narmesh_machine::Moment;
use narmesh_protocol::Generation;
use std::net::SocketAddr;

/// One peer of the allowlist, as `status` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerView {
    /// The peer's id.
    pub peer: PeerId,
    /// Whether it is connected.
    pub connected: bool,
    /// What it calls itself, once it has answered us; at most 64 printable bytes.
    pub software: Option<String>,
    /// Its store directory, when it is not ours.
    pub store_dir_differs: Option<String>,
    /// The body that we hold.
    pub summary: Option<SummaryView>,
    /// The generation that it announced last, whether or not we hold its body.
    pub announced: Option<Generation>,
    /// The addresses at which it says that it listens.
    pub addresses: Vec<SocketAddr>,
    /// Probes since its present epoch that found the path that its filter claims.
    pub held_hits: u64,
    /// Probes since its present epoch that did not.
    pub false_hits: u64,
    /// Until when it is asked last because of false hits.
    pub demoted_until: Option<Moment>,
    /// Until when it is asked nothing because of misdeeds.
    pub set_aside_until: Option<Moment>,
    /// Misdeeds counted in this run.
    pub misdeeds: u32,
    /// The last misdeed.
    pub last_misdeed: Option<Misdeed>,
}

/// A body that is in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SummaryView {
    /// The body's generation.
    pub generation: Generation,
    /// The number of paths in it.
    pub paths: u64,
    /// The size of its filter, bits.
    pub filter_bits: u32,
    /// The date that its owner gave it, milliseconds since 1970.
    pub issued_at_ms: u64,
    /// When its lifetime ends.
    pub expires: Moment,
    /// When its announcement was first accepted, milliseconds since 1970; its lifetime is counted from there.
    pub accepted_ms: u64,
    /// Whether it was kept over a restart and nobody has said since that it is still the newest.
    pub remembered: bool,
}
