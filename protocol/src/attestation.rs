//! Attestations: what a builder signs about a path that it built itself.

use crate::codec::{self, CodecError};
use crate::{Fingerprint, NarHash, NarInfo, NixPublicKey, NixSecretKey, StoreDir, StorePath};
use data_encoding::BASE64;
use std::fmt;

/// Prefix of the bytes under the second signature. Neither a Nix fingerprint (`1;…`) nor an announcement begins with it.
const SIGNING_DOMAIN: &str = "narmesh-attestation-1;";

/// The 32 bytes of a builder's public Ed25519 key. They identify a builder; the name that somebody gave the key never does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub struct BuilderKey(pub [u8; 32]);

/// What a builder signs: the parts of one Nix fingerprint.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Statement {
    /// The store path that was built.
    pub path: StorePath,
    /// SHA-256 of its NAR.
    pub nar_hash: NarHash,
    /// Size of its NAR in bytes, at least 1.
    pub nar_size: u64,
    /// The path's References, sorted and unique.
    pub references: Vec<StorePath>,
}

/// A statement with its date and its builder's two signatures.
///
/// The first signature covers Nix's own fingerprint, so that any Nix tool can check it. The second covers
/// `narmesh-attestation-1;<fingerprint>;<milliseconds since 1970>`, because a bare Nix signature has no date, and other
/// tools put one on paths that they did not build. A builder makes both only for paths that it built itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attestation {
    /// The builder's public key, under which both signatures must verify.
    pub builder: BuilderKey,
    /// What the builder says about the path.
    pub statement: Statement,
    /// Date of the attestation by the builder's own clock, milliseconds since 1970. No decision depends on it.
    pub attested_at_ms: u64,
    /// Signature over the fingerprint, as Nix makes it.
    pub nix_signature: [u8; 64],
    /// Signature over the domain prefix, the fingerprint and the date.
    pub dated_signature: [u8; 64],
}

/// Why bytes are not a valid attestation.
#[derive(Debug, thiserror::Error)]
pub enum AttestationError {
    /// The bytes do not decode, or there are too many.
    #[error("attestation")]
    Codec(#[from] CodecError),
    /// The path or a reference is not a valid store path.
    #[error("attestation: the path, or a reference, is not a store path")]
    Path,
    /// The references are not in ascending order without repetition, or not separated by single spaces.
    #[error("attestation: references are not sorted and unique, separated by single spaces")]
    ReferenceOrder,
    /// The date is after the year 292 million, which nothing that stores dates can hold.
    #[error("attestation: attested_at_ms is {attested_at_ms}; accepted: at most {max}", max = Attestation::ATTESTED_AT_MS_MAX)]
    Date {
        /// The date found, milliseconds since 1970.
        attested_at_ms: u64,
    },
    /// The NarSize is 0.
    #[error("attestation: NarSize is 0")]
    NarSize,
}

/// An attestation as it is encoded; see `docs/protocol.md`.
#[derive(bincode::Encode, bincode::Decode)]
struct Wire {
    builder: BuilderKey,
    path: String,
    nar_hash: NarHash,
    nar_size: u64,
    references: String,
    attested_at_ms: u64,
    nix_signature: [u8; 64],
    dated_signature: [u8; 64],
}

impl Statement {
    /// The statement that a narinfo makes about its path.
    pub fn of(narinfo: &NarInfo) -> Self {
        Self {
            path: narinfo.path.clone(),
            nar_hash: narinfo.nar_hash,
            nar_size: narinfo.nar_size,
            references: narinfo.references.clone(),
        }
    }

    /// The fingerprint of the statement: the bytes that Nix signs.
    pub fn fingerprint(&self, store_dir: &StoreDir) -> Fingerprint {
        Fingerprint::new(store_dir, &self.path, &self.nar_hash, self.nar_size, &self.references)
    }
}

impl Attestation {
    /// Largest encoding, bytes: room for some 5,000 references. A path with more cannot be attested.
    pub const BYTES_MAX: usize = 256 << 10;

    /// Latest date accepted, milliseconds since 1970.
    pub const ATTESTED_AT_MS_MAX: u64 = i64::MAX.cast_unsigned();

