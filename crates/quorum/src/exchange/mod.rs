//! When two nodes compare their ledgers, with whom, and what they pull afterwards. Like the core of the gossip, this one
//! has no clock, no socket and no file.
//!
//! **Contract.** [`Exchange::handle`] takes one [`Input`] with the time and the present ledger; it never fails. After it,
//! call [`Exchange::poll`] until it returns `None` and perform each [`Output`]. [`Exchange::deadline`] says when
//! [`Input::Tick`] is due at the latest. The same inputs give the same outputs.
//!
//! **The protocol in plain words.**
//! - *Compare.* A node compares with a peer when the two may speak of a builder for the first time (the greeting), about
//!   once a minute with a random peer, and when a peer says that it has news and the two differ. A builder takes part only
//!   if both sides count it and each may tell the other about it; the caller says which builders these are ([`Spoken`]).
//! - *Tell.* A node that has something new, its own or pulled, asks up to 8 peers whether the tops of their trees are
//!   equal, and says that it has news. Those whose trees differ compare in turn. So news travels hop by hop, at the price
//!   of one small request per peer.
//! - *Pull.* A node asks for the differences that a comparison found, by node and item. It verifies every attestation
//!   before it keeps it. The attestation must come from a builder that was compared, and its path must lie under a node
//!   that was asked for.
//! - *Ask.* For a verdict that somebody waits for, a node asks up to 3 peers at once for the attestations of a path.
//! - *Rest.* When comparisons bring nothing again and again, a rest follows that matches their cost. A short
//!   rest also follows a failure, and failures that cost much and bring nothing new count as fruitless comparisons. A builder whose attestations push each other out of our ledger (its bound) is left out for 10 min.
//!
//! **Invariants.** Nothing is sent about a builder that may not be spoken of with that peer. Nothing is taken of a builder
//! that is not counted. There are at most 4 comparisons at a time and one per peer, 4,096 items wanted in each, 4,096 paths
//! asked for, and for each peer one reply of 260 KiB to a pull and one to a question under verification.

mod answering;
mod asking;
mod paths;
mod peer;

use self::paths::Paths;
use self::peer::Peer;
use crate::ledger::Ledger;
use crate::reconcile::{Session, Shared};
use crate::wire::{QuorumReply, QuorumRequest};
use libp2p_identity::PeerId;
use narmesh_machine::{Chance, RequestTable};
use narmesh_protocol::{Attestation, BuilderKey, HashPart};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use self::answering::HandOver;
pub use narmesh_machine::Moment;

/// The most comparisons under way at once; more would pull the same from several peers.
const SESSIONS_MAX: usize = 4;
/// The most peers that are told of news. With 8, a given node of 1,000 is told by nobody once in 3,000 times; it then
/// compares within about a minute.
const TOLD_MAX: usize = 8;
/// News waits this long for further news, milliseconds.
const TELL_DELAY_MS: u64 = 50;
/// The least time between two rounds of telling, milliseconds.
const TELL_INTERVAL_MS: u64 = 1_000;
/// Time between two comparisons with a random peer, plus or minus a tenth, milliseconds.
const SWEEP_MS: u64 = 60_000;
/// The greetings of many connections at once are spread over this time, milliseconds.
const GREETING_SPREAD_MS: u64 = 200;
/// A request without an answer counts as failed after this, milliseconds.
const REQUEST_MS: u64 = 10_000;
/// A builder at its bound is left out for this long, milliseconds.
const FULL_MS: u64 = 600_000;

/// What we may say to one peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spoken {
    /// The builders that the peer may be told of: the peer is in their audience, and we count them or are one of them.
    pub told: Shared,
    /// Those of `told` that we count, so that we ask the peer about them.
    pub counted: Shared,
    /// Whether it is the node of a builder. Such peers are asked first about a path that is waited for.
    pub is_builder: bool,
}

/// Everything that the caller tells the core. The core checks foreign bytes itself.
#[derive(Clone, Debug)]
pub enum Input {
    /// This peer is connected, and this may be said to it; replaces what was set for the peer before.
    Peer {
        /// The peer that is connected.
        peer: PeerId,
        /// What the peer may be told of and asked about.
        spoken: Spoken,
    },
    /// The last connection to this peer is gone. The core still remembers what the peer used up and did wrong.
    Gone(PeerId),
    /// Only these peers may connect from now on; what is remembered of others is forgotten.
    Allowlist(BTreeSet<PeerId>),
    /// This peer is to be asked nothing for a while.
    SetAside {
        /// The peer that is to be asked nothing.
        peer: PeerId,
        /// For how long, milliseconds.
        lasting_ms: u64,
    },
    /// The ledger holds something that it did not hold before, wherever that came from.
    Grew,
    /// A peer asks. Answered by [`Output::Respond`] or [`Output::HandOver`] with the same `id`.
    Request {
        /// The peer that asks.
        from: PeerId,
        /// The caller's name for the request.
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
        /// The peer that did not answer.
        to: PeerId,
        /// The id of our [`Output::Request`].
        id: u64,
    },
    /// The result of an [`Output::Verify`].
    Taken {
        /// The id of the [`Output::Verify`].
        id: u64,
        /// How many attestations verified, were new or were refused, and which builders lost some to make room for them.
        taken: Taken,
    },
    /// Somebody waits for a verdict on this path. Answered by [`Output::Answered`].
    Wanted {
        /// The caller's name for the question.
        id: u64,
        /// The path.
        hash_part: HashPart,
        /// For how long to wait, milliseconds; then the question ends, whoever has yet to answer.
        lasting_ms: u64,
    },
    /// The moment of `deadline()` has come.
    Tick,
}

