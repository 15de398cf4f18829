//! A path with all that it needs at run time: agreed only if every one of them is.

use crate::evidence::FingerprintDigest;
use crate::ledger::Ledger;
use crate::policy::Policy;
use crate::verdict::{State, Verdict};
use narmesh_protocol::StorePath;
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

/// One path, as the caller's store (or a narinfo) has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// The path.
    pub path: StorePath,
    /// What it refers to, itself or not.
    pub references: Vec<StorePath>,
    /// Whether it is its own content address, proven.
    pub content_addressed: bool,
    /// What of it is in our store, if it is.
    pub held: Option<FingerprintDigest>,
}

/// One path of a closure, judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judged {
    /// The path.
    pub path: StorePath,
    /// Its verdict.
    pub verdict: Verdict,
    /// What of it is in our store, if it is.
    pub held: Option<FingerprintDigest>,
    /// What refers to it, on a shortest way from the root; `None` for the root.
    pub needed_by: Option<StorePath>,
    /// The caller knows its references. If not, what it needs is unknown.
    pub known: bool,
}

/// The judgement, weakest path first; those of one strength in the order of their paths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClosureVerdict {
    /// The root and all that it needs.
    pub paths: Vec<Judged>,
}

impl ClosureVerdict {
    /// Whether every path is agreed (or its own address), and what is here of it is what was agreed on. Of no path nothing is.
    pub fn is_agreed(&self) -> bool {
        !self.paths.is_empty() && self.paths.iter().all(Judged::is_agreed)
    }

    /// The path that breaks it; the weakest if there are several.
    pub fn breaks_at(&self) -> Option<&Judged> {
        self.paths.iter().find(|judged| !judged.is_agreed())
    }

    /// From the root to a path of the closure, both included: why it is needed. A shortest such way.
    pub fn chain(&self, path: &StorePath) -> Vec<StorePath> {
        let needed_by: BTreeMap<_, _> = self.paths.iter().map(|judged| (&judged.path, &judged.needed_by)).collect();
        let mut chain = vec![path.clone()];
        while let Some(Some(from)) = chain.last().and_then(|path| needed_by.get(path)) {
            chain.push(from.clone());
        }
        chain.reverse();
        chain
    }
}

impl Judged {
    /// A path by itself: whatever it needs is not asked about.
    pub fn alone(policy: &Policy, ledger: &Ledger, member: &Member) -> Self {
        let path = member.path.clone();
        let verdict = match member.content_addressed {
            true => policy.verdict_content_addressed(ledger, &path),
            false => policy.verdict(ledger, &path),
        };
        Self { path, verdict, held: member.held, needed_by: None, known: true }
    }

    /// The weakest first; those of one strength in the order of their paths.
    pub(crate) fn weaker(&self, other: &Self) -> Ordering {
        self.strength().cmp(&other.strength()).then_with(|| self.path.cmp(&other.path))
    }

    /// Whether it is agreed, or its own address, with all that it needs known, and what is here is what was agreed on.
    pub fn is_agreed(&self) -> bool {
        self.known && !self.held_differs() && matches!(self.verdict.state, State::Agreed | State::ContentAddressed)
    }

    /// Whether one fingerprint is agreed on, and our store has another.
    pub fn held_differs(&self) -> bool {
        let agreed = self.verdict.agreed().map(|agreed| agreed.facts.fingerprint);
        matches!((agreed, self.held), (Some(agreed), Some(held)) if agreed != held)
    }

    /// Orders the weakest first: conflicts, what is here but not what was agreed on, nothing, then by the groups that lack.
    fn strength(&self) -> (u8, usize) {
        let lacking = self.verdict.k.saturating_sub(self.verdict.attested.first().map_or(0, |most| most.groups));
        let rank = match self.verdict.state {
            State::Conflict => 0,
            _ if self.held_differs() => 1,
            _ if !self.known => 2,
            State::None => 3,
            State::Short => 4,
            State::Agreed => 5,
            State::ContentAddressed => 6,
        };
        (rank, usize::MAX - lacking)
    }
}

/// Judges `root` and what it needs. `members` may hold more than that; a path that nobody describes is judged, and counts as one
/// whose needs are unknown.
pub fn closure(policy: &Policy, ledger: &Ledger, root: &StorePath, members: &[Member]) -> ClosureVerdict {
    let by_path: BTreeMap<&StorePath, &Member> = members.iter().map(|member| (&member.path, member)).collect();
    let mut reached_from: BTreeMap<StorePath, Option<StorePath>> = BTreeMap::from([(root.clone(), None)]);
    let mut open = VecDeque::from([root.clone()]);
    let mut order = Vec::new();
    while let Some(path) = open.pop_front() {
        for reference in by_path.get(&path).into_iter().flat_map(|member| &member.references) {
            if !reached_from.contains_key(reference) {
                reached_from.insert(reference.clone(), Some(path.clone()));
                open.push_back(reference.clone());
            }
        }
        order.push(path);
    }
    let judge = |path: StorePath| {
        let needed_by = reached_from.get(&path).cloned().flatten();
        let judged = match by_path.get(&path) {
            Some(member) => Judged::alone(policy, ledger, member),
            None => {
                let stranger = Member { path, references: Vec::new(), content_addressed: false, held: None };
                Judged { known: false, ..Judged::alone(policy, ledger, &stranger) }
            }
        };
        Judged { needed_by, ..judged }
    };
    let mut paths: Vec<Judged> = order.into_iter().map(judge).collect();
    paths.sort_by(Judged::weaker);
    ClosureVerdict { paths }
}
