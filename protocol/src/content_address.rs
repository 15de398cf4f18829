//! Content addresses: `text:sha256:…` and `fixed:[r:]…`, and the store paths that follow from them.

use crate::{HashPart, NarHash, StoreDir, StorePath, digest_text, nix32};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use std::fmt;

/// A parsed `CA` field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ContentAddress {
    /// `text:sha256:<h>`.
    Text {
        /// SHA-256 of the contents.
        sha256: [u8; 32],
    },
    /// `fixed:<algo>:<h>` (flat) or `fixed:r:<algo>:<h>` (recursive: over the NAR).
    Fixed {
        /// Whether the digest is over the NAR instead of the flat file.
        recursive: bool,
        /// md5, sha1, sha256 or sha512.
        algorithm: HashAlgorithm,
        /// The digest, of the algorithm's length.
        digest: Vec<u8>,
    },
    /// An address with a method or an algorithm that this version does not know, such as `fixed:git:sha1:<h>`. It gives no
    /// store path and may not even be well-formed. A path that has one needs a signature, and the address is not handed on.
    Other(
        /// The text as it was received.
        Box<str>,
    ),
}

/// The hash algorithms that every Nix knows in content addresses. (BLAKE3 is experimental, so it is
/// [`ContentAddress::Other`].)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum HashAlgorithm {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

/// Why a text is not a valid content address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentAddressError {
    /// A `:` that the grammar demands is missing.
    #[error("content address: expected `text:sha256:<digest>` or `fixed:[r:]<algorithm>:<digest>`")]
    Malformed,
    /// The digest is not one of the algorithm in any of Nix's encodings.
    #[error("content address: expected a digest of {bytes} bytes")]
    Digest {
        /// Size of the algorithm's digests, bytes.
        bytes: usize,
    },
}

impl HashAlgorithm {
    /// The name that Nix writes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Size of its digests, bytes.
    pub fn digest_bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512].into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn parse_digest(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Self::Md5 => digest_text::parse::<16>(text).map(Vec::from),
            Self::Sha1 => digest_text::parse::<20>(text).map(Vec::from),
            Self::Sha256 => digest_text::parse::<32>(text).map(Vec::from),
            Self::Sha512 => digest_text::parse::<64>(text).map(Vec::from),
        }
    }
}

impl ContentAddress {
    /// Parses a content address that stands in a database of Nix, which wrote it: one that this version cannot parse is
    /// [`Self::Other`].
    pub fn parse_or_other(text: &str) -> Self {
        Self::parse(text).unwrap_or_else(|_| Self::Other(text.into()))
    }

    /// Parses the `CA` field. A form that a newer Nix may have added becomes [`Self::Other`]. A malformed address of a
    /// known form is an error.
    pub fn parse(text: &str) -> Result<Self, ContentAddressError> {
        let (method, rest) = text.split_once(':').ok_or(ContentAddressError::Malformed)?;
        let other = || Ok(Self::Other(text.into()));
        match method {
            "text" => {
                // Nix makes texts with SHA-256 alone; another algorithm would be of a later version.
                let Some(digest) = rest.strip_prefix("sha256:") else { return other() };
                let sha256 = digest_text::parse(digest).ok_or(ContentAddressError::Digest { bytes: 32 })?;
                Ok(Self::Text { sha256 })
            }
            "fixed" => {
                let (recursive, rest) = rest.strip_prefix("r:").map_or((false, rest), |rest| (true, rest));
                let (algorithm, digest) = rest.split_once(':').ok_or(ContentAddressError::Malformed)?;
                let Some(algorithm) = HashAlgorithm::parse(algorithm) else { return other() };
                let bytes = algorithm.digest_bytes();
                let digest = algorithm.parse_digest(digest).ok_or(ContentAddressError::Digest { bytes })?;
                Ok(Self::Fixed { recursive, algorithm, digest })
            }
            _ => other(),
        }
    }

    /// The store path that follows from this address, the name and the references. `None` when Nix could not make one: when
    /// an address other than a text or a recursive SHA-256 has references, a text refers to itself, or the name is invalid.
    ///
    /// `references` holds the references to *other* paths, in any order. Follows `libstore/store-api.cc`
    /// (`makeFixedOutputPath`, `makeTextPath`).
    pub fn store_path(
        &self,
        store_dir: &StoreDir,
        name: &str,
        references: &[StorePath],
        self_reference: bool,
    ) -> Option<StorePath> {
        let hash_part = match self {
            Self::Text { sha256 } => {
                let kind = typed("text", store_dir, references, false);
                // A text cannot know its own path, which follows from what it says.
                (!self_reference).then(|| make_hash_part(&kind, sha256, store_dir, name))?
            }
            Self::Fixed { recursive: true, algorithm: HashAlgorithm::Sha256, digest } => {
                let kind = typed("source", store_dir, references, self_reference);
                make_hash_part(&kind, digest, store_dir, name)
            }
            Self::Fixed { recursive, algorithm, digest } => {
                // Nix has no way to put references into such an address.
                if self_reference || !references.is_empty() {
                    return None;
                }
                let method = if *recursive { "r:" } else { "" };
                let inner = format!("fixed:out:{method}{}:{}:", algorithm.name(), HEXLOWER.encode(digest));
                make_hash_part("output:out", &Sha256::digest(inner), store_dir, name)
            }
            Self::Other(_) => return None,
        };
        StorePath::new(hash_part, name).ok()
    }

