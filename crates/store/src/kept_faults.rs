//! Failed copies in a form that outlives the process. Without it each would be offered again after a restart, until one
//! more peer or our own Nix has fetched it in vain.

use crate::failed_copies::{CopyFault, Registration};
use crate::file_identity::FileIdentity;
use crate::{NixStore, StoreError};
use narmesh_protocol::HashPart;
use sha2::{Digest, Sha256};

/// The fault of one copy, and what tells whether it is still that copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeptFault {
    /// What is wrong with it.
    pub fault: CopyFault,
    /// A digest of the path's registration and of what the file system says of the copy. Another build of this program may
    /// compute another one; then the copy counts as not looked at.
    pub stamp: u64,
}

impl CopyFault {
    const ALL: [Self; 4] = [Self::Corrupt, Self::Gone, Self::Unreadable, Self::NotArchivable];

    /// A number for it, which does not change from version to version.
    pub fn number(self) -> u8 {
        match self {
            Self::Corrupt => 0,
            Self::Gone => 1,
            Self::Unreadable => 2,
            Self::NotArchivable => 3,
        }
    }

    /// The fault with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.number() == number)
    }
}

impl NixStore {
    /// The fault of our copy, to be kept, if one is known.
    pub fn kept_fault(&self, part: &HashPart) -> Option<KeptFault> {
        let (fault, registration, identity) = self.failed.find(part)?;
        Some(KeptFault { fault, stamp: stamp_of(&registration, identity) })
    }

    /// Takes back what an earlier process kept, if the copy and its registration are still the same. Returns whether they
    /// are. Blocks.
    ///
    /// # Errors
    /// When that cannot be told now.
    pub fn restore_fault(&self, part: &HashPart, kept: KeptFault) -> Result<bool, StoreError> {
        let Some((row, info)) = self.read_registration(part)? else { return Ok(false) };
        let (root, registration) = (self.location().real_path(&info.path), Registration::of(row, &info));
        let identity = FileIdentity::at(&root);
        // A copy that was repaired or registered anew is another one, and must not stay withheld.
        let is_same = stamp_of(&registration, identity) == kept.stamp;
        if is_same {
            self.failed.restore(*part, kept.fault, &root, registration, identity);
        }
        Ok(is_same)
    }
}

fn stamp_of(registration: &Registration, identity: Option<FileIdentity>) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(registration.row.to_le_bytes());
    hasher.update(registration.registration_time_s.to_le_bytes());
    hasher.update(registration.nar_hash.0);
    if let Some(identity) = identity {
        identity.lasting_fields().iter().for_each(|field| hasher.update(field.to_le_bytes()));
    }
    let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hasher.finalize().into();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
