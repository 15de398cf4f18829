//! What a node says it holds: the announcement, the summary that it announces, and the delta between two summaries.

use crate::codec::{self, CodecError};
use crate::filter::{Filter, FilterClass, FilterError};
use libp2p_identity::PeerId;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;

/// Place of a summary in its owner's history. A later epoch beats an earlier one; within an epoch the higher `seq` wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, bincode::Encode, bincode::Decode)]
pub struct Generation {
    /// A new epoch is max(last epoch + 1, milliseconds since 1970).
    pub epoch: u64,
    /// Counts the deltas within the epoch, from 0.
    pub seq: u64,
}

/// What gossip carries: which summary is current, not the summary itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Announcement {
    /// The summary's place in its owner's history.
    pub generation: Generation,
    /// Number of store paths in the summary.
    pub path_count: u64,
    /// SHA-256 of the encoded [`Summary`].
    pub body_digest: [u8; 32],
    /// Size of the encoded [`Summary`], bytes, at most [`Summary::BYTES_MAX`].
    pub body_bytes: u32,
    /// Seconds for which a receiver may use the summary, counted from when it first accepts the
    /// announcement; 0 says goodbye.
    pub lifetime_s: u32,
    /// The owner's wall clock, milliseconds since 1970.
    pub issued_at_ms: u64,
}

impl Announcement {
    /// Whether the owner leaves the mesh, so that receivers drop its summary.
    pub fn is_goodbye(&self) -> bool {
        self.lifetime_s == 0
    }
}

/// The first 8 bytes of SHA-256 over `narmesh-audience-1;` and the PeerId: it identifies a peer only to those who know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, bincode::Encode, bincode::Decode)]
pub struct AudienceDigest(pub [u8; 8]);

impl AudienceDigest {
    /// The digest of `peer`.
    pub fn of(peer: &PeerId) -> Self {
        let digest: [u8; 32] =
            Sha256::new().chain_update(b"narmesh-audience-1;").chain_update(peer.to_bytes()).finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        Self([a, b, c, d, e, f, g, h])
    }
}

/// A node's advertisement of its paths: the body whose digest is in the signed announcement.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Summary {
    /// The index function that fills the filter: [`crate::HASH_ID_V1`] or an unknown one.
    pub hash_id: u32,
    /// Number of store paths in the filter.
    pub items: u64,
    /// The peers that may be given this body: ascending, unique, at most [`Summary::AUDIENCE_MAX`].
    pub audience: Vec<AudienceDigest>,
    /// Addresses on which the owner listens: IP and TCP only, at most [`Summary::ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
    /// The filter's bits, the least significant bit of each byte first. Their number is a power of two.
    pub filter_bytes: Vec<u8>,
}

