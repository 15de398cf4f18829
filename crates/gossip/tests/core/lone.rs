//! One core and a scripted peer that can sign anything.

use crate::net::{WALL_MS, config, keypair, peer};
use libp2p_identity::PeerId;
use narmesh_gossip::{Event, Forward, Gossip, Input, Misdeed, Moment, Now, Output, PathChange, Persisted};
use narmesh_protocol::wire::{GossipReply, GossipRequest};
use narmesh_protocol::{
    Announcement, AudienceDigest, BitPositions, Envelope, FilterClass, Generation, HASH_ID_V1, HashPart, Summary,
};
use std::collections::BTreeSet;

/// The core is number 1. Peers 8 and 9 are on its allowlist and connected; 7 is a stranger.
pub struct Lone {
    pub core: Gossip,
    pub now: Now,
    pub outputs: Vec<Output>,
}

pub const OWNER: u8 = 9;
pub const OTHER: u8 = 8;
pub const STRANGER: u8 = 7;

impl Lone {
    pub fn new() -> Self {
        let now = Now { moment: Moment(1_000), wall_ms: WALL_MS };
        let mut lone = Self { core: Gossip::new(now, config(1), Persisted::default()), now, outputs: vec![] };
        lone.feed(Input::Allowlist(BTreeSet::from([peer(OWNER), peer(OTHER)])));
        lone.feed(Input::Paths(PathChange::Replace(crate::net::parts(0..10))));
        for number in [OWNER, OTHER] {
            lone.feed(Input::Connected(peer(number)));
            let sync = lone.requests().into_iter().find(|(to, ..)| *to == peer(number)).unwrap();
            lone.reply(number, sync.1, &sync_reply(vec![], None));
        }
        lone.pass(1_000);
        lone.outputs.clear();
        lone
    }

    pub fn feed(&mut self, input: Input) {
        self.core.handle(self.now, input);
        self.outputs.extend(std::iter::from_fn(|| self.core.poll()));
    }

    /// Lets `ms` pass, with a tick at each deadline; requests stay unanswered.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now.moment + ms;
        while let Some(deadline) = self.core.deadline().filter(|deadline| *deadline <= end) {
            self.advance(deadline);
            self.feed(Input::Tick);
        }
        self.advance(end);
    }

    fn advance(&mut self, moment: Moment) {
        self.now.wall_ms += moment.since(self.now.moment);
        self.now.moment = moment.max(self.now.moment);
    }

    pub fn announce(&mut self, author: u8, bytes: &[u8]) -> Forward {
        self.tell(author, OTHER, bytes)
    }

    /// `from` hands on what `author` announces; returns the core's verdict.
    pub fn tell(&mut self, author: u8, from: u8, bytes: &[u8]) -> Forward {
        self.feed(Input::Announcement { id: 77, author: peer(author), from: peer(from), bytes: bytes.to_vec() });
        let judged = |output: &Output| match output {
            Output::Judge { id: 77, verdict } => Some(*verdict),
            _ => None,
        };
        self.outputs.iter().rev().find_map(judged).unwrap()
    }

    /// Takes all requests that the core has sent.
    pub fn requests(&mut self) -> Vec<(PeerId, u64, GossipRequest)> {
        let mut requests = vec![];
        self.outputs.retain(|output| match output {
            Output::Request { to, id, bytes } => {
                requests.push((*to, *id, GossipRequest::decode(bytes).unwrap()));
                false
            }
            _ => true,
        });
        requests
    }

    /// Takes all requests that the core has sent, and returns the pulls.
    pub fn pulls(&mut self) -> Vec<(PeerId, u64, Option<u64>)> {
        let pull = |(to, id, request)| match request {
            GossipRequest::Pull { have_seq, .. } => Some((to, id, have_seq)),
            GossipRequest::Sync(_) => None,
        };
        self.requests().into_iter().filter_map(pull).collect()
    }

    pub fn reply(&mut self, from: u8, id: u64, reply: &GossipReply) {
        self.feed(Input::Response { from: peer(from), id, bytes: reply.encode().unwrap() });
    }

    /// The core's answer to a request of `from`.
    pub fn ask(&mut self, from: u8, bytes: Vec<u8>) -> GossipReply {
        self.feed(Input::Request { from: peer(from), id: 55, bytes });
        let answer = |output: &Output| match output {
            Output::Respond { to, id: 55, bytes } if *to == peer(from) => Some(GossipReply::decode(bytes).unwrap()),
            _ => None,
        };
        self.outputs.iter().rev().find_map(answer).unwrap()
    }

    /// Announces a summary and delivers its body.
    pub fn hold(&mut self, author: u8, forged: &Forged) {
        assert_eq!(self.announce(author, forged.envelope.as_bytes()), Forward::Accept);
        let (_, id, _) = self.pulls().into_iter().find(|(to, ..)| *to == peer(author)).expect("it pulls");
        self.reply(author, id, &GossipReply::Body(forged.body.clone()));
    }

    pub fn misdeeds(&self) -> Vec<(PeerId, Misdeed)> {
        let misdeed = |output: &Output| match output {
            Output::Penalize { peer, misdeed } => Some((*peer, *misdeed)),
            _ => None,
        };
        self.outputs.iter().filter_map(misdeed).collect()
    }

    pub fn events(&self) -> Vec<&Event> {
        fn event(output: &Output) -> Option<&Event> {
            match output {
                Output::Event(event) => Some(event),
                _ => None,
            }
        }
        self.outputs.iter().filter_map(event).collect()
    }

    pub fn is_candidate(&self, number: u8, part: &HashPart) -> bool {
        self.core.find_candidates(part).iter().any(|candidate| candidate.peer == peer(number))
    }

    pub fn is_demoted(&self, number: u8, part: &HashPart) -> bool {
        self.core.find_candidates(part).iter().any(|candidate| candidate.peer == peer(number) && candidate.is_demoted)
    }
}

