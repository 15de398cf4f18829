//! When two nodes compare what they know, with whom, and what is pulled then: a core as that of the gossip, without a clock, a
//! socket or a file.
//!
//! **Contract.** [`Exchange::handle`] takes one [`Input`] with the time and the ledger as it is then; it never fails. Then
//! [`Exchange::poll`] is called until it is empty and each [`Output`] performed, and [`Exchange::deadline`] says when to come
//! back with [`Input::Tick`] at the latest. The same inputs give the same outputs.
//!
//! **The protocol in plain words.**
//! - *Compare.* A node compares with a peer when it may speak of a builder with it for the first time (the greeting), about once a
//!   minute with one at random, and when a peer says that it has something new and the two differ. Only builders take part that
//!   both sides count and of which each may tell the other: the caller says which ([`Spoken`]).
//! - *Tell.* Who has something new, its own or pulled, asks up to 8 peers whether the top of their trees are the same, and says
//!   that it has news; those that differ compare in turn. So news travels hop by hop at the price of one small request a peer.
//! - *Pull.* What a comparison finds is asked for by node and item. Every attestation is verified before it is kept, and must be
//!   of a builder that was compared and of a path under a node that was asked for.
//! - *Ask.* A verdict that is waited for: the attestations of a path from up to 3 peers at once.
//! - *Rest.* Comparisons that bring nothing again and again are followed by a rest for what they cost; so is a failure. A builder
//!   whose attestations push each other out here (its bound) is left out for 10 min.
//!
//! **Invariants: what is never there.** Nothing sent of a builder that may not be spoken of with that peer. Nothing taken of a
//! builder that is not counted. No more than 4 comparisons at a time, one per peer, 4,096 items wanted in each, one reply of 260
//! KiB under verification and one of answers per peer, 4,096 paths asked for.

mod answering;
mod asking;
mod paths;
mod peer;

use self::paths::Paths;
use self::peer::Peer;
use crate::ledger::Ledger;
use crate::mutation::mutant;
use crate::reconcile::{Session, Shared};
use crate::wire::{QuorumReply, QuorumRequest};
use libp2p_identity::PeerId;
use narmesh_protocol::{Attestation, BuilderKey, HashPart};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use self::answering::HandOver;

/// Comparisons under way at once; more would pull the same from several peers.
const SESSIONS_MAX: usize = 4;
/// Peers that are told of news: with 8, the last of 1,000 nodes is left out once in 3,000 times, and compares within a minute
/// or so.
const TOLD_MAX: usize = 8;
/// News wait this long for more of it, milliseconds.
const TELL_DELAY_MS: u64 = 50;
/// Time from one telling to the next, milliseconds.
const TELL_INTERVAL_MS: u64 = 1_000;
/// Time between two comparisons with a peer at random, plus or minus a tenth, milliseconds.
const SWEEP_MS: u64 = 60_000;
/// Greetings of many connections at once are spread over so many milliseconds.
const GREETING_SPREAD_MS: u64 = 200;
/// A request without an answer has failed after this, milliseconds.
const REQUEST_MS: u64 = 10_000;
/// A builder at its bound is left out for so long, milliseconds.
const FULL_MS: u64 = 600_000;

/// Milliseconds of a monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Moment(pub u64);

impl Moment {
    fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// What may be said with one peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spoken {
    /// It may be told of these: their audience admits it, and we count them or are one of them.
    pub told: Shared,
    /// Those of them that we count: what we ask it about.
    pub counted: Shared,
    /// It is the node of a builder: asked first for what is waited for.
    pub is_builder: bool,
}

