//! The machines of a run, with the clock that they share and the chance that decides what happens to them.

use crate::draw::Draw;
use crate::machine::Machine;
use crate::malice::Malice;
use crate::number::{Number, Path};
use crate::scenario::{Scenario, What};
use crate::schedule::Schedule;
use crate::traffic::Traffic;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// What all parts of the world are given: the machines, the clock, and chance.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) scenario: Scenario,
    pub(crate) machines: Vec<Machine>,
    pub(crate) schedule: Schedule,
    pub(crate) draw: Draw,
    /// Whether all faults have ended.
    pub(crate) healed: bool,
    /// The paths that were ever built are those below this one.
    pub(crate) next_path: Path,
}

impl Fleet {
    /// Draws the machines, none of which runs yet.
    pub(crate) fn new(scenario: Scenario, seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let (nodes, strangers) = (scenario.nodes, scenario.hostile.strangers);
        let mut machines: Vec<_> = (0..nodes + strangers).map(|_| Machine::new(&mut draw)).collect();
        let everyone: Arc<BTreeSet<_>> = Arc::new((0..nodes).collect());
        let liars = usize::try_from(nodes as u64 * scenario.hostile.permille / 1_000).unwrap_or(0);
        let shared = u32::try_from(u64::from(scenario.paths) * scenario.shared_permille / 1_000).unwrap_or(0);
        let own = scenario.paths - shared;
        let mut site_ends = Vec::new();
        scenario.site.iter().fold(0, |sum, site| {
            site_ends.push(sum + site.nodes);
            sum + site.nodes
        });
        for (number, machine) in machines.iter_mut().enumerate() {
            let mut trusted = (*everyone).clone();
            trusted.remove(&number);
            machine.trusted = Arc::new(trusted);
            machine.site = site_ends.iter().position(|end| number < *end).unwrap_or(0);
            machine.stranger = number >= nodes;
            // The last machines lie, because events name the first ones.
            if number >= nodes - liars {
                machine.malice =
                    Some(Malice::new(&scenario.hostile, nodes.saturating_sub(number + 1), machine.stranger));
            }
            let first = shared + own * u32::try_from(number).unwrap_or(0);
            if !machine.stranger {
                machine.store.add((0..shared).chain(first..first + own));
            }
        }
        let next_path = shared + own * u32::try_from(nodes).unwrap_or(0) + 1;
        Self { scenario, machines, schedule: Schedule::default(), draw, healed: false, next_path }
    }

    pub(crate) fn machine(&self, number: Number) -> &Machine {
        self.machines.get(number).expect("numbers are the fleet's own")
    }

    pub(crate) fn machine_mut(&mut self, number: Number) -> &mut Machine {
        self.machines.get_mut(number).expect("numbers are the fleet's own")
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.schedule.now_us()
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.schedule.now_us() / 1_000
    }

    /// What each machine has sent and received.
    pub(crate) fn traffic(&self) -> impl Iterator<Item = &Traffic> {
        self.machines.iter().map(|machine| &machine.traffic)
    }

    /// So many paths that nobody has had before.
    pub(crate) fn new_paths(&mut self, count: u32) -> Range<Path> {
        let first = self.next_path;
        self.next_path = first.wrapping_add(count);
        first..self.next_path
    }

    /// Machines that join later, and are not there at the beginning.
    pub(crate) fn joiners(&self) -> Vec<Number> {
        let joins = self.scenario.event.iter().filter(|event| event.what == What::Join);
        joins.filter_map(|event| event.node).map(|node| self.number(node)).collect()
    }

    /// A machine as events name it: negative numbers count from the end.
    pub(crate) fn number(&self, node: i64) -> Number {
        let nodes = i64::try_from(self.scenario.nodes).unwrap_or(1);
        usize::try_from(node.rem_euclid(nodes)).unwrap_or(0)
    }

    /// Whether all machines run, except those that join later.
    pub(crate) fn everyone_runs(&self) -> bool {
        let joiners = self.joiners();
        let running = self.machines.iter().filter(|machine| machine.is_running()).count();
        running + joiners.len() >= self.machines.len()
    }

    /// Bytes of the filters of all peers that a machine trusts.
    pub(crate) fn filters_bytes(&self, number: Number) -> u64 {
        let others = self.machine(number).trusted.iter();
        others.map(|other| u64::from(self.machine(*other).core.publication().filter_bits) / 8).sum()
    }
}
