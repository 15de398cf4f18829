//! The writing side of the table: which column belongs to which peer, which are free, and when a class changes its form.

use super::reader::FilterTable;
use super::sliced::{PlainFilters, Sliced};
use super::view::{ClassView, FilterOwner, PlainFilter, Rank, View};
use libp2p_identity::PeerId;
use narmesh_protocol::{Filter, FilterClass};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::fence;
use std::sync::{Arc, Weak};

/// A class with this many peers becomes a matrix.
pub(crate) const SLICED_MIN: usize = 32;
/// A matrix with fewer peers turns back into plain filters. This is lower than [`SLICED_MIN`], so that one peer that comes
/// and goes does not change the form each time.
pub(crate) const PLAIN_BELOW: usize = 24;

/// The only writer of a [`FilterTable`]. It holds one filter for each peer. A matrix has room for its peers, rounded up to
/// 64 columns, and for the columns that a reader may still look at.
#[derive(Debug)]
pub(crate) struct TableWriter {
    shared: Arc<FilterTable>,
    classes: BTreeMap<FilterClass, Class>,
    places: BTreeMap<PeerId, (FilterClass, Arc<FilterOwner>)>,
    /// The views that readers may still hold, by number, oldest first.
    views: VecDeque<(u64, Weak<View>)>,
    /// Classes that may need another form.
    unshaped: BTreeSet<FilterClass>,
    /// The number of the present view.
    view: u64,
}

#[derive(Debug)]
enum Class {
    Plain(PlainFilters),
    Sliced(Sliced),
}

impl TableWriter {
    /// An empty table.
    pub(crate) fn new(salt: u64) -> Self {
        let shared = Arc::new(FilterTable::new(salt));
        let (classes, places) = (BTreeMap::new(), BTreeMap::new());
        let (views, unshaped) = (VecDeque::new(), BTreeSet::new());
        Self { shared, classes, places, views, unshaped, view: 0 }
    }

    /// The reading side.
    pub(crate) fn shared(&self) -> &Arc<FilterTable> {
        &self.shared
    }

    /// Gives a peer this filter in place of the one that it had.
    pub(crate) fn install(&mut self, peer: PeerId, filter: &Filter, rank: Rank) {
        self.add(peer, filter, rank);
        self.reshape(filter.class());
        self.show();
    }

    /// Like [`TableWriter::install`], for one of many filters that come at once before there is a matrix. It can be found
    /// at once, but moves to a matrix only with the next [`TableWriter::shape`], in one pass with all others. That takes
    /// less than half of the time.
    pub(crate) fn install_plain(&mut self, peer: PeerId, filter: &Filter, rank: Rank) {
        self.add(peer, filter, rank);
        self.unshaped.insert(filter.class());
        self.show();
    }

    /// Gives the classes of filters that were installed plain the form that fits their number.
    pub(crate) fn shape(&mut self) {
        let classes = std::mem::take(&mut self.unshaped);
        if !classes.is_empty() {
            classes.into_iter().for_each(|class| self.reshape(class));
            self.show();
        }
    }

    fn add(&mut self, peer: PeerId, filter: &Filter, rank: Rank) {
        let class = filter.class();
        // Readers may have dropped the views that showed the retired columns, so that these can be used again.
        self.reclaim();
        // The same owner keeps its rank and its counters, whichever filter it has.
        let member = match self.take(&peer) {
            Some(member) => member,
            None => Arc::new(FilterOwner::new(peer, rank)),
        };
        self.places.insert(peer, (class, Arc::clone(&member)));
        let members = self.classes.entry(class).or_insert_with(|| Class::Plain(BTreeMap::new()));
        match members {
            Class::Plain(filters) => {
                filters.insert(peer, (member, Arc::new(PlainFilter::new(filter.as_bytes()))));
            }
            Class::Sliced(sliced) => sliced.write(member, filter.as_bytes()),
        }
    }

