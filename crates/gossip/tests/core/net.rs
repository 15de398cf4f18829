//! A few cores, a virtual clock, and a network that delays, drops and cuts on command.

use libp2p_identity::{Keypair, PeerId};
use narmesh_gossip::{
    Event, Forward, Gossip, GossipConfig, Input, Misdeed, Moment, Now, Output, PathChange, PeerView, Persisted, Record,
};
use narmesh_protocol::{Envelope, HashPart, StoreDir};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Our wall clock at the start: 2026-11-21.
pub const WALL_MS: u64 = 1_795_219_200_000;
/// The delay of a message in one direction, milliseconds.
pub const DELAY_MS: u64 = 5;

pub fn keypair(number: u8) -> Keypair {
    Keypair::ed25519_from_bytes([number; 32]).unwrap()
}

pub fn peer(number: u8) -> PeerId {
    keypair(number).public().to_peer_id()
}

pub fn part(number: u32) -> HashPart {
    let mut bytes = [7; 20];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[10..14].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
    HashPart(bytes)
}

pub fn parts(numbers: std::ops::Range<u32>) -> BTreeSet<HashPart> {
    numbers.map(part).collect()
}

pub fn config(number: u8) -> GossipConfig {
    GossipConfig::new(keypair(number), StoreDir::parse("/nix/store").unwrap(), "test/1", [number; 32])
}

/// One machine: its core and its disk.
pub struct Node {
    pub core: Gossip,
    pub persisted: Persisted,
    newest: BTreeMap<PeerId, Vec<u8>>,
    pub events: Vec<Event>,
    pub misdeeds: Vec<(PeerId, Misdeed)>,
    pub verdicts: Vec<Forward>,
    pub published: Vec<Vec<u8>>,
    /// All answers that this machine sent, as bytes.
    pub responses: Vec<(PeerId, Vec<u8>)>,
}

/// Nodes are numbered from 1; their keys follow from the number.
pub struct Net {
    pub now_ms: u64,
    pub nodes: BTreeMap<u8, Node>,
    links: BTreeSet<(u8, u8)>,
    flying: BTreeMap<(u64, u64), (u8, Input)>,
    sent: u64,
    /// While this is set, announcements reach nobody.
    pub gossip_lost: bool,
    /// How many of 256 messages are lost; which ones follows from a fixed sequence.
    pub loss: u8,
    pub wall_skew_ms: BTreeMap<u8, i64>,
}

impl Net {
    pub fn new() -> Self {
        Self {
            now_ms: 1_000,
            nodes: BTreeMap::new(),
            links: BTreeSet::new(),
            flying: BTreeMap::new(),
            sent: 0,
            gossip_lost: false,
            loss: 0,
            wall_skew_ms: BTreeMap::new(),
        }
    }

    /// Nodes 1 to `count`. The pairs in `trust` trust each other; nobody has any paths.
    pub fn with_trust(count: u8, trust: &[(u8, u8)]) -> Self {
        let mut net = Self::new();
        for number in 1..=count {
            net.start(number, Persisted::default());
            net.trust(number, trust);
            net.paths(number, 0..0);
        }
        net
    }

    /// Every node trusts and is connected to every other.
    pub fn full(count: u8) -> Self {
        let pairs: Vec<_> = (1..=count).flat_map(|a| (a + 1..=count).map(move |b| (a, b))).collect();
        let mut net = Self::with_trust(count, &pairs);
        pairs.iter().for_each(|(a, b)| net.connect(*a, *b));
        net.run(1_000);
        net
    }

    pub fn trust(&mut self, number: u8, pairs: &[(u8, u8)]) {
        let trusted = pairs.iter().filter_map(|(a, b)| match (*a == number, *b == number) {
            (true, _) => Some(peer(*b)),
            (_, true) => Some(peer(*a)),
            _ => None,
        });
        self.input(number, Input::Allowlist(trusted.collect()));
    }

    pub fn now(&self, number: u8) -> Now {
        let skew = self.wall_skew_ms.get(&number).copied().unwrap_or(0);
        Now { moment: Moment(self.now_ms), wall_ms: (WALL_MS + self.now_ms).checked_add_signed(skew).unwrap() }
    }

    pub fn start(&mut self, number: u8, persisted: Persisted) {
        self.start_with(number, persisted, config(number));
    }

    pub fn start_with(&mut self, number: u8, persisted: Persisted, config: GossipConfig) {
        let core = Gossip::new(self.now(number), config, persisted.clone());
        let newest = BTreeMap::new();
        let node = Node {
            core,
            persisted,
            newest,
            events: vec![],
            misdeeds: vec![],
            verdicts: vec![],
            published: vec![],
            responses: vec![],
        };
        self.nodes.insert(number, node);
    }

