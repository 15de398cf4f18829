//! Who runs, who knows whom, and how machines come and go.

use crate::draw::Draw;
use crate::gossipsub::FIRST_HEARTBEAT_US;
use crate::machine::State;
use crate::network::Link;
use crate::number::Number;
use crate::scenario::Scenario;
use crate::schedule::Happening;
use crate::world::World;
use narmesh_gossip::Input;
use std::collections::BTreeSet;
use std::sync::Arc;

impl World {
    /// Starts all machines that do not join later, within two seconds.
    pub(crate) fn schedule_first_boot(&mut self) {
        self.schedule_after_us(self.figures.bucket_us, Happening::Sample);
        let joins = self.joiners();
        for number in 0..self.machines.len() {
            let wait_us = self.draw.below(2_000_000);
            if !joins.contains(&number) {
                self.schedule_after_us(wait_us, Happening::Start { number, keep_disk: true });
            }
        }
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

    /// Tells a core its allowlist, and ends connections that it forbids.
    pub(crate) fn allow(&mut self, number: Number) {
        let trusted = Arc::clone(&self.machine(number).trusted);
        let peers = trusted.iter().map(|other| self.machine(*other).peer).collect();
        if self.machine(number).is_running() {
            self.machine_mut(number).told = Arc::clone(&trusted);
        }
        self.feed(number, Input::Allowlist(peers));
        let links: Vec<_> = self.neighbours.get(number).into_iter().flatten().copied().collect();
        for (other, link) in links {
            if !self.machine(other).trusted.contains(&number) || !trusted.contains(&other) {
                self.close(link);
            }
        }
    }

    pub(crate) fn start(&mut self, number: Number, keep_disk: bool) {
        let now_ms = self.now_ms();
        if self.machine(number).doomed {
            self.stop(number);
        }
        if self.machine(number).state != State::Down {
            return;
        }
        // The clock may have been set wrong after the disk was lost. Then the machine could use epochs, ahead of the right
        // time or behind it, a second time.
        let keep_disk = keep_disk || self.machine(number).ever_skewed;
        if !keep_disk {
            self.checker.on_disk_lost(number);
        }
        let machine = self.machines.get_mut(number).expect("numbers are the world's own");
        machine.start(now_ms, keep_disk, &mut self.draw);
        let run = machine.run;
        let now_us = self.now_us;
        self.figures.on_restarted(now_us, number);
        self.allow(number);
        let addresses = self.machine(number).addresses(number);
        self.feed(number, Input::Addresses(addresses));
        self.read_store(number);
        self.schedule_after_us(FIRST_HEARTBEAT_US, Happening::Heartbeat(number, run));
        self.dial_all_of(number);
    }

    /// A machine that starts again needs a while to read its store; it talks with others meanwhile.
    fn read_store(&mut self, number: Number) {
        self.counter += 1;
        let reading = self.counter;
        self.machine_mut(number).reading = Some(reading);
        if self.scenario.faults.read_ms == 0 || self.figures.begun_us.is_none() || self.healed {
            return self.on_store_read(number, reading);
        }
        let wait_us = self.draw.below(self.scenario.faults.read_ms * 1_000);
        self.schedule_after_us(wait_us, Happening::Read { number, reading });
    }

    /// A machine has read its store. One that sleeps tells its core when it wakes.
    pub(crate) fn on_store_read(&mut self, number: Number, reading: u64) {
        let machine = self.machine_mut(number);
        if machine.is_running() && machine.reading == Some(reading) {
            machine.reading = None;
            let paths = machine.all_paths();
            self.feed(number, paths);
        }
    }

    pub(crate) fn stop(&mut self, number: Number) {
        self.machine_mut(number).state = State::Down;
        self.machine_mut(number).doomed = false;
        self.machine_mut(number).reading = None;
        self.checker.on_stopped(number);
        self.judging.retain(|(machine, _), _| *machine != number);
        let links: Vec<_> = self.neighbours.get(number).into_iter().flatten().map(|(_, link)| *link).collect();
        links.into_iter().for_each(|link| self.close(link));
    }
}

/// Who has an address of whom: each machine wants a number of connections, to machines chosen at random.
pub(crate) fn draw_topology(
    draw: &mut Draw,
    scenario: &Scenario,
    machines: usize,
) -> (Vec<Vec<(Number, usize)>>, Vec<Link>) {
    let nodes = scenario.nodes;
    let wanted = scenario.connections.min(nodes - 1);
    let mut pairs = BTreeSet::new();
    let mut degrees = vec![0usize; nodes];
    for a in 0..nodes {
        let others: Vec<_> = (0..nodes).filter(|b| *b != a && !pairs.contains(&(a.min(*b), a.max(*b)))).collect();
        let mut others = draw.some(others, nodes);
        // Machines that have room come first.
        others.sort_by_key(|b| degrees.get(*b).copied().unwrap_or(0) >= wanted);
        for b in others {
            if degrees.get(a).copied().unwrap_or(0) >= wanted {
                break;
            }
            pairs.insert((a.min(b), a.max(b)));
            [a, b].iter().filter_map(|end| degrees.get_mut(*end).map(|degree| *degree += 1)).for_each(drop);
        }
    }
    let mut neighbours = vec![Vec::new(); machines];
    let mut links = Vec::new();
    for (a, b) in pairs {
        for (number, other) in [(a, b), (b, a)] {
            if let Some(list) = neighbours.get_mut(number) {
                list.push((other, links.len()));
            }
        }
        links.push(Link::between(a, b));
    }
    neighbours.iter_mut().for_each(|list| list.sort_unstable());
    (neighbours, links)
}
