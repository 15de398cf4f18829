//! Machines that lie: each has an honest core that follows the mesh, and a malice that speaks in its place.

use crate::draw::Draw;
use crate::number::{ABSENT_FROM, Path, WANTED, part};
use crate::scenario::Hostile;
use crate::schedule::WALL_MS;
use crate::trick::{TRICKS, Trick};
use libp2p_identity::{Keypair, PeerId};
use narmesh_protocol::wire::{GossipReply, GossipRequest, Sync};
use narmesh_protocol::{
    Announcement, AudienceDigest, BitPositions, Envelope, FilterClass, Generation, HASH_ID_V1, Summary, SummaryDelta,
};
use std::collections::{BTreeMap, BTreeSet};

const DAY_MS: u64 = 86_400_000;
/// Messages or requests in a flood: far more than a peer is granted at once.
const FLOOD: usize = 200;
/// Envelopes of others that a liar keeps to replay them.
const STOLEN_MAX: usize = 64;

/// The lying part of a machine.
#[derive(Debug)]
pub(crate) struct Malice {
    trick: Trick,
    every_us: u64,
    signed: BTreeSet<Generation>,
    /// Bodies that it made up, by the generation that it announced them under.
    bodies: BTreeMap<Generation, Vec<u8>>,
    /// Its newest envelope, true or false.
    newest: Option<Vec<u8>>,
    /// The envelopes that it signed before the newest, to replay them.
    old: Vec<Vec<u8>>,
    /// Envelopes of others: the first that it heard, at most `STOLEN_MAX`.
    stolen: Vec<Vec<u8>>,
    /// Bodies of others by their digest, to leak them.
    leaked: BTreeMap<[u8; 32], Vec<u8>>,
    /// The digest of each body that others announced, to find the body in `leaked`.
    heard: BTreeMap<(AudienceDigest, Generation), [u8; 32]>,
    me: Option<AudienceDigest>,
}

impl Malice {
    /// The liar number `turn`, from 0. The scenario's tricks are dealt out in turn.
    pub(crate) fn new(hostile: &Hostile, turn: usize, stranger: bool) -> Self {
        let tricks = if hostile.tricks.is_empty() { TRICKS.as_slice() } else { hostile.tricks.as_slice() };
        let trick = tricks.get(turn % tricks.len().max(1)).copied().unwrap_or(Trick::Garbage);
        Self {
            trick: if stranger { Trick::Garbage } else { trick },
            every_us: hostile.every_ms.max(100) * 1_000,
            signed: BTreeSet::new(),
            bodies: BTreeMap::new(),
            newest: None,
            old: Vec::new(),
            stolen: Vec::new(),
            leaked: BTreeMap::new(),
            heard: BTreeMap::new(),
            me: None,
        }
    }

    /// Takes up a trick by chance.
    pub(crate) fn change_trick(&mut self, draw: &mut Draw) {
        self.trick = draw.pick(&TRICKS).unwrap_or(Trick::Garbage);
    }

    /// How long until it plays its trick again, microseconds.
    pub(crate) fn draw_pause_us(&self, draw: &mut Draw) -> u64 {
        draw.between(self.every_us / 2, self.every_us * 3 / 2)
    }

    /// Whether it signed anything under this generation.
    pub(crate) fn has_signed(&self, generation: Generation) -> bool {
        self.signed.contains(&generation)
    }

    pub(crate) fn withholds(&self) -> bool {
        self.trick == Trick::Withhold
    }

    fn seal(&mut self, keypair: &Keypair, announcement: Announcement) -> Vec<u8> {
        self.signed.insert(announcement.generation);
        let envelope = Envelope::seal(keypair, announcement).expect("an Ed25519 key").as_bytes().to_vec();
        self.old.extend(self.newest.replace(envelope.clone()));
        envelope
    }

