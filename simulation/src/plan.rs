//! What a scenario plans: events at fixed times, and faults and changes by chance.

use crate::fault::Fault;
use crate::number::Number;
use crate::scenario::{Churn, Event, Faults, Scenario, What};
use crate::schedule::Happening;
use crate::upset::{self, LAST_WORDS_US};
use crate::watch::Watch;
use crate::world::World;

const SECOND_US: u64 = 1_000_000;
const DAY_US: u64 = 86_400 * SECOND_US;
/// How far a wall clock is set wrong at most, milliseconds, ahead or behind.
const SKEW_MS: u64 = 3 * 3_600_000;

/// The plan of a scenario, and how long the fleet takes to agree again after each of its events.
#[derive(Debug)]
pub(crate) struct Plan {
    events: Vec<Event>,
    faults: Faults,
    churn: Churn,
    pub(crate) watch: Watch,
}

impl Plan {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let (events, watch) = (scenario.event.clone(), Watch::new(scenario.watch));
        Self { events, faults: scenario.faults, churn: scenario.churn, watch }
    }

    /// Schedules the first fault, and the first build and collection of each machine.
    pub(crate) fn begin(&self, world: &mut World) {
        self.schedule_fault(world);
        for number in 0..world.fleet.scenario.nodes {
            self.schedule_churn(world, number, false);
            self.schedule_churn(world, number, true);
        }
    }

    /// Schedules all events.
    pub(crate) fn schedule_events(&self, world: &mut World) {
        (0..self.events.len()).for_each(|event| self.schedule_event(world, event));
    }

    fn schedule_event(&self, world: &mut World, at: usize) {
        let Some(event) = self.events.get(at).cloned() else { return };
        for time in 0..event.times {
            let start_us = (event.at_s + time * event.every_s) * SECOND_US;
            let numbers: Vec<Number> = match (&event.site, event.node) {
                (Some(name), _) if event.what != What::Partition => {
                    let site = world.fleet.scenario.site.iter().position(|site| site.name == *name);
                    (0..world.fleet.scenario.nodes)
                        .filter(|number| Some(world.fleet.machine(*number).site) == site)
                        .collect()
                }
                (_, Some(node)) => vec![world.fleet.number(node)],
                // A partition meets its whole site at once. Without a node and a site, any honest machine is met.
                (Some(_), None) => vec![0],
                (None, None) => {
                    let honest =
                        (0..world.fleet.scenario.nodes).filter(|number| world.fleet.machine(*number).is_honest());
                    let honest: Vec<_> = honest.collect();
                    world.fleet.draw.pick(&honest).into_iter().collect()
                }
            };
            for (turn, number) in (0..).zip(numbers) {
                let late_us = turn * event.stagger_ms * 1_000;
                world.fleet.schedule.after_us(start_us + late_us, Happening::Scripted { event: at, number });
            }
        }
    }

    pub(crate) fn run_scripted(&mut self, world: &mut World, at: usize, number: Number) {
        let Some(event) = self.events.get(at).cloned() else { return };
        let for_us = event.for_s * SECOND_US;
        world.trace.add_scripted(world.fleet.now_us(), number, event.what as u64);
        world.story.tell_scripted(world.fleet.now_us() / 1_000, number, event.what);
        world.figures.on_first_event(world.fleet.now_us(), world.fleet.traffic());
        match event.what {
            What::Build => upset::build(world, number, event.paths),
            What::Collect => upset::collect(world, number, event.permille),
            What::Crash => upset::crash(world, number, true, for_us),
            What::CrashWithoutState => upset::crash(world, number, false, for_us),
            What::Restart => upset::restart(world, number, for_us),
            What::Sleep => upset::sleep(world, number, for_us),
            What::Partition => match event.but {
                Some(but) => upset::isolate(world, number, world.fleet.number(but), for_us),
                None => upset::partition(world, number, event.site.as_deref(), for_us),
            },
            What::Join => {
                world.figures.on_joined(world.fleet.now_us(), number);
                world.start(number, false);
            }
            What::Skew => {
                let machine = world.fleet.machine_mut(number);
                machine.skew_ms = event.by_s * 1_000;
                machine.ever_skewed |= event.by_s != 0;
            }
            What::Move => upset::leave(world, number, for_us),
            What::Withhold => upset::withhold(world, number, for_us),
        }
        let last_words_us = if event.what == What::Restart { LAST_WORDS_US } else { 0 };
        self.watch.on_event(world, &event, number, for_us + last_words_us);
    }

    fn schedule_fault(&self, world: &mut World) {
        let every_us = self.faults.every_ms * 1_000;
        if every_us > 0 {
            let wait_us = world.fleet.draw.between(1, 2 * every_us);
            world.fleet.schedule.after_us(wait_us, Happening::Fault);
        }
    }

    pub(crate) fn cause_random_fault(&self, world: &mut World) {
        self.schedule_fault(world);
        // A machine that is about to crash gets no other fault: a clock set wrong now would still be wrong when it starts
        // without its disk.
        let spared =
            |number: &Number| world.fleet.machine(*number).is_running() && !world.fleet.machine(*number).doomed;
        let spared: Vec<_> = (0..world.fleet.scenario.nodes).filter(spared).collect();
        let Some(number) = world.fleet.draw.pick(&spared) else { return };
        let choices = Fault::choices(&self.faults);
        let mut at = world.fleet.draw.below(choices.iter().map(|(weight, _)| weight).sum());
        let chosen = choices.into_iter().find(|(weight, _)| {
            let chosen = at < *weight;
            at = at.saturating_sub(*weight);
            chosen
        });
        let Some((_, fault)) = chosen else { return };
        world.totals.faults += 1;
        let for_us = world.fleet.draw.between(200_000, (self.faults.longest_ms * 1_000).max(200_001));
        world.trace.add_fault(world.fleet.now_us(), number, &fault);
        world.story.tell_fault(world.fleet.now_us() / 1_000, number, &fault);
        match fault {
            Fault::Build => {
                let most = if world.fleet.draw.chance(50) { 1_500 } else { 12 };
                let paths = 1 + u32::try_from(world.fleet.draw.below(most)).unwrap_or(0);
                upset::build(world, number, paths);
            }
            Fault::Collect => {
                let most = if world.fleet.draw.chance(100) { 500 } else { 40 };
                let permille = 1 + world.fleet.draw.below(most);
                upset::collect(world, number, permille);
            }
            Fault::Crash { keep_disk } => {
                // Half of the crashes come at once, the others in the middle of the next outputs.
                world.fleet.machine_mut(number).doomed = true;
                if world.fleet.draw.chance(500) {
                    world.stop(number);
                }
                world.fleet.schedule.after_us(for_us, Happening::Start { number, keep_disk });
            }
            Fault::Restart => upset::restart(world, number, for_us),
            Fault::Sleep => upset::sleep(world, number, 4 * for_us),
            Fault::Cut => {
                let link = world.fleet.draw.index(world.network.size());
                world.network.set_cut(&mut world.fleet, link, true);
                world.fleet.schedule.after_us(for_us, Happening::Mend(link));
            }
            Fault::Partition => {
                let side = world.network.separate(&mut world.fleet, |fleet, _| fleet.draw.chance(500));
                world.network.look_at_all_links(&mut world.fleet);
                world.fleet.schedule.after_us(for_us, Happening::Reunite(side));
            }
            Fault::Move => upset::leave(world, number, for_us),
            Fault::Withhold => upset::withhold(world, number, for_us),
            Fault::Distrust => upset::distrust(world, number, for_us),
            // A machine that lost its disk has only its clock to stay above the epochs that it used before.
            Fault::Skew if world.fleet.machine(number).blank => {}
            Fault::Skew => {
                let skew_ms = i64::try_from(world.fleet.draw.below(2 * SKEW_MS)).unwrap_or(0);
                let machine = world.fleet.machine_mut(number);
                machine.skew_ms = skew_ms - i64::try_from(SKEW_MS).unwrap_or(0);
                machine.ever_skewed = true;
            }
        }
    }

    fn schedule_churn(&self, world: &mut World, number: Number, collect: bool) {
        let churn = self.churn;
        let per_day = if collect { churn.collections_per_day } else { churn.builds_per_day };
        if let Some(mean_us) = DAY_US.checked_div(per_day) {
            let wait_us = world.fleet.draw.between(1, 2 * mean_us);
            world.fleet.schedule.after_us(wait_us, Happening::Churn { number, collect });
        }
    }

    pub(crate) fn churn(&self, world: &mut World, number: Number, collect: bool) {
        if world.fleet.machine(number).is_running() {
            if collect {
                upset::collect(world, number, self.churn.collect_permille);
            } else {
                let paths = world.fleet.draw.build_size();
                upset::build(world, number, paths);
            }
        }
        self.schedule_churn(world, number, collect);
    }
}
