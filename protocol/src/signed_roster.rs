//! A roster as the mesh key signed it.

use crate::codec;
use crate::roster::{EditCount, Member, Roster, RosterError};
use crate::succession::{Lineage, Succession};
use crate::{NixPublicKey, NixSecretKey};
use std::cmp::Ordering;

/// Prefix of the signed bytes: the signature of a roster is valid for nothing else.
const SIGNING_DOMAIN: &[u8] = b"narmesh-roster-1;";
/// The same for a roster of a mesh whose key was replaced.
const SIGNING_DOMAIN_WITH_LINEAGE: &[u8] = b"narmesh-roster-2;";
/// A roster of the first mesh key.
const FORMAT: u8 = 1;
/// One of a mesh key that replaced another one; its lineage comes before the payload.
const FORMAT_WITH_LINEAGE: u8 = 2;
const HEADER_BYTES: usize = 1 + 32 + 64;

/// Which of two rosters of one mesh key counts: that of the higher version, and of two of the same version, which only two
/// signers at once can make, that of the greater digest. So all machines settle on one of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, bincode::Encode, bincode::Decode)]
pub struct RosterVersion {
    /// The version.
    pub version: u64,
    /// BLAKE3 of the signed bytes.
    pub digest: [u8; 32],
}

/// How a roster stands to another one that counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It counts in its place.
    Newer,
    /// It is the same.
    Same,
    /// It does not count any more.
    Older,
    /// A mesh key that both know said of two others that they have taken its place.
    Contradicts,
    /// The two are of different meshes, as far as they show.
    Unrelated,
}

/// A roster with the exact bytes that the mesh key signed.
///
/// Layout: format (1 byte, `1`), the mesh key's 32 public bytes, signature (64) over `narmesh-roster-1;` + payload, payload
/// (the rest). Where the key has replaced another one the format is `2`, and the signature is over `narmesh-roster-2;` and
/// the rest, which is the number of successions (1 byte), the successions, and the payload. The signature is checked over
/// the bytes received, never over a re-encoding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedRoster {
    key: NixPublicKey,
    lineage: Lineage,
    roster: Roster,
    bytes: Vec<u8>,
    version: RosterVersion,
}

impl SignedRoster {
    /// Largest roster, bytes.
    pub const BYTES_MAX: usize = Roster::SIGNED_BYTES_MAX;

    /// Signs a roster of a mesh whose key has replaced no other one. Its members are put in order. If more have signed than
    /// are counted, those who are no members are not counted any more.
    pub fn sign(key: &NixSecretKey, roster: Roster) -> Result<Self, RosterError> {
        Self::sign_with_lineage(key, &Lineage::default(), roster)
    }

    /// The same for a key to which this lineage leads.
    pub fn sign_with_lineage(key: &NixSecretKey, lineage: &Lineage, mut roster: Roster) -> Result<Self, RosterError> {
        roster.members.sort_by_key(|member| member.node_key);
        let members = &roster.members;
        let is_member =
            |edits: &EditCount| members.binary_search_by(|member| member.node_key.cmp(&edits.signer)).is_ok();
        // Counts of those who are no members any more go first when the bound is reached.
        if roster.edits.len() > Roster::SIGNERS_MAX {
            roster.edits.retain(is_member);
        }
        roster.edits.sort_by_key(|edits| edits.signer);
        // Checked before it is signed: a roster that others refuse must not come into being.
        roster.check()?;
        check_lineage(&key.public(), lineage, &roster)?;
        let (format, signed) = match encode_signed(lineage, &roster) {
            // Whoever is removed must go, also where there is no room to tell it.
            Err(RosterError::Length { .. }) if !roster.removals.is_empty() => {
                roster.removals.clear();
                encode_signed(lineage, &roster)?
            }
            encoded => encoded?,
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + signed.len());
        bytes.push(format);
        bytes.extend_from_slice(&key.public().bytes());
        bytes.extend_from_slice(&key.sign_bytes(&signed_bytes(format, &signed)));
        bytes.extend_from_slice(&signed);
        Ok(Self::new(key.public(), lineage.clone(), roster, bytes))
    }

