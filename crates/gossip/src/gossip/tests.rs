//! Arbitrary inputs in any order: nothing panics, and nothing grows beyond its bound.

use super::{Gossip, GossipConfig, Persisted};
use crate::exchange::Context;
use crate::exchange::pull::IN_FLIGHT_MAX;
use crate::input::{Input, PathChange, ProbeOutcome};
use crate::output::Output;
use crate::peers::kept::KeptSummary;
use crate::peers::misdeed::Misdeed;
use libp2p_identity::{Keypair, PeerId};
use narmesh_machine::{Moment, Now};
use narmesh_protocol::wire::{GossipReply, GossipRequest, Have, Sync};
use narmesh_protocol::{
    Announcement, AudienceDigest, Envelope, Generation, HASH_ID_V1, HashPart, StoreDir, Summary, SummaryDelta,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};

const WALL_MS: u64 = 1_795_219_200_000;
const PEERS: u64 = 6;

/// Draws inputs that are close enough to valid ones to reach all code.
struct Chaos {
    rng: ChaCha8Rng,
    keys: Vec<Keypair>,
    /// Requests that the core has sent and bytes that it was given, to be answered, replayed and changed.
    asked: Vec<(PeerId, u64, Option<AudienceDigest>)>,
    seen: Vec<Vec<u8>>,
    step: u64,
    /// The digest of the body that each peer announced last.
    newest: BTreeMap<AudienceDigest, [u8; 32]>,
    bodies: BTreeMap<[u8; 32], Vec<u8>>,
}

