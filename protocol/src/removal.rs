//! What tells a machine that it was removed from a mesh.

use crate::{NixPublicKey, NixSecretKey};

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

fn signed_bytes(mesh: &[u8; 32], node_key: &[u8; 32], version: u64) -> Vec<u8> {
    [SIGNING_DOMAIN, mesh, node_key, &version.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> NixSecretKey {
        NixSecretKey::from_seed("home", &[seed; 32]).unwrap()
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
}
