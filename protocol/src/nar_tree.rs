//! The tree of a NAR: hashes of its leaves, by which each stretch of the NAR proves itself before the whole is there.
//!
//! A leaf is a subtree of BLAKE3 and its hash a chaining value, so the leaves fold to the BLAKE3 hash of the NAR, the
//! *root*. NarHash is a SHA-256 and says nothing of a part; that this root belongs to that NarHash is the word of whoever
//! signs it, and is settled when the whole NAR was hashed.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use libp2p_identity::{Keypair, PeerId, PublicKey};

use crate::NarHash;
use crate::wire::{SMALL_NAR_BYTES_MAX, TREE_LEAVES_MAX};

/// Prefix of the signed bytes: the signature of a tree is valid for nothing else.
const SIGNING_DOMAIN: &[u8] = b"narmesh-nar-tree-1;";
/// Bytes of a leaf, as a power of two, of a NAR up to 2 GiB: 256 KiB.
const LEAF_LOG2_MIN: u32 = 18;
/// The same of the largest NAR that has a tree: 1 MiB, which a receiver has to hold before it may use any of it.
const LEAF_LOG2_MAX: u32 = 20;
/// The hash of one leaf.
pub type LeafHash = ChainingValue;

/// Bytes of each leaf of a NAR of this size, but for the last one: 256 KiB, or the next powers of two as long as there
/// would be more than [`TREE_LEAVES_MAX`] leaves. `None` for a NAR that has no tree: a small one is verified whole, and one
/// over 8 GiB has leaves that nobody could hold.
pub fn leaf_bytes(nar_size: u64) -> Option<u64> {
    if nar_size <= SMALL_NAR_BYTES_MAX {
        return None;
    }
    (LEAF_LOG2_MIN..=LEAF_LOG2_MAX)
        .map(|log2| 1 << log2)
        .find(|bytes| nar_size.div_ceil(*bytes) <= TREE_LEAVES_MAX as u64)
}

/// All leaves of one NAR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NarTree {
    nar_size: u64,
    leaf_bytes: u64,
    leaves: Vec<LeafHash>,
    root: [u8; 32],
}

impl NarTree {
    /// The tree with these leaves; `None` if a NAR of this size has none, or has another number of leaves.
    pub fn fold(nar_size: u64, leaves: Vec<LeafHash>) -> Option<Self> {
        let leaf_bytes = leaf_bytes(nar_size)?;
        if nar_size.div_ceil(leaf_bytes) != leaves.len() as u64 {
            return None;
        }
        let (left, right) = split(&leaves)?;
        let root = *merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes();
        Some(Self { nar_size, leaf_bytes, leaves, root })
    }

    /// Bytes of each leaf but the last one.
    pub fn leaf_bytes(&self) -> u64 {
        self.leaf_bytes
    }

    /// The hashes of the leaves, in their order.
    pub fn leaves(&self) -> &[LeafHash] {
        &self.leaves
    }

    /// The BLAKE3 hash of the NAR.
    pub fn root(&self) -> &[u8; 32] {
        &self.root
    }

    /// Says with this node key that the tree is that of `nar_hash`; `None` if the key cannot sign.
    pub fn bind(&self, keypair: &Keypair, nar_hash: &NarHash) -> Option<[u8; 64]> {
        keypair.sign(&self.signed_bytes(nar_hash)).ok()?.try_into().ok()
    }

    /// Whether `author` said so.
    pub fn is_bound_by(&self, author: &PeerId, nar_hash: &NarHash, signature: &[u8; 64]) -> bool {
        // The multihash of an Ed25519 peer id holds the key itself.
        let key = PublicKey::try_decode_protobuf(author.as_ref().digest());
        key.is_ok_and(|key| key.to_peer_id() == *author && key.verify(&self.signed_bytes(nar_hash), signature))
    }

    fn signed_bytes(&self, nar_hash: &NarHash) -> Vec<u8> {
        [SIGNING_DOMAIN, &nar_hash.0, &self.nar_size.to_le_bytes(), &self.root].concat()
    }
}

