//! The index of all outputs and sources, and of derivations where these are offered: what each refers to, and whether it is offered.

use super::policy::{BuilderStatement, Origin, Rules, Voucher, Withheld};
use super::{OfferChange, Offering};
use crate::CopyFault;
use narmesh_protocol::{HashPart, StorePath};
use std::collections::{BTreeSet, HashMap, HashSet};

/// One valid path.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) row: i64,
    pub(super) path: StorePath,
    pub(super) nar_size: u64,
    pub(super) origin: Origin,
    pub(super) word: BuilderStatement,
    /// The names of the paths that it builds, if it is a derivation.
    pub(super) builds: Option<Box<[String]>>,
    /// The path's references, without itself.
    pub(super) references: Box<[HashPart]>,
    /// The fault of our copy, if it has one.
    pub(super) fault: Option<CopyFault>,
    /// Why no peer could take it, whatever our copy is.
    pub(super) excess: Option<Withheld>,
}

#[derive(Debug)]
struct Line {
    entry: Entry,
    /// Why the path, and everything that refers to it, is withheld.
    privacy: Option<Withheld>,
    closure: Closure,
    /// Whether its closure, without the path itself, contains a path that was added.
    refers_to_added: bool,
    /// Who vouches for the path; `None` until it was checked for the first time.
    voucher: Option<Voucher>,
    /// Whether an offered path refers to it, so that this source is offered too.
    is_carried: bool,
    is_offered: bool,
    /// Whether the listener was last told that it is offered.
    was_offered: bool,
}

/// Whether a closure, without the path itself, contains something private.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Closure {
    Unknown,
    /// Being computed. Only a cycle of references meets it, and Nix has none.
    Open,
    Clear,
    /// A row in the closure cannot be read.
    Unreadable,
    Private,
}

impl Closure {
    /// Why a path with such a closure is withheld, if it is.
    fn why_withheld(self) -> Option<Withheld> {
        match self {
            Self::Clear => None,
            Self::Private => Some(Withheld::ClosureWithheld),
            Self::Unreadable => Some(Withheld::ClosureUnreadable),
            Self::Unknown | Self::Open => Some(Withheld::Unchecked),
        }
    }
}

/// All outputs and sources, about 300 bytes each.
#[derive(Debug, Default)]
pub(super) struct OfferIndex {
    lines: HashMap<HashPart, Line>,
    /// Paths to check for who vouches for them, oldest row first: the offer grows from old to new, and
    /// a limit cuts off the newest.
    unvouched: BTreeSet<(i64, HashPart)>,
    gone: Vec<HashPart>,
    /// Paths that were offered, were registered anew since, and have a line.
    registered_anew: Vec<HashPart>,
    /// Valid paths whose row cannot be read, with the store path if at least that is known.
    unreadable: HashMap<HashPart, Option<StorePath>>,
    /// References that were not here when the closures of their referrers were computed.
    awaited: HashSet<HashPart>,
    /// Whether the closures of all lines may have changed, not only of those in `unknown`.
    all_unknown: bool,
    unknown: Vec<HashPart>,
    has_warned: bool,
}

impl OfferIndex {
    pub(super) fn is_offered(&self, part: &HashPart) -> bool {
        self.lines.get(part).is_some_and(|line| line.is_offered)
    }

    fn parts(&self) -> Vec<HashPart> {
        self.lines.keys().copied().collect()
    }

    /// Whether this path or something in its closure is private, or may be.
    pub(super) fn is_private(&self, part: &HashPart) -> bool {
        self.why_referrers_stay(part).is_some()
    }

    /// Why paths that refer to this one are withheld, if they are.
    pub(super) fn why_referrers_stay(&self, part: &HashPart) -> Option<Withheld> {
        self.closure_with(part).why_withheld()
    }

    /// The state of a path's closure, including the path itself.
    fn closure_with(&self, part: &HashPart) -> Closure {
        match self.lines.get(part) {
            Some(line) if line.privacy.is_some() => Closure::Private,
            Some(line) => line.closure,
            None if self.unreadable.contains_key(part) => Closure::Unreadable,
            None => Closure::Clear,
        }
    }

    /// Whether nothing but the fault of our copy keeps this path from being offered.
    pub(super) fn lacks_only_copy(&self, rules: &Rules, part: &HashPart) -> bool {
        let is_about_copy =
            |why: Withheld| matches!(why, Withheld::CopyFailed | Withheld::CopyGone | Withheld::CopyUnreadable);
        rules.is_serving() && self.lines.get(part).and_then(|line| line.why_withheld(rules)).is_some_and(is_about_copy)
    }

