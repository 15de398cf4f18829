//! Machines, links and a virtual clock: what is due next happens next, and nothing else happens.

use crate::checker::Checker;
use crate::draw::Draw;
use crate::figures::{Figures, Joiner};
use crate::fleet::draw_topology;
use crate::gossipsub::Published;
use crate::machine::Machine;
use crate::malice::{self, Malice};
use crate::message::Message;
use crate::network::Link;
use crate::number::Number;
use crate::scenario::Scenario;
use crate::schedule::{Due, Happening};
use crate::story::Story;
use crate::trace::Trace;
use crate::traffic::{Kind, STREAM_OVERHEAD, Traffic};
use crate::watch::Watch;
use narmesh_gossip::{Event, Forward, Input, Output, Record};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

/// Counts over a whole run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Totals {
    /// Inputs that the cores have handled.
    pub inputs: u64,
    /// Random faults and changes.
    pub faults: u64,
    /// Announcements published.
    pub announcements: u64,
    /// Copies of announcements that arrived.
    pub gossip_copies: u64,
    /// Bodies that went into a table after a pull.
    pub bodies: u64,
    /// How many of these bodies came as a delta.
    pub deltas: u64,
    /// Comparisons that were asked for.
    pub syncs: u64,
}

/// The world of one run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now_us: u64,
    pub(crate) scenario: Scenario,
    pub(crate) machines: Vec<Machine>,
    /// The neighbours of each machine, and the links to them.
    pub(crate) neighbours: Vec<Vec<(Number, usize)>>,
    pub(crate) links: Vec<Link>,
    /// Which part of a partitioned network a machine is in.
    pub(crate) sides: Vec<u64>,
    pub(crate) checker: Checker,
    pub(crate) trace: Trace,
    pub(crate) story: Story,
    pub(crate) figures: Figures,
    pub(crate) totals: Totals,
    pub(crate) draw: Draw,
    pub(crate) healed: bool,
    due: BinaryHeap<Due>,
    pub(crate) counter: u64,
    /// gossipsub messages that a core has yet to judge, and who sent them.
    pub(crate) judging: BTreeMap<(Number, u64), Number>,
    pub(crate) published: BTreeMap<u64, Published>,
    /// Requests that a machine has yet to answer: who asked, the asker's id, and the question.
    pub(crate) questions: BTreeMap<(Number, u64), (Number, u64, Vec<u8>)>,
    pub(crate) next_path: u32,
    pub(crate) watch: Watch,
    /// Each machine's traffic before the measured time.
    pub(crate) before_begin: Vec<Traffic>,
}

impl World {
    pub(crate) fn new(scenario: Scenario, seed: u64, story: Story) -> Self {
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
        let (neighbours, links) = draw_topology(&mut draw, &scenario, nodes + strangers);
        let checker = Checker::new(&machines);
        let figures = Figures::new(&scenario, machines.len());
        let mut world = Self {
            now_us: 0,
            machines,
            neighbours,
            links,
            sides: vec![0; nodes + strangers],
            checker,
            trace: Trace::new(seed),
            story,
            figures,
            totals: Totals::default(),
            draw,
            healed: false,
            due: BinaryHeap::new(),
            counter: 0,
            judging: BTreeMap::new(),
            published: BTreeMap::new(),
            questions: BTreeMap::new(),
            next_path,
            watch: Watch::default(),
            before_begin: Vec::new(),
            scenario,
        };
        world.schedule_first_boot();
        world
    }

    pub(crate) fn machine(&self, number: Number) -> &Machine {
        self.machines.get(number).expect("numbers are the world's own")
    }

    pub(crate) fn machine_mut(&mut self, number: Number) -> &mut Machine {
        self.machines.get_mut(number).expect("numbers are the world's own")
    }

