//! The messages that peers send each other, and the size limit of each. `docs/protocol.md` describes their bytes.

use crate::codec::{self, CodecError};
use crate::{
    AudienceDigest, Envelope, Generation, HashPart, KeyProof, NarHash, NarInfo, Realisation, RealisationError,
    RealisationId, RosterVersion, SignedRoster, Summary, SummaryDelta,
};

pub use crate::circuit::{CIRCUIT_PROTOCOL, CircuitReply, CircuitRequest, RELAY_PROTOCOL, RelayHello, RelayWelcome};

/// Gossipsub topic of the announcements.
pub const ANNOUNCE_TOPIC: &str = "/narmesh/1/announce";
/// Request-response protocol of [`GossipRequest`].
pub const GOSSIP_PROTOCOL: &str = "/narmesh/1/gossip";
/// Request-response protocol of [`NarInfoRequest`].
pub const NARINFO_PROTOCOL: &str = "/narmesh/1/narinfo";
/// A NAR up to this size is small, in bytes. Its holder does not queue it behind large ones, and its asker verifies the
/// whole of it before Nix sees a byte, so that a change of source stays invisible.
pub const SMALL_NAR_BYTES_MAX: u64 = 8 << 20;
/// Multiplexer of a bulk connection. Its streams carry [`NarRequest`]s without negotiating a protocol each.
pub const BULK_PROTOCOL: &str = "/narmesh/4/bulk";
/// Leaves of the tree of a NAR.
pub const TREE_LEAVES_MAX: usize = 8_192;
/// Request-response protocol of [`TreeRequest`].
pub const TREE_PROTOCOL: &str = "/narmesh/1/tree";
/// Request-response protocol of [`LogRequest`].
pub const LOG_PROTOCOL: &str = "/narmesh/1/log";
/// The largest build log that peers give each other, bytes, as its file is and also unpacked. It is what Hydra lets a build
/// say (`max_log_size`), and Nix holds a log in memory as a whole.
pub const LOG_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a build log in one reply, at most. A line with 16 kB/s brings them in the 4 s that a peer is waited for.
pub const LOG_PART_BYTES_MAX: usize = 64 << 10;
/// Request-response protocol of [`RealisationRequest`].
pub const REALISATION_PROTOCOL: &str = "/narmesh/1/realisation";
/// Request-response protocol of [`DialRequest`].
pub const DIAL_PROTOCOL: &str = "/narmesh/2/dial";

/// Request-response protocol of [`RosterRequest`].
pub const ROSTER_PROTOCOL: &str = "/narmesh/1/roster";
/// Multiplexer of a connection on which a machine that is no member yet sends one [`JoinRequest`]. A node speaks it only while
/// an invitation of its is open.
pub const JOIN_PROTOCOL: &str = "/narmesh/1/join";

/// Spoken in the place of a multiplexer with a machine that was removed from the mesh, and with nobody else: it is sent the
/// bytes of its [`crate::Removal`].
pub const REMOVAL_PROTOCOL: &str = "/narmesh/1/removal";

/// Declares a message's size limit and its two codec methods.
macro_rules! message {
    ($type:ty, $bytes_max:expr) => {
        impl $type {
            /// Largest encoding, bytes.
            pub const BYTES_MAX: usize = $bytes_max;
            /// Encodes; a message over the limit is an error.
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

pub(crate) use message;

/// Names a summary that the sender holds complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Have {
    /// Digest of the owner's PeerId: it identifies the owner only to those who know it.
    pub owner: AudienceDigest,
    /// Generation of the summary held.
    pub generation: Generation,
}

/// Compares what two peers hold (anti-entropy). It is also the first request on every new connection.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Sync {
    /// The sender's logical store directory. If the receiver's differs, the exchange ends.
    pub store_dir: String,
    /// The sender's software and version, shown by `status`.
    pub software: String,
    /// The newest envelope signed by the receiver that the sender holds. A node that lost its state learns its last
    /// generation from it, so that others accept its announcements again.
    pub yours: Option<Vec<u8>>,
    /// The summaries that the sender holds, at most [`Sync::HAVE_MAX`].
    pub have: Vec<Have>,
}

impl Sync {
    /// Most entries in `have`.
    pub const HAVE_MAX: usize = 2_048;
}

/// Requests of `/narmesh/1/gossip`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum GossipRequest {
    /// Compares the summaries that both peers hold.
    Sync(Sync),
    /// Asks for the body of an announced summary.
    Pull {
        /// Digest of the owner's PeerId: it identifies the owner only to those who know it.
        owner: AudienceDigest,
        /// The announced generation that the sender wants.
        generation: Generation,
        /// The `seq` of the same epoch that the sender holds, if any. A delta from it is then enough.
        have_seq: Option<u64>,
    },
}
message!(GossipRequest, 64 << 10);

