//! Realisations of our own store, and who vouches for them.

use crate::{NixStore, StoreError};
use narmesh_protocol::{NixSecretKey, Realisation, RealisationId, TrustedKeys};

/// Most signatures of one realisation that are handed on; the rest is left out.
const SIGNATURES_MAX: usize = 16;

/// A realisation of our own store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnRealisation {
    realisation: Realisation,
    /// Whether this store built the path, and Nix noted no signature of anybody: then nobody else told it of it.
    is_built_here: bool,
}

impl OwnRealisation {
    /// The realisation with the signatures of trusted keys and, if it was built here, of the builder key; `None` if there is
    /// none of either. The path being its own address says nothing about whose output it is.
    pub fn vouched(self, trusted: &TrustedKeys, builder_key: Option<&NixSecretKey>) -> Option<Realisation> {
        let Self { mut realisation, is_built_here } = self;
        let fingerprint = realisation.fingerprint();
        let builder_public = builder_key.map(NixSecretKey::public);
        realisation.signatures.retain(|signature| {
            trusted.verifies(&fingerprint, signature)
                || builder_public.as_ref().is_some_and(|key| key.verify(&fingerprint, signature))
        });
        realisation.signatures.truncate(SIGNATURES_MAX);
        if let Some(key) = builder_key.filter(|_| is_built_here) {
            realisation.signatures.push(key.sign(&fingerprint));
        }
        (!realisation.signatures.is_empty()).then_some(realisation)
    }

    /// The realisation as it is in the database.
    pub(crate) fn realisation(&self) -> &Realisation {
        &self.realisation
    }
}

impl NixStore {
    /// The realisation with this id, if its path is valid here. Blocks.
    ///
    /// Where the database may not be read it is absent: we do not ask the Nix daemon for it.
    pub fn read_realisation(&self, id: &RealisationId) -> Result<Option<OwnRealisation>, StoreError> {
        let Some(realisation) = self.read_realisation_row(id)? else { return Ok(None) };
        let Some(info) = self.read_path_info(&realisation.out_path.hash_part())? else { return Ok(None) };
        let is_built_here = info.ultimate && info.path == realisation.out_path && realisation.signatures.is_empty();
        Ok(Some(OwnRealisation { realisation, is_built_here }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::StorePath;
    use std::collections::BTreeMap;

    #[test]
    fn only_what_a_trusted_key_signed_or_was_built_here_is_vouched_for() {
        let key = |name: &str, seed| NixSecretKey::from_seed(name, &[seed; 32]).unwrap();
        let (builder, trusted, stranger) = (key("builder-1", 1), key("cache-1", 2), key("stranger-1", 3));
        let keys = TrustedKeys::new([trusted.public()]).unwrap();
        let bare = Realisation {
            id: RealisationId::new(&format!("sha256:{}", "0".repeat(64)), "out").unwrap(),
            out_path: StorePath::parse(&format!("{}-x", "0".repeat(32))).unwrap(),
            dependents: BTreeMap::new(),
            signatures: Vec::new(),
        };
        let sign = |by: &[&NixSecretKey]| {
            let signatures = by.iter().map(|key| key.sign(&bare.fingerprint())).collect();
            Realisation { signatures, ..bare.clone() }
        };
        let vouch = |realisation, is_built_here| {
            let own = OwnRealisation { realisation, is_built_here };
            own.vouched(&keys, Some(&builder)).map(|vouched| vouched.signatures)
        };
        assert_eq!(vouch(bare.clone(), false), None);
        assert_eq!(vouch(sign(&[&stranger]), false), None);
        assert_eq!(vouch(bare.clone(), true), Some(sign(&[&builder]).signatures));
        assert_eq!(vouch(sign(&[&stranger, &trusted]), false), Some(sign(&[&trusted]).signatures));
        assert_eq!(vouch(sign(&[&builder]), false), Some(sign(&[&builder]).signatures));
        let mut forged = sign(&[&trusted]);
        forged.out_path = StorePath::parse(&format!("{}-y", "0".repeat(32))).unwrap();
        assert_eq!(vouch(forged, false), None);
        let own = OwnRealisation { realisation: bare.clone(), is_built_here: true };
        assert_eq!(own.vouched(&keys, None), None, "there is nothing to sign with");
    }
}
