//! The roster of a mesh: who its members are, signed by the mesh key.

use crate::codec::{self, CodecError};
use crate::{NixPublicKey, NixSecretKey};
use libp2p_identity::{PeerId, PublicKey, ed25519};
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Prefix of the signed bytes: the signature of a roster is valid for nothing else.
const SIGNING_DOMAIN: &[u8] = b"narmesh-roster-1;";
/// The only version so far.
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 1 + 32 + 64;

/// The Ed25519 key of a PeerId, if it has one.
pub fn node_key_of(peer: &PeerId) -> Option<[u8; 32]> {
    // A multihash: the code 0 of "identity", the length, then the key itself.
    let bytes = peer.to_bytes();
    let [0, _, key @ ..] = bytes.as_slice() else { return None };
    Some(PublicKey::try_decode_protobuf(key).ok()?.try_into_ed25519().ok()?.to_bytes())
}

/// The peer whose node key is this one; `None` if these bytes are no key.
pub fn peer_of(node_key: &[u8; 32]) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(node_key).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// What a member may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum MemberRole {
    /// It is told what others have, and may fetch it. Nobody trusts what it builds.
    Client,
    /// The same, and all members trust its builder key.
    Builder,
}

/// One machine of a mesh.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Member {
    /// The Ed25519 key of its PeerId.
    pub node_key: [u8; 32],
    /// Its name, for people; no other member has the same.
    pub name: String,
    /// What it may do.
    pub role: MemberRole,
    /// Its builder key in Nix's text form, if it has one. It counts only for a [`MemberRole::Builder`].
    pub builder_key: Option<String>,
    /// Whether it carries connections between members that cannot reach each other.
    pub relay: bool,
    /// After how long without a sign of life it is no longer a member, seconds; 0 for never.
    pub ephemeral_s: u32,
    /// Where it may be dialled, as multiaddrs: hints, which its own summary replaces.
    pub addresses: Vec<String>,
}

impl Member {
    /// Longest name, bytes.
    pub const NAME_BYTES_MAX: usize = 64;
    /// Most addresses.
    pub const ADDRESSES_MAX: usize = 8;
    /// Longest address, bytes: a host name has at most 253.
    pub const ADDRESS_BYTES_MAX: usize = 300;
    /// Longest builder key in text form, bytes.
    const BUILDER_KEY_BYTES_MAX: usize = 300;

    /// Its PeerId, if its node key is one.
    pub fn peer_id(&self) -> Option<PeerId> {
        peer_of(&self.node_key)
    }

    /// Why this cannot be a member, if it cannot.
    pub fn check(&self) -> Result<(), RosterError> {
        let name_is_good = (1..=Self::NAME_BYTES_MAX).contains(&self.name.len())
            && !self.name.chars().any(char::is_control)
            && self.name.trim() == self.name;
        if !name_is_good {
            return Err(RosterError::Name { name: self.name.clone() });
        }
        let key_is_good = |text: &String| {
            text.len() <= Self::BUILDER_KEY_BYTES_MAX
                && NixPublicKey::parse(text).is_ok_and(|key| key.to_string() == *text)
        };
        if !self.builder_key.as_ref().is_none_or(key_is_good) {
            return Err(RosterError::BuilderKey { name: self.name.clone() });
        }
        let addresses_are_good = self.addresses.len() <= Self::ADDRESSES_MAX
            && self.addresses.iter().all(|address| address.len() <= Self::ADDRESS_BYTES_MAX);
        if !addresses_are_good {
            return Err(RosterError::Addresses { name: self.name.clone() });
        }
        Ok(())
    }
}

/// All members of a mesh, as of one version.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Roster {
    /// Of two rosters of one mesh, the one of the higher version counts.
    pub version: u64,
    /// When it was signed by the clock of whoever signed it, milliseconds since 1970. It decides nothing.
    pub issued_at_ms: u64,
    /// The members, ordered by their node keys; at most [`Roster::MEMBERS_MAX`].
    pub members: Vec<Member>,
    /// How many edits of each machine that signs rosters are in this one, ordered by node keys; at most
    /// [`Roster::SIGNERS_MAX`]. By it a signer sees whether one that two signed at once has lost an edit of its own.
    pub edits: Vec<EditCount>,
}

/// How many edits of one signer a roster holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct EditCount {
    /// The Ed25519 key of its PeerId.
    pub signer: [u8; 32],
    /// The number of its last edit; each signer numbers its own from 1.
    pub count: u64,
}

impl Roster {
    /// Most members: as many as the audience of a summary holds, without its owner.
    pub const MEMBERS_MAX: usize = crate::Summary::AUDIENCE_MAX - 1;
    /// Most machines that sign.
    pub const SIGNERS_MAX: usize = 64;