/// Answers of `/narmesh/1/gossip`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum GossipReply {
    /// Answers `Sync`.
    Sync {
        /// As in [`Sync`], with the answerer as the sender.
        store_dir: String,
        /// As in [`Sync`], with the answerer as the sender.
        software: String,
        /// As in [`Sync`], with the answerer as the sender.
        yours: Option<Vec<u8>>,
        /// Envelopes newer than those of the asker, from owners whose audience admits the asker; at most
        /// [`GossipReply::NEWS_MAX`].
        news: Vec<Vec<u8>>,
    },
    /// Answers `Sync`: the store directories differ, so nothing can be shared.
    StoreDirDiffers {
        /// The answerer's logical store directory.
        store_dir: String,
    },
    /// Answers `Pull`: the encoded [`Summary`].
    Body(Vec<u8>),
    /// Answers `Pull`: an encoded [`SummaryDelta`] from the asker's `have_seq`.
    Delta(Vec<u8>),
    /// Answers `Pull`: the answerer does not hold the summary, or may not give it to the asker. The two look the same.
    Absent,
    /// The asker sent too many requests; it may ask again later.
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
    /// Hash part of the store path asked for.
    pub hash_part: HashPart,
}
message!(NarInfoRequest, 64);

/// Answers of `/narmesh/1/narinfo`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum NarInfoReply {
    /// The path is not served. The bytes are the same for absent, withheld and unsigned paths.
    Absent,
    /// The text of the narinfo. The asker parses it and prints it anew.
    Found(Vec<u8>),
    /// The asker sent too many requests; it may ask another holder, or ask again.
    Busy,
}
message!(NarInfoReply, NarInfo::BYTES_MAX + 64);

/// Request of `/narmesh/2/dial`. It goes to the side that dialled the connection, because only that side is known
/// to be able to reach the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum DialRequest {
    /// Asks the receiver to dial a bulk connection to the sender.
    Bulk,
}
message!(DialRequest, 16);

/// Answers of `/narmesh/2/dial`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum DialReply {
    /// The dial is under way.
    Dialling,
    /// The asker sent too many requests, or the answerer is not the side that dialled this connection.
    NotNow,
}
message!(DialReply, 16);

/// Request of `/narmesh/1/tree`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, bincode::Encode, bincode::Decode)]
pub struct TreeRequest {
    /// Hash part of the store path.
    pub hash_part: HashPart,
    /// NarHash that the asker expects.
    pub nar_hash: NarHash,
    /// NarSize that the asker expects, bytes.
    pub nar_size: u64,
}
message!(TreeRequest, 64);

/// Answers of `/narmesh/1/tree`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum TreeReply {
    /// No tree is to be had: such a NAR is not here, or a NAR of that size has none.
    Absent,
    /// The tree is being computed; the asker may ask again.
    NotYet,
    /// The tree, and who says that it is that of the NAR.
    Tree {
        /// Of the answerer's node key, over the NAR and the root of the tree.
        signature: [u8; 64],
        /// The hashes of all leaves.
        leaves: Vec<[u8; 32]>,
    },
    /// The asker sent too many requests, or too many trees are being computed; it may ask again.
    Busy,
}
message!(TreeReply, TREE_LEAVES_MAX * 32 + 128);

/// Request of `/narmesh/1/roster`: compares which roster of a mesh two members have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct RosterRequest {
    /// The bytes of the mesh key.
    pub mesh: [u8; 32],
    /// The roster that the asker has; version 0 for none.
    pub have: RosterVersion,
}
message!(RosterRequest, 128);

