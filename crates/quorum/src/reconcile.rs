//! Two ledgers find out which attestations only one of them has.
//!
//! Hash parts are a tree: 16 children under each node, one for each value of the next four bits. A node's digest stands for all
//! that a set of builders said of the paths under it. The asker sends digests of nodes ([`Query`]); the answerer, which keeps
//! nothing between two questions, tells for those that differ either the digests of their children or, when there are few, the
//! items themselves ([`Answer`]). So equal ledgers cost one digest, whatever their size, and different ones a cost of the
//! difference. Only attestations take part, never bare signatures; a vote that is void is one item however many statements it
//! is made of, so that two nodes that know of different ones are equal.
//!
//! An item does not say what was attested. [`Ledger::find`] names what is to be handed over for it.

mod node;
mod session;
mod shared;

use crate::evidence::FingerprintDigest;
use crate::ledger::Ledger;
use narmesh_protocol::codec::{self, CodecError};
use narmesh_protocol::{BuilderKey, HashPart};
use sha2::{Digest as _, Sha256};
use std::cell::Cell;
use std::collections::BTreeMap;

pub use self::node::Node;
pub(crate) use self::node::first_byte;
pub use self::session::{Difference, Next, Session};
pub use self::shared::{BuilderDigest, Shared};

/// First 16 bytes of a SHA-256 over what stands under a node; zero for nothing.
pub type NodeDigest = [u8; 16];

/// Most builders compared at a time.
pub const BUILDERS_PER_SESSION_MAX: usize = 256;
/// Most nodes in one query.
pub const NODES_MAX: usize = 512;
/// Items under a node up to which the items are told rather than digests of children. All items of one path are told too:
/// digests would not tell them apart before the bottom of the tree.
pub const ITEMS_TOLD_MAX: usize = 24;
/// Items looked through under a node when one of them is asked for: those that were told, and what came since.
const ITEMS_FOUND_MAX: usize = 2 * BUILDERS_PER_SESSION_MAX;
/// Most items of one session on either side; a session that meets more ends there, and the next one goes on.
pub const ITEMS_MAX: usize = 1 << 18;
/// Most queries of one session.
pub const QUERIES_MAX: usize = 4_096;
/// Children of a node.
const CHILDREN: usize = 16;

/// What one builder says of one path, or that its vote is void: 16 bytes of a SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, bincode::Encode, bincode::Decode)]
pub struct Item(pub [u8; 16]);

/// "This is what I have under these nodes."
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Query {
    /// Of these builders; ascending.
    pub builders: Vec<BuilderDigest>,
    /// At most [`NODES_MAX`], strictly ascending.
    pub nodes: Vec<(Node, NodeDigest)>,
}

/// What the answerer has there.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum Answer {
    /// The answerer compares only these builders, which are not all of the query's: ask again for them.
    Builders(Vec<BuilderDigest>),
    /// For each node of the query that differs, in the query's order, as many as fit; nodes left out are equal, but for
    /// those after `answered`.
    Nodes {
        /// How many nodes of the query were looked at.
        answered: u32,
        /// Which differ (numbers in the query), and how.
        differing: Vec<(u32, Content)>,
    },
}

/// What stands under a node.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum Content {
    /// Digests of its 16 children.
    Children(Box<[NodeDigest; CHILDREN]>),
    /// All its items, in no order that means anything.
    Items(Vec<Item>),
}

impl Query {
    /// Largest encoding, bytes.
    pub const BYTES_MAX: usize = 64 << 10;

    /// Encodes.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode::<{ Self::BYTES_MAX }>(self)
    }

    /// Decodes exactly these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { Self::BYTES_MAX }>(bytes)
    }
}

impl Answer {
    /// Largest encoding, bytes.
    pub const BYTES_MAX: usize = 256 << 10;

    /// Encodes.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode::<{ Self::BYTES_MAX }>(self)
    }

    /// Decodes exactly these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { Self::BYTES_MAX }>(bytes)
    }
}

/// The builders of a session that a ledger knows; of the others it holds nothing.
struct Compared {
    /// Ascending.
    numbers: Vec<u16>,
    /// Ascending by digest, with the place in `numbers`.
    order: Vec<(BuilderDigest, usize)>,
}

impl Ledger {
    /// Answers a query about builders that this peer may hear of.
    pub fn answer(&self, admitted: &Shared, query: &Query) -> Answer {
        self.answer_counted(admitted, query, usize::MAX, &Cell::new(0))
    }