impl Chaos {
    fn below(&mut self, below: u64) -> u64 {
        self.rng.next_u64() % below
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len.max(1) as u64)).unwrap()
    }

    fn peer(&mut self) -> PeerId {
        let index = self.index(self.keys.len());
        self.keys[index].public().to_peer_id()
    }

    fn part(&mut self) -> HashPart {
        let mut bytes = [0; 20];
        bytes[0] = u8::try_from(self.below(200)).unwrap();
        HashPart(bytes)
    }

    fn garbage(&mut self) -> Vec<u8> {
        let len = self.index(300);
        (0..len).map(|_| self.rng.next_u64().to_le_bytes()[0]).collect()
    }

    fn body(&mut self) -> Vec<u8> {
        let mut audience: Vec<_> = self.keys.iter().map(|key| AudienceDigest::of(&key.public().to_peer_id())).collect();
        audience.sort_unstable();
        let bytes = if self.below(40) == 0 { 1_000 } else { 1_024 << self.below(2) };
        let fill = if self.below(40) == 0 { 0xff } else { [0, 0x11, 0x55][self.index(3)] };
        let summary = Summary {
            hash_id: HASH_ID_V1 + u32::from(self.below(40) == 0),
            items: u64::from(self.below(40) == 0),
            audience,
            addresses: vec![],
            filter_bytes: vec![fill; bytes],
        };
        let body = summary.encode().unwrap();
        self.bodies.insert(Summary::digest(&body), body.clone());
        body
    }

    fn envelope(&mut self) -> Vec<u8> {
        let body = self.body();
        let announcement = Announcement {
            generation: self.generation(),
            path_count: 0,
            body_digest: Summary::digest(&body),
            body_bytes: u32::try_from(body.len()).unwrap(),
            lifetime_s: u32::try_from(self.below(4) * 60).unwrap(),
            issued_at_ms: WALL_MS,
        };
        let key = self.index(self.keys.len());
        self.newest.insert(AudienceDigest::of(&self.keys[key].public().to_peer_id()), announcement.body_digest);
        Envelope::seal(&self.keys[key], announcement).unwrap().as_bytes().to_vec()
    }

    /// An envelope with the core's own signature, sometimes newer than everything that it has published.
    fn yours(&mut self) -> Vec<u8> {
        let mut announcement = *Envelope::open(&self.envelope()).unwrap().announcement();
        announcement.generation.epoch += self.below(4) * (self.step + 1_000);
        Envelope::seal(&self.keys[0], announcement).unwrap().as_bytes().to_vec()
    }

    /// Bytes that are new, old, changed or garbage.
    fn bytes(&mut self, fresh: impl FnOnce(&mut Self) -> Vec<u8>) -> Vec<u8> {
        let mut bytes = match self.below(60) {
            0 => self.garbage(),
            1..=10 if !self.seen.is_empty() => {
                let index = self.index(self.seen.len());
                self.seen[index].clone()
            }
            _ => fresh(self),
        };
        if self.below(60) == 0 && !bytes.is_empty() {
            let at = self.index(bytes.len());
            bytes[at] ^= 1 << self.below(8);
        }
        self.seen.push(bytes.clone());
        if self.seen.len() > 60 {
            self.seen.remove(0);
        }
        bytes
    }

    /// A generation. They grow slowly, so that most are news.
    fn generation(&mut self) -> Generation {
        self.step += 1;
        Generation { epoch: WALL_MS + self.step / 200 + self.below(3), seq: self.step % 200 / 20 }
    }

    fn request(&mut self) -> Vec<u8> {
        let generation = self.generation();
        let owner = AudienceDigest::of(&self.peer());
        let request = match self.below(2) {
            0 => GossipRequest::Pull { owner, generation, have_seq: Some(self.below(4)) },
            _ => {
                let store_dir = if self.below(90) == 0 { "/gnu/store" } else { "/nix/store" }.to_owned();
                let yours = (self.below(3) == 0).then(|| self.yours());
                GossipRequest::Sync(Sync {
                    store_dir,
                    software: "x".into(),
                    yours,
                    have: vec![Have { owner, generation }],
                })
            }
        };
        request.encode().unwrap()
    }

    fn reply(&mut self) -> Vec<u8> {
        let reply = match self.below(60) {
            0..=20 => GossipReply::Absent,
            21..=23 => GossipReply::Busy,
            24 => {
                let positions = vec![1, 5, u32::try_from(self.below(9_000)).unwrap() + 6];
                let delta =
                    SummaryDelta { base_seq: self.below(5), items: 1, positions, audience: None, addresses: None };
                GossipReply::Delta(delta.encode().unwrap())
            }
            25 => {
                let yours = (self.below(3) == 0).then(|| self.yours());
                let news = (0..self.below(4)).map(|_| self.envelope()).collect();
                GossipReply::Sync { store_dir: "/nix/store".into(), software: "x".into(), yours, news }
            }
            _ => {
                let index = self.index(self.bodies.len());
                GossipReply::Body(self.bodies.values().nth(index).cloned().unwrap_or_default())
            }
        };
        reply.encode().unwrap()
    }

    /// The answer that an honest peer would give: a sync, or the body that the last envelope of its owner names.
    fn fitting(&mut self, pull: Option<AudienceDigest>) -> Vec<u8> {
        let Some(owner) = pull else {
            let news = (0..self.below(3)).map(|_| self.envelope()).collect();
            let (store_dir, software) = ("/nix/store".into(), "x".into());
            return GossipReply::Sync { store_dir, software, yours: None, news }.encode().unwrap();
        };
        let body = self.newest.get(&owner).and_then(|digest| self.bodies.get(digest).cloned());
        body.map_or(GossipReply::Absent, GossipReply::Body).encode().unwrap()
    }

    fn input(&mut self) -> Input {
        let (a, b) = (self.peer(), self.peer());
        match self.below(40) {
            0 => Input::Allowlist((0..self.below(PEERS)).map(|_| self.peer()).collect()),
            1 => Input::Addresses(
                (0..self.below(20)).map(|port| ([10, 0, 0, 1], u16::try_from(port).unwrap()).into()).collect(),
            ),
            2..=4 => Input::Connected(a),
            5 => Input::Disconnected(a),
            6..=15 => {
                let bytes = self.bytes(Self::envelope);
                let author = Envelope::open(&bytes).map_or(a, |envelope| envelope.peer());
                Input::Announcement { id: self.below(9), author, from: b, bytes }
            }
            16..=20 => Input::Request { from: a, id: self.below(9), bytes: self.bytes(Self::request) },
            21..=32 => {
                let index = self.index(self.asked.len());
                if self.asked.is_empty() {
                    return Input::Tick;
                }
                let (from, id, fitting) = self.asked.swap_remove(index);
                // Usually an answer of the right kind: a sync for a sync, any body for a pull.
                let bytes = match self.below(4) {
                    0 => self.bytes(Self::reply),
                    _ => self.bytes(|chaos| chaos.fitting(fitting)),
                };
                Input::Response { from, id, bytes }
            }
            33 => Input::RequestFailed { to: a, id: self.below(200) },
            34 | 35 => Input::Paths(PathChange::Update { added: vec![self.part(); 3], removed: vec![self.part()] }),
            36 => Input::Paths(PathChange::Replace((0..self.below(90)).map(|_| self.part()).collect())),
            37 => Input::Probe { peer: a, outcome: [ProbeOutcome::Held, ProbeOutcome::FalseHit][self.index(2)] },
            38 if self.below(9) == 0 => Input::Misbehaved { peer: a, misdeed: Misdeed::FalseNar },
            _ => Input::Tick,
        }
    }
}