    /// Checks length, format, signer and signature, then decodes, and checks each member. The signer is the mesh key `mesh`,
    /// or one that has taken its place.
    pub fn open(mesh: &NixPublicKey, bytes: &[u8]) -> Result<Self, RosterError> {
        let opened = Self::open_of_any(mesh.name(), bytes, |signer, lineage| {
            *signer == mesh.bytes() || lineage.replaced(&mesh.bytes())
        })?;
        opened.ok_or_else(|| RosterError::OtherMesh { expected: mesh.to_string() })
    }

    /// The same of any mesh, whose name is said to be `name`: nothing counts but that its key signed it.
    pub fn open_unknown(name: &str, bytes: &[u8]) -> Result<Self, RosterError> {
        Ok(Self::open_of_any(name, bytes, |_, _| true)?.expect("every key is accepted"))
    }

    /// `None` if `accepts` refuses the key that signed it, before the signature is checked.
    fn open_of_any(
        name: &str,
        bytes: &[u8],
        accepts: impl FnOnce(&[u8; 32], &Lineage) -> bool,
    ) -> Result<Option<Self>, RosterError> {
        let length = RosterError::Length { bytes: bytes.len() };
        if bytes.len() > Self::BYTES_MAX {
            return Err(length);
        }
        let Some((&format, rest)) = bytes.split_first() else { return Err(length) };
        if format != FORMAT && format != FORMAT_WITH_LINEAGE {
            return Err(RosterError::UnknownFormat { format });
        }
        let Some((signer, rest)) = rest.split_first_chunk::<32>() else { return Err(length) };
        let Some((signature, signed)) = rest.split_first_chunk::<64>() else { return Err(length) };
        let (lineage, payload) = match format {
            FORMAT => (Lineage::default(), signed),
            _ => decode_lineage(signed).ok_or(RosterError::Lineage)?,
        };
        // Before the signature: that of a key which nobody asked for need not be verified.
        if !accepts(signer, &lineage) {
            return Ok(None);
        }
        let key = NixPublicKey::new(name, signer).map_err(|_| RosterError::Signature)?;
        if !key.verify_bytes(&signed_bytes(format, signed), signature) {
            return Err(RosterError::Signature);
        }
        let roster = codec::decode::<Roster, { Self::BYTES_MAX }>(payload)?;
        roster.check()?;
        check_lineage(&key, &lineage, &roster)?;
        Ok(Some(Self::new(key, lineage, roster, bytes.to_vec())))
    }

    /// The digest is computed once: it is asked for with each comparison, and a roster may have a megabyte.
    fn new(key: NixPublicKey, lineage: Lineage, roster: Roster, bytes: Vec<u8>) -> Self {
        let version = RosterVersion { version: roster.version, digest: *blake3::hash(&bytes).as_bytes() };
        Self { key, lineage, roster, bytes, version }
    }

    /// The mesh key that signed it.
    pub fn key(&self) -> &NixPublicKey {
        &self.key
    }

    /// The successions from earlier mesh keys to [`Self::key`].
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// What was signed.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Which one it is, of those that its key signed.
    pub fn version(&self) -> RosterVersion {
        self.version
    }