    /// The same; adds to `looked` how many paths were looked at, and leaves off the nodes after the one at which they are more
    /// than `looked_max`.
    pub(crate) fn answer_counted(
        &self,
        admitted: &Shared,
        query: &Query,
        looked_max: usize,
        looked: &Cell<usize>,
    ) -> Answer {
        let shared = admitted.restricted_to(&query.builders);
        let digests = shared.digests();
        if digests != query.builders {
            return Answer::Builders(digests);
        }
        // Unordered, it could ask for the costliest node five hundred times.
        if !query.nodes.is_sorted_by(|first, second| first.0 < second.0) {
            return Answer::Nodes { answered: 0, differing: Vec::new() };
        }
        let compared = self.compared(&shared);
        let (mut answered, mut differing, mut bytes) = (0u32, Vec::new(), 64usize);
        for (node, theirs) in query.nodes.iter().take(NODES_MAX) {
            if answered > 0 && looked.get() > looked_max {
                break;
            }
            if node.is_canonical() && self.node_digest(&compared, *node, looked) != *theirs {
                let content = self.content(&compared, *node, looked);
                let size = content.bytes();
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

    /// What items under nodes stand for: the builder and the path, whose attestations (two of them if its vote is void) are to
    /// be handed over. `None` for each that is not there, and for all if they do not strictly ascend: then one could ask for the
    /// costliest node again and again.
    pub fn find(&self, shared: &Shared, wanted: &[(Node, Item)]) -> Vec<Option<(BuilderKey, HashPart)>> {
        self.find_counted(shared, wanted, usize::MAX, &Cell::new(0))
    }

    /// The same; adds to `looked` how many paths were looked at, and leaves off the nodes after the one at which they are more
    /// than `looked_max`: who asks chooses the nodes, and what is under them and of no builder that is meant costs as much.
    pub(crate) fn find_counted(
        &self,
        shared: &Shared,
        wanted: &[(Node, Item)],
        looked_max: usize,
        looked: &Cell<usize>,
    ) -> Vec<Option<(BuilderKey, HashPart)>> {
        if !wanted.is_sorted_by(|first, second| first < second) {
            return vec![None; wanted.len()];
        }
        let compared = self.compared(shared);
        if compared.numbers.is_empty() {
            return vec![None; wanted.len()];
        }
        let mut found = Vec::with_capacity(wanted.len());
        for of_node in wanted.chunk_by(|first, second| first.0 == second.0) {
            if looked.get() > looked_max {
                break;
            }
            let node = of_node.first().map_or(Node::ROOT, |(node, _)| *node);
            let known: BTreeMap<Item, _> = match node.is_canonical() {
                true => self
                    .items(&compared, node, looked)
                    .take(ITEMS_FOUND_MAX)
                    .map(|(item, key, path)| (item, (key, path)))
                    .collect(),
                false => BTreeMap::new(),
            };
            found.extend(of_node.iter().map(|(_, item)| known.get(item).copied()));
        }
        found
    }

    fn compared(&self, shared: &Shared) -> Compared {
        let known = |(digest, key): &(BuilderDigest, BuilderKey)| Some((self.number_of(key)?, *digest));
        let by_digest: Vec<(u16, BuilderDigest)> = shared.builders.iter().filter_map(known).collect();
        let mut numbers: Vec<u16> = by_digest.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        let place = |(number, digest): &(u16, BuilderDigest)| Some((*digest, numbers.binary_search(number).ok()?));
        let order = by_digest.iter().filter_map(place).collect();
        Compared { numbers, order }
    }

    fn content(&self, compared: &Compared, node: Node, looked: &Cell<usize>) -> Content {
        let mut items = self.items(compared, node, looked);
        let mut few: Vec<_> = items.by_ref().take(ITEMS_TOLD_MAX + 1).collect();
        let one_path = |items: &[(Item, BuilderKey, HashPart)]| items.is_sorted_by(|one, next| one.2 == next.2);
        if few.len() > ITEMS_TOLD_MAX && one_path(&few) {
            // One path has no more.
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
                    *digest = self.node_digest(compared, child, looked);
                }
                Content::Children(Box::new(digests))
            }
            // Never: at the bottom there is one path.
            None => told(few),
        }
    }

    /// The items of the compared builders under a node, in the order of the paths.
    fn items(
        &self,
        compared: &Compared,
        node: Node,
        looked: &Cell<usize>,
    ) -> impl Iterator<Item = (Item, BuilderKey, HashPart)> {
        let numbered = self.numbered_items(&compared.numbers, node, looked);
        numbered.filter_map(|(item, number, hash_part)| Some((item, self.key_of(number)?, hash_part)))
    }

    fn numbered_items(
        &self,
        numbers: &[u16],
        node: Node,
        looked: &Cell<usize>,
    ) -> impl Iterator<Item = (Item, u16, HashPart)> {
        let nodes = self.where_said(numbers, node, looked).into_iter();
        let attested = nodes.flat_map(move |node| {
            let (first, last) = node.bounds();
            self.attested_in(first..=last, numbers)
        });
        attested.inspect(|_| looked.set(looked.get() + 1)).flat_map(move |(hash_part, said)| {
            let item = |said: &[(u16, FingerprintDigest)]| {
                let number = said.first()?.0;
                Some((item(&self.key_of(number)?, &hash_part, said), number, hash_part))
            };
            said.chunk_by(|one, next| one.0 == next.0).filter_map(item).collect::<Vec<_>>()
        })
    }

    /// The node, or, of an upper one, the nodes of a byte under it where one of these builders said anything: their digests are
    /// remembered, so that one who said little is found without a walk through what the others said.
    fn where_said(&self, numbers: &[u16], node: Node, looked: &Cell<usize>) -> Vec<Node> {
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
            let digests = self.digests_of_each(numbers, *node, looked);
            digests.iter().any(|digest| *digest != NodeDigest::default())
        };
        (first_byte(&first)..=first_byte(&last)).map(of_byte).filter(is_said).collect()
    }

