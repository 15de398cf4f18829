//! Who is in the world, who attests what and when, and the rules that all machines have.

use super::QuorumScenario;
use super::judge::{Judge, Known};
use super::machine::{Machine, Number, path};
use super::schedule::{Event, Schedule};
use crate::cores::quorum::{Builder, Mode, Policy, PolicyRules, Require, Revocation, WallMs};
use crate::draw::Draw;
use crate::schedule::WALL_MS;
use narmesh_protocol::{BuilderKey, NarHash, Statement};
use std::collections::{BTreeMap, BTreeSet};

/// Honest builds, of a thousand, that have a result of their own.
const ODD_PERMILLE: u64 = 100;
/// Honest builds, of a thousand, that are repeated later with another result.
const UNREPRODUCIBLE_PERMILLE: u64 = 80;
/// Builders with grace: their word alone is enough for what nobody else has. They are the last ones, who are honest.
const GRACED: usize = 2;

/// What the plan is made from, and where it goes.
pub(super) struct Plan<'a> {
    pub(super) scenario: &'a QuorumScenario,
    pub(super) draw: &'a mut Draw,
    pub(super) schedule: &'a mut Schedule,
}

impl Plan<'_> {
    /// Links all machines in a ring, so that all are connected, and adds random links. None is open yet.
    pub(super) fn connect(&mut self) -> Vec<(Number, Number, bool)> {
        let count = self.scenario.builders;
        let mut pairs = BTreeSet::new();
        for a in 0..count {
            pairs.insert((a.min((a + 1) % count), a.max((a + 1) % count)));
            for _ in 0..self.scenario.connections.saturating_sub(2) / 2 {
                let b = self.draw.index(count);
                if a != b {
                    pairs.insert((a.min(b), a.max(b)));
                }
            }
        }
        for link in 0..pairs.len() {
            let wait_ms = self.draw.below(1_000);
            self.schedule.at_ms(wait_ms, Event::Redial { link });
        }
        pairs.into_iter().map(|(a, b)| (a, b, false)).collect()
    }

    /// Plans who attests what of a path, and when.
    pub(super) fn add_path(&mut self, number: u32) {
        let (hostile, run_ms) = (self.scenario.hostile, self.scenario.run_s * 1_000);
        let clustered = self.scenario.clustered;
        let statement = |number, result, reference: Option<u32>| statement(number, result, reference, clustered);
        let (truth, other) = (statement(number, 0, None), number.wrapping_add(1));
        // The lie is another NAR, or the same NAR with another reference.
        let lie = if number.is_multiple_of(2) { statement(number, 1, None) } else { statement(number, 0, Some(other)) };
        let builders = self.draw.index(self.scenario.builds_per_path + 1);
        let honest: Vec<_> = (hostile + 1..self.scenario.builders).collect();
        for machine in self.draw.some(honest.clone(), builders) {
            let at_ms = self.draw.below(run_ms);
            let own = statement(number, 2 + u8::try_from(machine).unwrap_or(0), None);
            let (first, second) =
                if self.draw.chance(ODD_PERMILLE) { (own, truth.clone()) } else { (truth.clone(), own) };
            self.attest(at_ms, machine, machine, first);
            if self.draw.chance(UNREPRODUCIBLE_PERMILLE) {
                let again_ms = self.draw.between(at_ms, run_ms);
                self.attest(again_ms, machine, machine, second);
            }
        }
        for machine in 0..hostile {
            let at_ms = self.draw.below(run_ms);
            self.attest(at_ms, machine, machine, lie.clone());
        }
        // A thief signs with the stolen key, which is already revoked, and dates the attestation back by a day.
        let thief = self.draw.index(hostile);
        let at_ms = self.draw.below(run_ms);
        self.schedule.at_ms(
            at_ms,
            Event::Attest { machine: thief, signer: hostile, statement: lie.clone(), at_ms: WALL_MS - 86_400_000 },
        );
        for signer in self.draw.some(honest.clone(), 3) {
            let (at_ms, machine) = (self.draw.below(run_ms), self.draw.pick(&honest).unwrap_or(signer));
            self.schedule.at_ms(at_ms, Event::Bare { machine, signer, statement: lie.clone() });
        }
    }

    fn attest(&mut self, at_ms: u64, machine: Number, signer: Number, statement: Statement) {
        // Dates decide nothing, so some are a year ahead.
        let ahead_ms = if self.draw.chance(50) { 365 * 86_400_000 } else { 0 };
        self.schedule.at_ms(at_ms, Event::Attest { machine, signer, statement, at_ms: WALL_MS + at_ms + ahead_ms });
    }
}

/// The statement that a build of a path results in; `result` 0 is the truth.
fn statement(number: u32, result: u8, reference: Option<u32>, clustered: u32) -> Statement {
    let mut nar_hash = [result; 32];
    nar_hash.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
    let references = reference.map(|number| path(number, clustered)).into_iter().collect();
    Statement { path: path(number, clustered), nar_hash: NarHash(nar_hash), nar_size: 112, references }
}

/// The rules that all machines have: owners of several builders count once, one key is revoked, two builders have grace.
pub(super) fn judge(scenario: &QuorumScenario, machines: &[Machine]) -> Judge {
    let count = machines.len();
    let group = |number: Number| match number {
        hostile if hostile < scenario.hostile => format!("evil-{}", hostile % scenario.hostile_groups),
        pair if pair < count * 3 / 4 => format!("pair-{}", pair / 2),
        alone => format!("owner-{alone}"),
    };
    let known = |number: Number| Known {
        group: group(number),
        revoked: (number == scenario.hostile).then_some(WallMs(WALL_MS)),
        grace: number + GRACED >= count,
    };
    let builders: Vec<_> = (0..count).map(known).collect();
    let policy = |veto: bool| {
        let builder = |(number, machine): (usize, &Machine)| Builder {
            name: format!("builder-{number}"),
            key: BuilderKey(machine.public.bytes()),
            group: Some(group(number)),
            signs_only_own_builds: false,
        };
        let stolen = machines.get(scenario.hostile).map(|machine| Revocation {
            key: BuilderKey(machine.public.bytes()),
            from: WallMs(WALL_MS),
            why: "stolen".to_owned(),
        });
        let grace = (count - GRACED..count).map(|number| format!("builder-{number}")).collect();
        let rules = PolicyRules {
            builders: machines.iter().enumerate().map(builder).collect(),
            revoked: stolen.into_iter().collect(),
            mode: Mode::Require,
            require: Some(Require { k: scenario.k, overrides: Vec::new(), grace: Some(grace), veto }),
            ..PolicyRules::default()
        };
        Policy::new(rules).expect("k is at most the honest builders").0
    };
    Judge {
        builders,
        k: scenario.k,
        policies: [policy(false), policy(true)],
        honest: BTreeMap::new(),
        judged: 0,
        violations: Vec::new(),
    }
}