/// Answers of `/narmesh/1/roster`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum RosterReply {
    /// The answerer has no roster of this mesh on which the asker is.
    Absent,
    /// It has the same one.
    Same,
    /// It has a newer one, maybe of a mesh key that has taken the place of the named one: the bytes of a [`SignedRoster`].
    Newer(Vec<u8>),
    /// It has an older one, and asks in turn.
    Older,
    /// The asker sent too many requests; it may ask again.
    Busy,
    /// It does not know the mesh key that the asker named, and has a roster of one that replaced another one: the bytes of a
    /// [`SignedRoster`]. If one key named two others in its place, both sides see so.
    OtherKey(Vec<u8>),
}
message!(RosterReply, SignedRoster::BYTES_MAX + 64);

/// Request of `/narmesh/1/join`, the only one on its stream.
#[derive(Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct JoinRequest {
    /// The secret of the invitation. The connection proves to both sides who the other is, so it goes to the inviter alone.
    pub secret: [u8; 16],
    /// The name that the asker would like to have.
    pub name: String,
    /// Its builder key, if it has one, and that it holds it.
    pub builder_key: Option<KeyProof>,
    /// Where it may be dialled, as multiaddrs.
    pub addresses: Vec<String>,
}
message!(JoinRequest, 4 << 10);

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Answers of `/narmesh/1/join`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum JoinReply {
    /// The asker is a member now: the bytes of a [`SignedRoster`].
    Welcome(Vec<u8>),
    /// No open invitation has this secret. Wrong, used up and over look the same.
    Refused,
    /// The invitation is good, and what the asker says of itself is not.
    Unfit {
        /// Why, in words.
        why: String,
    },
    /// The inviter cannot sign now; the asker may come again.
    NotNow,
}
message!(JoinReply, SignedRoster::BYTES_MAX + 64);

/// Request of `/narmesh/1/log`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct LogRequest {
    /// Hash part of the derivation.
    pub derivation: HashPart,
    /// Offset in the file of the log of the first byte wanted.
    pub offset: u64,
}
message!(LogRequest, 64);

/// Answers of `/narmesh/1/log`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum LogReply {
    /// No log is to be had. The bytes are the same for a log that is not here, one that is withheld, and one that is too large.
    Absent,
    /// A part of the file of the log.
    Part(LogPart),
    /// The asker sent too many requests, or the answerer cannot tell now; it may ask again.
    Busy,
}
message!(LogReply, LOG_PART_BYTES_MAX + 64);

/// A part of the file of a build log.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct LogPart {
    /// Whether the file is compressed with bzip2.
    pub is_compressed: bool,
    /// Size of the file, bytes; at most [`LOG_BYTES_MAX`].
    pub size_bytes: u64,
    /// Tells this file from another one that takes its place: parts with different numbers do not belong together.
    pub version: u64,
    /// The bytes from the offset on, at most [`LOG_PART_BYTES_MAX`]; none only at the end of the file.
    pub bytes: Vec<u8>,
}

impl LogPart {
    /// Whether this may be the answer to a request for the bytes from `offset` on.
    pub fn is_from(&self, offset: u64) -> bool {
        let is_in_file = offset.checked_add(self.bytes.len() as u64).is_some_and(|end| end <= self.size_bytes);
        let is_long_enough = !self.bytes.is_empty() || offset == self.size_bytes;
        is_in_file && is_long_enough && self.size_bytes <= LOG_BYTES_MAX && self.bytes.len() <= LOG_PART_BYTES_MAX
    }
}

/// Request of `/narmesh/1/realisation`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct RealisationRequest {
    /// The hash of the derivation modulo what it is built from, as Nix computes it; SHA-256.
    pub derivation_hash: [u8; 32],
    /// The name of the output.
    pub output: String,
}
message!(RealisationRequest, 320);

impl RealisationRequest {
    /// Asks for this one.
    pub fn of(id: &RealisationId) -> Self {
        Self { derivation_hash: *id.hash_bytes(), output: id.output().to_owned() }
    }

