//! The trees that holders bound to one NAR: by them its leaves are checked before anybody sees them, and at its end it is
//! settled who was right.
//!
//! A tree is its author's word. Where several authors differ, the one that most of them signed counts, and a source that
//! sends another leaf than that is not used for now: who of the two lies is open. The NarHash settles it. If the NAR is
//! right, whoever sent or signed something else lied. If it is not, although each of its leaves was the signed one, the
//! authors of that tree lied, and whoever sent those bytes is not to blame.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use narmesh_protocol::NarUrl;
use narmesh_protocol::nar_tree::{LeafHash, LeafHasher, NarTree, hash_leaf, leaf_bytes};
use narmesh_protocol::wire::TreeRequest;

use crate::source::{SourceId, Sources, TreeAnswer};

/// A tree may be one in this many bytes of what is read: whoever asks for the last byte again and again must not cost a
/// holder a tree each time.
const TREE_SHARE: u64 = 16;
/// Holders that are asked for their trees at the same time: one may lie, and then two are right.
const ASKED_AT_ONCE: usize = 3;
/// Holders that are asked in all, when some have none.
const ASKED_MAX: usize = 6;
/// How long the first bytes of a NAR are held back until there is a tree.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same when a holder says that it computes it: a busy one may take seconds, and what Nix gets unproven it cannot give
/// back. By then it was asked six times, the last time after 3.1 s.
const PATIENCE_NOT_YET: Duration = Duration::from_millis(3_500);
/// The same once there is one, for others that may differ.
const PATIENCE_WITH_ONE: Duration = Duration::from_millis(300);
/// An answer that takes longer is not waited for.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often a holder is asked that says *not yet*: a NAR of 8 GiB takes some 30 s to hash.
const TRIES: usize = 12;
/// The pauses before it is asked again; they double.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// While a source is not used because a tree contradicts it, the others may take this long for a leaf: at 70 kbit/s a tree
/// could keep a NAR from arriving.
const LEAF_PATIENCE: Duration = Duration::from_secs(30);

/// A tree, and who signed it.
#[derive(Debug)]
struct Bound {
    tree: NarTree,
    authors: Vec<SourceId>,
    /// Whether all leaves that were taken over are those of the tree.
    is_consistent: bool,
    /// Whether it is not used any more: its authors lied, or nobody else could go on by it.
    is_dropped: bool,
}

impl Bound {
    /// The leaf that begins at this byte.
    fn leaf(&self, offset: u64) -> Option<&LeafHash> {
        self.tree.leaves().get(usize::try_from(offset / self.tree.leaf_bytes()).ok()?)
    }
}

/// A leaf that was not taken over, because it is not the one of the tree that counts.
#[derive(Debug)]
struct Refused {
    source: SourceId,
    leaf: usize,
    hash: LeafHash,
}

/// What may be taken over of the bytes that a source sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Portion {
    /// Nothing yet.
    None,
    /// So many bytes at most, of which nobody has signed anything.
    Unproven(u64),
    /// So many bytes, which are a leaf: check them with [`Proofs::judge`].
    Leaf(usize),
}

/// What a leaf is, by the tree that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It is the one of the tree.
    Right(LeafHash),
    /// Its source signed another one.
    AgainstItself,
    /// Its source or the authors of the tree lie.
    Disputed,
}

/// What a holder answered, and how many times it was asked before.
struct Answered {
    source: SourceId,
    tries: usize,
    answer: Option<TreeAnswer>,
}

/// The proofs of one NAR.
pub(super) struct Proofs {
    url: NarUrl,
    sources: Arc<dyn Sources>,
    asking: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Whether a holder said that it computes its tree.
    is_being_computed: bool,
    /// Holders that can still be asked.
    unasked: Vec<SourceId>,
    bound: Vec<Bound>,
    refused: Vec<Refused>,
    /// The leaves that were taken over.
    taken: LeafHasher,
    /// When the present leaf began.
    leaf_since: Duration,
}

impl Proofs {
    /// Asks for the trees of a NAR that is read from `offset` on; `None` if it has none, or if its tree would be too much
    /// beside what is read.
    pub(super) fn begin(
        sources: Arc<dyn Sources>,
        url: NarUrl,
        offset: u64,
        holders: impl IntoIterator<Item = SourceId>,
    ) -> Option<Self> {
        let tree_bytes = size_of::<LeafHash>() as u64 * url.nar_size.div_ceil(leaf_bytes(url.nar_size)?);
        if url.nar_size.saturating_sub(offset) < TREE_SHARE * tree_bytes {
            return None;
        }
        let taken = LeafHasher::new(url.nar_size, offset)?;
        let mut unasked: Vec<_> =
            holders.into_iter().filter(|source| source.peer().is_some()).take(ASKED_MAX).collect();
        // They are taken from the end, so the first one is asked first.
        unasked.reverse();
        let asking = FuturesUnordered::new();
        let (bound, refused) = (Vec::new(), Vec::new());
        let (is_being_computed, leaf_since) = (false, Duration::ZERO);
        let mut this = Self { url, sources, asking, is_being_computed, unasked, bound, refused, taken, leaf_since };
        (0..ASKED_AT_ONCE).for_each(|_| this.ask_next());
        Some(this)
    }

