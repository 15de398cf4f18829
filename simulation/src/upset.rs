//! Faults, events and ordinary life, done to the machines.

use crate::fault::Fault;
use crate::fleet::Fleet;
use crate::machine::{Machine, State};
use crate::number::{Number, Path, part};
use crate::scenario::What;
use crate::schedule::Happening;
use crate::world::World;
use narmesh_gossip::{Input, PathChange};
use std::sync::Arc;

const SECOND_US: u64 = 1_000_000;
const DAY_US: u64 = 86_400 * SECOND_US;
/// Time between a goodbye and the end of the process, microseconds.
const LAST_WORDS_US: u64 = 300_000;
/// How far a wall clock is set wrong at most, milliseconds, ahead or behind.
const SKEW_MS: u64 = 3 * 3_600_000;

impl World {
    /// Ends the settling time: from now on there are churn, faults, events and tricks.
    pub(crate) fn begin(&mut self) {
        self.before_begin = self.fleet.machines.iter().map(|machine| machine.traffic.clone()).collect();
        self.figures.begin(self.fleet.now_us(), self.fleet.traffic());
        self.fleet.schedule.after_us(0, Happening::Lookups);
        self.schedule_fault();
        for number in 0..self.fleet.scenario.nodes {
            self.schedule_churn(number, false);
            self.schedule_churn(number, true);
        }
        for number in 0..self.fleet.machines.len() {
            if self.fleet.machine(number).malice.is_some() {
                self.schedule_trick(number);
            }
        }
        for event in 0..self.fleet.scenario.event.len() {
            self.schedule_event(event);
        }
    }

    fn schedule_event(&mut self, at: usize) {
        let Some(event) = self.fleet.scenario.event.get(at).cloned() else { return };
        for time in 0..event.times {
            let start_us = (event.at_s + time * event.every_s) * SECOND_US;
            let numbers: Vec<Number> = match (&event.site, event.node) {
                (Some(name), _) if event.what != What::Partition => {
                    let site = self.fleet.scenario.site.iter().position(|site| site.name == *name);
                    (0..self.fleet.scenario.nodes)
                        .filter(|number| Some(self.fleet.machine(*number).site) == site)
                        .collect()
                }
                (_, Some(node)) => vec![self.fleet.number(node)],
                // A partition meets its whole site at once. Without a node and a site, any honest machine is met.
                (Some(_), None) => vec![0],
                (None, None) => {
                    let honest =
                        (0..self.fleet.scenario.nodes).filter(|number| self.fleet.machine(*number).is_honest());
                    let honest: Vec<_> = honest.collect();
                    self.fleet.draw.pick(&honest).into_iter().collect()
                }
            };
            for (turn, number) in (0..).zip(numbers) {
                let late_us = turn * event.stagger_ms * 1_000;
                self.fleet.schedule.after_us(start_us + late_us, Happening::Scripted { event: at, number });
            }
        }
    }

    pub(crate) fn run_scripted(&mut self, at: usize, number: Number) {
        let Some(event) = self.fleet.scenario.event.get(at).cloned() else { return };
        let for_us = event.for_s * SECOND_US;
        self.trace.add_scripted(self.fleet.now_us(), number, event.what as u64);
        self.story.tell_scripted(self.fleet.now_us() / 1_000, number, event.what);
        self.figures.on_first_event(self.fleet.now_us(), self.fleet.traffic());
        match event.what {
            What::Build => self.build(number, event.paths),
            What::Collect => self.collect(number, event.permille),
            What::Crash => self.crash(number, true, for_us),
            What::CrashWithoutState => self.crash(number, false, for_us),
            What::Restart => self.restart(number, for_us),
            What::Sleep => self.sleep(number, for_us),
            What::Partition => match event.but {
                Some(but) => self.isolate(number, self.fleet.number(but), for_us),
                None => self.partition(number, event.site.as_deref(), for_us),
            },
            What::Join => {
                self.figures.on_joined(self.fleet.now_us(), number);
                self.start(number, false);
            }
            What::Skew => {
                let machine = self.fleet.machine_mut(number);
                machine.skew_ms = event.by_s * 1_000;
                machine.ever_skewed |= event.by_s != 0;
            }
            What::Move => self.leave(number, for_us),
            What::Withhold => self.withhold(number, for_us),
        }
        let last_words_us = if event.what == What::Restart { LAST_WORDS_US } else { 0 };
        self.watch_event(at, number, for_us + last_words_us);
    }

    /// Cuts a site, or a machine, off from all others.
    fn partition(&mut self, number: Number, site: Option<&str>, for_us: u64) {
        let site = site.and_then(|name| self.fleet.scenario.site.iter().position(|site| site.name == name));
        let apart = |fleet: &mut Fleet, other| site.map_or(other == number, |site| fleet.machine(other).site == site);
        let side = self.network.separate(&mut self.fleet, apart);
        self.network.look_at_all_links(&mut self.fleet);
        self.fleet.schedule.after_us(for_us, Happening::Reunite(side));
    }

