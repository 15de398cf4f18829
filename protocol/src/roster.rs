//! The roster of a mesh: who its members are, signed by the mesh key.

use crate::NixPublicKey;
use crate::codec::CodecError;
use crate::removal::Removed;
use libp2p_identity::{PeerId, PublicKey, ed25519};
use std::collections::BTreeSet;

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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// The Ed25519 key of its PeerId.
    pub node_key: [u8; 32],
    /// Its name, for people; no other member has the same.
    pub name: String,
    /// What it may do.
    pub role: MemberRole,
    /// Its builder key in Nix's text form, if it has one. It counts only for a [`MemberRole::Builder`].
    pub builder_key: Option<String>,
    /// Its group among the builders of a quorum, if it shares one: all builders of a group together count once.
    pub group: Option<String>,
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
        if !is_name(&self.name) {
            return Err(RosterError::Name { name: self.name.clone() });
        }
        if !self.group.as_deref().is_none_or(is_name) {
            return Err(RosterError::Group { name: self.name.clone() });
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

fn is_name(text: &str) -> bool {
    (1..=Member::NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control) && text.trim() == text
}

/// All members of a mesh, as of one version.
#[derive(Clone, PartialEq, Eq, Debug)]
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
    /// What the last machines that were removed are told, ordered by their node keys; at most [`Roster::REMOVALS_MAX`].
    pub removals: Vec<Removed>,
}

/// How many edits of one signer a roster holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct EditCount {
    /// The Ed25519 key of its PeerId.
    pub signer: [u8; 32],
    /// The number of its last edit; each signer numbers its own upwards.
    pub count: u64,
}

impl Roster {
    /// Most members: as many as the audience of a summary holds, without its owner.
    pub const MEMBERS_MAX: usize = crate::Summary::AUDIENCE_MAX - 1;
    /// Largest signed roster, bytes: 2,047 members of 500 bytes.
    pub const SIGNED_BYTES_MAX: usize = 1 << 20;
    /// Most machines that sign.
    pub const SIGNERS_MAX: usize = 64;
    /// Most removals that are kept; of more, the oldest are forgotten. A guess: so many removed machines that have not been
    /// switched on since.
    pub const REMOVALS_MAX: usize = 64;

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
            // The number must fit into the bound of a name, and a character must not be cut.
            let start = wanted.get(..wanted.floor_char_boundary(room)).unwrap_or_default();
            member.name = format!("{}{end}", start.trim_end());
            number += 1;
        }
        self.members.push(member);
    }

    /// Another member whose builder key is this one's, or has its name: Nix looks a key up by its name, and one that two
    /// members have would count as both say, and still count when one of them is removed.
    pub fn find_builder_key(&self, wanted: &Member) -> Option<(&Member, NixPublicKey)> {
        let key_of = |member: &Member| NixPublicKey::parse(member.builder_key.as_ref()?).ok();
        let wanted_key = key_of(wanted)?;
        let is_same = |member: &&Member| {
            member.node_key != wanted.node_key
                && key_of(member)
                    .is_some_and(|key| key.name() == wanted_key.name() || key.bytes() == wanted_key.bytes())
        };
        let other = self.members.iter().find(is_same)?;
        Some((other, wanted_key))
    }

    /// Removes a member, and its builder key wherever it stands: whoever else has the key is a client then. Those are
    /// returned by name.
    pub fn remove(&mut self, node_key: &[u8; 32]) -> Vec<String> {
        let Some(at) = self.members.iter().position(|member| member.node_key == *node_key) else { return Vec::new() };
        let key_of = |member: &Member| Some(NixPublicKey::parse(member.builder_key.as_ref()?).ok()?.bytes());
        let removed = key_of(&self.members.remove(at));
        let mut others = Vec::new();
        for member in self.members.iter_mut().filter(|member| removed.is_some() && key_of(member) == removed) {
            (member.role, member.builder_key) = (MemberRole::Client, None);
            others.push(member.name.clone());
        }
        others
    }

    pub(crate) fn check(&self) -> Result<(), RosterError> {
        if self.members.len() > Self::MEMBERS_MAX {
            return Err(RosterError::TooMany { members: self.members.len() });
        }
        // Strictly ascending, so that no member stands there twice and there is one encoding.
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
        let is_ordered = self.removals.is_sorted_by(|one, next| one.node_key < next.node_key);
        if self.removals.len() > Self::REMOVALS_MAX || !is_ordered {
            return Err(RosterError::Removals { removals: self.removals.len() });
        }
        Ok(())
    }
}

