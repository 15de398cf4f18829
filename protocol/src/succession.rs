//! How one mesh key replaces another.

use crate::{NixPublicKey, NixSecretKey};

/// Prefix of the signed bytes: the signature of a succession is valid for nothing else.
const SIGNING_DOMAIN: &[u8] = b"narmesh-mesh-key-1;";

/// The statement of a mesh key that another one has taken its place.
///
/// Layout: the old key (32 bytes), the new key (32), `version` (8, little-endian), signature (64) by the old key over
/// `narmesh-mesh-key-1;` and the 72 bytes before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Succession {
    /// The mesh key that was replaced.
    pub old: [u8; 32],
    /// The one that counts in its place.
    pub new: [u8; 32],
    /// The version of the last roster of the old key that whoever signed this knew. Rosters of the new key have higher ones.
    pub version: u64,
    signature: [u8; 64],
}

impl Succession {
    /// Length of the encoding.
    pub const BYTES: usize = 136;

    /// Has the old key say so.
    pub fn sign(old: &NixSecretKey, new: &[u8; 32], version: u64) -> Self {
        let (old_key, new) = (old.public().bytes(), *new);
        let signature = old.sign_bytes(&signed_bytes(&old_key, &new, version));
        Self { old: old_key, new, version, signature }
    }

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let parts = [&self.old[..], &self.new, &self.version.to_le_bytes(), &self.signature].concat();
        bytes.copy_from_slice(&parts);
        bytes
    }

    /// Decodes; `None` if the old key did not sign this.
    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (old, rest) = bytes.split_first_chunk::<32>()?;
        let (new, rest) = rest.split_first_chunk::<32>()?;
        let (version, rest) = rest.split_first_chunk::<8>()?;
        let signature = rest.first_chunk::<64>()?;
        let version = u64::from_le_bytes(*version);
        // The name is of no consequence here: it is not signed.
        let key = NixPublicKey::new("mesh", old).ok()?;
        let is_signed = key.verify_bytes(&signed_bytes(old, new, version), signature);
        is_signed.then_some(Self { old: *old, new: *new, version, signature: *signature })
    }
}

fn signed_bytes(old: &[u8; 32], new: &[u8; 32], version: u64) -> Vec<u8> {
    [SIGNING_DOMAIN, old, new, &version.to_le_bytes()].concat()
}

/// The successions from an earlier mesh key to the one that signed a roster, the earliest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lineage(Vec<Succession>);

impl Lineage {
    /// Most successions that are kept; of more, the earliest are forgotten.
    pub const SUCCESSIONS_MAX: usize = 16;

    /// The successions, the earliest first.
    pub fn successions(&self) -> &[Succession] {
        &self.0
    }

    /// The same with one more; `None` if it does not continue this one.
    #[must_use]
    pub fn continued(&self, succession: Succession) -> Option<Self> {
        let mut successions = self.0.clone();
        successions.push(succession);
        let excess = successions.len().saturating_sub(Self::SUCCESSIONS_MAX);
        successions.drain(..excess);
        Self::checked(successions)
    }

    /// Whether it begins before this key was replaced.
    pub fn replaced(&self, key: &[u8; 32]) -> bool {
        self.0.iter().any(|succession| succession.old == *key)
    }

    /// Whether both say of one key who has taken its place, and not the same.
    pub fn contradicts(&self, other: &Self) -> bool {
        let differs = |one: &Succession, other: &Succession| one.old == other.old && one.new != other.new;
        self.0.iter().any(|one| other.0.iter().any(|other| differs(one, other)))
    }

    /// The version above which rosters of the last key are.
    pub(crate) fn last(&self) -> Option<&Succession> {
        self.0.last()
    }

    /// Each continues the one before, no key comes twice, and versions grow.
    pub(crate) fn checked(successions: Vec<Succession>) -> Option<Self> {
        let continues = |pair: &[Succession]| match pair {
            [one, next] => one.new == next.old && one.version < next.version,
            _ => true,
        };
        let mut keys: Vec<&[u8; 32]> = successions.iter().map(|succession| &succession.old).collect();
        keys.extend(successions.last().map(|last| &last.new));
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        let is_good =
            keys.len() == count && successions.len() <= Self::SUCCESSIONS_MAX && successions.windows(2).all(continues);
        is_good.then_some(Self(successions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> NixSecretKey {
        NixSecretKey::from_seed("home", &[seed; 32]).unwrap()
    }

    fn succession(old: u8, new: u8, version: u64) -> Succession {
        Succession::sign(&key(old), &key(new).public().bytes(), version)
    }

    #[test]
    fn only_what_the_old_key_said_decodes() {
        let bytes = succession(1, 2, 7).encode();
        assert_eq!(Succession::decode(&bytes), Some(succession(1, 2, 7)));
        for at in 0..bytes.len() {
            let mut forged = bytes;
            forged[at] ^= 1;
            assert_eq!(Succession::decode(&forged), None, "byte {at} changed");
        }
    }

    #[test]
    fn a_line_is_without_gaps_and_never_leads_back() {
        let lineage = Lineage::default().continued(succession(1, 2, 7)).unwrap();
        assert_eq!(lineage.continued(succession(1, 3, 9)), None, "a gap");
        assert_eq!(lineage.continued(succession(2, 1, 9)), None, "a circle");
        assert_eq!(lineage.continued(succession(2, 3, 7)), None, "no roster between them");
        let longer = lineage.continued(succession(2, 3, 9)).unwrap();
        assert!(longer.replaced(&key(1).public().bytes()) && !longer.replaced(&key(3).public().bytes()));
        let other = lineage.continued(succession(2, 4, 9)).unwrap();
        assert!(longer.contradicts(&other) && !longer.contradicts(&lineage) && !longer.contradicts(&longer));
    }

    #[test]
    fn of_many_successions_the_last_ones_are_kept() {
        let mut lineage = Lineage::default();
        for old in 1..=40 {
            lineage = lineage.continued(succession(old, old + 1, old.into())).unwrap();
        }
        assert_eq!(lineage.successions().len(), Lineage::SUCCESSIONS_MAX);
        assert_eq!(lineage.last(), Some(&succession(40, 41, 40)));
    }
}
