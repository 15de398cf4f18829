//! Bytes as they would be seen on the wire.

use serde::Serialize;

/// Bytes of payload in one TCP segment: 1,500 less IPv4 and TCP with timestamps.
pub(crate) const SEGMENT_BYTES: usize = 1_448;
/// Ethernet, IPv4 and TCP with timestamps.
const SEGMENT_OVERHEAD: usize = 66;
/// A TLS 1.3 record, and a yamux frame within it.
const RECORD_OVERHEAD: usize = 22 + 12;
/// A bare acknowledgement, which is sent for every two segments.
const ACK_BYTES: usize = 66;
/// What a request or its answer needs on top of itself, in its own direction: a stream's opening, its two multistream texts
/// and its end, in small records. From the specifications, not measured.
pub(crate) const STREAM_OVERHEAD: usize = 180;
/// TCP, TLS with two certificates, multistream, gossipsub's subscription: one direction of a new connection. A guess.
pub(crate) const HANDSHAKE_BYTES: usize = 2_800;
/// libp2p's pings of both sides, the round trips that yamux measures with them, their acknowledgements, and TCP's
/// keep-alive between two of them: one direction of a connection, every 120 s. Measured on the interface of one of a
/// hundred idle daemons.
const PING_BYTES: u64 = 740;
const PING_INTERVAL_S: u64 = 120;

/// The purpose of bytes that were sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// gossipsub messages with announcements.
    Announcements,
    /// gossipsub's control messages: who has which messages, who is in whose mesh.
    Control,
    /// Comparisons: `Sync` and its answers.
    Sync,
    /// Pulls and their answers.
    Bodies,
    /// Handshakes and pings.
    Connections,
}

/// All kinds, in the order of the tables.
pub const KINDS: [Kind; 5] = [Kind::Announcements, Kind::Control, Kind::Sync, Kind::Bodies, Kind::Connections];

/// What one machine sent and received.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) sent: [u64; 5],
    pub(crate) received: [u64; 5],
    /// Seconds of connections that have not been turned into pings yet.
    ping_s: u64,
}

/// Bytes on the wire of a message with this many bytes of payload, in its own direction.
pub(crate) fn wire_bytes(payload: usize) -> usize {
    payload
        + RECORD_OVERHEAD * payload.div_ceil(16_384).max(1)
        + SEGMENT_OVERHEAD * payload.div_ceil(SEGMENT_BYTES).max(1)
}

/// Bytes of the acknowledgements of such a message, in the other direction.
pub(crate) fn ack_bytes(payload: usize) -> usize {
    ACK_BYTES * payload.div_ceil(2 * SEGMENT_BYTES).max(1)
}

/// Bytes on the wire, acknowledgements included, of a question for this many paths at once, 20 bytes each.
pub fn question_bytes(paths: usize) -> usize {
    wire_bytes(20 * paths + STREAM_OVERHEAD) + ack_bytes(20 * paths + STREAM_OVERHEAD)
}

/// Bytes on the wire, acknowledgements included, of the answer to such a question: one bit for each path.
pub fn answer_bytes(paths: usize) -> usize {
    wire_bytes(paths.div_ceil(8) + STREAM_OVERHEAD) + ack_bytes(paths.div_ceil(8) + STREAM_OVERHEAD)
}

impl Traffic {
    pub(crate) fn count_sent(&mut self, kind: Kind, bytes: usize) {
        if let Some(sum) = self.sent.get_mut(kind as usize) {
            *sum += bytes as u64;
        }
    }

    pub(crate) fn count_received(&mut self, kind: Kind, bytes: usize) {
        if let Some(sum) = self.received.get_mut(kind as usize) {
            *sum += bytes as u64;
        }
    }

    /// Counts the pings of one second on this many connections.
    pub(crate) fn count_pings(&mut self, connections: usize) {
        self.ping_s += connections as u64;
        let pings = self.ping_s / PING_INTERVAL_S;
        self.ping_s %= PING_INTERVAL_S;
        let bytes = usize::try_from(pings * PING_BYTES).unwrap_or(0);
        self.count_sent(Kind::Connections, bytes);
        self.count_received(Kind::Connections, bytes);
    }

    /// Bytes sent and received, of all kinds.
    pub(crate) fn total(&self) -> u64 {
        self.sent.iter().chain(&self.received).sum()
    }

    pub(crate) fn of(&self, kind: Kind) -> (u64, u64) {
        let at = kind as usize;
        (self.sent.get(at).copied().unwrap_or(0), self.received.get(at).copied().unwrap_or(0))
    }
}
