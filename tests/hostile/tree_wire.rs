//! Trees of NARs, implemented a second time from `docs/protocol.md`.

use crate::wire::{Reader, Writer};
use blake3::hazmat::HasherExt as _;
use libp2p::identity::Keypair;

pub const TREE: &str = "/narmesh/1/tree";
/// Leaves of NARs up to 2 GiB; no test has a larger one.
pub const LEAF: usize = 256 << 10;

pub const TREE_ABSENT: [u8; 4] = [0, 0, 0, 0];
pub const TREE_NOT_YET: [u8; 4] = [1, 0, 0, 0];
pub const TREE_BUSY: [u8; 4] = [3, 0, 0, 0];

#[derive(Debug, Clone, Copy)]
pub struct TreeRequest {
    pub hash_part: [u8; 20],
    pub nar_hash: [u8; 32],
    pub nar_size: u64,
}

impl TreeRequest {
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().raw(&self.hash_part).raw(&self.nar_hash).u64(self.nar_size).0
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let request = Self { hash_part: from.array()?, nar_hash: from.array()?, nar_size: from.u64()? };
        from.0.is_empty().then_some(request)
    }
}

pub fn leaves(nar: &[u8]) -> Vec<[u8; 32]> {
    let leaf = |(at, bytes): (usize, &[u8])| {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset((at * LEAF) as u64);
        hasher.update(bytes).finalize_non_root()
    };
    nar.chunks(LEAF).enumerate().map(leaf).collect()
}

/// What the node key signs: that a NAR with this BLAKE3 hash is the one with this NarHash.
pub fn binding(keys: &Keypair, request: &TreeRequest, root: &[u8; 32]) -> [u8; 64] {
    let front = Writer::default().raw(b"narmesh-nar-tree-1;").raw(&request.nar_hash);
    keys.sign(&front.u64(request.nar_size).raw(root).0).unwrap().try_into().unwrap()
}

pub fn tree_reply(signature: &[u8; 64], leaves: &[[u8; 32]]) -> Vec<u8> {
    Writer::default().u32(2).raw(signature).list(leaves, |writer, leaf| writer.raw(leaf)).0
}

/// The reply of whoever holds `nar` and says that it is the one that was asked for.
pub fn signed_tree(keys: &Keypair, request: &TreeRequest, nar: &[u8]) -> Vec<u8> {
    tree_reply(&binding(keys, request, blake3::hash(nar).as_bytes()), &leaves(nar))
}

/// The signature and the leaves of a reply with a tree.
pub fn open_tree(bytes: &[u8]) -> Option<([u8; 64], Vec<[u8; 32]>)> {
    let mut from = Reader(bytes);
    let is_tree = from.u32()? == 2;
    let (signature, leaves) = (from.array()?, from.list(Reader::array)?);
    (is_tree && from.0.is_empty()).then_some((signature, leaves))
}