    /// How many edits of this signer it holds.
    pub fn edits_of(&self, signer: &[u8; 32]) -> u64 {
        self.edits.iter().find(|edits| edits.signer == *signer).map_or(0, |edits| edits.count)
    }

    /// Says how many edits of this signer it holds.
    pub fn set_edits_of(&mut self, signer: [u8; 32], count: u64) {
        self.edits.retain(|edits| edits.signer != signer);
        self.edits.push(EditCount { signer, count });
    }

    /// Adds a member, or puts it in the place of the one with its node key. If another one has its name, it gets a number.
    pub fn put(&mut self, mut member: Member) {
        self.members.retain(|known| known.node_key != member.node_key);
        let wanted = member.name.clone();
        let mut number = 2_u32;
        while self.members.iter().any(|known| known.name == member.name) {
            let end = format!("-{number}");
            let room = Member::NAME_BYTES_MAX - end.len();
            let start = wanted.get(..wanted.floor_char_boundary(room)).unwrap_or_default();
            member.name = format!("{}{end}", start.trim_end());
            number += 1;
        }
        self.members.push(member);
    }

    /// Another member whose builder key has the name of this one's and is another key. Nix looks a key up by its name.
    pub fn find_key_name(&self, wanted: &Member) -> Option<(&Member, NixPublicKey)> {
        let key_of = |member: &Member| NixPublicKey::parse(member.builder_key.as_ref()?).ok();
        let wanted_key = key_of(wanted)?;
        let is_same_name = |member: &&Member| {
            member.node_key != wanted.node_key
                && key_of(member)
                    .is_some_and(|key| key.name() == wanted_key.name() && key.bytes() != wanted_key.bytes())
        };
        let other = self.members.iter().find(is_same_name)?;
        Some((other, wanted_key))
    }

    fn check(&self) -> Result<(), RosterError> {
        if self.members.len() > Self::MEMBERS_MAX {
            return Err(RosterError::TooMany { members: self.members.len() });
        }
        if !self.members.is_sorted_by(|one, next| one.node_key < next.node_key) {
            return Err(RosterError::Order);
        }
        let mut names = BTreeSet::new();
        for member in &self.members {
            member.check()?;
            if !names.insert(&member.name) {
                return Err(RosterError::NameTwice { name: member.name.clone() });
            }
        }
        if self.edits.len() > Self::SIGNERS_MAX || !self.edits.is_sorted_by(|one, next| one.signer < next.signer) {
            return Err(RosterError::Edits { signers: self.edits.len() });
        }
        Ok(())
    }
}

/// Which of two rosters of one mesh counts: that of the higher version, and of two of the same version, which only two
/// signers at once can make, that of the greater digest. So all machines settle on one of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, bincode::Encode, bincode::Decode)]
pub struct RosterVersion {
    /// The version.
    pub version: u64,
    /// BLAKE3 of the signed bytes.
    pub digest: [u8; 32],
}

/// Why a roster is refused.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// Longer than [`SignedRoster::BYTES_MAX`] or shorter than its header.
    #[error("roster of {bytes} bytes, expected {HEADER_BYTES} to {}", SignedRoster::BYTES_MAX)]
    Length {
        /// The length found.
        bytes: usize,
    },
    /// The format is newer than this node.
    #[error("roster of format {format}, this narmesh knows {FORMAT}")]
    UnknownFormat {
        /// The format found.
        format: u8,
    },
    /// It is signed by another key.
    #[error("roster of another mesh: it is not signed by the mesh key {expected}")]
    OtherMesh {
        /// The mesh key, in Nix's text form.
        expected: String,
    },
    /// The signature does not verify.
    #[error("the roster's signature does not verify")]
    Signature,
    /// The payload does not decode.
    #[error("roster payload")]
    Payload(#[from] CodecError),
    /// Too many members.
    #[error("{members} members, at most {} are possible", Roster::MEMBERS_MAX)]
    TooMany {
        /// The number found.
        members: usize,
    },
    /// The members are not ordered by key, or one is there twice.
    #[error("the members are not ordered by their keys, or one is there twice")]
    Order,
    /// The counts of edits are too many, or not ordered by key.
    #[error("edits of {signers} signers, expected at most {}, ordered by their keys", Roster::SIGNERS_MAX)]
    Edits {
        /// The number found.
        signers: usize,
    },
    /// A member's name cannot be one.
    #[error(
        "member name {name:?}, expected 1 to {} bytes without control characters and without white space at its ends",
        Member::NAME_BYTES_MAX
    )]
    Name {
        /// The name found.
        name: String,
    },
    /// Two members have one name.
    #[error("two members are called {name:?}")]
    NameTwice {
        /// The name.
        name: String,
    },
    /// A builder key is not one.
    #[error("builder key of member {name:?}, expected a Nix public key, name:base64 of 32 bytes")]
    BuilderKey {
        /// The member.
        name: String,
    },
    /// Too many addresses, or too long ones.
    #[error(
        "addresses of member {name:?}, expected at most {} of at most {} bytes",
        Member::ADDRESSES_MAX,
        Member::ADDRESS_BYTES_MAX
    )]
    Addresses {
        /// The member.
        name: String,
    },
}

