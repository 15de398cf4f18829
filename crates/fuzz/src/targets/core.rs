//! The gossip core under a script. Two peers of the allowlist and a stranger send what the input says, signed where a
//! signature is needed to get further.

use super::mesh::{
    announcement_of, announcement_seeds, gossip_reply_seeds, gossip_request_seeds, keypair, sealed, summary_seeds,
};
use super::{Outcome, Target};
use crate::memory::MemoryBound;
use libp2p_identity::PeerId;
use narmesh_gossip::{
    Gossip, GossipConfig, Input, Misdeed, Moment, Now, Output, PathChange, Persisted, ProbeOutcome, Record,
};
use narmesh_protocol::codec;
use narmesh_protocol::wire::{GossipReply, GossipRequest};
use narmesh_protocol::{Envelope, HashPart, StoreDir};

pub(super) const TARGET: Target = Target {
    name: "gossip-core",
    run,
    seeds,
    words: &[&[0, 0, 0], &[1, 0, 0], &[8, 2, 0, 0xff, 0xff], &[7, 0, 0], &[0x17, 0, 0], &[9, 1, 0, 0], &[0x20, 0, 0]],
    input_bytes_max: 16 << 10,
};

/// The filters and bodies of two peers, each of which exists a few times while it is decoded and taken in.
const MEMORY: MemoryBound = MemoryBound { per_byte: 64, constant: 4 << 20 };
const ME: u8 = 9;
const STRANGER: u8 = 3;
const WALL_MS: u64 = 1_700_000_000_000;
/// Steps of a script that are run; more would only repeat.
const STEPS_MAX: usize = 64;

fn run(input: &[u8]) -> Outcome {
    MEMORY.hold(input.len(), || {
        let mut world = World::new();
        let mut rest = input;
        for _ in 0..STEPS_MAX {
            let Some(([step, low, high], after)) = rest.split_first_chunk::<3>() else { break };
            let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
            let (payload, after) = after.split_at(length);
            rest = after;
            world.step(*step, payload);
        }
        Outcome::of(world.trace)
    })
}

/// The PeerIds of the two peers and of the stranger, made once, because a key costs more than a step.
struct Peers([PeerId; 3]);

impl Peers {
    fn id(&self, number: u8) -> PeerId {
        let Self([first, second, stranger]) = self;
        match number {
            1 => *first,
            2 => *second,
            _ => *stranger,
        }
    }
}

struct World {
    core: Gossip,
    peers: Peers,
    now: Now,
    next_id: u64,
    epoch: u64,
    own_epoch: u64,
    /// The id of the core's last request to each peer, until it is answered.
    asked: [Option<u64>; 3],
    body: Vec<u8>,
    /// The kinds of outputs, misdeeds and events seen, without their numbers. It is a set, so that repetition is nothing
    /// new.
    trace: std::collections::BTreeSet<String>,
}

impl World {
    fn new() -> Self {
        let peers = Peers([1, 2, STRANGER].map(|number| keypair(number).public().to_peer_id()));
        let now = Now { moment: Moment(1_000), wall_ms: WALL_MS };
        let store_dir = StoreDir::parse("/nix/store").expect("a store directory");
        let config = GossipConfig::new(keypair(ME), store_dir, "narmesh/fuzz", [7; 32]);
        let core = Gossip::new(now, config, Persisted::default());
        let (next_id, epoch, own_epoch, asked) = (0, WALL_MS, 0, [None; 3]);
        let mut world =
            Self { core, peers, now, next_id, epoch, own_epoch, asked, body: Vec::new(), trace: Default::default() };
        world.feed(Input::Allowlist([1, 2].map(|number| world.peers.id(number)).into()));
        world.feed(Input::Paths(PathChange::Replace([HashPart([1; 20])].into())));
        world
    }

    fn step(&mut self, step: u8, payload: &[u8]) {
        let number = 1 + (step >> 4) % 3;
        let peer = self.peers.id(number);
        match step & 15 {
            0 => self.feed(Input::Connected(peer)),
            1 => self.feed(Input::Disconnected(peer)),
            2 => self.announce(peer, payload.to_vec()),
            3 => self.announce(peer, sealed(&keypair(number), payload)),
            4 | 5 => {
                self.epoch += u64::from(step & 1);
                self.body = payload.to_vec();
                let announcement = announcement_of(payload, self.epoch, u64::from(step >> 6));
                let encoded = codec::encode::<903>(&announcement).expect("fits");
                self.announce(peer, sealed(&keypair(number), &encoded));
            }
            6 => self.request(number, payload.to_vec()),
            7 => self.answer(number, &GossipReply::Body(self.body.clone())),
            8 => self.answer(number, &GossipReply::Delta(payload.to_vec())),
            9 => self.respond(number, payload.to_vec()),
            10 => {
                let id = self.asked.get_mut(usize::from(number - 1)).and_then(Option::take).unwrap_or(7);
                self.feed(Input::RequestFailed { to: peer, id });
            }
            11 => self.feed(Input::Probe { peer, outcome: ProbeOutcome::FalseHit }),
            12 => self.feed(Input::Misbehaved { peer, misdeed: Misdeed::FalseClaims }),
            13 => {
                let added = payload.chunks_exact(20).map(|part| HashPart(part.try_into().expect("20 bytes"))).collect();
                self.feed(Input::Paths(PathChange::Update { added, removed: vec![HashPart([1; 20])] }));
            }
            14 => self.feed(Input::Goodbye),
            _ => {
                let ms = payload.first_chunk::<4>().map_or(1_000, |ms| u32::from_le_bytes(*ms));
                self.now.moment = Moment(self.now.moment.0 + u64::from(ms));
                self.now.wall_ms += u64::from(ms);
                self.feed(Input::Tick);
            }
        }
    }

