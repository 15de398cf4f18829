//! What a Nix signature is made over.
use crate::{NarHash, StoreDir, StorePath};
/// `1;<path>;<NarHash>;<NarSize>;<references>`: the bytes that a Nix signature covers.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Fingerprint(String);
impl Fingerprint {
    /// Builds it; references are sorted and made unique.
    pub fn new(store_dir: &StoreDir, path: &StorePath, nar_hash: &NarHash, nar_size: u64, references: &[StorePath]) -> Self { let _ = (store_dir, path, nar_hash, nar_size, references); todo!() }
    /// The bytes to sign.
    pub fn as_bytes(&self) -> &[u8] { self.0.as_bytes() }
}
