//! Members of a mesh, and the links between them.

use super::RosterScenario;
use super::checker::Checker;
use super::event::{Event, Link, Message};
use super::liar::{Lie, Lies};
use super::machine::{Machine, Number};
use super::plan::{self, QUIET_MS};
use crate::agenda::Agenda;
use crate::cores::roster::{Input, Journal, Moment, Output, RosterExchange};
use crate::draw::Draw;
use crate::healing::Healing;
use libp2p_identity::PeerId;
use narmesh_protocol::wire::{RosterReply, RosterRequest};
use narmesh_protocol::{NixSecretKey, Roster, RosterVersion, SignedRoster};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A connection over which nothing gets through is given up after this, as by the daemon's TCP.
const GIVEN_UP_MS: u64 = 10_000;
/// A connection that is not there is dialled again within this.
const REDIAL_MS: (u64, u64) = (250, 4_000);
/// A request without an answer fails after this, as in the daemon.
const FAILED_MS: u64 = 10_000;
/// How long it takes to keep a roster and to put it in force.
const KEEP_MS: u64 = 5;

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) edits: u64,
    pub(super) completions: u64,
    pub(super) bytes: u64,
    pub(super) quiet_bytes: u64,
    pub(super) rosters_sent: u64,
    pub(super) rosters_taken: u64,
}

/// The members, their links, and the clock.
#[derive(Debug)]
pub(super) struct World {
    agenda: Agenda<Event>,
    pub(super) checker: Checker,
    pub(super) scenario: RosterScenario,
    mesh: NixSecretKey,
    lies: Lies,
    pub(super) machines: Vec<Machine>,
    numbers: BTreeMap<PeerId, Number>,
    links: Vec<Link>,
    is_cut: bool,
    /// Requests that wait for their answers: the machine asked and its number of the request; the link, the asker and its id.
    asked: BTreeMap<(Number, u64), (usize, Number, u64)>,
    /// When each removed member was removed, while the network was whole; and how long each machine admitted it after that.
    removed_ms: BTreeMap<[u8; 32], u64>,
    pub(super) refused_after_ms: Vec<u64>,
    draw: Draw,
    pub(super) trace: Sha256,
    pub(super) counts: Counts,
}

impl World {
    pub(super) fn new(scenario: RosterScenario, seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let mesh = NixSecretKey::from_seed("home", &draw.seed()).expect("a name and 32 bytes are a key");
        let thief = NixSecretKey::from_seed("home", &draw.seed()).expect("a name and 32 bytes are a key");
        let mut machines: Vec<_> = (0..scenario.machines).map(|_| Machine::new(&mut draw)).collect();
        let members = machines.iter().enumerate().map(|(number, machine)| machine.to_member(number)).collect();
        let first = Roster { version: 1, issued_at_ms: 0, members, edits: Vec::new(), removals: Vec::new() };
        let forged = SignedRoster::sign(&thief, Roster { version: u64::MAX, ..first.clone() }).expect("a good roster");
        let first = Arc::new(SignedRoster::sign(&mesh, first).expect("a good roster"));
        let liars = draw.some((2..scenario.machines).collect(), scenario.liars);
        for (number, machine) in machines.iter_mut().enumerate() {
            machine.held = Some(Arc::clone(&first));
            machine.journal = (number < 2).then(Journal::default);
        }
        for (count, liar) in liars.iter().enumerate() {
            if let Some(machine) = machines.get_mut(*liar) {
                machine.lie = Some(Lie::of(count));
            }
        }
        let links = plan::link(&scenario, &mut draw);
        for (number, link) in links.iter().enumerate() {
            link.ends.iter().filter_map(|end| machines.get_mut(*end).map(|machine| machine.links.push(number))).count();
        }
        let honest: Vec<Number> = (0..scenario.machines).filter(|number| !liars.contains(number)).collect();
        let mut agenda = Agenda::default();
        plan::plan(&scenario, &honest, &mut draw, &mut agenda);
        for link in 0..links.len() {
            agenda.at_ms(draw.below(1_000), Event::Redial { link });
        }
        let mut checker = Checker::default();
        checker.note_signed(&first);
        let trace = Sha256::new().chain_update(b"narmesh-rosters-1;").chain_update(seed.to_le_bytes());
        let mut world = Self {
            agenda,
            checker,
            scenario,
            mesh,
            lies: Lies { forged: forged.as_bytes().to_vec(), first: first.as_bytes().to_vec() },
            numbers: machines.iter().enumerate().map(|(number, machine)| (machine.peer, number)).collect(),
            machines,
            links,
            is_cut: false,
            asked: BTreeMap::new(),
            removed_ms: BTreeMap::new(),
            refused_after_ms: Vec::new(),
            draw,
            trace,
            counts: Counts::default(),
        };
        (0..world.machines.len()).for_each(|number| world.tell_held(number));
        world
    }

