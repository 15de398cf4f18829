//! Machines that attest, and the links between them.

use super::judge::{Judge, Stored};
use super::machine::{Machine, Number, path, store_dir};
use super::plan::{Plan, judge};
use super::schedule::{Event, Schedule};
use super::{QuorumReport, QuorumScenario};
use crate::cores::quorum::exchange::{Input, Moment, Output, Spoken, Taken};
use crate::cores::quorum::reconcile::Shared;
use crate::cores::quorum::{Insertion, State, VerifiedStatement, WallMs};
use crate::draw::Draw;
use crate::healing::Healing;
use crate::schedule::WALL_MS;
use libp2p_identity::PeerId;
use narmesh_protocol::{Attestation, BuilderKey, NixSignature, Statement, StorePath};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A connection over which nothing gets through is given up after `GIVEN_UP_MS`. After the heal it is dialled again within
/// `REDIAL_MS`.
const GIVEN_UP_MS: u64 = 10_000;
const REDIAL_MS: u64 = 4_000;
/// Size of an attestation on disk, bytes.
const BYTES: u32 = 400;

pub(super) struct World {
    schedule: Schedule,
    pub(super) judge: Judge,
    scenario: QuorumScenario,
    machines: Vec<Machine>,
    /// Builders by their keys. The first `hostile` machines are hostile, and the key of the machine after them is stolen.
    numbers: BTreeMap<BuilderKey, Number>,
    peers: BTreeMap<PeerId, Number>,
    links: Vec<(Number, Number, bool)>,
    cut: bool,
    /// Requests that wait for their answers, by the machine asked and its id: who asked, and the asker's id.
    asked: BTreeMap<(Number, u64), (Number, u64)>,
    /// Verified attestations by all of their bytes, because a hundred machines are shown the same ones.
    verified: BTreeMap<Vec<u8>, Option<VerifiedStatement>>,
    draw: Draw,
    trace: Sha256,
    /// Attestations made, attestations taken in, comparisons that ended, and bytes sent.
    counts: [u64; 4],
}

impl World {
    pub(super) fn new(scenario: QuorumScenario, seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let machines: Vec<_> = (0..scenario.builders).map(|_| Machine::new(&mut draw)).collect();
        let numbers = machines.iter().enumerate().map(|(n, machine)| (BuilderKey(machine.public.bytes()), n)).collect();
        let peers = machines.iter().enumerate().map(|(n, machine)| (machine.peer, n)).collect();
        let judge = judge(&scenario, &machines);
        let trace = Sha256::new().chain_update(b"narmesh-quorum-1;").chain_update(seed.to_le_bytes());
        let mut schedule = Schedule::default();
        let mut plan = Plan { scenario: &scenario, draw: &mut draw, schedule: &mut schedule };
        let links = plan.connect();
        (0..scenario.paths).for_each(|number| plan.add_path(number));
        schedule.at_ms(scenario.run_s.saturating_sub(scenario.cut_s) * 1_000, Event::Cut);
        Self {
            judge,
            machines,
            numbers,
            peers,
            links,
            schedule,
            cut: false,
            asked: BTreeMap::new(),
            verified: BTreeMap::new(),
            draw,
            trace,
            counts: [0; 4],
            scenario,
        }
    }

    fn is_hostile(&self, number: Number) -> bool {
        number < self.scenario.hostile
    }

    fn machine(&self, number: Number) -> &Machine {
        self.machines.get(number).expect("numbers are the world's own")
    }

    fn machine_mut(&mut self, number: Number) -> &mut Machine {
        self.machines.get_mut(number).expect("numbers are the world's own")
    }

    fn passes(&self, a: Number, b: Number) -> bool {
        !self.cut || self.machine(a).far == self.machine(b).far
    }

    fn set_link(&mut self, link: usize, open: bool) {
        let Some((a, b, is_open)) = self.links.get(link).copied() else { return };
        // A link opens only if packets get through, and is given up only if they do not.
        if is_open == open || open != self.passes(a, b) {
            return;
        }
        if let Some(link) = self.links.get_mut(link) {
            link.2 = open;
        }
        let everyone = Shared::new(self.numbers.keys().copied());
        for (number, other) in [(a, b), (b, a)] {
            let peer = self.machine(other).peer;
            let spoken = Spoken { told: everyone.clone(), counted: everyone.clone(), is_builder: true };
            self.feed(number, if open { Input::Peer { peer, spoken } } else { Input::Gone(peer) });
        }
    }

