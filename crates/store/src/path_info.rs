//! What the database knows of one valid path.

use narmesh_protocol::{ContentAddress, Fingerprint, NarHash, NarInfo, NixSignature, StoreDir, StorePath};

/// What the database knows of one valid path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of its NAR, as registered.
    pub nar_hash: NarHash,
    /// Bytes of its NAR, as registered; 0 in rows of very old Nix, which cannot be served.
    pub nar_size: u64,
    /// Runtime references, itself included if it refers to itself; sorted.
    pub references: Vec<StorePath>,
    /// The derivation that made it, when known; it need not be valid here.
    pub deriver: Option<StorePath>,
    /// Signatures as stored: neither trusted nor verified.
    pub signatures: Vec<NixSignature>,
    /// Content address, if it has one.
    pub content_address: Option<ContentAddress>,
    /// Built by this very store.
    pub ultimate: bool,
    /// When it was registered, seconds since 1970.
    pub registration_time_s: u64,
}

impl PathInfo {
    /// What a signature of this path covers.
    pub fn fingerprint(&self, store_dir: &StoreDir) -> Fingerprint {
        Fingerprint::new(store_dir, &self.path, &self.nar_hash, self.nar_size, &self.references)
    }

    /// The narinfo that carries `signatures` instead of the stored ones.
    pub fn narinfo(&self, signatures: Vec<NixSignature>) -> NarInfo {
        NarInfo {
            path: self.path.clone(),
            nar_hash: self.nar_hash,
            nar_size: self.nar_size,
            references: self.references.clone(),
            deriver: self.deriver.clone(),
            signatures,
            content_address: self.content_address.clone(),
        }
    }

    /// Whether the content address gives exactly this path, so that the path needs no signature.
    pub fn is_certified_by_content(&self, store_dir: &StoreDir) -> bool {
        // Most paths have none, and a narinfo is a copy of everything.
        self.content_address.is_some() && self.narinfo(Vec::new()).proven_content_address(store_dir).is_some()
    }
}
