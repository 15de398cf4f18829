//! Tells the offer what builders that count attest, so that it offers what they built and Nix copied here without a
//! signature.

use super::ledger::LiveLedger;
use super::members::statement_of;
use narmesh_protocol::{BuilderKey, NixSignature};
use narmesh_quorum::FingerprintDigest;
use narmesh_store::{AttestedPaths, Offer, PathInfo};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The ledger, as the offer asks it.
struct CountedAttestations(Arc<LiveLedger>);

impl CountedAttestations {
    /// The builders whose word counts for the path as it is registered, and its fingerprint. A builder that is revoked, or
    /// that said two things of the path, is not among them. `None` if there is none.
    fn find_builders(&self, info: &PathInfo) -> Option<(BTreeSet<BuilderKey>, FingerprintDigest)> {
        // Most paths have no statement at all.
        if !self.0.read(|ledger| ledger.has_votes(&info.path.hash_part())) {
            return None;
        }
        let fingerprint = FingerprintDigest::of(self.0.store_dir(), &statement_of(info));
        let policy = self.0.policy();
        let verdict = self.0.read(|ledger| policy.judge(ledger, &info.path));
        let attested = verdict.attested.iter().find(|attested| attested.claim.fingerprint == fingerprint)?;
        let keys: Vec<BuilderKey> = policy.keys().collect();
        let builders = attested.builders.iter().filter_map(|number| keys.get(*number).copied()).collect();
        Some((builders, fingerprint))
    }
}

impl AttestedPaths for CountedAttestations {
    fn is_attested(&self, info: &PathInfo) -> bool {
        self.find_builders(info).is_some()
    }

    fn read_signatures(&self, info: &PathInfo) -> Result<Vec<NixSignature>, String> {
        let Some((builders, fingerprint)) = self.find_builders(info) else { return Ok(Vec::new()) };
        let known = self.0.read_signatures(fingerprint).map_err(|error| error.to_string())?;
        Ok(known
            .into_iter()
            .filter(|(builder, _)| builders.contains(builder))
            .map(|(_, signature)| signature)
            .collect())
    }
}

/// Has the offer ask the ledger from now on, and the ledger tell it what is new.
pub(super) fn tell_offer(ledger: &Arc<LiveLedger>, offer: &Arc<Offer>) {
    // Weak, because the offer holds the ledger.
    let told = Arc::downgrade(offer);
    ledger.tell_attested(Box::new(move |parts| {
        if let Some(offer) = told.upgrade() {
            offer.on_attested(parts);
        }
    }));
    offer.follow_attestations(Box::new(CountedAttestations(Arc::clone(ledger))));
}