    /// Turns an envelope of the honest core into what is published instead.
    pub(crate) fn lie(
        &mut self,
        keypair: &Keypair,
        honest: &[u8],
        audience: &[AudienceDigest],
        paths: Path,
        draw: &mut Draw,
    ) -> Vec<u8> {
        let Ok(opened) = Envelope::open(honest) else { return honest.to_vec() };
        let mut announcement = *opened.announcement();
        self.me = Some(AudienceDigest::of(&opened.peer()));
        self.signed.insert(announcement.generation);
        let filter = match self.trick {
            Trick::AllOnes => vec![0xff; 1 << 12],
            Trick::DenseAsAllowed => (0..1 << 12).map(|_| draw_byte_with_ones(draw, 555)).collect(),
            Trick::ClaimEverything => claim_everything(paths),
            Trick::ClaimNothing => vec![0; 1 << 10],
            Trick::FutureEpoch
            | Trick::StaleEpoch
            | Trick::ReplayStolen
            | Trick::Equivocate
            | Trick::NoBody
            | Trick::WrongBody
            | Trick::Leak
            | Trick::FloodAnnouncements
            | Trick::FloodRequests
            | Trick::Withhold
            | Trick::Garbage => {
                self.old.extend(self.newest.replace(honest.to_vec()));
                return honest.to_vec();
            }
        };
        let body = Summary {
            hash_id: HASH_ID_V1,
            items: announcement.path_count,
            audience: audience.to_vec(),
            addresses: Vec::new(),
            filter_bytes: filter,
        };
        let body = body.encode().expect("within the limit");
        announcement.body_digest = Summary::digest(&body);
        announcement.body_bytes = u32::try_from(body.len()).unwrap_or(0);
        self.bodies.insert(announcement.generation, body);
        self.seal(keypair, announcement)
    }

    /// The answer that it sends instead of the honest reply.
    pub(crate) fn answer(&mut self, question: &[u8], honest: Vec<u8>) -> Vec<u8> {
        let reply = match GossipRequest::decode(question) {
            Ok(GossipRequest::Pull { owner, generation, .. }) => self.answer_pull(owner, generation, &honest),
            Ok(GossipRequest::Sync(_)) => self.answer_sync(&honest),
            Err(_) => None,
        };
        reply.and_then(|reply| reply.encode().ok()).unwrap_or(honest)
    }

    fn answer_pull(&mut self, owner: AudienceDigest, generation: Generation, honest: &[u8]) -> Option<GossipReply> {
        if Some(owner) == self.me {
            return self.bodies.get(&generation).cloned().map(GossipReply::Body);
        }
        match self.trick {
            Trick::WrongBody => falsify(GossipReply::decode(honest).ok()?),
            Trick::Leak => {
                let digest = self.heard.get(&(owner, generation))?;
                self.leaked.get(digest).cloned().map(GossipReply::Body)
            }
            Trick::Withhold => Some(GossipReply::Absent),
            Trick::AllOnes
            | Trick::DenseAsAllowed
            | Trick::ClaimEverything
            | Trick::ClaimNothing
            | Trick::FutureEpoch
            | Trick::StaleEpoch
            | Trick::ReplayStolen
            | Trick::Equivocate
            | Trick::NoBody
            | Trick::FloodAnnouncements
            | Trick::FloodRequests
            | Trick::Garbage => None,
        }
    }

    fn answer_sync(&self, honest: &[u8]) -> Option<GossipReply> {
        let Ok(GossipReply::Sync { store_dir, software, yours, mut news }) = GossipReply::decode(honest) else {
            return None;
        };
        if !self.bodies.is_empty() {
            // The honest core does not know what was published in its name.
            let mine =
                |bytes: &Vec<u8>| self.newest.as_ref().is_some_and(|newest| newest.get(1..33) == bytes.get(1..33));
            news.retain(|news| !mine(news));
            news.extend(self.newest.clone());
        }
        match self.trick {
            Trick::Withhold => return Some(nothing_told(store_dir, software)),
            Trick::ReplayStolen => news.extend(self.stolen.iter().cloned()),
            Trick::StaleEpoch => news.extend(self.old.iter().take(8).cloned()),
            Trick::AllOnes
            | Trick::DenseAsAllowed
            | Trick::ClaimEverything
            | Trick::ClaimNothing
            | Trick::FutureEpoch
            | Trick::Equivocate
            | Trick::NoBody
            | Trick::WrongBody
            | Trick::Leak
            | Trick::FloodAnnouncements
            | Trick::FloodRequests
            | Trick::Garbage => {}
        }
        Some(GossipReply::Sync { store_dir, software, yours, news })
    }

