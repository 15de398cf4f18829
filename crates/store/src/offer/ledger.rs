//! Every output and source, what it refers to, and whether it is offered.

use super::policy::{BuildersWord, Rules, Withheld};
use super::{OfferChange, Standing};
use narmesh_protocol::{HashPart, StorePath};
use std::collections::{BTreeSet, HashMap};

/// One valid path that is not a derivation.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) row: i64,
    pub(super) path: StorePath,
    pub(super) nar_size: u64,
    pub(super) is_source: bool,
    pub(super) word: BuildersWord,
    /// Without itself.
    pub(super) references: Box<[HashPart]>,
    pub(super) has_failed: bool,
    /// Its narinfo would be longer than any peer takes.
    pub(super) is_too_long: bool,
}

#[derive(Debug)]
struct Line {
    entry: Entry,
    privacy: Option<Withheld>,
    closure: Closure,
    /// `None` until asked for the first time.
    is_vouched_for: Option<bool>,
    is_offered: bool,
    /// What was last told to the listener.
    was_offered: bool,
}

/// Whether the closure, without the path itself, holds something private.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Closure {
    Unknown,
    /// Being looked at; only a cycle sees this, and Nix has none.
    Open,
    Clear,
    Private,
}

/// All of them. About 300 bytes each.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    lines: HashMap<HashPart, Line>,
    /// Oldest row first, so that what is offered grows upwards and a limit cuts off the newest.
    unvouched: BTreeSet<(i64, HashPart)>,
    gone: Vec<HashPart>,
    /// The closures of all lines may have changed, not only of those in `unknown`.
    all_unknown: bool,
    unknown: Vec<HashPart>,
    has_warned: bool,
}

impl Ledger {
    pub(super) fn is_offered(&self, part: &HashPart) -> bool {
        self.lines.get(part).is_some_and(|line| line.is_offered)
    }

    fn parts(&self) -> Vec<HashPart> {
        self.lines.keys().copied().collect()
    }

    /// Whether this path or something below it is private.
    pub(super) fn is_private(&self, part: &HashPart) -> bool {
        self.lines.get(part).is_some_and(|line| line.privacy.is_some() || line.closure == Closure::Private)
    }

    /// Why peers may not even hear of a path, if it is known here.
    pub(super) fn withheld(&self, rules: &Rules, part: &HashPart) -> Option<Option<Withheld>> {
        self.lines.get(part).map(|line| line.privacy(rules))
    }

    /// Adds a path or takes what changed about it.
    pub(super) fn put(&mut self, rules: &Rules, entry: Entry) {
        let part = entry.path.hash_part();
        let privacy = rules.privacy(entry.path.name(), entry.word);
        self.unknown.push(part);
        let was_offered = match self.lines.get(&part) {
            // Paths that refer to it may be known already.
            None => {
                self.all_unknown |= privacy.is_some();
                false
            }
            Some(old) => {
                self.all_unknown |= privacy != old.privacy || entry.references != old.entry.references;
                if old.entry.row != entry.row {
                    self.unvouched.remove(&(old.entry.row, part));
                }
                old.was_offered
            }
        };
        let is_vouched_for = None;
        let line = Line { entry, privacy, closure: Closure::Unknown, is_vouched_for, is_offered: false, was_offered };
        self.lines.insert(part, line);
    }

    pub(super) fn remove(&mut self, part: &HashPart) {
        let Some(line) = self.lines.remove(part) else { return };
        self.unvouched.remove(&(line.entry.row, *part));
        self.all_unknown |= line.privacy.is_some();
        if line.was_offered {
            self.gone.push(*part);
        }
    }

    /// Applies other rules. What nobody vouches for any more stays until [`Self::set_vouched_for`] says so.
    pub(super) fn apply(&mut self, rules: &Rules) {
        for (part, line) in &mut self.lines {
            line.privacy = rules.privacy(line.entry.path.name(), line.entry.word);
            self.unvouched.insert((line.entry.row, *part));
        }
        self.all_unknown = true;
        self.settle(rules);
    }

    /// Takes up to `count_max` paths of which must be asked who vouches for them.
    pub(super) fn take_unvouched(&mut self, count_max: usize) -> Vec<HashPart> {
        let mut parts = Vec::new();
        while parts.len() < count_max {
            let Some((_, part)) = self.unvouched.pop_first() else { break };
            parts.push(part);
        }
        parts
    }

    pub(super) fn set_vouched_for(&mut self, part: &HashPart, is_vouched_for: bool) {
        if let Some(line) = self.lines.get_mut(part) {
            line.is_vouched_for = Some(is_vouched_for);
        }
    }

    /// Whether it is worth asking who vouches for the path.
    pub(super) fn could_be_offered(&self, rules: &Rules, part: &HashPart) -> bool {
        self.lines.get(part).is_some_and(|line| match line.verdict(rules) {
            None | Some(Withheld::Unchecked | Withheld::NotVouchedFor) => true,
            Some(_) => false,
        })
    }

