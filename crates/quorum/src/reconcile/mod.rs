//! How two ledgers find out which attestations only one of them has.
//!
//! Hash parts form a tree: each node has 16 children, one for each value of the next four bits. The digest of a node covers
//! all that a set of builders said about the paths under it. The asker sends digests of nodes ([`Query`]). For each node
//! that differs, the answerer returns the digests of its children or, when there are few items, the items themselves
//! ([`Answer`]); it keeps no state between two questions. So equal ledgers cost one digest, whatever their size, and
//! different ones cost as much as their difference. Only attestations take part, never bare Nix signatures. A void vote is
//! one item, however many statements it is made of, so two nodes are equal even if they know different ones of these.
//!
//! An item does not reveal what was attested. [`Ledger::find`] names what is to be handed over for it.

mod session;
mod shared;

use crate::hash_tree::{CHILDREN, first_byte};
use crate::ledger::Ledger;
use crate::statement::FingerprintDigest;
use narmesh_protocol::codec::{self, CodecError};
use narmesh_protocol::{BuilderKey, HashPart};
use sha2::{Digest as _, Sha256};
use std::cell::Cell;
use std::collections::BTreeMap;

pub use self::session::{Difference, Next, Session};
pub use self::shared::{BuilderDigest, Shared};
pub use crate::hash_tree::{Node, NodeDigest};

/// The most builders compared in one session.
pub const BUILDERS_PER_SESSION_MAX: usize = 256;
/// The most nodes in one query.
pub const NODES_MAX: usize = 512;
/// A node with up to this many items is answered with the items, not with digests of children. So is a node whose items are
/// all of one path: digests would not tell them apart before the bottom of the tree.
pub const ITEMS_TOLD_MAX: usize = 24;
/// The most items looked through under a node when one of them is asked for: those that were told, and
/// those that came since.
const ITEMS_FOUND_MAX: usize = 2 * BUILDERS_PER_SESSION_MAX;
/// The most items that one session finds on either side. A session that meets more ends there, and the next one continues.
pub const ITEMS_MAX: usize = 1 << 18;
/// The most queries of one session.
pub const QUERIES_MAX: usize = 4_096;

/// What one builder says about one path, or that its vote is void: 16 bytes of a SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, bincode::Encode, bincode::Decode)]
pub struct Item(pub [u8; 16]);

/// The asker's digests of some nodes.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Query {
    /// The builders that the digests cover, ascending.
    pub builders: Vec<BuilderDigest>,
    /// The nodes and their digests: at most [`NODES_MAX`], strictly ascending.
    pub nodes: Vec<(Node, NodeDigest)>,
}

/// What the answerer has under these nodes.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum Answer {
    /// The answerer compares only these builders, which are not all of the query's. The asker should ask again about them.
    Builders(Vec<BuilderDigest>),
    /// The nodes of the query that differ, in the query's order, as many as fit. Of the nodes before `answered`, those that
    /// are left out are equal.
    Nodes {
        /// How many nodes of the query were looked at.
        answered: u32,
        /// Which nodes differ (by their index in the query), and what is under each.
        differing: Vec<(u32, Content)>,
    },
}

/// What is under a node.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum Content {
    /// The digests of its 16 children.
    Children(Box<[NodeDigest; CHILDREN]>),
    /// All its items, in no particular order.
    Items(Vec<Item>),
}

impl Query {
    /// The largest encoding, bytes.
    pub const BYTES_MAX: usize = 64 << 10;

    /// Encodes the query.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode::<{ Self::BYTES_MAX }>(self)
    }

    /// Decodes a query; it must fill these bytes exactly.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { Self::BYTES_MAX }>(bytes)
    }
}

impl Answer {
    /// The largest encoding, bytes.
    pub const BYTES_MAX: usize = 256 << 10;

    /// Encodes the answer.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode::<{ Self::BYTES_MAX }>(self)
    }

    /// Decodes an answer; it must fill these bytes exactly.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { Self::BYTES_MAX }>(bytes)
    }
}

/// Those builders of a session that a ledger knows; it holds nothing of the others.
struct Compared {
    /// Their numbers in the ledger, ascending.
    numbers: Vec<u16>,
    /// Their digests, ascending, each with its index in `numbers`.
    order: Vec<(BuilderDigest, usize)>,
}