    fn feed(&mut self, number: Number, input: Input) {
        let now_ms = self.schedule.now_ms();
        let machine = self.machine_mut(number);
        machine.exchange.handle(Moment(now_ms), &machine.ledger, input);
        while let Some(output) = self.machine_mut(number).exchange.poll() {
            self.perform(number, output);
        }
        let machine = self.machine_mut(number);
        let deadline = machine.exchange.deadline().map(|deadline| deadline.0.max(now_ms + 1));
        if let Some(deadline) = deadline.filter(|deadline| machine.tick_ms.is_none_or(|tick| tick > *deadline)) {
            machine.tick_ms = Some(deadline);
            self.schedule.at_ms(deadline, Event::Tick(number));
        }
    }

    fn perform(&mut self, number: Number, output: Output) {
        self.trace.update(self.schedule.now_ms().to_le_bytes());
        self.trace.update(number.to_le_bytes());
        match output {
            Output::Request { to, id, bytes } => {
                let Some(to) = self.peers.get(&to).copied() else { return };
                self.send(bytes, |bytes| Event::Request { from: number, to, id, bytes });
            }
            Output::Respond { id, bytes, .. } => self.send_reply(number, id, bytes),
            Output::HandOver(hand_over) => {
                let kept = &self.machine(number).kept;
                let bytes = hand_over.encode_reply(|key, path| kept.get(&(*key, *path)).cloned());
                self.send_reply(number, hand_over.id, bytes);
            }
            Output::Verify { id, attestations, .. } => {
                let mut taken = Taken::default();
                for attestation in attestations {
                    let verifies = self.verify_once(&attestation).is_some();
                    taken.verified += usize::from(verifies);
                    taken.refused += usize::from(!verifies);
                    // Hostile machines hand on nothing of others, so they need not have it.
                    taken.new += usize::from(verifies && !self.is_hostile(number) && self.take(number, attestation));
                }
                let grew = taken.new > 0;
                self.feed(number, Input::Taken { id, taken });
                if grew {
                    self.feed(number, Input::Grew);
                }
            }
            Output::Misbehaved { peer, fault } => {
                let accused = self.peers.get(&peer).copied().unwrap_or(0);
                if !self.is_hostile(accused) {
                    self.judge.violations.push(format!("machine {number} blames {accused}, who is honest: {fault:?}"));
                }
            }
            Output::Compared { .. } => self.counts[2] += 1,
            Output::Answered { .. } => {}
        }
    }

    fn send_reply(&mut self, number: Number, id: u64, bytes: Vec<u8>) {
        let Some((to, id)) = self.asked.remove(&(number, id)) else { return };
        self.send(bytes, |bytes| Event::Reply { from: number, to, id, bytes });
    }

    fn send(&mut self, bytes: Vec<u8>, event: impl FnOnce(Vec<u8>) -> Event) {
        self.trace.update(&bytes);
        self.counts[3] += bytes.len() as u64;
        let at_ms = self.schedule.now_ms() + self.scenario.delay_ms + self.draw.below(self.scenario.jitter_ms + 1);
        self.schedule.at_ms(at_ms, event(bytes));
    }

    fn verify_once(&mut self, attestation: &Attestation) -> Option<VerifiedStatement> {
        let signer = self.numbers.get(&attestation.builder).copied()?;
        let public = &self.machines.get(signer)?.public;
        let verify = || VerifiedStatement::attestation(&store_dir(), attestation, public, BYTES);
        self.verified.entry(attestation.encode().ok()?).or_insert_with(verify).clone()
    }

    /// Puts an attestation into the ledger and among the kept attestations. Returns whether it is new.
    fn take(&mut self, number: Number, attestation: Attestation) -> bool {
        let Some(verified) = self.verify_once(&attestation) else { return false };
        let key = (verified.builder(), verified.hash_part());
        let path = attestation.statement.path.clone();
        let new = self.store(number, &verified, &path, true);
        if new {
            self.counts[1] += 1;
            self.machine_mut(number).kept.entry(key).or_default().push(attestation);
        }
        new
    }

    fn hear_bare(&mut self, number: Number, signer: Number, statement: &Statement) {
        let it = self.machine(signer);
        let (signature, public): (NixSignature, _) = (it.secret.sign(&statement.fingerprint(&store_dir())), &it.public);
        let verified = VerifiedStatement::bare_signature(&store_dir(), statement, &signature, public, BYTES);
        if let Some(verified) = verified {
            self.store(number, &verified, &statement.path, false);
        }
    }

    fn store(&mut self, number: Number, verified: &VerifiedStatement, path: &StorePath, dated: bool) -> bool {
        let at = WallMs(WALL_MS + self.schedule.now_ms());
        let Some(builder) = self.numbers.get(&verified.builder()).copied() else { return false };
        let machine = self.machines.get_mut(number).expect("numbers are the world's own");
        let inserted = machine.ledger.insert(verified, Some(at));
        let new = matches!(inserted, Insertion::New { .. } | Insertion::Upgraded);
        if new {
            let stored = machine.taken_in.entry(path.clone()).or_default();
            stored.push(Stored { builder, fingerprint: verified.claim().fingerprint, dated, at });
            if number >= self.scenario.hostile {
                self.judge.judge(number, &machine.ledger, path, stored);
            }
        }
        new
    }