/// A roster with the exact bytes that the mesh key signed.
///
/// Layout: format (1 byte, `1`), the mesh key's 32 public bytes, signature (64) over `narmesh-roster-1;` + payload, payload
/// (the rest). The signature is checked over the bytes received, never over a re-encoding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedRoster {
    roster: Roster,
    bytes: Vec<u8>,
    version: RosterVersion,
}

impl SignedRoster {
    /// Largest roster, bytes: 2,047 members of 500 bytes.
    pub const BYTES_MAX: usize = 1 << 20;

    /// Signs a roster. Its members are put in order. If more have signed than are counted, those who are no members are not
    /// counted any more.
    pub fn sign(key: &NixSecretKey, mut roster: Roster) -> Result<Self, RosterError> {
        roster.members.sort_by_key(|member| member.node_key);
        let members = &roster.members;
        let is_member =
            |edits: &EditCount| members.binary_search_by(|member| member.node_key.cmp(&edits.signer)).is_ok();
        if roster.edits.len() > Roster::SIGNERS_MAX {
            roster.edits.retain(is_member);
        }
        roster.edits.sort_by_key(|edits| edits.signer);
        roster.check()?;
        let payload = codec::encode::<{ Self::BYTES_MAX - HEADER_BYTES }>(&roster)?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.push(FORMAT);
        bytes.extend_from_slice(&key.public().bytes());
        bytes.extend_from_slice(&key.sign_bytes(&signed_bytes(&payload)));
        bytes.extend_from_slice(&payload);
        Ok(Self::new(roster, bytes))
    }

    /// Checks length, format, signer and signature, then decodes, and checks each member.
    pub fn open(mesh: &NixPublicKey, bytes: &[u8]) -> Result<Self, RosterError> {
        let length = RosterError::Length { bytes: bytes.len() };
        if bytes.len() > Self::BYTES_MAX {
            return Err(length);
        }
        let Some((&format, rest)) = bytes.split_first() else { return Err(length) };
        if format != FORMAT {
            return Err(RosterError::UnknownFormat { format });
        }
        let Some((signer, rest)) = rest.split_first_chunk::<32>() else { return Err(length) };
        let Some((signature, payload)) = rest.split_first_chunk::<64>() else { return Err(length) };
        if *signer != mesh.bytes() {
            return Err(RosterError::OtherMesh { expected: mesh.to_string() });
        }
        if !mesh.verify_bytes(&signed_bytes(payload), signature) {
            return Err(RosterError::Signature);
        }
        let roster = codec::decode::<Roster, { Self::BYTES_MAX }>(payload)?;
        roster.check()?;
        Ok(Self::new(roster, bytes.to_vec()))
    }

    /// The digest is computed once: it is asked for with each comparison, and a roster may have a megabyte.
    fn new(roster: Roster, bytes: Vec<u8>) -> Self {
        let version = RosterVersion { version: roster.version, digest: *blake3::hash(&bytes).as_bytes() };
        Self { roster, bytes, version }
    }

    /// What was signed.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Which one it is.
    pub fn version(&self) -> RosterVersion {
        self.version
    }

    /// The bytes to send, store or check again.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The member with this node key.
    pub fn member(&self, node_key: &[u8; 32]) -> Option<&Member> {
        let members = &self.roster.members;
        members.binary_search_by(|member| member.node_key.cmp(node_key)).ok().and_then(|at| members.get(at))
    }
}

/// Two rosters of one version with different digests: two signers at once.
pub fn are_forked(one: &RosterVersion, other: &RosterVersion) -> bool {
    one.version == other.version && one.digest.cmp(&other.digest) != Ordering::Equal
}

fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    [SIGNING_DOMAIN, payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> NixSecretKey {
        NixSecretKey::from_seed("home", &[1; 32]).unwrap()
    }

    fn member(number: u8) -> Member {
        Member {
            node_key: [number; 32],
            name: format!("machine {number}"),
            role: MemberRole::Builder,
            builder_key: Some(NixSecretKey::from_seed("b-1", &[number; 32]).unwrap().public().to_string()),
            relay: false,
            ephemeral_s: 0,
            addresses: vec!["/ip4/192.0.2.1/tcp/7280".to_owned()],
        }
    }

    fn roster(members: Vec<Member>) -> Roster {
        Roster { version: 7, issued_at_ms: 1, members, edits: Vec::new() }
    }

    #[test]
    fn opens_what_was_signed_and_nothing_else() {
        let signed = SignedRoster::sign(&key(), roster(vec![member(9), member(2)])).unwrap();
        assert_eq!(SignedRoster::open(&key().public(), signed.as_bytes()).unwrap(), signed);
        assert_eq!(signed.member(&[9; 32]).unwrap().name, "machine 9");
        assert_eq!(signed.member(&[3; 32]), None);
        for at in 0..signed.as_bytes().len() {
            let mut forged = signed.as_bytes().to_vec();
            forged[at] ^= 1;
            assert!(SignedRoster::open(&key().public(), &forged).is_err(), "byte {at} changed and still accepted");
            assert!(SignedRoster::open(&key().public(), &signed.as_bytes()[..at]).is_err());
        }
        let other = NixSecretKey::from_seed("home", &[2; 32]).unwrap();
        assert!(matches!(SignedRoster::open(&other.public(), signed.as_bytes()), Err(RosterError::OtherMesh { .. })));
    }

    #[test]
    fn what_cannot_be_a_roster_is_not_signed() {
        let refused = |members| SignedRoster::sign(&key(), roster(members)).unwrap_err().to_string();
        let named = |name: &str| Member { name: name.to_owned(), ..member(1) };
        for name in ["", " a", "a\n", &"x".repeat(65)] {
            assert!(refused(vec![named(name)]).contains("expected 1 to 64 bytes"), "{name:?}");
        }
        assert!(refused(vec![member(1), member(1)]).contains("twice"));
        assert!(refused(vec![named("two"), Member { node_key: [2; 32], ..named("two") }]).contains("two members"));
        let key = |text: &str| Member { builder_key: Some(text.to_owned()), ..member(1) };
        assert!(refused(vec![key("b-1:xx")]).contains("expected a Nix public key"));
        let far = Member { addresses: vec![String::new(); 9], ..member(1) };
        assert!(refused(vec![far]).contains("expected at most 8 of at most 300 bytes"));
        assert!(refused(vec![member(1); 2_048]).contains("2048 members, at most 2047"));
    }

    #[test]
    fn edits_are_counted_in_order_and_for_a_bounded_number_of_signers() {
        let mut counted = roster(vec![member(9), member(2)]);
        for (signer, count) in [(9, 1), (9, 4), (5, 3), (2, 7)] {
            counted.set_edits_of([signer; 32], count);
        }
        let counts = |roster: &Roster| {
            let signed = SignedRoster::sign(&key(), roster.clone()).unwrap();
            let signed = SignedRoster::open(&key().public(), signed.as_bytes()).unwrap();
            let edits = &signed.roster().edits;
            edits.iter().map(|edits| (edits.signer[0], edits.count)).collect::<Vec<_>>()
        };
        assert_eq!(counts(&counted), [(2, 7), (5, 3), (9, 4)]);
        (10..72).for_each(|signer| counted.set_edits_of([signer; 32], 1));
        assert_eq!(counts(&counted), [(2, 7), (9, 4)], "too many");
        let many: Vec<Member> = (0..65).map(member).collect();
        let mut counted = roster(many);
        (0..65).for_each(|signer| counted.set_edits_of([signer; 32], 1));
        let refused = SignedRoster::sign(&key(), counted).unwrap_err().to_string();
        assert_eq!(refused, "edits of 65 signers, expected at most 64, ordered by their keys");
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        let mut roster = roster(Vec::new());
        for number in 1..=3 {
            roster.put(Member { name: "laptop".to_owned(), ..member(number) });
        }
        roster.put(Member { name: "laptop".to_owned(), ..member(2) });
        let names: Vec<&str> = roster.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["laptop", "laptop-3", "laptop-2"]);
    }

    #[test]
    fn node_keys_and_peer_ids_belong_together() {
        let peer = libp2p_identity::Keypair::generate_ed25519().public().to_peer_id();
        let member = Member { node_key: node_key_of(&peer).unwrap(), ..member(1) };
        assert_eq!(member.peer_id(), Some(peer));
        assert_eq!(node_key_of(&PeerId::random()), None, "a PeerId without a key");
    }

    #[test]
    fn of_two_rosters_the_higher_version_counts_and_of_two_of_one_version_always_the_same() {
        let sign = |version, name: &str| {
            let members = vec![Member { name: name.to_owned(), ..member(1) }];
            SignedRoster::sign(&key(), Roster { version, ..roster(members) }).unwrap().version()
        };
        assert!(sign(2, "a") > sign(1, "b") && sign(2, "b") > sign(1, "a"));
        let (one, other) = (sign(3, "a"), sign(3, "b"));
        assert!(are_forked(&one, &other) && one != other && !are_forked(&one, &one));
    }
}
