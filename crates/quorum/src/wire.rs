//! What nodes ask each other about attestations. `docs/protocol.md` describes the bytes.

use crate::reconcile::{Answer, BUILDERS_PER_SESSION_MAX, BuilderDigest, Item, Node, Query};
use narmesh_protocol::codec::{self, CodecError};
use narmesh_protocol::{Attestation, HashPart};

/// The request-response protocol of [`QuorumRequest`].
pub const QUORUM_PROTOCOL: &str = "/narmesh/1/quorum";
/// The most items asked for in one request.
pub const PULL_MAX: usize = 512;
/// The most paths asked for in one request.
pub const ASK_MAX: usize = 64;

/// The requests of `/narmesh/1/quorum`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum QuorumRequest {
    /// Compare what both hold.
    Compare {
        /// The builders and nodes to compare.
        query: Query,
        /// Whether the asker has something new. A peer that finds a difference should then compare in turn.
        news: bool,
    },
    /// Asks for the attestations that items stand for.
    Pull {
        /// The builders, as they were compared.
        builders: Vec<BuilderDigest>,
        /// The items and their nodes: at most [`PULL_MAX`], strictly ascending.
        wanted: Vec<(Node, Item)>,
    },
    /// Asks for all attestations of some paths, for a verdict that is waited for.
    Ask {
        /// The builders whose attestations are wanted.
        builders: Vec<BuilderDigest>,
        /// The paths, at most [`ASK_MAX`].
        paths: Vec<HashPart>,
    },
}

/// The replies of `/narmesh/1/quorum`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum QuorumReply {
    /// The answer to `Compare`.
    Compared(Answer),
    /// The answer to `Pull` and `Ask`.
    Attestations {
        /// How many of the items or paths were looked at, at least one. The others did not fit.
        answered: u32,
        /// Encoded attestations, at most [`ATTESTATIONS_BYTES_MAX`] together; a single one may be larger.
        attestations: Vec<Vec<u8>>,
    },
    /// The asker has used up its share, or cannot be answered now; it should ask again later.
    Busy,
}

/// The most bytes of attestations in one reply.
pub const ATTESTATIONS_BYTES_MAX: usize = 240 << 10;

impl QuorumRequest {
    /// The largest encoding, bytes.
    pub const BYTES_MAX: usize = Query::BYTES_MAX + 64;

    /// Encodes the request.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode::<{ Self::BYTES_MAX }>(self)
    }

    /// Decodes a request; it must fill these bytes exactly.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { Self::BYTES_MAX }>(bytes)
    }

    /// Whether its lists keep to their limits.
    pub(crate) fn is_bounded(&self) -> bool {
        let (builders, rest) = match self {
            Self::Compare { query, .. } => (&query.builders, query.nodes.len() <= crate::reconcile::NODES_MAX),
            Self::Pull { builders, wanted } => (builders, wanted.len() <= PULL_MAX),
            Self::Ask { builders, paths } => (builders, paths.len() <= ASK_MAX),
        };
        rest && builders.len() <= BUILDERS_PER_SESSION_MAX
    }
}

impl QuorumReply {
    /// The largest encoding, bytes.
    pub const BYTES_MAX: usize = Answer::BYTES_MAX + (4 << 10);

    /// Encodes the reply.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode::<{ Self::BYTES_MAX }>(self)
    }

    /// Decodes a reply; it must fill these bytes exactly.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { Self::BYTES_MAX }>(bytes)
    }
}

const _: () = assert!(Attestation::BYTES_MAX + 64 < QuorumReply::BYTES_MAX);
const _: () = assert!(PULL_MAX * 37 + BUILDERS_PER_SESSION_MAX * 8 + 64 < QuorumRequest::BYTES_MAX);
