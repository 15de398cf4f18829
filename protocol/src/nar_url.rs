//! The URL of a NAR: it names hash part, NarHash and NarSize, so that it needs no state.
use crate::{HashPart, NarHash};
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
    /// Parses the file name after `nar/`.
    pub fn parse_file_name(text: &str) -> Result<Self, NarUrlError> { let _ = text; todo!() }
}
impl fmt::Display for NarUrl { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "nar/{}-{}-{}.nar", self.hash_part, self.nar_hash.nix32(), self.nar_size) } }
