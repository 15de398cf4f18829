//! All filters at one moment, as readers see them.

use super::matrix::{BLOCK_COLUMNS, Block, WORD_COLUMNS};
use libp2p_identity::PeerId;
use narmesh_protocol::{BitPositions, FilterClass, HASHES_PER_ITEM};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

/// How many blocks are fetched together: enough for 2,048 peers and for columns that wait to be used again.
const BLOCKS_USUAL: usize = 6;

/// What readers of the table may do with a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Rank {
    /// Ask it.
    Usual,
    /// Ask it after all others: it is demoted.
    Last,
    /// Ask it nothing: it is set aside.
    Excluded,
}

impl Rank {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Usual,
            1 => Self::Last,
            _ => Self::Excluded,
        }
    }
}

/// SplitMix64's finalizer (Steele, Lea, Flood 2014).
pub(super) fn mix(seed: u64) -> u64 {
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

/// What readers need to know of a peer. All views share it, and it changes in place.
#[derive(Debug)]
pub(crate) struct FilterOwner {
    pub(crate) peer: PeerId,
    /// Orders equally good candidates.
    pub(crate) salt: u64,
    /// False hits per 1,024 probes.
    pub(crate) false_share: AtomicU32,
    rank: AtomicU8,
}

impl FilterOwner {
    pub(crate) fn new(peer: PeerId, rank: Rank) -> Self {
        let salt = Self::salt_of(&peer);
        Self { peer, salt, false_share: AtomicU32::new(0), rank: AtomicU8::new(rank as u8) }
    }

    pub(crate) fn set_rank(&self, rank: Rank) {
        self.rank.store(rank as u8, Relaxed);
    }

    pub(super) fn rank(&self) -> Rank {
        Rank::from_u8(self.rank.load(Relaxed))
    }

    pub(super) fn salt_of(peer: &PeerId) -> u64 {
        let word = |chunk: &[u8]| chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        peer.to_bytes().chunks(8).fold(0u64, |salt, chunk| mix(salt ^ word(chunk)))
    }
}

/// All filters at one moment.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) classes: Vec<(FilterClass, Arc<ClassView>)>,
}

#[cfg(test)]
impl View {
    /// All peers whose filter says maybe.
    pub(crate) fn find(&self, positions: &BitPositions) -> Vec<PeerId> {
        let mut found = Vec::new();
        self.classes
            .iter()
            .for_each(|(class, members)| members.find(*class, positions, |member| found.push(member.peer)));
        found
    }
}

/// The filters of one class at one moment.
#[derive(Debug)]
pub(crate) enum ClassView {
    Plain(Vec<(Arc<FilterOwner>, Arc<PlainFilter>)>),
    Sliced {
        /// The first block holds the recent filters and is one word wide; of the others, all but the last are full.
        blocks: Vec<Arc<Block>>,
        /// The members of 64 columns each, in the order of the columns.
        words: Vec<Arc<Word>>,
        /// For each block, a one for each column that has a member.
        live: Vec<[u64; 8]>,
    },
}

/// The members of 64 columns. Views share the words in which nothing changed.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    live: u64,
    members: [Option<Arc<FilterOwner>>; WORD_COLUMNS],
}

impl Default for Word {
    fn default() -> Self {
        Self { live: 0, members: std::array::from_fn(|_| None) }
    }
}

impl Word {
    pub(crate) fn set(&mut self, bit: usize, member: Option<Arc<FilterOwner>>) {
        let mask = 1 << (bit % WORD_COLUMNS);
        self.live = if member.is_some() { self.live | mask } else { self.live & !mask };
        if let Some(slot) = self.members.get_mut(bit % WORD_COLUMNS) {
            *slot = member;
        }
    }

    pub(crate) fn get(&self, bit: usize) -> Option<&Arc<FilterOwner>> {
        self.members.get(bit % WORD_COLUMNS)?.as_ref()
    }
}

impl ClassView {
    pub(crate) fn sliced(blocks: Vec<Arc<Block>>, words: Vec<Arc<Word>>) -> Self {
        let block = |words: &[Arc<Word>]| {
            let mut live = [0; BLOCK_COLUMNS / WORD_COLUMNS];
            live.iter_mut().zip(words).for_each(|(to, word)| *to = word.live);
            live
        };
        let live = by_block(&words).map(block).collect();
        Self::Sliced { blocks, words, live }
    }

    pub(super) fn find<'a>(
        &'a self,
        class: FilterClass,
        positions: &BitPositions,
        mut tell: impl FnMut(&'a FilterOwner),
    ) {
        let mut rows = [0; HASHES_PER_ITEM];
        rows.iter_mut().zip(positions.in_class(class)).for_each(|(to, from)| *to = from);
        match self {
            Self::Plain(filters) => {
                filters.iter().filter(|(_, filter)| filter.may_contain(&rows)).for_each(|(member, _)| tell(member));
            }
            Self::Sliced { blocks, words, live } => {
                // The first words of all blocks are loaded before any block is searched: the loads do not depend on each
                // other, so memory serves them all at once.
                let mut first_words = [0; BLOCKS_USUAL];
                first_words.iter_mut().zip(blocks).for_each(|(to, block)| *to = block.load_first_word(&rows));
                for (((at, block), live), words) in blocks.iter().enumerate().zip(live).zip(by_block(words)) {
                    let first_word = first_words.get(at).copied().unwrap_or_else(|| block.load_first_word(&rows));
                    let found = block.find(&rows, first_word, *live);
                    for (bits, word) in found.into_iter().zip(words) {
                        ones(bits).filter_map(|bit| word.get(bit).map(Arc::as_ref)).for_each(&mut tell);
                    }
                }
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Plain(filters) => filters.len(),
            Self::Sliced { words, .. } => words.iter().map(|word| word.live.count_ones() as usize).sum(),
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Plain(filters) => filters.iter().map(|(_, filter)| filter.words.len() * 8).sum(),
            Self::Sliced { blocks, .. } => blocks.iter().map(|block| block.memory_bytes()).sum(),
        }
    }
}

/// The words of each block: one word of the recent block, then eight for each block of the matrix.
fn by_block(words: &[Arc<Word>]) -> impl Iterator<Item = &[Arc<Word>]> {
    let (recent, settled) = words.split_at(words.len().min(1));
    std::iter::once(recent).chain(settled.chunks(BLOCK_COLUMNS / WORD_COLUMNS))
}

/// The positions of the ones in a word, lowest first.
fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

/// A single filter outside of a matrix; deltas set its bits in place.
#[derive(Debug)]
pub(crate) struct PlainFilter {
    words: Box<[AtomicU64]>,
}

impl PlainFilter {
    pub(crate) fn new(filter_bytes: &[u8]) -> Self {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Self { words: filter_bytes.chunks(8).map(|bytes| AtomicU64::new(word(bytes))).collect() }
    }

    pub(crate) fn set(&self, positions: &[u32]) {
        for position in positions {
            if let Some(word) = self.words.get(*position as usize / 64) {
                word.fetch_or(1 << (position % 64), Relaxed);
            }
        }
    }

    pub(crate) fn read(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect()
    }

    fn may_contain(&self, rows: &[u32; HASHES_PER_ITEM]) -> bool {
        rows.iter()
            .all(|row| self.words.get(*row as usize / 64).is_some_and(|word| word.load(Relaxed) >> (row % 64) & 1 == 1))
    }
}
