//! The bytes that a Nix signature covers.

use crate::{NarHash, StoreDir, StorePath};

/// `1;<path>;<NarHash>;<NarSize>;<references>`: the bytes that a Nix signature of a path covers. Those of a
/// [realisation](crate::Realisation::fingerprint) are its JSON.
///
/// Paths are full paths, the NarHash is `sha256:<nix32>`, the NarSize is in decimal bytes, and the references are
/// sorted bytewise by base name and joined by `,` (`libstore/path-info.cc`). Deriver, content address and
/// transport fields are not covered.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Builds the fingerprint; references are sorted and made unique.
    pub fn new(
        store_dir: &StoreDir,
        path: &StorePath,
        nar_hash: &NarHash,
        nar_size: u64,
        references: &[StorePath],
    ) -> Self {
        let mut sorted = references.iter().collect::<Vec<_>>();
        sorted.sort_unstable();
        sorted.dedup();
        let references = sorted.into_iter().map(|path| store_dir.display(path)).collect::<Vec<_>>().join(",");
        Self(format!("1;{};{nar_hash};{nar_size};{references}", store_dir.display(path)))
    }

    /// The bytes that a signature of a realisation covers: they begin with a brace, so none is that of a path.
    pub(crate) fn of_realisation(json: String) -> Self {
        Self(json)
    }

    /// The bytes that a signature of a deriver covers: they begin as no fingerprint of Nix does.
    pub(crate) fn of_deriver(store_dir: &StoreDir, path: &StorePath, deriver: &StorePath) -> Self {
        Self(format!("narmesh-deriver-1;{};{}", store_dir.display(path), store_dir.display(deriver)))
    }

    /// The bytes to sign or to verify.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}
