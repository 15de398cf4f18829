//! Keeps what says that this machine was removed from the mesh.

use super::files::{MeshFiles, read_bounded};
use crate::regular_file::clear;
use crate::state_files::REMOVAL_FILE;
use anyhow::Context as _;
use libp2p::PeerId;
use narmesh_protocol::{Removal, SignedRoster, node_key_of};
use std::path::PathBuf;

impl MeshFiles {
    fn removal_file(&self) -> PathBuf {
        self.in_state_dir(REMOVAL_FILE)
    }

    /// What says that `me` was removed after this roster, if anything does. A file that cannot be used says nothing: the next
    /// member that refuses us tells it again.
    pub(crate) fn read_removal(&self, roster: &SignedRoster, me: &PeerId) -> Option<Removal> {
        let bytes = read_bounded(&self.removal_file(), Removal::BYTES as u64).ok()?;
        let removal = Removal::decode(bytes.as_slice().try_into().ok()?);
        holds(&removal, roster, me).then_some(removal)
    }

    /// Keeps a removal of `me` that was heard, whose newest roster is this one; says whether it is news.
    pub(crate) fn keep_removal(&self, roster: &SignedRoster, me: &PeerId, removal: &Removal) -> anyhow::Result<bool> {
        let _lock = self.lock()?;
        // Another roster may have come meanwhile. Several members tell the same, and some of them every hour.
        if !holds(removal, roster, me) || self.read_removal(roster, me).is_some() {
            return Ok(false);
        }
        self.write(&self.removal_file(), &removal.encode())?;
        Ok(true)
    }

    /// Forgets it. The caller holds the lock.
    pub(super) fn forget_removal(&self) -> anyhow::Result<()> {
        let file = self.removal_file();
        clear(&file).with_context(|| format!("cannot delete {}", file.display()))
    }
}

/// Whether it says something of a machine with this roster: one of before it joined again counts no more, and one of another
/// mesh never did.
fn holds(removal: &Removal, roster: &SignedRoster, me: &PeerId) -> bool {
    let is_newer = removal.version > roster.roster().version;
    is_newer && MeshFiles::is_on(roster, me) && node_key_of(me).is_some_and(|key| removal.is_of(roster.key(), &key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::{Member, MemberRole, NixSecretKey, Roster};

    fn key(seed: u8) -> NixSecretKey {
        NixSecretKey::from_seed("home", &[seed; 32]).unwrap()
    }

    /// One with `me` and the founder.
    fn roster(version: u64, me: &PeerId) -> SignedRoster {
        let member = |node_key: [u8; 32], name: &str| Member {
            node_key,
            name: name.to_owned(),
            role: MemberRole::Client,
            builder_key: None,
            group: None,
            relay: false,
            ephemeral_s: 0,
            addresses: Vec::new(),
        };
        let members = vec![member(node_key_of(me).unwrap(), "me"), member([9; 32], "founder")];
        let roster = Roster { version, issued_at_ms: 1, members, edits: Vec::new(), removals: Vec::new() };
        SignedRoster::sign(&key(1), roster).unwrap()
    }

    #[test]
    fn only_a_removal_of_this_machine_by_this_mesh_after_this_roster_counts() {
        let dir = tempfile::tempdir().unwrap();
        let files = MeshFiles::new(dir.path());
        let peer = || libp2p::identity::Keypair::generate_ed25519().public().to_peer_id();
        let (me, other) = (peer(), peer());
        let own_key = node_key_of(&me).unwrap();
        let before = roster(5, &me);
        let wrong = [
            Removal::sign(&key(1), &own_key, 5),
            Removal::sign(&key(2), &own_key, 6),
            Removal::sign(&key(1), &node_key_of(&other).unwrap(), 6),
        ];
        for removal in wrong {
            assert!(!files.keep_removal(&before, &me, &removal).unwrap(), "{removal:?}");
        }
        let true_one = Removal::sign(&key(1), &own_key, 6);
        assert_eq!(files.read_removal(&before, &me), None);
        assert!(files.keep_removal(&before, &me, &true_one).unwrap());
        assert!(!files.keep_removal(&before, &me, &true_one).unwrap(), "it is no news");
        assert_eq!(files.read_removal(&before, &me), Some(true_one));
        // It has joined again, and somebody sends the old one.
        let after = roster(7, &me);
        assert!(!files.keep_removal(&after, &me, &true_one).unwrap());
        assert_eq!(files.read_removal(&after, &me), None);
        let again = Removal::sign(&key(1), &own_key, 8);
        assert!(files.keep_removal(&after, &me, &again).unwrap());
        files.forget().unwrap();
        assert_eq!(files.read_removal(&after, &me), None);
    }
}
