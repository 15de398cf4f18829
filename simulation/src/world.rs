//! Machines, links and a virtual clock: what is due next happens next, and nothing else.

use crate::checker::Checker;
use crate::draw::Draw;
use crate::faults::{Fault, Faults};
use crate::machine::{Machine, Number, State};
use crate::trace::Trace;
use libp2p_identity::PeerId;
use narmesh_gossip::{Event, Input, Output, PathChange, Record, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A request that was lost fails at the asker after this, milliseconds: the daemon's request timeout.
const REQUEST_TIMEOUT_MS: u64 = 10_000;
/// A broken connection is noticed after at most this, milliseconds.
const NOTICE_MS: u64 = 5_000;
/// A missing connection is dialled again after at least and at most this, milliseconds.
const DIAL_MS: (u64, u64) = (100, 2_500);
/// Links that each machine wants. The daemon keeps up to 32; fewer make longer ways.
const LINKS: usize = 5;
/// Neighbours to whom gossipsub forwards at once: its mesh degree D.
const MESH_DEGREE: usize = 6;
/// A copy that was lost is asked for after gossipsub's next heartbeat, in so many of a thousand cases.
const RECOVERED_PERMILLE: u64 = 900;

/// What is due at some moment.
#[derive(Clone, Debug)]
enum Happening {
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

#[derive(Clone, Debug)]
enum Message {
    Gossip { id: u64, author: PeerId, bytes: Arc<[u8]> },
    Request { id: u64, bytes: Vec<u8> },
    Response { id: u64, bytes: Vec<u8> },
    Timeout { id: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Link {
    /// The connection's number, when there is one.
    connection: Option<u64>,
    cut: bool,
    dialling: bool,
}

/// A copy of an announcement that a core has yet to judge.
#[derive(Clone, Debug)]
struct Copy {
    from: Number,
    author: PeerId,
    bytes: Arc<[u8]>,
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
    draw: Draw,
    faults: Faults,
    faulty: bool,
    links: BTreeMap<(Number, Number), Link>,
    /// Which side of a partition a machine is on.
    sides: Vec<bool>,
    due: BTreeMap<(u64, u64), Happening>,
    counter: u64,
    /// gossipsub messages that a core has yet to judge: which message, and who sent it.
    judging: BTreeMap<(Number, u64), Copy>,
    next_path: u32,
}

fn key(a: Number, b: Number) -> (Number, Number) {
    (a.min(b), a.max(b))
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
        let link = Link { connection: None, cut: false, dialling: false };
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

    fn after(&mut self, ms: u64, happening: Happening) {
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
    fn input(&mut self, number: Number, input: Input) {
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

    fn set_alarm(&mut self, number: Number) {
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

    /// gossipsub, modelled: a few neighbours at once; what is lost is mostly asked for after the next heartbeat.
    fn forward(&mut self, number: Number, from: Option<Number>, id: u64, author: PeerId, bytes: &Arc<[u8]>) {
        let mut neighbours: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| link.connection.is_some())
            .filter_map(|((a, b), _)| {
                let other = if *a == number { *b } else { *a };
                ((*a == number || *b == number) && Some(other) != from).then_some(other)
            })
            .collect();
        while neighbours.len() > MESH_DEGREE {
            let index = self.draw.index(neighbours.len());
            neighbours.swap_remove(index);
        }
        for to in neighbours {
            let message = Message::Gossip { id, author, bytes: Arc::clone(bytes) };
            if !self.draw.chance(self.faults.loss_permille) {
                self.fly(number, to, 0, message);
            } else if self.draw.chance(RECOVERED_PERMILLE) {
                let heartbeat_ms = self.draw.between(500, 2_000);
                self.fly(number, to, heartbeat_ms, message);
            }
        }
    }

    fn send(&mut self, from: Number, to: Number, message: Message) {
        if self.draw.chance(self.faults.loss_permille) {
            return;
        }
        if self.draw.chance(self.faults.duplicate_permille) {
            self.fly(from, to, 30, message.clone());
        }
        self.fly(from, to, 0, message);
    }

    fn fly(&mut self, from: Number, to: Number, more_ms: u64, message: Message) {
        let connection = self.links.get(&key(from, to)).and_then(|link| link.connection);
        let (least, most) = self.faults.delay_ms;
        let delay_ms = self.draw.between(least, most) + more_ms;
        if let Some(connection) = connection {
            self.after(delay_ms, Happening::Arrive { from, to, connection, message });
        }
    }

    fn arrive(&mut self, from: Number, to: Number, connection: u64, message: Message) {
        let Some(sender) = self.machines.get(from).map(|machine| machine.peer) else { return };
        if let Message::Timeout { id } = message {
            return self.input(to, Input::RequestFailed { to: sender, id });
        }
        let open = self.links.get(&key(from, to)).is_some_and(|link| link.connection == Some(connection));
        let Some(machine) = self.machines.get_mut(to).filter(|machine| open && machine.is_running()) else { return };
        match message {
            Message::Gossip { id, author, bytes } => {
                self.totals.gossip_copies += 1;
                // gossipsub drops copies; now and then one comes through, since its memory of ids ends.
                if machine.seen.insert(id) || self.draw.chance(self.faults.duplicate_permille) {
                    self.judging.insert((to, id), Copy { from, author, bytes: Arc::clone(&bytes) });
                    self.input(to, Input::Announcement { id, author, from: sender, bytes: bytes.to_vec() });
                }
            }
            Message::Request { id, bytes } => {
                self.totals.control_bytes += bytes.len() as u64;
                self.input(to, Input::Request { from: sender, id, bytes });
            }
            Message::Response { id, bytes } => {
                self.totals.control_bytes += bytes.len() as u64;
                self.input(to, Input::Response { from: sender, id, bytes });
            }
            Message::Timeout { .. } => {}
        }
    }

    fn may_connect(&self, a: Number, b: Number) -> bool {
        let side = |number: Number| self.sides.get(number).copied();
        let ready = |a: Number, b: Number| {
            self.machines.get(a).is_some_and(|machine| machine.is_running() && machine.trusted.contains(&b))
        };
        ready(a, b) && ready(b, a) && side(a) == side(b) && self.links.get(&key(a, b)).is_some_and(|link| !link.cut)
    }

    /// Breaks connections that cannot be any more, and dials those that can.
    fn dial_missing(&mut self) {
        let pairs: Vec<_> = self.links.keys().copied().collect();
        for (a, b) in pairs {
            let may = self.may_connect(a, b);
            let Some(link) = self.links.get_mut(&(a, b)) else { continue };
            if let Some(connection) = link.connection.filter(|_| !may) {
                link.connection = None;
                link.dialling = true;
                let notice_ms = self.draw.between(1, NOTICE_MS);
                self.after(notice_ms, Happening::Lost(a, b, connection));
            } else if link.connection.is_none() && may && !link.dialling {
                link.dialling = true;
                let dial_ms = self.draw.between(DIAL_MS.0, DIAL_MS.1);
                self.after(dial_ms, Happening::Dial(a, b));
            }
        }
    }

    /// Both ends have noticed that a connection is gone.
    fn lost(&mut self, a: Number, b: Number, _connection: u64) {
        if let Some(link) = self.links.get_mut(&key(a, b)) {
            link.dialling = false;
        }
        self.disconnected(a, b);
        self.dial_missing();
    }

    fn disconnected(&mut self, a: Number, b: Number) {
        for (number, other) in [(a, b), (b, a)] {
            if let Some(peer) = self.machines.get(other).map(|machine| machine.peer) {
                self.input(number, Input::Disconnected(peer));
            }
        }
    }

    fn dial(&mut self, a: Number, b: Number) {
        let may = self.may_connect(a, b);
        self.counter += 1;
        let connection = self.counter;
        let Some(link) = self.links.get_mut(&key(a, b)) else { return };
        link.dialling = false;
        if !may || link.connection.is_some() {
            return;
        }
        link.connection = Some(connection);
        for (number, other) in [(a, b), (b, a)] {
            if let Some(peer) = self.machines.get(other).map(|machine| machine.peer) {
                self.input(number, Input::Connected(peer));
            }
        }
    }

    /// A machine that wakes up finds all its connections gone.
    fn reset_links(&mut self, number: Number) {
        let others: Vec<_> = self
            .links
            .iter()
            .filter(|((a, b), link)| (*a == number || *b == number) && link.connection.is_none())
            .map(|(pair, _)| *pair)
            .collect();
        for (a, b) in others {
            let other = if a == number { b } else { a };
            if let Some(peer) = self.machines.get(other).map(|machine| machine.peer) {
                self.input(number, Input::Disconnected(peer));
            }
        }
        self.set_alarm(number);
        self.dial_missing();
    }

    fn allow(&mut self, number: Number) {
        let Some(machine) = self.machines.get(number) else { return };
        let trusted = machine.trusted.iter().filter_map(|other| self.machines.get(*other)).map(|other| other.peer);
        let allowlist = Input::Allowlist(trusted.collect());
        self.input(number, allowlist);
    }

    fn stop(&mut self, number: Number) {
        if let Some(machine) = self.machines.get_mut(number) {
            machine.state = State::Down;
        }
        self.judging.retain(|(machine, _), _| *machine != number);
        self.dial_missing();
    }

    fn schedule_fault(&mut self) {
        let wait_ms = self.draw.between(1, 2 * self.faults.every_ms);
        self.after(wait_ms, Happening::Fault);
    }

    fn fault(&mut self) {
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

    fn distrust(&mut self, number: Number, for_ms: u64) {
        let Some(machine) = self.machines.get_mut(number) else { return };
        let trusted: Vec<_> = machine.trusted.iter().copied().collect();
        let Some(other) = self.draw.pick(&trusted) else { return };
        machine.trusted.remove(&other);
        self.allow(number);
        self.dial_missing();
        self.after(for_ms, Happening::Trust(number, other));
    }

    fn change_paths(&mut self, number: Number, added: Vec<u32>, removed: Vec<u32>) {
        let Some(machine) = self.machines.get_mut(number) else { return };
        machine.paths.retain(|path| !removed.contains(path));
        machine.paths.extend(&added);
        let parts = |paths: Vec<u32>| paths.into_iter().map(crate::machine::part).collect();
        self.input(number, Input::Paths(PathChange::Update { added: parts(added), removed: parts(removed) }));
    }
}
