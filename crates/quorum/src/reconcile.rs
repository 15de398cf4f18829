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

use crate::ledger::{Ledger, Vote};
use narmesh_protocol::codec::{self, CodecError};
use narmesh_protocol::{BuilderKey, HashPart};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// First 16 bytes of a SHA-256 over what stands under a node; zero for nothing.
pub type NodeDigest = [u8; 16];

/// Most builders compared at a time.
pub const BUILDERS_PER_SESSION_MAX: usize = 256;
/// Most nodes in one query.
pub const NODES_MAX: usize = 512;
/// Items under a node up to which the items are told rather than digests of children.
pub const ITEMS_TOLD_MAX: usize = 24;
/// Most items of one session on either side; a session that meets more ends there, and the next one goes on.
pub const ITEMS_MAX: usize = 1 << 18;
/// Most queries of one session.
pub const QUERIES_MAX: usize = 4_096;
/// Children of a node.
const CHILDREN: usize = 16;
/// Levels of the tree: four bits each of 20 bytes.
const DEPTH_MAX: u8 = 40;

/// What one builder says of one path, or that its vote is void: 16 bytes of a SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, bincode::Encode, bincode::Decode)]
pub struct Item(pub [u8; 16]);

/// First 8 bytes of SHA-256 over the key: a builder that both know is meant, no key is told to who does not know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, bincode::Encode, bincode::Decode)]
pub struct BuilderDigest(pub [u8; 8]);

/// A node: the hash parts that begin with its `depth` times four bits, in the order of their texts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, bincode::Encode, bincode::Decode)]
pub struct Node {
    /// 0 for the root, at most 40.
    pub depth: u8,
    /// The bits, the rest zero; last byte first, as hash parts are ordered.
    pub prefix: [u8; 20],
}

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

impl BuilderDigest {
    /// Of a key.
    pub fn of(key: &BuilderKey) -> Self {
        let digest: [u8; 32] = Sha256::digest(key.0).into();
        Self(digest.first_chunk().copied().expect("32 bytes hold 8"))
    }
}

impl Node {
    /// All hash parts.
    pub const ROOT: Self = Self { depth: 0, prefix: [0; 20] };

    fn child(self, number: usize) -> Option<Self> {
        let at = usize::from(self.depth / 2);
        let bits = u8::try_from(number).ok().filter(|bits| *bits < 16)?;
        let mut prefix = self.prefix;
        *prefix.get_mut(at)? |= if self.depth.is_multiple_of(2) { bits << 4 } else { bits };
        Some(Self { depth: self.depth + 1, prefix })
    }

    /// First and last hash part under it.
    fn bounds(self) -> (HashPart, HashPart) {
        let (whole, half) = (usize::from(self.depth / 2), self.depth % 2 == 1);
        let mut last = self.prefix;
        for (at, byte) in last.iter_mut().enumerate().skip(whole) {
            *byte |= if at == whole && half { 0x0f } else { 0xff };
        }
        let text_order = |mut bytes: [u8; 20]| {
            bytes.reverse();
            HashPart(bytes)
        };
        (text_order(self.prefix), text_order(last))
    }

    fn is_canonical(self) -> bool {
        let (first, last) = self.bounds();
        self.depth <= DEPTH_MAX && first <= last && {
            let mut rest = self.prefix.iter().enumerate().skip(usize::from(self.depth / 2));
            rest.all(|(at, byte)| match at == usize::from(self.depth / 2) && self.depth % 2 == 1 {
                true => byte & 0x0f == 0,
                false => *byte == 0,
            })
        }
    }
}

/// The most significant byte of a hash part's text.
pub(crate) fn first_byte(hash_part: &HashPart) -> u8 {
    hash_part.0.last().copied().unwrap_or(0)
}

/// The builders of a session, and their numbers in the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shared {
    /// Ascending by digest.
    builders: Vec<(BuilderDigest, BuilderKey)>,
}

