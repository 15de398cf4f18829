//! The writing side of the table: which column is whose, which are free, when a class changes its form.

use crate::matrix::Block;
use crate::table::{ClassView, FilterTable, Member, PlainFilter, View};
use libp2p_identity::PeerId;
use narmesh_protocol::{Filter, FilterClass};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::fence;
use std::sync::{Arc, Weak};

/// A class with this many peers becomes a matrix.
pub(crate) const SLICED_MIN: usize = 32;
/// A matrix with fewer peers falls apart into plain filters; lower than [`SLICED_MIN`], so that one peer that comes and
/// goes does not make it change its form each time.
pub(crate) const PLAIN_BELOW: usize = 24;

/// The only writer of a [`FilterTable`]. It holds as many filters as it was given peers, each once; a matrix has room for
/// its peers, rounded up to 64 columns, plus the columns that a reader still looks at.
#[derive(Debug)]
pub(crate) struct TableWriter {
    shared: Arc<FilterTable>,
    classes: BTreeMap<FilterClass, Class>,
    places: BTreeMap<PeerId, (FilterClass, Arc<Member>)>,
    /// Views that readers may still hold, oldest first.
    views: VecDeque<(u64, Weak<View>)>,
    /// The number of the present view.
    view: u64,
}

#[derive(Debug)]
enum Class {
    Plain(BTreeMap<PeerId, (Arc<Member>, Arc<PlainFilter>)>),
    Sliced(Sliced),
}

#[derive(Debug, Default)]
struct Sliced {
    blocks: Vec<Arc<Block>>,
    members: Vec<Option<Arc<Member>>>,
    columns: BTreeMap<PeerId, usize>,
    /// Columns that no view shows.
    free: Vec<usize>,
    /// Columns given up, with the number of the last view that shows them.
    retired: VecDeque<(u64, usize)>,
}

impl TableWriter {
    /// An empty table.
    pub(crate) fn new(salt: u64) -> Self {
        let shared = Arc::new(FilterTable::new(salt));
        Self { shared, classes: BTreeMap::new(), places: BTreeMap::new(), views: VecDeque::new(), view: 0 }
    }

    /// The reading side.
    pub(crate) fn shared(&self) -> &Arc<FilterTable> {
        &self.shared
    }

    /// Gives a peer this filter instead of the one it had.
    pub(crate) fn install(&mut self, peer: PeerId, filter: &Filter, excluded: bool) {
        let class = filter.class();
        self.reclaim();
        let member = match self.take(&peer) {
            Some(member) => member,
            None => Arc::new(Member::new(peer, excluded)),
        };
        self.places.insert(peer, (class, Arc::clone(&member)));
        let members = self.classes.entry(class).or_insert_with(|| Class::Plain(BTreeMap::new()));
        match members {
            Class::Plain(filters) => {
                filters.insert(peer, (member, Arc::new(PlainFilter::new(filter.as_bytes()))));
            }
            Class::Sliced(sliced) => sliced.write(class, member, filter.as_bytes()),
        }
        self.reshape(class);
        self.show();
    }

    /// Sets bits of a peer's filter.
    pub(crate) fn set_bits(&self, peer: &PeerId, positions: &[u32]) {
        let Some((class, _)) = self.places.get(peer) else { return };
        match self.classes.get(class) {
            Some(Class::Plain(filters)) => {
                if let Some((_, filter)) = filters.get(peer) {
                    filter.set(positions);
                }
            }
            Some(Class::Sliced(sliced)) => {
                if let Some((block, column)) = sliced.place(peer) {
                    block.set(column, positions);
                }
            }
            None => {}
        }
    }

    /// A peer's filter, as its bytes.
    pub(crate) fn read(&self, peer: &PeerId) -> Option<Vec<u8>> {
        let (class, _) = self.places.get(peer)?;
        match self.classes.get(class)? {
            Class::Plain(filters) => filters.get(peer).map(|(_, filter)| filter.read()),
            Class::Sliced(sliced) => sliced.place(peer).map(|(block, column)| block.read(column)),
        }
    }

    /// Drops a peer's filter.
    pub(crate) fn remove(&mut self, peer: &PeerId) {
        self.reclaim();
        if self.take(peer).is_some() {
            self.places.remove(peer);
            self.show();
        }
    }

    /// How readers rank a peer: false hits per 1,024 probes, and whether it is left out altogether.
    pub(crate) fn rank(&self, peer: &PeerId, false_share: u32, excluded: bool) {
        if let Some((_, member)) = self.places.get(peer) {
            member.false_share.store(false_share, Relaxed);
            member.excluded.store(excluded, Relaxed);
        }
    }

