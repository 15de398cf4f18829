//! Filters of one size, transposed: one row per bit position, one column per peer.
//!
//! The AND of a path's k rows has a one in the column of each peer whose filter says maybe. Columns are grouped into words
//! of 64 and blocks of 512. A row of a full block is one 64-byte cache line. The k cache lines of a lookup do not depend on
//! each other, so the processor fetches them all at once. There is one writer (the core) and any number of readers.

use narmesh_protocol::{FilterClass, HASHES_PER_ITEM};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Columns in one word.
pub(crate) const WORD_COLUMNS: usize = 64;
/// Words in a row of a full block: one cache line.
const BLOCK_WORDS: usize = 8;
/// Columns in a full block.
pub(crate) const BLOCK_COLUMNS: usize = BLOCK_WORDS * WORD_COLUMNS;

/// A matrix of up to 512 columns.
pub(crate) struct Block {
    width: usize,
    /// Words before the first row, so that the rows of a full block begin on a cache line.
    skip: usize,
    words: Box<[AtomicU64]>,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("width", &self.width).field("words", &self.words.len()).finish()
    }
}

/// Bit j of byte i becomes bit i of byte j (Warren, Hacker's Delight, 7-3).
fn transpose(square: [u8; 8]) -> [u8; 8] {
    let swap = |bits: u64, by: u32, mask: u64| {
        let differing = (bits ^ (bits >> by)) & mask;
        bits ^ differing ^ (differing << by)
    };
    let bits = swap(u64::from_le_bytes(square), 7, 0x00aa_00aa_00aa_00aa);
    let bits = swap(bits, 14, 0x0000_cccc_0000_cccc);
    swap(bits, 28, 0x0000_0000_f0f0_f0f0).to_le_bytes()
}

impl Block {
    /// An empty block with `width` words per row, at most 8.
    pub(crate) fn new(class: FilterClass, width: usize) -> Self {
        debug_assert!((1..=BLOCK_WORDS).contains(&width));
        let rows = class.bytes() * 8;
        let words: Box<[AtomicU64]> =
            std::iter::repeat_with(AtomicU64::default).take(rows * width + BLOCK_WORDS).collect();
        let skip = words.as_ptr().align_offset(BLOCK_WORDS * size_of::<AtomicU64>()).min(BLOCK_WORDS);
        Self { width, skip, words }
    }

    /// A copy with room for 64 more columns; `None` when the block is full.
    pub(crate) fn to_wider(&self, class: FilterClass) -> Option<Self> {
        if self.width == BLOCK_WORDS {
            return None;
        }
        let wider = Self::new(class, self.width + 1);
        for (to, from) in wider.rows(1).zip(self.rows(1)) {
            for (to, from) in to.iter().zip(from) {
                to.store(from.load(Relaxed), Relaxed);
            }
        }
        Some(wider)
    }

    /// How many columns there is room for.
    #[cfg(test)]
    pub(crate) fn columns(&self) -> usize {
        self.width * WORD_COLUMNS
    }