impl Ledger {
    /// Answers a query about builders that the peer may be told of.
    pub fn answer(&self, admitted: &Shared, query: &Query) -> Answer {
        self.answer_counted(admitted, query, usize::MAX, &Cell::new(0))
    }

    /// Like [`Ledger::answer`], and adds to `looked` how many paths were looked at. Once that exceeds `looked_max`, the
    /// remaining nodes are left out.
    pub(crate) fn answer_counted(
        &self,
        admitted: &Shared,
        query: &Query,
        looked_max: usize,
        looked: &Cell<usize>,
    ) -> Answer {
        let shared = admitted.restricted_to(&query.builders);
        let digests = shared.digests();
        // Digests over different builders never match, so the asker first learns which ones to compare.
        if digests != query.builders {
            return Answer::Builders(digests);
        }
        // Without an order, a query could name the costliest node five hundred times.
        if !query.nodes.is_sorted_by(|first, second| first.0 < second.0) {
            return Answer::Nodes { answered: 0, differing: Vec::new() };
        }
        let compared = self.resolve_builders(&shared);
        let (mut answered, mut differing, mut bytes) = (0u32, Vec::new(), 64usize);
        for (node, theirs) in query.nodes.iter().take(NODES_MAX) {
            // The first node is answered whatever it costs, or the asker would never get on.
            if answered > 0 && looked.get() > looked_max {
                break;
            }
            // A node in any other form has no digest; it counts as equal, so nothing is looked at for it.
            if node.is_canonical() && self.compute_digest(&compared, *node, looked) != *theirs {
                let content = self.collect_content(&compared, *node, looked);
                let size = content.bytes();
                // It stays unanswered, and the asker names it again.
                if bytes + size > Answer::BYTES_MAX {
                    break;
                }
                bytes += size;
                differing.push((answered, content));
            }
            answered += 1;
        }
        Answer::Nodes { answered, differing }
    }

    /// The builder and the path that each item stands for. All attestations of that builder about that path are to be
    /// handed over (two of them if its vote is void). `None` for an item that is not there, and for all items if they are
    /// not strictly ascending: otherwise a peer could ask for the costliest node again and again.
    pub fn find(&self, shared: &Shared, wanted: &[(Node, Item)]) -> Vec<Option<(BuilderKey, HashPart)>> {
        self.find_counted(shared, wanted, usize::MAX, &Cell::new(0))
    }

    /// Like [`Ledger::find`], and adds to `looked` how many paths were looked at. Once that exceeds `looked_max`, the
    /// remaining nodes are left out. The asker chooses the nodes, and paths under them cost as much even if none of these
    /// builders said anything about them.
    pub(crate) fn find_counted(
        &self,
        shared: &Shared,
        wanted: &[(Node, Item)],
        looked_max: usize,
        looked: &Cell<usize>,
    ) -> Vec<Option<(BuilderKey, HashPart)>> {
        // Without an order, one costly node could be named between others again and again.
        if !wanted.is_sorted_by(|first, second| first < second) {
            return vec![None; wanted.len()];
        }
        let compared = self.resolve_builders(shared);
        if compared.numbers.is_empty() {
            return vec![None; wanted.len()];
        }
        let mut found = Vec::with_capacity(wanted.len());
        // The items of one node are looked up together, so that each node is walked through only once.
        for of_node in wanted.chunk_by(|first, second| first.0 == second.0) {
            if looked.get() > looked_max {
                break;
            }
            let node = of_node.first().map_or(Node::ROOT, |(node, _)| *node);
            let known: BTreeMap<Item, _> = match node.is_canonical() {
                true => self
                    .walk_items(&compared, node, looked)
                    .take(ITEMS_FOUND_MAX)
                    .map(|(item, key, path)| (item, (key, path)))
                    .collect(),
                false => BTreeMap::new(),
            };
            found.extend(of_node.iter().map(|(_, item)| known.get(item).copied()));
        }
        found
    }