/// Why a summary or a delta is refused.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// The bytes do not decode.
    #[error("summary encoding")]
    Codec(#[from] CodecError),
    /// A list has more entries than its limit.
    #[error("summary {field}: {count} entries, limit {count_max}")]
    TooMany {
        /// Name of the list.
        field: &'static str,
        /// Number of entries found.
        count: usize,
        /// Most entries allowed.
        count_max: usize,
    },
    /// A list that must strictly ascend does not.
    #[error("summary {field}: not in ascending order")]
    Order {
        /// Name of the list.
        field: &'static str,
    },
    /// The filter has a wrong size or is too dense.
    #[error("summary filter")]
    Filter(#[from] FilterError),
    /// The delta builds on another summary than the receiver holds.
    #[error("delta from seq {base_seq}, held {held_seq}")]
    Base {
        /// The `seq` that the delta builds on.
        base_seq: u64,
        /// The `seq` that the receiver holds.
        held_seq: u64,
    },
    /// The positions of a delta are not gaps in their shortest encoding.
    #[error("delta positions: a gap that is too long, too large or without end")]
    Gap,
    /// The delta sets a bit outside the filter.
    #[error("delta position {position}, filter of {bits} bits")]
    Position {
        /// Index of the bit.
        position: u32,
        /// Size of the filter, bits.
        bits: u64,
    },
    /// The filter uses an index function that this node does not know. The summary is ignored; its owner is not punished.
    #[error("summary hash id {hash_id} is unknown")]
    UnknownHashId {
        /// The id found.
        hash_id: u32,
    },
}

impl Summary {
    /// Largest encoded body, bytes: the largest filter (2 MiB), the audience and the addresses.
    pub const BYTES_MAX: usize = (2 << 20) + (32 << 10);
    /// Most peers in an audience.
    pub const AUDIENCE_MAX: usize = 2_048;
    /// Most addresses of one peer.
    pub const ADDRESSES_MAX: usize = 8;

    /// Encodes the body; the digest in an announcement is over these bytes.
    pub fn encode(&self) -> Result<Vec<u8>, SummaryError> {
        Ok(codec::encode::<{ Self::BYTES_MAX }>(self)?)
    }

    /// SHA-256 of an encoded body.
    pub fn digest(encoded: &[u8]) -> [u8; 32] {
        Sha256::digest(encoded).into()
    }

    /// Decodes and checks every bound; an unknown hash id is its own error.
    pub fn decode(bytes: &[u8]) -> Result<Self, SummaryError> {
        let summary = codec::decode::<Self, { Self::BYTES_MAX }>(bytes)?;
        summary.check()?;
        Ok(summary)
    }

    /// The filter, checked for shape and density.
    pub fn filter(&self) -> Result<Filter, SummaryError> {
        if self.hash_id != crate::HASH_ID_V1 {
            return Err(SummaryError::UnknownHashId { hash_id: self.hash_id });
        }
        Ok(Filter::from_bytes(self.filter_bytes.clone())?)
    }

    /// Whether `peer` may be given this body.
    pub fn admits(&self, peer: &PeerId) -> bool {
        self.audience.binary_search(&AudienceDigest::of(peer)).is_ok()
    }

    fn check(&self) -> Result<(), SummaryError> {
        check_audience(&self.audience)?;
        check_addresses(&self.addresses)?;
        // Before the filter is looked at, whose rules follow from it.
        if self.hash_id != crate::HASH_ID_V1 {
            return Err(SummaryError::UnknownHashId { hash_id: self.hash_id });
        }
        FilterClass::of_bytes(self.filter_bytes.len())?;
        Ok(())
    }
}

/// The changes that turn the summary `(epoch, base_seq)` into a later one of the same epoch. Bits
/// are only set, never cleared.
///
/// A delta carries no signature: the digest in the later announcement proves the result, whoever sent the delta.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SummaryDelta {
    /// The `seq` of the summary on which the delta builds.
    pub base_seq: u64,
    /// Number of store paths in the resulting summary.
    pub items: u64,
    /// Indices of the bits to set: ascending, unique, at most [`SummaryDelta::POSITIONS_MAX`].
    pub positions: Vec<u32>,
    /// The new audience, if it changed.
    pub audience: Option<Vec<AudienceDigest>>,
    /// The new addresses, if they changed.
    pub addresses: Option<Vec<SocketAddr>>,
}

/// A delta as it is encoded: its positions are written as gaps, most of which take one byte.
#[derive(bincode::Encode, bincode::Decode)]
struct DeltaOnTheWire {
    base_seq: u64,
    items: u64,
    gaps: Vec<u8>,
    audience: Option<Vec<AudienceDigest>>,
    addresses: Option<Vec<SocketAddr>>,
}

impl SummaryDelta {
    /// Largest encoded delta, bytes; a bigger change is sent as a whole body.
    pub const BYTES_MAX: usize = 256 << 10;
    /// Most bits in one delta.
    pub const POSITIONS_MAX: usize = 48_000;

    /// Encodes; an error when the positions do not ascend.
    pub fn encode(&self) -> Result<Vec<u8>, SummaryError> {
        let delta = DeltaOnTheWire {
            base_seq: self.base_seq,
            items: self.items,
            gaps: gaps_of(&self.positions)?,
            audience: self.audience.clone(),
            addresses: self.addresses.clone(),
        };
        Ok(codec::encode::<{ Self::BYTES_MAX }>(&delta)?)
    }

