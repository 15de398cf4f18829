//! A path and all that it needs at run time. It is agreed only if every one of these paths is.

use crate::ledger::Ledger;
use crate::policy::Policy;
use crate::statement::FingerprintDigest;
use crate::verdict::{State, Verdict};
use narmesh_protocol::StorePath;
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

/// One path as the caller's store, or a narinfo, describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClosurePath {
    /// A path of the closure.
    pub path: StorePath,
    /// The paths that it refers to; it may be among them itself.
    pub references: Vec<StorePath>,
    /// Whether its content address was proven.
    pub content_addressed: bool,
    /// The fingerprint of what our store holds under this path, if it holds it.
    pub held: Option<FingerprintDigest>,
}

/// One path of a closure, with its verdict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judged {
    /// A path of the closure.
    pub path: StorePath,
    /// What the builders together say of it.
    pub verdict: Verdict,
    /// The fingerprint of what our store holds under this path, if it holds it.
    pub held: Option<FingerprintDigest>,
    /// The path that refers to it, on a shortest way from the root; `None` for the root.
    pub needed_by: Option<StorePath>,
    /// Whether the caller knows its references. If not, what it needs is unknown.
    pub known: bool,
}

/// The judgement on a closure: the weakest path first, and those of the same strength ordered by path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClosureVerdict {
    /// The root and all that it needs.
    pub paths: Vec<Judged>,
}

impl ClosureVerdict {
    /// Whether every path is agreed (or is its own content address), and our store holds only agreed results of them. False
    /// for a closure of no paths.
    pub fn is_agreed(&self) -> bool {
        !self.paths.is_empty() && self.paths.iter().all(Judged::is_agreed)
    }

    /// The path that is not agreed; the weakest one if there are several.
    pub fn breaks_at(&self) -> Option<&Judged> {
        self.paths.iter().find(|judged| !judged.is_agreed())
    }

    /// A shortest chain of references from the root to a path of the closure, both included. It tells why
    /// the path is needed.
    pub fn find_chain(&self, path: &StorePath) -> Vec<StorePath> {
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
    /// Judges a path by itself, without what it needs.
    pub fn alone(policy: &Policy, ledger: &Ledger, member: &ClosurePath) -> Self {
        let path = member.path.clone();
        let verdict = match member.content_addressed {
            true => policy.judge_content_addressed(ledger, &path),
            false => policy.judge(ledger, &path),
        };
        Self { path, verdict, held: member.held, needed_by: None, known: true }
    }

    /// Orders the weakest path first; those of the same strength are ordered by path.
    pub(crate) fn cmp_weakest_first(&self, other: &Self) -> Ordering {
        self.strength().cmp(&other.strength()).then_with(|| self.path.cmp(&other.path))
    }

    /// Whether the path is agreed or is its own content address, its references are known, and our store
    /// holds no other result.
    pub fn is_agreed(&self) -> bool {
        self.known && !self.held_differs() && matches!(self.verdict.state, State::Agreed | State::ContentAddressed)
    }

    /// Whether one fingerprint is agreed on and our store holds another.
    pub fn held_differs(&self) -> bool {
        let agreed = self.verdict.agreed().map(|agreed| agreed.claim.fingerprint);
        matches!((agreed, self.held), (Some(agreed), Some(held)) if agreed != held)
    }

    /// The rank of a path, weakest first: conflicts, a held result that is not the agreed one, unknown references, no
    /// statements, and then by the number of groups that are missing.
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

/// Judges `root` and what it needs. `members` may hold more paths than that. A path that no member describes is judged too,
/// and counts as one whose references are unknown.
pub fn judge_closure(policy: &Policy, ledger: &Ledger, root: &StorePath, members: &[ClosurePath]) -> ClosureVerdict {
    let by_path: BTreeMap<&StorePath, &ClosurePath> = members.iter().map(|member| (&member.path, member)).collect();
    let mut reached_from: BTreeMap<StorePath, Option<StorePath>> = BTreeMap::from([(root.clone(), None)]);
    // Breadth first, so that `needed_by` leads back to the root on a shortest way.
    let mut open = VecDeque::from([root.clone()]);
    let mut order = Vec::new();
    while let Some(path) = open.pop_front() {
        for reference in by_path.get(&path).into_iter().flat_map(|member| &member.references) {
            // A path may refer to itself, and many need the same one: each is judged once.
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
                let stranger = ClosurePath { path, references: Vec::new(), content_addressed: false, held: None };
                Judged { known: false, ..Judged::alone(policy, ledger, &stranger) }
            }
        };
        Judged { needed_by, ..judged }
    };
    let mut paths: Vec<Judged> = order.into_iter().map(judge).collect();
    paths.sort_by(Judged::cmp_weakest_first);
    ClosureVerdict { paths }
}
