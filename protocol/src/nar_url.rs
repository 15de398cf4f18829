//! The URL of a NAR. It contains hash part, NarHash and NarSize, so that serving it needs no state.

use crate::{HashPart, NarHash, nix32};
use std::fmt;

/// A URL `nar/<hash part>-<NarHash nix32>-<NarSize>[-<fingerprint nix32>].nar`, relative to the root of the binary cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NarUrl {
    /// Hash part of the store path.
    pub hash_part: HashPart,
    /// Which NAR of that path: two holders may have different ones.
    pub nar_hash: NarHash,
    /// Size of the NAR in bytes, at least 1.
    pub nar_size: u64,
    /// SHA-256 of the fingerprint of the narinfo that contains this URL. It is there when that narinfo must be judged again
    /// before the NAR is served: two narinfos with different References can have the same NAR.
    pub fingerprint: Option<[u8; 32]>,
}

/// The text does not have the form of a [`NarUrl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NAR URL: expected nar/<32 nix32>-<52 nix32>-<decimal bytes>[-<52 nix32>].nar")]
pub struct NarUrlError;

impl NarUrl {
    /// A URL without a fingerprint.
    #[must_use]
    pub const fn new(hash_part: HashPart, nar_hash: NarHash, nar_size: u64) -> Self {
        Self { hash_part, nar_hash, nar_size, fingerprint: None }
    }

    /// The same URL without its fingerprint: it identifies the NAR, whichever narinfo led to it.
    #[must_use]
    pub const fn nar(self) -> Self {
        Self { fingerprint: None, ..self }
    }

    /// Parses the file name after `nar/`. Only the spelling that [`Display`](fmt::Display) writes is accepted.
    pub fn parse_file_name(text: &str) -> Result<Self, NarUrlError> {
        Self::parse_parts(text).ok_or(NarUrlError)
    }

    fn parse_parts(text: &str) -> Option<Self> {
        let mut parts = text.strip_suffix(".nar")?.split('-');
        let hash_part = HashPart::parse(parts.next()?).ok()?;
        let nar_hash = NarHash(nix32::decode(parts.next()?)?);
        let nar_size = parse_decimal(parts.next()?)?;
        let fingerprint = match parts.next() {
            Some(text) => Some(nix32::decode(text)?),
            None => None,
        };
        // Nothing after the last part, so that each NAR has one URL.
        (nar_size > 0 && parts.next().is_none()).then_some(Self { hash_part, nar_hash, nar_size, fingerprint })
    }
}

/// Parses a decimal `u64` in its only accepted spelling: digits without a leading zero.
pub(crate) fn parse_decimal(text: &str) -> Option<u64> {
    let digits_only = text.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = text.len() > 1 && text.starts_with('0');
    if !digits_only || leading_zero {
        return None;
    }
    text.parse().ok()
}

impl fmt::Display for NarUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nar/{}-{}-{}", self.hash_part, self.nar_hash.nix32(), self.nar_size)?;
        if let Some(fingerprint) = &self.fingerprint {
            write!(f, "-{}", nix32::encode(fingerprint))?;
        }
        f.write_str(".nar")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_its_own_spelling_only() {
        let url = NarUrl::new(HashPart([1; 20]), NarHash([2; 32]), u64::MAX);
        let text = url.to_string();
        for url in [url, NarUrl { fingerprint: Some([3; 32]), ..url }] {
            let text = url.to_string();
            assert_eq!(NarUrl::parse_file_name(text.strip_prefix("nar/").unwrap()), Ok(url));
        }
        let (h, n) = (url.hash_part, url.nar_hash.nix32());
        for bad in [
            format!("{h}-{n}-0.nar"),
            format!("{h}-{n}-01.nar"),
            format!("{h}-{n}-+1.nar"),
            format!("{h}-{n}--1.nar"),
            format!("{h}-{n}-.nar"),
            format!("{h}-{n}-1"),
            format!("{h}-{n}-1.nar.xz"),
            format!("{h}-{n}-18446744073709551616.nar"),
            format!("{n}-{h}-1.nar"),
            format!("{h}-{n}.nar"),
            format!("{h}-{n}-1-.nar"),
            format!("{h}-{n}-1-{h}.nar"),
            format!("{h}-{n}-1-{n}-{n}.nar"),
            text.clone(),
            String::new(),
        ] {
            assert_eq!(NarUrl::parse_file_name(&bad), Err(NarUrlError), "{bad}");
        }
    }
}