    pub(super) fn into_report(mut self, seed: u64, equal_after_ms: Option<u64>) -> QuorumReport {
        let mut states = [0; 4];
        let policy = self.judge.policies.first();
        if let (Some(policy), Some(machine)) = (policy, self.machines.last()) {
            for number in 0..self.scenario.paths {
                let at = match policy.judge(&machine.ledger, &path(number, self.scenario.clustered)).state {
                    State::Agreed | State::ContentAddressed => 0,
                    State::Short => 1,
                    State::Conflict => 2,
                    State::None => 3,
                };
                states.iter_mut().skip(at).take(1).for_each(|count| *count += 1);
            }
        }
        self.trace.update(format!("{states:?}"));
        let [attestations, taken, comparisons, bytes] = self.counts;
        QuorumReport {
            about: self.scenario.about,
            builders: self.machines.len(),
            seed,
            attestations,
            taken,
            comparisons,
            bytes: bytes / self.machines.len() as u64,
            states,
            judged: self.judge.judged,
            equal_after_ms,
            violations: self.judge.violations,
            digest: self.trace.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

impl Healing for World {
    type Event = Event;

    fn agenda(&mut self) -> &mut Schedule {
        &mut self.schedule
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Request { from, to, id, bytes } => {
                if self.passes(from, to) {
                    let (number, peer) = (self.schedule.next_number(), self.machine(from).peer);
                    self.asked.insert((to, number), (from, id));
                    self.feed(to, Input::Request { from: peer, id: number, bytes });
                }
            }
            Event::Reply { from, to, id, bytes } => {
                if self.passes(from, to) {
                    let peer = self.machine(from).peer;
                    self.feed(to, Input::Response { from: peer, id, bytes });
                }
            }
            Event::Tick(number) => {
                self.machine_mut(number).tick_ms = None;
                self.feed(number, Input::Tick);
            }
            Event::Attest { machine, signer, statement, at_ms } => {
                let attestation = Attestation::sign(&self.machine(signer).secret, &store_dir(), statement, at_ms);
                self.counts[0] += 1;
                if !self.is_hostile(machine) {
                    let said =
                        VerifiedStatement::attestation(&store_dir(), &attestation, &self.machine(signer).public, BYTES);
                    let path = attestation.statement.path.clone();
                    self.judge.honest.entry(path).or_default().extend(said.map(|said| said.claim().fingerprint));
                }
                self.take(machine, attestation);
                self.feed(machine, Input::Grew);
            }
            Event::Bare { machine, signer, statement } => self.hear_bare(machine, signer, &statement),
            Event::Cut => {
                self.cut = true;
                for number in 0..self.machines.len() {
                    self.machine_mut(number).far = self.draw.chance(500);
                }
                for link in 0..self.links.len() {
                    self.schedule.at_ms(self.schedule.now_ms() + GIVEN_UP_MS, Event::GivenUp { link });
                }
            }
            Event::GivenUp { link } => self.set_link(link, false),
            Event::Redial { link } => self.set_link(link, true),
        }
    }

    /// Ends the cut. Connections that were given up are dialled again.
    fn heal(&mut self) {
        self.cut = false;
        for link in 0..self.links.len() {
            if self.links.get(link).is_some_and(|(.., open)| !open) {
                let at_ms = self.schedule.now_ms() + self.draw.between(250, REDIAL_MS);
                self.schedule.at_ms(at_ms, Event::Redial { link });
            }
        }
    }

    /// The first path on which two honest machines have different verdicts, in words.
    fn find_difference(&self) -> Option<String> {
        let policy = self.judge.policies.first()?;
        let honest = self.machines.iter().enumerate().skip(self.scenario.hostile);
        (0..self.scenario.paths).map(|number| path(number, self.scenario.clustered)).find_map(|path| {
            let verdict = |machine: &Machine| {
                let verdict = policy.judge(&machine.ledger, &path);
                (verdict.state, verdict.agreed().map(|agreed| agreed.claim.fingerprint))
            };
            let first = verdict(self.machines.get(self.scenario.hostile)?);
            let (other, differs) = honest
                .clone()
                .map(|(number, machine)| (number, verdict(machine)))
                .find(|(_, other)| *other != first)?;
            let (here, there) = (first.0, differs.0);
            Some(format!("{path} is {here:?} at machine {} and {there:?} at {other}", self.scenario.hostile))
        })
    }
}