    /// The NarHash that follows from the address, if one does: for a recursive SHA-256 without self-reference.
    pub fn implied_nar_hash(&self, self_reference: bool) -> Option<NarHash> {
        match self {
            Self::Fixed { recursive: true, algorithm: HashAlgorithm::Sha256, digest } if !self_reference => {
                digest.as_slice().try_into().ok().map(NarHash)
            }
            Self::Fixed { .. } | Self::Text { .. } | Self::Other(_) => None,
        }
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { sha256 } => write!(f, "text:sha256:{}", nix32::encode(sha256)),
            Self::Fixed { recursive, algorithm, digest } => {
                let method = if *recursive { "r:" } else { "" };
                write!(f, "fixed:{method}{}:{}", algorithm.name(), nix32::encode(digest))
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// Nix's `makeType`: the kind of path, then its sorted references, then `:self` for a self-reference.
fn typed(kind: &str, store_dir: &StoreDir, references: &[StorePath], self_reference: bool) -> String {
    let mut sorted = references.iter().collect::<Vec<_>>();
    sorted.sort_unstable();
    sorted.dedup();
    let mut text = kind.to_owned();
    for reference in sorted {
        text.push(':');
        text.push_str(&store_dir.display(reference));
    }
    if self_reference {
        text.push_str(":self");
    }
    text
}

/// Nix's `makeStorePath`: SHA-256 over type, digest, store directory and name, folded to 20 bytes as `compressHash` does.
fn make_hash_part(kind: &str, sha256: &[u8], store_dir: &StoreDir, name: &str) -> HashPart {
    let text = format!("{kind}:sha256:{}:{}:{name}", HEXLOWER.encode(sha256), store_dir.as_str());
    let mut folded = [0; 20];
    for chunk in Sha256::digest(text).chunks(20) {
        folded.iter_mut().zip(chunk).for_each(|(to, from)| *to ^= from);
    }
    HashPart(folded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_addresses_are_refused_with_the_reason() {
        let digest = nix32::encode(&[1; 32]);
        for (bad, error) in [
            ("", ContentAddressError::Malformed),
            ("fixed", ContentAddressError::Malformed),
            ("fixed:r:", ContentAddressError::Malformed),
            (&format!("fixed:sha1:{digest}"), ContentAddressError::Digest { bytes: 20 }),
            (&format!("fixed:r:sha512:{digest}"), ContentAddressError::Digest { bytes: 64 }),
            ("text:sha256:", ContentAddressError::Digest { bytes: 32 }),
            (&format!("text:sha256:{digest} "), ContentAddressError::Digest { bytes: 32 }),
        ] {
            assert_eq!(ContentAddress::parse(bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn unknown_address_proves_nothing() {
        let (dir, digest) = (StoreDir::parse("/nix/store").unwrap(), nix32::encode(&[1; 32]));
        for text in [
            &format!("fixed:git:sha1:{}", nix32::encode(&[1; 20])),
            &format!("fixed:blake3:{digest}"),
            &format!("fixed:r:blake3:{digest}"),
            &format!("text:sha512:{}", nix32::encode(&[1; 64])),
            &format!("text:r:sha256:{digest}"),
            &format!("source:sha256:{digest}"),
        ] {
            let address = ContentAddress::parse(text).unwrap();
            assert_eq!(address, ContentAddress::Other(text.as_str().into()));
            assert_eq!((address.store_path(&dir, "n", &[], false), address.implied_nar_hash(false)), (None, None));
            let mut verifier = address.verifier(None);
            verifier.feed(b"anything");
            assert!(!verifier.matches() && address.to_string() == *text);
        }
    }

    #[test]
    fn only_a_recursive_sha256_without_self_reference_implies_a_nar_hash() {
        let fixed = |recursive, algorithm: HashAlgorithm| ContentAddress::Fixed {
            recursive,
            algorithm,
            digest: vec![3; algorithm.digest_bytes()],
        };
        assert_eq!(fixed(true, HashAlgorithm::Sha256).implied_nar_hash(false), Some(NarHash([3; 32])));
        assert_eq!(fixed(true, HashAlgorithm::Sha256).implied_nar_hash(true), None);
        assert_eq!(fixed(false, HashAlgorithm::Sha256).implied_nar_hash(false), None);
        assert_eq!(fixed(true, HashAlgorithm::Sha512).implied_nar_hash(false), None);
        assert_eq!(ContentAddress::Text { sha256: [3; 32] }.implied_nar_hash(false), None);
    }

    #[test]
    fn address_that_nix_cannot_make_gives_no_path() {
        let dir = StoreDir::parse("/nix/store").unwrap();
        let other = StorePath::parse("7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x").unwrap();
        let flat = ContentAddress::Fixed { recursive: false, algorithm: HashAlgorithm::Sha256, digest: vec![0; 32] };
        let sha1 = ContentAddress::Fixed { recursive: true, algorithm: HashAlgorithm::Sha1, digest: vec![0; 20] };
        let text = ContentAddress::Text { sha256: [0; 32] };
        for fixed in [flat, sha1] {
            assert!(fixed.store_path(&dir, "n", &[], false).is_some());
            assert_eq!(fixed.store_path(&dir, "n", std::slice::from_ref(&other), false), None);
            assert_eq!(fixed.store_path(&dir, "n", &[], true), None);
            assert_eq!(fixed.store_path(&dir, "a/b", &[], false), None);
        }
        assert!(text.store_path(&dir, "n", &[other], false).is_some());
        assert_eq!(text.store_path(&dir, "n", &[], true), None);
    }
}
