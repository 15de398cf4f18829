//! What `status` shows of each peer.

use crate::gossip::Gossip;
use crate::misdeed::Misdeed;
use crate::time::Moment;
use libp2p_identity::PeerId;
use narmesh_protocol::Generation;
use std::net::SocketAddr;

/// One peer of the allowlist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerView {
    /// The id of the peer.
    pub peer: PeerId,
    /// Whether there is a connection.
    pub connected: bool,
    /// What it calls itself, once it has answered us; at most 64 printable bytes.
    pub software: Option<String>,
    /// Its store directory, when it is not ours.
    pub store_dir_differs: Option<String>,
    /// The body that we hold.
    pub summary: Option<SummaryView>,
    /// What it announced last, held or not.
    pub announced: Option<Generation>,
    /// Where it says that it listens.
    pub addresses: Vec<SocketAddr>,
    /// Probes that found what its filter claims, since its present epoch.
    pub held_hits: u64,
    /// Probes that did not.
    pub false_hits: u64,
    /// Until when it is no candidate because of false hits.
    pub demoted_until: Option<Moment>,
    /// Until when it is asked nothing because of misdeeds.
    pub set_aside_until: Option<Moment>,
    /// Misdeeds in this run.
    pub misdeeds: u32,
    /// The last of them.
    pub last_misdeed: Option<Misdeed>,
}

/// A body that is in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SummaryView {
    /// The generation of the body.
    pub generation: Generation,
    /// Paths in it.
    pub paths: u64,
    /// Bits of its filter.
    pub filter_bits: u32,
    /// The owner's date of it, milliseconds since 1970.
    pub issued_at_ms: u64,
    /// When its lifetime ends.
    pub expires: Moment,
    /// When its announcement was first accepted, milliseconds since 1970; its lifetime runs from there.
    pub accepted_ms: u64,
    /// It was kept over a restart, and nobody has said since that it is still the newest.
    pub remembered: bool,
}

impl Gossip {
    /// The peers of the allowlist, in the order of their ids.
    pub fn peers(&self) -> impl Iterator<Item = PeerView> {
        self.directory.iter().map(|(peer, entry)| PeerView {
            peer: *peer,
            connected: self.links.contains_key(peer),
            software: entry.software.clone(),
            store_dir_differs: entry.store_dir_differs.clone(),
            summary: entry.held.as_ref().map(|held| SummaryView {
                generation: held.generation(),
                paths: held.envelope.announcement().path_count,
                filter_bits: held.class.bits(),
                issued_at_ms: held.envelope.announcement().issued_at_ms,
                expires: held.accepted.expires,
                accepted_ms: held.accepted.wall_ms,
                remembered: held.remembered,
            }),
            announced: entry.newest.as_ref().map(|newest| newest.announcement().generation),
            addresses: entry.addresses.clone(),
            held_hits: entry.standing.held_hits,
            false_hits: entry.standing.false_hits,
            demoted_until: entry.standing.demoted,
            set_aside_until: entry.standing.set_aside,
            misdeeds: entry.standing.misdeeds,
            last_misdeed: entry.standing.last_misdeed,
        })
    }
}