    /// What is asked for; an error if no output may have such a name.
    pub fn id(&self) -> Result<RealisationId, RealisationError> {
        RealisationId::of_bytes(self.derivation_hash, &self.output)
    }
}

/// Answers of `/narmesh/1/realisation`.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum RealisationReply {
    /// None is to be had. The bytes are the same for one that is not here and one that is withheld.
    Absent,
    /// The JSON of the realisation, as in the file of a binary cache, with signatures.
    Found(Vec<u8>),
    /// The asker sent too many requests, or the answerer cannot tell now; it may ask again.
    Busy,
}
message!(RealisationReply, Realisation::BYTES_MAX + 64);

/// Request frame for a NAR, on a stream of a bulk connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct NarRequest {
    /// Hash part of the store path.
    pub hash_part: HashPart,
    /// NarHash that the asker expects.
    pub nar_hash: NarHash,
    /// NarSize that the asker expects, bytes.
    pub nar_size: u64,
    /// Offset in the uncompressed NAR of the first byte wanted.
    pub offset: u64,
    /// Offset of the byte behind the last one wanted; at most `nar_size`.
    pub end: u64,
    /// Whether the body may be one zstd frame.
    pub accept_zstd: bool,
    /// Whether the asker passes on what it has got while more is coming, and may be named to others who ask for this NAR.
    pub passes_on: bool,
    /// Whether the asker may be told of others instead.
    pub referral: Referral,
}
message!(NarRequest, 128);

/// What the asker of a NAR makes of the names of others who have it on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum Referral {
    /// Nothing: it wants the NAR of this holder.
    Declined,
    /// It would ask them first.
    Welcome,
    /// The same, but it is reading from one of them already, and thinks that this holder may be quicker.
    Compared,
}

/// Head frame of an answer on a stream of a bulk connection.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum NarReply {
    /// The body follows in chunks.
    Body {
        /// Whether the body is one zstd frame.
        zstd: bool,
    },
    /// The holder does not have such a NAR, or no longer has it.
    Absent,
    /// The holder has the NAR, but does not send it yet.
    NotNow {
        /// From 1: position of the request in the holder's queue; another head follows on this stream. 0: the request is not
        /// queued, and the asker must ask again.
        place: u32,
        /// Milliseconds within which the next head comes; with place 0, milliseconds to wait before the next request.
        ask_again_ms: u32,
    },
    /// The holder has the NAR and is sending it to others, who pass it on.
    Others {
        /// Digests of their PeerIds, the first to be asked first; at least one, and at most [`NarReply::OTHERS_MAX`]. They
        /// identify a peer only to those who know it.
        peers: Vec<AudienceDigest>,
    },
}
message!(NarReply, 64);

impl NarReply {
    /// Most names in one answer.
    pub const OTHERS_MAX: usize = 4;
}

/// Framing on a stream that carries NARs.
///
/// Request and head: `u32` little-endian length, then that many bytes. Body: chunks, each a `u32` little-endian length from
/// 1 to [`NarFrame::CHUNK_BYTES_MAX`] and its bytes; then a length of 0 and one byte, [`NarFrame::END_COMPLETE`] or
/// [`NarFrame::END_FAILED`]. After that byte the stream takes the next request.
#[derive(Debug)]
pub struct NarFrame;

impl NarFrame {
    /// Largest chunk, bytes.
    pub const CHUNK_BYTES_MAX: usize = 256 << 10;
    /// The holder sent its copy up to the end that was asked for. It may have compared the NarHash if it sent the whole
    /// NAR; for a range it has not.
    pub const END_COMPLETE: u8 = 0;
    /// The holder could not finish: the path was garbage-collected, or its copy is not what its database says.
    pub const END_FAILED: u8 = 1;
}

const _: () = assert!(Sync::HAVE_MAX * 24 + 1_000 + Envelope::BYTES_MAX < GossipRequest::BYTES_MAX);
const _: () = assert!(GossipReply::NEWS_MAX * (Envelope::BYTES_MAX + 8) < GossipReply::BYTES_MAX);
const _: () = assert!(SummaryDelta::BYTES_MAX < GossipReply::BYTES_MAX);
