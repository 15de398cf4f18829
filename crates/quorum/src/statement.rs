//! A verified statement of one builder.

use narmesh_protocol::{Attestation, BuilderKey, HashPart, NarHash, NixPublicKey, NixSignature, Statement, StoreDir};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// A time of this machine's wall clock: milliseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct WallMs(pub u64);

/// SHA-256 of a whole Nix fingerprint: path, NarHash, NarSize and References. Builders agree when these are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FingerprintDigest(pub [u8; 32]);

/// The name of a path: the first 8 bytes of its SHA-256, little-endian. The name is part of the fingerprint, and two names
/// under one hash part are told apart by this.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NameDigest(pub u64);

/// The part of a statement that is kept in memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Claim {
    /// The digest of the fingerprint; two statements with the same one are the same.
    pub fingerprint: FingerprintDigest,
    /// The NarHash, which is only shown to people.
    pub nar_hash: NarHash,
    /// The NarSize, bytes, which is only shown to people.
    pub nar_size: u64,
    /// The name of the path. A statement about another name under the same hash part is about another path.
    pub name: NameDigest,
}

/// A statement whose signatures have been verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedStatement {
    pub(crate) builder: BuilderKey,
    pub(crate) hash_part: HashPart,
    pub(crate) claim: Claim,
    /// When the builder claims to have made it; `None` for a bare Nix signature.
    pub(crate) attested_at: Option<WallMs>,
    pub(crate) bytes: u32,
}

impl FingerprintDigest {
    /// The digest of the statement's fingerprint in this store directory.
    pub fn of(store_dir: &StoreDir, statement: &Statement) -> Self {
        Self(Sha256::digest(statement.fingerprint(store_dir).as_bytes()).into())
    }
}

impl NameDigest {
    /// The digest of a name, without the hash part.
    pub fn of(name: &str) -> Self {
        let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = Sha256::digest(name.as_bytes()).into();
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl fmt::Display for FingerprintDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FingerprintDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Claim {
    /// The claim of a statement.
    pub fn of(store_dir: &StoreDir, statement: &Statement) -> Self {
        Self {
            fingerprint: FingerprintDigest::of(store_dir, statement),
            nar_hash: statement.nar_hash,
            nar_size: statement.nar_size,
            name: NameDigest::of(statement.path.name()),
        }
    }
}

impl VerifiedStatement {
    /// An attestation, if `key` made both of its signatures. `bytes` is the space that it takes on disk.
    pub fn attestation(
        store_dir: &StoreDir,
        attestation: &Attestation,
        key: &NixPublicKey,
        bytes: u32,
    ) -> Option<Self> {
        attestation.verify(store_dir, key).then(|| Self {
            builder: attestation.builder,
            hash_part: attestation.statement.path.hash_part(),
            claim: Claim::of(store_dir, &attestation.statement),
            attested_at: Some(WallMs(attestation.attested_at_ms)),
            bytes,
        })
    }

    /// A bare Nix signature, if `key` made it. It counts only for builders that sign nothing but their own builds, which
    /// the operator has to declare.
    pub fn bare_signature(
        store_dir: &StoreDir,
        statement: &Statement,
        signature: &NixSignature,
        key: &NixPublicKey,
        bytes: u32,
    ) -> Option<Self> {
        key.verify(&statement.fingerprint(store_dir), signature).then(|| Self {
            builder: BuilderKey(key.bytes()),
            hash_part: statement.path.hash_part(),
            claim: Claim::of(store_dir, statement),
            attested_at: None,
            bytes,
        })
    }

    /// A statement that this node verified earlier and now reads back from its own database. `attested_at` is `None` for a
    /// bare Nix signature.
    pub fn from_record(
        builder: BuilderKey,
        hash_part: HashPart,
        claim: Claim,
        attested_at: Option<WallMs>,
        bytes: u32,
    ) -> Self {
        Self { builder, hash_part, claim, attested_at, bytes }
    }

    /// Whether it is an attestation and not a bare Nix signature.
    pub fn is_dated(&self) -> bool {
        self.attested_at.is_some()
    }

    /// The bare Nix signature that is part of an attestation.
    pub fn undated(&self) -> Self {
        Self { attested_at: None, ..self.clone() }
    }

    /// The builder that made the statement.
    pub fn builder(&self) -> BuilderKey {
        self.builder
    }

    /// The hash part of the path that it is about.
    pub fn hash_part(&self) -> HashPart {
        self.hash_part
    }

    /// What it says of the path.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }
}