    /// Whether it is a source that is offered because an offered path refers to it.
    pub(super) fn is_carried(&self, part: &HashPart) -> bool {
        self.lines.get(part).is_some_and(|line| line.is_carried)
    }

    /// Why peers may not even hear of a path; `Some(None)` if they may, `None` if the path is not known here.
    pub(super) fn why_withheld(&self, rules: &Rules, part: &HashPart) -> Option<Option<Withheld>> {
        match self.lines.get(part) {
            Some(line) => Some(line.why_unheard(rules)),
            None => self.unreadable.contains_key(part).then_some(Some(Withheld::RowUnreadable)),
        }
    }

    /// The paths whose rows could not be read.
    pub(super) fn unreadable(&self) -> Vec<HashPart> {
        self.unreadable.keys().copied().collect()
    }

    /// Notes that the row of a valid path cannot be read. Returns whether that is new.
    pub(super) fn set_unreadable(&mut self, part: HashPart, path: Option<StorePath>) -> bool {
        let known = self.lines.get(&part).map(|line| line.entry.path.clone());
        self.remove_line(&part);
        let is_new = !self.unreadable.contains_key(&part);
        if is_new {
            self.unreadable.insert(part, known.or(path));
            // Whatever refers to it is withheld with it.
            self.all_unknown = true;
        }
        is_new
    }

    /// Adds a path, or replaces its entry.
    pub(super) fn put(&mut self, rules: &Rules, entry: Entry) {
        let part = entry.path.hash_part();
        let privacy = entry.privacy(rules, None);
        self.unknown.push(part);
        // Paths that refer to it may be known already, and their closures change with it.
        self.all_unknown |= self.unreadable.remove(&part).is_some() || self.awaited.remove(&part);
        let was_offered = match self.lines.get(&part) {
            None => {
                self.all_unknown |= privacy.is_some();
                false
            }
            Some(old) => {
                let is_other = privacy != old.privacy || entry.origin != old.entry.origin;
                self.all_unknown |= is_other || entry.references != old.entry.references;
                if old.entry.row != entry.row {
                    self.unvouched.remove(&(old.entry.row, part));
                    self.registered_anew.extend(old.was_offered.then_some(part));
                }
                old.was_offered
            }
        };
        let line = Line {
            entry,
            privacy,
            closure: Closure::Unknown,
            refers_to_added: false,
            voucher: None,
            is_carried: false,
            is_offered: false,
            was_offered,
        };
        self.lines.insert(part, line);
    }

    /// Forgets a path that is no longer valid.
    pub(super) fn remove(&mut self, part: &HashPart) {
        self.all_unknown |= self.unreadable.remove(part).is_some();
        self.remove_line(part);
    }

    fn remove_line(&mut self, part: &HashPart) {
        let Some(line) = self.lines.remove(part) else { return };
        self.unvouched.remove(&(line.entry.row, *part));
        self.all_unknown |= line.privacy.is_some();
        if line.was_offered {
            self.gone.push(*part);
        }
    }

    /// Applies other rules. A path for which nobody vouches any longer stays offered until [`Self::set_voucher`] says so.
    pub(super) fn apply(&mut self, rules: &Rules) {
        for (part, line) in &mut self.lines {
            line.privacy = line.entry.privacy(rules, line.voucher);
            // The keys may have changed, so it must be found out again who vouches for each path.
            self.unvouched.insert((line.entry.row, *part));
        }
        self.all_unknown = true;
        self.settle(rules);
    }

    /// Has those of these paths checked again for which nobody vouched.
    pub(super) fn vouch_again(&mut self, parts: &BTreeSet<HashPart>) {
        for part in parts {
            if let Some(line) = self.lines.get(part).filter(|line| line.voucher == Some(Voucher::Nobody)) {
                self.unvouched.insert((line.entry.row, *part));
            }
        }
    }

    /// Takes up to `count_max` paths that must be checked for who vouches for them.
    pub(super) fn take_unvouched(&mut self, count_max: usize) -> Vec<HashPart> {
        let mut parts = Vec::new();
        while parts.len() < count_max {
            let Some((_, part)) = self.unvouched.pop_first() else { break };
            parts.push(part);
        }
        parts
    }

    pub(super) fn set_voucher(&mut self, rules: &Rules, part: &HashPart, voucher: Voucher) {
        let Some(line) = self.lines.get_mut(part) else { return };
        line.voucher = Some(voucher);
        let privacy = line.entry.privacy(rules, line.voucher);
        self.all_unknown |= privacy != std::mem::replace(&mut line.privacy, privacy);
    }

