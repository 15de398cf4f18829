//! A class of many peers: a matrix, and beside it a block of one word for the filters that came last.
//!
//! Writing a filter to a block of 512 columns touches one cache line for each of its bits. In a block of 64 columns, eight
//! bits share a line. So new filters go there, and when its columns are used up they move to the matrix in one pass.

use super::matrix::{BLOCK_COLUMNS, Block, WORD_COLUMNS};
use super::view::{ClassView, FilterOwner, PlainFilter, Word};
use libp2p_identity::PeerId;
use narmesh_protocol::FilterClass;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Filters that are kept one by one, outside of a matrix.
pub(crate) type PlainFilters = BTreeMap<PeerId, (Arc<FilterOwner>, Arc<PlainFilter>)>;

/// The writing side of [`ClassView::Sliced`].
#[derive(Debug)]
pub(crate) struct Sliced {
    class: FilterClass,
    /// The recent block, one word wide; then the blocks of the matrix, all full but the last.
    blocks: Vec<Arc<Block>>,
    /// The members of 64 columns each; those of the recent block first.
    words: Vec<Arc<Word>>,
    /// The column of each peer: below [`WORD_COLUMNS`] it is in the recent block, from there on in the matrix.
    columns: BTreeMap<PeerId, usize>,
    /// Columns of the matrix that no view shows, whatever bits are in them.
    free: Vec<usize>,
    recent: Recent,
    /// Columns that were given up, each with the number of the last view that shows it.
    retired: VecDeque<(u64, usize)>,
}

/// The columns of the recent block that no view shows.
#[derive(Debug)]
struct Recent {
    /// Columns that still hold the bits of a former peer.
    free: Vec<usize>,
    /// Columns that are empty. The lowest is the last.
    unused: Vec<usize>,
}

impl Recent {
    /// A recent block whose columns from `first` on are unused.
    fn from(first: usize) -> Self {
        Self { free: Vec::new(), unused: (first..WORD_COLUMNS).rev().collect() }
    }
}

impl Sliced {
    /// Puts all these filters into a new matrix; those beyond the last multiple of 64 go to the recent block.
    pub(crate) fn of(class: FilterClass, filters: &PlainFilters) -> Self {
        // With at most one word of filters, a recent block alone holds them all.
        let settled = if filters.len() <= WORD_COLUMNS { 0 } else { filters.len() / WORD_COLUMNS * WORD_COLUMNS };
        let mut sliced = Self {
            class,
            blocks: vec![Arc::new(Block::new(class, 1))],
            words: vec![Arc::default()],
            columns: BTreeMap::new(),
            free: Vec::new(),
            recent: Recent::from(filters.len() - settled),
            retired: VecDeque::new(),
        };
        while sliced.columns() < WORD_COLUMNS + settled {
            sliced.grow();
        }
        // All of the new columns are filled below.
        sliced.free.clear();
        let bytes: Vec<_> = filters.values().map(|(_, filter)| filter.read()).collect();
        let (settled_bytes, recent_bytes) = bytes.split_at(settled);
        let chunks = std::iter::once(recent_bytes).chain(settled_bytes.chunks(BLOCK_COLUMNS));
        sliced.blocks.iter().zip(chunks).for_each(|(block, filters)| block.fill(filters));
        let columns = (WORD_COLUMNS..WORD_COLUMNS + settled).chain(0..WORD_COLUMNS);
        for ((peer, (member, _)), column) in filters.iter().zip(columns) {
            sliced.columns.insert(*peer, column);
            sliced.set_member(column, Some(Arc::clone(member)));
        }
        sliced
    }

    /// How many filters are here.
    pub(crate) fn members(&self) -> usize {
        self.columns.len()
    }

    /// How many columns there is room for.
    pub(crate) fn columns(&self) -> usize {
        self.words.len() * WORD_COLUMNS
    }

    /// The view for readers.
    pub(crate) fn view(&self) -> ClassView {
        ClassView::sliced(self.blocks.clone(), self.words.clone())
    }

    /// Writes a filter to a column that no reader sees.
    pub(crate) fn write(&mut self, member: Arc<FilterOwner>, filter_bytes: &[u8]) {
        // A full recent block is moved in one pass, which is cheaper than a write to the wide matrix for each filter.
        if self.recent.free.is_empty() && self.recent.unused.is_empty() {
            self.settle_recent();
        }
        let block = self.blocks.first().expect("the recent block is always there");
        let column = match self.recent.free.pop() {
            // It held another filter once, so each of its bits has to be written.
            Some(column) => {
                block.write(column, filter_bytes);
                column
            }
            None => {
                let column = self.recent.unused.pop().expect("settling leaves at least half of the block");
                // Never used, so all its bits are zero and only the ones have to be set.
                block.set(column, &find_ones(filter_bytes));
                column
            }
        };
        self.columns.insert(member.peer, column);
        self.set_member(column, Some(member));
    }

