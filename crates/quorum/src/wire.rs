//! What nodes ask each other about attestations. `docs/protocol.md` has the bytes.

use crate::reconcile::{Answer, BUILDERS_PER_SESSION_MAX, BuilderDigest, Item, Node, Query};
use narmesh_protocol::codec::{self, CodecError};
use narmesh_protocol::{Attestation, HashPart};

/// Request-response protocol of [`QuorumRequest`].
pub const QUORUM_PROTOCOL: &str = "/narmesh/1/quorum";
/// Most items asked for at a time.
pub const PULL_MAX: usize = 512;
/// Most paths asked for at a time.
pub const ASK_MAX: usize = 64;

/// Requests of `/narmesh/1/quorum`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum QuorumRequest {
    /// Compare what both hold.
    Compare {
        /// Where.
        query: Query,
        /// The asker has something new: who finds that the two differ should compare in turn.
        news: bool,
    },
    /// The attestations that items stand for.
    Pull {
        /// Of these builders, as they were compared.
        builders: Vec<BuilderDigest>,
        /// At most [`PULL_MAX`], strictly ascending.
        wanted: Vec<(Node, Item)>,
    },
    /// All attestations of some paths, for a verdict that is waited for.
    Ask {
        /// Of these builders.
        builders: Vec<BuilderDigest>,
        /// At most [`ASK_MAX`].
        paths: Vec<HashPart>,
    },
}

/// Answers of `/narmesh/1/quorum`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum QuorumReply {
    /// To `Compare`.
    Compared(Answer),
    /// To `Pull` and `Ask`.
    Attestations {
        /// How many of the items or paths were looked at, at least one: the others did not fit.
        answered: u32,
        /// Encoded, [`ATTESTATIONS_BYTES_MAX`] together but for one that is larger alone.
        attestations: Vec<Vec<u8>>,
    },
    /// Too much was asked; later.
    Busy,
}

/// Bytes of attestations in one reply.
pub const ATTESTATIONS_BYTES_MAX: usize = 240 << 10;

impl QuorumRequest {
    /// Largest encoding, bytes.
    pub const BYTES_MAX: usize = Query::BYTES_MAX + 64;

    /// Encodes.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode::<{ Self::BYTES_MAX }>(self)
    }

    /// Decodes exactly these bytes.
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
    /// Largest encoding, bytes.
    pub const BYTES_MAX: usize = Answer::BYTES_MAX + (4 << 10);

    /// Encodes.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode::<{ Self::BYTES_MAX }>(self)
    }

    /// Decodes exactly these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { Self::BYTES_MAX }>(bytes)
    }
}

const _: () = assert!(Attestation::BYTES_MAX + 64 < QuorumReply::BYTES_MAX);
const _: () = assert!(PULL_MAX * 37 + BUILDERS_PER_SESSION_MAX * 8 + 64 < QuorumRequest::BYTES_MAX);