    pub(super) fn machine(&self, number: Number) -> &Machine {
        self.machines.get(number).expect("numbers are the world's own")
    }

    fn machine_mut(&mut self, number: Number) -> &mut Machine {
        self.machines.get_mut(number).expect("numbers are the world's own")
    }

    pub(super) fn link(&self, link: usize) -> &Link {
        self.links.get(link).expect("numbers are the world's own")
    }

    fn now_ms(&self) -> u64 {
        self.agenda.now_ms()
    }

    /// Whether packets get through.
    pub(super) fn passes(&self, link: usize) -> bool {
        let [a, b] = self.link(link).ends.map(|end| self.machine(end));
        a.is_up && b.is_up && (!self.is_cut || a.is_far == b.is_far)
    }

    /// Whether both ends would have the connection.
    pub(super) fn is_wanted(&self, link: usize) -> bool {
        let it = self.link(link);
        let [a, b] = it.ends.map(|end| self.machine(end));
        let admits = |one: &Machine, other: &Machine| one.lie.is_some() || one.knows(&other.node_key);
        it.is_configured || (admits(a, b) && admits(b, a))
    }

    fn dial(&mut self, link: usize) {
        if self.link(link).is_open {
            return;
        }
        if !self.passes(link) || !self.is_wanted(link) {
            // In a healed network everybody is there, so the last dial is the one that counts.
            let [a, b] = self.link(link).ends.map(|end| self.machine(end).is_up);
            if a && b {
                self.redial_later(link);
            }
            return;
        }
        let it = self.links.get_mut(link).expect("numbers are the world's own");
        (it.is_open, it.opened) = (true, it.opened + 1);
        let [a, b] = it.ends;
        for (number, other) in [(a, b), (b, a)] {
            let peer = self.machine(other).peer;
            match self.machine(number).lie {
                Some(lie) => {
                    if let Some(have) = lie.claim() {
                        let bytes = self.encode_request(have);
                        self.send(link, number, Message::Request { id: 0, bytes });
                    }
                }
                None => self.feed(number, Input::Peer(peer)),
            }
        }
    }

    fn redial_later(&mut self, link: usize) {
        let at_ms = self.now_ms() + self.draw.between(REDIAL_MS.0, REDIAL_MS.1);
        self.agenda.at_ms(at_ms, Event::Redial { link });
    }

    fn close(&mut self, link: usize) {
        let it = self.links.get_mut(link).expect("numbers are the world's own");
        if !std::mem::replace(&mut it.is_open, false) {
            return;
        }
        let [a, b] = it.ends;
        for (number, other) in [(a, b), (b, a)] {
            let peer = self.machine(other).peer;
            self.feed(number, Input::Gone(peer));
        }
        self.redial_later(link);
    }

    fn start(&mut self, number: Number) {
        let now = Moment(self.now_ms());
        let machine = self.machine_mut(number);
        if std::mem::replace(&mut machine.is_up, true) {
            return;
        }
        machine.exchange = RosterExchange::new(now);
        self.tell_held(number);
        for link in self.machine(number).links.clone() {
            self.redial_later(link);
        }
    }

    fn encode_request(&self, have: RosterVersion) -> Vec<u8> {
        RosterRequest { mesh: self.mesh.public().bytes(), have }.encode().expect("it has a fixed size")
    }

    fn send(&mut self, link: usize, from: Number, message: Message) {
        let (Message::Request { bytes, .. } | Message::Reply { bytes, .. }) = &message;
        self.trace.update(self.agenda.now_ms().to_le_bytes());
        self.trace.update(from.to_le_bytes());
        self.trace.update(bytes.len().to_le_bytes());
        let now_ms = self.now_ms();
        self.counts.bytes += bytes.len() as u64;
        if (QUIET_MS.0..QUIET_MS.1).contains(&now_ms) {
            self.counts.quiet_bytes += bytes.len() as u64;
        }
        let at_ms = now_ms + self.scenario.delay_ms + self.draw.below(self.scenario.jitter_ms + 1);
        let opened = self.link(link).opened;
        self.agenda.at_ms(at_ms, Event::Arrives { link, opened, from, message });
    }

    fn receive(&mut self, link: usize, from: Number, message: Message) {
        let [a, b] = self.link(link).ends;
        let to = if from == a { b } else { a };
        let peer = self.machine(from).peer;
        match (message, self.machine(to).lie) {
            (Message::Request { id, .. }, Some(lie)) => {
                if let Some(reply) = lie.reply(&self.lies) {
                    let bytes = reply.encode().expect("a roster fits");
                    self.send(link, to, Message::Reply { id, bytes });
                }
            }
            (Message::Reply { .. }, Some(_)) => {}
            (Message::Request { id, bytes }, None) => {
                let number = self.agenda.next_number();
                self.asked.insert((to, number), (link, from, id));
                self.feed(to, Input::Request { from: peer, id: number, bytes });
            }
            (Message::Reply { id, bytes }, None) => self.feed(to, Input::Response { from: peer, id, bytes }),
        }
    }