    /// Sets bits of a peer's filter.
    pub(crate) fn set_bits(&mut self, peer: &PeerId, positions: &[u32]) {
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

    /// The bytes of a peer's filter. In a matrix, each bit is a cache line: 0.3 ms for 16 KiB, 11 ms for 256 KiB.
    pub(crate) fn read(&self, peer: &PeerId) -> Option<Vec<u8>> {
        let (class, _) = self.places.get(peer)?;
        match self.classes.get(class)? {
            Class::Plain(filters) => filters.get(peer).map(|(_, filter)| filter.read()),
            Class::Sliced(sliced) => sliced.place(peer).map(|(block, column)| block.read(column)),
        }
    }

    /// Whether a peer has a filter here.
    #[cfg(test)]
    pub(crate) fn holds(&self, peer: &PeerId) -> bool {
        self.places.contains_key(peer)
    }

    /// Drops a peer's filter.
    pub(crate) fn remove(&mut self, peer: &PeerId) {
        self.reclaim();
        if self.take(peer).is_some() {
            self.places.remove(peer);
            self.show();
        }
    }

    /// Sets how readers rank a peer: its false hits per 1,024 probes, and whether it comes last or is left out.
    pub(crate) fn set_rank(&self, peer: &PeerId, false_share: u32, rank: Rank) {
        if let Some((_, member)) = self.places.get(peer) {
            member.false_share.store(false_share, Relaxed);
            member.set_rank(rank);
        }
    }

    /// Takes a peer out of its class. The caller has to update its entry in `places`.
    fn take(&mut self, peer: &PeerId) -> Option<Arc<FilterOwner>> {
        let (class, member) = self.places.get(peer)?;
        let (class, member) = (*class, Arc::clone(member));
        match self.classes.get_mut(&class)? {
            Class::Plain(filters) => {
                filters.remove(peer);
            }
            // Not free at once: a reader that still holds a view would see another peer's bits in this column.
            Class::Sliced(sliced) => sliced.retire(peer, self.view),
        }
        self.reshape(class);
        Some(member)
    }

    /// Changes the form of a class if its number of peers calls for it.
    fn reshape(&mut self, class: FilterClass) {
        let Some(members) = self.classes.get_mut(&class) else { return };
        match members {
            Class::Plain(filters) if filters.is_empty() => {
                self.classes.remove(&class);
            }
            Class::Plain(filters) if filters.len() >= SLICED_MIN => {
                *members = Class::Sliced(Sliced::of(class, filters))
            }
            Class::Sliced(sliced) if sliced.members() < PLAIN_BELOW => *members = Class::Plain(sliced.to_plain()),
            // More than half of the columns are empty, not counting one word: everything moves to a matrix that fits.
            Class::Sliced(sliced) if sliced.columns() > 2 * sliced.members() + 64 => {
                *members = Class::Sliced(Sliced::of(class, &sliced.to_plain()));
            }
            Class::Plain(_) | Class::Sliced(_) => {}
        }
    }

    /// Shows readers what was written.
    fn show(&mut self) {
        let view = |class: &Class| match class {
            Class::Plain(filters) => ClassView::Plain(filters.values().cloned().collect()),
            Class::Sliced(sliced) => sliced.view(),
        };
        let classes = self.classes.iter().map(|(class, members)| (*class, Arc::new(view(members)))).collect();
        let before = self.shared.replace(Arc::new(View { classes }));
        self.views.push_back((self.view, Arc::downgrade(&before)));
        self.view += 1;
    }

    /// Frees the columns that no reader can see any more.
    fn reclaim(&mut self) {
        self.views.retain(|(_, view)| view.strong_count() > 0);
        // Pairs with the release of a reader that dropped its view: the reader's loads come before our stores.
        fence(Acquire);
        let oldest = self.views.front().map_or(self.view, |(number, _)| *number);
        for class in self.classes.values_mut() {
            match class {
                Class::Plain(_) => {}
                Class::Sliced(sliced) => sliced.reclaim(oldest),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p_identity::Keypair;
    use narmesh_protocol::{BitPositions, HashPart};
    use proptest::prelude::*;

    fn peer(number: u8) -> PeerId {
        Keypair::ed25519_from_bytes([number; 32]).unwrap().public().to_peer_id()
    }

    fn part(number: u32) -> HashPart {
        let mut bytes = [3; 20];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        HashPart(bytes)
    }

    fn filter(class: FilterClass, parts: impl IntoIterator<Item = u32>) -> Filter {
        let mut bytes = vec![0; class.bytes()];
        parts.into_iter().for_each(|number| {
            BitPositions::of(&part(number)).in_class(class).for_each(|bit| bytes[bit as usize / 8] |= 1 << (bit % 8));
        });
        Filter::from_bytes(bytes).unwrap()
    }

    fn class(log2_bytes: u32) -> FilterClass {
        FilterClass::of_bytes(1 << log2_bytes).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Install {
            peer: usize,
            large: bool,
            seed: u32,
        },
        Set {
            peer: usize,
            seed: u32,
        },
        Remove {
            peer: usize,
        },
        /// All peers from this one on leave, so that a class falls below its thresholds.
        RemoveFrom {
            peer: usize,
        },
        /// A reader takes a view and keeps it.
        Look,
        LookAway,
    }

    fn step(peers: usize) -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..peers, any::<bool>(), 0..50u32).prop_map(|(peer, large, seed)| Step::Install { peer, large, seed }),
            6 => (0..peers, 0..50u32).prop_map(|(peer, seed)| Step::Set { peer, seed }),
            4 => (0..peers).prop_map(|peer| Step::Remove { peer }),
            1 => (0..peers).prop_map(|peer| Step::RemoveFrom { peer }),
            2 => Just(Step::Look),
            1 => Just(Step::LookAway),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// Compares the table with one plain filter per peer, while matrices come, grow, shrink and go.
        #[test]
        fn table_finds_what_plain_filters_find(steps in prop::collection::vec(step(90), 1..400)) {
            let peers: Vec<PeerId> = (0..90).map(peer).collect();
            let mut writer = TableWriter::new(1);
            let mut oracle: BTreeMap<PeerId, Filter> = BTreeMap::new();
            let mut views = Vec::new();
            for step in steps {
                match step {
                    Step::Install { peer, large, seed } => {
                        let filter = filter(class(10 + u32::from(large)), seed * 10..seed * 10 + 20);
                        writer.install(peers[peer], &filter, Rank::Usual);
                        oracle.insert(peers[peer], filter);
                    }
                    Step::Set { peer, seed } => {
                        if let Some(before) = oracle.get(&peers[peer]) {
                            let added: BTreeMap<u32, ()> = BitPositions::of(&part(seed)).in_class(before.class()).map(|bit| (bit, ())).collect();
                            writer.set_bits(&peers[peer], &added.keys().copied().collect::<Vec<_>>());
                            let mut bytes = before.as_bytes().to_vec();
                            added.keys().for_each(|bit| bytes[*bit as usize / 8] |= 1 << (bit % 8));
                            oracle.insert(peers[peer], Filter::from_bytes(bytes).unwrap());
                        }
                    }
                    Step::Remove { peer } => {
                        writer.remove(&peers[peer]);
                        oracle.remove(&peers[peer]);
                    }
                    Step::RemoveFrom { peer } => for gone in &peers[peer..] {
                        writer.remove(gone);
                        oracle.remove(gone);
                    },
                    Step::Look => views.push((writer.shared().view(), oracle.clone())),
                    Step::LookAway => drop(views.pop()),
                }
            }
            for number in (0..520).step_by(7) {
                let positions = BitPositions::of(&part(number));
                let mut found: Vec<_> = writer.shared().find_candidates(&part(number)).iter().map(|candidate| candidate.peer).collect();
                found.sort();
                let expected: Vec<_> = oracle.iter().filter(|(_, filter)| filter.may_contain(&positions)).map(|(peer, _)| *peer).collect();
                prop_assert_eq!(found, expected);
                // An old view still shows all that it showed at first; deltas may have added to it.
                for (view, then) in &views {
                    let found = view.find(&positions);
                    prop_assert!(then.iter().all(|(peer, filter)| !filter.may_contain(&positions) || found.contains(peer)));
                }
            }
            for (peer, filter) in &oracle {
                prop_assert_eq!(writer.read(peer).unwrap(), filter.as_bytes());
            }
            prop_assert_eq!(writer.shared().peers(), oracle.len());
        }
    }

    #[test]
    fn a_question_asked_again_is_no_lookup() {
        let mut writer = TableWriter::new(1);
        writer.install_plain(peer(1), &filter(class(10), [1]), Rank::Usual);
        let table = writer.shared();
        for (number, found) in [(1, 1), (2, 0)] {
            let before = table.lookups();
            assert_eq!(table.find_candidates(&part(number)).len(), found);
            assert_eq!(table.peek_candidates(&part(number)), table.find_candidates(&part(number)));
            assert!(!table.claims(&peer(2), &part(number)));
            assert_eq!(table.lookups() - before, 2);
        }
    }

    #[test]
    fn many_peers_share_a_matrix_that_is_hardly_larger_than_their_filters() {
        let mut writer = TableWriter::new(1);
        for number in 0..200 {
            writer.install_plain(peer(number), &filter(class(10), [u32::from(number)]), Rank::Usual);
            assert_eq!(writer.shared().find_candidates(&part(u32::from(number))).len(), 1, "found at once");
        }
        writer.shape();
        assert!((0..200).all(|number| writer.shared().find_candidates(&part(number)).len() == 1));
        assert!(matches!(writer.classes.get(&class(10)), Some(Class::Sliced(_))));
        assert_eq!(
            writer.shared().memory_bytes(),
            (256 * 1_024) + 2 * 64,
            "200 columns rounded up to 256, in two blocks"
        );
        // Every peer gets new filters again and again: columns that were given up are used again.
        for round in 0..20 {
            for number in 0..200 {
                writer.install(peer(number), &filter(class(10), [round]), Rank::Usual);
                assert_eq!(writer.shared().memory_bytes(), (256 * 1_024) + 2 * 64);
            }
        }
        assert_eq!(writer.shared().find_candidates(&part(19)).len(), 200);
        assert!(writer.shared().find_candidates(&part(18)).is_empty());
        (0..150).for_each(|number| writer.remove(&peer(number)));
        assert_eq!(
            writer.shared().memory_bytes(),
            (128 * 1_024) + 2 * 64,
            "a matrix that is mostly empty is made anew"
        );
        (150..180).for_each(|number| writer.remove(&peer(number)));
        assert!(matches!(writer.classes.get(&class(10)), Some(Class::Plain(_))));
        (180..200).for_each(|number| writer.remove(&peer(number)));
        assert!(writer.classes.is_empty() && writer.shared().find_candidates(&part(19)).is_empty());
    }

    #[test]
    fn a_column_that_a_reader_sees_is_not_overwritten() {
        let mut writer = TableWriter::new(1);
        (0..64).for_each(|number| writer.install(peer(number), &filter(class(10), [u32::from(number)]), Rank::Usual));
        let view = writer.shared().view();
        (0..3).for_each(|round| {
            (0..64).for_each(|number| writer.install(peer(number), &filter(class(10), [500 + round]), Rank::Usual));
        });
        for number in 0..64 {
            assert!(view.find(&BitPositions::of(&part(u32::from(number)))).contains(&peer(number)));
        }
        drop(view);
    }

    #[test]
    fn readers_on_other_threads_always_see_whole_filters() {
        let mut writer = TableWriter::new(1);
        (0..40).for_each(|number| writer.install(peer(number), &filter(class(10), 0..100), Rank::Usual));
        let table = Arc::clone(writer.shared());
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let reader = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut lookups = 0u64;
                while !stop.load(Relaxed) {
                    // The path is in both filters that take turns, so every lookup must find it.
                    assert_eq!(table.find_candidates(&part(50)).len(), 40);
                    lookups += 1;
                }
                lookups
            }
        });
        let filters = [filter(class(10), 0..100), filter(class(10), 50..150), filter(class(11), 50..60)];
        for round in 0..2_000usize {
            writer.install(peer(u8::try_from(round % 40).unwrap()), &filters[round / 40 % 3], Rank::Usual);
        }
        stop.store(true, Relaxed);
        assert!(reader.join().unwrap() > 0);
    }

    #[test]
    fn rank_and_exclusion_outlive_a_new_filter() {
        let mut writer = TableWriter::new(1);
        (0..3).for_each(|number| writer.install(peer(number), &filter(class(10), [1]), Rank::Usual));
        writer.set_rank(&peer(0), 100, Rank::Usual);
        writer.set_rank(&peer(1), 0, Rank::Excluded);
        writer.install(peer(0), &filter(class(11), [1]), Rank::Usual);
        writer.install(peer(1), &filter(class(11), [1]), Rank::Usual);
        let found: Vec<_> = writer.shared().find_candidates(&part(1)).iter().map(|candidate| candidate.peer).collect();
        assert_eq!(found, [peer(2), peer(0)]);
    }
}