    /// Takes a peer out of its class; the place is left for the caller to overwrite.
    fn take(&mut self, peer: &PeerId) -> Option<Arc<Member>> {
        let (class, member) = self.places.get(peer)?;
        let (class, member) = (*class, Arc::clone(member));
        match self.classes.get_mut(&class)? {
            Class::Plain(filters) => {
                filters.remove(peer);
            }
            Class::Sliced(sliced) => sliced.retire(peer, self.view),
        }
        self.reshape(class);
        Some(member)
    }

    /// Changes the form of a class when its number of peers asks for it.
    fn reshape(&mut self, class: FilterClass) {
        let Some(members) = self.classes.get_mut(&class) else { return };
        match members {
            Class::Plain(filters) if filters.is_empty() => {
                self.classes.remove(&class);
            }
            Class::Plain(filters) if filters.len() >= SLICED_MIN => {
                let mut sliced = Sliced::default();
                for (member, filter) in filters.values() {
                    sliced.write(class, Arc::clone(member), &filter.read());
                }
                *members = Class::Sliced(sliced);
            }
            Class::Sliced(sliced) if sliced.columns.len() < PLAIN_BELOW => *members = Class::Plain(sliced.plain()),
            // Half empty and a word more: everything moves to a matrix of its size.
            Class::Sliced(sliced) if sliced.members.len() > 2 * sliced.columns.len() + 64 => {
                let mut smaller = Sliced::default();
                for (member, filter) in sliced.plain().values() {
                    smaller.write(class, Arc::clone(member), &filter.read());
                }
                *members = Class::Sliced(smaller);
            }
            Class::Plain(_) | Class::Sliced(_) => {}
        }
    }

    /// Puts what was written before the readers' eyes.
    fn show(&mut self) {
        let view = |class: &Class| match class {
            Class::Plain(filters) => ClassView::Plain(filters.values().cloned().collect()),
            Class::Sliced(sliced) => ClassView::sliced(sliced.blocks.clone(), sliced.members.clone()),
        };
        let classes = self.classes.iter().map(|(class, members)| (*class, Arc::new(view(members)))).collect();
        let before = self.shared.replace(Arc::new(View { classes }));
        self.views.push_back((self.view, Arc::downgrade(&before)));
        self.view += 1;
    }

    /// Frees the columns that no reader can see any more.
    fn reclaim(&mut self) {
        self.views.retain(|(_, view)| view.strong_count() > 0);
        // Pairs with the release of a reader that dropped its view: its loads come before our stores.
        fence(Acquire);
        let oldest = self.views.front().map_or(self.view, |(number, _)| *number);
        for class in self.classes.values_mut() {
            match class {
                Class::Plain(_) => {}
                Class::Sliced(sliced) => {
                    while let Some((_, column)) = sliced.retired.pop_front_if(|(last, _)| *last < oldest) {
                        sliced.free.push(column);
                    }
                }
            }
        }
    }
}

impl Sliced {
    /// Writes a filter to a column that nobody sees, growing by 64 columns when there is none.
    fn write(&mut self, class: FilterClass, member: Arc<Member>, filter_bytes: &[u8]) {
        if self.free.is_empty() {
            self.grow(class);
        }
        let column = self.free.pop().expect("grown by 64 columns when none was free");
        let (block, at) = self.block(column).expect("a free column lies in a block");
        block.write(at, filter_bytes);
        self.columns.insert(member.peer, column);
        if let Some(slot) = self.members.get_mut(column) {
            *slot = Some(member);
        }
    }

    fn grow(&mut self, class: FilterClass) {
        match self.blocks.last().and_then(|block| block.wider(class)) {
            Some(wider) => {
                self.blocks.pop();
                self.blocks.push(Arc::new(wider));
            }
            None => self.blocks.push(Arc::new(Block::new(class, 1))),
        }
        let columns = self.members.len();
        self.members.resize(columns + 64, None);
        self.free.extend((columns..columns + 64).rev());
    }

    fn retire(&mut self, peer: &PeerId, view: u64) {
        if let Some(column) = self.columns.remove(peer) {
            if let Some(slot) = self.members.get_mut(column) {
                *slot = None;
            }
            self.retired.push_back((view, column));
        }
    }

    fn place(&self, peer: &PeerId) -> Option<(&Block, usize)> {
        self.block(*self.columns.get(peer)?)
    }

    fn block(&self, column: usize) -> Option<(&Block, usize)> {
        let block = self.blocks.get(column / crate::matrix::BLOCK_COLUMNS)?;
        Some((block, column % crate::matrix::BLOCK_COLUMNS))
    }

    fn plain(&self) -> BTreeMap<PeerId, (Arc<Member>, Arc<PlainFilter>)> {
        let plain = |(peer, column): (&PeerId, &usize)| {
            let member = self.members.get(*column)?.clone()?;
            let (block, at) = self.block(*column)?;
            Some((*peer, (member, Arc::new(PlainFilter::new(&block.read(at))))))
        };
        self.columns.iter().filter_map(plain).collect()
    }
}