    /// The memory of this block, bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.words.len() * size_of::<AtomicU64>()
    }

    /// Overwrites a column with a filter of the block's class. Only the writer calls this, so plain loads and stores do.
    pub(crate) fn write(&self, column: usize, filter_bytes: &[u8]) {
        let (word, mask) = place(column);
        for (byte, rows) in filter_bytes.iter().zip(self.rows(8)) {
            for (bit, row) in rows.chunks_exact(self.width).enumerate() {
                let Some(cell) = row.get(word) else { return };
                let before = cell.load(Relaxed);
                let after = if byte >> bit & 1 == 1 { before | mask } else { before & !mask };
                // A store to an unchanged word would take its cache line away from the readers.
                if after != before {
                    cell.store(after, Relaxed);
                }
            }
        }
    }

    /// Writes filters to the first columns of a new block in one pass; at most one filter per column.
    pub(crate) fn fill(&self, filters: &[Vec<u8>]) {
        for (word, filters) in filters.chunks(WORD_COLUMNS).enumerate() {
            for (at, rows) in self.rows(8).enumerate() {
                let mut words = [0u64; 8];
                // One byte each of eight filters is a square of bits; transposed, it holds the next eight
                // columns of eight rows.
                for (shift, filters) in (0..).step_by(8).zip(filters.chunks(8)) {
                    let mut square = [0; 8];
                    for (to, filter) in square.iter_mut().zip(filters) {
                        *to = filter.get(at).copied().unwrap_or_default();
                    }
                    for (row, columns) in words.iter_mut().zip(transpose(square)) {
                        *row |= u64::from(columns) << shift;
                    }
                }
                for (row, bits) in rows.chunks_exact(self.width).zip(words) {
                    if let Some(cell) = row.get(word) {
                        cell.store(bits, Relaxed);
                    }
                }
            }
        }
    }

    /// Copies columns of a block of one word to columns of this block in one pass. Each of `moves` is the column to copy
    /// from and the column to copy to.
    pub(crate) fn take(&self, recent: &Self, moves: &[(usize, usize)]) {
        // For each word of this block: a mask of the columns to overwrite, and the moves within the word.
        let mut words: [(u64, Vec<(usize, usize)>); BLOCK_WORDS] = Default::default();
        for (from, to) in moves {
            let (word, mask) = place(*to);
            if let Some((masks, moves)) = words.get_mut(word) {
                *masks |= mask;
                moves.push((from % WORD_COLUMNS, to % WORD_COLUMNS));
            }
        }
        // Where every filter keeps its place in the word, a row needs one store with a mask instead of one step per filter.
        let (mut straight, mut crossed) = (Vec::new(), Vec::new());
        for (word, (mask, moves)) in words.into_iter().enumerate().filter(|(_, (mask, _))| *mask != 0) {
            match moves.iter().all(|(from, to)| from == to) {
                true => straight.push((word, mask)),
                false => crossed.push((word, mask, moves)),
            }
        }
        for (row, recent) in self.rows(1).zip(recent.rows(1)) {
            let recent = recent.first().map_or(0, |cell| cell.load(Relaxed));
            let store = |word: usize, mask: u64, bits: u64| {
                if let Some(cell) = row.get(word) {
                    cell.store(cell.load(Relaxed) & !mask | bits, Relaxed);
                }
            };
            straight.iter().for_each(|(word, mask)| store(*word, *mask, recent & mask));
            for (word, mask, moves) in &crossed {
                store(*word, *mask, moves.iter().fold(0, |bits, (from, to)| bits | (recent >> from & 1) << to));
            }
        }
    }

    /// Sets bits of a column; readers see each bit at once. Only the writer calls this, so plain loads and stores do.
    pub(crate) fn set(&self, column: usize, positions: &[u32]) {
        let (word, mask) = place(column);
        for &position in positions {
            if let Some(cell) = self.words.get(self.skip + position as usize * self.width + word) {
                cell.store(cell.load(Relaxed) | mask, Relaxed);
            }
        }
    }

    /// The bytes of the filter in a column.
    pub(crate) fn read(&self, column: usize) -> Vec<u8> {
        let (word, mask) = place(column);
        let byte = |rows: &[AtomicU64]| {
            let bits = rows
                .chunks_exact(self.width)
                .map(|row| row.get(word).is_some_and(|cell| cell.load(Relaxed) & mask != 0));
            bits.enumerate().fold(0u8, |byte, (bit, set)| byte | u8::from(set) << bit)
        };
        self.rows(8).map(byte).collect()
    }

    /// The AND of these rows in the first 64 columns: k independent loads, one from each cache line. It is called for all
    /// blocks before [`Self::find`] is called for any, so that memory serves all loads at once.
    pub(crate) fn load_first_word(&self, positions: &[u32; HASHES_PER_ITEM]) -> u64 {
        let first = |position: &u32| Some(self.row(*position).first()?.load(Relaxed));
        positions.iter().filter_map(first).fold(u64::MAX, |all, word| all & word)
    }

    /// The AND of these rows in all columns, within `live`. `first_word` is the result of [`Self::load_first_word`].
    pub(crate) fn find(
        &self,
        positions: &[u32; HASHES_PER_ITEM],
        first_word: u64,
        live: [u64; BLOCK_WORDS],
    ) -> [u64; BLOCK_WORDS] {
        let mut found = live;
        let [first, ..] = &mut found;
        *first &= first_word;
        // The first word of each row is in `first_word` already.
        for position in positions {
            let row = self.row(*position);
            found.iter_mut().zip(row).skip(1).for_each(|(found, cell)| *found &= cell.load(Relaxed));
        }
        found
    }

    fn row(&self, position: u32) -> &[AtomicU64] {
        let at = self.skip + position as usize * self.width;
        self.words.get(at..at + self.width).unwrap_or_default()
    }

    fn rows(&self, rows: usize) -> impl Iterator<Item = &[AtomicU64]> {
        let end = self.skip + self.words.len() - BLOCK_WORDS;
        self.words.get(self.skip..end).unwrap_or_default().chunks_exact(self.width * rows)
    }
}