/// Why a roster is refused.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// Longer than [`Roster::SIGNED_BYTES_MAX`] or shorter than its header of 97 bytes.
    #[error("roster of {bytes} bytes, expected 97 to {}", Roster::SIGNED_BYTES_MAX)]
    Length {
        /// The length found.
        bytes: usize,
    },
    /// The format is newer than this node.
    #[error("roster of format {format}, this narmesh knows 1 and 2")]
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
    /// The lineage of the mesh key that signed it is none.
    #[error("the lineage does not lead to the mesh key that signed the roster, or is not signed")]
    Lineage,
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
    /// The removals are too many, or not ordered by key.
    #[error("{removals} removals, expected at most {}, ordered by their keys", Roster::REMOVALS_MAX)]
    Removals {
        /// The number found.
        removals: usize,
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
    /// A group's name cannot be one.
    #[error(
        "group of member {name:?}, expected 1 to {} bytes without control characters and without white space at its ends",
        Member::NAME_BYTES_MAX
    )]
    Group {
        /// The member.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NixSecretKey, SignedRoster};

    fn key() -> NixSecretKey {
        NixSecretKey::from_seed("home", &[1; 32]).unwrap()
    }

    fn member(number: u8) -> Member {
        Member {
            node_key: [number; 32],
            name: format!("machine {number}"),
            role: MemberRole::Builder,
            builder_key: Some(NixSecretKey::from_seed("b-1", &[number; 32]).unwrap().public().to_string()),
            group: None,
            relay: false,
            ephemeral_s: 0,
            addresses: vec!["/ip4/192.0.2.1/tcp/7280".to_owned()],
        }
    }

    fn roster(members: Vec<Member>) -> Roster {
        Roster { version: 7, issued_at_ms: 1, members, edits: Vec::new(), removals: Vec::new() }
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
        let grouped = |group: &str| Member { group: Some(group.to_owned()), ..member(1) };
        for group in ["", "a ", "a\u{1}", &"x".repeat(65)] {
            assert!(
                refused(vec![grouped(group)]).contains("group of member \"machine 1\", expected 1 to 64"),
                "{group:?}"
            );
        }
        assert!(refused(vec![key("b-1:xx")]).contains("expected a Nix public key"));
        let far = Member { addresses: vec![String::new(); 9], ..member(1) };
        assert!(refused(vec![far]).contains("expected at most 8 of at most 300 bytes"));
        assert!(refused(vec![member(1); 2_048]).contains("2048 members, at most 2047"));
    }

    #[test]
    fn a_builder_key_is_found_by_its_name_and_its_bytes_and_goes_with_its_member() {
        let key = |name: &str, seed| Some(NixSecretKey::from_seed(name, &[seed; 32]).unwrap().public().to_string());
        let with = |number, builder_key| Member { builder_key, ..member(number) };
        let mut members = roster(vec![with(1, key("one", 1)), with(2, key("two", 2)), with(3, key("other", 1))]);
        let finds = |wanted: Member| members.find_builder_key(&wanted).map(|(other, _)| other.name.clone());
        assert_eq!(finds(with(4, key("four", 4))), None);
        assert_eq!(finds(with(4, None)), None);
        assert_eq!(finds(with(2, key("two", 5))), None, "its own place");
        assert_eq!(finds(with(4, key("two", 4))).as_deref(), Some("machine 2"));
        assert_eq!(finds(with(4, key("four", 2))).as_deref(), Some("machine 2"));
        assert_eq!(members.remove(&[1; 32]), ["machine 3"]);
        let left: Vec<_> = members.members.iter().map(|it| (it.node_key[0], it.role, it.builder_key.clone())).collect();
        assert_eq!(left, [(2, MemberRole::Builder, key("two", 2)), (3, MemberRole::Client, None)]);
        assert!(members.remove(&[1; 32]).is_empty());
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
}