/// Everything that the outside tells the core. Foreign bytes are checked here.
#[derive(Clone, Debug)]
pub enum Input {
    /// This peer is connected, and this may be said with it; replaces what was said of it before.
    Peer {
        /// The peer that is connected.
        peer: PeerId,
        /// What the peer may be told of and asked about.
        spoken: Spoken,
    },
    /// The last connection to this peer is gone. What it used up and did wrong is remembered.
    Gone(PeerId),
    /// Only these may connect from now on; what is remembered of others is forgotten.
    Allowlist(BTreeSet<PeerId>),
    /// This peer is to be asked nothing for so long.
    SetAside {
        /// The peer that is to be asked nothing.
        peer: PeerId,
        /// Milliseconds.
        lasting_ms: u64,
    },
    /// The ledger holds something that it did not hold before, wherever it came from.
    Grew,
    /// A peer asks. Answered by [`Output::Respond`] or [`Output::HandOver`] with the same `id`.
    Request {
        /// The peer that asks.
        from: PeerId,
        /// The caller's name for it.
        id: u64,
        /// An encoded [`QuorumRequest`].
        bytes: Vec<u8>,
    },
    /// A peer answers.
    Response {
        /// The peer that answers.
        from: PeerId,
        /// The id of our [`Output::Request`].
        id: u64,
        /// An encoded [`QuorumReply`].
        bytes: Vec<u8>,
    },
    /// A request of ours got no answer.
    RequestFailed {
        /// Who did not answer.
        to: PeerId,
        /// The id of our [`Output::Request`].
        id: u64,
    },
    /// What became of an [`Output::Verify`].
    Taken {
        /// Its id.
        id: u64,
        /// How many attestations verify, are new or were refused, and which builders had to lose some for them.
        taken: Taken,
    },
    /// A verdict on this path is waited for. Answered by [`Output::Answered`].
    Wanted {
        /// The caller's name for it.
        id: u64,
        /// The path.
        hash_part: HashPart,
        /// For so long, milliseconds; then the end of it is told, whoever has yet to answer.
        lasting_ms: u64,
    },
    /// The moment of `deadline()` has come.
    Tick,
}

/// What became of a reply's attestations.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// That verify.
    pub verified: usize,
    /// Of them, new in the ledger.
    pub new: usize,
    /// That do not verify.
    pub refused: usize,
    /// Builders of which something had to go for them.
    pub full: BTreeSet<BuilderKey>,
}

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Ask a connected peer; `Response` or `RequestFailed` comes back.
    Request {
        /// The connected peer that is to be asked.
        to: PeerId,
        /// The core's name for it.
        id: u64,
        /// An encoded [`QuorumRequest`].
        bytes: Vec<u8>,
    },
    /// Answer a request.
    Respond {
        /// The peer that asked.
        to: PeerId,
        /// The id of the [`Input::Request`].
        id: u64,
        /// An encoded [`QuorumReply`].
        bytes: Vec<u8>,
    },
    /// Answer a request with attestations, which only the caller has: [`HandOver::reply`] makes the bytes.
    HandOver(HandOver),
    /// Verify these, each, take what verifies into the ledger, and say so by [`Input::Taken`].
    Verify {
        /// Who sent them.
        from: PeerId,
        /// The core's name for it.
        id: u64,
        /// At most 256 KiB encoded. All are of builders that we count.
        attestations: Vec<Attestation>,
    },
    /// A peer answered on a path that is waited for; what it had is in the ledger.
    Answered {
        /// The id of the [`Input::Wanted`].
        id: u64,
        /// No other answer will come.
        last: bool,
    },
    /// A peer did wrong.
    Penalize {
        /// The peer that did wrong.
        peer: PeerId,
        /// What the peer did wrong.
        fault: Fault,
    },
    /// A comparison came to its end. For the metrics.
    Compared {
        /// With whom.
        peer: PeerId,
        /// New attestations that it brought.
        new: usize,
    },
}

/// What a peer can do wrong here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// Bytes that are no request, or one over its limits.
    MalformedRequest,
    /// Bytes that are no reply, or one to another question.
    MalformedReply,
    /// Items that were never handed over, three times in a row.
    FalseComparison,
    /// An attestation that does not verify, or that was not asked for.
    FalseAttestation,
    /// Far more requests than it was granted.
    RequestFlood,
}

/// A request of ours without an answer.
#[derive(Debug)]
struct Sent {
    to: PeerId,
    what: Question,
    overdue: Moment,
}

#[derive(Debug)]
enum Question {
    Compare,
    /// The session is there to ask again for the builders that both know.
    News(Box<Session>),
    Pull,
    Ask(Vec<(u64, HashPart)>),
}

