//! Nix's formats and the mesh's wire formats: bytes to types and back, nothing else.
//!
//! Purpose: everything that enters from another machine is parsed here once, into types that cannot hold an invalid value.
//! Contract: pure functions over bytes; no clock, no socket, no file. A decoder checks every length before it allocates.
//! Contents: for Nix [`StorePath`], [`NarInfo`], [`Fingerprint`], [`nar`]; for the mesh an [`Envelope`] around an
//! [`Announcement`], the [`Summary`] that it announces, a [`SummaryDelta`] between two summaries, and the requests in
//! [`wire`], and the [`nar_tree`] by which parts of a NAR prove themselves; for builders an [`Attestation`].
//! Invariant: bytes that decode also encode back to the same bytes; all others are refused.

mod attestation;
pub mod attestation_file;
pub mod circle;
mod circuit;
pub mod codec;
mod content_address;
mod content_verifier;
mod digest_text;
mod embedded_v4;
mod envelope;
mod filter;
mod fingerprint;
mod key;
mod key_proof;
mod member_codec;
pub mod nar;
mod nar_hash;
pub mod nar_tree;
mod nar_url;
mod narinfo;
pub mod nix32;
mod pattern;
mod realisation;
mod removal;
mod roster;
mod roster_codec;
mod roster_removals;
mod signed_deriver;
mod signed_roster;
mod store_path;
mod succession;
mod summary;
pub mod wire;

pub use attestation::{Attestation, AttestationError, BuilderKey, Statement};
pub use content_address::{ContentAddress, ContentAddressError, HashAlgorithm};
pub use content_verifier::ContentVerifier;
pub use embedded_v4::embedded_v4;
pub use envelope::{Envelope, EnvelopeError};
pub use filter::{BitPositions, Filter, FilterClass, FilterError, HASH_ID_V1, HASHES_PER_ITEM, filter_seed};
pub use fingerprint::Fingerprint;
pub use key::{KeyError, NixPublicKey, NixSecretKey, NixSignature, SignatureError, TrustedKeys};
pub use key_proof::KeyProof;
pub use nar_hash::{NarHash, NarHashError};
pub use nar_url::{NarUrl, NarUrlError};
pub use narinfo::{NarInfo, NarInfoError, NarInfoField};
pub use pattern::NamePattern;
pub use realisation::{Realisation, RealisationError, RealisationId};
pub use removal::{Removal, Removed};
pub use roster::{EditCount, Member, MemberRole, Roster, RosterError, node_key_of, peer_of};
pub use signed_deriver::{find_signed_deriver, sign_deriver};
pub use signed_roster::{RosterVersion, SignedRoster, Standing};
pub use store_path::{HashPart, StoreDir, StorePath, StorePathError};
pub use succession::{Lineage, Succession};
pub use summary::{Announcement, AudienceDigest, Generation, Summary, SummaryDelta, SummaryError};