/// What became of the attestations in a reply.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// How many of them verify.
    pub verified: usize,
    /// How many of those are new in the ledger.
    pub new: usize,
    /// How many do not verify.
    pub refused: usize,
    /// Builders that lost attestations to make room for these, because they are at their bound.
    pub full: BTreeSet<BuilderKey>,
}

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Ask a connected peer; `Response` or `RequestFailed` comes back.
    Request {
        /// The connected peer that is to be asked.
        to: PeerId,
        /// The core's name for the request.
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
    /// Answer a request with attestations, which only the caller has: [`HandOver::encode_reply`] makes the bytes.
    HandOver(HandOver),
    /// Verify each of these, take those that verify into the ledger, and report it by [`Input::Taken`].
    Verify {
        /// The peer that sent them.
        from: PeerId,
        /// The core's name for the reply.
        id: u64,
        /// At most 256 KiB encoded. All are of builders that we count.
        attestations: Vec<Attestation>,
    },
    /// A peer has answered on a path that is waited for; the attestations that it had are in the ledger.
    Answered {
        /// The id of the [`Input::Wanted`].
        id: u64,
        /// Whether no other answer will come.
        last: bool,
    },
    /// A peer did wrong. Who counts misdeeds is to be told.
    Misbehaved {
        /// The peer that did wrong.
        peer: PeerId,
        /// What the peer did wrong.
        fault: Fault,
    },
    /// A comparison has ended. For the metrics.
    Compared {
        /// The peer that was compared with.
        peer: PeerId,
        /// How many new attestations it brought.
        new: usize,
    },
}

/// What a peer can do wrong here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// It sent bytes that are not a request, or a request over a limit.
    MalformedRequest,
    /// It sent bytes that are not a reply, or a reply to another question.
    MalformedReply,
    /// It named items that it never handed over, three times in a row.
    FalseComparison,
    /// It sent an attestation that does not verify, or that was not asked for.
    FalseAttestation,
    /// It sent far more requests than it was granted.
    RequestFlood,
}

/// What one of our requests was for.
#[derive(Debug)]
enum Question {
    Compare,
    /// The session is kept to ask again about the builders that both sides know.
    News(Box<Session>),
    Pull,
    Ask(Vec<(u64, HashPart)>),
}

/// One node's part in the exchange. See the module's documentation.
#[derive(Debug)]
pub struct Exchange {
    now: Moment,
    chance: Chance,
    peers: BTreeMap<PeerId, Peer>,
    requests: RequestTable<PeerId, Question>,
    /// Replies under verification: the peer that sent each, and the ids of the questions that wait for it
    /// (`None` for a pull).
    verifying: BTreeMap<u64, (PeerId, Option<Vec<u64>>)>,
    /// Builders at their bound, and until when they are left out.
    full: BTreeMap<BuilderKey, Moment>,
    grew: bool,
    tell_at: Option<Moment>,
    told_at: Option<Moment>,
    sweep_at: Moment,
    paths: Paths,
    outputs: VecDeque<Output>,
}

impl Exchange {
    /// An exchange that knows nobody. Every random choice follows from `rng_seed`.
    pub fn new(now: Moment, rng_seed: [u8; 32]) -> Self {
        let mut exchange = Self {
            now,
            chance: Chance::new(rng_seed),
            peers: BTreeMap::new(),
            requests: RequestTable::new(REQUEST_MS),
            verifying: BTreeMap::new(),
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
            Input::Gone(peer) => self.on_gone(&peer),
            Input::Allowlist(allowed) => self.peers.retain(|peer, known| known.is_connected || allowed.contains(peer)),
            Input::SetAside { peer, lasting_ms } => self.set_aside(&peer, lasting_ms),
            Input::Grew => {
                self.grew = true;
                self.plan_telling();
            }
            Input::Request { from, id, bytes } => self.on_request(ledger, from, id, &bytes),
            Input::Response { from, id, bytes } => self.on_response(ledger, from, id, Some(&bytes)),
            Input::RequestFailed { to, id } => self.on_response(ledger, to, id, None),
            Input::Taken { id, taken } => self.on_taken(ledger, id, &taken),
            Input::Wanted { id, hash_part, lasting_ms } => self.ask_peers(id, hash_part, lasting_ms),
            Input::Tick => {}
        }
        self.run_due_timers(ledger);
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Exchange::handle`] with [`Input::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let free = self.sessions() < SESSIONS_MAX;
        let due = self.peers.values().filter(|_| free).filter_map(Peer::next_start);
        let sweep = self.peers.values().any(|peer| !peer.spoken.counted.is_empty()).then_some(self.sweep_at);
        due.chain(self.requests.deadline()).chain(self.tell_at).chain(sweep).chain(self.paths.deadline()).min()
    }