    /// Restarts a node, with its disk or without; then it is connected to nobody.
    pub fn restart(&mut self, number: u8, keep_disk: bool) {
        let old = self.nodes.remove(&number).unwrap();
        for other in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.disconnect(number, other);
        }
        self.flying.retain(|_, (to, _)| *to != number);
        let mut persisted = old.persisted;
        persisted.newest = old.newest.values().cloned().collect();
        self.start(number, if keep_disk { persisted } else { Persisted::default() });
    }

    pub fn connect(&mut self, a: u8, b: u8) {
        self.links.insert((a.min(b), a.max(b)));
        self.input(a, Input::Connected(peer(b)));
        self.input(b, Input::Connected(peer(a)));
    }

    pub fn disconnect(&mut self, a: u8, b: u8) {
        if self.links.remove(&(a.min(b), a.max(b))) {
            for (number, other) in [(a, b), (b, a)] {
                if self.nodes.contains_key(&number) {
                    self.input(number, Input::Disconnected(peer(other)));
                }
            }
        }
    }

    pub fn linked(&self, a: u8, b: u8) -> bool {
        self.links.contains(&(a.min(b), a.max(b)))
    }

    pub fn paths(&mut self, number: u8, numbers: std::ops::Range<u32>) {
        self.input(number, Input::Paths(PathChange::Replace(parts(numbers))));
    }

    pub fn update(&mut self, number: u8, added: std::ops::Range<u32>, removed: std::ops::Range<u32>) {
        let change = PathChange::Update { added: added.map(part).collect(), removed: removed.map(part).collect() };
        self.input(number, Input::Paths(change));
    }

    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[&number]
    }

    /// Whether `asker` would ask `holder` for this path.
    pub fn candidate(&self, asker: u8, holder: u8, path: u32) -> bool {
        self.node(asker).core.find_candidates(&part(path)).iter().any(|candidate| candidate.peer == peer(holder))
    }

    pub fn view(&self, number: u8, other: u8) -> PeerView {
        self.node(number).core.peers().find(|view| view.peer == peer(other)).unwrap()
    }

    pub fn pulled(&self, number: u8) -> Vec<(PeerId, PeerId, usize, bool)> {
        let pulled = |event: &Event| match event {
            Event::BodyPulled { owner, from, bytes, delta, .. } => Some((*owner, *from, *bytes, *delta)),
            _ => None,
        };
        self.node(number).events.iter().filter_map(pulled).collect()
    }

    pub fn clear(&mut self) {
        for node in self.nodes.values_mut() {
            node.events.clear();
            node.misdeeds.clear();
            node.verdicts.clear();
            node.published.clear();
            node.responses.clear();
        }
    }

    /// Lets `ms` pass.
    pub fn run(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        loop {
            let flight = self.flying.first_key_value().map(|((at, _), _)| *at);
            let deadline =
                self.nodes.iter().filter_map(|(number, node)| Some((node.core.deadline()?.0, *number))).min();
            let next = flight.into_iter().chain(deadline.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now_ms = self.now_ms.max(next);
            if flight == Some(next) {
                let (_, (to, input)) = self.flying.pop_first().unwrap();
                self.input(to, input);
            } else if let Some((at, number)) = deadline {
                self.input(number, Input::Tick);
                let after = self.nodes[&number].core.deadline();
                assert!(
                    after.is_none_or(|after| after.0 > at),
                    "a tick at its deadline left the deadline where it was"
                );
            }
        }
        self.now_ms = end;
    }

    pub fn input(&mut self, number: u8, input: Input) {
        let now = self.now(number);
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.core.handle(now, input);
        let outputs: VecDeque<Output> = std::iter::from_fn(|| node.core.poll()).collect();
        for output in outputs {
            self.perform(number, output);
        }
    }

    fn perform(&mut self, number: u8, output: Output) {
        let node = self.nodes.get_mut(&number).unwrap();
        match output {
            Output::Persist(Record::OwnEpoch(epoch)) => {
                assert!(node.persisted.own_epoch.is_none_or(|before| epoch > before), "an epoch was used twice");
                node.persisted.own_epoch = Some(epoch);
            }
            Output::Persist(Record::Newest { peer, envelope }) => drop(node.newest.insert(peer, envelope)),
            Output::Persist(Record::Forget(peer)) => drop(node.newest.remove(&peer)),
            Output::Publish(bytes) => {
                let epoch = Envelope::open(&bytes).unwrap().announcement().generation.epoch;
                assert_eq!(node.persisted.own_epoch, Some(epoch), "published before the epoch was persisted");
                node.published.push(bytes.clone());
                self.flood(number, &bytes);
            }
            Output::Judge { verdict, .. } => node.verdicts.push(verdict),
            Output::Request { to, id, bytes } => {
                self.deliver(number, to, Input::Request { from: peer(number), id, bytes })
            }
            Output::Respond { to, id, bytes } => {
                node.responses.push((to, bytes.clone()));
                self.deliver(number, to, Input::Response { from: peer(number), id, bytes });
            }
            Output::Penalize { peer, misdeed } => node.misdeeds.push((peer, misdeed)),
            Output::Event(event) => node.events.push(event),
        }
    }

    /// A simplified gossipsub: hop by hop to all connected nodes, whatever their verdicts.
    fn flood(&mut self, author: u8, bytes: &[u8]) {
        if self.gossip_lost {
            return;
        }
        let mut reached = BTreeMap::from([(author, (author, 0u64))]);
        let mut hop: Vec<u8> = vec![author];
        while let Some(from) = hop.pop() {
            let hops = reached[&from].1 + 1;
            for to in self.nodes.keys().copied().collect::<Vec<_>>() {
                if self.linked(from, to) && !reached.contains_key(&to) {
                    reached.insert(to, (from, hops));
                    hop.insert(0, to);
                }
            }
        }
        for (to, (from, hops)) in reached {
            if hops > 0 {
                let input = Input::Announcement {
                    id: self.sent,
                    author: peer(author),
                    from: peer(from),
                    bytes: bytes.to_vec(),
                };
                self.fly(to, hops * DELAY_MS, input);
            }
        }
    }

    fn deliver(&mut self, from: u8, to: PeerId, input: Input) {
        let Some(to) = self.nodes.keys().copied().find(|number| peer(*number) == to) else { return };
        self.sent += 1;
        let lost = (self.sent.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) < u64::from(self.loss);
        if self.linked(from, to) && !lost {
            self.fly(to, DELAY_MS, input);
        }
    }

    fn fly(&mut self, to: u8, delay_ms: u64, input: Input) {
        self.sent += 1;
        self.flying.insert((self.now_ms + delay_ms, self.sent), (to, input));
    }
}
