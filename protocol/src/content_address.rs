//! Content addresses: `text:sha256:…` and `fixed:[r:]…`.
use crate::{NarHash, StoreDir, StorePath};
use std::fmt;
/// A parsed `CA` field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ContentAddress {
    /// `text:sha256:<h>`.
    Text { /** SHA-256 of the contents. */ sha256: [u8; 32] },
    /// `fixed:<algo>:<h>` (flat) or `fixed:r:<algo>:<h>` (recursive, over the NAR). `git:` is refused.
    Fixed { /** Over the NAR instead of the flat file. */ recursive: bool, /** md5, sha1, sha256 or sha512. */ algorithm: HashAlgorithm, /** The digest. */ digest: Vec<u8> },
}
/// Hash algorithms that Nix knows in content addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum HashAlgorithm { Md5, Sha1, Sha256, Sha512 }
/// Why a text is no content address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentAddressError {
    /// Placeholder until filled.
    #[error("not a content address")]
    Invalid,
}
impl ContentAddress {
    /// Parses the `CA` field.
    pub fn parse(text: &str) -> Result<Self, ContentAddressError> { let _ = text; todo!() }
    /// The store path that this address, name and references give; `None` when Nix could not make one (references on a flat file…).
    pub fn store_path(&self, store_dir: &StoreDir, name: &str, references: &[StorePath], self_reference: bool) -> Option<StorePath> { let _ = (store_dir, name, references, self_reference); todo!() }
    /// The NarHash that must follow, when it does: recursive SHA-256 without self-reference.
    pub fn implied_nar_hash(&self, self_reference: bool) -> Option<NarHash> { let _ = self_reference; todo!() }
}
impl fmt::Display for ContentAddress { fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result { todo!() } }
