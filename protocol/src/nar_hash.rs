//! The SHA-256 of a NAR.

use crate::{digest_text, nix32};
use std::fmt;

/// SHA-256 of a whole uncompressed NAR. It prints as `sha256:<nix32>`, the form that signatures cover.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct NarHash(pub [u8; 32]);

/// Why a text is not a valid NarHash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarHashError {
    /// The text begins with neither `sha256:` nor `sha256-`.
    #[error("NarHash: expected `sha256:` or `sha256-` in front")]
    Algorithm,
    /// The part after the prefix is not 32 bytes in an encoding that the prefix allows.
    #[error("NarHash: expected 32 bytes as nix32 (52 characters), base-16 (64) or base-64 (44)")]
    Digest,
}

impl NarHash {
    /// Parses `sha256:` + nix32, base16 or base64, or the SRI form `sha256-` + base64.
    pub fn parse(text: &str) -> Result<Self, NarHashError> {
        let digest = if let Some(digest) = text.strip_prefix("sha256:") {
            digest_text::parse(digest)
        } else if let Some(digest) = text.strip_prefix("sha256-") {
            digest_text::parse_base64(digest)
        } else {
            return Err(NarHashError::Algorithm);
        };
        digest.map(Self).ok_or(NarHashError::Digest)
    }

    /// The digest as 52 nix32 characters, without a prefix.
    pub fn nix32(&self) -> String {
        nix32::encode(&self.0)
    }
}

impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.nix32())
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_algorithm_and_wrong_digest_give_different_errors() {
        let nix32 = NarHash([7; 32]).nix32();
        assert_eq!(NarHash::parse(&nix32), Err(NarHashError::Algorithm));
        assert_eq!(NarHash::parse(&format!("sha512:{nix32}")), Err(NarHashError::Algorithm));
        assert_eq!(NarHash::parse(&format!("SHA256:{nix32}")), Err(NarHashError::Algorithm));
        assert_eq!(NarHash::parse(&format!("sha256-{nix32}")), Err(NarHashError::Digest));
        assert_eq!(NarHash::parse(&format!("sha256:{nix32} ")), Err(NarHashError::Digest));
        assert_eq!(NarHash::parse("sha256:"), Err(NarHashError::Digest));
    }
}