    pub(crate) fn side(&self, number: Number) -> u64 {
        self.sides.get(number).copied().unwrap_or(0)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    pub(crate) fn schedule_at_us(&mut self, at_us: u64, happening: Happening) {
        self.counter += 1;
        self.due.push(Due { order: Reverse((at_us, self.counter)), happening: Box::new(happening) });
    }

    pub(crate) fn schedule_after_us(&mut self, us: u64, happening: Happening) {
        self.schedule_at_us(self.now_us + us, happening);
    }

    /// Handles all that is due until `end_us`.
    pub(crate) fn run_until(&mut self, end_us: u64) {
        while self.due.peek().is_some_and(|due| due.order.0.0 <= end_us) {
            if let Some(Due { order: Reverse((at_us, _)), happening }) = self.due.pop() {
                self.now_us = at_us;
                self.handle(*happening);
            }
        }
        self.now_us = end_us;
    }

    /// Ends all faults: everything runs, everything passes, trust is mutual again, clocks are right.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        let (mut ends, mut rest) = (Vec::new(), Vec::new());
        // Faults that would end later end now, and no new ones come. All else goes on as planned.
        for due in std::mem::take(&mut self.due).into_sorted_vec().into_iter().rev() {
            match *due.happening {
                Happening::Start { .. }
                | Happening::Wake(_)
                | Happening::Stop(_)
                | Happening::Read { .. }
                | Happening::Mend(_)
                | Happening::Reunite(_)
                | Happening::Moved(_)
                | Happening::Frank(_)
                | Happening::Trust(..) => ends.push(*due.happening),
                Happening::Fault | Happening::Churn { .. } | Happening::Scripted { .. } => {}
                Happening::Tick(_)
                | Happening::Heartbeat(..)
                | Happening::Arrive { .. }
                | Happening::Deliver { .. }
                | Happening::Dial { .. }
                | Happening::Connected { .. }
                | Happening::Resume { .. }
                | Happening::GivenUp { .. }
                | Happening::Lookups
                | Happening::Sample
                | Happening::Watched(_)
                | Happening::Look
                | Happening::Trick(_) => rest.push(due),
            }
        }
        self.due.extend(rest);
        ends.into_iter().for_each(|happening| self.handle(happening));
        self.machines.iter_mut().for_each(|machine| machine.skew_ms = 0);
    }

    fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Tick(number) => self.on_tick(number),
            Happening::Heartbeat(number, run) => self.on_heartbeat(number, run),
            Happening::Arrive { from, to, connection, kind, payload, message } => {
                self.on_arrival(from, to, connection, kind, payload, message);
            }
            Happening::Deliver { from, to, connection, message } => self.deliver(from, to, connection, message),
            Happening::Dial { link, plan } => self.dial(link, plan),
            Happening::Connected { link, plan, dialler } => self.connect(link, plan, dialler),
            Happening::Resume { link, connection } => self.resume(link, connection),
            Happening::GivenUp { link, connection, blocked_us } => self.on_given_up(link, connection, blocked_us),
            Happening::Fault => self.cause_random_fault(),
            Happening::Churn { number, collect } => self.churn(number, collect),
            Happening::Lookups => self.run_lookups(),
            Happening::Sample => self.sample(),
            Happening::Trick(number) => self.play_trick(number),
            Happening::Scripted { event, number } => self.run_scripted(event, number),
            Happening::Wake(number) => self.wake(number),
            Happening::Stop(number) => self.stop(number),
            Happening::Start { number, keep_disk } => self.start(number, keep_disk),
            Happening::Read { number, reading } => self.on_store_read(number, reading),
            Happening::Mend(link) => self.mend(link),
            Happening::Reunite(side) => self.reunite(side),
            Happening::Moved(number) => self.on_moved(number),
            Happening::Frank(number) => self.machine_mut(number).withholding = false,
            Happening::Watched(figure) => self.on_event_ended(figure),
            Happening::Look => self.look(),
            Happening::Trust(a, b) => self.trust(a, b),
        }
    }

    fn on_tick(&mut self, number: Number) {
        let now_ms = self.now_ms();
        let machine = self.machine_mut(number);
        machine.tick = None;
        if machine.is_running() {
            if machine.core.deadline().is_some_and(|deadline| deadline.0 <= now_ms) {
                self.feed(number, Input::Tick);
            } else {
                self.set_alarm(number);
            }
        }
    }

    /// Feeds one input to a core and performs its outputs. A doomed machine stops after a random number of them.
    pub(crate) fn feed(&mut self, number: Number, input: Input) {
        let now_ms = self.now_ms();
        if !self.machine(number).is_running() {
            return;
        }
        self.totals.inputs += 1;
        self.trace.add_input(now_ms, number, &input);
        self.story.tell_input(&self.machines, now_ms, number, &input);
        let changes_allowlist = matches!(input, Input::Allowlist(_));
        let machine = self.machine_mut(number);
        machine.core.handle(machine.now(now_ms), input);
        let mut outputs: Vec<_> = std::iter::from_fn(|| machine.core.poll()).collect();
        // A crash in the middle: the rest of the outputs is neither sent nor written to disk.
        let stops = machine.doomed;
        if stops {
            let performed = self.draw.index(outputs.len() + 1);
            outputs.truncate(performed);
        }
        self.checker.check_outputs(number, outputs.len(), self.machines.len());
        for output in outputs {
            self.trace.add_output(&output);
            self.story.tell_output(&self.machines, now_ms, number, &output);
            self.perform(number, output);
        }
        if stops {
            self.stop(number);
            return;
        }
        if changes_allowlist {
            let machine = self.machines.get(number).expect("numbers are the world's own");
            self.checker.check_allowlist(number, machine);
        }
        self.set_alarm(number);
    }

    pub(crate) fn set_alarm(&mut self, number: Number) {
        let now_ms = self.now_ms();
        let machine = self.machine_mut(number);
        if !machine.is_running() {
            return;
        }
        let Some(deadline) = machine.core.deadline().map(|deadline| deadline.0.max(now_ms)) else { return };
        if machine.tick.is_none_or(|tick| tick > deadline) {
            machine.tick = Some(deadline);
            self.schedule_at_us((deadline * 1_000).max(self.now_us), Happening::Tick(number));
        }
    }

    fn perform(&mut self, number: Number, output: Output) {
        match output {
            Output::Persist(record) => {
                if let Record::Forget(peer) = &record {
                    self.checker.on_forgot(number, peer);
                }
                self.machine_mut(number).persist(record);
            }
            Output::Publish(bytes) => self.publish(number, bytes),
            Output::Judge { id, verdict } => {
                if let Some(from) = self.judging.remove(&(number, id))
                    && verdict == Forward::Accept
                {
                    self.on_gossip_accepted(number, from, id);
                }
            }
            Output::Request { to, id, bytes } => {
                let Some(to) = self.checker.number(&to) else { return };
                let kind = kind_of_request(&bytes);
                self.totals.syncs += u64::from(kind == Kind::Sync);
                let now_us = self.now_us;
                self.checker.on_requested(number, to, id, &bytes, now_us);
                self.transmit(number, to, kind, bytes.len() + STREAM_OVERHEAD, Message::Request { id, bytes });
            }
            Output::Respond { to, id, bytes } => {
                let Some((asker, their_id, question)) = self.questions.remove(&(number, id)) else { return };
                debug_assert_eq!(self.checker.number(&to), Some(asker), "answers go to the asker");
                self.checker.check_reply(number, asker, &question, &bytes);
                self.respond(number, asker, their_id, &question, bytes);
            }
            Output::Penalize { peer, misdeed } => {
                let accused = self.checker.number(&peer);
                let honest = accused.is_some_and(|accused| self.machine(accused).is_honest());
                if honest {
                    self.checker.on_blamed(number, accused, misdeed);
                } else {
                    self.figures.on_blamed(misdeed);
                }
            }
            Output::Event(event) => self.on_event(number, &event),
        }
    }

    /// Publishes an envelope of a machine's core; a liar publishes what its malice makes of it.
    fn publish(&mut self, number: Number, bytes: Vec<u8>) {
        self.totals.announcements += 1;
        if self.machine(number).malice.is_some() {
            return self.publish_lies(number, bytes);
        }
        let now_us = self.now_us;
        let machine = self.machines.get(number).expect("numbers are the world's own");
        if let Some(published) = self.checker.on_published(number, machine, &bytes, now_us) {
            let filter_bits = self.machine(number).core.publication().filter_bits;
            self.figures.on_published(number, &published, filter_bits);
        }
        self.publish_message(number, bytes.into());
    }

    pub(crate) fn respond(&mut self, number: Number, asker: Number, id: u64, question: &[u8], bytes: Vec<u8>) {
        let machine = self.machine_mut(number);
        let bytes = match &mut machine.malice {
            Some(malice) => malice.answer(question, bytes),
            None if machine.withholding => malice::withhold(&machine.peer, question, bytes),
            None => bytes,
        };
        let kind = kind_of_request(question);
        self.transmit(number, asker, kind, bytes.len() + STREAM_OVERHEAD, Message::Response { id, bytes });
    }

    /// A request arrived.
    pub(crate) fn on_request(&mut self, from: Number, to: Number, their_id: u64, bytes: Vec<u8>) {
        self.counter += 1;
        let id = self.counter;
        let sender = self.machine(from).peer;
        self.questions.insert((to, id), (from, their_id, bytes.clone()));
        self.feed(to, Input::Request { from: sender, id, bytes });
        // A machine that crashed in the middle answers nothing.
        self.questions.remove(&(to, id));
    }

    fn on_event(&mut self, number: Number, event: &Event) {
        let now_us = self.now_us;
        match event {
            Event::Announced { peer, generation, .. } => {
                let machine = self.machines.get(number).expect("numbers are the world's own");
                self.checker.on_announced(number, machine, peer, *generation, now_us);
            }
            Event::BodyPulled { owner, generation, bytes, delta, .. } => {
                let Some(owner) = self.checker.number(owner) else { return };
                self.totals.bodies += u64::from(*bytes > 0);
                self.totals.deltas += u64::from(*delta);
                let honest = self.machine(owner).is_honest();
                let machine = self.machines.get(number).expect("numbers are the world's own");
                let owned = self.machines.get(owner).expect("numbers are the world's own");
                self.checker.check_body(number, machine, owner, owned, *generation);
                if honest && self.machine(number).is_honest() {
                    let versions = self.figures.on_known(now_us, number, owner, *generation, *bytes);
                    if let Some((before, now)) = versions.filter(|_| *bytes > 0) {
                        let (came, went) = self.machine(owner).store.count_changed(before.unwrap_or(0), now);
                        self.figures.encodings.count_pull(*bytes, came + went, before.is_none());
                    }
                }
                self.watch_joiner(number);
            }
            Event::Expired { peer } | Event::Departed { peer } => self.checker.on_dropped(number, peer),
            Event::StoreDirDiffers { peer, .. } => self.checker.on_dropped(number, peer),
            Event::Demoted { peer, .. } => {
                if let Some(owner) = self.checker.number(peer) {
                    self.figures.on_demoted(now_us, owner);
                }
            }
            Event::Published { .. }
            | Event::Overtaken { .. }
            | Event::PullGivenUp { .. }
            | Event::AddressesLearned { .. }
            | Event::Greeted { .. }
            | Event::UnknownVersion { .. }
            | Event::UnknownHashId { .. }
            | Event::ClockDiffers { .. }
            | Event::SetAside { .. } => {}
        }
    }

    /// Notes when the machine that joined has a body of every other.
    fn watch_joiner(&mut self, number: Number) {
        let others = self.machine(number).trusted.len();
        let now_us = self.now_us;
        let waits = |joiner: &Joiner| joiner.number == number && joiner.full_us.is_none();
        if !self.figures.joiner.as_ref().is_some_and(waits) || self.checker.bodies_held(number) < others {
            return;
        }
        let received = self.machine(number).traffic.received.iter().sum();
        if let Some(joiner) = &mut self.figures.joiner {
            joiner.full_us = Some(now_us - joiner.since_us);
            joiner.received = received;
        }
    }
}

/// The kind of a gossip request: the number of its variant comes first.
fn kind_of_request(bytes: &[u8]) -> Kind {
    if bytes.first() == Some(&0) { Kind::Sync } else { Kind::Bodies }
}
