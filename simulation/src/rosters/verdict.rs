//! What came of a run: whether all members have the newest roster, and the figures.

use super::RosterReport;
use super::machine::Number;
use super::plan::QUIET_MS;
use super::world::World;
use narmesh_protocol::SignedRoster;
use sha2::Digest as _;
use std::collections::BTreeSet;
use std::sync::Arc;

impl World {
    /// The newest roster that an honest machine has.
    pub(super) fn newest(&self) -> Option<Arc<SignedRoster>> {
        let honest = self.machines.iter().filter(|machine| machine.lie.is_none());
        honest.filter_map(|machine| machine.held.clone()).max_by_key(|roster| roster.version())
    }

    /// The honest members that a signer can reach through honest members. Whoever has only liars to talk to hears what they
    /// like, and who was removed is told nothing.
    pub(super) fn find_reached(&self, newest: &SignedRoster) -> BTreeSet<Number> {
        let (mut reached, mut next) = (BTreeSet::from([0]), vec![0]);
        while let Some(number) = next.pop() {
            for link in &self.machine(number).links {
                let usable = self.passes(*link) && self.is_wanted(*link);
                let others = self.link(*link).ends.into_iter().filter(|_| usable);
                let told = others.map(|other| (other, self.machine(other)));
                let told = told.filter(|(_, it)| it.lie.is_none() && newest.member(&it.node_key).is_some());
                next.extend(told.map(|(other, _)| other).filter(|other| reached.insert(*other)));
            }
        }
        reached
    }

    /// Checks that nothing that a signer wanted was lost.
    pub(super) fn check_intentions(&mut self) {
        if let Some(newest) = self.newest() {
            self.checker.check_intended(&newest);
        }
    }

    pub(super) fn into_report(mut self, seed: u64, equal_after_ms: Option<u64>) -> RosterReport {
        self.refused_after_ms.sort_unstable();
        let refused = &self.refused_after_ms;
        let of_all = |permille: usize| {
            let at = (refused.len() * permille / 1_000).min(refused.len().saturating_sub(1));
            refused.get(at).copied().unwrap_or(0)
        };
        let machines = self.scenario.machines as u64;
        let counts = &self.counts;
        RosterReport {
            refused_after_ms: [of_all(500), of_all(990), of_all(1_000)],
            roster_bytes: self.newest().map_or(0, |roster| roster.as_bytes().len()),
            about: self.scenario.about,
            machines: self.scenario.machines,
            seed,
            edits: counts.edits,
            completions: counts.completions,
            copies_permille: counts.rosters_sent * 1_000 / counts.rosters_taken.max(1),
            idle_bytes_per_s: counts.quiet_bytes * 1_000 / (QUIET_MS.1 - QUIET_MS.0) / machines,
            bytes: counts.bytes / machines,
            equal_after_ms,
            violations: self.checker.violations,
            digest: self.trace.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}