    /// Takes a peer out. Its column can be used again once all views up to `view` are gone, because they show it.
    pub(crate) fn retire(&mut self, peer: &PeerId, view: u64) {
        if let Some(column) = self.columns.remove(peer) {
            self.set_member(column, None);
            self.retired.push_back((view, column));
        }
    }

    /// Frees the columns that only views before `oldest_view` showed; those views are gone.
    pub(crate) fn reclaim(&mut self, oldest_view: u64) {
        while let Some((_, column)) = self.retired.pop_front_if(|(last, _)| *last < oldest_view) {
            let free = if column < WORD_COLUMNS { &mut self.recent.free } else { &mut self.free };
            free.push(column);
        }
    }

    /// The block and the column of a peer's filter.
    pub(crate) fn place(&self, peer: &PeerId) -> Option<(&Block, usize)> {
        self.block(*self.columns.get(peer)?)
    }

    /// All its filters, as plain ones.
    pub(crate) fn to_plain(&self) -> PlainFilters {
        let plain = |(peer, column): (&PeerId, &usize)| {
            let member = Arc::clone(self.words.get(column / WORD_COLUMNS)?.get(*column)?);
            let (block, at) = self.block(*column)?;
            Some((*peer, (member, Arc::new(PlainFilter::new(&block.read(at))))))
        };
        self.columns.iter().filter_map(plain).collect()
    }

    /// Moves the recent filters, at least half of them, to the matrix. The others move to a new recent block, because views
    /// still show the old one.
    fn settle_recent(&mut self) {
        let word = self.words.first().expect("the recent word is always there");
        let members = (0..WORD_COLUMNS).filter_map(|at| Some((at, Arc::clone(word.get(at)?))));
        let members: Vec<(usize, Arc<FilterOwner>)> = members.collect();
        // Moving less than half would soon make the next pass necessary.
        if self.free.len() < members.len().div_ceil(2) {
            self.grow();
        }
        // In order, filters keep their place within a word where they can, and `Block::take` moves them word by word.
        self.free.sort_unstable();
        let moving = members.len().min(self.free.len());
        let to = self.free.split_off(self.free.len() - moving);
        // A new block, and not the old one cleared: readers may still look at the old one.
        let recent = Block::new(self.class, 1);
        let old = self.blocks.first_mut().expect("the recent block is always there");
        let old = std::mem::replace(old, Arc::new(recent));
        if let Some(word) = self.words.first_mut() {
            *word = Arc::default();
        }
        self.recent = Recent::from(members.len() - moving);
        // The old recent block goes as a whole when its last view goes, so its retired columns never become free.
        self.retired.retain(|(_, column)| *column >= WORD_COLUMNS);
        let mut moves: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        // Filters for which the matrix has no free column go to the first columns of the new recent block.
        for ((from, member), to) in members.into_iter().zip(to.into_iter().chain(0..)) {
            let (block, at) = place(to);
            moves.entry(block).or_default().push((from, at));
            self.columns.insert(member.peer, to);
            self.set_member(to, Some(member));
        }
        for (block, moves) in moves {
            if let Some(block) = self.blocks.get(block) {
                block.take(&old, &moves);
            }
        }
    }

    /// Makes room for 64 more columns in the matrix.
    fn grow(&mut self) {
        let columns = self.columns();
        let matrix = self.blocks.len() > 1;
        // A matrix that is full of words gets another block; blocks before it keep their places.
        match self.blocks.last().filter(|_| matrix).and_then(|block| block.to_wider(self.class)) {
            Some(wider) => {
                self.blocks.pop();
                self.blocks.push(Arc::new(wider));
            }
            None => self.blocks.push(Arc::new(Block::new(self.class, 1))),
        }
        self.words.push(Arc::default());
        self.free.extend(columns..columns + WORD_COLUMNS);
    }

    /// Sets the member of a column. Views that show the word keep their own copy of it.
    fn set_member(&mut self, column: usize, member: Option<Arc<FilterOwner>>) {
        if let Some(word) = self.words.get_mut(column / WORD_COLUMNS) {
            Arc::make_mut(word).set(column, member);
        }
    }

    fn block(&self, column: usize) -> Option<(&Block, usize)> {
        let (block, at) = place(column);
        Some((self.blocks.get(block)?, at))
    }
}

/// The block of a column, and the column within the block.
fn place(column: usize) -> (usize, usize) {
    match column.checked_sub(WORD_COLUMNS) {
        None => (0, column),
        Some(settled) => (1 + settled / BLOCK_COLUMNS, settled % BLOCK_COLUMNS),
    }
}

/// The positions of the bits that are set.
fn find_ones(filter_bytes: &[u8]) -> Vec<u32> {
    let mut positions = Vec::new();
    for (at, byte) in (0..).step_by(8).zip(filter_bytes) {
        let mut byte = *byte;
        while byte != 0 {
            positions.push(at + byte.trailing_zeros());
            byte &= byte - 1;
        }
    }
    positions
}
