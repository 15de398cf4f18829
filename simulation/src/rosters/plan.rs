//! Who is in the world, who is linked with whom, and what happens when.

use super::RosterScenario;
use super::event::{Event, Link};
use super::machine::Number;

use crate::agenda::Agenda;
use crate::draw::Draw;
use std::collections::BTreeSet;

/// Nothing but comparisons happens between these two times: what a mesh costs at rest is measured there. Milliseconds.
pub(super) const QUIET_MS: (u64, u64) = (20_000, 80_000);
/// Links, of a thousand, between machines that have each other in their configuration as well, as a `[[peer]]`.
const CONFIGURED_PERMILLE: u64 = 100;
/// How long a machine is down, milliseconds.
const DOWN_MS: (u64, u64) = (1_000, 30_000);
/// Edits, of a thousand, that both signers make in the same moment.
const AT_ONCE_PERMILLE: u64 = 300;

/// Links all machines in a ring, so that all are connected, and adds random links.
pub(super) fn link(scenario: &RosterScenario, draw: &mut Draw) -> Vec<Link> {
    let count = scenario.machines;
    let mut pairs = BTreeSet::new();
    for a in 0..count {
        pairs.insert((a.min((a + 1) % count), a.max((a + 1) % count)));
        for _ in 0..scenario.connections.saturating_sub(2) / 2 {
            let b = draw.index(count);
            if a != b {
                pairs.insert((a.min(b), a.max(b)));
            }
        }
    }
    pairs.into_iter().map(|(a, b)| Link::new(a, b, draw.chance(CONFIGURED_PERMILLE))).collect()
}

/// Plans all edits, restarts and the cut. `honest` are the machines that may crash.
pub(super) fn plan(scenario: &RosterScenario, honest: &[Number], draw: &mut Draw, agenda: &mut Agenda<Event>) {
    let run_ms = scenario.run_s * 1_000;
    let mut edits: Vec<Event> = (0..scenario.joins).map(|_| Event::Join { signer: 0 }).collect();
    edits.extend((0..scenario.removals).map(|_| Event::Remove { signer: 0 }));
    for edit in edits {
        let at_ms = draw.between(QUIET_MS.1, run_ms);
        let signer = draw.index(2);
        agenda.at_ms(at_ms, edit.by(signer));
        if draw.chance(AT_ONCE_PERMILLE) {
            agenda.at_ms(at_ms, Event::Rename { signer: 1 - signer });
        }
    }
    for _ in 0..scenario.crashes {
        let (at_ms, machine) = (draw.between(QUIET_MS.1, run_ms), draw.pick(honest).unwrap_or(0));
        agenda.at_ms(at_ms, Event::Crash { machine });
        agenda.at_ms(at_ms + draw.between(DOWN_MS.0, DOWN_MS.1), Event::Start { machine });
    }
    agenda.at_ms((scenario.run_s - scenario.cut_s) * 1_000, Event::Cut);
}
