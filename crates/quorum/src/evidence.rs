//! A verified statement of one builder.

use narmesh_protocol::{Attestation, BuilderKey, HashPart, NarHash, NixPublicKey, NixSignature, Statement, StoreDir};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// A time of the wall clock of this machine: milliseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct WallMs(pub u64);

/// SHA-256 of a whole Nix fingerprint: path, NarHash, NarSize and References. What agreement is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FingerprintDigest(pub [u8; 32]);

/// Which name a path has: the first 8 bytes of its SHA-256, little-endian. A name is part of the fingerprint; two under one hash part
/// are told apart by this.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NameDigest(pub u64);

/// What of a statement is kept in memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Facts {
    /// Decides whether two statements are the same.
    pub fingerprint: FingerprintDigest,
    /// Shown to people.
    pub nar_hash: NarHash,
    /// Shown to people.
    pub nar_size: u64,
    /// Of the path: what is said of another name under the same hash part is said of another path.
    pub name: NameDigest,
}

/// A statement whose signatures were verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    pub(crate) builder: BuilderKey,
    pub(crate) hash_part: HashPart,
    pub(crate) facts: Facts,
    /// `None` for a bare Nix signature.
    pub(crate) attested_at: Option<WallMs>,
    pub(crate) bytes: u32,
}

impl FingerprintDigest {
    /// Of what a statement's fingerprint is in this store directory.
    pub fn of(store_dir: &StoreDir, statement: &Statement) -> Self {
        Self(Sha256::digest(statement.fingerprint(store_dir).as_bytes()).into())
    }
}

impl NameDigest {
    /// Of a name, without the hash part.
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

impl Facts {
    /// Of a statement.
    pub fn of(store_dir: &StoreDir, statement: &Statement) -> Self {
        Self {
            fingerprint: FingerprintDigest::of(store_dir, statement),
            nar_hash: statement.nar_hash,
            nar_size: statement.nar_size,
            name: NameDigest::of(statement.path.name()),
        }
    }
}

impl Evidence {
    /// An attestation, if `key` made both of its signatures. `bytes` is what it takes on disk.
    pub fn attestation(
        store_dir: &StoreDir,
        attestation: &Attestation,
        key: &NixPublicKey,
        bytes: u32,
    ) -> Option<Self> {
        attestation.verify(store_dir, key).then(|| Self {
            builder: attestation.builder,
            hash_part: attestation.statement.path.hash_part(),
            facts: Facts::of(store_dir, &attestation.statement),
            attested_at: Some(WallMs(attestation.attested_at_ms)),
            bytes,
        })
    }

    /// A bare Nix signature, if `key` made it. It counts only for builders of which the operator says that they sign nothing
    /// but their own builds.
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
            facts: Facts::of(store_dir, statement),
            attested_at: None,
            bytes,
        })
    }

    /// What this node verified earlier and reads back from its own database. `attested_at` is `None` for a bare signature.
    pub fn recorded(
        builder: BuilderKey,
        hash_part: HashPart,
        facts: Facts,
        attested_at: Option<WallMs>,
        bytes: u32,
    ) -> Self {
        Self { builder, hash_part, facts, attested_at, bytes }
    }

    /// Whether it is an attestation, and no bare signature.
    pub fn is_dated(&self) -> bool {
        self.attested_at.is_some()
    }

    /// The bare signature that is part of an attestation.
    pub fn undated(&self) -> Self {
        Self { attested_at: None, ..self.clone() }
    }

    /// Whose it is.
    pub fn builder(&self) -> BuilderKey {
        self.builder
    }

    /// Of which path.
    pub fn hash_part(&self) -> HashPart {
        self.hash_part
    }

    /// What it says.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }
}
