//! That a machine holds the secret part of the builder key that it names.

use crate::{NixPublicKey, NixSecretKey};

/// Prefix of the signed bytes: the signature of a proof is valid for nothing else.
const SIGNING_DOMAIN: &[u8] = b"narmesh-builder-key-1;";

/// A builder key, and its signature over the node key of the machine that names it.
///
/// Builder keys are public, and a roster names each key once. Without a proof, whoever joins could name the key of another
/// builder, and so decide under which name and group it counts. The signature is by the builder key over
/// `narmesh-builder-key-1;` and the 32 bytes of the node key, so it proves nothing for another machine.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct KeyProof {
    /// The builder key in Nix's text form.
    pub key: String,
    /// Its signature over the node key.
    pub signature: [u8; 64],
}

impl KeyProof {
    /// Proves that the machine with this node key holds the builder key.
    pub fn sign(key: &NixSecretKey, node_key: &[u8; 32]) -> Self {
        Self { key: key.public().to_string(), signature: key.sign_bytes(&signed_bytes(node_key)) }
    }

    /// Whether it is a proof of the machine with this node key.
    pub fn is_of(&self, node_key: &[u8; 32]) -> bool {
        NixPublicKey::parse(&self.key).is_ok_and(|key| key.verify_bytes(&signed_bytes(node_key), &self.signature))
    }
}

fn signed_bytes(node_key: &[u8; 32]) -> Vec<u8> {
    [SIGNING_DOMAIN, node_key].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_machine_and_one_key() {
        let key = |seed| NixSecretKey::from_seed("b-1", &[seed; 32]).unwrap();
        let proof = KeyProof::sign(&key(9), &[1; 32]);
        assert!(proof.is_of(&[1; 32]));
        assert!(!proof.is_of(&[2; 32]), "another machine's");
        let other = KeyProof { key: key(8).public().to_string(), ..proof.clone() };
        assert!(!other.is_of(&[1; 32]), "another key");
        assert!(!KeyProof { key: "b-1".to_owned(), ..proof }.is_of(&[1; 32]), "no key");
    }
}
