//! What a member says of itself, under a key that only its mesh knows.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::net::{IpAddr, SocketAddr};

/// The most addresses in one announcement: as many as of a peer are kept.
pub const ADDRESSES_MAX: usize = 8;

/// A number that is a new one for each announcement.
pub type Salt = [u8; SALT_BYTES];

const SALT_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
/// The purpose of the key, as BLAKE3 wants it: nobody else uses this text.
const CONTEXT: &str = "narmesh 2026-11-30 presence on the local network";
const V4: u8 = 4;
const V6: u8 = 6;

/// The key under which members of one mesh announce themselves. It comes from the public half of the mesh key, which
/// members and those with a token know, and who was a member once.
#[derive(Clone, PartialEq, Eq)]
pub struct LanKey([u8; KEY_BYTES]);

/// Where a member can be reached on the local network, as it says itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Presence {
    /// Its Ed25519 node key.
    pub node_key: [u8; KEY_BYTES],
    /// At most [`ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
}

impl std::fmt::Debug for LanKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LanKey").finish_non_exhaustive()
    }
}

impl LanKey {
    /// The key of the mesh whose key has these bytes.
    pub fn of_mesh(mesh_key: &[u8; KEY_BYTES]) -> Self {
        Self(blake3::derive_key(CONTEXT, mesh_key))
    }

    /// The salt, then the presence, encrypted and authenticated.
    pub(crate) fn seal(&self, presence: &Presence, salt: Salt) -> Vec<u8> {
        let mut sealed = presence.encode();
        self.of_salt(salt)
            .seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed)
            .expect("some two hundred bytes are no more than AES-GCM can encrypt");
        [salt.as_slice(), &sealed].concat()
    }

    /// What was sealed under this key; `None` for whatever was not.
    pub(crate) fn open(&self, sealed: &[u8]) -> Option<Presence> {
        let (salt, sealed) = sealed.split_first_chunk::<SALT_BYTES>()?;
        let mut bytes = sealed.to_vec();
        let opened = self.of_salt(*salt).open_in_place(nonce(), Aad::empty(), &mut bytes).ok()?;
        Presence::decode(opened)
    }

    /// Each announcement has a key of its own, so that no nonce is ever used twice with one, however many there are.
    fn of_salt(&self, salt: Salt) -> LessSafeKey {
        let key = blake3::keyed_hash(&self.0, &salt);
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).expect("it has 32 bytes"))
    }
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

impl Presence {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.node_key.to_vec();
        for address in self.addresses.iter().take(ADDRESSES_MAX) {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(V4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(V6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(address.port().to_be_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (node_key, mut rest) = bytes.split_first_chunk::<KEY_BYTES>()?;
        let mut addresses = Vec::new();
        while let Some((family, after)) = rest.split_first() {
            let (ip, after) = match *family {
                V4 => after.split_first_chunk::<4>().map(|(ip, after)| (IpAddr::from(*ip), after))?,
                V6 => after.split_first_chunk::<16>().map(|(ip, after)| (IpAddr::from(*ip), after))?,
                _ => return None,
            };
            let (port, after) = after.split_first_chunk::<2>()?;
            // More than any honest member says.
            if addresses.len() == ADDRESSES_MAX {
                return None;
            }
            addresses.push(SocketAddr::new(ip, u16::from_be_bytes(*port)));
            rest = after;
        }
        Some(Self { node_key: *node_key, addresses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence() -> Presence {
        let addresses = ["192.0.2.1:7280", "[2001:db8::1]:7281"].map(|text| text.parse().unwrap()).into();
        Presence { node_key: [7; 32], addresses }
    }

    #[test]
    fn members_read_what_a_stranger_can_neither_read_nor_change() {
        let key = LanKey::of_mesh(&[1; 32]);
        let sealed = key.seal(&presence(), [9; 16]);
        assert_eq!(key.open(&sealed), Some(presence()));
        assert_eq!(LanKey::of_mesh(&[2; 32]).open(&sealed), None);
        for place in 0..sealed.len() {
            let mut other = sealed.clone();
            other[place] ^= 1;
            assert_eq!(key.open(&other), None, "byte {place}");
            assert_eq!(key.open(&sealed[..place]), None, "cut at {place}");
        }
        assert!(!sealed.windows(4).any(|bytes| bytes == [7; 4]), "the node key is not to be seen");
        assert_ne!(key.seal(&presence(), [8; 16])[16..], sealed[16..], "no two look alike");
    }

    #[test]
    fn more_addresses_than_are_kept_and_unknown_families_are_refused() {
        let key = LanKey::of_mesh(&[1; 32]);
        let many = Presence { addresses: vec!["192.0.2.1:1".parse().unwrap(); 20], ..presence() };
        assert_eq!(key.open(&key.seal(&many, [0; 16])).unwrap().addresses.len(), ADDRESSES_MAX);
        let mut bytes = presence().encode();
        bytes.extend([5, 0, 0]);
        assert_eq!(Presence::decode(&bytes), None);
        let nine = [[7; 32].as_slice(), &[V4, 192, 0, 2, 1, 0, 1].repeat(9)].concat();
        assert_eq!(Presence::decode(&nine), None);
    }

    /// The worked example of `docs/protocol.md`.
    #[test]
    fn bytes_are_those_of_the_document() {
        let sealed = LanKey::of_mesh(&[1; 32]).seal(&presence(), [9; 16]);
        let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(include_str!("../../../docs/protocol.md").contains(&hex), "{hex}");
    }
}
