//! What must hold, whatever happens. It knows what was signed, and asks no core.

use super::machine::{Machine, Number};
use narmesh_protocol::{RosterVersion, SignedRoster};
use std::collections::{BTreeMap, BTreeSet};

/// Violations that are kept, in words.
const VIOLATIONS_MAX: usize = 50;

#[derive(Debug, Default)]
pub(super) struct Checker {
    /// Every roster that the mesh key signed.
    signed: BTreeSet<RosterVersion>,
    /// Those that were admitted, and whether they were removed again.
    intended: BTreeMap<[u8; 32], bool>,
    pub(super) violations: Vec<String>,
}

impl Checker {
    fn demand(&mut self, holds: bool, why: impl FnOnce() -> String) {
        if !holds && self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(why());
        }
    }

    pub(super) fn note_signed(&mut self, roster: &SignedRoster) {
        self.signed.insert(roster.version());
    }

    pub(super) fn note_admitted(&mut self, node_key: [u8; 32]) {
        self.intended.insert(node_key, true);
    }

    pub(super) fn note_removed(&mut self, node_key: [u8; 32]) {
        self.intended.insert(node_key, false);
    }

    /// A core says that it heard a roster that counts more than the one in force.
    pub(super) fn check_heard(&mut self, number: Number, machine: &Machine, roster: &SignedRoster) {
        let (version, held) = (roster.version(), machine.version());
        let is_signed = self.signed.contains(&version);
        self.demand(is_signed, || format!("machine {number} takes a roster that the mesh key did not sign"));
        self.demand(version > held, || {
            format!("machine {number} goes back from version {} to {}", held.version, version.version)
        });
    }

    /// A machine gives its roster to another one.
    pub(super) fn check_given(&mut self, number: Number, machine: &Machine, to: Number, node_key: &[u8; 32]) {
        self.demand(machine.knows(node_key), || {
            format!("machine {number} gives a roster to {to}, who is not on the one that it has")
        });
    }

    pub(super) fn check_blamed(&mut self, number: Number, accused: Number, is_honest: bool) {
        self.demand(!is_honest, || format!("machine {number} blames {accused}, who is honest"));
    }

    /// The last roster holds what all signers wanted.
    pub(super) fn check_intended(&mut self, last: &SignedRoster) {
        let wrong: Vec<bool> =
            self.intended.iter().filter(|(key, is_in)| last.member(key).is_some() != **is_in).map(|it| *it.1).collect();
        for is_in in wrong {
            let what = if is_in { "admitted is no member" } else { "removed is a member" };
            self.demand(false, || format!("in the end a machine that was {what}"));
        }
    }
}
