//! The tree of hash parts: four bits a level.

use super::CHILDREN;
use narmesh_protocol::HashPart;

/// Levels of the tree: four bits each of 20 bytes.
const DEPTH_MAX: u8 = 40;

/// A node: the hash parts that begin with its `depth` times four bits, in the order of their texts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, bincode::Encode, bincode::Decode)]
pub struct Node {
    /// 0 for the root, at most 40.
    pub depth: u8,
    /// The bits, the rest zero; last byte first, as hash parts are ordered.
    pub prefix: [u8; 20],
}

impl Node {
    /// All hash parts.
    pub const ROOT: Self = Self { depth: 0, prefix: [0; 20] };

    /// The one of its [`CHILDREN`] with this number; none under a whole hash part.
    pub(super) fn child(self, number: usize) -> Option<Self> {
        let at = usize::from(self.depth / 2);
        let bits = u8::try_from(number).ok().filter(|bits| usize::from(*bits) < CHILDREN)?;
        let mut prefix = self.prefix;
        *prefix.get_mut(at)? |= if self.depth.is_multiple_of(2) { bits << 4 } else { bits };
        Some(Self { depth: self.depth + 1, prefix })
    }

    /// Whether this hash part is under it.
    pub(crate) fn contains(self, hash_part: &HashPart) -> bool {
        let (first, last) = self.bounds();
        (first..=last).contains(hash_part)
    }

    /// First and last hash part under it.
    pub(super) fn bounds(self) -> (HashPart, HashPart) {
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

    /// Whether nobody could write it otherwise.
    pub(super) fn is_canonical(self) -> bool {
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
