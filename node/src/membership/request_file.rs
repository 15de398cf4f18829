//! The file by which a machine asks to be admitted where there is no line to the machine with the mesh key.
//!
//! One line of text: `narmesh-request-1:` and base64 of the node key (32 bytes), its signature (64) over
//! `narmesh-request-1;` and the rest, and the rest: the member as in a roster, and the proof of its builder key.

use super::joins::{check_new, check_proof};
use crate::regular_file::read_text;
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use narmesh_protocol::{KeyProof, Member, NixSecretKey, codec};
use std::path::Path;

const PREFIX: &str = "narmesh-request-1:";
const SIGNING_DOMAIN: &[u8] = b"narmesh-request-1;";
/// Largest file, bytes.
const FILE_BYTES_MAX: u64 = 8 << 10;
const REQUEST_BYTES_MAX: usize = 4 << 10;

/// What the machine says of itself, and that it holds its builder key.
type Request = (Member, Option<KeyProof>);

/// Writes the request of this machine, whose builder key this is.
pub(crate) fn write(
    file: &Path,
    node: &Keypair,
    builder: Option<&NixSecretKey>,
    member: &Member,
) -> anyhow::Result<()> {
    let proof = builder.map(|key| KeyProof::sign(key, &member.node_key));
    let request = codec::encode::<REQUEST_BYTES_MAX>(&(member.clone(), proof))?;
    let signature = node.sign(&[SIGNING_DOMAIN, &request].concat())?;
    let key = node.public().try_into_ed25519()?.to_bytes();
    let text = format!("{PREFIX}{}\n", STANDARD.encode([&key[..], &signature, &request].concat()));
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Reads a request, whose machine has signed it.
pub(crate) fn read(file: &Path) -> anyhow::Result<Member> {
    let text = read_text(file, FILE_BYTES_MAX).with_context(|| format!("cannot read {}", file.display()))?;
    let request = text.as_deref().and_then(parse);
    let (member, proof) = request.with_context(|| {
        format!("{} is refused; accepted: a file that `narmesh join --request` wrote", file.display())
    })?;
    check_new(&member)?;
    check_proof(proof.as_ref(), &member.node_key)?;
    // What was proved, and nothing else that the file may say.
    Ok(Member { builder_key: proof.map(|proof| proof.key), ..member })
}

fn parse(text: &str) -> Option<Request> {
    let bytes = STANDARD.decode(text.trim().strip_prefix(PREFIX)?).ok()?;
    let (key, rest) = bytes.split_first_chunk::<32>()?;
    let (signature, payload) = rest.split_first_chunk::<64>()?;
    let node = PublicKey::from(ed25519::PublicKey::try_from_bytes(key).ok()?);
    let (member, proof) = codec::decode::<Request, REQUEST_BYTES_MAX>(payload).ok()?;
    let is_signed = node.verify(&[SIGNING_DOMAIN, payload].concat(), signature);
    (is_signed && member.node_key == *key).then_some((member, proof))
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::{MemberRole, node_key_of};

    #[test]
    fn a_request_is_that_of_the_machine_that_signed_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("request");
        let [node, other] = [(); 2].map(|()| Keypair::generate_ed25519());
        let member = Member {
            node_key: node_key_of(&node.public().to_peer_id()).unwrap(),
            name: "box".to_owned(),
            role: MemberRole::Client,
            builder_key: None,
            group: None,
            relay: false,
            ephemeral_s: 0,
            addresses: Vec::new(),
        };
        write(&file, &node, None, &member).unwrap();
        assert_eq!(read(&file).unwrap(), member);
        let builder = NixSecretKey::from_seed("b-1", &[9; 32]).unwrap();
        let named = Member { builder_key: Some(builder.public().to_string()), ..member.clone() };
        write(&file, &node, Some(&builder), &member).unwrap();
        assert_eq!(read(&file).unwrap(), named, "what was proved");
        write(&file, &node, None, &named).unwrap();
        assert_eq!(read(&file).unwrap(), member, "what was not proved");
        write(&file, &other, None, &member).unwrap();
        let refused = read(&file).unwrap_err().to_string();
        assert!(refused.contains("accepted: a file that"), "{refused}");
        std::fs::write(&file, "x").unwrap();
        assert!(read(&file).is_err());
    }
}