    /// Hears an envelope of somebody else.
    pub(crate) fn overhear(&mut self, envelope: &[u8]) {
        if self.trick == Trick::ReplayStolen && self.stolen.len() < STOLEN_MAX {
            self.stolen.push(envelope.to_vec());
        }
        if let Some(opened) = Envelope::open(envelope).ok().filter(|_| self.trick == Trick::Leak) {
            let (owner, announcement) = (AudienceDigest::of(&opened.peer()), opened.announcement());
            self.heard.insert((owner, announcement.generation), announcement.body_digest);
        }
    }

    /// Takes an answer to a request of its honest core.
    pub(crate) fn receive(&mut self, reply: &[u8]) {
        if self.trick != Trick::Leak {
            return;
        }
        match GossipReply::decode(reply) {
            Ok(GossipReply::Body(body)) => drop(self.leaked.insert(Summary::digest(&body), body)),
            Ok(GossipReply::Sync { news, .. }) => news.iter().for_each(|news| self.overhear(news)),
            Ok(_) | Err(_) => {}
        }
    }

    /// An announcement of its own making.
    fn make_announcement(&self, now_ms: u64, draw: &mut Draw) -> Announcement {
        let newest = self.newest.as_ref().and_then(|newest| Envelope::open(newest).ok());
        let generation = newest.map_or(Generation { epoch: WALL_MS + now_ms, seq: 0 }, |newest| {
            let generation = newest.announcement().generation;
            Generation { seq: generation.seq + 1, ..generation }
        });
        Announcement {
            generation,
            path_count: 10,
            body_digest: draw.seed(),
            body_bytes: 1_100,
            lifetime_s: 3_600,
            issued_at_ms: WALL_MS + now_ms,
        }
    }

    /// The envelopes that it publishes now on its own.
    pub(crate) fn make_envelopes(&mut self, keypair: &Keypair, now_ms: u64, draw: &mut Draw) -> Vec<Vec<u8>> {
        let announcement = self.make_announcement(now_ms, draw);
        match self.trick {
            Trick::FutureEpoch => {
                let epoch = WALL_MS + now_ms + 7 * DAY_MS;
                let newest = self.newest.clone();
                let future =
                    self.seal(keypair, Announcement { generation: Generation { epoch, seq: 0 }, ..announcement });
                self.newest = newest;
                vec![future]
            }
            Trick::StaleEpoch => draw
                .pick(&(0..self.old.len()).collect::<Vec<_>>())
                .and_then(|at| self.old.get(at).cloned())
                .into_iter()
                .collect(),
            Trick::ReplayStolen => self.stolen.first().cloned().into_iter().collect(),
            Trick::Equivocate => {
                let other = Announcement { body_digest: draw.seed(), ..announcement };
                vec![self.seal(keypair, announcement), self.seal(keypair, other)]
            }
            Trick::NoBody => vec![self.seal(keypair, announcement)],
            Trick::FloodAnnouncements => (0..FLOOD)
                .map(|_| {
                    let next = self.make_announcement(now_ms, draw);
                    self.seal(keypair, next)
                })
                .collect(),
            Trick::Garbage => vec![draw.seed().repeat(5), self.newest.iter().flatten().map(|byte| byte ^ 1).collect()],
            Trick::AllOnes
            | Trick::DenseAsAllowed
            | Trick::ClaimEverything
            | Trick::ClaimNothing
            | Trick::WrongBody
            | Trick::Leak
            | Trick::FloodRequests
            | Trick::Withhold => Vec::new(),
        }
    }

