//! The asker's side of one comparison.

use super::{
    Answer, BuilderDigest, Compared, Content, ITEMS_MAX, Item, NODES_MAX, Node, NodeDigest, QUERIES_MAX, Query, Shared,
};
use crate::ledger::Ledger;
use narmesh_protocol::{BuilderKey, HashPart};
use std::cell::Cell;
use std::collections::BTreeSet;

/// The asker's side of one comparison: the nodes still to be asked about, and what was found.
#[derive(Clone, Debug)]
pub struct Session {
    shared: Shared,
    open: Vec<(Node, NodeDigest)>,
    asked: Vec<(Node, NodeDigest)>,
    queries: usize,
    restarted: bool,
    misfit: bool,
    found: Difference,
}

/// What only one of the two sides has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// Items that only the other side has, with their nodes; they are to be pulled.
    pub theirs: Vec<(Node, Item)>,
    /// What only we have: the builder and the path.
    pub ours: Vec<(BuilderKey, HashPart)>,
    /// The builders that were compared; both sides know them.
    pub builders: Vec<BuilderDigest>,
    /// Whether everything was compared, so that no bound ended the session.
    pub complete: bool,
}

/// The next step of a comparison.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Send this query and pass the answer to [`Session::on_answer`].
    Ask(Query),
    /// The comparison is over.
    Done(Difference),
}

impl Session {
    /// Begins with the first [`super::BUILDERS_PER_SESSION_MAX`] builders of `shared`; the query is to be sent.
    pub fn start(ledger: &Ledger, shared: Shared) -> (Self, Query) {
        let shared = shared.window(0);
        let root = (Node::ROOT, compute_root_digest(ledger, &shared));
        let mut session = Self {
            shared,
            open: vec![root],
            asked: Vec::new(),
            queries: 0,
            restarted: false,
            misfit: false,
            found: Difference::default(),
        };
        let query = session.make_query();
        (session, query)
    }

    /// Takes an answer. One that does not fit the query ends the session as incomplete.
    pub fn on_answer(&mut self, ledger: &Ledger, answer: &Answer) -> Next {
        let fits = match answer {
            Answer::Builders(builders) => self.restart(ledger, builders),
            Answer::Nodes { answered, differing } => self.take(ledger, *answered, differing),
        };
        self.misfit = !fits;
        let full = self.queries >= QUERIES_MAX || self.found.theirs.len().max(self.found.ours.len()) > ITEMS_MAX;
        if fits && !full && !self.open.is_empty() {
            return Next::Ask(self.make_query());
        }
        let complete = fits && !full && self.open.is_empty();
        Next::Done(Difference { builders: self.shared.digests(), complete, ..std::mem::take(&mut self.found) })
    }

    /// Whether the last answer did not fit its query.
    pub(crate) fn is_misfit(&self) -> bool {
        self.misfit
    }

    /// How many queries were made so far.
    pub(crate) fn queries(&self) -> usize {
        self.queries
    }

    /// The number of items found only on the other side, and only on ours.
    pub(crate) fn found(&self) -> (usize, usize) {
        (self.found.theirs.len(), self.found.ours.len())
    }

    /// Ends the session with what it has found.
    pub(crate) fn stop(self) -> Difference {
        Difference { builders: self.shared.digests(), ..self.found }
    }

    /// The builders that are compared.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The next query. It takes the nodes opened last, which are the deepest, so that few nodes are open at a time.
    fn make_query(&mut self) -> Query {
        self.queries += 1;
        let from = self.open.len().saturating_sub(NODES_MAX);
        self.asked = self.open.split_off(from);
        self.asked.sort_unstable();
        Query { builders: self.shared.digests(), nodes: self.asked.clone() }
    }

    /// Starts again with the builders that the answerer compares, at most once. False when that is not possible.
    fn restart(&mut self, ledger: &Ledger, builders: &[BuilderDigest]) -> bool {
        let fewer = self.shared.restricted_to(builders);
        // A peer that names other builders each time must not keep a session going.
        if std::mem::replace(&mut self.restarted, true) || fewer == self.shared {
            return false;
        }
        self.shared = fewer;
        self.open = vec![(Node::ROOT, compute_root_digest(ledger, &self.shared))];
        true
    }

    /// Takes the differences of an answer. False when it does not fit the query.
    fn take(&mut self, ledger: &Ledger, answered: u32, differing: &[(u32, Content)]) -> bool {
        let asked = std::mem::take(&mut self.asked);
        let answered = usize::try_from(answered).unwrap_or(usize::MAX);
        let in_order = differing.is_sorted_by(|first, second| first.0 < second.0);
        // An answer to no node at all would let the session go round for ever.
        let Some(rest) = asked.get(answered..).filter(|_| in_order && answered > 0) else { return false };
        // Nodes that the answer had no room for stay open.
        self.open.extend_from_slice(rest);
        let compared = ledger.resolve_builders(&self.shared);
        for (number, content) in differing {
            let node = usize::try_from(*number).ok().filter(|number| *number < answered).and_then(|it| asked.get(it));
            let Some((node, _)) = node else { return false };
            match content {
                Content::Items(items) => self.compare(ledger, &compared, *node, items),
                Content::Children(digests) => {
                    for (number, theirs) in digests.iter().enumerate() {
                        let Some(child) = node.child(number) else { return false };
                        let ours = ledger.compute_digest(&compared, child, &Cell::new(0));
                        if ours != *theirs {
                            self.open.push((child, ours));
                        }
                    }
                }
            }
        }
        true
    }

    fn compare(&mut self, ledger: &Ledger, compared: &Compared, node: Node, items: &[Item]) {
        let theirs: BTreeSet<Item> = items.iter().copied().collect();
        let mut both = BTreeSet::new();
        for (item, builder, hash_part) in ledger.walk_items(compared, node, &Cell::new(0)) {
            if theirs.contains(&item) {
                both.insert(item);
            } else if self.found.ours.len() <= ITEMS_MAX {
                self.found.ours.push((builder, hash_part));
            }
        }
        self.found.theirs.extend(theirs.difference(&both).map(|item| (node, *item)));
    }
}

/// The digest of all that is known about these builders.
fn compute_root_digest(ledger: &Ledger, shared: &Shared) -> NodeDigest {
    ledger.compute_digest(&ledger.resolve_builders(shared), Node::ROOT, &Cell::new(0))
}