    fn node_digest(&self, compared: &Compared, node: Node, looked: &Cell<usize>) -> NodeDigest {
        let (first, last) = node.bounds();
        if !self.has_paths_in(first..=last) {
            return NodeDigest::default();
        }
        let mut hasher = Sha256::new();
        let mut empty = true;
        let digests = self.digests_of_each(&compared.numbers, node, looked);
        for (builder, place) in &compared.order {
            let under = digests.get(*place).copied().unwrap_or_default();
            if under != NodeDigest::default() {
                empty = false;
                hasher.update(builder.0);
                hasher.update(under);
            }
        }
        if empty { NodeDigest::default() } else { short(hasher) }
    }

    /// Per builder. Those of the upper nodes are remembered, so that only builders with news are computed again: most
    /// comparisons are of two roots, and between two of them little was said.
    fn digests_of_each(&self, numbers: &[u16], node: Node, looked: &Cell<usize>) -> Vec<NodeDigest> {
        let mut digests = self.digests.known(numbers, node);
        let unknown = numbers.iter().zip(&digests).filter(|(_, known)| known.is_none());
        let unknown: Vec<u16> = unknown.map(|(number, _)| *number).collect();
        if !unknown.is_empty() {
            let computed = match node.depth {
                0..2 => self.digests_above(&unknown, node, looked),
                _ => self.digests_below(&unknown, node, looked),
            };
            self.digests.remember(&unknown, node, computed.iter().copied());
            for (digest, computed) in digests.iter_mut().filter(|known| known.is_none()).zip(computed) {
                *digest = Some(computed);
            }
        }
        digests.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// Per builder, for the root and its children: over the digests of the first bytes under it.
    fn digests_above(&self, numbers: &[u16], node: Node, looked: &Cell<usize>) -> Vec<NodeDigest> {
        let (first, last) = node.bounds();
        let mut hashers = Hashers::new(numbers.len());
        for byte in first_byte(&first)..=first_byte(&last) {
            let mut prefix = [0; 20];
            if let Some(top) = prefix.first_mut() {
                *top = byte;
            }
            let digests = self.digests_of_each(numbers, Node { depth: 2, prefix }, looked);
            for (place, digest) in digests.into_iter().enumerate() {
                if digest != NodeDigest::default() {
                    hashers.update(place, &[byte]);
                    hashers.update(place, &digest);
                }
            }
        }
        hashers.finish()
    }

    /// Per builder, for nodes of at least a byte: over the items under it.
    fn digests_below(&self, numbers: &[u16], node: Node, looked: &Cell<usize>) -> Vec<NodeDigest> {
        let mut hashers = Hashers::new(numbers.len());
        for (item, number, _) in self.numbered_items(numbers, node, looked) {
            if let Ok(place) = numbers.binary_search(&number) {
                hashers.update(place, &item.0);
            }
        }
        hashers.finish()
    }
}

/// One digest for each builder; zero for those of which nothing was said.
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
        self.0.into_iter().map(|hasher| hasher.map_or_else(NodeDigest::default, short)).collect()
    }
}

/// One statement is itself; two or more are "void", whichever they are.
fn item(builder: &BuilderKey, hash_part: &HashPart, said: &[(u16, FingerprintDigest)]) -> Item {
    let mut hasher = Sha256::new();
    hasher.update(builder.0);
    hasher.update(hash_part.0);
    match said {
        [(_, only)] => hasher.update(only.0),
        _ => hasher.update(b"void"),
    }
    Item(short(hasher))
}

fn short(hasher: Sha256) -> NodeDigest {
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