    fn announce(&mut self, author: PeerId, bytes: Vec<u8>) {
        self.next_id += 1;
        let id = self.next_id;
        let judged = self.feed_counting(
            Input::Announcement { id, author, from: self.peers.id(2), bytes },
            |output| matches!(output, Output::Judge { id: judged, .. } if *judged == id),
        );
        assert_eq!(judged, 1, "each announcement is judged once");
    }

    fn request(&mut self, number: u8, bytes: Vec<u8>) {
        self.next_id += 1;
        let (id, from) = (self.next_id, self.peers.id(number));
        let absent = GossipReply::Absent.encode().expect("fits");
        let answered = self.feed_counting(Input::Request { from, id, bytes }, |output| match output {
            Output::Respond { to, id: answered, bytes } => {
                assert!(number != STRANGER || *bytes == absent, "a stranger was told something");
                *answered == id && *to == from
            }
            _ => false,
        });
        assert_eq!(answered, 1, "each request is answered once");
    }

    fn answer(&mut self, number: u8, reply: &GossipReply) {
        if let Ok(bytes) = reply.encode() {
            self.respond(number, bytes);
        }
    }

    fn respond(&mut self, number: u8, bytes: Vec<u8>) {
        let id = self.asked.get_mut(usize::from(number - 1)).and_then(Option::take).unwrap_or(7);
        self.feed(Input::Response { from: self.peers.id(number), id, bytes });
    }

    fn feed(&mut self, input: Input) {
        self.feed_counting(input, |_| false);
    }

    fn feed_counting(&mut self, input: Input, counts: impl Fn(&Output) -> bool) -> usize {
        self.core.handle(self.now, input);
        let mut counted = 0;
        while let Some(output) = self.core.poll() {
            counted += usize::from(counts(&output));
            self.check(&output);
        }
        if let Some(deadline) = self.core.deadline() {
            assert!(deadline > self.now.moment, "what was due is done");
        }
        counted
    }

    fn check(&mut self, output: &Output) {
        let text = format!("{output:?}");
        self.trace.insert(text.split(|c: char| !(c.is_alphabetic() || c == '(')).next().unwrap_or_default().to_owned());
        match output {
            Output::Request { to, id, bytes } => {
                GossipRequest::decode(bytes).expect("our requests are well-formed");
                let number =
                    [1, 2].into_iter().find(|number| self.peers.id(*number) == *to).expect("only peers are asked");
                if let Some(slot) = self.asked.get_mut(usize::from(number - 1)) {
                    *slot = Some(*id);
                }
            }
            Output::Respond { bytes, .. } => {
                GossipReply::decode(bytes).expect("our replies are well-formed");
            }
            Output::Publish(bytes) => {
                Envelope::open(bytes).expect("our announcements are well-formed");
            }
            Output::Persist(Record::OwnEpoch(epoch)) => {
                assert!(*epoch > self.own_epoch, "epochs only grow");
                self.own_epoch = *epoch;
            }
            Output::Penalize { misdeed, .. } => {
                self.trace.insert(format!("{misdeed:?}"));
            }
            Output::Event(event) => {
                self.trace.insert(format!("{event:?}").split([' ', '{']).next().unwrap_or_default().to_owned());
            }
            Output::Persist(Record::Newest { .. } | Record::Forget(_)) | Output::Judge { .. } => {}
        }
    }
}

fn script(steps: &[(u8, &[u8])]) -> Vec<u8> {
    let mut script = Vec::new();
    for (step, payload) in steps {
        script.push(*step);
        script.extend_from_slice(&u16::try_from(payload.len()).expect("short").to_le_bytes());
        script.extend_from_slice(payload);
    }
    script
}

fn seeds() -> Vec<Vec<u8>> {
    let bodies = summary_seeds();
    let [first, .., last] = bodies.as_slice() else { return Vec::new() };
    let mut seeds = vec![
        // Connect, announce, pull, announce a second epoch, pull again, tick, disconnect.
        script(&[(0, b""), (5, first), (7, b""), (5, last), (7, b""), (15, b"\x10\x27\0\0"), (1, b"")]),
        script(&[(0, b""), (16, b""), (21, first), (7, b""), (23, b""), (11, b""), (14, b"")]),
        script(&[(13, &[5; 40]), (15, b"\xff\xff\0\0"), (12, b""), (12, b""), (12, b""), (15, b"\xff\xff\x7f\0")]),
    ];
    seeds.extend(announcement_seeds().iter().map(|payload| script(&[(0, b""), (3, payload), (7, b"")])));
    seeds.extend(gossip_request_seeds().iter().map(|request| script(&[(0, b""), (6, request), (0x26, request)])));
    seeds.extend(gossip_reply_seeds().iter().map(|reply| script(&[(0, b""), (9, reply), (5, first), (9, reply)])));
    seeds
}
