//! Asks what builders attest of paths here. Their signatures vouch where none in the Nix database does: what a remote
//! builder built comes back without any.

use super::policy::Voucher;
use super::{Offer, Shared};
use crate::{PathInfo, StoreError};
use narmesh_protocol::{HashPart, NixSignature};

/// What the builders that count attest.
pub trait AttestedPaths: Send + Sync {
    /// Whether one of them attests the path as it is registered here: the same NarHash, NarSize and references. Answers
    /// from memory.
    fn is_attested(&self, info: &PathInfo) -> bool;

    /// Their signatures over the path as it is registered here; empty if there are none. May read the disk.
    ///
    /// # Errors
    /// Why they cannot be read, in words.
    fn read_signatures(&self, info: &PathInfo) -> Result<Vec<NixSignature>, String>;
}

impl Offer {
    /// From now on an attestation vouches for a path for which nobody else does; only the first call counts. Of new
    /// attestations [`Self::on_attested`] has to be told.
    pub fn follow_attestations(&self, attested: Box<dyn AttestedPaths>) {
        if self.shared.attested.set(attested).is_ok() {
            // Of those that were known before nobody tells.
            self.on_attested(&self.shared.store.outputs_and_sources());
        }
    }

    /// To be called with paths that were attested: those among them for which nobody vouched are looked at again.
    pub fn on_attested(&self, parts: &[HashPart]) {
        let held = parts.iter().filter(|part| self.shared.store.contains(part));
        self.shared.pending.lock().attested.extend(held);
        self.shared.woken.notify_all();
    }
}

impl Shared {
    /// Who vouches for a path, once attestations count as well.
    pub(super) fn with_attestations(&self, voucher: Voucher, info: &PathInfo) -> Voucher {
        match voucher {
            // What has a content address is certified by it, or is perhaps a source, or its address is false.
            Voucher::Nobody if info.content_address.is_none() && info.nar_size > 0 => {
                let is_attested = self.attested.get().is_some_and(|attested| attested.is_attested(info));
                if is_attested { Voucher::Attestation } else { Voucher::Nobody }
            }
            Voucher::Nobody | Voucher::Contents | Voucher::Signature | Voucher::Attestation => voucher,
        }
    }

    /// The signatures of the builders that attest the path.
    pub(super) fn read_attested(&self, info: &PathInfo) -> Result<Vec<NixSignature>, StoreError> {
        let read = self.attested.get().map(|attested| attested.read_signatures(info)).transpose();
        read.map(Option::unwrap_or_default).map_err(|why| StoreError::Attestations { path: info.path.clone(), why })
    }
}
