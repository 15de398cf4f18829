//! Machines, links and a virtual clock: what is due next happens next, and nothing else.

use crate::checker::Checker;
use crate::draw::Draw;
use crate::faults::Faults;
use crate::machine::{Machine, Number, State};
use crate::network::{Copy, LINKS, Link, Message, key};
use crate::trace::Trace;
use narmesh_gossip::{Event, Input, Output, Record, Verdict};
use std::collections::{BTreeMap, BTreeSet};

/// A request that was lost fails at the asker after this, milliseconds: the daemon's request timeout.
const REQUEST_TIMEOUT_MS: u64 = 10_000;
/// What is due at some moment.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Tick(Number),
    /// Over a link, as long as it is the same connection.
    Arrive {
        from: Number,
        to: Number,
        connection: u64,
        message: Message,
    },
    Dial(Number, Number),
    Lost(Number, Number, u64),
    Fault,
    Wake(Number),
    Start {
        number: Number,
        keep_disk: bool,
    },
    Mend(Number, Number),
    Reunite,
    Trust(Number, Number),
}

/// Counted over a whole run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Totals {
    /// Inputs that the cores have handled.
    pub inputs: u64,
    /// Faults and changes.
    pub faults: u64,
    /// Announcements published.
    pub announcements: u64,
    /// Copies of announcements that arrived.
    pub gossip_copies: u64,
    /// Bytes of bodies, deltas and syncs that arrived.
    pub control_bytes: u64,
    /// Bodies that went into a table.
    pub bodies: u64,
}

/// The world of one run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now_ms: u64,
    pub(crate) machines: Vec<Machine>,
    pub(crate) checker: Checker,
    pub(crate) trace: Trace,
    pub(crate) totals: Totals,
    pub(crate) draw: Draw,
    pub(crate) faults: Faults,
    pub(crate) faulty: bool,
    pub(crate) links: BTreeMap<(Number, Number), Link>,
    /// Which side of a partition a machine is on.
    pub(crate) sides: Vec<bool>,
    due: BTreeMap<(u64, u64), Happening>,
    pub(crate) counter: u64,
    /// gossipsub messages that a core has yet to judge: which message, and who sent it.
    pub(crate) judging: BTreeMap<(Number, u64), Copy>,
    pub(crate) next_path: u32,
}

impl World {
    /// Machines in a ring, each linked to a few others, most of them trusting each other.
    pub(crate) fn new(nodes: usize, seed: u64, faults: Faults) -> Self {
        let mut draw = Draw::new(seed);
        let mut machines: Vec<_> = (0..nodes).map(|_| Machine::new(&mut draw)).collect();
        let mut strangers = BTreeSet::new();
        for a in 0..nodes {
            for b in a + 1..nodes {
                let neighbours = b - a == 1 || b - a == nodes - 1;
                if !neighbours && draw.chance(150) {
                    strangers.insert((a, b));
                }
            }
        }
        let mut links = BTreeMap::new();
        let link = Link::default();
        for (number, machine) in machines.iter_mut().enumerate() {
            machine.trusted =
                (0..nodes).filter(|other| *other != number && !strangers.contains(&key(number, *other))).collect();
            machine.paths = (0..draw.between(0, 60))
                .map(|path| (u32::try_from(number).unwrap_or(0) << 20) + u32::try_from(path).unwrap_or(0))
                .collect();
            let trusted: Vec<_> = machine.trusted.iter().copied().collect();
            let wanted =
                (0..LINKS.saturating_sub(2)).filter_map(|_| draw.pick(&trusted)).chain([(number + 1) % nodes.max(1)]);
            links.extend(
                wanted.filter(|other| *other != number).map(|other| (key(number, other), link)).collect::<Vec<_>>(),
            );
        }
        let checker = Checker::new(&machines);
        let mut world = Self {
            now_ms: 0,
            machines,
            checker,
            trace: Trace::new(seed),
            totals: Totals::default(),
            draw,
            faults,
            faulty: true,
            links,
            sides: vec![false; nodes],
            due: BTreeMap::new(),
            counter: 0,
            judging: BTreeMap::new(),
            next_path: 1 << 31,
        };
        (0..nodes).for_each(|number| world.boot(number));
        world.dial_missing();
        world.schedule_fault();
        world
    }

