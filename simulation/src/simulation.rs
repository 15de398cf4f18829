//! One run: what is due next happens next, and nothing else happens.

use crate::lookups;
use crate::plan::Plan;
use crate::scenario::Scenario;
use crate::schedule::Happening;
use crate::story::Story;
use crate::tricks;
use crate::upset;
use crate::world::World;

/// The world of one run, and what is planned to happen to it.
#[derive(Debug)]
pub(crate) struct Simulation {
    pub(crate) world: World,
    pub(crate) plan: Plan,
}

impl Simulation {
    pub(crate) fn new(scenario: Scenario, seed: u64, story: Story) -> Self {
        let plan = Plan::new(&scenario);
        Self { world: World::new(scenario, seed, story), plan }
    }

    /// Ends the settling time: from now on there are churn, faults, events and tricks.
    pub(crate) fn begin(&mut self) {
        let Self { world, plan } = self;
        world.figures.begin(world.fleet.now_us(), world.fleet.traffic());
        world.fleet.schedule.after_us(0, Happening::Lookups);
        plan.begin(world);
        (0..world.fleet.machines.len()).for_each(|number| tricks::schedule_trick(world, number));
        plan.schedule_events(world);
    }

    /// Handles all that is due until `end_us`.
    pub(crate) fn run_until(&mut self, end_us: u64) {
        while let Some(happening) = self.world.fleet.schedule.pop_until(end_us) {
            self.handle(happening);
        }
    }

    /// Ends all faults: everything runs, everything passes, trust is mutual again, clocks are right.
    pub(crate) fn heal(&mut self) {
        self.world.fleet.healed = true;
        // Faults that would end later end now, and no new ones come. All else goes on as planned.
        let ends = self.world.fleet.schedule.take_ends_of_faults();
        ends.into_iter().for_each(|happening| self.handle(happening));
        self.world.fleet.machines.iter_mut().for_each(|machine| machine.skew_ms = 0);
    }

    fn handle(&mut self, happening: Happening) {
        let Self { world, plan } = self;
        match happening {
            Happening::Tick(number) => world.on_tick(number),
            Happening::Heartbeat(number, run) => world.on_heartbeat(number, run),
            Happening::Arrive { connection, sent } => world.on_arrival(connection, sent),
            Happening::Deliver { from, to, connection, message } => world.deliver(from, to, connection, message),
            Happening::Dial { link, plan } => world.network.dial(&mut world.fleet, link, plan),
            Happening::Connected { link, plan, dialler } => world.connect(link, plan, dialler),
            Happening::Resume { link, connection } => world.network.resume(&mut world.fleet, link, connection),
            Happening::GivenUp { link, connection, blocked_us } => world.on_given_up(link, connection, blocked_us),
            Happening::Fault => plan.cause_random_fault(world),
            Happening::Churn { number, collect } => plan.churn(world, number, collect),
            Happening::Lookups => lookups::run_lookups(world),
            Happening::Sample => sample(world),
            Happening::Trick(number) => tricks::play_trick(world, number),
            Happening::Scripted { event, number } => plan.run_scripted(world, event, number),
            Happening::Wake(number) => upset::wake(world, number),
            Happening::Stop(number) => world.stop(number),
            Happening::Start { number, keep_disk } => world.start(number, keep_disk),
            Happening::Read { number, reading } => world.on_store_read(number, reading),
            Happening::Mend(link) => world.network.set_cut(&mut world.fleet, link, false),
            Happening::Reunite(side) => world.network.reunite(&mut world.fleet, side),
            Happening::Moved(number) => upset::on_moved(world, number),
            Happening::Frank(number) => world.fleet.machine_mut(number).withholding = false,
            Happening::Watched(figure) => plan.watch.on_event_ended(world, figure),
            Happening::Look => plan.watch.look(world),
            Happening::Trust(a, b) => upset::trust(world, a, b),
        }
    }
}

/// Adds a point to the curves, and does what must be tidied up now and then.
fn sample(world: &mut World) {
    world.fleet.schedule.after_us(world.figures.bucket_us, Happening::Sample);
    let now_us = world.fleet.now_us();
    world.gossipsub.forget_published(now_us);
    world.checker.check_lifetimes(&world.fleet.machines, now_us);
    world.figures.sample(now_us, world.fleet.traffic());
}
