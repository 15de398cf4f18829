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
mod context;
mod news;
mod paths;
mod peer;

use self::asking::Comparisons;
use self::context::{Context, Purpose};
use self::news::News;
use self::paths::Paths;
use self::peer::Peer;
use crate::ledger::Ledger;
use crate::reconcile::Shared;
use crate::wire::QuorumReply;
use libp2p_identity::PeerId;
use narmesh_protocol::{Attestation, BuilderKey, HashPart};
use std::collections::BTreeSet;

pub use self::answering::HandOver;
pub use narmesh_machine::Moment;

/// The greetings of many connections at once are spread over this time, milliseconds.
const GREETING_SPREAD_MS: u64 = 200;

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
        /// An encoded [`crate::wire::QuorumRequest`].
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
        /// An encoded [`crate::wire::QuorumRequest`].
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

/// One node's part in the exchange. See the module's documentation.
#[derive(Debug)]
pub struct Exchange {
    context: Context,
    comparisons: Comparisons,
    news: News,
    paths: Paths,
}

impl Exchange {
    /// An exchange that knows nobody. Every random choice follows from `rng_seed`.
    pub fn new(now: Moment, rng_seed: [u8; 32]) -> Self {
        let mut context = Context::new(now, rng_seed);
        let comparisons = Comparisons::new(&mut context);
        Self { context, comparisons, news: News::default(), paths: Paths::default() }
    }

    /// Takes one input. Call [`Exchange::poll`] until it returns `None`, then look at [`Exchange::deadline`].
    pub fn handle(&mut self, now: Moment, ledger: &Ledger, input: Input) {
        let Self { context: cx, news, paths, .. } = self;
        cx.now = now.max(cx.now);
        match input {
            Input::Peer { peer, spoken } => self.set_peer(peer, spoken),
            Input::Gone(peer) => self.on_gone(&peer),
            // What a peer used up outlives its connection, or a reconnect would grant it all of it again.
            Input::Allowlist(allowed) => cx.peers.retain(|peer, known| known.is_connected || allowed.contains(peer)),
            Input::SetAside { peer, lasting_ms } => cx.set_aside(&peer, lasting_ms),
            Input::Grew => news.on_grown(cx.now),
            Input::Request { from, id, bytes } => answering::on_request(cx, ledger, from, id, &bytes),
            Input::Response { from, id, bytes } => self.on_response(ledger, from, id, Some(&bytes)),
            Input::RequestFailed { to, id } => self.on_response(ledger, to, id, None),
            Input::Taken { id, taken } => self.on_taken(ledger, id, &taken),
            Input::Wanted { id, hash_part, lasting_ms } => paths.ask_peers(cx, id, hash_part, lasting_ms),
            Input::Tick => {}
        }
        self.run_due_timers(ledger);
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.context.outputs.pop_front()
    }

    /// When to call [`Exchange::handle`] with [`Input::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let Self { context: cx, comparisons, news, paths } = self;
        let deadlines = [comparisons.deadline(cx), cx.requests.deadline(), news.deadline(), paths.deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn set_peer(&mut self, peer: PeerId, spoken: Spoken) {
        let cx = &mut self.context;
        // Drawn in any case, so that a run depends on nothing but its inputs.
        let spread_ms = cx.chance.draw_below(GREETING_SPREAD_MS);
        let known = cx.peers.entry(peer).or_insert_with(|| Peer::new(cx.now));
        known.is_connected = true;
        if spoken.counted.adds_to(&known.spoken.counted) {
            known.plan_comparison(cx.now + spread_ms);
        }
        // The peer may have compared before we knew that it may be told of these builders.
        known.owed |= spoken.told.adds_to(&known.spoken.told);
        let owed = known.owed;
        known.spoken = spoken;
        if owed {
            self.news.plan_telling(cx.now);
        }
    }

    fn on_gone(&mut self, peer: &PeerId) {
        let cx = &mut self.context;
        // Whoever waits for this peer's answers must learn that none will come.
        let queued = cx.peers.get_mut(peer).map(|known| known.on_gone(cx.now)).unwrap_or_default();
        let mut waiting: Vec<u64> = queued.into_iter().map(|(id, _)| id).collect();
        for id in cx.requests.ids_to(*peer) {
            if let Some(Purpose::Ask(asked)) = cx.requests.take(id) {
                waiting.extend(asked.into_iter().map(|(id, _)| id));
            }
        }
        self.paths.report_answered(cx, waiting);
    }

    fn run_due_timers(&mut self, ledger: &Ledger) {
        // Overdue requests first: each one that fails may end a comparison and so make room for another.
        while let Some((id, to)) = self.context.requests.find_overdue(self.context.now) {
            self.on_response(ledger, to, id, None);
        }
        let Self { context: cx, comparisons, news, paths } = self;
        paths.expire(cx);
        comparisons.sweep_if_due(cx);
        news.tell_if_due(cx, ledger);
        comparisons.begin_due(cx, ledger);
    }

    fn on_response(&mut self, ledger: &Ledger, from: PeerId, id: u64, bytes: Option<&[u8]>) {
        let cx = &mut self.context;
        let Some(purpose) = cx.requests.take_answered(from, id) else { return };
        let decoded = bytes.map(QuorumReply::decode);
        // A truncated reply may be the fault of the connection.
        let malformed = matches!(&decoded, Some(Err(error)) if !error.is_truncated());
        let reply = decoded.and_then(Result::ok);
        match purpose {
            Purpose::Compare => asking::on_compare_reply(cx, ledger, from, reply),
            Purpose::News(session) => news::on_news_reply(cx, ledger, from, *session, reply),
            Purpose::Pull => asking::on_pull_reply(cx, ledger, from, reply),
            Purpose::Ask(paths) => self.paths.on_ask_reply(cx, from, paths, reply),
        }
        if malformed {
            cx.penalize(from, Fault::MalformedReply);
        }
    }

    /// The attestations of a reply have been verified, and the good ones are in the ledger.
    fn on_taken(&mut self, ledger: &Ledger, id: u64, taken: &Taken) {
        let cx = &mut self.context;
        let Some((from, waiting)) = cx.verifying.remove(&id) else { return };
        // Before the pull goes on, or what the builder has no room for would be asked for again.
        self.comparisons.leave_out(cx.now, &taken.full);
        if taken.refused > 0 {
            cx.penalize(from, Fault::FalseAttestation);
        }
        match waiting {
            Some(waiting) => self.paths.report_answered(cx, waiting),
            None => asking::on_taken(cx, ledger, from, taken),
        }
    }
}