    fn feed(&mut self, number: Number, input: Input) {
        let now_ms = self.now_ms();
        let machine = self.machine_mut(number);
        if machine.lie.is_some() || !machine.is_up {
            return;
        }
        machine.exchange.handle(Moment(now_ms), input);
        while let Some(output) = self.machine_mut(number).exchange.poll() {
            self.perform(number, output);
        }
        let machine = self.machine_mut(number);
        let deadline = machine.exchange.deadline().map(|deadline| deadline.0.max(now_ms + 1));
        if let Some(deadline) = deadline.filter(|deadline| machine.tick_ms.is_none_or(|tick| tick > *deadline)) {
            machine.tick_ms = Some(deadline);
            self.agenda.at_ms(deadline, Event::Tick(number));
        }
    }

    fn perform(&mut self, number: Number, output: Output) {
        match output {
            Output::Request { to, id, bytes } => {
                if let Some(link) = self.find_link(number, &to) {
                    self.send(link, number, Message::Request { id, bytes });
                }
                self.agenda.at_ms(self.now_ms() + FAILED_MS, Event::Fails { machine: number, id });
            }
            Output::Respond { id, bytes } => {
                let Some((link, to, id)) = self.asked.remove(&(number, id)) else { return };
                if matches!(RosterReply::decode(&bytes), Ok(RosterReply::Newer(_))) {
                    let other = self.machine(to);
                    let (node_key, is_honest) = (other.node_key, other.lie.is_none());
                    let machine = self.machines.get(number).expect("numbers are the world's own");
                    self.checker.check_given(number, machine, to, &node_key);
                    self.counts.rosters_sent += u64::from(is_honest);
                }
                self.send(link, number, Message::Reply { id, bytes });
            }
            Output::Heard { roster, .. } => {
                let machine = self.machines.get(number).expect("numbers are the world's own");
                self.checker.check_heard(number, machine, &roster);
                self.agenda.at_ms(self.now_ms() + KEEP_MS, Event::Keep { machine: number, roster });
            }
            Output::Misbehaved { peer, .. } => {
                let accused = self.numbers.get(&peer).copied().unwrap_or(0);
                let is_honest = self.machine(accused).lie.is_none();
                self.checker.check_blamed(number, accused, is_honest);
            }
        }
    }

    fn find_link(&self, number: Number, to: &PeerId) -> Option<usize> {
        let other = *self.numbers.get(to)?;
        let links = &self.machine(number).links;
        links.iter().copied().find(|link| self.link(*link).ends.contains(&other) && self.link(*link).is_open)
    }

    /// Keeps a roster that was heard, as the daemon does: unless a newer one was kept meanwhile.
    fn keep(&mut self, number: Number, roster: Arc<SignedRoster>) {
        let machine = self.machine(number);
        if !machine.is_up || roster.version() <= machine.version() {
            return;
        }
        self.counts.rosters_taken += 1;
        self.put_in_force(number, roster);
        let machine = self.machine(number);
        let (Some(journal), Some(held)) = (&machine.journal, &machine.held) else { return };
        if let Some(completed) = journal.complete(machine.node_key, held.roster()) {
            self.counts.completions += 1;
            self.sign_as_next(number, completed);
        }
    }

    fn put_in_force(&mut self, number: Number, roster: Arc<SignedRoster>) {
        let now_ms = self.now_ms();
        let before = self.machine_mut(number).held.replace(Arc::clone(&roster));
        for (node_key, removed_ms) in &self.removed_ms {
            let was_member = before.as_ref().is_some_and(|before| before.member(node_key).is_some());
            if was_member && roster.member(node_key).is_none() {
                self.refused_after_ms.push(now_ms - removed_ms);
            }
        }
        let unwanted: Vec<usize> =
            self.machine(number).links.iter().copied().filter(|link| !self.is_wanted(*link)).collect();
        for link in unwanted {
            self.close(link);
        }
        self.tell_held(number);
    }

    fn tell_held(&mut self, number: Number) {
        let membership = self.machine(number).membership(&self.mesh.public());
        self.feed(number, Input::Held(Some(membership)));
    }

    /// Signs a change, as `narmesh mesh` does on a machine with the mesh key.
    fn sign(&mut self, signer: Number, change: impl FnOnce(&mut Roster)) {
        let machine = self.machine_mut(signer);
        let (Some(held), Some(journal)) = (machine.held.clone(), &mut machine.journal) else { return };
        let mut changed = held.roster().clone();
        change(&mut changed);
        journal.note(machine.node_key, held.roster(), &mut changed);
        self.counts.edits += 1;
        self.sign_as_next(signer, changed);
    }