/// The leaves under the two halves of a tree, as BLAKE3 divides them: the left one holds the largest power of two that
/// leaves something for the right one.
fn split(leaves: &[LeafHash]) -> Option<(&[LeafHash], &[LeafHash])> {
    let half = leaves.len().checked_sub(1)?.checked_ilog2()?;
    leaves.split_at_checked(1 << half)
}

fn merge(leaves: &[LeafHash]) -> LeafHash {
    match (leaves, split(leaves)) {
        (_, Some((left, right))) => merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash),
        ([leaf], None) => *leaf,
        ([..], None) => unreachable!("a half of a tree has a leaf, and what has two can be split"),
    }
}

/// The hash of a whole leaf that begins at byte `offset` of its NAR.
pub fn hash_leaf(offset: u64, bytes: &[u8]) -> LeafHash {
    Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
}

/// Hashes the leaves of a NAR as its bytes come, from any of its bytes on.
#[derive(Clone, Debug)]
pub struct LeafHasher {
    nar_size: u64,
    leaf_bytes: u64,
    /// The byte of the NAR that comes next.
    offset: u64,
    /// The leaf that has begun; `None` if its first bytes were not seen.
    leaf: Option<Hasher>,
    /// Of each leaf so far its hash, or `None` if it was not seen whole.
    leaves: Vec<Option<LeafHash>>,
}

impl LeafHasher {
    /// Begins at this byte; `None` if a NAR of this size has no tree.
    pub fn new(nar_size: u64, offset: u64) -> Option<Self> {
        let leaf_bytes = leaf_bytes(nar_size)?;
        let unseen = usize::try_from(offset / leaf_bytes).ok()?;
        let leaf = if offset.is_multiple_of(leaf_bytes) { begin_leaf(offset, nar_size) } else { None };
        Some(Self { nar_size, leaf_bytes, offset, leaf, leaves: vec![None; unseen] })
    }

    /// Takes the bytes that follow those taken before; those beyond the end of the NAR are left out.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.offset < self.nar_size {
            let left = self.leaf_end() - self.offset;
            // A piece may end in the middle of a leaf, and may hold the ends of several.
            let (of_leaf, rest) =
                usize::try_from(left).ok().and_then(|left| bytes.split_at_checked(left)).unwrap_or((bytes, &[]));
            if let Some(leaf) = &mut self.leaf {
                leaf.update(of_leaf);
            }
            self.offset += of_leaf.len() as u64;
            if of_leaf.len() as u64 == left {
                self.leaves.push(self.leaf.take().map(|leaf| leaf.finalize_non_root()));
                self.leaf = begin_leaf(self.offset, self.nar_size);
            }
            bytes = rest;
        }
    }

    /// Takes a whole leaf whose hash is known already. The leaf before it must be whole.
    pub fn push(&mut self, leaf: LeafHash) {
        self.offset = self.leaf_end();
        self.leaves.push(Some(leaf));
        self.leaf = begin_leaf(self.offset, self.nar_size);
    }

    /// The byte of the NAR that comes next.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes until the end of the leaf that has begun.
    pub fn left_bytes(&self) -> u64 {
        self.leaf_end() - self.offset
    }

    /// Whether the next byte is the first of a leaf.
    pub fn is_between_leaves(&self) -> bool {
        self.offset.is_multiple_of(self.leaf_bytes)
    }

    /// The leaves so far that have ended: of each its hash, or `None` if it was not seen whole.
    pub fn leaves(&self) -> &[Option<LeafHash>] {
        &self.leaves
    }

    /// The tree, if all leaves were seen.
    pub fn finish(self) -> Option<NarTree> {
        NarTree::fold(self.nar_size, self.leaves.into_iter().collect::<Option<_>>()?)
    }

    fn leaf_end(&self) -> u64 {
        ((self.offset / self.leaf_bytes + 1) * self.leaf_bytes).min(self.nar_size)
    }
}