    /// Signs a statement. The caller must know that the owner of `key` built the path.
    /// References are sorted and made unique.
    pub fn sign(key: &NixSecretKey, store_dir: &StoreDir, mut statement: Statement, attested_at_ms: u64) -> Self {
        statement.references.sort_unstable();
        statement.references.dedup();
        let fingerprint = statement.fingerprint(store_dir);
        Self {
            builder: BuilderKey(key.public().bytes()),
            nix_signature: key.sign_bytes(fingerprint.as_bytes()),
            dated_signature: key.sign_bytes(&dated_bytes(&fingerprint, attested_at_ms)),
            statement,
            attested_at_ms,
        }
    }

    /// Whether `key` is the builder's key and both signatures verify under it (each with `verify_strict`).
    pub fn verify(&self, store_dir: &StoreDir, key: &NixPublicKey) -> bool {
        let fingerprint = self.statement.fingerprint(store_dir);
        self.builder.0 == key.bytes()
            && key.verify_bytes(fingerprint.as_bytes(), &self.nix_signature)
            && key.verify_bytes(&dated_bytes(&fingerprint, self.attested_at_ms), &self.dated_signature)
    }

    /// Encodes; an error when it has more than [`Self::BYTES_MAX`] bytes.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let references = self.statement.references.iter().map(StorePath::to_string).collect::<Vec<_>>().join(" ");
        codec::encode::<{ Self::BYTES_MAX }>(&Wire {
            builder: self.builder,
            path: self.statement.path.to_string(),
            nar_hash: self.statement.nar_hash,
            nar_size: self.statement.nar_size,
            references,
            attested_at_ms: self.attested_at_ms,
            nix_signature: self.nix_signature,
            dated_signature: self.dated_signature,
        })
    }

    /// Decodes exactly these bytes. It does not verify the signatures.
    pub fn decode(bytes: &[u8]) -> Result<Self, AttestationError> {
        let wire = codec::decode::<Wire, { Self::BYTES_MAX }>(bytes)?;
        let parse = |text: &str| StorePath::parse(text).map_err(|_| AttestationError::Path);
        if wire.nar_size == 0 {
            return Err(AttestationError::NarSize);
        }
        if wire.attested_at_ms > Self::ATTESTED_AT_MS_MAX {
            return Err(AttestationError::Date { attested_at_ms: wire.attested_at_ms });
        }
        let references = match wire.references.as_str() {
            "" => Vec::new(),
            // Two blanks side by side would be a second encoding of the same list.
            list if list.split(' ').any(str::is_empty) => return Err(AttestationError::ReferenceOrder),
            list => list.split(' ').map(parse).collect::<Result<Vec<_>, _>>()?,
        };
        // Only one order is accepted, so that an attestation has only one encoding.
        if !references.is_sorted_by(|first, second| first < second) {
            return Err(AttestationError::ReferenceOrder);
        }
        Ok(Self {
            builder: wire.builder,
            statement: Statement {
                path: parse(&wire.path)?,
                nar_hash: wire.nar_hash,
                nar_size: wire.nar_size,
                references,
            },
            attested_at_ms: wire.attested_at_ms,
            nix_signature: wire.nix_signature,
            dated_signature: wire.dated_signature,
        })
    }
}

impl fmt::Display for BuilderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

