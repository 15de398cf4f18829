//! Which realisations may leave this machine.

use super::Offer;
use crate::StoreError;
use narmesh_protocol::{Realisation, RealisationId};

/// What others may know of a realisation of our own store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OfferedRealisation {
    /// It may leave, with these signatures.
    Offered(Realisation),
    /// Our own store has it, and its path, or one that it names, is not offered.
    Withheld,
    /// Our own store has none, or nobody vouches for it.
    Absent,
}

impl Offer {
    /// The realisation with this id, if each path that it names is offered now and somebody vouches for it.
    ///
    /// # Errors
    /// As for [`Self::find_offered`].
    pub fn find_realisation(&self, id: &RealisationId) -> Result<OfferedRealisation, StoreError> {
        let Some(own) = self.shared.store.read_realisation(id)? else { return Ok(OfferedRealisation::Absent) };
        let realisation = own.realisation();
        // It names them all, so each of them has to be one that may be named.
        for path in realisation.dependents.values().chain([&realisation.out_path]) {
            if self.find_offered(&path.hash_part())?.is_none_or(|offered| offered.info.path != *path) {
                return Ok(OfferedRealisation::Withheld);
            }
        }
        let rules = self.shared.rules();
        let vouched = own.vouched(&rules.policy().trusted, rules.policy().builder_key.as_ref());
        Ok(vouched.map_or(OfferedRealisation::Absent, OfferedRealisation::Offered))
    }
}
