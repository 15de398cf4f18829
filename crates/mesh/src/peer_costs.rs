//! The sum of the table "What one peer can make us hold" in docs/threat-model.md, from the constants that bound its rows.

use crate::behaviour::{
    CIRCUIT_STREAMS_MAX, GOSSIP_STREAMS_MAX, LOG_STREAMS_MAX, NARINFO_STREAMS_MAX, QUORUM_STREAMS_MAX,
    REALISATION_STREAMS_MAX, ROSTER_STREAMS_MAX, TREE_STREAMS_MAX,
};
use crate::bulk::PER_SIDE_MAX;
use crate::uploads::ENCODERS_PER_PEER_MAX;
use crate::{circuits, codec, transport, unread};
use narmesh_gossip::{ANNOUNCEMENTS, PULLS_IN_FLIGHT_MAX};
use narmesh_protocol::wire::{
    CircuitRequest, GossipRequest, LogReply, LogRequest, NarFrame, NarInfoReply, NarInfoRequest, RealisationRequest,
    RosterRequest, TreeRequest,
};
use narmesh_protocol::{Envelope, Summary};
use narmesh_quorum::LedgerLimits;
use narmesh_quorum::wire::QuorumRequest;

const DOCUMENT: &str = include_str!("../../../docs/threat-model.md");
const MIB: usize = 1 << 20;

/// Control connections that a peer has at most: one that ends and the one that replaces it.
const CONTROL_CONNECTIONS: usize = 2;
/// What a peer of the default settings is sent at a time: so many small NARs, and as many large ones.
const UPLOADS: usize = 16;
/// What the document says of things that are not ours to bound, or are measured: an announcement with what libp2p keeps
/// beside it, the ids of the shortest messages in proportion to them, messages that gossipsub has to tell and names of
/// those that the peer does not want, an encoder of zstd, an attestation in memory.
const ANNOUNCEMENT_BYTES: usize = 1_500;
const ID_BYTES_OF: (usize, usize) = (2, 3);
const UNTOLD: (usize, usize) = (5_000, Envelope::BYTES_MAX + 400);
const UNWANTED: (usize, usize) = (10_000, 34);
const ENCODER_BYTES: usize = 640 << 10;
const ATTESTATION_BYTES: usize = 100;

/// Bytes that one peer can make us hold, and that all of them share.
fn sums() -> (usize, usize) {
    let (control_unread, bulk_unasked, unasked_per_minute) = transport::unread_bytes_max();
    let (control_buffers, bulk_buffers) = transport::buffer_bytes();
    let whole = |number: u64| usize::try_from(number).unwrap();
    let streams = GOSSIP_STREAMS_MAX
        + NARINFO_STREAMS_MAX
        + TREE_STREAMS_MAX
        + LOG_STREAMS_MAX
        + REALISATION_STREAMS_MAX
        + QUORUM_STREAMS_MAX
        + ROSTER_STREAMS_MAX;
    let requests = GOSSIP_STREAMS_MAX * GossipRequest::BYTES_MAX
        + QUORUM_STREAMS_MAX * QuorumRequest::BYTES_MAX
        + NARINFO_STREAMS_MAX * NarInfoRequest::BYTES_MAX
        + TREE_STREAMS_MAX * TreeRequest::BYTES_MAX
        + LOG_STREAMS_MAX * LogRequest::BYTES_MAX
        + REALISATION_STREAMS_MAX * RealisationRequest::BYTES_MAX
        + ROSTER_STREAMS_MAX * RosterRequest::BYTES_MAX
        + CIRCUIT_STREAMS_MAX * CircuitRequest::BYTES_MAX;
    // Small NARs lie there whole, large ones in two pieces of 64 KiB, and yamux has as much again.
    let uploads = 2 * (UPLOADS * NarFrame::CHUNK_BYTES_MAX + UPLOADS * 2 * (64 << 10));
    let (part, of) = ID_BYTES_OF;
    let per_peer = [
        whole(ANNOUNCEMENTS.burst + 60 * ANNOUNCEMENTS.per_s) * ANNOUNCEMENT_BYTES,
        whole(unasked_per_minute) / of * part,
        UNTOLD.0 * UNTOLD.1 + UNWANTED.0 * UNWANTED.1,
        CONTROL_CONNECTIONS * requests,
        unread::UNREAD_BYTES_MAX.max(NarInfoReply::BYTES_MAX) + streams * unread::SMALL_BYTES,
        uploads + ENCODERS_PER_PEER_MAX * ENCODER_BYTES,
        2 * Summary::BYTES_MAX,
        LedgerLimits::default().per_builder * ATTESTATION_BYTES,
        NARINFO_STREAMS_MAX * codec::SMALL_BYTES,
        LOG_STREAMS_MAX * LogReply::BYTES_MAX,
        REALISATION_STREAMS_MAX * codec::SMALL_BYTES,
        ROSTER_STREAMS_MAX * codec::SMALL_BYTES,
        circuits::relayed_bytes_max(),
        CONTROL_CONNECTIONS * control_unread,
        2 * PER_SIDE_MAX * bulk_unasked,
        CONTROL_CONNECTIONS * control_buffers + 2 * PER_SIDE_MAX * bulk_buffers,
    ];
    // Gossip, narinfos, trees, realisations, rosters and the quorum have replies that are long.
    let shared = PULLS_IN_FLIGHT_MAX * Summary::BYTES_MAX + 6 * codec::LARGE_BYTES_MAX;
    (per_peer.iter().sum(), shared)
}

#[test]
fn the_document_has_the_sum_of_what_fifty_peers_can_make_us_hold() {
    let (per_peer, shared) = sums();
    let sum = format!(
        "All rows together are {} MiB for one peer, and {} MiB that all share: {} MiB for 50 peers",
        per_peer / MIB,
        shared / MIB,
        (50 * per_peer + shared) / MIB
    );
    assert!(DOCUMENT.contains(&sum), "docs/threat-model.md should say: {sum}");
}
