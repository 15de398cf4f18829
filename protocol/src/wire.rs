//! What peers ask each other, and the limits of each message. `docs/protocol.md` has the bytes.

use crate::codec::{self, CodecError};
use crate::{AudienceDigest, Envelope, Generation, HashPart, NarHash, NarInfo, Summary, SummaryDelta};

/// gossipsub topic of announcements.
pub const ANNOUNCE_TOPIC: &str = "/narmesh/1/announce";
/// Request-response protocol of [`GossipRequest`].
pub const GOSSIP_PROTOCOL: &str = "/narmesh/1/gossip";
/// Request-response protocol of [`NarInfoRequest`].
pub const NARINFO_PROTOCOL: &str = "/narmesh/1/narinfo";
/// Multiplexer of a bulk connection, whose streams carry [`NarRequest`]s without a negotiation of their own.
pub const BULK_PROTOCOL: &str = "/narmesh/2/bulk";
/// Request-response protocol of [`DialRequest`].
pub const DIAL_PROTOCOL: &str = "/narmesh/2/dial";

/// Declares a message's size limit and its two codec methods.
macro_rules! message {
    ($type:ty, $bytes_max:expr) => {
        impl $type {
            /// Largest encoding, bytes.
            pub const BYTES_MAX: usize = $bytes_max;
            /// Encodes, refusing what is over the limit.
            pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
                codec::encode::<{ $bytes_max }>(self)
            }
            /// Decodes exactly these bytes.
            pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
                codec::decode::<Self, { $bytes_max }>(bytes)
            }
        }
    };
}

/// A summary that the sender holds whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Have {
    /// Its owner, named only to those who know it.
    pub owner: AudienceDigest,
    /// Which one.
    pub generation: Generation,
}

/// Anti-entropy, and the greeting on every new connection.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Sync {
    /// The sender's logical store directory; a different one ends the exchange.
    pub store_dir: String,
    /// The sender's software and version, for `status`.
    pub software: String,
    /// The newest envelope signed by the receiver that the sender holds: so a node that lost its state is heard again.
    pub yours: Option<Vec<u8>>,
    /// What the sender holds, at most [`Sync::HAVE_MAX`].
    pub have: Vec<Have>,
}

impl Sync {
    /// Most entries in `have`.
    pub const HAVE_MAX: usize = 2_048;
}

/// Requests of `/narmesh/1/gossip`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum GossipRequest {
    /// Compare what both hold.
    Sync(Sync),
    /// The body of an announced summary.
    Pull {
        /// The owner of the summary, named only to those who know it.
        owner: AudienceDigest,
        /// The announced generation that the sender wants.
        generation: Generation,
        /// The `seq` of the same epoch that the sender holds, if any: a delta from it will do.
        have_seq: Option<u64>,
    },
}
message!(GossipRequest, 64 << 10);

/// Answers of `/narmesh/1/gossip`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum GossipReply {
    /// To `Sync`.
    Sync {
        /// As in [`Sync`].
        store_dir: String,
        /// As in [`Sync`].
        software: String,
        /// As in [`Sync`].
        yours: Option<Vec<u8>>,
        /// Envelopes newer than the asker's, of owners whose audience admits it; at most [`GossipReply::NEWS_MAX`].
        news: Vec<Vec<u8>>,
    },
    /// To `Sync`: the store directories differ, nothing can be shared.
    StoreDirDiffers {
        /// The answerer's.
        store_dir: String,
    },
    /// To `Pull`: the encoded [`Summary`].
    Body(Vec<u8>),
    /// To `Pull`: an encoded [`SummaryDelta`] from the `seq` asked for.
    Delta(Vec<u8>),
    /// To `Pull`: not held, or not for the asker; the two are not told apart.
    Absent,
    /// Too many requests; ask again later.
    Busy,
}
message!(GossipReply, Summary::BYTES_MAX + (1 << 10));

impl GossipReply {
    /// Most envelopes in one answer.
    pub const NEWS_MAX: usize = 1_024;
}

/// Request of `/narmesh/1/narinfo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct NarInfoRequest {
    /// The path asked for.
    pub hash_part: HashPart,
}
message!(NarInfoRequest, 64);

/// Answers of `/narmesh/1/narinfo`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum NarInfoReply {
    /// Not served: byte-equal for absent, withheld and unsigned paths.
    Absent,
    /// The narinfo's text; the asker parses and re-serialises it.
    Found(Vec<u8>),
    /// Too many requests; ask another holder, or again.
    Busy,
}
message!(NarInfoReply, NarInfo::BYTES_MAX + 64);

/// Request of `/narmesh/2/dial`, to the side that dialled the connection that it comes over: only that side is sure to reach the
/// other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum DialRequest {
    /// Dial a bulk connection to me.
    Bulk,
}
message!(DialRequest, 16);

/// Answers of `/narmesh/2/dial`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum DialReply {
    /// The dial is under way.
    Dialling,
    /// Too many requests, or the answerer did not dial the connection either.
    NotNow,
}
message!(DialReply, 16);

/// Request frame on a stream of a bulk connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct NarRequest {
    /// The path.
    pub hash_part: HashPart,
    /// The NAR expected.
    pub nar_hash: NarHash,
    /// Its size, bytes.
    pub nar_size: u64,
    /// First byte wanted, of the uncompressed NAR.
    pub offset: u64,
    /// Whether the body may be one zstd frame.
    pub accept_zstd: bool,
}
message!(NarRequest, 128);

/// Head frame of an answer on a stream of a bulk connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum NarReply {
    /// Body frames follow.
    Body {
        /// The body is one zstd frame.
        zstd: bool,
    },
    /// No such NAR here (any more).
    Absent,
    /// It is here, and is not sent yet.
    NotNow {
        /// Where the request stands in the holder's queue, from 1: another head follows on this stream. 0: it stands in none, and
        /// is to be asked again.
        place: u32,
        /// The next head comes within this time, or (place 0) the next request should come after it; milliseconds.
        ask_again_ms: u32,
    },
}
message!(NarReply, 16);

/// Framing on a NAR stream.
///
/// Request and head: `u32` little-endian length, then that many bytes. Body: chunks, each a `u32` little-endian length from 1 to
/// [`NarFrame::CHUNK_BYTES_MAX`] and its bytes; then a length of 0 and one byte, [`NarFrame::END_COMPLETE`] or
/// [`NarFrame::END_FAILED`]. After it the stream takes the next request.
#[derive(Debug)]
pub struct NarFrame;

impl NarFrame {
    /// Largest chunk, bytes.
    pub const CHUNK_BYTES_MAX: usize = 256 << 10;
    /// These were the bytes of the holder's copy to its end. Of a whole NAR it may have compared the hash, of a range it has not.
    pub const END_COMPLETE: u8 = 0;
    /// The holder could not finish: the path was collected, or its copy is not what its database says.
    pub const END_FAILED: u8 = 1;
}

const _: () = assert!(Sync::HAVE_MAX * 24 + 1_000 + Envelope::BYTES_MAX < GossipRequest::BYTES_MAX);
const _: () = assert!(GossipReply::NEWS_MAX * (Envelope::BYTES_MAX + 8) < GossipReply::BYTES_MAX);
const _: () = assert!(SummaryDelta::BYTES_MAX < GossipReply::BYTES_MAX);