fn place(column: usize) -> (usize, u64) {
    (column % BLOCK_COLUMNS / WORD_COLUMNS, 1 << (column % WORD_COLUMNS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn class() -> FilterClass {
        FilterClass::of_bytes(1024).unwrap()
    }

    #[test]
    fn columns_do_not_touch_each_other() {
        let block = Block::new(class(), 8);
        let filter =
            |seed: usize| (0..1024).map(|i| u8::try_from((i * 31 + seed * 97) % 251).unwrap()).collect::<Vec<_>>();
        for column in [0, 63, 64, 200, 511] {
            block.write(column, &filter(column));
        }
        block.write(64, &filter(7));
        for (column, seed) in [(0, 0), (63, 63), (64, 7), (200, 200), (511, 511)] {
            assert_eq!(block.read(column), filter(seed), "column {column}");
        }
        assert_eq!(block.read(1), vec![0; 1024]);
    }

    #[test]
    fn fill_writes_the_same_as_write() {
        let filter =
            |seed: usize| (0..1024).map(|i| u8::try_from((i * 31 + seed * 97) % 251).unwrap()).collect::<Vec<_>>();
        let filters: Vec<_> = (0..100).map(filter).collect();
        let block = Block::new(class(), 2);
        block.fill(&filters);
        for (column, filter) in filters.iter().enumerate() {
            assert_eq!(&block.read(column), filter, "column {column}");
        }
        assert_eq!(block.read(100), vec![0; 1024]);
    }

    #[test]
    fn widening_keeps_the_columns() {
        let mut block = Block::new(class(), 1);
        block.write(5, &[0xa5; 1024]);
        while let Some(wider) = block.to_wider(class()) {
            block = wider;
            assert_eq!(block.read(5), vec![0xa5; 1024]);
            assert_eq!(block.read(64), vec![0; 1024]);
        }
        assert_eq!(block.columns(), BLOCK_COLUMNS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn take_copies_exactly_the_given_columns(
            width in 1usize..=8,
            seeds in prop::collection::vec(any::<u8>(), 64),
            to in prop::sample::subsequence((0..512usize).collect::<Vec<_>>(), 1..=64).prop_shuffle(),
            ordered in any::<bool>(),
        ) {
            let (recent, block) = (Block::new(class(), 1), Block::new(class(), width));
            let filter = |seed: u8| (0..=255u8).cycle().take(1024).map(|at| at.wrapping_mul(31) ^ seed).collect::<Vec<u8>>();
            recent.fill(&seeds.iter().map(|seed| filter(*seed)).collect::<Vec<_>>());
            let old: Vec<Vec<u8>> = (0..250u8).cycle().take(block.columns()).map(filter).collect();
            block.fill(&old);
            // The columns keep their place within one word, or they are shuffled.
            let to = if ordered { (0..64).map(|at| (width - 1) * 64 + at).collect() } else { to };
            let moves: Vec<_> = to.into_iter().filter(|to| *to < block.columns()).enumerate().collect();
            block.take(&recent, &moves);
            for (column, old) in old.iter().enumerate() {
                let from = moves.iter().find(|(_, to)| *to == column).map(|(from, _)| filter(seeds[*from]));
                prop_assert_eq!(&block.read(column), from.as_ref().unwrap_or(old), "column {}", column);
            }
        }
    }

    proptest! {
        #[test]
        fn finds_the_columns_that_have_every_row(
            width in 1usize..=8, columns in prop::collection::btree_set(0usize..512, 1..20), rows in prop::array::uniform11(0u32..8192),
        ) {
            let block = Block::new(class(), width);
            let columns: Vec<usize> = columns.into_iter().filter(|column| *column < block.columns()).collect();
            for column in &columns {
                block.set(*column, &rows);
            }
            block.set(0, &rows[..10]);
            let found = block.find(&rows, block.load_first_word(&rows), [u64::MAX; 8]);
            for column in 0..block.columns() {
                let all = columns.contains(&column) || (column == 0 && rows[..10].contains(&rows[10]));
                prop_assert_eq!(found[column / 64] >> (column % 64) & 1 == 1, all, "column {}", column);
            }
        }
    }
}
