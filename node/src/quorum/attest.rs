//! Attesting what this machine built itself.

use super::db::{LedgerDbError, Stored, on_disk_bytes};
use super::live::LiveLedger;
use super::members::statement_of;
use super::now;
use narmesh_protocol::{Attestation, BuilderKey, HashPart, NixSecretKey};
use narmesh_quorum::Evidence;
use narmesh_store::{NixStore, PathInfo, Store as _, StoreError};

/// Attestations signed before they are written.
const BATCH: usize = 1_000;

/// Signs for the paths that Nix marks `ultimate`.
#[derive(Debug)]
pub struct OwnBuilds<'a> {
    /// The store.
    pub store: &'a NixStore,
    /// Where they go.
    pub ledger: &'a LiveLedger,
    /// The builder key.
    pub key: &'a NixSecretKey,
}

/// Why paths were not attested.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The Nix store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ledger.
    #[error(transparent)]
    Db(#[from] LedgerDbError),
}

impl OwnBuilds<'_> {
    /// Attests those of `hash_parts` that were built here and are not yet attested as they are. Gives how many were.
    pub fn attest(&self, hash_parts: impl IntoIterator<Item = HashPart>) -> Result<usize, AttestError> {
        let (mut attested, mut batch) = (0, Vec::new());
        for hash_part in hash_parts {
            let Some(info) = self.store.path_info(&hash_part)? else { continue };
            if let Some(made) = self.attestation(&info) {
                batch.push(made);
            }
            if batch.len() >= BATCH {
                attested += self.ledger.take(&batch, now())?.new;
                batch.clear();
            }
        }
        Ok(attested + self.ledger.take(&batch, now())?.new)
    }

    /// Neither derivations nor sources nor what is its own content address, and nothing that was not built here.
    fn attestation(&self, info: &PathInfo) -> Option<(Stored, Evidence)> {
        let store_dir = self.store.store_dir();
        if !info.ultimate || info.nar_size == 0 || info.path.is_derivation() || info.content_address.is_some() {
            return None;
        }
        let public = self.key.public();
        let statement = statement_of(info);
        let fingerprint = narmesh_quorum::FingerprintDigest::of(store_dir, &statement);
        let own = BuilderKey(public.bytes());
        let said = |vote: narmesh_quorum::Vote| vote.builder == own && vote.facts.fingerprint == fingerprint;
        if self.ledger.read(|ledger| ledger.votes(&info.path.hash_part()).any(said)) {
            return None;
        }
        let references_bytes = info.references.iter().map(|path| 34 + path.name().len()).sum();
        let attestation = Attestation::sign(self.key, store_dir, statement, now().0);
        let evidence = Evidence::attestation(store_dir, &attestation, &public, on_disk_bytes(references_bytes))?;
        Some((Stored { key: public, attestation }, evidence))
    }
}
