//! A push parser that accepts exactly the NARs Nix would write, and hashes them on the way.
use crate::NarHash;
/// Why the bytes are no NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarError {
    /// Placeholder until filled.
    #[error("not a NAR")]
    Invalid,
}
/// What a complete, well-formed archive was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedNar {
    /// SHA-256 of all bytes fed.
    pub nar_hash: NarHash,
    /// How many they were.
    pub nar_size: u64,
}
/// Feed it the bytes of a NAR in any pieces; memory is bounded by depth and name length, never by what the bytes claim.
#[derive(Debug, Default)]
pub struct NarVerifier {}
impl NarVerifier {
    /// A verifier at the first byte.
    pub fn new() -> Self { Self {} }
    /// Takes the next bytes; an error is final.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), NarError> { let _ = bytes; todo!() }
    /// The bytes end here: an error unless the archive is complete.
    pub fn finish(self) -> Result<VerifiedNar, NarError> { todo!() }
}