    /// Whether it can matter who vouches for the path.
    pub(super) fn could_be_offered(&self, rules: &Rules, part: &HashPart) -> bool {
        self.lines.get(part).is_some_and(|line| match line.why_withheld(rules) {
            None | Some(Withheld::Unchecked | Withheld::NotVouchedFor | Withheld::NotUnderstood | Withheld::Source) => {
                true
            }
            Some(_) => false,
        })
    }

    /// Decides anew which paths are offered.
    pub(super) fn settle(&mut self, rules: &Rules) {
        self.look_into_closures();
        if !rules.is_serving() {
            for line in self.lines.values_mut() {
                (line.is_offered, line.is_carried) = (false, false);
            }
            self.has_warned = false;
            return;
        }
        self.offer_all(rules);
        let mut rows: Vec<_> = self.lines.values().filter(|line| line.is_offered).map(|line| line.entry.row).collect();
        let Some(surplus) = rows.len().checked_sub(rules.paths_max()).filter(|surplus| *surplus > 0) else {
            self.has_warned = false;
            return;
        };
        rows.sort_unstable();
        // The first row beyond the limit.
        let Some(limit) = rows.get(rules.paths_max()).copied() else { return };
        for line in self.lines.values_mut().filter(|line| line.entry.row >= limit) {
            line.is_offered = false;
        }
        // A source must not stay offered when the limit cut off the path that refers to it.
        self.carry_sources(rules);
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(surplus, limit = rules.paths_max(), "more paths than may be advertised: newest withheld");
        }
    }

    /// Decides which paths are offered, ignoring the limit.
    fn offer_all(&mut self, rules: &Rules) {
        for (part, line) in &mut self.lines {
            line.is_carried = false;
            let verdict = line.why_withheld(rules);
            line.is_offered = verdict.is_none();
            let is_unasked = line.voucher.is_none();
            // Asked one batch after the other, since signatures have to be verified.
            if is_unasked && matches!(verdict, Some(Withheld::Unchecked | Withheld::NotUnderstood)) {
                self.unvouched.insert((line.entry.row, *part));
            }
        }
        self.carry_sources(rules);
    }

    /// Offers the sources in the closures of offered paths, and no other sources. A path is useless without one of its
    /// references, and no binary cache has the sources of this machine.
    fn carry_sources(&mut self, rules: &Rules) {
        // What was carried before may have lost the path that needed it.
        for line in self.lines.values_mut().filter(|line| line.is_carried) {
            (line.is_carried, line.is_offered) = (false, false);
        }
        let carries = |line: &&Line| line.is_offered && line.refers_to_added;
        let mut stack: Vec<HashPart> =
            self.lines.values().filter(carries).flat_map(|line| line.entry.references.iter().copied()).collect();
        let mut seen = HashSet::new();
        while let Some(part) = stack.pop() {
            let Some(line) = self.lines.get_mut(&part).filter(|_| seen.insert(part)) else { continue };
            if line.entry.origin == Origin::Added && !line.is_offered {
                line.is_carried = true;
                line.is_offered = line.why_withheld(rules).is_none();
            }
            // Other closures contain no source, so they need no search.
            if line.refers_to_added {
                stack.extend(&line.entry.references);
            }
        }
    }

    /// The changes of the offer since the last call.
    pub(super) fn publish(&mut self) -> OfferChange {
        let mut change = OfferChange { added: Vec::new(), removed: Vec::new() };
        // A path that went and came back, or was registered anew, may have other contents: it counts as removed and added.
        for part in self.gone.drain(..) {
            change.removed.push(part);
        }
        for part in self.registered_anew.drain(..) {
            if let Some(line) = self.lines.get_mut(&part)
                && std::mem::replace(&mut line.was_offered, false)
            {
                change.removed.push(part);
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

    /// All paths with NarSize and offering, sorted by path.
    pub(super) fn list(&self, rules: &Rules) -> Vec<(StorePath, u64, Offering)> {
        let mut list: Vec<_> = self
            .lines
            .values()
            .map(|line| {
                let offering = match line.why_withheld(rules) {
                    _ if line.is_offered => Offering::Offered,
                    Some(reason) => Offering::Withheld(reason),
                    None if !rules.is_serving() => Offering::Withheld(Withheld::NotServing),
                    None if self.has_warned => Offering::Withheld(Withheld::TooMany),
                    None => Offering::Withheld(Withheld::Unchecked),
                };
                (line.entry.path.clone(), line.entry.nar_size, offering)
            })
            .collect();
        let unreadable = self.unreadable.values().flatten();
        list.extend(unreadable.map(|path| (path.clone(), 0, Offering::Withheld(Withheld::RowUnreadable))));
        list.sort();
        list
    }

    /// Finds out which closures contain something private, depth first and without recursion.
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
                    (Closure::Clear | Closure::Unreadable | Closure::Private, _) | (Closure::Open, 0) => continue,
                    (Closure::Unknown | Closure::Open, _) => line.closure = Closure::Open,
                }
                match line.entry.references.get(next).copied() {
                    Some(reference) => {
                        // Come back for the next reference when this one is done.
                        stack.push((part, next + 1));
                        stack.push((reference, 0));
                    }
                    None => {
                        let references = line.entry.references.clone();
                        let (closure, refers_to_added) = self.sum_up(&references);
                        if let Some(line) = self.lines.get_mut(&part) {
                            (line.closure, line.refers_to_added) = (closure, refers_to_added);
                        }
                    }
                }
            }
        }
    }

    /// The state of a closure, and whether anything in it was added, from the states of its direct references.
    fn sum_up(&mut self, references: &[HashPart]) -> (Closure, bool) {
        let (mut is_private, mut is_unreadable, mut refers_to_added) = (false, false, false);
        for reference in references {
            let closure = self.closure_with(reference);
            is_private |= closure == Closure::Private;
            is_unreadable |= closure == Closure::Unreadable;
            match self.lines.get(reference) {
                Some(line) => refers_to_added |= line.refers_to_added || line.entry.origin == Origin::Added,
                None => drop(self.awaited.insert(*reference)),
            }
        }
        let closure = match (is_private, is_unreadable) {
            (true, _) => Closure::Private,
            (false, true) => Closure::Unreadable,
            (false, false) => Closure::Clear,
        };
        (closure, refers_to_added)
    }
}