    fn resolve_builders(&self, shared: &Shared) -> Compared {
        let known = |(digest, key): &(BuilderDigest, BuilderKey)| Some((self.number_of(key)?, *digest));
        let by_digest: Vec<(u16, BuilderDigest)> = shared.builders.iter().filter_map(known).collect();
        let mut numbers: Vec<u16> = by_digest.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        let place = |(number, digest): &(u16, BuilderDigest)| Some((*digest, numbers.binary_search(number).ok()?));
        let order = by_digest.iter().filter_map(place).collect();
        Compared { numbers, order }
    }

    fn collect_content(&self, compared: &Compared, node: Node, looked: &Cell<usize>) -> Content {
        let mut items = self.walk_items(compared, node, looked);
        let mut few: Vec<_> = items.by_ref().take(ITEMS_TOLD_MAX + 1).collect();
        let one_path = |items: &[(Item, BuilderKey, HashPart)]| items.is_sorted_by(|one, next| one.2 == next.2);
        if few.len() > ITEMS_TOLD_MAX && one_path(&few) {
            // A path has one item per builder, so there are no more than these.
            few.extend(items.take(BUILDERS_PER_SESSION_MAX));
        }
        let told = |items: Vec<(Item, _, _)>| Content::Items(items.into_iter().map(|(item, ..)| item).collect());
        if few.len() <= ITEMS_TOLD_MAX || one_path(&few) {
            return told(few);
        }
        match (0..CHILDREN).map(|number| node.child(number)).collect::<Option<Vec<_>>>() {
            Some(children) => {
                let mut digests = [[0; 16]; CHILDREN];
                for (digest, child) in digests.iter_mut().zip(children) {
                    *digest = self.compute_digest(compared, child, looked);
                }
                Content::Children(Box::new(digests))
            }
            // Cannot happen: at the bottom of the tree there is only one path.
            None => told(few),
        }
    }

    /// The items of the compared builders under a node, ordered by path.
    fn walk_items(
        &self,
        compared: &Compared,
        node: Node,
        looked: &Cell<usize>,
    ) -> impl Iterator<Item = (Item, BuilderKey, HashPart)> {
        let numbered = self.walk_numbered_items(&compared.numbers, node, looked);
        numbered.filter_map(|(item, number, hash_part)| Some((item, self.key_of(number)?, hash_part)))
    }

    fn walk_numbered_items(
        &self,
        numbers: &[u16],
        node: Node,
        looked: &Cell<usize>,
    ) -> impl Iterator<Item = (Item, u16, HashPart)> {
        let nodes = self.find_said_nodes(numbers, node, looked).into_iter();
        let attested = nodes.flat_map(move |node| {
            let (first, last) = node.bounds();
            self.attested_in(first..=last, numbers)
        });
        attested.inspect(|_| looked.set(looked.get() + 1)).flat_map(move |(hash_part, said)| {
            let item = |said: &[(u16, FingerprintDigest)]| {
                let number = said.first()?.0;
                Some((hash_item(&self.key_of(number)?, &hash_part, said), number, hash_part))
            };
            said.chunk_by(|one, next| one.0 == next.0).filter_map(item).collect::<Vec<_>>()
        })
    }

    /// The node itself if it has at least a byte of prefix. Of an upper node, the nodes with one byte under it where one of
    /// these builders said anything. Their digests are remembered, so what a builder that said little said is found without
    /// a walk through what the others said.
    fn find_said_nodes(&self, numbers: &[u16], node: Node, looked: &Cell<usize>) -> Vec<Node> {
        if node.depth >= 2 {
            return vec![node];
        }
        let (first, last) = node.bounds();
        let of_byte = |byte: u8| {
            let mut prefix = [0; 20];
            if let Some(top) = prefix.first_mut() {
                *top = byte;
            }
            Node { depth: 2, prefix }
        };
        let is_said = |node: &Node| {
            let digests = self.compute_digests(numbers, *node, looked);
            digests.iter().any(|digest| *digest != NodeDigest::default())
        };
        (first_byte(&first)..=first_byte(&last)).map(of_byte).filter(is_said).collect()
    }

    fn compute_digest(&self, compared: &Compared, node: Node, looked: &Cell<usize>) -> NodeDigest {
        let (first, last) = node.bounds();
        if !self.has_paths_in(first..=last) {
            return NodeDigest::default();
        }
        let mut hasher = Sha256::new();
        let mut empty = true;
        let digests = self.compute_digests(&compared.numbers, node, looked);
        // In the order of builders' digests, which is the same on both sides; numbers are each ledger's own.
        for (builder, place) in &compared.order {
            let under = digests.get(*place).copied().unwrap_or_default();
            if under != NodeDigest::default() {
                empty = false;
                hasher.update(builder.0);
                hasher.update(under);
            }
        }
        if empty { NodeDigest::default() } else { finish_short(hasher) }
    }