    /// Cuts a machine off from all others but one.
    fn isolate(&mut self, number: Number, but: Number, for_us: u64) {
        for (other, at) in self.network.neighbours_of(number).to_vec() {
            if other != but {
                self.network.set_cut(&mut self.fleet, at, true);
                self.fleet.schedule.after_us(for_us, Happening::Mend(at));
            }
        }
    }

    fn schedule_fault(&mut self) {
        let every_us = self.fleet.scenario.faults.every_ms * 1_000;
        if every_us > 0 {
            let wait_us = self.fleet.draw.between(1, 2 * every_us);
            self.fleet.schedule.after_us(wait_us, Happening::Fault);
        }
    }

    pub(crate) fn cause_random_fault(&mut self) {
        self.schedule_fault();
        // A machine that is about to crash gets no other fault: a clock set wrong now would still be wrong when it starts
        // without its disk.
        let spared = |number: &Number| self.fleet.machine(*number).is_running() && !self.fleet.machine(*number).doomed;
        let spared: Vec<_> = (0..self.fleet.scenario.nodes).filter(spared).collect();
        let Some(number) = self.fleet.draw.pick(&spared) else { return };
        let choices = Fault::choices(&self.fleet.scenario.faults);
        let mut at = self.fleet.draw.below(choices.iter().map(|(weight, _)| weight).sum());
        let chosen = choices.into_iter().find(|(weight, _)| {
            let chosen = at < *weight;
            at = at.saturating_sub(*weight);
            chosen
        });
        let Some((_, fault)) = chosen else { return };
        self.totals.faults += 1;
        let for_us = self.fleet.draw.between(200_000, (self.fleet.scenario.faults.longest_ms * 1_000).max(200_001));
        self.trace.add_fault(self.fleet.now_us(), number, &fault);
        self.story.tell_fault(self.fleet.now_us() / 1_000, number, &fault);
        match fault {
            Fault::Build => {
                let most = if self.fleet.draw.chance(50) { 1_500 } else { 12 };
                let paths = 1 + u32::try_from(self.fleet.draw.below(most)).unwrap_or(0);
                self.build(number, paths);
            }
            Fault::Collect => {
                let most = if self.fleet.draw.chance(100) { 500 } else { 40 };
                let permille = 1 + self.fleet.draw.below(most);
                self.collect(number, permille);
            }
            Fault::Crash { keep_disk } => {
                // Half of the crashes come at once, the others in the middle of the next outputs.
                self.fleet.machine_mut(number).doomed = true;
                if self.fleet.draw.chance(500) {
                    self.stop(number);
                }
                self.fleet.schedule.after_us(for_us, Happening::Start { number, keep_disk });
            }
            Fault::Restart => self.restart(number, for_us),
            Fault::Sleep => self.sleep(number, 4 * for_us),
            Fault::Cut => {
                let link = self.fleet.draw.index(self.network.size());
                self.network.set_cut(&mut self.fleet, link, true);
                self.fleet.schedule.after_us(for_us, Happening::Mend(link));
            }
            Fault::Partition => {
                let side = self.network.separate(&mut self.fleet, |fleet, _| fleet.draw.chance(500));
                self.network.look_at_all_links(&mut self.fleet);
                self.fleet.schedule.after_us(for_us, Happening::Reunite(side));
            }
            Fault::Move => self.leave(number, for_us),
            Fault::Withhold => self.withhold(number, for_us),
            Fault::Distrust => self.distrust(number, for_us),
            // A machine that lost its disk has only its clock to stay above the epochs that it used before.
            Fault::Skew if self.fleet.machine(number).blank => {}
            Fault::Skew => {
                let skew_ms = i64::try_from(self.fleet.draw.below(2 * SKEW_MS)).unwrap_or(0);
                let machine = self.fleet.machine_mut(number);
                machine.skew_ms = skew_ms - i64::try_from(SKEW_MS).unwrap_or(0);
                machine.ever_skewed = true;
            }
        }
    }

    pub(crate) fn build(&mut self, number: Number, paths: u32) {
        let added: Vec<Path> = self.fleet.new_paths(paths).collect();
        self.fleet.machine_mut(number).store.add(added.iter().copied());
        self.figures.on_built(self.fleet.now_us(), number, paths);
        self.tell_paths(number, added, vec![]);
    }

    pub(crate) fn collect(&mut self, number: Number, permille: u64) {
        let draw = &mut self.fleet.draw;
        let machine = self.fleet.machines.get_mut(number).expect("numbers are the fleet's own");
        let removed = machine.store.collect(|| draw.chance(permille));
        self.checker.on_collected(number, &removed);
        self.figures.on_collected(self.fleet.now_us(), number);
        self.tell_paths(number, vec![], removed);
    }

    fn tell_paths(&mut self, number: Number, added: Vec<Path>, removed: Vec<Path>) {
        self.story.tell_paths(self.fleet.now_us() / 1_000, number, &added, &removed);
        if self.fleet.machine(number).reading.is_some() {
            return;
        }
        let parts = |paths: Vec<Path>| paths.into_iter().map(part).collect();
        self.feed(number, Input::Paths(PathChange::Update { added: parts(added), removed: parts(removed) }));
    }

