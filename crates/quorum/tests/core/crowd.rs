//! Nodes that exchange attestations over connections with 5 ms of delay, in virtual time.

use crate::stage::key;
use libp2p_identity::{Keypair, PeerId};
use narmesh_protocol::{Attestation, BuilderKey, HashPart, NarHash, Statement, StoreDir, StorePath};
use narmesh_quorum::exchange::{Exchange, Fault, Input, Moment, Output, Spoken, Taken};
use narmesh_quorum::reconcile::Shared;
use narmesh_quorum::wire::QuorumRequest;
use narmesh_quorum::{Claim, Insertion, Ledger, LedgerLimits, VerifiedStatement, WallMs};
use std::collections::{BTreeMap, BTreeSet};

const LINE_MS: u64 = 5;
/// A signature with these bytes counts as good here.
const GOOD: [u8; 64] = [1; 64];

/// Answers a request differently than an honest node would; `None` to answer honestly.
pub(crate) type Lie = Box<dyn Fn(&QuorumRequest) -> Option<Vec<u8>>>;

pub(crate) struct Node {
    pub(crate) peer: PeerId,
    pub(crate) ledger: Ledger,
    pub(crate) exchange: Exchange,
    pub(crate) kept: BTreeMap<(BuilderKey, HashPart), Vec<Attestation>>,
    pub(crate) faults: Vec<(PeerId, Fault)>,
    pub(crate) answered: Vec<(u64, bool)>,
    pub(crate) requests: usize,
    pub(crate) bytes: usize,
    pub(crate) lie: Option<Lie>,
}

enum Event {
    Request { from: usize, id: u64, bytes: Vec<u8> },
    Reply { from: usize, id: u64, bytes: Vec<u8> },
}

pub(crate) struct Crowd {
    pub(crate) now: u64,
    pub(crate) nodes: Vec<Node>,
    under_way: BTreeMap<(u64, u64), (usize, Event)>,
    /// Requests under way: the node that answers and the id of the request there, with the node that asked and its own id.
    asked: BTreeMap<(usize, u64), (usize, u64)>,
    numbers: u64,
}

pub(crate) fn attestation(builder: &str, path: &StorePath, letter: char) -> Attestation {
    let statement =
        Statement { path: path.clone(), nar_hash: NarHash([letter as u8; 32]), nar_size: 112, references: Vec::new() };
    Attestation {
        builder: key(builder),
        statement,
        attested_at_ms: 1_000,
        nix_signature: GOOD,
        dated_signature: [2; 64],
    }
}

fn verified(attestation: &Attestation) -> VerifiedStatement {
    let claim = Claim::of(&StoreDir::parse("/nix/store").unwrap(), &attestation.statement);
    let path = attestation.statement.path.hash_part();
    VerifiedStatement::from_record(attestation.builder, path, claim, Some(WallMs(attestation.attested_at_ms)), 400)
}

/// Both sides may tell each other of these builders, and count them.
pub(crate) fn spoken(builders: &[&str]) -> Spoken {
    let shared = || Shared::new(builders.iter().map(|name| key(name)));
    Spoken { told: shared(), counted: shared(), is_builder: false }
}

impl Crowd {
    pub(crate) fn new(count: usize, limits: LedgerLimits) -> Self {
        let node = |number: usize| {
            let mut secret = [7; 32];
            secret[0] = number as u8;
            let peer = Keypair::ed25519_from_bytes(secret).unwrap().public().to_peer_id();
            Node {
                peer,
                ledger: Ledger::new(limits),
                exchange: Exchange::new(Moment(0), [number as u8; 32]),
                kept: BTreeMap::new(),
                faults: Vec::new(),
                answered: Vec::new(),
                requests: 0,
                bytes: 0,
                lie: None,
            }
        };
        let nodes = (0..count).map(node).collect();
        Self { now: 0, nodes, under_way: BTreeMap::new(), asked: BTreeMap::new(), numbers: 0 }
    }

    /// Connects two nodes; `one` is what the first may say to the second, `two` the reverse.
    pub(crate) fn connect(&mut self, first: usize, second: usize, one: Spoken, two: Spoken) {
        let (first_id, second_id) = (self.nodes[first].peer, self.nodes[second].peer);
        self.input(first, Input::Peer { peer: second_id, spoken: one });
        self.input(second, Input::Peer { peer: first_id, spoken: two });
    }

    /// Connects every node with every other, for these builders.
    pub(crate) fn connect_all(&mut self, builders: &[&str]) {
        for first in 0..self.nodes.len() {
            for second in first + 1..self.nodes.len() {
                self.connect(first, second, spoken(builders), spoken(builders));
            }
        }
    }

    /// Gives a node attestations that it has verified itself.
    pub(crate) fn keeps(&mut self, node: usize, attestations: Vec<Attestation>) {
        self.take(node, attestations);
        self.input(node, Input::Grew);
    }