    /// Runs until `end_ms`.
    pub(crate) fn run_until(&mut self, end_ms: u64) {
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > end_ms {
                break;
            }
            self.now_ms = entry.key().0;
            let happening = entry.remove();
            self.happen(happening);
        }
        self.now_ms = end_ms;
    }

    /// Ends all faults: everything runs, every link can be dialled, trust is mutual again.
    pub(crate) fn heal(&mut self) {
        self.faulty = false;
        self.faults = Faults::HEALED;
        let pending = std::mem::take(&mut self.due);
        for (at, happening) in pending {
            match happening {
                Happening::Start { .. }
                | Happening::Wake(_)
                | Happening::Mend(..)
                | Happening::Reunite
                | Happening::Trust(..) => {
                    self.happen(happening);
                }
                Happening::Tick(_) | Happening::Arrive { .. } | Happening::Dial(..) | Happening::Lost(..) => {
                    self.due.insert(at, happening);
                }
                Happening::Fault => {}
            }
        }
        self.sides.fill(false);
        for number in 0..self.machines.len() {
            if let Some(machine) = self.machines.get_mut(number) {
                machine.skew_ms = 0;
            }
        }
        self.dial_missing();
    }

    /// The links that can carry something, by who trusts whom and who runs.
    pub(crate) fn open_links(&self) -> BTreeSet<(Number, Number)> {
        self.links.keys().copied().filter(|(a, b)| self.may_connect(*a, *b)).collect()
    }

    pub(crate) fn after(&mut self, ms: u64, happening: Happening) {
        self.counter += 1;
        self.due.insert((self.now_ms + ms, self.counter), happening);
    }

    fn boot(&mut self, number: Number) {
        let Some(machine) = self.machines.get(number) else { return };
        let trusted = machine.trusted.iter().filter_map(|other| self.machines.get(*other)).map(|other| other.peer);
        let (allowlist, paths) = (Input::Allowlist(trusted.collect()), machine.all_paths());
        self.input(number, allowlist);
        self.input(number, paths);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick(number) => self.tick(number),
            Happening::Arrive { from, to, connection, message } => self.arrive(from, to, connection, message),
            Happening::Dial(a, b) => self.dial(a, b),
            Happening::Lost(a, b, connection) => self.lost(a, b, connection),
            Happening::Fault => {
                if self.faulty {
                    self.fault();
                    self.schedule_fault();
                }
            }
            Happening::Wake(number) => {
                if let Some(machine) = self.machines.get_mut(number).filter(|machine| machine.state == State::Asleep) {
                    machine.state = State::Running;
                    self.reset_links(number);
                    // Whatever its operator changed meanwhile.
                    self.allow(number);
                }
            }
            Happening::Start { number, keep_disk } => {
                let now_ms = self.now_ms;
                if self.machines.get(number).is_some_and(|machine| machine.doomed) {
                    self.stop(number);
                }
                if let Some(machine) = self.machines.get_mut(number).filter(|machine| machine.state == State::Down) {
                    if !keep_disk {
                        self.checker.disk_lost(number);
                    }
                    machine.start(now_ms, keep_disk, &mut self.draw);
                    self.boot(number);
                    self.dial_missing();
                }
            }
            Happening::Mend(a, b) => {
                if let Some(link) = self.links.get_mut(&key(a, b)) {
                    link.cut = false;
                }
                self.dial_missing();
            }
            Happening::Reunite => {
                self.sides.fill(false);
                self.dial_missing();
            }
            Happening::Trust(a, b) => {
                if let Some(machine) = self.machines.get_mut(a) {
                    machine.trusted.insert(b);
                }
                self.allow(a);
                self.dial_missing();
            }
        }
    }

    fn tick(&mut self, number: Number) {
        let now_ms = self.now_ms;
        let Some(machine) = self.machines.get_mut(number) else { return };
        machine.tick = None;
        if machine.is_running() {
            if machine.core.deadline().is_some_and(|deadline| deadline.0 <= now_ms) {
                self.input(number, Input::Tick);
            } else {
                self.set_alarm(number);
            }
        }
    }

    /// Feeds one input and performs what comes of it; a doomed machine stops in the middle.
    pub(crate) fn input(&mut self, number: Number, input: Input) {
        let now_ms = self.now_ms;
        let Some(machine) = self.machines.get_mut(number).filter(|machine| machine.is_running()) else { return };
        self.totals.inputs += 1;
        self.trace.input(now_ms, number, &input);
        let changes_allowlist = matches!(input, Input::Allowlist(_));
        machine.core.handle(machine.now(now_ms), input);
        let outputs: Vec<_> = std::iter::from_fn(|| machine.core.poll()).collect();
        let performed = if machine.doomed { self.draw.index(outputs.len() + 1) } else { outputs.len() };
        let stops = machine.doomed;
        for output in outputs.into_iter().take(performed) {
            self.trace.output(&output);
            self.perform(number, output);
        }
        if stops {
            self.stop(number);
            return;
        }
        if changes_allowlist && let Some(machine) = self.machines.get(number) {
            self.checker.allowlist(number, machine);
        }
        self.set_alarm(number);
    }

    pub(crate) fn set_alarm(&mut self, number: Number) {
        let now_ms = self.now_ms;
        let Some(machine) = self.machines.get_mut(number).filter(|machine| machine.is_running()) else { return };
        let Some(deadline) = machine.core.deadline().map(|deadline| deadline.0.max(now_ms)) else { return };
        if machine.tick.is_none_or(|tick| tick > deadline) {
            machine.tick = Some(deadline);
            self.after(deadline - now_ms, Happening::Tick(number));
        }
    }

    fn perform(&mut self, number: Number, output: Output) {
        match output {
            Output::Persist(record) => {
                if let Record::Forget(peer) = &record {
                    self.checker.forgot(number, peer);
                }
                if let Some(machine) = self.machines.get_mut(number) {
                    machine.persist(record);
                }
            }
            Output::Publish(bytes) => {
                self.totals.announcements += 1;
                self.counter += 1;
                let id = self.counter;
                let Some(machine) = self.machines.get_mut(number) else { return };
                machine.seen.insert(id);
                let author = machine.peer;
                self.checker.published(number, machine, &bytes);
                self.forward(number, None, id, author, &bytes.into());
            }
            Output::Judge { id, verdict } => {
                if let Some(copy) = self.judging.remove(&(number, id))
                    && verdict == Verdict::Accept
                {
                    self.forward(number, Some(copy.from), id, copy.author, &copy.bytes);
                }
            }
            Output::Request { to, id, bytes } => {
                if let Some(to) = self.checker.number(&to) {
                    self.send(number, to, Message::Request { id, bytes });
                    let timeout = Message::Timeout { id };
                    self.after(
                        REQUEST_TIMEOUT_MS,
                        Happening::Arrive { from: to, to: number, connection: 0, message: timeout },
                    );
                }
            }
            Output::Respond { to, id, bytes } => {
                if let Some(to) = self.checker.number(&to) {
                    self.send(number, to, Message::Response { id, bytes });
                }
            }
            Output::Penalize { peer, misdeed } => self.checker.blamed(number, &peer, misdeed),
            Output::Event(event) => self.event(number, &event),
        }
    }

    fn event(&mut self, number: Number, event: &Event) {
        let Some(machine) = self.machines.get(number) else { return };
        match event {
            Event::Announced { peer, generation, .. } => self.checker.announced(number, peer, *generation),
            Event::BodyPulled { owner, generation, .. } => {
                self.totals.bodies += 1;
                self.checker.body(number, machine, owner, *generation);
            }
            Event::Published { .. }
            | Event::Overtaken { .. }
            | Event::PullGivenUp { .. }
            | Event::AddressesLearned { .. }
            | Event::Expired { .. }
            | Event::Departed { .. }
            | Event::StoreDirDiffers { .. }
            | Event::Greeted { .. }
            | Event::UnknownVersion { .. }
            | Event::UnknownHashId { .. }
            | Event::ClockDiffers { .. }
            | Event::SetAside { .. }
            | Event::Demoted { .. } => {}
        }
    }

    pub(crate) fn allow(&mut self, number: Number) {
        let Some(machine) = self.machines.get(number) else { return };
        let trusted = machine.trusted.iter().filter_map(|other| self.machines.get(*other)).map(|other| other.peer);
        let allowlist = Input::Allowlist(trusted.collect());
        self.input(number, allowlist);
    }

    pub(crate) fn stop(&mut self, number: Number) {
        if let Some(machine) = self.machines.get_mut(number) {
            machine.state = State::Down;
        }
        self.judging.retain(|(machine, _), _| *machine != number);
        self.dial_missing();
    }
}
