//! Attesting what this machine built itself, of what others may hear of.

use super::db::{LedgerDbError, Stored, on_disk_bytes};
use super::live::LiveLedger;
use super::members::statement_of;
use super::now;
use narmesh_protocol::{Attestation, BuilderKey, HashPart, NixSecretKey};
use narmesh_quorum::{Evicted, Evidence, FingerprintDigest};
use narmesh_store::{NixStore, Offer, PathInfo, Store as _, StoreError, Withheld};

/// Attestations signed before they are written.
const BATCH: usize = 1_000;

/// Signs for the paths that Nix marks `ultimate`. What peers may not hear of is not attested: an attestation tells its name,
/// its references and its hash to all who count this builder, whoever relays it.
#[derive(Debug)]
pub struct OwnBuilds<'a> {
    /// The store.
    pub store: &'a NixStore,
    /// Says what peers may hear of; it has looked at the store.
    pub offer: &'a Offer,
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

/// What became of paths that were to be attested.
#[derive(Debug, Default)]
pub struct Attested {
    /// How many are now and were not.
    pub new: usize,
    /// Of which the offer cannot say yet whether peers may hear of them.
    pub unchecked: Vec<HashPart>,
}

impl OwnBuilds<'_> {
    /// Attests those of `hash_parts` that were built here, may be heard of, and are not yet attested as they are.
    pub fn attest(&self, hash_parts: impl IntoIterator<Item = HashPart>) -> Result<Attested, AttestError> {
        let (mut attested, mut batch) = (Attested::default(), Vec::new());
        for hash_part in hash_parts {
            let Some(info) = self.store.path_info(&hash_part)? else { continue };
            if let Some(made) = self.attestation(&info) {
                let statement = &made.0.attestation.statement;
                match self.offer.withheld(&statement.path, &statement.references) {
                    None => batch.push(made),
                    Some(Withheld::Unchecked) => attested.unchecked.push(hash_part),
                    Some(_) => {}
                }
            }
            if batch.len() >= BATCH {
                attested.new += self.ledger.take(&batch, now())?.new;
                batch.clear();
            }
        }
        attested.new += self.ledger.take(&batch, now())?.new;
        Ok(attested)
    }

    /// Takes back what was attested and is withheld now, here or gone from the store. Gives how many were.
    pub fn withdraw(&self) -> Result<usize, AttestError> {
        let own = BuilderKey(self.key.public().bytes());
        let mut gone = Vec::new();
        for hash_part in self.ledger.read(|ledger| ledger.hash_parts_of(&own)) {
            let said = self.ledger.attestations(&hash_part)?;
            for attestation in said.into_iter().map(|it| it.attestation).filter(|it| it.builder == own) {
                let statement = &attestation.statement;
                let why = self.offer.withheld(&statement.path, &statement.references);
                if why.is_some_and(|why| why != Withheld::Unchecked) {
                    let fingerprint = FingerprintDigest::of(self.store.store_dir(), statement);
                    gone.push(Evicted { builder: own, hash_part, fingerprint });
                }
            }
        }
        self.ledger.withdraw(&gone)?;
        Ok(gone.len())
    }

    /// Neither derivations nor sources nor what is its own content address, and nothing that was not built here.
    fn attestation(&self, info: &PathInfo) -> Option<(Stored, Evidence)> {
        let store_dir = self.store.store_dir();
        if !info.ultimate || info.nar_size == 0 || info.path.is_derivation() || info.content_address.is_some() {
            return None;
        }
        let public = self.key.public();
        let statement = statement_of(info);
        let fingerprint = FingerprintDigest::of(store_dir, &statement);
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
