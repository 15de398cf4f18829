//! The SHA-256 of a NAR.
use std::fmt;
/// SHA-256 of a whole uncompressed NAR.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct NarHash(pub [u8; 32]);
/// Why a text is no NarHash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarHashError {
    /// Placeholder until filled.
    #[error("not a NarHash")]
    Invalid,
}
impl NarHash {
    /// Parses `sha256:` + nix32, base16 or base64, or the SRI form.
    pub fn parse(text: &str) -> Result<Self, NarHashError> { let _ = text; todo!() }
    /// The bare 52 nix32 characters.
    pub fn nix32(&self) -> String { crate::nix32::encode(&self.0) }
}
impl fmt::Display for NarHash { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "sha256:{}", self.nix32()) } }
impl fmt::Debug for NarHash { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) } }
