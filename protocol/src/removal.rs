//! What tells a machine that it was removed from a mesh.

use crate::{NixPublicKey, NixSecretKey, Roster};

/// Prefix of the signed bytes: the signature of a removal is valid for nothing else.
const SIGNING_DOMAIN: &[u8] = b"narmesh-removal-1;";

/// The statement of a mesh key that a machine is on its rosters no more, from one version on.
///
/// It names neither the mesh nor the machine: whoever it is for knows both, and nobody else learns them from it.
/// Layout: `version` (8 bytes, little-endian), signature (64) over `narmesh-removal-1;`, the mesh key (32), the node key (32)
/// and `version`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Removal {
    /// The first roster on which the machine is not.
    pub version: u64,
    signature: [u8; 64],
}

impl Removal {
    /// Length of the encoding.
    pub const BYTES: usize = 72;

    /// Has the mesh key say so.
    pub fn sign(mesh: &NixSecretKey, node_key: &[u8; 32], version: u64) -> Self {
        let signature = mesh.sign_bytes(&signed_bytes(&mesh.public().bytes(), node_key, version));
        Self { version, signature }
    }

    /// Whether the mesh key says so of the machine with this node key.
    pub fn is_of(&self, mesh: &NixPublicKey, node_key: &[u8; 32]) -> bool {
        mesh.verify_bytes(&signed_bytes(&mesh.bytes(), node_key, self.version), &self.signature)
    }

    /// The bytes to send or keep.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (version, signature) = bytes.split_at_mut(8);
        version.copy_from_slice(&self.version.to_le_bytes());
        signature.copy_from_slice(&self.signature);
        bytes
    }

    /// Any bytes decode; [`Self::is_of`] says whether they are worth anything.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let (mut version, mut signature) = ([0; 8], [0; 64]);
        let (first, rest) = bytes.split_at(8);
        version.copy_from_slice(first);
        signature.copy_from_slice(rest);
        Self { version: u64::from_le_bytes(version), signature }
    }
}

/// A machine that was removed, as a roster keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Removed {
    /// The Ed25519 key of its PeerId.
    pub node_key: [u8; 32],
    /// What it is told.
    pub removal: Removal,
}

impl Roster {
    /// Signs a removal for each member of the roster `before` this one that is no member any more, by the mesh key that those
    /// members know, and forgets those of machines that are members again. Ephemeral members get none: they come and go by
    /// themselves, and so many that those who were removed by a person would be forgotten for them.
    pub fn note_removals(&mut self, mesh: &NixSecretKey, before: &Self) {
        let is_gone = |node_key: &[u8; 32]| self.members.iter().all(|member| member.node_key != *node_key);
        let gone = before.members.iter().filter(|member| member.ephemeral_s == 0 && is_gone(&member.node_key));
        let removed: Vec<_> = gone
            .map(|member| {
                let node_key = member.node_key;
                Removed { node_key, removal: Removal::sign(mesh, &node_key, self.version) }
            })
            .collect();
        let still = self.removals.iter().filter(|known| {
            is_gone(&known.node_key) && removed.iter().all(|removed| removed.node_key != known.node_key)
        });
        let mut removals: Vec<_> = still.copied().chain(removed.iter().copied()).collect();
        // The last ones are kept; the node key decides between those of one version, so that all signers keep the same.
        removals.sort_unstable_by_key(|removed| (std::cmp::Reverse(removed.removal.version), removed.node_key));
        removals.truncate(Self::REMOVALS_MAX);
        removals.sort_unstable_by_key(|removed| removed.node_key);
        self.removals = removals;
    }
}

fn signed_bytes(mesh: &[u8; 32], node_key: &[u8; 32], version: u64) -> Vec<u8> {
    [SIGNING_DOMAIN, mesh, node_key, &version.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Member, MemberRole, SignedRoster};

    fn key(seed: u8) -> NixSecretKey {
        NixSecretKey::from_seed("home", &[seed; 32]).unwrap()
    }

    fn member(number: u8, ephemeral_s: u32) -> Member {
        Member {
            node_key: [number; 32],
            name: format!("machine {number}"),
            role: MemberRole::Client,
            builder_key: None,
            group: None,
            relay: false,
            ephemeral_s,
            addresses: Vec::new(),
        }
    }

    fn roster(version: u64, members: Vec<Member>) -> Roster {
        Roster { version, issued_at_ms: 1, members, edits: Vec::new(), removals: Vec::new() }
    }

    fn removed(roster: &Roster) -> Vec<(u8, u64)> {
        roster.removals.iter().map(|removed| (removed.node_key[0], removed.removal.version)).collect()
    }

    #[test]
    fn a_removal_holds_for_one_mesh_one_machine_and_one_version() {
        let removal = Removal::sign(&key(1), &[7; 32], 5);
        let mesh = key(1).public();
        assert!(removal.is_of(&mesh, &[7; 32]));
        assert!(!removal.is_of(&key(2).public(), &[7; 32]) && !removal.is_of(&mesh, &[8; 32]));
        let bytes = removal.encode();
        assert_eq!(Removal::decode(&bytes), removal);
        for at in 0..bytes.len() {
            let mut forged = bytes;
            forged[at] ^= 1;
            assert!(!Removal::decode(&forged).is_of(&mesh, &[7; 32]), "byte {at} changed");
        }
    }

    #[test]
    fn whoever_is_gone_has_a_removal_until_it_is_back() {
        let first = roster(1, vec![member(1, 0), member(2, 0), member(3, 60)]);
        let mut second = roster(2, vec![member(1, 0)]);
        second.note_removals(&key(1), &first);
        assert_eq!(removed(&second), [(2, 2)], "an ephemeral member has none");
        let mut third = Roster { version: 3, ..second.clone() };
        third.note_removals(&key(1), &second);
        assert_eq!(removed(&third), [(2, 2)], "it stays as it was signed");
        let mut back = Roster { version: 4, members: vec![member(1, 0), member(2, 0)], ..third.clone() };
        back.note_removals(&key(1), &third);
        assert_eq!(removed(&back), []);
        let mut again = Roster { version: 5, members: vec![member(1, 0)], ..back.clone() };
        again.note_removals(&key(1), &back);
        assert_eq!(removed(&again), [(2, 5)]);
    }

    #[test]
    fn the_last_removals_are_kept_and_come_back_from_the_bytes() {
        let mut present = roster(1, (0..=99).map(|number| member(number, 0)).collect());
        while present.members.len() > 1 {
            let before = present.clone();
            present.version += 1;
            // The highest node key goes first, so that the order of keys is not that of time.
            present.members.pop();
            present.note_removals(&key(1), &before);
        }
        let expected: Vec<_> = (1..=64).map(|number| (number, 101 - u64::from(number))).collect();
        assert_eq!(removed(&present), expected);
        let signed = SignedRoster::sign(&key(1), present.clone()).unwrap();
        assert_eq!(SignedRoster::open(&key(1).public(), signed.as_bytes()).unwrap().roster(), &present);
        let removals = present.removals.clone();
        present.removals.push(removals[0]);
        assert!(SignedRoster::sign(&key(1), present).unwrap_err().to_string().contains("65 removals"));
    }
}
