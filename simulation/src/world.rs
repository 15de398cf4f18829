//! The machines and all that passes between them: what their cores are told, and what they want done.

use crate::checker::Checker;
use crate::checker::liveness::find_reachable;
use crate::cores::gossip::{Event, Input, Output, Record};
use crate::figures::{Figures, Joiner};
use crate::fleet::Fleet;
use crate::gossipsub::{Context, FIRST_HEARTBEAT_US, Gossipsub};
use crate::machine::State;
use crate::malice;
use crate::message::{Message, Rpc, Transmission};
use crate::network::Network;
use crate::number::Number;
use crate::scenario::Scenario;
use crate::schedule::Happening;
use crate::story::Story;
use crate::trace::Trace;
use crate::traffic::{Kind, STREAM_OVERHEAD};
use narmesh_protocol::AudienceDigest;
use std::collections::{BTreeMap, BTreeSet};
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
    pub(crate) fleet: Fleet,
    pub(crate) network: Network,
    pub(crate) checker: Checker,
    pub(crate) trace: Trace,
    pub(crate) story: Story,
    pub(crate) figures: Figures,
    pub(crate) totals: Totals,
    pub(crate) gossipsub: Gossipsub,
    /// Requests that a machine has yet to answer: who asked, the asker's id, and the question.
    questions: BTreeMap<(Number, u64), (Number, u64, Vec<u8>)>,
}

impl World {
    pub(crate) fn new(scenario: Scenario, seed: u64, story: Story) -> Self {
        let mut fleet = Fleet::new(scenario, seed);
        let count = fleet.machines.len();
        let network = Network::draw(&mut fleet);
        let mut world = Self {
            network,
            checker: Checker::new(&fleet.machines),
            trace: Trace::new(seed),
            story,
            figures: Figures::new(&fleet.scenario, count),
            totals: Totals::default(),
            gossipsub: Gossipsub::new(count),
            questions: BTreeMap::new(),
            fleet,
        };
        world.schedule_first_boot();
        world
    }

    /// The machines that must hear of each owner now.
    pub(crate) fn find_reach(&self) -> Vec<BTreeSet<Number>> {
        find_reachable(&self.fleet.machines, &self.network)
    }

    /// Whether each table equals the present state of every owner that it must hear of.
    pub(crate) fn are_tables_equal(&self, reach: &[BTreeSet<Number>]) -> bool {
        self.checker.seems_converged(&self.fleet.machines, reach)
            && self.checker.find_unconverged(&self.fleet.machines, reach).is_empty()
    }

    pub(crate) fn on_tick(&mut self, number: Number) {
        let now_ms = self.fleet.now_ms();
        let machine = self.fleet.machine_mut(number);
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
        let now_ms = self.fleet.now_ms();
        if !self.fleet.machine(number).is_running() {
            return;
        }
        self.totals.inputs += 1;
        self.trace.add_input(now_ms, number, &input);
        self.story.tell_input(&self.fleet.machines, now_ms, number, &input);
        let changes_allowlist = matches!(input, Input::Allowlist(_));
        let machine = self.fleet.machine_mut(number);
        machine.core.handle(machine.now(now_ms), input);
        let mut outputs: Vec<_> = std::iter::from_fn(|| machine.core.poll()).collect();
        // A crash in the middle: the rest of the outputs is neither sent nor written to disk.
        let stops = machine.doomed;
        if stops {
            let performed = self.fleet.draw.index(outputs.len() + 1);
            outputs.truncate(performed);
        }
        self.checker.check_outputs(number, outputs.len(), self.fleet.machines.len());
        for output in outputs {
            self.trace.add_output(&output);
            self.story.tell_output(&self.fleet.machines, now_ms, number, &output);
            self.perform(number, output);
        }
        if stops {
            self.stop(number);
            return;
        }
        if changes_allowlist {
            let machine = self.fleet.machine(number);
            self.checker.check_allowlist(number, machine);
        }
        self.set_alarm(number);
    }

    fn set_alarm(&mut self, number: Number) {
        let now_ms = self.fleet.now_ms();
        let machine = self.fleet.machine_mut(number);
        if !machine.is_running() {
            return;
        }
        let Some(deadline) = machine.core.deadline().map(|deadline| deadline.0.max(now_ms)) else { return };
        if machine.tick.is_none_or(|tick| tick > deadline) {
            machine.tick = Some(deadline);
            self.fleet.schedule.at_us((deadline * 1_000).max(self.fleet.now_us()), Happening::Tick(number));
        }
    }