    /// A machine disappears; after `for_us` it is at another address.
    fn leave(&mut self, number: Number, for_us: u64) {
        let side = self.network.separate(&mut self.fleet, |_, other| other == number);
        self.network.look_at_links_of(&mut self.fleet, number);
        self.fleet.schedule.after_us(for_us, Happening::Reunite(side));
        self.fleet.schedule.after_us(for_us, Happening::Moved(number));
    }

    fn withhold(&mut self, number: Number, for_us: u64) {
        self.fleet.machine_mut(number).withholding = true;
        self.fleet.schedule.after_us(for_us, Happening::Frank(number));
    }

    /// Connections from the old address are dead. The machine tells its core the new address and dials from there.
    pub(crate) fn on_moved(&mut self, number: Number) {
        let machine = self.fleet.machine_mut(number);
        machine.moves = machine.moves.wrapping_add(1) % 200;
        let addresses = machine.addresses(number);
        self.network.links_of(number).into_iter().for_each(|link| self.close(link));
        self.feed(number, Input::Addresses(addresses));
        self.network.dial_all_of(&mut self.fleet, number);
    }

    fn crash(&mut self, number: Number, keep_disk: bool, for_us: u64) {
        if self.fleet.machine(number).is_running() {
            self.stop(number);
            self.fleet.schedule.after_us(for_us, Happening::Start { number, keep_disk });
        }
    }

    fn restart(&mut self, number: Number, for_us: u64) {
        if self.fleet.machine(number).is_running() {
            self.feed(number, Input::Goodbye);
            // The daemon gives its last words a moment.
            self.fleet.schedule.after_us(LAST_WORDS_US, Happening::Stop(number));
            self.fleet.schedule.after_us(LAST_WORDS_US + for_us, Happening::Start { number, keep_disk: true });
        }
    }

    fn sleep(&mut self, number: Number, for_us: u64) {
        if self.fleet.machine(number).is_running() {
            self.fleet.machine_mut(number).state = State::Asleep;
            self.network.look_at_links_of(&mut self.fleet, number);
            self.fleet.schedule.after_us(for_us, Happening::Wake(number));
        }
    }

    pub(crate) fn wake(&mut self, number: Number) {
        let machine = self.fleet.machine_mut(number);
        if machine.state != State::Asleep {
            return;
        }
        machine.state = State::Running;
        machine.run += 1;
        let (run, lost) = (machine.run, std::mem::take(&mut machine.lost_asleep));
        for other in lost {
            let peer = self.fleet.machine(other).peer;
            self.feed(number, Input::Disconnected(peer));
        }
        self.fleet.schedule.after_us(1_000, Happening::Heartbeat(number, run));
        self.network.look_at_links_of(&mut self.fleet, number);
        // Tells the core what may have changed meanwhile: where the machine is, and whom its operator trusts.
        let addresses = self.fleet.machine(number).addresses(number);
        self.feed(number, Input::Addresses(addresses));
        self.allow(number);
        if let Some(reading) = self.fleet.machine(number).reading {
            self.on_store_read(number, reading);
        }
        self.network.dial_all_of(&mut self.fleet, number);
    }

    fn distrust(&mut self, number: Number, for_us: u64) {
        let trusted: Vec<_> = self.fleet.machine(number).trusted.iter().copied().collect();
        let Some(other) = self.fleet.draw.pick(&trusted) else { return };
        Arc::make_mut(&mut self.fleet.machine_mut(number).trusted).remove(&other);
        self.allow(number);
        self.fleet.schedule.after_us(for_us, Happening::Trust(number, other));
    }

    pub(crate) fn trust(&mut self, number: Number, other: Number) {
        Arc::make_mut(&mut self.fleet.machine_mut(number).trusted).insert(other);
        self.allow(number);
        self.network.dial_all_of(&mut self.fleet, number);
    }

    fn schedule_churn(&mut self, number: Number, collect: bool) {
        let churn = self.fleet.scenario.churn;
        let per_day = if collect { churn.collections_per_day } else { churn.builds_per_day };
        if let Some(mean_us) = DAY_US.checked_div(per_day) {
            let wait_us = self.fleet.draw.between(1, 2 * mean_us);
            self.fleet.schedule.after_us(wait_us, Happening::Churn { number, collect });
        }
    }

    pub(crate) fn churn(&mut self, number: Number, collect: bool) {
        if self.fleet.machine(number).is_running() {
            if collect {
                self.collect(number, self.fleet.scenario.churn.collect_permille);
            } else {
                let paths = self.fleet.draw.build_size();
                self.build(number, paths);
            }
        }
        self.schedule_churn(number, collect);
    }
}

/// Whether a machine's store has a path now.
pub(crate) fn has(machine: &Machine, path: Path) -> bool {
    machine.store.live.contains(&path)
}