/// `None` at the end of the NAR.
fn begin_leaf(offset: u64, nar_size: u64) -> Option<Hasher> {
    (offset < nar_size).then(|| {
        let mut leaf = Hasher::new();
        leaf.set_input_offset(offset);
        leaf
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: u64 = 256 << 10;

    fn nar(bytes: u64) -> Vec<u8> {
        (0..bytes).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
    }

    fn tree(nar: &[u8], piece: usize) -> NarTree {
        let mut hasher = LeafHasher::new(nar.len() as u64, 0).unwrap();
        nar.chunks(piece).for_each(|piece| hasher.update(piece));
        hasher.finish().unwrap()
    }

    #[test]
    fn leaves_fold_to_the_blake3_hash_of_the_nar_whatever_its_length() {
        for bytes in [32 * LEAF + 1, 33 * LEAF, 47 * LEAF + 1_000, 64 * LEAF] {
            let nar = nar(bytes);
            let folded = tree(&nar, 100_000);
            assert_eq!(folded.root(), blake3::hash(&nar).as_bytes(), "{bytes}");
            assert_eq!(folded, tree(&nar, 3 << 20));
            let at = usize::try_from(5 * LEAF).unwrap();
            assert_eq!(hash_leaf(5 * LEAF, &nar[at..][..usize::try_from(LEAF).unwrap()]), folded.leaves()[5]);
        }
    }

    #[test]
    fn leaves_grow_so_that_a_tree_stays_small_and_a_huge_nar_has_none() {
        assert_eq!(leaf_bytes(SMALL_NAR_BYTES_MAX), None);
        assert_eq!(leaf_bytes(SMALL_NAR_BYTES_MAX + 1), Some(LEAF));
        assert_eq!(leaf_bytes(2 << 30), Some(LEAF));
        assert_eq!(leaf_bytes((2 << 30) + 1), Some(2 * LEAF));
        assert_eq!(leaf_bytes(8 << 30), Some(4 * LEAF));
        assert_eq!(leaf_bytes((8 << 30) + 1), None);
        assert!(NarTree::fold(64 * LEAF, vec![[1; 32]; 64]).is_some());
        assert!(NarTree::fold(64 * LEAF, vec![[1; 32]; 63]).is_none());
        assert!(NarTree::fold(64 * LEAF + 1, vec![[1; 32]; 64]).is_none());
        assert!(NarTree::fold(LEAF, vec![[1; 32]]).is_none());
    }

    #[test]
    fn hasher_that_begins_in_a_leaf_knows_only_the_leaves_after_it() {
        let nar = nar(40 * LEAF);
        let (whole, from) = (tree(&nar, 1 << 20), 3 * LEAF + 17);
        let mut hasher = LeafHasher::new(40 * LEAF, from).unwrap();
        hasher.update(&nar[usize::try_from(from).unwrap()..usize::try_from(6 * LEAF).unwrap()]);
        assert!(hasher.is_between_leaves());
        hasher.push(whole.leaves()[6]);
        assert_eq!((hasher.offset(), hasher.left_bytes()), (7 * LEAF, LEAF));
        hasher.update(&nar[usize::try_from(7 * LEAF).unwrap()..]);
        assert_eq!(hasher.leaves().len(), 40);
        for (at, (seen, leaf)) in hasher.leaves().iter().zip(whole.leaves()).enumerate() {
            assert_eq!(*seen, (at > 3).then_some(*leaf), "{at}");
        }
        assert!(hasher.finish().is_none());
    }

    #[test]
    fn binding_holds_for_its_author_its_nar_and_its_tree_alone() {
        let (author, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (nar_hash, nar_size) = (NarHash([1; 32]), 40 * LEAF);
        let folded = NarTree::fold(nar_size, vec![[1; 32]; 40]).unwrap();
        let signature = folded.bind(&author, &nar_hash).unwrap();
        let id = author.public().to_peer_id();
        assert!(folded.is_bound_by(&id, &nar_hash, &signature));
        assert!(!folded.is_bound_by(&other.public().to_peer_id(), &nar_hash, &signature));
        assert!(!folded.is_bound_by(&PeerId::random(), &nar_hash, &signature));
        assert!(!folded.is_bound_by(&id, &NarHash([2; 32]), &signature));
        for changed in [NarTree::fold(nar_size, vec![[2; 32]; 40]), NarTree::fold(nar_size - 1, vec![[1; 32]; 40])] {
            assert!(!changed.unwrap().is_bound_by(&id, &nar_hash, &signature));
        }
    }
}
