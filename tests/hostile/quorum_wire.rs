//! The encoding of attestations and of requests for them, implemented a second time from `docs/protocol.md`.

use crate::formats::{NixKey, hash_part_bytes, nix32};
use crate::wire::{Reader, Writer, sha256};

/// A node of the tree of attestations: `depth` and `prefix`.
pub type Node = [u8; 21];
pub const ROOT: Node = [0; 21];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuorumRequest {
    Compare { builders: Vec<[u8; 8]>, nodes: Vec<(Node, [u8; 16])>, news: bool },
    Pull { builders: Vec<[u8; 8]>, wanted: Vec<(Node, [u8; 16])> },
    Ask { builders: Vec<[u8; 8]>, paths: Vec<[u8; 20]> },
}

impl QuorumRequest {
    pub fn encode(&self) -> Vec<u8> {
        let pair = |to: Writer, (node, digest): &(Node, [u8; 16])| to.raw(node).raw(digest);
        let builder = |to: Writer, digest: &[u8; 8]| to.raw(digest);
        let to = Writer::default();
        match self {
            Self::Compare { builders, nodes, news } => {
                to.u32(0).list(builders, builder).list(nodes, pair).u8(u8::from(*news))
            }
            Self::Pull { builders, wanted } => to.u32(1).list(builders, builder).list(wanted, pair),
            Self::Ask { builders, paths } => to.u32(2).list(builders, builder).list(paths, |to, path| to.raw(path)),
        }
        .0
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let pair = |from: &mut Reader<'_>| Some((from.array()?, from.array()?));
        let kind = from.u32()?;
        let builders = from.list(Reader::array)?;
        let request = match kind {
            0 => Self::Compare { builders, nodes: from.list(pair)?, news: from.u8()? == 1 },
            1 => Self::Pull { builders, wanted: from.list(pair)? },
            2 => Self::Ask { builders, paths: from.list(Reader::array)? },
            _ => return None,
        };
        from.0.is_empty().then_some(request)
    }
}

pub const BUSY: [u8; 4] = [2, 0, 0, 0];

/// A reply that says: the answering peer tells only about these builders.
pub fn only_builders(builders: &[[u8; 8]]) -> Vec<u8> {
    Writer::default().u32(0).u32(0).list(builders, |to, digest| to.raw(digest)).0
}

/// A reply with the same `items` under each of `answered` nodes.
pub fn items(answered: usize, items: &[[u8; 16]]) -> Vec<u8> {
    let count = u32::try_from(answered).unwrap();
    let to = Writer::default().u32(0).u32(1).u32(count).u64(answered as u64);
    (0..count).fold(to, |to, number| to.u32(number).u32(1).list(items, |to, item| to.raw(item))).0
}

/// A reply with the same digest for each of the 16 children of `answered` nodes.
pub fn children(answered: usize, digest: [u8; 16]) -> Vec<u8> {
    let count = u32::try_from(answered).unwrap();
    let to = Writer::default().u32(0).u32(1).u32(count).u64(answered as u64);
    (0..count).fold(to, |to, number| to.u32(number).u32(0).raw(&[digest; 16].concat())).0
}

pub fn attestations(answered: usize, attestations: &[Vec<u8>]) -> Vec<u8> {
    let to = Writer::default().u32(1).u32(u32::try_from(answered).unwrap());
    to.list(attestations, |to, bytes| to.bytes(bytes)).0
}

/// The attestations in a reply; `None` when it is another kind of reply.
pub fn handed_over(reply: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut from = Reader(reply);
    let (kind, _) = (from.u32()?, from.u32()?);
    if kind == 1 { from.list(Reader::bytes) } else { None }
}

pub fn builder_digest(key: &NixKey) -> [u8; 8] {
    sha256(&key.public_bytes())[..8].try_into().unwrap()
}

/// An attestation by `key` for the full store path `store_path`, which has no references.
pub fn attestation(key: &NixKey, store_path: &str, nar_hash: [u8; 32], nar_size: u64) -> Vec<u8> {
    let fingerprint = format!("1;{store_path};sha256:{};{nar_size};", nix32(&nar_hash));
    let at_ms = 1_790_000_000_000_u64;
    let dated = format!("narmesh-attestation-1;{fingerprint};{at_ms}");
    let base_name = store_path.rsplit('/').next().unwrap();
    assert_eq!(hash_part_bytes(store_path).len(), 20);
    let to = Writer::default().raw(&key.public_bytes()).bytes(base_name.as_bytes()).raw(&nar_hash);
    let to = to.u64(nar_size).bytes(b"").u64(at_ms);
    to.raw(&key.sign_bytes(fingerprint.as_bytes())).raw(&key.sign_bytes(dated.as_bytes())).0
}