    fn perform(&mut self, number: Number, output: Output) {
        match output {
            Output::Persist(record) => {
                if let Record::Forget(peer) = &record {
                    self.checker.on_forgot(number, peer);
                }
                self.fleet.machine_mut(number).persist(record);
            }
            Output::Publish(bytes) => self.publish(number, bytes),
            Output::Judge { id, verdict } => {
                let (gossipsub, mut context) = self.gossipsub();
                gossipsub.on_judged(&mut context, number, id, verdict);
            }
            Output::Request { to, id, bytes } => {
                let Some(to) = self.checker.number(&to) else { return };
                let kind = kind_of_request(&bytes);
                self.totals.syncs += u64::from(kind == Kind::Sync);
                let now_us = self.fleet.now_us();
                self.checker.on_requested(number, to, id, &bytes, now_us);
                let payload = bytes.len() + STREAM_OVERHEAD;
                let sent = Transmission { from: number, to, kind, payload, message: Message::Request { id, bytes } };
                self.network.transmit(&mut self.fleet, sent);
            }
            Output::Respond { to, id, bytes } => {
                let Some((asker, their_id, question)) = self.questions.remove(&(number, id)) else { return };
                debug_assert_eq!(self.checker.number(&to), Some(asker), "answers go to the asker");
                self.checker.check_reply(number, asker, &question, &bytes);
                self.respond(number, asker, their_id, &question, bytes);
            }
            Output::Penalize { peer, misdeed } => {
                let accused = self.checker.number(&peer);
                let honest = accused.is_some_and(|accused| self.fleet.machine(accused).is_honest());
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
        if self.fleet.machine(number).malice.is_some() {
            return self.publish_lies(number, bytes);
        }
        let now_us = self.fleet.now_us();
        let machine = self.fleet.machine(number);
        if let Some(published) = self.checker.on_published(number, machine, &bytes, now_us) {
            let filter_bits = self.fleet.machine(number).core.publication().filter_bits;
            self.figures.on_published(number, &published, filter_bits);
        }
        self.publish_message(number, bytes.into());
    }

    fn publish_lies(&mut self, number: Number, honest: Vec<u8>) {
        let machine = self.fleet.machine(number);
        let others = machine.trusted.iter().map(|other| AudienceDigest::of(&self.fleet.machine(*other).peer));
        let mut audience: Vec<_> = others.chain([AudienceDigest::of(&machine.peer)]).collect();
        audience.sort_unstable();
        let (keypair, paths) = (machine.keypair.clone(), self.fleet.next_path);
        let machine = self.fleet.machines.get_mut(number).expect("numbers are the fleet's own");
        let Some(malice) = &mut machine.malice else { return };
        let lie = malice.lie(&keypair, &honest, &audience, paths, &mut self.fleet.draw);
        self.publish_message(number, lie.into());
    }

    fn respond(&mut self, number: Number, asker: Number, id: u64, question: &[u8], bytes: Vec<u8>) {
        let machine = self.fleet.machine_mut(number);
        let bytes = match &mut machine.malice {
            Some(malice) => malice.answer(question, bytes),
            None if machine.withholding => malice::withhold(&machine.peer, question, bytes),
            None => bytes,
        };
        let kind = kind_of_request(question);
        let payload = bytes.len() + STREAM_OVERHEAD;
        let sent = Transmission { from: number, to: asker, kind, payload, message: Message::Response { id, bytes } };
        self.network.transmit(&mut self.fleet, sent);
    }

    /// A request arrived.
    pub(crate) fn on_request(&mut self, from: Number, to: Number, their_id: u64, bytes: Vec<u8>) {
        let id = self.fleet.schedule.next_number();
        let sender = self.fleet.machine(from).peer;
        self.questions.insert((to, id), (from, their_id, bytes.clone()));
        self.feed(to, Input::Request { from: sender, id, bytes });
        // A machine that crashed in the middle answers nothing.
        self.questions.remove(&(to, id));
    }

    pub(crate) fn on_arrival(&mut self, connection: u64, sent: Transmission) {
        let (from, to) = (sent.from, sent.to);
        if let Some(message) = self.network.on_arrival(&mut self.fleet, connection, sent) {
            self.deliver(from, to, connection, message);
        }
    }

    /// Hands a message to the receiver.
    pub(crate) fn deliver(&mut self, from: Number, to: Number, connection: u64, message: Message) {
        if !self.network.is_open(from, to, connection) || !self.fleet.machine(to).is_running() {
            return;
        }
        let sender = self.fleet.machine(from).peer;
        match message {
            Message::Rpc(rpc) => self.on_rpc(from, to, rpc),
            Message::Request { id, bytes } => self.on_request(from, to, id, bytes),
            Message::Response { id, bytes } => {
                self.checker.on_answered(to, id);
                if let Some(malice) = &mut self.fleet.machine_mut(to).malice {
                    malice.receive(&bytes);
                }
                self.feed(to, Input::Response { from: sender, id, bytes });
            }
        }
    }

    fn on_rpc(&mut self, from: Number, to: Number, rpc: Rpc) {
        self.totals.gossip_copies += u64::from(matches!(rpc, Rpc::Publish { .. }));
        let (gossipsub, mut context) = self.gossipsub();
        let Some(copy) = gossipsub.receive(&mut context, from, to, rpc) else { return };
        self.figures.on_copy(copy.published_us, self.fleet.now_us(), copy.is_first);
        if copy.is_first {
            if let Some(malice) = &mut self.fleet.machine_mut(to).malice {
                malice.overhear(&copy.bytes);
            }
            let (author, from) = (self.fleet.machine(copy.author).peer, self.fleet.machine(from).peer);
            self.feed(to, Input::Announcement { id: copy.id, author, from, bytes: copy.bytes.to_vec() });
        }
    }

    /// Publishes a message to all connections of a machine.
    pub(crate) fn publish_message(&mut self, number: Number, bytes: Arc<[u8]>) {
        self.figures.on_announced(self.fleet.now_us());
        let (gossipsub, mut context) = self.gossipsub();
        gossipsub.publish(&mut context, number, bytes);
    }

    pub(crate) fn on_heartbeat(&mut self, number: Number, run: u64) {
        let (gossipsub, mut context) = self.gossipsub();
        gossipsub.on_heartbeat(&mut context, number, run);
    }

    fn gossipsub(&mut self) -> (&mut Gossipsub, Context<'_>) {
        (&mut self.gossipsub, Context { fleet: &mut self.fleet, network: &mut self.network })
    }

    pub(crate) fn on_given_up(&mut self, at: usize, connection: u64, blocked_us: u64) {
        if self.network.is_dead(at, connection, blocked_us) {
            self.close(at);
        }
    }

    /// Ends a connection, for both ends; they redial.
    pub(crate) fn close(&mut self, at: usize) {
        let Some((a, b)) = self.network.close(at) else { return };
        for (number, other) in [(a, b), (b, a)] {
            self.gossipsub.on_disconnected(number, other);
            self.checker.on_disconnected(number, other);
            let peer = self.fleet.machine(other).peer;
            if self.fleet.machine(number).state == State::Asleep {
                self.fleet.machine_mut(number).lost_asleep.insert(other);
            } else {
                self.feed(number, Input::Disconnected(peer));
            }
        }
        self.network.plan_redial(&mut self.fleet, at);
    }

    pub(crate) fn connect(&mut self, at: usize, plan: u64, dialler: Number) {
        let Some((a, b)) = self.network.connect(&mut self.fleet, at, plan, dialler) else { return };
        for (number, other) in [(a, b), (b, a)] {
            let peer = self.fleet.machine(other).peer;
            self.feed(number, Input::Connected(peer));
            let (gossipsub, mut context) = self.gossipsub();
            gossipsub.on_connected(&mut context, number, other);
        }
    }

    fn on_event(&mut self, number: Number, event: &Event) {
        let now_us = self.fleet.now_us();
        match event {
            Event::Announced { peer, generation, .. } => {
                let machine = self.fleet.machine(number);
                self.checker.on_announced(number, machine, peer, *generation, now_us);
            }
            Event::BodyPulled { owner, generation, bytes, delta, .. } => {
                let Some(owner) = self.checker.number(owner) else { return };
                self.totals.bodies += u64::from(*bytes > 0);
                self.totals.deltas += u64::from(*delta);
                let honest = self.fleet.machine(owner).is_honest();
                let machine = self.fleet.machine(number);
                let owned = self.fleet.machine(owner);
                self.checker.check_body(number, machine, owner, owned, *generation);
                if honest && self.fleet.machine(number).is_honest() {
                    let versions = self.figures.on_known(now_us, number, owner, *generation, *bytes);
                    if let Some((before, now)) = versions.filter(|_| *bytes > 0) {
                        let (came, went) = self.fleet.machine(owner).store.count_changed(before.unwrap_or(0), now);
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
        let others = self.fleet.machine(number).trusted.len();
        let now_us = self.fleet.now_us();
        let waits = |joiner: &Joiner| joiner.number == number && joiner.full_us.is_none();
        if !self.figures.joiner.as_ref().is_some_and(waits) || self.checker.bodies_held(number) < others {
            return;
        }
        let received = self.fleet.machine(number).traffic.received.iter().sum();
        if let Some(joiner) = &mut self.figures.joiner {
            joiner.full_us = Some(now_us - joiner.since_us);
            joiner.received = received;
        }
    }

    /// Starts all machines that do not join later, within two seconds.
    fn schedule_first_boot(&mut self) {
        self.fleet.schedule.after_us(self.figures.bucket_us, Happening::Sample);
        let joins = self.fleet.joiners();
        for number in 0..self.fleet.machines.len() {
            let wait_us = self.fleet.draw.below(2_000_000);
            if !joins.contains(&number) {
                self.fleet.schedule.after_us(wait_us, Happening::Start { number, keep_disk: true });
            }
        }
    }

    /// Tells a core its allowlist, and ends connections that it forbids.
    pub(crate) fn allow(&mut self, number: Number) {
        let trusted = Arc::clone(&self.fleet.machine(number).trusted);
        let peers = trusted.iter().map(|other| self.fleet.machine(*other).peer).collect();
        if self.fleet.machine(number).is_running() {
            self.fleet.machine_mut(number).told = Arc::clone(&trusted);
        }
        self.feed(number, Input::Allowlist(peers));
        for (other, link) in self.network.neighbours_of(number).to_vec() {
            if !self.fleet.machine(other).trusted.contains(&number) || !trusted.contains(&other) {
                self.close(link);
            }
        }
    }

    pub(crate) fn start(&mut self, number: Number, keep_disk: bool) {
        let now_ms = self.fleet.now_ms();
        if self.fleet.machine(number).doomed {
            self.stop(number);
        }
        if self.fleet.machine(number).state != State::Down {
            return;
        }
        // The clock may have been set wrong after the disk was lost. Then the machine could use epochs, ahead of the right
        // time or behind it, a second time.
        let keep_disk = keep_disk || self.fleet.machine(number).ever_skewed;
        if !keep_disk {
            self.checker.on_disk_lost(number);
        }
        let machine = self.fleet.machines.get_mut(number).expect("numbers are the fleet's own");
        machine.start(now_ms, keep_disk, &mut self.fleet.draw);
        self.gossipsub.on_started(number);
        let run = machine.run;
        let now_us = self.fleet.now_us();
        self.figures.on_restarted(now_us, number);
        self.allow(number);
        let addresses = self.fleet.machine(number).addresses(number);
        self.feed(number, Input::Addresses(addresses));
        self.read_store(number);
        self.fleet.schedule.after_us(FIRST_HEARTBEAT_US, Happening::Heartbeat(number, run));
        self.network.dial_all_of(&mut self.fleet, number);
    }

    /// A machine that starts again needs a while to read its store; it talks with others meanwhile.
    fn read_store(&mut self, number: Number) {
        let reading = self.fleet.schedule.next_number();
        self.fleet.machine_mut(number).reading = Some(reading);
        if self.fleet.scenario.faults.read_ms == 0 || self.figures.begun_us.is_none() || self.fleet.healed {
            return self.on_store_read(number, reading);
        }
        let wait_us = self.fleet.draw.below(self.fleet.scenario.faults.read_ms * 1_000);
        self.fleet.schedule.after_us(wait_us, Happening::Read { number, reading });
    }

    /// A machine has read its store. One that sleeps tells its core when it wakes.
    pub(crate) fn on_store_read(&mut self, number: Number, reading: u64) {
        let machine = self.fleet.machine_mut(number);
        if machine.is_running() && machine.reading == Some(reading) {
            machine.reading = None;
            let paths = machine.all_paths();
            self.feed(number, paths);
        }
    }

    pub(crate) fn stop(&mut self, number: Number) {
        self.fleet.machine_mut(number).state = State::Down;
        self.fleet.machine_mut(number).doomed = false;
        self.fleet.machine_mut(number).reading = None;
        self.checker.on_stopped(number);
        self.gossipsub.on_stopped(number);
        self.network.links_of(number).into_iter().for_each(|link| self.close(link));
    }
}

/// The kind of a gossip request: the number of its variant comes first.
fn kind_of_request(bytes: &[u8]) -> Kind {
    if bytes.first() == Some(&0) { Kind::Sync } else { Kind::Bodies }
}