/// One node's part in the exchange. See the module.
#[derive(Debug)]
pub struct Exchange {
    now: Moment,
    rng: ChaCha8Rng,
    peers: BTreeMap<PeerId, Peer>,
    requests: BTreeMap<u64, Sent>,
    /// Replies under verification: of whom, and for which paths that are waited for.
    verifying: BTreeMap<u64, (PeerId, Option<Vec<u64>>)>,
    next_id: u64,
    /// Builders at their bound, until when.
    full: BTreeMap<BuilderKey, Moment>,
    grew: bool,
    tell_at: Option<Moment>,
    told_at: Option<Moment>,
    sweep_at: Moment,
    paths: Paths,
    outputs: VecDeque<Output>,
}

impl Exchange {
    /// One that knows nobody. Every random choice follows from `rng_seed`.
    pub fn new(now: Moment, rng_seed: [u8; 32]) -> Self {
        let mut exchange = Self {
            now,
            rng: ChaCha8Rng::from_seed(rng_seed),
            peers: BTreeMap::new(),
            requests: BTreeMap::new(),
            verifying: BTreeMap::new(),
            next_id: 0,
            full: BTreeMap::new(),
            grew: false,
            tell_at: None,
            told_at: None,
            sweep_at: now,
            paths: Paths::default(),
            outputs: VecDeque::new(),
        };
        exchange.plan_sweep();
        exchange
    }

    /// Takes one input. Call [`Exchange::poll`] until it returns `None`, then look at [`Exchange::deadline`].
    pub fn handle(&mut self, now: Moment, ledger: &Ledger, input: Input) {
        self.now = now.max(self.now);
        match input {
            Input::Peer { peer, spoken } => self.set_peer(peer, spoken),
            Input::Gone(peer) => self.gone(&peer),
            Input::Allowlist(allowed) => self.peers.retain(|peer, known| known.is_connected || allowed.contains(peer)),
            Input::SetAside { peer, lasting_ms } => self.set_aside(&peer, lasting_ms),
            Input::Grew => {
                self.grew = true;
                self.plan_telling();
            }
            Input::Request { from, id, bytes } => self.request(ledger, from, id, &bytes),
            Input::Response { from, id, bytes } => self.response(ledger, from, id, Some(&bytes)),
            Input::RequestFailed { to, id } => self.response(ledger, to, id, None),
            Input::Taken { id, taken } => self.taken(ledger, id, &taken),
            Input::Wanted { id, hash_part, lasting_ms } => self.want(id, hash_part, lasting_ms),
            Input::Tick => {}
        }
        self.ring(ledger);
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Exchange::handle`] with [`Input::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let overdue = self.requests.values().map(|sent| sent.overdue);
        let free = self.sessions() < SESSIONS_MAX;
        let due = self.peers.values().filter(|_| free).filter_map(Peer::starts);
        let sweep = self.peers.values().any(|peer| !peer.spoken.counted.is_empty()).then_some(self.sweep_at);
        overdue.chain(due).chain(self.tell_at).chain(sweep).chain(self.paths.deadline()).min()
    }

    /// Comparisons under way.
    pub fn sessions(&self) -> usize {
        self.peers.values().filter(|peer| peer.running.is_some()).count()
    }

    fn set_peer(&mut self, peer: PeerId, spoken: Spoken) {
        let spread_ms = self.random(GREETING_SPREAD_MS);
        let known = self.peers.entry(peer).or_insert_with(|| Peer::new(self.now));
        known.is_connected = true;
        if spoken.counted.adds_to(&known.spoken.counted) && !mutant!(NothingTold) {
            known.wish(self.now.after(spread_ms));
        }
        // It may have compared before we knew that it may be told.
        known.owed |= spoken.told.adds_to(&known.spoken.told);
        let owed = known.owed;
        known.spoken = spoken;
        if owed {
            self.plan_telling();
        }
    }

    fn gone(&mut self, peer: &PeerId) {
        let queued = self.peers.get_mut(peer).map(Peer::leaves).unwrap_or_default();
        let mut waiting: Vec<u64> = queued.into_iter().map(|(id, _)| id).collect();
        for (_, sent) in self.requests.extract_if(.., |_, sent| sent.to == *peer) {
            if let Question::Ask(asked) = sent.what {
                waiting.extend(asked.into_iter().map(|(id, _)| id));
            }
        }
        self.answered(waiting);
    }