    /// Decides anew what is offered.
    pub(super) fn settle(&mut self, rules: &Rules) {
        self.look_into_closures();
        let mut rows = Vec::new();
        for (part, line) in &mut self.lines {
            let verdict = line.verdict(rules);
            line.is_offered = verdict.is_none();
            if line.is_offered {
                rows.push(line.entry.row);
            }
            if verdict == Some(Withheld::Unchecked) {
                self.unvouched.insert((line.entry.row, *part));
            }
        }
        let Some(surplus) = rows.len().checked_sub(rules.paths_max()).filter(|surplus| *surplus > 0) else {
            self.has_warned = false;
            return;
        };
        rows.sort_unstable();
        // The first row that is one too many.
        let Some(limit) = rows.get(rules.paths_max()).copied() else { return };
        for line in self.lines.values_mut().filter(|line| line.entry.row >= limit) {
            line.is_offered = false;
        }
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(surplus, limit = rules.paths_max(), "more paths than may be advertised: the newest are not");
        }
    }

    /// What changed since the last call.
    pub(super) fn publish(&mut self) -> OfferChange {
        let mut change = OfferChange { added: Vec::new(), removed: Vec::new() };
        for part in std::mem::take(&mut self.gone) {
            if self.lines.get(&part).is_none_or(|line| !line.is_offered) {
                change.removed.push(part);
            } else if let Some(line) = self.lines.get_mut(&part) {
                line.was_offered = true;
            }
        }
        for (part, line) in &mut self.lines {
            match (line.was_offered, line.is_offered) {
                (false, true) => change.added.push(*part),
                (true, false) => change.removed.push(*part),
                (false, false) | (true, true) => {}
            }
            line.was_offered = line.is_offered;
        }
        change
    }

    /// Everything with its standing, by path.
    pub(super) fn list(&self, rules: &Rules) -> Vec<(StorePath, u64, Standing)> {
        let mut list: Vec<_> = self
            .lines
            .values()
            .map(|line| {
                let standing = match line.verdict(rules) {
                    _ if line.is_offered => Standing::Offered,
                    Some(reason) => Standing::Withheld(reason),
                    None if self.has_warned => Standing::Withheld(Withheld::TooMany),
                    None => Standing::Withheld(Withheld::Unchecked),
                };
                (line.entry.path.clone(), line.entry.nar_size, standing)
            })
            .collect();
        list.sort();
        list
    }

    /// Finds out which closures hold something private, depth first and without recursion.
    fn look_into_closures(&mut self) {
        if std::mem::take(&mut self.all_unknown) {
            self.unknown = self.parts();
        }
        for part in &self.unknown {
            if let Some(line) = self.lines.get_mut(part) {
                line.closure = Closure::Unknown;
            }
        }
        let mut stack: Vec<(HashPart, usize)> = Vec::new();
        for start in std::mem::take(&mut self.unknown) {
            stack.push((start, 0));
            while let Some((part, next)) = stack.pop() {
                let Some(line) = self.lines.get_mut(&part) else { continue };
                match (line.closure, next) {
                    (Closure::Clear | Closure::Private, _) | (Closure::Open, 0) => continue,
                    (Closure::Unknown | Closure::Open, _) => line.closure = Closure::Open,
                }
                match line.entry.references.get(next).copied() {
                    Some(reference) => {
                        stack.push((part, next + 1));
                        stack.push((reference, 0));
                    }
                    None => {
                        let references = line.entry.references.clone();
                        let is_private = references.iter().any(|reference| self.is_private(reference));
                        if let Some(line) = self.lines.get_mut(&part) {
                            line.closure = if is_private { Closure::Private } else { Closure::Clear };
                        }
                    }
                }
            }
        }
    }
}

impl Line {
    /// Why peers may not even hear of it.
    fn privacy(&self, rules: &Rules) -> Option<Withheld> {
        if self.entry.is_source {
            Some(Withheld::Source)
        } else if let Some(reason) = self.privacy {
            Some(reason)
        } else if self.closure != Closure::Clear {
            Some(if self.closure == Closure::Private { Withheld::ClosureWithheld } else { Withheld::Unchecked })
        } else if !rules.includes(self.entry.path.name()) {
            Some(Withheld::NotIncluded)
        } else {
            None
        }
    }

    /// Why it is not offered, the limit aside.
    fn verdict(&self, rules: &Rules) -> Option<Withheld> {
        self.privacy(rules).or(match self.is_vouched_for {
            _ if self.entry.has_failed => Some(Withheld::CopyFailed),
            _ if self.entry.is_too_long => Some(Withheld::NarInfoTooLong),
            Some(true) => None,
            Some(false) => Some(Withheld::NotVouchedFor),
            None => Some(Withheld::Unchecked),
        })
    }
}
