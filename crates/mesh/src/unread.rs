//! Replies that were sent and not read yet: the memory that a peer takes by asking and not reading.

use libp2p::PeerId;
use libp2p::request_response::InboundRequestId;
use std::collections::HashMap;
use std::hash::Hash;

/// Replies up to this size are not counted. There are at most as many as streams: with 408 on a connection, 6 MiB.
pub(super) const SMALL_BYTES: usize = 16 << 10;
/// Bytes of larger replies that one peer may leave unread, on all its connections: two summaries of the largest size. A
/// single reply is always sent.
pub(super) const UNREAD_BYTES_MAX: usize = 4 << 20;

/// The protocol of a request. Each numbers its own requests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Protocol {
    Gossip,
    NarInfo,
    Tree,
    Log,
    Realisation,
    Quorum,
    Roster,
    Circuit,
}

/// Tells a request from those of all protocols.
pub(super) type Request = (Protocol, InboundRequestId);

/// All replies that count, by `R`, which tells requests apart. At most one per stream.
#[derive(Debug)]
pub(super) struct UnreadReplies<R = Request> {
    replies: HashMap<R, (PeerId, usize)>,
    bytes: HashMap<PeerId, usize>,
}

impl<R> Default for UnreadReplies<R> {
    fn default() -> Self {
        Self { replies: HashMap::new(), bytes: HashMap::new() }
    }
}

impl<R: Eq + Hash> UnreadReplies<R> {
    /// Whether `peer` may be sent this many bytes now; if so, they count until [`Self::end`].
    pub(super) fn admit(&mut self, request: R, peer: PeerId, bytes: usize) -> bool {
        if bytes <= SMALL_BYTES {
            return true;
        }
        let unread = self.bytes.get(&peer).copied().unwrap_or(0);
        // One reply is always let through, however long: otherwise a peer could never get the longest.
        if unread > 0 && unread + bytes > UNREAD_BYTES_MAX {
            return false;
        }
        self.bytes.insert(peer, unread + bytes);
        self.replies.insert(request, (peer, bytes));
        true
    }

    /// Notes that the reply was written, or never will be.
    pub(super) fn end(&mut self, request: &R) {
        let Some((peer, bytes)) = self.replies.remove(request) else { return };
        let Some(unread) = self.bytes.get_mut(&peer) else { return };
        *unread = unread.saturating_sub(bytes);
        if *unread == 0 {
            self.bytes.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_that_does_not_read_is_sent_a_bounded_amount() {
        let (mut unread, mean, fair) = (UnreadReplies::<u64>::default(), PeerId::random(), PeerId::random());
        let mib = 1 << 20;
        // A single reply is sent, however large.
        assert!(unread.admit(0, mean, 8 * mib));
        assert!(!unread.admit(1, mean, mib) && unread.admit(2, mean, SMALL_BYTES));
        assert!(unread.admit(3, fair, mib), "another one has its own");
        unread.end(&0);
        unread.end(&0);
        for request in 4..8 {
            assert!(unread.admit(request, mean, mib));
        }
        assert!(!unread.admit(8, mean, SMALL_BYTES + 1));
        unread.end(&5);
        assert!(unread.admit(9, mean, mib));
        // What was refused, or was too small to be counted, ends without a trace.
        for request in 0..20 {
            unread.end(&request);
        }
        assert!(unread.replies.is_empty() && unread.bytes.is_empty());
    }
}