impl fmt::Debug for BuilderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn dated_bytes(fingerprint: &Fingerprint, attested_at_ms: u64) -> Vec<u8> {
    let time = attested_at_ms.to_string();
    [SIGNING_DOMAIN.as_bytes(), fingerprint.as_bytes(), b";", time.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NixSignature;

    fn store_dir() -> StoreDir {
        StoreDir::parse("/nix/store").unwrap()
    }

    fn attestation(references: &[&str]) -> (NixSecretKey, Attestation) {
        let key = NixSecretKey::from_seed("builder-1", &[3; 32]).unwrap();
        let path = |name: &str| StorePath::parse(&format!("7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-{name}")).unwrap();
        let references = references.iter().map(|name| path(name)).collect();
        let statement = Statement { path: path("x"), nar_hash: NarHash([1; 32]), nar_size: 112, references };
        let attestation = Attestation::sign(&key, &store_dir(), statement, 1_790_000_000_000);
        (key, attestation)
    }

    #[test]
    fn both_signatures_must_verify_under_the_builder_key() {
        let (key, good) = attestation(&["x", "b", "a"]);
        let key = key.public();
        assert!(good.verify(&store_dir(), &key));
        let verify = |change: &dyn Fn(&mut Attestation)| {
            let mut changed = good.clone();
            change(&mut changed);
            changed.verify(&store_dir(), &key)
        };
        assert!(!verify(&|changed| changed.nix_signature[9] ^= 1));
        assert!(!verify(&|changed| changed.dated_signature[9] ^= 1));
        assert!(!verify(&|changed| changed.dated_signature = changed.nix_signature), "a bare signature is no date");
        assert!(!verify(&|changed| changed.attested_at_ms += 1), "the time is covered");
        assert!(!verify(&|changed| changed.statement.nar_size += 1));
        assert!(!verify(&|changed| changed.statement.nar_hash.0[0] ^= 1));
        assert!(!verify(&|changed| changed.statement.references.truncate(1)));
        assert!(!verify(&|changed| changed.builder.0[0] ^= 1), "the key is named");
        assert!(!good.verify(&StoreDir::parse("/gnu/store").unwrap(), &key));
        let other = NixSecretKey::from_seed("builder-1", &[4; 32]).unwrap();
        assert!(!good.verify(&store_dir(), &other.public()));
    }

    #[test]
    fn a_date_that_cannot_be_stored_is_refused() {
        for (date, is_accepted) in [(Attestation::ATTESTED_AT_MS_MAX, true), (1 << 63, false), (u64::MAX, false)] {
            let (key, signed) = attestation(&[]);
            let dated = Attestation::sign(&key, &store_dir(), signed.statement, date);
            assert_eq!(Attestation::decode(&dated.encode().unwrap()).is_ok(), is_accepted, "{date}");
            let line = crate::attestation_file::line(&store_dir(), &key.public(), &dated);
            assert_eq!(
                crate::attestation_file::parse_line(&store_dir(), line.trim_end()).is_ok(),
                is_accepted,
                "{line}"
            );
        }
    }

    #[test]
    fn first_signature_verifies_as_a_nix_signature() {
        let (key, attestation) = attestation(&["a"]);
        let signature = NixSignature { key_name: "builder-1".to_owned(), bytes: attestation.nix_signature };
        assert!(key.public().verify(&attestation.statement.fingerprint(&store_dir()), &signature));
    }

    #[test]
    fn attestation_has_one_encoding() {
        for references in [&[][..], &["x"], &["b", "a", "b"]] {
            let (_, attestation) = attestation(references);
            let bytes = attestation.encode().unwrap();
            assert_eq!(Attestation::decode(&bytes).unwrap(), attestation);
            assert!(bytes.len() < 400, "{}", bytes.len());
        }
        let wire = |path: &str, references: &str, nar_size| {
            let (_, signed) = attestation(&[]);
            let wire = Wire {
                builder: signed.builder,
                path: path.to_owned(),
                nar_hash: signed.statement.nar_hash,
                nar_size,
                references: references.to_owned(),
                attested_at_ms: 0,
                nix_signature: [0; 64],
                dated_signature: [0; 64],
            };
            Attestation::decode(&codec::encode::<{ Attestation::BYTES_MAX }>(&wire).unwrap())
        };
        let [a, b] = ["a", "b"].map(|name| format!("7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-{name}"));
        assert!(wire(&a, &format!("{a} {b}"), 1).is_ok());
        for list in [format!("{b} {a}"), format!("{a} {a}"), format!("{a}  {b}"), format!(" {a}"), " ".to_owned()] {
            assert!(matches!(wire(&a, &list, 1), Err(AttestationError::ReferenceOrder)), "{list:?}");
        }
        assert!(matches!(wire("x", "", 1), Err(AttestationError::Path)));
        assert!(matches!(wire(&a, &format!("{a}\n{b}"), 1), Err(AttestationError::Path)));
        assert!(matches!(wire(&a, "", 0), Err(AttestationError::NarSize)));
    }
}
