//! What an inviting machine gives to one that is to join: one word that is pasted there.

use super::invitations::SECRET_BYTES;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libp2p::identity::{PublicKey, ed25519};
use libp2p::{Multiaddr, PeerId};
use narmesh_protocol::{NixPublicKey, node_key_of};
use sha2::{Digest as _, Sha256};

/// How a token begins, so that one that was published by mistake is recognised.
const PREFIX: &str = "narmesh-join-";
const FORMAT: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// Most addresses in a token.
pub(crate) const ADDRESSES_MAX: usize = 4;
/// Longest token, bytes: four host names of 250 bytes and a name of 255.
const TEXT_BYTES_MAX: usize = 2_048;
/// What is accepted, in words.
const FORM: &str = "the whole word narmesh-join-… that `narmesh mesh invite` printed";

/// An invitation as the invited machine gets it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct JoinToken {
    /// The mesh key, which signs the roster.
    pub(crate) mesh: NixPublicKey,
    /// The machine that admits whoever shows the secret.
    pub(crate) inviter: PeerId,
    /// Where it can be dialled, at most [`ADDRESSES_MAX`].
    pub(crate) addresses: Vec<Multiaddr>,
    /// The secret of the invitation.
    pub(crate) secret: [u8; SECRET_BYTES],
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("mesh", &self.mesh).field("inviter", &self.inviter).finish_non_exhaustive()
    }
}

impl JoinToken {
    /// The text of the token. `None` if the inviter's PeerId has no Ed25519 key, or an address is longer than 255 bytes.
    pub(crate) fn render(&self) -> Option<String> {
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&self.mesh.bytes());
        push_short(&mut bytes, self.mesh.name().as_bytes())?;
        bytes.extend_from_slice(&node_key_of(&self.inviter)?);
        bytes.extend_from_slice(&self.secret);
        for address in self.addresses.iter().take(ADDRESSES_MAX) {
            push_short(&mut bytes, &address.to_vec())?;
        }
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        Some(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Parses the text of a token.
    ///
    /// # Errors
    /// When it is not one, or was not pasted whole.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let parsed = (text.len() <= TEXT_BYTES_MAX).then(|| text.strip_prefix(PREFIX)).flatten().and_then(parse_rest);
        // The token is a secret, so the message does not show it.
        parsed.ok_or_else(|| anyhow::anyhow!("TOKEN of {} bytes is refused; accepted: {FORM}", text.len()))
    }
}

fn parse_rest(text: &str) -> Option<JoinToken> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (payload, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    // A token is copied by hand and by mail, and one with a letter lost should say so.
    if *sum != checksum(payload) {
        return None;
    }
    let rest = payload.strip_prefix(&[FORMAT])?;
    let (key, rest) = rest.split_first_chunk::<32>()?;
    let (name, rest) = split_short(rest)?;
    let mesh = NixPublicKey::new(std::str::from_utf8(name).ok()?, key).ok()?;
    let (inviter, rest) = rest.split_first_chunk::<32>()?;
    let (secret, mut rest) = rest.split_first_chunk::<SECRET_BYTES>()?;
    let mut addresses = Vec::new();
    while !rest.is_empty() {
        let (address, after) = split_short(rest)?;
        addresses.push(Multiaddr::try_from(address.to_vec()).ok()?);
        rest = after;
    }
    let inviter = PublicKey::from(ed25519::PublicKey::try_from_bytes(inviter).ok()?).to_peer_id();
    (addresses.len() <= ADDRESSES_MAX).then_some(JoinToken { mesh, inviter, addresses, secret: *secret })
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(bytes).into();
    [a, b, c, d]
}

fn push_short(bytes: &mut Vec<u8>, part: &[u8]) -> Option<()> {
    bytes.push(u8::try_from(part.len()).ok()?);
    bytes.extend_from_slice(part);
    Some(())
}

fn split_short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::identity::Keypair;
    use narmesh_protocol::NixSecretKey;

    #[test]
    fn a_token_comes_back_whole_or_not_at_all() {
        let token = JoinToken {
            mesh: NixSecretKey::from_seed("home", &[1; 32]).unwrap().public(),
            inviter: Keypair::generate_ed25519().public().to_peer_id(),
            addresses: ["/ip4/192.0.2.1/tcp/7280", "/dns/box.example/tcp/7280"]
                .map(|text| text.parse().unwrap())
                .into(),
            secret: [7; SECRET_BYTES],
        };
        let text = token.render().unwrap();
        assert!(text.len() < 300, "{}", text.len());
        assert_eq!(JoinToken::parse(&format!(" {text}\n")).unwrap(), token);
        for at in PREFIX.len()..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
            let error = JoinToken::parse(&String::from_utf8(wrong).unwrap());
            assert!(error.is_err() && JoinToken::parse(&text[..at]).is_err(), "byte {at}");
        }
        assert!(!format!("{token:?}").contains("7, 7"), "the secret is not printed");
    }

    #[test]
    fn the_example_of_the_protocol_document_is_this_token() {
        let node =
            Keypair::ed25519_from_bytes(std::array::from_fn::<u8, 32, _>(|at| u8::try_from(at).unwrap())).unwrap();
        let token = JoinToken {
            mesh: NixSecretKey::from_seed("home", &[1; 32]).unwrap().public(),
            inviter: node.public().to_peer_id(),
            addresses: vec!["/ip4/192.0.2.1/tcp/7280".parse().unwrap()],
            secret: [7; SECRET_BYTES],
        };
        let text = token.render().unwrap();
        let document = include_str!("../../../docs/protocol.md");
        assert!(document.contains(&text), "{text}");
    }
}
