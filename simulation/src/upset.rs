//! Faults, events and ordinary life, done to the machines.

use crate::cores::gossip::{Input, PathChange};
use crate::fleet::Fleet;
use crate::machine::State;
use crate::number::{Number, Path, part};
use crate::schedule::Happening;
use crate::world::World;
use std::sync::Arc;

/// Time between a goodbye and the end of the process, microseconds.
pub(crate) const LAST_WORDS_US: u64 = 300_000;

/// Cuts a site, or a machine, off from all others.
pub(crate) fn partition(world: &mut World, number: Number, site: Option<&str>, for_us: u64) {
    let site = site.and_then(|name| world.fleet.scenario.site.iter().position(|site| site.name == name));
    let apart = |fleet: &mut Fleet, other| site.map_or(other == number, |site| fleet.machine(other).site == site);
    let side = world.network.separate(&mut world.fleet, apart);
    world.network.look_at_all_links(&mut world.fleet);
    world.fleet.schedule.after_us(for_us, Happening::Reunite(side));
}

/// Cuts a machine off from all others but one.
pub(crate) fn isolate(world: &mut World, number: Number, but: Number, for_us: u64) {
    for (other, at) in world.network.neighbours_of(number).to_vec() {
        if other != but {
            world.network.set_cut(&mut world.fleet, at, true);
            world.fleet.schedule.after_us(for_us, Happening::Mend(at));
        }
    }
}

pub(crate) fn build(world: &mut World, number: Number, paths: u32) {
    let added: Vec<Path> = world.fleet.new_paths(paths).collect();
    world.fleet.machine_mut(number).store.add(added.iter().copied());
    world.figures.on_built(world.fleet.now_us(), number, paths);
    tell_paths(world, number, added, vec![]);
}

pub(crate) fn collect(world: &mut World, number: Number, permille: u64) {
    let draw = &mut world.fleet.draw;
    let machine = world.fleet.machines.get_mut(number).expect("numbers are the fleet's own");
    let removed = machine.store.collect(|| draw.chance(permille));
    world.checker.on_collected(number, &removed);
    world.figures.on_collected(world.fleet.now_us(), number);
    tell_paths(world, number, vec![], removed);
}

fn tell_paths(world: &mut World, number: Number, added: Vec<Path>, removed: Vec<Path>) {
    world.story.tell_paths(world.fleet.now_us() / 1_000, number, &added, &removed);
    if world.fleet.machine(number).reading.is_some() {
        return;
    }
    let parts = |paths: Vec<Path>| paths.into_iter().map(part).collect();
    world.feed(number, Input::Paths(PathChange::Update { added: parts(added), removed: parts(removed) }));
}

/// A machine disappears; after `for_us` it is at another address.
pub(crate) fn leave(world: &mut World, number: Number, for_us: u64) {
    let side = world.network.separate(&mut world.fleet, |_, other| other == number);
    world.network.look_at_links_of(&mut world.fleet, number);
    world.fleet.schedule.after_us(for_us, Happening::Reunite(side));
    world.fleet.schedule.after_us(for_us, Happening::Moved(number));
}

pub(crate) fn withhold(world: &mut World, number: Number, for_us: u64) {
    world.fleet.machine_mut(number).withholding = true;
    world.fleet.schedule.after_us(for_us, Happening::Frank(number));
}

/// Connections from the old address are dead. The machine tells its core the new address and dials from there.
pub(crate) fn on_moved(world: &mut World, number: Number) {
    let machine = world.fleet.machine_mut(number);
    machine.moves = machine.moves.wrapping_add(1) % 200;
    let addresses = machine.addresses(number);
    world.network.links_of(number).into_iter().for_each(|link| world.close(link));
    world.feed(number, Input::Addresses(addresses));
    world.network.dial_all_of(&mut world.fleet, number);
}

pub(crate) fn crash(world: &mut World, number: Number, keep_disk: bool, for_us: u64) {
    if world.fleet.machine(number).is_running() {
        world.stop(number);
        world.fleet.schedule.after_us(for_us, Happening::Start { number, keep_disk });
    }
}

pub(crate) fn restart(world: &mut World, number: Number, for_us: u64) {
    if world.fleet.machine(number).is_running() {
        world.feed(number, Input::Goodbye);
        // The daemon gives its last words a moment.
        world.fleet.schedule.after_us(LAST_WORDS_US, Happening::Stop(number));
        world.fleet.schedule.after_us(LAST_WORDS_US + for_us, Happening::Start { number, keep_disk: true });
    }
}

pub(crate) fn sleep(world: &mut World, number: Number, for_us: u64) {
    if world.fleet.machine(number).is_running() {
        world.fleet.machine_mut(number).state = State::Asleep;
        world.network.look_at_links_of(&mut world.fleet, number);
        world.fleet.schedule.after_us(for_us, Happening::Wake(number));
    }
}

pub(crate) fn wake(world: &mut World, number: Number) {
    let machine = world.fleet.machine_mut(number);
    if machine.state != State::Asleep {
        return;
    }
    machine.state = State::Running;
    machine.run += 1;
    let (run, lost) = (machine.run, std::mem::take(&mut machine.lost_asleep));
    for other in lost {
        let peer = world.fleet.machine(other).peer;
        world.feed(number, Input::Disconnected(peer));
    }
    world.fleet.schedule.after_us(1_000, Happening::Heartbeat(number, run));
    world.network.look_at_links_of(&mut world.fleet, number);
    // Tells the core what may have changed meanwhile: where the machine is, and whom its operator trusts.
    let addresses = world.fleet.machine(number).addresses(number);
    world.feed(number, Input::Addresses(addresses));
    world.allow(number);
    if let Some(reading) = world.fleet.machine(number).reading {
        world.on_store_read(number, reading);
    }
    world.network.dial_all_of(&mut world.fleet, number);
}

pub(crate) fn distrust(world: &mut World, number: Number, for_us: u64) {
    let trusted: Vec<_> = world.fleet.machine(number).trusted.iter().copied().collect();
    let Some(other) = world.fleet.draw.pick(&trusted) else { return };
    Arc::make_mut(&mut world.fleet.machine_mut(number).trusted).remove(&other);
    world.allow(number);
    world.fleet.schedule.after_us(for_us, Happening::Trust(number, other));
}

pub(crate) fn trust(world: &mut World, number: Number, other: Number) {
    Arc::make_mut(&mut world.fleet.machine_mut(number).trusted).insert(other);
    world.allow(number);
    world.network.dial_all_of(&mut world.fleet, number);
}
