//! The URL of a NAR: it names hash part, NarHash and NarSize, so that it needs no state.

use crate::{HashPart, NarHash, nix32};
use std::fmt;

/// `nar/<hash part>-<NarHash nix32>-<NarSize>.nar`, relative to the cache root.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NarUrl {
    /// Whose NAR.
    pub hash_part: HashPart,
    /// Which NAR (two holders may differ).
    pub nar_hash: NarHash,
    /// Its bytes, over 0.
    pub nar_size: u64,
}

/// The text is not of that form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NAR URL: expected nar/<32 nix32>-<52 nix32>-<decimal bytes>.nar")]
pub struct NarUrlError;

impl NarUrl {
    /// Parses the file name after `nar/`; the one spelling that [`Display`](fmt::Display) writes.
    pub fn parse_file_name(text: &str) -> Result<Self, NarUrlError> {
        Self::parse_parts(text).ok_or(NarUrlError)
    }

    fn parse_parts(text: &str) -> Option<Self> {
        let mut parts = text.strip_suffix(".nar")?.splitn(3, '-');
        let hash_part = HashPart::parse(parts.next()?).ok()?;
        let nar_hash = NarHash(nix32::decode(parts.next()?)?);
        let nar_size = parse_decimal(parts.next()?)?;
        (nar_size > 0).then_some(Self { hash_part, nar_hash, nar_size })
    }
}

/// A decimal `u64` in its one spelling: digits only, no leading zero.
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
        write!(f, "nar/{}-{}-{}.nar", self.hash_part, self.nar_hash.nix32(), self.nar_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_its_own_spelling_only() {
        let url = NarUrl { hash_part: HashPart([1; 20]), nar_hash: NarHash([2; 32]), nar_size: u64::MAX };
        let text = url.to_string();
        let name = text.strip_prefix("nar/").unwrap();
        assert_eq!(NarUrl::parse_file_name(name), Ok(url));
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
            text.clone(),
            String::new(),
        ] {
            assert_eq!(NarUrl::parse_file_name(&bad), Err(NarUrlError), "{bad}");
        }
    }
}