/// A body and the envelope that announces it. Both are honest until changed.
pub struct Forged {
    pub body: Vec<u8>,
    pub announcement: Announcement,
    pub envelope: Envelope,
}

impl Forged {
    pub fn new(author: u8, seq: u64, parts: &BTreeSet<HashPart>) -> Self {
        Self::with(author, seq, parts, |_| {}, |_| {})
    }

    /// Changes the body before its digest is taken, and the announcement before it is signed.
    pub fn with(
        author: u8,
        seq: u64,
        parts: &BTreeSet<HashPart>,
        change: impl FnOnce(&mut Summary),
        announce: impl FnOnce(&mut Announcement),
    ) -> Self {
        let class = FilterClass::of_bytes(1_024).unwrap();
        let mut filter_bytes = vec![0; class.bytes()];
        for part in parts {
            for bit in BitPositions::of(part).in_class(class) {
                filter_bytes[bit as usize / 8] |= 1 << (bit % 8);
            }
        }
        let mut audience: Vec<_> = [1, OTHER, OWNER].into_iter().map(|n| AudienceDigest::of(&peer(n))).collect();
        audience.sort_unstable();
        let mut summary = Summary {
            hash_id: HASH_ID_V1,
            items: parts.len() as u64,
            audience,
            addresses: vec!["192.0.2.7:7280".parse().unwrap()],
            filter_bytes,
        };
        change(&mut summary);
        let body = summary.encode().unwrap();
        let mut announcement = Announcement {
            generation: Generation { epoch: WALL_MS, seq },
            path_count: parts.len() as u64,
            body_digest: Summary::digest(&body),
            body_bytes: u32::try_from(body.len()).unwrap(),
            lifetime_s: 14_400,
            issued_at_ms: WALL_MS,
        };
        announce(&mut announcement);
        let envelope = Envelope::seal(&keypair(author), announcement).unwrap();
        Self { body, announcement, envelope }
    }
}

pub fn sync_reply(news: Vec<Vec<u8>>, yours: Option<Vec<u8>>) -> GossipReply {
    GossipReply::Sync { store_dir: "/nix/store".to_owned(), software: "puppet/1".to_owned(), yours, news }
}
