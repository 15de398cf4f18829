//! The signed envelope around an announcement.

use crate::codec::CodecError;
use crate::{Announcement, codec};
use libp2p_identity::{Keypair, PeerId, PublicKey, ed25519};

/// Prefix of the signed bytes: the signature of an announcement is valid for nothing else.
const SIGNING_DOMAIN: &[u8] = b"narmesh-announcement-1;";
/// The only version so far. Envelopes of other versions are ignored without penalty.
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 32 + 64;

/// An announcement with its signer and the exact bytes that were received.
///
/// Layout: version (1 byte, `1`), Ed25519 public key (32), signature (64) over `narmesh-announcement-1;` + payload, payload
/// (the rest). The signature is checked over the bytes received, never over a re-encoding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    peer: PeerId,
    announcement: Announcement,
    bytes: Vec<u8>,
}

/// Why an envelope is refused.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Longer than [`Envelope::BYTES_MAX`] or shorter than its header.
    #[error("envelope of {bytes} bytes, expected {HEADER_BYTES} to {}", Envelope::BYTES_MAX)]
    Length {
        /// The length found.
        bytes: usize,
    },
    /// The version is newer than this node. The envelope is ignored; its sender is not punished.
    #[error("envelope version {version}, this node knows {VERSION}")]
    UnknownVersion {
        /// The version found.
        version: u8,
    },
    /// The key is not an Ed25519 key, or the signature does not verify under it.
    #[error("envelope signature does not verify")]
    Signature,
    /// The payload does not decode.
    #[error("envelope payload")]
    Payload(#[from] CodecError),
}

impl Envelope {
    /// Largest envelope, bytes. It bounds what one announcement costs on gossipsub.
    pub const BYTES_MAX: usize = 1_000;

    /// Signs `announcement` with the node's key, which must be Ed25519.
    pub fn seal(keypair: &Keypair, announcement: Announcement) -> Result<Self, EnvelopeError> {
        let payload = codec::encode::<{ Self::BYTES_MAX - HEADER_BYTES }>(&announcement)?;
        let public = keypair.public().try_into_ed25519().map_err(|_| EnvelopeError::Signature)?;
        let signature = keypair.sign(&signed_bytes(&payload)).map_err(|_| EnvelopeError::Signature)?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&public.to_bytes());
        bytes.extend_from_slice(&signature);
        bytes.extend_from_slice(&payload);
        Ok(Self { peer: keypair.public().to_peer_id(), announcement, bytes })
    }

    /// Checks length, version and signature, then decodes.
    pub fn open(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let length = EnvelopeError::Length { bytes: bytes.len() };
        if bytes.len() > Self::BYTES_MAX {
            return Err(length);
        }
        let Some((&version, rest)) = bytes.split_first() else { return Err(length) };
        // Checked before everything else, because another version may have another layout.
        if version != VERSION {
            return Err(EnvelopeError::UnknownVersion { version });
        }
        let (Some((key, rest)), true) = (rest.split_first_chunk::<32>(), rest.len() >= HEADER_BYTES - 1) else {
            return Err(length);
        };
        let Some((signature, payload)) = rest.split_first_chunk::<64>() else { return Err(length) };
        let key = ed25519::PublicKey::try_from_bytes(key).map_err(|_| EnvelopeError::Signature)?;
        let key = PublicKey::from(key);
        if !key.verify(&signed_bytes(payload), signature) {
            return Err(EnvelopeError::Signature);
        }
        let announcement = codec::decode::<Announcement, { Self::BYTES_MAX }>(payload)?;
        Ok(Self { peer: key.to_peer_id(), announcement, bytes: bytes.to_vec() })
    }

    /// What the bytes claim to announce; the signature is not checked. An envelope that would not count in any case, such
    /// as one older than the known one, need not be opened, which would take some 50 us.
    pub fn claimed_announcement(bytes: &[u8]) -> Option<Announcement> {
        let payload = bytes.get(HEADER_BYTES..).filter(|_| bytes.first() == Some(&VERSION))?;
        codec::decode::<Announcement, { Self::BYTES_MAX }>(payload).ok()
    }

    /// The peer that signed the announcement.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The announcement that was signed.
    pub fn announcement(&self) -> &Announcement {
        &self.announcement
    }

    /// The bytes to send, store or check again.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    [SIGNING_DOMAIN, payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Generation;

    fn announcement() -> Announcement {
        Announcement {
            generation: Generation { epoch: 5, seq: 2 },
            path_count: 10,
            body_digest: [7; 32],
            body_bytes: 1_024,
            lifetime_s: 7_200,
            issued_at_ms: 1,
        }
    }

    #[test]
    fn opens_what_was_sealed_and_nothing_else() {
        let keypair = Keypair::generate_ed25519();
        let sealed = Envelope::seal(&keypair, announcement()).unwrap();
        assert_eq!(Envelope::open(sealed.as_bytes()).unwrap(), sealed);
        assert_eq!(sealed.peer(), keypair.public().to_peer_id());
        assert_eq!(Envelope::claimed_announcement(sealed.as_bytes()), Some(announcement()));
        assert_eq!(Envelope::claimed_announcement(&[1; 100]), None);
        for at in 0..sealed.as_bytes().len() {
            let mut forged = sealed.as_bytes().to_vec();
            forged[at] ^= 1;
            assert!(Envelope::open(&forged).is_err(), "byte {at} changed and still accepted");
            assert!(Envelope::open(&sealed.as_bytes()[..at]).is_err());
        }
    }

    #[test]
    fn unknown_version_has_its_own_error() {
        assert!(matches!(Envelope::open(&[2; 120]), Err(EnvelopeError::UnknownVersion { version: 2 })));
    }
}