impl Shared {
    /// The first [`BUILDERS_PER_SESSION_MAX`] of these, by digest.
    pub fn new(keys: impl IntoIterator<Item = BuilderKey>) -> Self {
        let mut builders: Vec<_> = keys.into_iter().map(|key| (BuilderDigest::of(&key), key)).collect();
        builders.sort_unstable();
        builders.dedup();
        builders.truncate(BUILDERS_PER_SESSION_MAX);
        Self { builders }
    }

    /// Those that are also in `digests`.
    fn restricted_to(&self, digests: &[BuilderDigest]) -> Self {
        let wanted: BTreeSet<_> = digests.iter().collect();
        Self { builders: self.builders.iter().filter(|(digest, _)| wanted.contains(digest)).copied().collect() }
    }

    fn digests(&self) -> Vec<BuilderDigest> {
        self.builders.iter().map(|(digest, _)| *digest).collect()
    }

    fn keys(&self) -> impl Iterator<Item = BuilderKey> {
        self.builders.iter().map(|(_, key)| *key)
    }
}

impl Ledger {
    /// Answers a query about builders that this peer may hear of.
    pub fn answer(&self, admitted: &Shared, query: &Query) -> Answer {
        let shared = admitted.restricted_to(&query.builders);
        let digests = shared.digests();
        if digests != query.builders {
            return Answer::Builders(digests);
        }
        // Unordered, it could ask for the costliest node five hundred times.
        if !query.nodes.is_sorted_by(|first, second| first.0 < second.0) {
            return Answer::Nodes { answered: 0, differing: Vec::new() };
        }
        let (mut answered, mut differing, mut bytes) = (0u32, Vec::new(), 64usize);
        for (node, theirs) in query.nodes.iter().take(NODES_MAX) {
            if node.is_canonical() && self.node_digest(&shared, *node) != *theirs {
                let content = self.content(&shared, *node);
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

    /// What an item under a node stands for: the builder and the path, whose attestations (two of them if its vote is void)
    /// are to be handed over.
    pub fn find(&self, shared: &Shared, node: Node, item: Item) -> Option<(BuilderKey, HashPart)> {
        if !node.is_canonical() {
            return None;
        }
        self.items(shared, node).find(|(known, ..)| *known == item).map(|(_, builder, path)| (builder, path))
    }

    fn content(&self, shared: &Shared, node: Node) -> Content {
        let few: Vec<Item> = self.items(shared, node).map(|(item, ..)| item).take(ITEMS_TOLD_MAX + 1).collect();
        if few.len() <= ITEMS_TOLD_MAX {
            return Content::Items(few);
        }
        match (0..CHILDREN).map(|number| node.child(number)).collect::<Option<Vec<_>>>() {
            Some(children) => {
                let mut digests = [[0; 16]; CHILDREN];
                for (digest, child) in digests.iter_mut().zip(children) {
                    *digest = self.node_digest(shared, child);
                }
                Content::Children(Box::new(digests))
            }
            // One path, and more builders than are told otherwise.
            None => Content::Items(self.items(shared, node).map(|(item, ..)| item).collect()),
        }
    }

    /// The items of these builders under a node, in the order of the paths, then of the builders.
    fn items(&self, shared: &Shared, node: Node) -> impl Iterator<Item = (Item, BuilderKey, HashPart)> {
        let (first, last) = node.bounds();
        let wanted: BTreeSet<BuilderKey> = shared.keys().collect();
        self.hash_parts_in(first..=last).flat_map(move |hash_part| {
            let mut items = self.items_of(&hash_part);
            items.retain(|builder, _| wanted.contains(builder));
            items.into_iter().map(move |(builder, item)| (item, builder, hash_part))
        })
    }

    fn items_of(&self, hash_part: &HashPart) -> BTreeMap<BuilderKey, Item> {
        let mut said: BTreeMap<BuilderKey, Vec<Vote>> = BTreeMap::new();
        for vote in self.votes(hash_part).filter(|vote| vote.attested_at.is_some()) {
            said.entry(vote.builder).or_default().push(vote);
        }
        said.into_iter().map(|(builder, votes)| (builder, item(&builder, hash_part, &votes))).collect()
    }

    fn node_digest(&self, shared: &Shared, node: Node) -> NodeDigest {
        let mut hasher = Sha256::new();
        let mut empty = true;
        let digests = match node.depth {
            0..2 => self.digests_above(shared, node),
            _ => self.digests_below(shared, node),
        };
        for ((digest, _), under) in shared.builders.iter().zip(digests) {
            if under != NodeDigest::default() {
                empty = false;
                hasher.update(digest.0);
                hasher.update(under);
            }
        }
        if empty { NodeDigest::default() } else { short(hasher) }
    }

    /// Per builder, for the root and its children: over the digests of the first bytes under it, which are remembered.
    fn digests_above(&self, shared: &Shared, node: Node) -> Vec<NodeDigest> {
        let (first, last) = node.bounds();
        let mut hashers = vec![(Sha256::new(), true); shared.builders.len()];
        for byte in first_byte(&first)..=first_byte(&last) {
            let mut prefix = [0; 20];
            if let Some(top) = prefix.first_mut() {
                *top = byte;
            }
            let digests = self.digests_below(shared, Node { depth: 2, prefix });
            for ((hasher, empty), digest) in hashers.iter_mut().zip(digests) {
                if digest != NodeDigest::default() {
                    *empty = false;
                    hasher.update([byte]);
                    hasher.update(digest);
                }
            }
        }
        let finished = hashers.into_iter();
        finished.map(|(hasher, empty)| if empty { NodeDigest::default() } else { short(hasher) }).collect()
    }

    /// Per builder, for nodes of at least a byte: over the items under it.
    fn digests_below(&self, shared: &Shared, node: Node) -> Vec<NodeDigest> {
        let top = node.prefix.first().copied().unwrap_or(0);
        let numbers: Vec<Option<u16>> = shared.keys().map(|key| self.number_of(&key)).collect();
        if node.depth == 2 {
            let known = |number: &Option<u16>| match number {
                Some(number) => self.digests.known(*number, top),
                None => Some(NodeDigest::default()),
            };
            if let Some(known) = numbers.iter().map(known).collect::<Option<Vec<_>>>() {
                return known;
            }
        }
        let places: BTreeMap<BuilderKey, usize> = shared.keys().enumerate().map(|(place, key)| (key, place)).collect();
        let mut hashers = vec![(Sha256::new(), true); places.len()];
        for (item, builder, _) in self.items(shared, node) {
            if let Some((hasher, empty)) = places.get(&builder).and_then(|place| hashers.get_mut(*place)) {
                *empty = false;
                hasher.update(item.0);
            }
        }
        let finished = hashers.into_iter();
        let digests: Vec<NodeDigest> =
            finished.map(|(hasher, empty)| if empty { NodeDigest::default() } else { short(hasher) }).collect();
        if node.depth == 2 {
            for (number, digest) in numbers.iter().zip(&digests) {
                if let Some(number) = number {
                    self.digests.remember(*number, top, *digest);
                }
            }
        }
        digests
    }
}

/// One statement is itself; two or more are "void", whichever they are.
fn item(builder: &BuilderKey, hash_part: &HashPart, votes: &[Vote]) -> Item {
    let mut hasher = Sha256::new();
    hasher.update(builder.0);
    hasher.update(hash_part.0);
    match votes {
        [only] => hasher.update(only.facts.fingerprint.0),
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

/// The asker's side of one comparison.
#[derive(Clone, Debug)]
pub struct Session {
    shared: Shared,
    open: Vec<(Node, NodeDigest)>,
    asked: Vec<(Node, NodeDigest)>,
    queries: usize,
    restarted: bool,
    found: Difference,
}

/// What only one side has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// The other side has these: to be pulled, by node and item.
    pub theirs: Vec<(Node, Item)>,
    /// We have these: of this builder, about this path.
    pub ours: Vec<(BuilderKey, HashPart)>,
    /// The builders that were compared; both sides know them.
    pub builders: Vec<BuilderDigest>,
    /// Whether all was compared: no bound ended it.
    pub complete: bool,
}

/// What is to be done next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Send this and bring the answer.
    Ask(Query),
    /// It is over.
    Done(Difference),
}

impl Session {
    /// Begins; send the query.
    pub fn start(ledger: &Ledger, shared: Shared) -> (Self, Query) {
        let root = (Node::ROOT, ledger.node_digest(&shared, Node::ROOT));
        let mut session = Self {
            shared,
            open: vec![root],
            asked: Vec::new(),
            queries: 0,
            restarted: false,
            found: Difference::default(),
        };
        let query = session.query();
        (session, query)
    }

    /// Takes an answer. One that does not fit the query ends the session, incomplete.
    pub fn answer(&mut self, ledger: &Ledger, answer: &Answer) -> Next {
        let fits = match answer {
            Answer::Builders(builders) => self.restart(ledger, builders),
            Answer::Nodes { answered, differing } => self.take(ledger, *answered, differing),
        };
        let full = self.queries >= QUERIES_MAX || self.found.theirs.len().max(self.found.ours.len()) > ITEMS_MAX;
        if fits && !full && !self.open.is_empty() {
            return Next::Ask(self.query());
        }
        let complete = fits && !full && self.open.is_empty();
        Next::Done(Difference { builders: self.shared.digests(), complete, ..std::mem::take(&mut self.found) })
    }

    /// Deep nodes first, so that few are open.
    fn query(&mut self) -> Query {
        self.queries += 1;
        let from = self.open.len().saturating_sub(NODES_MAX);
        self.asked = self.open.split_off(from);
        self.asked.sort_unstable();
        Query { builders: self.shared.digests(), nodes: self.asked.clone() }
    }

    fn restart(&mut self, ledger: &Ledger, builders: &[BuilderDigest]) -> bool {
        let fewer = self.shared.restricted_to(builders);
        if std::mem::replace(&mut self.restarted, true) || fewer == self.shared {
            return false;
        }
        self.shared = fewer;
        self.open = vec![(Node::ROOT, ledger.node_digest(&self.shared, Node::ROOT))];
        true
    }

    fn take(&mut self, ledger: &Ledger, answered: u32, differing: &[(u32, Content)]) -> bool {
        let asked = std::mem::take(&mut self.asked);
        let answered = usize::try_from(answered).unwrap_or(usize::MAX);
        let in_order = differing.is_sorted_by(|first, second| first.0 < second.0);
        let Some(rest) = asked.get(answered..).filter(|_| in_order && answered > 0) else { return false };
        self.open.extend_from_slice(rest);
        for (number, content) in differing {
            let node = usize::try_from(*number).ok().filter(|number| *number < answered).and_then(|it| asked.get(it));
            let Some((node, _)) = node else { return false };
            match content {
                Content::Items(items) => self.compare(ledger, *node, items),
                Content::Children(digests) => {
                    for (number, theirs) in digests.iter().enumerate() {
                        let Some(child) = node.child(number) else { return false };
                        let ours = ledger.node_digest(&self.shared, child);
                        if ours != *theirs {
                            self.open.push((child, ours));
                        }
                    }
                }
            }
        }
        true
    }

    fn compare(&mut self, ledger: &Ledger, node: Node, items: &[Item]) {
        let theirs: BTreeSet<Item> = items.iter().copied().collect();
        let mut both = BTreeSet::new();
        for (item, builder, hash_part) in ledger.items(&self.shared, node) {
            if theirs.contains(&item) {
                both.insert(item);
            } else if self.found.ours.len() <= ITEMS_MAX {
                self.found.ours.push((builder, hash_part));
            }
        }
        self.found.theirs.extend(theirs.difference(&both).map(|item| (node, *item)));
    }
}
