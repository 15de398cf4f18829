//! What a node says it holds: the announcement, the summary that it announces, and the delta between two of them.

use crate::codec::{self, CodecError};
use crate::filter::{Filter, FilterClass, FilterError};
use libp2p_identity::PeerId;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;

/// Place of a summary in its owner's history: a later epoch beats an earlier one, within an epoch the higher `seq`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, bincode::Encode, bincode::Decode)]
pub struct Generation {
    /// Starts at max(last + 1, milliseconds since 1970).
    pub epoch: u64,
    /// Counts the deltas within the epoch, from 0.
    pub seq: u64,
}

/// What gossip carries: which summary is current, not the summary itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Announcement {
    /// The summary's place in its owner's history.
    pub generation: Generation,
    /// Store paths in the summary.
    pub path_count: u64,
    /// SHA-256 of the encoded [`Summary`].
    pub body_digest: [u8; 32],
    /// Bytes of the encoded [`Summary`], at most [`Summary::BYTES_MAX`].
    pub body_bytes: u32,
    /// Seconds that a receiver may use it, counted from its first acceptance; 0 says goodbye.
    pub lifetime_s: u32,
    /// The owner's wall clock, milliseconds since 1970.
    pub issued_at_ms: u64,
}

impl Announcement {
    /// Whether the owner leaves: its column is dropped.
    pub fn is_goodbye(&self) -> bool {
        self.lifetime_s == 0
    }
}

/// The first 8 bytes of SHA-256 over `narmesh-audience-1;` and the PeerId: names a peer to those who know it, to nobody else.
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

/// The body that an announcement proves by its digest.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Summary {
    /// Which index function fills the filter: [`crate::HASH_ID_V1`] or an unknown one.
    pub hash_id: u32,
    /// Store paths in the filter.
    pub items: u64,
    /// Who may be given this body: ascending, unique, at most [`Summary::AUDIENCE_MAX`].
    pub audience: Vec<AudienceDigest>,
    /// Where the owner listens: IP and TCP only, at most [`Summary::ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
    /// The filter's bits, least significant bit of a byte first; a power of two of them.
    pub filter_bytes: Vec<u8>,
}

/// Why a body is refused.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// Not a body at all.
    #[error("summary encoding")]
    Codec(#[from] CodecError),
    /// A list over its limit.
    #[error("summary {field}: {count} entries, limit {count_max}")]
    TooMany {
        /// Which list.
        field: &'static str,
        /// Its length.
        count: usize,
        /// Its limit.
        count_max: usize,
    },
    /// A list that must ascend does not.
    #[error("summary {field}: not in ascending order")]
    Order {
        /// Which list.
        field: &'static str,
    },
    /// The filter is of a forbidden shape.
    #[error("summary filter")]
    Filter(#[from] FilterError),
    /// A delta for another base.
    #[error("delta from seq {base_seq}, held {held_seq}")]
    Base {
        /// What the delta builds on.
        base_seq: u64,
        /// What the receiver holds.
        held_seq: u64,
    },
    /// A delta whose positions are no gaps in their shortest spelling.
    #[error("delta positions: a gap that is too long, too large or without end")]
    Gap,
    /// A delta that names a bit outside the filter.
    #[error("delta position {position}, filter of {bits} bits")]
    Position {
        /// The bit.
        position: u32,
        /// The filter's size.
        bits: u64,
    },
    /// Of an index function that this node does not know: to be ignored, not punished.
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

    /// Encodes; the digest of an announcement is over these bytes.
    pub fn encode(&self) -> Result<Vec<u8>, SummaryError> {
        Ok(codec::encode::<{ Self::BYTES_MAX }>(self)?)
    }

    /// SHA-256 over an encoded body.
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
        if self.hash_id != crate::HASH_ID_V1 {
            return Err(SummaryError::UnknownHashId { hash_id: self.hash_id });
        }
        FilterClass::of_bytes(self.filter_bytes.len())?;
        Ok(())
    }
}

/// What turns the summary `(epoch, base_seq)` into a later one of the same epoch: bits are only set, never cleared.
///
/// It carries no signature: the digest in the later announcement proves the outcome, whoever sent the delta.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SummaryDelta {
    /// The `seq` it builds on.
    pub base_seq: u64,
    /// Store paths afterwards.
    pub items: u64,
    /// Bits to set: ascending, unique, at most [`SummaryDelta::POSITIONS_MAX`].
    pub positions: Vec<u32>,
    /// The new audience, when it changed.
    pub audience: Option<Vec<AudienceDigest>>,
    /// The new addresses, when they changed.
    pub addresses: Option<Vec<SocketAddr>>,
}

/// A delta as it travels: the positions as gaps, most of which take one byte.
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

    /// Encodes; positions that do not ascend cannot be.
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

    /// Decodes and checks bounds and order.
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

    /// The summary that follows from `base`, whose `seq` is `held_seq`; the caller compares its digest with the announcement.
    pub fn apply(&self, base: &Summary, held_seq: u64) -> Result<Summary, SummaryError> {
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
            let byte = next.filter_bytes.get_mut(position as usize / 8);
            let byte = byte.ok_or(SummaryError::Position { position, bits })?;
            *byte |= 1 << (position % 8);
        }
        Ok(next)
    }
}

/// Each position less the one before and 1, the first as it is, in LEB128: seven bits a byte, the lowest first, the eighth
/// set on all but the last.
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

/// Refuses longer spellings than necessary, a gap that does not end, and positions above 2^32.
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
            if byte == 0 && shift > 7 {
                return Err(SummaryError::Gap);
            }
            positions.push(position);
            (next, gap, shift) = (u64::from(position) + 1, 0, 0);
        } else if shift > 28 {
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