fn check_bounds(gossip: &Gossip, peers: usize) {
    let Context { io, peers: known, connections, requests, .. } = &gossip.context;
    let trusted = known.check();
    assert!(trusted <= peers);
    let (connected, asked) = (connections.peers().count(), requests.check());
    assert!(connected <= trusted && requests.pulls() <= IN_FLIGHT_MAX);
    assert!(asked <= connected + requests.pulls());
    gossip.pulls.check(trusted);
    // Publish, Sync and Requests; Greet, Pull, Expire and Conduct of each peer.
    assert!(io.timers.keys().count() <= 3 + 4 * trusted);
    assert!(gossip.publication().paths <= 100);
}

/// Runs random inputs; returns the names of the outputs, events and misdeeds that occurred.
fn run(seed: [u8; 32], inputs: u32) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let keys: Vec<_> =
        (1..=u8::try_from(PEERS).unwrap()).map(|n| Keypair::ed25519_from_bytes([n; 32]).unwrap()).collect();
    let everyone: BTreeSet<_> = keys.iter().map(|key| key.public().to_peer_id()).collect();
    let mut config = GossipConfig::new(keys[0].clone(), StoreDir::parse("/nix/store").unwrap(), "x", seed);
    config.path_count_max = 100;
    let mut now = Now { moment: Moment(0), wall_ms: WALL_MS };
    let mut gossip = Gossip::new(now, config, Persisted::default());
    let rng = ChaCha8Rng::from_seed(seed);
    let mut chaos =
        Chaos { rng, keys, asked: vec![], seen: vec![], step: 0, newest: BTreeMap::new(), bodies: BTreeMap::new() };
    gossip.handle(now, Input::Allowlist(everyone));
    for _ in 0..inputs {
        if chaos.below(200) == 0 {
            let envelope = chaos.bytes(Chaos::envelope);
            let digest = Envelope::open(&envelope).map_or([0; 32], |envelope| envelope.announcement().body_digest);
            let body = chaos.bodies.get(&digest).cloned().unwrap_or_default();
            let owner = Envelope::open(&envelope).map_or(chaos.peer(), |envelope| envelope.peer());
            match gossip.restore(now, owner, &KeptSummary { envelope, accepted_ms: now.wall_ms, body }) {
                Ok(()) => drop(reached.insert("restored".to_owned())),
                Err(unfit) => drop(reached.insert(format!("{unfit:?}"))),
            }
        }
        let input = chaos.input();
        gossip.handle(now, input);
        let mut outputs = 0;
        while let Some(output) = gossip.poll() {
            outputs += 1;
            if let Output::Event(event) = &output {
                reached.extend(format!("{event:?}").split_whitespace().next().map(str::to_owned));
            }
            if let Output::Penalize { misdeed, .. } = &output {
                reached.insert(misdeed.label().to_owned());
            }
            if let Output::Request { to, id, bytes } = output {
                let pull = match GossipRequest::decode(&bytes).unwrap() {
                    GossipRequest::Pull { owner, .. } => Some(owner),
                    GossipRequest::Sync(_) => None,
                };
                chaos.asked.push((to, id, pull));
                if chaos.asked.len() > 12 {
                    chaos.asked.remove(0);
                }
            }
        }
        assert!(outputs < 200, "{outputs} outputs for one input");
        check_bounds(&gossip, usize::try_from(PEERS).unwrap());
        assert!(gossip.deadline().is_none_or(|deadline| deadline > now.moment), "what is due is done");
        let pause_ms = [0, 0, 1, 30, 500, if chaos.below(50) == 0 { 100_000 } else { 50 }][chaos.index(6)];
        now = Now { moment: now.moment + pause_ms, wall_ms: now.wall_ms + pause_ms / 2 };
    }
    reached
}