    fn sign_as_next(&mut self, signer: Number, mut roster: Roster) {
        roster.version += 1;
        roster.issued_at_ms = self.now_ms();
        let signed = Arc::new(SignedRoster::sign(&self.mesh, roster).expect("a good roster"));
        self.checker.note_signed(&signed);
        self.put_in_force(signer, signed);
    }

    fn admit(&mut self, signer: Number) {
        let number = self.machines.len();
        let mut machine = Machine::new(&mut self.draw);
        machine.is_far = self.machine(signer).is_far;
        let member = machine.to_member(number);
        self.checker.note_admitted(machine.node_key);
        self.numbers.insert(machine.peer, number);
        self.machines.push(machine);
        let others = self.draw.some((2..self.scenario.machines).collect(), self.scenario.connections.saturating_sub(1));
        for other in others.into_iter().chain([signer]) {
            let link = self.links.len();
            self.links.push(Link::new(other, number, false));
            self.machine_mut(other).links.push(link);
            self.machine_mut(number).links.push(link);
            self.redial_later(link);
        }
        self.sign(signer, |roster| roster.put(member));
        // The reply to its request to join.
        let roster = self.machine(signer).held.clone();
        self.machine_mut(number).held = roster;
        self.tell_held(number);
    }

    /// Removes any member but a signer, whether it is there or not.
    fn remove(&mut self, signer: Number) {
        let signers: BTreeSet<[u8; 32]> = (0..2).map(|number| self.machine(number).node_key).collect();
        let Some(held) = self.machine(signer).held.clone() else { return };
        let members = held.roster().members.iter().map(|member| member.node_key);
        let candidates: Vec<[u8; 32]> = members.filter(|key| !signers.contains(key)).collect();
        let Some(node_key) = self.draw.pick(&candidates) else { return };
        self.checker.note_removed(node_key);
        if !self.is_cut {
            self.removed_ms.insert(node_key, self.now_ms());
        }
        self.sign(signer, |roster| roster.members.retain(|member| member.node_key != node_key));
    }
}

impl Healing for World {
    type Event = Event;

    fn agenda(&mut self) -> &mut Agenda<Event> {
        &mut self.agenda
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrives { link, opened, from, message } => {
                let it = self.link(link);
                if it.is_open && it.opened == opened && self.passes(link) {
                    self.receive(link, from, message);
                }
            }
            Event::Fails { machine, id } => self.feed(machine, Input::Failed { id }),
            Event::Keep { machine, roster } => self.keep(machine, roster),
            Event::Tick(machine) => {
                self.machine_mut(machine).tick_ms = None;
                self.feed(machine, Input::Tick);
            }
            Event::Join { signer } => self.admit(signer),
            Event::Remove { signer } => self.remove(signer),
            Event::Rename { signer } => {
                let name = format!("renamed at {}", self.now_ms());
                self.sign(signer, |roster| {
                    roster.members.iter_mut().take(1).for_each(|member| member.name.clone_from(&name))
                });
            }
            Event::Crash { machine } => {
                self.machine_mut(machine).is_up = false;
                for link in self.machine(machine).links.clone() {
                    self.close(link);
                }
            }
            Event::Start { machine } => self.start(machine),
            Event::Cut => {
                self.is_cut = true;
                for number in 0..self.machines.len() {
                    // A signer in each half.
                    self.machine_mut(number).is_far = if number < 2 { number == 1 } else { self.draw.chance(500) };
                }
                for link in 0..self.links.len() {
                    self.agenda.at_ms(self.now_ms() + GIVEN_UP_MS, Event::GivenUp { link });
                }
            }
            Event::GivenUp { link } => {
                if !self.passes(link) {
                    self.close(link);
                }
            }
            Event::Redial { link } => self.dial(link),
        }
    }

    /// Ends the cut and all that machines suffer.
    fn heal(&mut self) {
        self.is_cut = false;
        for machine in 0..self.machines.len() {
            self.start(machine);
        }
        for link in 0..self.links.len() {
            self.redial_later(link);
        }
    }

    /// An honest member that has not the newest roster, in words.
    fn find_difference(&self) -> Option<String> {
        let newest = self.newest()?;
        let reached = self.find_reached(&newest);
        let members = self
            .machines
            .iter()
            .enumerate()
            .filter(|(number, machine)| reached.contains(number) && newest.member(&machine.node_key).is_some());
        let (number, machine) = members.into_iter().find(|(_, machine)| machine.version() != newest.version())?;
        let (has, is) = (machine.version().version, newest.version().version);
        Some(format!("machine {number} has version {has} of the roster, the newest is {is}"))
    }
}
