//! A class of many peers: a matrix, and beside it a block of one word for the filters that came last.
//!
//! A filter that is written to a block of 512 columns touches a cache line for each of its bits. In a block of 64 columns eight
//! bits share a line, so new filters go there, and when its columns are used up they move to the matrix in one pass.

use crate::matrix::{BLOCK_COLUMNS, Block, WORD_COLUMNS};
use crate::table::{ClassView, Member, PlainFilter, Word};
use libp2p_identity::PeerId;
use narmesh_protocol::FilterClass;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Filters one by one.
pub(crate) type PlainFilters = BTreeMap<PeerId, (Arc<Member>, Arc<PlainFilter>)>;

/// The writing side of [`ClassView::Sliced`].
#[derive(Debug)]
pub(crate) struct Sliced {
    class: FilterClass,
    /// The recent block, of one word; then those of the matrix, all full but the last.
    blocks: Vec<Arc<Block>>,
    /// Members by column, 64 together; those of the recent block first.
    words: Vec<Arc<Word>>,
    /// Up to [`WORD_COLUMNS`] in the recent block, then those of the matrix.
    columns: BTreeMap<PeerId, usize>,
    /// Columns of the matrix that no view shows, whatever is in them.
    free: Vec<usize>,
    recent: Recent,
    /// Columns given up, with the number of the last view that shows them.
    retired: VecDeque<(u64, usize)>,
}

/// Columns of the recent block that no view shows.
#[derive(Debug)]
struct Recent {
    /// With what a former peer left in them.
    free: Vec<usize>,
    /// Empty. The lowest is the last.
    unused: Vec<usize>,
}

impl Recent {
    /// Those from this one on.
    fn from(first: usize) -> Self {
        Self { free: Vec::new(), unused: (first..WORD_COLUMNS).rev().collect() }
    }
}

impl Sliced {
    /// All these filters in a new matrix; those above a multiple of 64 are the recent ones.
    pub(crate) fn of(class: FilterClass, filters: &PlainFilters) -> Self {
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

    /// Filters that are here.
    pub(crate) fn members(&self) -> usize {
        self.columns.len()
    }

    /// Columns that there is room for.
    pub(crate) fn columns(&self) -> usize {
        self.words.len() * WORD_COLUMNS
    }

    /// What readers are to see.
    pub(crate) fn view(&self) -> ClassView {
        ClassView::sliced(self.blocks.clone(), self.words.clone())
    }

    /// Writes a filter to a column that nobody sees.
    pub(crate) fn write(&mut self, member: Arc<Member>, filter_bytes: &[u8]) {
        if self.recent.free.is_empty() && self.recent.unused.is_empty() {
            self.settle();
        }
        let block = self.blocks.first().expect("the recent block is always there");
        let column = match self.recent.free.pop() {
            Some(column) => {
                block.write(column, filter_bytes);
                column
            }
            None => {
                let column = self.recent.unused.pop().expect("settling leaves at least half of the block");
                block.set(column, &ones(filter_bytes));
                column
            }
        };
        self.columns.insert(member.peer, column);
        self.set_member(column, Some(member));
    }

    /// Takes a peer out. Its column is used again when no view shows it: those up to this one do.
    pub(crate) fn retire(&mut self, peer: &PeerId, view: u64) {
        if let Some(column) = self.columns.remove(peer) {
            self.set_member(column, None);
            self.retired.push_back((view, column));
        }
    }

    /// Views before this one are gone.
    pub(crate) fn reclaim(&mut self, oldest_view: u64) {
        while let Some((_, column)) = self.retired.pop_front_if(|(last, _)| *last < oldest_view) {
            let free = if column < WORD_COLUMNS { &mut self.recent.free } else { &mut self.free };
            free.push(column);
        }
    }

    /// Where a peer's filter is.
    pub(crate) fn place(&self, peer: &PeerId) -> Option<(&Block, usize)> {
        self.block(*self.columns.get(peer)?)
    }

    /// Its filters, one by one.
    pub(crate) fn plain(&self) -> PlainFilters {
        let plain = |(peer, column): (&PeerId, &usize)| {
            let member = Arc::clone(self.words.get(column / WORD_COLUMNS)?.get(*column)?);
            let (block, at) = self.block(*column)?;
            Some((*peer, (member, Arc::new(PlainFilter::new(&block.read(at))))))
        };
        self.columns.iter().filter_map(plain).collect()
    }

    /// Moves the recent filters to the matrix, at least half of them; those that stay move to a new block, because views still
    /// show the old one.
    fn settle(&mut self) {
        let word = self.words.first().expect("the recent word is always there");
        let members = (0..WORD_COLUMNS).filter_map(|at| Some((at, Arc::clone(word.get(at)?))));
        let members: Vec<(usize, Arc<Member>)> = members.collect();
        if self.free.len() < members.len().div_ceil(2) {
            self.grow();
        }
        self.free.sort_unstable();
        let moving = members.len().min(self.free.len());
        let to = self.free.split_off(self.free.len() - moving);
        let recent = Block::new(self.class, 1);
        let old = self.blocks.first_mut().expect("the recent block is always there");
        let old = std::mem::replace(old, Arc::new(recent));
        if let Some(word) = self.words.first_mut() {
            *word = Arc::default();
        }
        self.recent = Recent::from(members.len() - moving);
        self.retired.retain(|(_, column)| *column >= WORD_COLUMNS);
        let mut moves: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
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

    /// Room for 64 more in the matrix.
    fn grow(&mut self) {
        let columns = self.columns();
        let matrix = self.blocks.len() > 1;
        match self.blocks.last().filter(|_| matrix).and_then(|block| block.wider(self.class)) {
            Some(wider) => {
                self.blocks.pop();
                self.blocks.push(Arc::new(wider));
            }
            None => self.blocks.push(Arc::new(Block::new(self.class, 1))),
        }
        self.words.push(Arc::default());
        self.free.extend(columns..columns + WORD_COLUMNS);
    }

    /// Views that show the word keep it as it was.
    fn set_member(&mut self, column: usize, member: Option<Arc<Member>>) {
        if let Some(word) = self.words.get_mut(column / WORD_COLUMNS) {
            Arc::make_mut(word).set(column, member);
        }
    }

    fn block(&self, column: usize) -> Option<(&Block, usize)> {
        let (block, at) = place(column);
        Some((self.blocks.get(block)?, at))
    }
}

/// The block of a column, and the column there.
fn place(column: usize) -> (usize, usize) {
    match column.checked_sub(WORD_COLUMNS) {
        None => (0, column),
        Some(settled) => (1 + settled / BLOCK_COLUMNS, settled % BLOCK_COLUMNS),
    }
}

/// The positions of the bits that are set.
fn ones(filter_bytes: &[u8]) -> Vec<u32> {
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