    fn set_aside(&mut self, peer: &PeerId, lasting_ms: u64) {
        let until = self.now.after(lasting_ms);
        if let Some(known) = self.peers.get_mut(peer) {
            known.running = None;
            known.rest_until = known.rest_until.max(until);
            known.shunned_until = known.shunned_until.max(until);
        }
    }

    fn penalize(&mut self, peer: PeerId, fault: Fault) {
        self.outputs.push_back(Output::Penalize { peer, fault });
        self.set_aside(&peer, peer::SHUNNED_MS);
    }

    fn plan_telling(&mut self) {
        let earliest = self.told_at.map_or(self.now, |at| at.after(TELL_INTERVAL_MS));
        self.tell_at.get_or_insert(earliest.max(self.now.after(TELL_DELAY_MS)));
    }

    fn plan_sweep(&mut self) {
        self.sweep_at = self.now.after(SWEEP_MS * 9 / 10 + self.random(SWEEP_MS / 5));
    }

    fn ring(&mut self, ledger: &Ledger) {
        let now = self.now;
        let late: Vec<(u64, PeerId)> =
            self.requests.iter().filter(|(_, sent)| sent.overdue <= now).map(|(id, sent)| (*id, sent.to)).collect();
        for (id, to) in late {
            self.response(ledger, to, id, None);
        }
        self.expire();
        if self.sweep_at <= now {
            self.plan_sweep();
            let idle = |(_, peer): &(&PeerId, &Peer)| !peer.spoken.counted.is_empty() && peer.running.is_none();
            let idle: Vec<PeerId> = self.peers.iter().filter(idle).map(|(peer, _)| *peer).collect();
            if let Some(peer) = self.choose(idle, 1).first().and_then(|peer| self.peers.get_mut(peer)) {
                peer.wish(now);
            }
        }
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell(ledger);
        }
        let mut due: Vec<(Moment, PeerId)> =
            self.peers.iter().filter_map(|(peer, known)| Some((known.starts()?, *peer))).collect();
        due.retain(|(at, _)| *at <= now);
        due.sort_unstable();
        for (_, peer) in due.into_iter().take(SESSIONS_MAX.saturating_sub(self.sessions())) {
            self.compare(ledger, peer);
        }
    }

    /// Some of these, at random.
    fn choose(&mut self, mut among: Vec<PeerId>, count: usize) -> Vec<PeerId> {
        let count = count.min(among.len());
        for place in 0..count {
            let left = u64::try_from(among.len() - place).unwrap_or(1);
            let chosen = place + usize::try_from(self.random(left)).unwrap_or(0);
            among.swap(place, chosen);
        }
        among.truncate(count);
        among
    }

    /// A number from 0 to `below` - 1, or 0.
    fn random(&mut self, below: u64) -> u64 {
        self.rng.next_u64().checked_rem(below).unwrap_or(0)
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn send(&mut self, to: PeerId, what: Question, request: &QuorumRequest) {
        // Each list was cut to its bound, so it fits.
        let Ok(bytes) = request.encode() else { return };
        let id = self.new_id();
        self.requests.insert(id, Sent { to, what, overdue: self.now.after(REQUEST_MS) });
        self.outputs.push_back(Output::Request { to, id, bytes });
    }

    fn response(&mut self, ledger: &Ledger, from: PeerId, id: u64, bytes: Option<&[u8]>) {
        if self.requests.get(&id).is_none_or(|sent| sent.to != from) {
            return;
        }
        let Some(sent) = self.requests.remove(&id) else { return };
        let decoded = bytes.map(QuorumReply::decode);
        // One that was cut short may be the line's doing.
        let malformed = matches!(&decoded, Some(Err(error)) if !error.is_truncated());
        let reply = decoded.and_then(Result::ok);
        match sent.what {
            Question::Compare => self.compared(ledger, from, reply),
            Question::News(session) => self.told(ledger, from, *session, reply),
            Question::Pull => self.pulled(ledger, from, reply),
            Question::Ask(paths) => self.asked(from, paths, reply),
        }
        if malformed {
            self.penalize(from, Fault::MalformedReply);
        }
    }
}
