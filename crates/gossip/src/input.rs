//! What can happen to a core: its inputs.

use crate::peers::misdeed::Misdeed;
use libp2p_identity::PeerId;
use narmesh_protocol::HashPart;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Everything that the caller tells the core. The core checks foreign bytes itself, whatever the caller checked before.
#[derive(Clone, Debug)]
pub enum Input {
    /// The peers that we trust from now on; replaces the last list. Our own id may be in it. Beyond
    /// [`crate::ALLOWLIST_MAX`] peers, the greatest ids are left out.
    Allowlist(BTreeSet<PeerId>),
    /// Where we listen; replaces the last list. The first 8 addresses are told to the peers.
    Addresses(Vec<SocketAddr>),
    /// The first connection to this peer is up. Ignored for peers that are not on the allowlist.
    Connected(PeerId),
    /// The last connection to this peer is gone.
    Disconnected(PeerId),
    /// A gossipsub message. Answered by [`crate::Output::Judge`] with the same `id`.
    Announcement {
        /// The caller's name for the message.
        id: u64,
        /// Who signed the gossipsub message.
        author: PeerId,
        /// Who forwarded it to us.
        from: PeerId,
        /// The envelope.
        bytes: Vec<u8>,
    },
    /// A peer asks. Answered by [`crate::Output::Respond`] with the same `id`.
    Request {
        /// The peer that asks.
        from: PeerId,
        /// The caller's name for the request.
        id: u64,
        /// An encoded `GossipRequest`.
        bytes: Vec<u8>,
    },
    /// A peer answers one of our requests.
    Response {
        /// The peer that answers.
        from: PeerId,
        /// The id of our [`crate::Output::Request`].
        id: u64,
        /// An encoded `GossipReply`.
        bytes: Vec<u8>,
    },
    /// One of our requests got no answer.
    RequestFailed {
        /// The peer that did not answer.
        to: PeerId,
        /// The id of our [`crate::Output::Request`].
        id: u64,
    },
    /// What this node advertises has changed.
    Paths(PathChange),
    /// A candidate was asked for a path that its filter claims.
    Probe {
        /// The candidate that was asked.
        peer: PeerId,
        /// Whether it holds the path.
        outcome: ProbeOutcome,
    },
    /// The caller caught this peer lying, in a narinfo or in a NAR.
    Misbehaved {
        /// The peer that was caught.
        peer: PeerId,
        /// What the peer did wrong.
        misdeed: Misdeed,
    },
    /// The moment of `deadline()` has come.
    Tick,
    /// This node leaves: a signed goodbye is published, and nothing after it.
    Goodbye,
}

/// A change of the advertised paths.
#[derive(Clone, Debug)]
pub enum PathChange {
    /// The node advertises exactly these paths. The first `Replace` makes the node begin to publish.
    Replace(BTreeSet<HashPart>),
    /// Some paths were removed, then some were added. A path in both lists was registered anew: peers are to forget what they
    /// know of it.
    Update {
        /// Newly advertised.
        added: Vec<HashPart>,
        /// No longer advertised.
        removed: Vec<HashPart>,
    },
}

/// What a candidate said when it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeOutcome {
    /// It holds the path.
    Held,
    /// It does not: its filter misled us.
    FalseHit,
}