    /// The digest of a node for each builder. Those of the upper nodes are remembered, so that only builders with news are
    /// computed again: most comparisons are of two roots, and little is said between two comparisons.
    fn compute_digests(&self, numbers: &[u16], node: Node, looked: &Cell<usize>) -> Vec<NodeDigest> {
        let mut digests = self.digests.recall(numbers, node);
        let unknown = numbers.iter().zip(&digests).filter(|(_, known)| known.is_none());
        let unknown: Vec<u16> = unknown.map(|(number, _)| *number).collect();
        if !unknown.is_empty() {
            let computed = match node.depth {
                0..2 => self.compute_digests_above(&unknown, node, looked),
                _ => self.compute_digests_below(&unknown, node, looked),
            };
            self.digests.remember(&unknown, node, computed.iter().copied());
            for (digest, computed) in digests.iter_mut().filter(|known| known.is_none()).zip(computed) {
                *digest = Some(computed);
            }
        }
        digests.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// For each builder, the digest of the root or of a child of it, over the digests of the first bytes under it.
    fn compute_digests_above(&self, numbers: &[u16], node: Node, looked: &Cell<usize>) -> Vec<NodeDigest> {
        let (first, last) = node.bounds();
        let mut hashers = Hashers::new(numbers.len());
        for byte in first_byte(&first)..=first_byte(&last) {
            let mut prefix = [0; 20];
            if let Some(top) = prefix.first_mut() {
                *top = byte;
            }
            let digests = self.compute_digests(numbers, Node { depth: 2, prefix }, looked);
            for (place, digest) in digests.into_iter().enumerate() {
                if digest != NodeDigest::default() {
                    hashers.update(place, &[byte]);
                    hashers.update(place, &digest);
                }
            }
        }
        hashers.finish()
    }

    /// For each builder, the digest of a node with at least a byte of prefix, over the items under it.
    fn compute_digests_below(&self, numbers: &[u16], node: Node, looked: &Cell<usize>) -> Vec<NodeDigest> {
        let mut hashers = Hashers::new(numbers.len());
        for (item, number, _) in self.walk_numbered_items(numbers, node, looked) {
            if let Ok(place) = numbers.binary_search(&number) {
                hashers.update(place, &item.0);
            }
        }
        hashers.finish()
    }
}

/// One hasher for each builder, so that a builder that said nothing gets a digest of zero.
struct Hashers(Vec<Option<Sha256>>);

impl Hashers {
    fn new(count: usize) -> Self {
        Self(vec![None; count])
    }

    fn update(&mut self, place: usize, bytes: &[u8]) {
        if let Some(hasher) = self.0.get_mut(place) {
            hasher.get_or_insert_default().update(bytes);
        }
    }

    fn finish(self) -> Vec<NodeDigest> {
        self.0.into_iter().map(|hasher| hasher.map_or_else(NodeDigest::default, finish_short)).collect()
    }
}

/// The item for one builder and path. A single statement is itself; two or more are "void", whichever they are.
fn hash_item(builder: &BuilderKey, hash_part: &HashPart, said: &[(u16, FingerprintDigest)]) -> Item {
    let mut hasher = Sha256::new();
    hasher.update(builder.0);
    hasher.update(hash_part.0);
    // Two nodes may hold different ones of a builder's many statements, and void is void.
    match said {
        [(_, only)] => hasher.update(only.0),
        _ => hasher.update(b"void"),
    }
    Item(finish_short(hasher))
}

fn finish_short(hasher: Sha256) -> NodeDigest {
    let digest: [u8; 32] = hasher.finalize().into();
    digest.first_chunk().copied().expect("32 bytes hold 16")
}

impl Content {
    fn bytes(&self) -> usize {
        match self {
            Self::Children(_) => 8 + 16 * CHILDREN,
            Self::Items(items) => 16 + 16 * items.len(),
        }
    }
}