    /// How `other` stands to this one. A roster of a key that has taken the place of another key counts before all of that
    /// one, whatever their versions are: the old key may be in the hands of a thief.
    pub fn standing_of(&self, other: &Self) -> Standing {
        if self.key.bytes() == other.key.bytes() {
            match other.version.cmp(&self.version) {
                Ordering::Greater => Standing::Newer,
                Ordering::Equal => Standing::Same,
                Ordering::Less => Standing::Older,
            }
        } else if other.lineage.replaced(&self.key.bytes()) {
            Standing::Newer
        } else if self.lineage.replaced(&other.key.bytes()) {
            Standing::Older
        } else if self.lineage.contradicts(&other.lineage) {
            Standing::Contradicts
        } else {
            Standing::Unrelated
        }
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

/// The format, and the bytes that are signed behind the prefix.
fn encode_signed(lineage: &Lineage, roster: &Roster) -> Result<(u8, Vec<u8>), RosterError> {
    // The longest that members can make it: what is too long is told by the sum.
    let payload = codec::encode::<{ 4 * SignedRoster::BYTES_MAX }>(roster)?;
    let (format, signed) = match encode_lineage(lineage) {
        None => (FORMAT, payload),
        Some(lineage) => (FORMAT_WITH_LINEAGE, [lineage, payload].concat()),
    };
    let bytes = HEADER_BYTES + signed.len();
    if bytes > SignedRoster::BYTES_MAX { Err(RosterError::Length { bytes }) } else { Ok((format, signed)) }
}

/// The lineage has to lead to the key, and the roster to be newer than the last one of the key before.
fn check_lineage(key: &NixPublicKey, lineage: &Lineage, roster: &Roster) -> Result<(), RosterError> {
    let leads_here = |last: &Succession| last.new == key.bytes() && last.version < roster.version;
    if lineage.last().is_none_or(leads_here) { Ok(()) } else { Err(RosterError::Lineage) }
}

/// The number of successions, and they; `None` for none.
fn encode_lineage(lineage: &Lineage) -> Option<Vec<u8>> {
    let successions = lineage.successions();
    let count = u8::try_from(successions.len()).ok().filter(|count| *count > 0)?;
    let encoded = successions.iter().flat_map(Succession::encode);
    Some(std::iter::once(count).chain(encoded).collect())
}

/// The lineage, whose successions are all signed, and what comes after it.
fn decode_lineage(bytes: &[u8]) -> Option<(Lineage, &[u8])> {
    let (&count, rest) = bytes.split_first()?;
    let count = usize::from(count);
    // None at all has a format of its own, so that each roster has one encoding.
    if !(1..=Lineage::SUCCESSIONS_MAX).contains(&count) {
        return None;
    }
    let (encoded, payload) = rest.split_at_checked(count * Succession::BYTES)?;
    let (encoded, _) = encoded.as_chunks::<{ Succession::BYTES }>();
    let successions = encoded.iter().map(Succession::decode).collect::<Option<Vec<_>>>()?;
    Some((Lineage::checked(successions)?, payload))
}

fn signed_bytes(format: u8, signed: &[u8]) -> Vec<u8> {
    let domain = if format == FORMAT { SIGNING_DOMAIN } else { SIGNING_DOMAIN_WITH_LINEAGE };
    [domain, signed].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemberRole;

    fn key(seed: u8) -> NixSecretKey {
        NixSecretKey::from_seed("home", &[seed; 32]).unwrap()
    }

    fn roster(version: u64, numbers: &[u8]) -> Roster {
        let member = |number: &u8| Member {
            node_key: [*number; 32],
            name: format!("machine {number}"),
            role: MemberRole::Client,
            builder_key: None,
            group: None,
            relay: false,
            ephemeral_s: 0,
            addresses: Vec::new(),
        };
        Roster {
            version,
            issued_at_ms: 1,
            members: numbers.iter().map(member).collect(),
            edits: Vec::new(),
            removals: Vec::new(),
        }
    }

    /// The lineage of these keys, each replaced at ten times its number.
    fn lineage(seeds: &[u8]) -> Lineage {
        let successions = seeds.windows(2).map(|pair| {
            let (old, new) = (key(pair[0]), key(pair[1]).public().bytes());
            Succession::sign(&old, &new, u64::from(pair[0]) * 10)
        });
        successions.fold(Lineage::default(), |lineage, next| lineage.continued(next).unwrap())
    }

    fn signed(seeds: &[u8], version: u64) -> SignedRoster {
        SignedRoster::sign_with_lineage(&key(*seeds.last().unwrap()), &lineage(seeds), roster(version, &[1])).unwrap()
    }

    /// For both formats.
    #[test]
    fn opens_what_was_signed_and_nothing_else() {
        let first = SignedRoster::sign(&key(1), roster(7, &[9, 2])).unwrap();
        assert_eq!(first.member(&[9; 32]).unwrap().name, "machine 9");
        assert_eq!(first.member(&[3; 32]), None);
        for signed in [first, signed(&[1, 2], 11)] {
            assert_eq!(SignedRoster::open(&key(1).public(), signed.as_bytes()).unwrap(), signed);
            for at in 0..signed.as_bytes().len() {
                let mut forged = signed.as_bytes().to_vec();
                forged[at] ^= 1;
                assert!(SignedRoster::open(&key(1).public(), &forged).is_err(), "byte {at} changed and still accepted");
                assert!(SignedRoster::open(&key(1).public(), &signed.as_bytes()[..at]).is_err());
            }
            let refused = SignedRoster::open(&key(5).public(), signed.as_bytes());
            assert!(matches!(refused, Err(RosterError::OtherMesh { .. })), "{refused:?}");
            assert_eq!(SignedRoster::open_unknown("home", signed.as_bytes()).unwrap(), signed);
        }
    }

    #[test]
    fn a_roster_of_a_new_key_opens_with_each_key_before_it_and_tells_the_signer() {
        let last = signed(&[1, 2, 3], 21);
        for seed in 1..=3 {
            assert_eq!(SignedRoster::open(&key(seed).public(), last.as_bytes()).unwrap().key(), &key(3).public());
        }
        let other = SignedRoster::open(&key(4).public(), last.as_bytes());
        assert!(matches!(other, Err(RosterError::OtherMesh { .. })), "{other:?}");
    }

    #[test]
    fn nothing_goes_back_behind_a_succession() {
        let refused = |key: &NixSecretKey, seeds: &[u8], version| {
            SignedRoster::sign_with_lineage(key, &lineage(seeds), roster(version, &[1])).unwrap_err().to_string()
        };
        assert!(
            refused(&key(2), &[1, 2], 10).contains("the lineage does not lead"),
            "not newer than the last one of the old key"
        );
        assert!(
            refused(&key(3), &[1, 2], 11).contains("the lineage does not lead"),
            "the lineage leads to another key"
        );
    }

    #[test]
    fn a_roster_of_the_key_that_took_the_place_counts_whatever_the_versions_are() {
        let (old, new) = (signed(&[1], 900), signed(&[1, 2], 11));
        assert_eq!((old.standing_of(&new), new.standing_of(&old)), (Standing::Newer, Standing::Older));
        assert_eq!(new.standing_of(&new), Standing::Same);
        assert_eq!(old.standing_of(&signed(&[1], 901)), Standing::Newer);
        let other = signed(&[1, 3], 11);
        assert_eq!((new.standing_of(&other), other.standing_of(&new)), (Standing::Contradicts, Standing::Contradicts));
        assert_eq!(other.standing_of(&signed(&[1, 2, 4], 21)), Standing::Contradicts);
        assert_eq!(new.standing_of(&signed(&[5], 11)), Standing::Unrelated);
        // One whose lineage was cut short.
        assert_eq!(signed(&[2, 3], 21).standing_of(&new), Standing::Older);
    }

    #[test]
    fn of_two_rosters_the_higher_version_counts_and_of_two_of_one_version_always_the_same() {
        let sign = |version, number| SignedRoster::sign(&key(1), roster(version, &[number])).unwrap().version();
        assert!(sign(2, 1) > sign(1, 2) && sign(2, 2) > sign(1, 1));
        let (one, other) = (sign(3, 1), sign(3, 2));
        assert!(one != other && one.max(other) == other.max(one));
    }
}
