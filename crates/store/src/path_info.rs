//! The registration of one valid path.

use narmesh_protocol::{ContentAddress, Fingerprint, NarHash, NarInfo, NixSignature, StoreDir, StorePath};

/// Everything that the Nix database says about one valid path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathInfo {
    /// The store path.
    pub path: StorePath,
    /// SHA-256 of its NAR, as registered.
    pub nar_hash: NarHash,
    /// Size of its NAR in bytes, as registered. It is 0 in rows of very old Nix versions, which cannot be served.
    pub nar_size: u64,
    /// The path's References, sorted. The path itself is among them if it refers to itself.
    pub references: Vec<StorePath>,
    /// The derivation that built the path, if known. It need not be valid here.
    pub deriver: Option<StorePath>,
    /// Signatures as stored: neither trusted nor verified.
    pub signatures: Vec<NixSignature>,
    /// Content address, if the path has one; not yet checked.
    pub content_address: Option<ContentAddress>,
    /// Whether this store built the path itself.
    pub ultimate: bool,
    /// Time of registration, seconds since 1970.
    pub registration_time_s: u64,
}

impl PathInfo {
    /// What would be registered of a path that comes with this narinfo, without what no signature covers.
    pub(crate) fn of_another_store(info: &NarInfo) -> Self {
        Self {
            path: info.path.clone(),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references.clone(),
            deriver: None,
            signatures: info.signatures.clone(),
            content_address: info.content_address.clone(),
            ultimate: false,
            registration_time_s: 0,
        }
    }

    /// The fingerprint that a signature of this path covers.
    pub fn fingerprint(&self, store_dir: &StoreDir) -> Fingerprint {
        Fingerprint::new(store_dir, &self.path, &self.nar_hash, self.nar_size, &self.references)
    }

    /// The narinfo of this path, with `signatures` instead of the stored ones.
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
        // Most paths have no content address, and making a narinfo copies everything.
        self.content_address.is_some() && self.narinfo(Vec::new()).proven_content_address(store_dir).is_some()
    }
}