impl Entry {
    /// Why the path could not be sent even if it may leave.
    pub(super) fn why_not_sent(&self) -> Option<Withheld> {
        self.fault.map(Withheld::from).or(self.excess)
    }

    /// Its name and, if it is a derivation, those of what it builds, which it tells whoever reads it.
    fn names(&self) -> impl Iterator<Item = &str> {
        [self.path.name()].into_iter().chain(self.builds.iter().flatten().map(String::as_str))
    }

    /// Why the path, and everything that refers to it, is withheld, going by names and derivations.
    pub(super) fn why_private(&self, rules: &Rules) -> Option<Withheld> {
        self.names().find_map(|name| rules.privacy(name, self.word))
    }

    /// Whether a pattern of `include` matches.
    pub(super) fn is_included(&self, rules: &Rules) -> bool {
        self.names().any(|name| rules.includes(name))
    }

    /// Why the path, and everything that refers to it, is withheld, given what is known about who vouches for it.
    fn privacy(&self, rules: &Rules, voucher: Option<Voucher>) -> Option<Withheld> {
        let is_signed = voucher == Some(Voucher::Signature);
        self.why_private(rules).or(match self.origin {
            _ if is_signed => None,
            Origin::Output => None,
            Origin::Unknown => Some(Withheld::NotUnderstood),
            // A path that refers to this source is useless without it, and nobody else has it.
            Origin::Added => self.why_not_sent(),
        })
    }
}

impl Line {
    /// Why peers may not even hear of the path.
    fn why_unheard(&self, rules: &Rules) -> Option<Withheld> {
        let of_source = || match (self.entry.origin, self.voucher) {
            (Origin::Output | Origin::Unknown, _) | (Origin::Added, Some(Voucher::Signature)) => None,
            (Origin::Added, None) => Some(Withheld::Unchecked),
            (Origin::Added, Some(_)) => (!self.is_carried).then_some(Withheld::Source),
        };
        let of_include = || (!self.is_carried && !self.entry.is_included(rules)).then_some(Withheld::NotIncluded);
        // From the moment of a reload on; they are dropped soon after it.
        let of_kind = (self.entry.builds.is_some() && !rules.offers_derivations()).then_some(Withheld::Derivation);
        of_kind.or(self.privacy).or(self.closure.why_withheld()).or_else(of_source).or_else(of_include)
    }

    /// Why the path is not offered, ignoring the limit.
    fn why_withheld(&self, rules: &Rules) -> Option<Withheld> {
        self.why_unheard(rules).or_else(|| self.entry.why_not_sent()).or(match self.voucher {
            Some(Voucher::Contents | Voucher::Signature | Voucher::Attestation) => None,
            Some(Voucher::Nobody) => Some(Withheld::NotVouchedFor),
            None => Some(Withheld::Unchecked),
        })
    }
}
