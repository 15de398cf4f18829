//! Faults and changes, done to the machines.

use crate::faults::Fault;
use crate::machine::{Machine, Number, State};
use crate::world::{Happening, World};
use narmesh_gossip::{Input, PathChange};

impl World {
    pub(crate) fn schedule_fault(&mut self) {
        let wait_ms = self.draw.between(1, 2 * self.faults.every_ms);
        self.after(wait_ms, Happening::Fault);
    }

    pub(crate) fn fault(&mut self) {
        self.totals.faults += 1;
        let running: Vec<_> = (0..self.machines.len())
            .filter(|number| self.machines.get(*number).is_some_and(Machine::is_running))
            .collect();
        let Some(number) = self.draw.pick(&running) else { return };
        let fault = Fault::draw(&mut self.draw);
        self.trace.fault(self.now_ms, number, &fault);
        match fault {
            Fault::Build { paths } => {
                let first = self.next_path;
                self.next_path = self.next_path.wrapping_add(u32::try_from(paths).unwrap_or(1));
                let added: Vec<_> = (first..self.next_path).collect();
                self.change_paths(number, added, vec![]);
            }
            Fault::Collect { permille } => {
                let Some(machine) = self.machines.get(number) else { return };
                let removed: Vec<_> = machine.paths.iter().copied().filter(|_| self.draw.chance(permille)).collect();
                self.change_paths(number, vec![], removed);
            }
            Fault::Crash { keep_disk, for_ms } => {
                let Some(machine) = self.machines.get_mut(number) else { return };
                machine.doomed = true;
                let keep_disk = keep_disk || machine.ever_skewed;
                if self.draw.chance(500) {
                    self.stop(number);
                }
                self.after(for_ms, Happening::Start { number, keep_disk });
            }
            Fault::Sleep { for_ms } => {
                if let Some(machine) = self.machines.get_mut(number) {
                    machine.state = State::Asleep;
                }
                self.after(for_ms, Happening::Wake(number));
                self.dial_missing();
            }
            Fault::Cut { for_ms } => {
                let pairs: Vec<_> = self.links.keys().copied().collect();
                let Some((a, b)) = self.draw.pick(&pairs) else { return };
                if let Some(link) = self.links.get_mut(&(a, b)) {
                    link.cut = true;
                }
                self.after(for_ms, Happening::Mend(a, b));
                self.dial_missing();
            }
            Fault::Partition { for_ms } => {
                for side in &mut self.sides {
                    *side = self.draw.chance(500);
                }
                self.after(for_ms, Happening::Reunite);
                self.dial_missing();
            }
            Fault::Distrust { for_ms } => self.distrust(number, for_ms),
            Fault::Skew => {
                let skew_ms = i64::try_from(self.draw.below(6 * 3_600_000)).unwrap_or(0) - 3 * 3_600_000;
                if let Some(machine) = self.machines.get_mut(number) {
                    machine.skew_ms = skew_ms;
                    machine.ever_skewed = true;
                }
            }
        }
    }

    pub(crate) fn distrust(&mut self, number: Number, for_ms: u64) {
        let Some(machine) = self.machines.get_mut(number) else { return };
        let trusted: Vec<_> = machine.trusted.iter().copied().collect();
        let Some(other) = self.draw.pick(&trusted) else { return };
        machine.trusted.remove(&other);
        self.allow(number);
        self.dial_missing();
        self.after(for_ms, Happening::Trust(number, other));
    }

    pub(crate) fn change_paths(&mut self, number: Number, added: Vec<u32>, removed: Vec<u32>) {
        let Some(machine) = self.machines.get_mut(number) else { return };
        machine.paths.retain(|path| !removed.contains(path));
        machine.paths.extend(&added);
        let parts = |paths: Vec<u32>| paths.into_iter().map(crate::machine::part).collect();
        self.input(number, Input::Paths(PathChange::Update { added: parts(added), removed: parts(removed) }));
    }
}