    /// The number of comparisons under way.
    pub fn sessions(&self) -> usize {
        self.peers.values().filter(|peer| peer.running.is_some()).count()
    }

    fn set_peer(&mut self, peer: PeerId, spoken: Spoken) {
        let spread_ms = self.chance.draw_below(GREETING_SPREAD_MS);
        let known = self.peers.entry(peer).or_insert_with(|| Peer::new(self.now));
        known.is_connected = true;
        if spoken.counted.adds_to(&known.spoken.counted) {
            known.plan_comparison(self.now + spread_ms);
        }
        // The peer may have compared before we knew that it may be told of these builders.
        known.owed |= spoken.told.adds_to(&known.spoken.told);
        let owed = known.owed;
        known.spoken = spoken;
        if owed {
            self.plan_telling();
        }
    }

    fn on_gone(&mut self, peer: &PeerId) {
        // Whoever waits for this peer's answers must learn that none will come.
        let queued = self.peers.get_mut(peer).map(|known| known.on_gone(self.now)).unwrap_or_default();
        let mut waiting: Vec<u64> = queued.into_iter().map(|(id, _)| id).collect();
        for id in self.requests.ids_to(*peer) {
            if let Some(Question::Ask(asked)) = self.requests.take(id) {
                waiting.extend(asked.into_iter().map(|(id, _)| id));
            }
        }
        self.report_answered(waiting);
    }

    fn set_aside(&mut self, peer: &PeerId, lasting_ms: u64) {
        let until = self.now + lasting_ms;
        if let Some(known) = self.peers.get_mut(peer) {
            known.running = None;
            known.rest_until = known.rest_until.max(until);
            known.shunned_until = known.shunned_until.max(until);
        }
    }

    fn penalize(&mut self, peer: PeerId, fault: Fault) {
        self.outputs.push_back(Output::Misbehaved { peer, fault });
        self.set_aside(&peer, peer::SHUNNED_MS);
    }

    fn plan_telling(&mut self) {
        let earliest = self.told_at.map_or(self.now, |at| at + TELL_INTERVAL_MS);
        self.tell_at.get_or_insert(earliest.max(self.now + TELL_DELAY_MS));
    }

    fn plan_sweep(&mut self) {
        self.sweep_at = self.now + SWEEP_MS * 9 / 10 + self.chance.draw_below(SWEEP_MS / 5);
    }

    fn run_due_timers(&mut self, ledger: &Ledger) {
        // Overdue requests first: each one that fails may end a comparison and so make room for another.
        let now = self.now;
        while let Some((id, to)) = self.requests.find_overdue(now) {
            self.on_response(ledger, to, id, None);
        }
        self.expire();
        // Finds the differences that nobody told us of.
        if self.sweep_at <= now {
            self.plan_sweep();
            let idle = |(_, peer): &(&PeerId, &Peer)| !peer.spoken.counted.is_empty() && peer.running.is_none();
            let idle: Vec<PeerId> = self.peers.iter().filter(idle).map(|(peer, _)| *peer).collect();
            if let Some(peer) = self.chance.choose(idle, 1).first().and_then(|peer| self.peers.get_mut(peer)) {
                peer.plan_comparison(now);
            }
        }
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell(ledger);
        }
        // As many of the comparisons that are due as there is room for, the longest due first.
        let mut due: Vec<(Moment, PeerId)> =
            self.peers.iter().filter_map(|(peer, known)| Some((known.next_start()?, *peer))).collect();
        due.retain(|(at, _)| *at <= now);
        due.sort_unstable();
        for (_, peer) in due.into_iter().take(SESSIONS_MAX.saturating_sub(self.sessions())) {
            self.begin_comparison(ledger, peer);
        }
    }

    fn send(&mut self, to: PeerId, question: Question, request: &QuorumRequest) {
        // Each list was cut to its bound, so the encoding fits.
        let Ok(bytes) = request.encode() else { return };
        let id = self.requests.add(self.now, to, question);
        self.outputs.push_back(Output::Request { to, id, bytes });
    }

    fn on_response(&mut self, ledger: &Ledger, from: PeerId, id: u64, bytes: Option<&[u8]>) {
        let Some(question) = self.requests.take_answered(from, id) else { return };
        let decoded = bytes.map(QuorumReply::decode);
        // A truncated reply may be the fault of the connection.
        let malformed = matches!(&decoded, Some(Err(error)) if !error.is_truncated());
        let reply = decoded.and_then(Result::ok);
        match question {
            Question::Compare => self.on_compare_reply(ledger, from, reply),
            Question::News(session) => self.on_news_reply(ledger, from, *session, reply),
            Question::Pull => self.on_pull_reply(ledger, from, reply),
            Question::Ask(paths) => self.on_ask_reply(from, paths, reply),
        }
        if malformed {
            self.penalize(from, Fault::MalformedReply);
        }
    }
}