#[test]
fn random_inputs_never_exceed_the_bounds() {
    let reached: BTreeSet<String> = (0..4).flat_map(|seed| run([seed; 32], 25_000)).collect();
    // The test is worth something only when it reaches everything.
    for name in [
        "BodyPulled",
        "Expired",
        "Departed",
        "Overtaken",
        "Greeted",
        "SetAside",
        "StoreDirDiffers",
        "UnknownHashId",
        "malformed_announcement",
        "equivocation",
        "malformed_reply",
        "wrong_body",
        "malformed_request",
        "forged_news",
        "wrong_delta",
        "invalid_body",
        "path_count_differs",
        "dense_filter",
        "restored",
        "Heard",
        "NotTrusted",
        "Departed",
    ] {
        assert!(reached.contains(name), "{name} was never reached: {reached:?}");
    }
}

#[test]
fn tellers_of_one_announcement_are_bounded() {
    let keys: Vec<_> = (1..=9).map(|n| Keypair::ed25519_from_bytes([n; 32]).unwrap()).collect();
    let peers: Vec<_> = keys.iter().map(|key| key.public().to_peer_id()).collect();
    let now = Now { moment: Moment(5), wall_ms: WALL_MS };
    let config = GossipConfig::new(keys[0].clone(), StoreDir::parse("/nix/store").unwrap(), "x", [0; 32]);
    let mut gossip = Gossip::new(now, config, Persisted::default());
    gossip.handle(now, Input::Allowlist(peers.iter().copied().collect()));
    let announcement = Announcement {
        generation: Generation { epoch: WALL_MS, seq: 0 },
        path_count: 0,
        body_digest: [1; 32],
        body_bytes: 1_100,
        lifetime_s: 600,
        issued_at_ms: WALL_MS,
    };
    let envelope = Envelope::seal(&keys[1], announcement).unwrap();
    for from in &peers[1..] {
        let bytes = envelope.as_bytes().to_vec();
        gossip.handle(now, Input::Announcement { id: 0, author: peers[1], from: *from, bytes });
        check_bounds(&gossip, 8);
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut runner =
        TestRunner::new_with_rng(Config::with_cases(500), TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]));
    let keypair = Keypair::ed25519_from_bytes([1; 32]).unwrap();
    let friend = Keypair::ed25519_from_bytes([2; 32]).unwrap().public().to_peer_id();
    let inputs = prop::collection::vec((0u8..3, prop::collection::vec(any::<u8>(), 0..400)), 1..30);
    let result = runner.run(&inputs, |inputs| {
        let now = Now { moment: Moment(5), wall_ms: WALL_MS };
        let config = GossipConfig::new(keypair.clone(), StoreDir::parse("/nix/store").unwrap(), "x", [0; 32]);
        let mut gossip =
            Gossip::new(now, config, Persisted { newest: vec![inputs[0].1.clone()], ..Persisted::default() });
        gossip.handle(now, Input::Allowlist(BTreeSet::from([friend])));
        gossip.handle(now, Input::Connected(friend));
        for (kind, bytes) in inputs {
            let input = match kind {
                0 => Input::Announcement { id: 0, author: friend, from: friend, bytes },
                1 => Input::Request { from: friend, id: 0, bytes },
                _ => Input::Response { from: friend, id: 1, bytes },
            };
            gossip.handle(now, input);
            while gossip.poll().is_some() {}
            check_bounds(&gossip, 1);
        }
        Ok(())
    });
    result.unwrap();
}
