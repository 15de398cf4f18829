//! The narinfo text: parsed strictly, printed canonically.
use crate::{ContentAddress, Fingerprint, NarHash, NixSignature, StoreDir, StorePath};
/// One path's metadata. Transport fields (URL, Compression, FileHash, FileSize) are not kept: we make our own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NarInfo {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of the NAR.
    pub nar_hash: NarHash,
    /// Bytes of the NAR, over 0.
    pub nar_size: u64,
    /// Sorted and unique.
    pub references: Vec<StorePath>,
    /// The derivation, if known.
    pub deriver: Option<StorePath>,
    /// Signatures, unverified.
    pub signatures: Vec<NixSignature>,
    /// Content address.
    pub content_address: Option<ContentAddress>,
}
/// Why a narinfo is refused; names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// Placeholder until filled.
    #[error("not a narinfo")]
    Invalid,
}
impl NarInfo {
    /// Largest text parsed, bytes.
    pub const BYTES_MAX: usize = 1 << 20;
    /// Parses strictly.
    pub fn parse(store_dir: &StoreDir, text: &[u8]) -> Result<Self, NarInfoError> { let _ = (store_dir, text); todo!() }
    /// Prints with `URL: <url>`, Compression none, FileHash = NarHash and FileSize = NarSize, in Nix's canonical order.
    pub fn render(&self, store_dir: &StoreDir, url: &str) -> String { let _ = (store_dir, url); todo!() }
    /// What its signatures must cover.
    pub fn fingerprint(&self, store_dir: &StoreDir) -> Fingerprint { Fingerprint::new(store_dir, &self.path, &self.nar_hash, self.nar_size, &self.references) }
}
