//! The file by which a machine asks to be admitted where there is no line to the machine with the mesh key.
//!
//! One line of text: `narmesh-request-1:` and base64 of the node key (32 bytes), its signature (64) over
//! `narmesh-request-1;` and the rest, and the rest: the member as in a roster.

use super::joins::check_new;
use crate::regular_file::read_text;
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use narmesh_protocol::{Member, codec};
use std::path::Path;

const PREFIX: &str = "narmesh-request-1:";
const SIGNING_DOMAIN: &[u8] = b"narmesh-request-1;";
/// Largest file, bytes.
const FILE_BYTES_MAX: u64 = 8 << 10;
const MEMBER_BYTES_MAX: usize = 4 << 10;

/// Writes the request of this machine.
pub(crate) fn write(file: &Path, node: &Keypair, member: &Member) -> anyhow::Result<()> {
    let member = codec::encode::<MEMBER_BYTES_MAX>(member)?;
    let signature = node.sign(&[SIGNING_DOMAIN, &member].concat())?;
    let key = node.public().try_into_ed25519()?.to_bytes();
    let text = format!("{PREFIX}{}\n", STANDARD.encode([&key[..], &signature, &member].concat()));
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Reads a request, whose machine has signed it.
pub(crate) fn read(file: &Path) -> anyhow::Result<Member> {
    let text = read_text(file, FILE_BYTES_MAX).with_context(|| format!("cannot read {}", file.display()))?;
    let member = text.as_deref().and_then(parse);
    let member = member.with_context(|| {
        format!("{} is refused; accepted: a file that `narmesh join --request` wrote", file.display())
    })?;
    check_new(&member)?;
    Ok(member)
}

fn parse(text: &str) -> Option<Member> {
    let bytes = STANDARD.decode(text.trim().strip_prefix(PREFIX)?).ok()?;
    let (key, rest) = bytes.split_first_chunk::<32>()?;
    let (signature, payload) = rest.split_first_chunk::<64>()?;
    let node = PublicKey::from(ed25519::PublicKey::try_from_bytes(key).ok()?);
    let member = codec::decode::<Member, MEMBER_BYTES_MAX>(payload).ok()?;
    let is_signed = node.verify(&[SIGNING_DOMAIN, payload].concat(), signature);
    (is_signed && member.node_key == *key).then_some(member)
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
        write(&file, &node, &member).unwrap();
        assert_eq!(read(&file).unwrap(), member);
        write(&file, &other, &member).unwrap();
        let refused = read(&file).unwrap_err().to_string();
        assert!(refused.contains("accepted: a file that"), "{refused}");
        std::fs::write(&file, "x").unwrap();
        assert!(read(&file).is_err());
    }
}
