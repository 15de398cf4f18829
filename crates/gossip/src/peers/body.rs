//! Bodies that an owner signed, and why one may still not be used.

use libp2p_identity::PeerId;
use narmesh_protocol::{Announcement, Filter, FilterError, Summary, SummaryError};

/// Why a body is not used although its owner signed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Flaw {
    /// It breaks a bound, or a list in it is not in order.
    #[error("it breaks its bounds")]
    Bounds,
    /// Its filter claims nearly every path.
    #[error("its filter is too dense")]
    Dense,
    /// It holds another number of paths than its announcement says.
    #[error("it has another path count than announced")]
    PathCount,
    /// This node is not in its audience.
    #[error("it is not meant for this node")]
    ForeignAudience,
    /// Its filter uses an index function that we do not know yet.
    #[error("its hash id {hash_id} is unknown")]
    UnknownHashId {
        /// The unknown hash id.
        hash_id: u32,
    },
}

/// What a body holds that this node may use.
#[derive(Debug)]
pub(crate) struct Usable {
    pub(crate) filter: Filter,
    pub(crate) summary: Summary,
}

impl Usable {
    /// Decodes a body for the node `me`. The caller has to check that its digest is the announced one.
    pub(crate) fn decode(me: &PeerId, announcement: &Announcement, body: &[u8]) -> Result<Self, Flaw> {
        // The filter is decoded with it: density and class are checked before anything is installed.
        match Summary::decode(body).and_then(|summary| Ok((summary.filter()?, summary))) {
            Ok((_, summary)) if summary.items != announcement.path_count => Err(Flaw::PathCount),
            Ok((_, summary)) if !summary.admits(me) => Err(Flaw::ForeignAudience),
            Ok((filter, summary)) => Ok(Self { filter, summary }),
            Err(SummaryError::UnknownHashId { hash_id }) => Err(Flaw::UnknownHashId { hash_id }),
            Err(SummaryError::Filter(FilterError::TooDense { .. })) => Err(Flaw::Dense),
            Err(
                SummaryError::Codec(_)
                | SummaryError::TooMany { .. }
                | SummaryError::Order { .. }
                | SummaryError::Filter(_)
                | SummaryError::Base { .. }
                | SummaryError::Gap
                | SummaryError::Position { .. },
            ) => Err(Flaw::Bounds),
        }
    }
}

/// How many bits are set. It counts whole words, because counting bytes takes five times as long.
pub(crate) fn count_ones(filter_bytes: &[u8]) -> u64 {
    let (words, rest) = filter_bytes.as_chunks::<8>();
    debug_assert!(rest.is_empty(), "a filter is a power of two of at least 1,024 bytes");
    words.iter().map(|word| u64::from(u64::from_ne_bytes(*word).count_ones())).sum()
}
