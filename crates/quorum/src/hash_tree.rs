//! The tree of hash parts, with four bits per level.

use narmesh_protocol::HashPart;

/// The first 16 bytes of a SHA-256 over what is under a node; zero when nothing is.
pub type NodeDigest = [u8; 16];

/// Children of a node.
pub(crate) const CHILDREN: usize = 16;
/// The number of levels: 20 bytes at four bits each.
const DEPTH_MAX: u8 = 40;

/// A node: the hash parts that begin with its `depth` times four bits. Nodes are ordered like the texts
/// of their hash parts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, bincode::Encode, bincode::Decode)]
pub struct Node {
    /// 0 for the root, at most 40.
    pub depth: u8,
    /// The bits, followed by zeros. The last byte of a hash part comes first, because that is how hash parts are ordered.
    pub prefix: [u8; 20],
}

impl Node {
    /// The node above all hash parts.
    pub const ROOT: Self = Self { depth: 0, prefix: [0; 20] };

    /// Its child with this number, one of [`CHILDREN`]; `None` below a whole hash part.
    pub(crate) fn child(self, number: usize) -> Option<Self> {
        let at = usize::from(self.depth / 2);
        let bits = u8::try_from(number).ok().filter(|bits| usize::from(*bits) < CHILDREN)?;
        let mut prefix = self.prefix;
        *prefix.get_mut(at)? |= if self.depth.is_multiple_of(2) { bits << 4 } else { bits };
        Some(Self { depth: self.depth + 1, prefix })
    }

    /// Whether this hash part is under the node.
    pub(crate) fn contains(self, hash_part: &HashPart) -> bool {
        let (first, last) = self.bounds();
        (first..=last).contains(hash_part)
    }

    /// The first and the last hash part under the node.
    pub(crate) fn bounds(self) -> (HashPart, HashPart) {
        let (whole, half) = (usize::from(self.depth / 2), self.depth % 2 == 1);
        let mut last = self.prefix;
        for (at, byte) in last.iter_mut().enumerate().skip(whole) {
            *byte |= if at == whole && half { 0x0f } else { 0xff };
        }
        // A hash part is ordered as its text is, of which the last byte comes first.
        let text_order = |mut bytes: [u8; 20]| {
            bytes.reverse();
            HashPart(bytes)
        };
        (text_order(self.prefix), text_order(last))
    }

    /// Whether the bits beyond `depth` are zero and `depth` is within the tree, so that no other value means the same node.
    pub(crate) fn is_canonical(self) -> bool {
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

/// The most significant byte of a hash part, in the order of the texts.
pub(crate) fn first_byte(hash_part: &HashPart) -> u8 {
    hash_part.0.last().copied().unwrap_or(0)
}