    /// Decodes; checks all bounds and the order of the lists.
    pub fn decode(bytes: &[u8]) -> Result<Self, SummaryError> {
        let delta = codec::decode::<DeltaOnTheWire, { Self::BYTES_MAX }>(bytes)?;
        let positions = positions_of(&delta.gaps)?;
        let DeltaOnTheWire { base_seq, items, audience, addresses, .. } = delta;
        let delta = Self { base_seq, items, positions, audience, addresses };
        if let Some(audience) = &delta.audience {
            check_audience(audience)?;
        }
        if let Some(addresses) = &delta.addresses {
            check_addresses(addresses)?;
        }
        Ok(delta)
    }

    /// Applies the delta to `base`, whose `seq` is `held_seq`. The caller compares the result's
    /// digest with the announcement.
    pub fn apply(&self, base: &Summary, held_seq: u64) -> Result<Summary, SummaryError> {
        // On another base the same bits would make another filter.
        if self.base_seq != held_seq {
            return Err(SummaryError::Base { base_seq: self.base_seq, held_seq });
        }
        let mut next = base.clone();
        next.items = self.items;
        if let Some(audience) = &self.audience {
            next.audience.clone_from(audience);
        }
        if let Some(addresses) = &self.addresses {
            next.addresses.clone_from(addresses);
        }
        let bits = next.filter_bytes.len() as u64 * 8;
        for &position in &self.positions {
            // A position beyond the filter is a lie; the filter does not grow for it.
            let byte = next.filter_bytes.get_mut(position as usize / 8);
            let byte = byte.ok_or(SummaryError::Position { position, bits })?;
            *byte |= 1 << (position % 8);
        }
        Ok(next)
    }
}

/// Encodes the first position as it is, and each other one as its difference to the previous one, less 1. Each number is in
/// LEB128: seven bits per byte, lowest first, with the eighth bit set on all bytes but the last.
fn gaps_of(positions: &[u32]) -> Result<Vec<u8>, SummaryError> {
    let mut gaps = Vec::with_capacity(positions.len() * 2);
    let mut next = 0u64;
    for position in positions.iter().copied().map(u64::from) {
        let mut gap = position.checked_sub(next).ok_or(SummaryError::Order { field: "positions" })?;
        while gap >= 0x80 {
            gaps.push(gap.to_le_bytes()[0] | 0x80);
            gap >>= 7;
        }
        gaps.push(gap.to_le_bytes()[0]);
        next = position + 1;
    }
    Ok(gaps)
}

/// Decodes gaps. Refuses encodings longer than necessary, a gap without an end, and positions of 2^32 or more.
fn positions_of(gaps: &[u8]) -> Result<Vec<u32>, SummaryError> {
    let count = gaps.iter().filter(|byte| **byte < 0x80).count();
    too_many("positions", count, SummaryDelta::POSITIONS_MAX)?;
    let mut positions = Vec::with_capacity(count);
    let (mut next, mut gap, mut shift) = (0u64, 0u64, 0);
    for &byte in gaps {
        gap |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            let position = u32::try_from(next + gap).map_err(|_| SummaryError::Gap)?;
            // A last byte of 0 adds nothing: the same gap has a shorter encoding.
            if byte == 0 && shift > 7 {
                return Err(SummaryError::Gap);
            }
            positions.push(position);
            (next, gap, shift) = (u64::from(position) + 1, 0, 0);
        } else if shift > 28 {
            // Five bytes hold every 32-bit number, so the fifth must be the last.
            return Err(SummaryError::Gap);
        }
    }
    if shift > 0 {
        return Err(SummaryError::Gap);
    }
    Ok(positions)
}

fn check_audience(audience: &[AudienceDigest]) -> Result<(), SummaryError> {
    too_many("audience", audience.len(), Summary::AUDIENCE_MAX)?;
    if !audience.is_sorted_by(|a, b| a < b) {
        return Err(SummaryError::Order { field: "audience" });
    }
    Ok(())
}

fn check_addresses(addresses: &[SocketAddr]) -> Result<(), SummaryError> {
    too_many("addresses", addresses.len(), Summary::ADDRESSES_MAX)
}

fn too_many(field: &'static str, count: usize, count_max: usize) -> Result<(), SummaryError> {
    if count > count_max {
        return Err(SummaryError::TooMany { field, count, count_max });
    }
    Ok(())
}