    pub(crate) fn knows(&self, node: usize, builder: &str, path: &StorePath) -> bool {
        self.nodes[node].ledger.votes(&path.hash_part()).any(|vote| vote.builder == key(builder))
    }

    pub(crate) fn input(&mut self, node: usize, input: Input) {
        let it = &mut self.nodes[node];
        it.exchange.handle(Moment(self.now), &it.ledger, input);
        while let Some(output) = self.nodes[node].exchange.poll() {
            self.perform(node, output);
        }
    }

    /// Lets time pass until `done`, at most `ms`; returns whether it was done.
    pub(crate) fn run(&mut self, ms: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + ms;
        loop {
            if done(self) {
                return true;
            }
            let due = self.nodes.iter().filter_map(|node| node.exchange.deadline()).map(|at| at.0).min();
            let event = self.under_way.keys().next().map(|(at, _)| *at);
            let Some(next) = due.into_iter().chain(event).min().filter(|at| *at <= end) else {
                self.now = end;
                return done(self);
            };
            self.now = self.now.max(next);
            if event == Some(next) {
                let (_, (node, event)) = self.under_way.pop_first().unwrap();
                self.arrive(node, event);
            } else {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].exchange.deadline().is_some_and(|at| at.0 <= self.now) {
                        self.input(node, Input::Tick);
                        let after = self.nodes[node].exchange.deadline();
                        assert!(after.is_none_or(|at| at.0 > self.now), "a deadline that does nothing");
                    }
                }
            }
        }
    }

    fn arrive(&mut self, node: usize, event: Event) {
        match event {
            Event::Request { from, id, bytes } => {
                self.numbers += 1;
                let number = self.numbers;
                self.asked.insert((node, number), (from, id));
                let lie = self.nodes[node].lie.as_ref().and_then(|lie| lie(&QuorumRequest::decode(&bytes).unwrap()));
                match lie {
                    // No reply is empty, so nothing comes.
                    Some(bytes) if bytes.is_empty() => {}
                    Some(bytes) => self.reply(node, number, bytes),
                    None => self.input(node, Input::Request { from: self.nodes[from].peer, id: number, bytes }),
                }
            }
            Event::Reply { from, id, bytes } => {
                self.input(node, Input::Response { from: self.nodes[from].peer, id, bytes });
            }
        }
    }

    fn perform(&mut self, node: usize, output: Output) {
        match output {
            Output::Request { to, id, bytes } => {
                let to = self.nodes.iter().position(|it| it.peer == to).unwrap();
                self.nodes[node].requests += 1;
                self.nodes[node].bytes += bytes.len();
                self.send(to, Event::Request { from: node, id, bytes });
            }
            Output::Respond { id, bytes, .. } => self.reply(node, id, bytes),
            Output::HandOver(hand_over) => {
                let kept = &self.nodes[node].kept;
                let bytes = hand_over.encode_reply(|key, path| kept.get(&(*key, *path)).cloned());
                self.reply(node, hand_over.id, bytes);
            }
            Output::Verify { id, attestations, .. } => {
                let taken = self.take(node, attestations);
                let grew = taken.new > 0;
                self.input(node, Input::Taken { id, taken });
                if grew {
                    self.input(node, Input::Grew);
                }
            }
            Output::Answered { id, last } => self.nodes[node].answered.push((id, last)),
            Output::Misbehaved { peer, fault } => {
                self.nodes[node].faults.push((peer, fault));
                // The gossip core does the same.
                if self.nodes[node].faults.iter().filter(|(blamed, _)| *blamed == peer).count() % 3 == 0 {
                    self.input(node, Input::SetAside { peer, lasting_ms: 300_000 });
                }
            }
            Output::Compared { .. } => {}
        }
    }

    fn take(&mut self, node: usize, attestations: Vec<Attestation>) -> Taken {
        let it = &mut self.nodes[node];
        let mut taken = Taken::default();
        for attestation in attestations {
            if attestation.nix_signature != GOOD {
                taken.refused += 1;
                continue;
            }
            taken.verified += 1;
            let verified = verified(&attestation);
            if let Insertion::New { evicted } = it.ledger.insert(&verified, Some(WallMs(self.now))) {
                taken.new += 1;
                taken.full.extend(evicted.iter().map(|gone| gone.builder).collect::<BTreeSet<_>>());
                for gone in evicted {
                    it.kept.remove(&(gone.builder, gone.hash_part));
                }
                it.kept.entry((verified.builder(), verified.hash_part())).or_default().push(attestation);
            }
        }
        taken
    }

    fn reply(&mut self, node: usize, id: u64, bytes: Vec<u8>) {
        let Some((to, id)) = self.asked.remove(&(node, id)) else { return };
        self.nodes[node].bytes += bytes.len();
        self.send(to, Event::Reply { from: node, id, bytes });
    }

    fn send(&mut self, to: usize, event: Event) {
        self.numbers += 1;
        self.under_way.insert((self.now + LINE_MS, self.numbers), (to, event));
    }
}