    fn ask_next(&mut self) {
        if let Some(source) = self.unasked.pop() {
            self.ask(source, 0);
        }
    }

    /// Asks a holder that was asked `tries` times before.
    fn ask(&self, source: SourceId, tries: usize) {
        let NarUrl { hash_part, nar_hash, nar_size, .. } = self.url;
        let request = TreeRequest { hash_part, nar_hash, nar_size };
        let sources = Arc::clone(&self.sources);
        self.asking.push(Box::pin(async move {
            tokio::time::sleep(pause_before(tries)).await;
            let answer = tokio::time::timeout(ANSWER_MAX, sources.ask_tree(source, request)).await;
            Answered { source, tries: tries + 1, answer: answer.ok().flatten() }
        }));
    }

    /// Ready with the author of a tree that has come.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<SourceId> {
        while let Poll::Ready(Some(Answered { source, tries, answer })) = self.asking.poll_next_unpin(context) {
            match answer {
                Some(TreeAnswer::Bound(tree)) => {
                    self.add(source, tree);
                    return Poll::Ready(source);
                }
                Some(TreeAnswer::NotYet) if tries < TRIES => {
                    self.is_being_computed = true;
                    self.ask(source, tries);
                }
                _ => self.ask_next(),
            }
        }
        Poll::Pending
    }

    fn add(&mut self, author: SourceId, tree: NarTree) {
        // The tree that most holders signed counts, so equal ones are one with several authors.
        if let Some(known) = self.bound.iter_mut().find(|bound| bound.tree.root() == tree.root()) {
            known.authors.push(author);
            return;
        }
        // Leaves that were taken before this tree came have to agree with it, too.
        let mut pairs = self.taken.leaves().iter().zip(tree.leaves());
        let is_consistent = pairs.all(|(taken, leaf)| taken.is_none_or(|taken| taken == *leaf));
        self.bound.push(Bound { tree, authors: vec![author], is_consistent, is_dropped: false });
    }

    /// Whether nobody can say anything about this NAR any more.
    pub(super) fn are_useless(&self) -> bool {
        self.bound.is_empty() && self.asking.is_empty()
    }

    /// The tree that counts: the one that most authors signed; of equals, the one that came first.
    fn counting(&self) -> Option<&Bound> {
        let usable = self.bound.iter().rev().filter(|bound| bound.is_consistent && !bound.is_dropped);
        usable.max_by_key(|bound| bound.authors.len())
    }

    /// What may be taken over of `bytes` that have come from one source. `waited` is for how long the transfer has waited
    /// for its sources.
    pub(super) fn portion(&self, bytes: usize, waited: Duration) -> Portion {
        let patience = match (self.bound.is_empty(), self.is_being_computed) {
            (false, _) => PATIENCE_WITH_ONE,
            (true, true) => PATIENCE_NOT_YET,
            (true, false) => PATIENCE,
        };
        // What is let through before there is a tree is checked only at the end, so a tree is waited for a little.
        if !self.asking.is_empty() && waited < patience {
            return Portion::None;
        }
        let left = self.taken.left_bytes();
        match (self.counting(), usize::try_from(left)) {
            (None, _) | (_, Err(_)) => Portion::Unproven(u64::MAX),
            // The tree came in the middle of a leaf, or the transfer began there.
            (Some(_), _) if !self.taken.is_between_leaves() => Portion::Unproven(left),
            // Half a leaf proves nothing.
            (Some(_), Ok(left)) if bytes < left => Portion::None,
            (Some(_), Ok(left)) => Portion::Leaf(left),
        }
    }

    /// Whether there is a tree that leaves are compared with.
    pub(super) fn have_tree(&self) -> bool {
        self.counting().is_some()
    }

    /// The number of first bytes of the NAR that are proven, if it was read from its beginning.
    pub(super) fn proven_bytes(&self) -> u64 {
        let leaves = self.taken.leaves().len() as u64;
        self.counting().map_or(0, |bound| (leaves * bound.tree.leaf_bytes()).min(self.url.nar_size))
    }

    /// Bytes of a leaf, if the rest of the NAR can be read by whole leaves, as a tree counts.
    pub(super) fn leaf_bytes(&self) -> Option<u64> {
        self.counting().filter(|_| self.taken.is_between_leaves()).map(|bound| bound.tree.leaf_bytes())
    }

    /// Whether this leaf, which begins at `offset`, is the one of the tree that counts.
    pub(super) fn is_right(&self, offset: u64, hash: &LeafHash) -> bool {
        self.counting().is_some_and(|bound| bound.leaf(offset) == Some(hash))
    }

    /// Compares a whole leaf, which begins at `offset`, with the tree that counts.
    pub(super) fn judge(&mut self, source: SourceId, offset: u64, bytes: &[u8]) -> Judgement {
        let hash = hash_leaf(offset, bytes);
        let Some(counting) = self.counting() else { return Judgement::Right(hash) };
        let leaf = usize::try_from(offset / counting.tree.leaf_bytes()).unwrap_or(usize::MAX);
        if counting.leaf(offset) == Some(&hash) {
            return Judgement::Right(hash);
        }
        // It signed this very tree, so it contradicts itself and nobody else need be believed.
        if counting.authors.contains(&source) {
            self.forget(source);
            return Judgement::AgainstItself;
        }
        self.refused.push(Refused { source, leaf, hash });
        Judgement::Disputed
    }

    /// Notes bytes that were taken over; `leaf` is their hash if they are a whole leaf that was judged.
    pub(super) fn on_taken(&mut self, bytes: &[u8], leaf: Option<LeafHash>, waited: Duration) {
        let before = self.taken.leaves().len();
        match leaf {
            Some(leaf) => self.taken.push(leaf),
            None => self.taken.update(bytes),
        }
        let new = self.taken.leaves().get(before..).unwrap_or_default();
        if new.is_empty() {
            return;
        }
        self.leaf_since = waited;
        for bound in &mut self.bound {
            let mut pairs = new.iter().zip(bound.tree.leaves().get(before..).unwrap_or_default());
            // A leaf whose beginning was not read here has no hash, and contradicts nobody.
            bound.is_consistent &= pairs.all(|(taken, leaf)| taken.is_none_or(|taken| taken == *leaf));
        }
    }

    /// Whether somebody was refused at the present leaf, so that nobody can go on by the tree that counts if nobody else is
    /// left.
    pub(super) fn is_disputed_here(&self) -> bool {
        let leaf = self.taken.leaves().len();
        self.counting().is_some() && self.refused.iter().any(|refused| refused.leaf == leaf)
    }

    /// Whether the present leaf takes too long to wait for those whom no tree contradicts.
    pub(super) fn is_out_of_patience(&self, waited: Duration) -> bool {
        !self.refused.is_empty() && waited.saturating_sub(self.leaf_since) > LEAF_PATIENCE
    }

    /// Uses the tree that counts no more; what it is worth is settled at the end.
    pub(super) fn drop_counting(&mut self, waited: Duration) {
        self.leaf_since = waited;
        let Some(root) = self.counting().map(|bound| *bound.tree.root()) else { return };
        self.bound.iter_mut().filter(|bound| *bound.tree.root() == root).for_each(|bound| bound.is_dropped = true);
    }

    /// Takes the word of this source no more.
    fn forget(&mut self, source: SourceId) {
        for bound in &mut self.bound {
            bound.authors.retain(|author| *author != source);
            bound.is_dropped |= bound.authors.is_empty();
        }
    }

    /// What was taken over turned out to be no NAR, or another one. Returns the authors of trees by which it is just what it
    /// has to be; nobody takes their word any more.
    pub(super) fn refute(&mut self) -> Vec<SourceId> {
        // Only where each leaf was compared does a wrong whole prove a wrong tree.
        let is_whole = self.taken.leaves().iter().all(Option::is_some) && self.is_at_a_leafs_end();
        let mut liars = Vec::new();
        for bound in self.bound.iter_mut().filter(|bound| is_whole && bound.is_consistent) {
            bound.is_dropped = true;
            liars.append(&mut bound.authors);
        }
        liars.iter().for_each(|liar| self.forget(*liar));
        liars
    }

    fn is_at_a_leafs_end(&self) -> bool {
        self.taken.is_between_leaves() || self.taken.offset() == self.url.nar_size
    }

    /// The whole NAR is right: returns who signed another tree, and who sent another leaf.
    pub(super) fn settle(self) -> (Vec<SourceId>, Vec<SourceId>) {
        let signed = self.bound.into_iter().filter(|bound| !bound.is_consistent).flat_map(|bound| bound.authors);
        let taken = self.taken.leaves();
        let is_wrong =
            |refused: &Refused| taken.get(refused.leaf).copied().flatten().is_some_and(|hash| hash != refused.hash);
        let sent: Vec<_> =
            self.refused.iter().filter(|refused| is_wrong(refused)).map(|refused| refused.source).collect();
        (unique(signed), unique(sent))
    }

    /// The NAR is begun anew from its first byte.
    pub(super) fn begin_anew(&mut self, waited: Duration) {
        if let Some(taken) = LeafHasher::new(self.url.nar_size, 0) {
            self.taken = taken;
        }
        self.leaf_since = waited;
        self.bound.iter_mut().for_each(|bound| bound.is_consistent = true);
    }
}

fn unique(sources: impl IntoIterator<Item = SourceId>) -> Vec<SourceId> {
    let mut sources: Vec<_> = sources.into_iter().collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

/// How long a holder is let alone that was asked `tries` times.
fn pause_before(tries: usize) -> Duration {
    let doublings = u32::try_from(tries).unwrap_or(u32::MAX).saturating_sub(1);
    let pause = PAUSE_MIN.saturating_mul(2u32.saturating_pow(doublings)).min(PAUSE_MAX);
    if tries == 0 { Duration::ZERO } else { pause }
}