    /// The requests that it sends now on its own.
    pub(crate) fn make_requests(&self, draw: &mut Draw) -> Vec<Vec<u8>> {
        match self.trick {
            Trick::Garbage => vec![draw.seed().to_vec()],
            Trick::FloodRequests => {
                let sync = Sync {
                    store_dir: "/nix/store".to_owned(),
                    software: "flood".to_owned(),
                    yours: None,
                    have: Vec::new(),
                };
                vec![GossipRequest::Sync(sync).encode().expect("a small request"); FLOOD]
            }
            Trick::AllOnes
            | Trick::DenseAsAllowed
            | Trick::ClaimEverything
            | Trick::ClaimNothing
            | Trick::FutureEpoch
            | Trick::StaleEpoch
            | Trick::ReplayStolen
            | Trick::Equivocate
            | Trick::NoBody
            | Trick::WrongBody
            | Trick::Leak
            | Trick::FloodAnnouncements
            | Trick::Withhold => Vec::new(),
        }
    }
}

/// An answer to a comparison that tells nothing.
fn nothing_told(store_dir: String, software: String) -> GossipReply {
    GossipReply::Sync { store_dir, software, yours: None, news: Vec::new() }
}

/// The answer of an otherwise honest machine that withholds everything but its own newest announcement and body. If it
/// withheld those as well, it would be a liar and rightly blamed.
pub(crate) fn withhold(me: &PeerId, question: &[u8], honest: Vec<u8>) -> Vec<u8> {
    let reply = match (GossipRequest::decode(question), GossipReply::decode(&honest)) {
        (Ok(GossipRequest::Sync(_)), Ok(GossipReply::Sync { store_dir, software, mut news, .. })) => {
            news.retain(|news| Envelope::open(news).is_ok_and(|envelope| envelope.peer() == *me));
            Some(GossipReply::Sync { store_dir, software, yours: None, news })
        }
        (Ok(GossipRequest::Pull { owner, .. }), Ok(_)) if owner != AudienceDigest::of(me) => Some(GossipReply::Absent),
        (Ok(_) | Err(_), Ok(_) | Err(_)) => None,
    };
    reply.and_then(|reply| reply.encode().ok()).unwrap_or(honest)
}

/// A false copy of a reply: a body with the first half of its filter empty, or a delta without positions.
fn falsify(reply: GossipReply) -> Option<GossipReply> {
    match reply {
        GossipReply::Body(body) => {
            let mut summary = Summary::decode(&body).ok()?;
            let half = summary.filter_bytes.len() / 2;
            summary.filter_bytes.iter_mut().take(half).for_each(|byte| *byte = 0);
            Some(GossipReply::Body(summary.encode().ok()?))
        }
        GossipReply::Delta(delta) => {
            let mut delta = SummaryDelta::decode(&delta).ok()?;
            delta.positions.clear();
            Some(GossipReply::Delta(delta.encode().ok()?))
        }
        GossipReply::Sync { .. } | GossipReply::StoreDirDiffers { .. } | GossipReply::Absent | GossipReply::Busy => {
            None
        }
    }
}

fn draw_byte_with_ones(draw: &mut Draw, permille: u64) -> u8 {
    (0..8).fold(0, |byte, bit| byte | u8::from(draw.chance(permille)) << bit)
}

/// A filter that claims every path there is, and the absent paths that everybody looks for.
fn claim_everything(paths: Path) -> Vec<u8> {
    let class = FilterClass::for_items(u64::from(paths.min(ABSENT_FROM) + WANTED), 0.001);
    let class = class.unwrap_or_else(|| FilterClass::of_bytes(2 << 20).expect("the largest class"));
    let mut bytes = vec![0u8; class.bytes()];
    for path in (0..paths).chain(ABSENT_FROM..ABSENT_FROM + WANTED) {
        for bit in BitPositions::of(&part(path)).in_class(class) {
            if let Some(byte) = bytes.get_mut(bit as usize / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
    bytes
}
