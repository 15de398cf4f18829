//! Whom to ask for a newer roster, and when.

use crate::Membership;
use libp2p_identity::PeerId;
use narmesh_machine::{Moment, RequestTable};
use narmesh_protocol::wire::{RosterReply, RosterRequest};
use narmesh_protocol::{RosterError, RosterVersion, SignedRoster, Standing};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// How often one connected peer after the other is asked, milliseconds. It finds what nothing else did.
pub const ROUND_MS: u64 = 60_000;
/// How long one peer is waited for before the next one is asked as well, milliseconds: a roster of 100 members comes over a
/// line of 1 Mbit/s in a fifth of that.
pub const PATIENCE_MS: u64 = 1_000;
/// A question without an answer for this long is forgotten, milliseconds. The caller's requests fail after 10 s.
const TIMEOUT_MS: u64 = 15_000;

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// This peer of the allowlist is connected.
    Peer(PeerId),
    /// This peer is no longer connected.
    Gone(PeerId),
    /// This is in force now; `None` where we are of no mesh.
    Held(Option<Membership>),
    /// A peer asks.
    Request {
        /// The asker.
        from: PeerId,
        /// The caller's number of the request.
        id: u64,
        /// A [`RosterRequest`], if it is well-formed.
        bytes: Vec<u8>,
    },
    /// A peer answers.
    Response {
        /// The peer.
        from: PeerId,
        /// The number of the request.
        id: u64,
        /// A [`RosterReply`], if it is well-formed.
        bytes: Vec<u8>,
    },
    /// A request got no answer.
    Failed {
        /// The number of the request.
        id: u64,
    },
    /// The deadline is here.
    Tick,
}

/// What the caller has to do.
#[derive(Debug)]
pub enum Output {
    /// Ask a peer.
    Request {
        /// The peer.
        to: PeerId,
        /// Our number.
        id: u64,
        /// An encoded [`RosterRequest`].
        bytes: Vec<u8>,
    },
    /// Answer a peer's request.
    Respond {
        /// The caller's number of the request.
        id: u64,
        /// An encoded [`RosterReply`].
        bytes: Vec<u8>,
    },
    /// A newer roster was heard: keep it, and put it in force. Or one that contradicts ours ([`Standing::Contradicts`]): show
    /// it to people, who alone can decide.
    Heard {
        /// The peer that gave it.
        from: PeerId,
        /// The roster.
        roster: Arc<SignedRoster>,
    },
    /// A peer sent what no honest one does.
    Misbehaved {
        /// The peer.
        peer: PeerId,
        /// The rule that it broke.
        fault: Fault,
    },
}

/// What no honest peer sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Bytes that are no request.
    MalformedRequest,
    /// Bytes that are no reply, or a roster that neither our mesh key signed nor one that has taken its place.
    MalformedReply,
}

/// What a peer is known to have.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Which roster of our mesh key.
    version: Option<RosterVersion>,
    /// The mesh key that it named last and that we do not know: it is asked once what that is.
    foreign_key: Option<[u8; 32]>,
}

/// What a peer was asked.
#[derive(Clone, Copy, Debug)]
struct Question {
    peer: PeerId,
    /// The mesh key that it named.
    mesh: [u8; 32],
    /// The roster that we said to have.
    have: RosterVersion,
}

/// Compares rosters with the connected peers.
#[derive(Debug)]
pub struct RosterExchange {
    membership: Option<Membership>,
    /// The connected peers, each with what it is known to have.
    peers: BTreeMap<PeerId, Known>,
    /// Questions under way, each with the roster that it named.
    asked: RequestTable<PeerId, Question>,
    /// The peers that will be asked, each once; all are connected.
    waiting: VecDeque<PeerId>,
    /// Until when the next one of them waits, because another one may bring what it would.
    waits_until: Moment,
    next_round: Moment,
    /// Whom the last round asked.
    last: Option<PeerId>,
    /// The mesh key of the roster that was told to contradict ours; one is enough for people to look.
    contradicting: Option<[u8; 32]>,
    outputs: VecDeque<Output>,
}

impl RosterExchange {
    /// One that is of no mesh yet and connected with nobody.
    pub fn new(now: Moment) -> Self {
        Self {
            membership: None,
            peers: BTreeMap::new(),
            asked: RequestTable::new(TIMEOUT_MS),
            waiting: VecDeque::new(),
            waits_until: now,
            next_round: now + ROUND_MS,
            last: None,
            contradicting: None,
            outputs: VecDeque::new(),
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Moment, input: Input) {
        match input {
            Input::Peer(peer) => self.greet(peer),
            Input::Gone(peer) => self.forget(now, &peer),
            Input::Held(membership) => self.hold(now, membership),
            Input::Request { from, id, bytes } => self.answer(from, id, &bytes),
            Input::Response { from, id, bytes } => self.on_response(now, from, id, &bytes),
            Input::Failed { id } => self.end_question(now, id),
            Input::Tick => {}
        }
        // An answer that never comes must not keep its peer from being asked again.
        while let Some((id, _)) = self.asked.find_overdue(now) {
            self.asked.take(id);
        }
        // After the input, which may have ended a question or made a peer worth asking.
        self.begin_round(now);
        self.ask_next(now);
    }

    /// What to do next.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to pass [`Input::Tick`].
    pub fn deadline(&self) -> Option<Moment> {
        self.membership.as_ref()?;
        let waiting = (!self.waiting.is_empty()).then_some(self.waits_until);
        [Some(self.next_round), waiting, self.asked.deadline()].into_iter().flatten().min()
    }

    fn greet(&mut self, peer: PeerId) {
        self.peers.insert(peer, Known::default());
        self.queue(peer);
    }

    fn queue(&mut self, peer: PeerId) {
        let is_asked = self.asked.questions().any(|question| question.peer == peer);
        if self.membership.is_some() && !is_asked && self.peers.contains_key(&peer) && !self.waiting.contains(&peer) {
            self.waiting.push_back(peer);
        }
    }

    fn forget(&mut self, now: Moment, peer: &PeerId) {
        self.peers.remove(peer);
        self.waiting.retain(|waiting| waiting != peer);
        for id in self.asked.ids_to(*peer) {
            self.end_question(now, id);
        }
    }

    /// Ends a question that brought nothing: the next peer need not wait for it.
    fn end_question(&mut self, now: Moment, id: u64) {
        if self.asked.take(id).is_some() {
            self.waits_until = now;
        }
    }

    fn hold(&mut self, now: Moment, membership: Option<Membership>) {
        let which = |membership: &Membership| (membership.key.bytes(), membership.version());
        let (before, after) = (self.membership.as_ref().map(which), membership.as_ref().map(which));
        self.membership = membership;
        if before == after {
            return;
        }
        // What was waited for is here, or is of no use any more.
        self.waits_until = now;
        // Of no mesh: there is nobody to compare with.
        let Some((key, version)) = after else {
            self.waiting.clear();
            return;
        };
        if before.is_none_or(|(before, _)| before != key) {
            // What was said of another mesh key says nothing of this one.
            self.peers.values_mut().for_each(|known| *known = Known::default());
            self.contradicting = None;
        }
        // They are asked although we have something newer: the request names our version, and they ask back for it.
        let untold: Vec<PeerId> =
            self.peers.iter().filter(|(_, known)| known.version < Some(version)).map(|(peer, _)| *peer).collect();
        for peer in untold {
            self.waiting.retain(|waiting| *waiting != peer);
            self.ask(now, peer);
        }
    }

    fn begin_round(&mut self, now: Moment) {
        if now < self.next_round {
            return;
        }
        self.next_round = now + ROUND_MS;
        // By id and round in a circle, so that each one has its turn however peers come and go.
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.peers.range((after, Bound::Unbounded)).next().or_else(|| self.peers.first_key_value());
        self.last = next.map(|(peer, _)| *peer);
        if let Some(peer) = self.last {
            // What it was known to have may be outdated; only an answer tells.
            self.peers.insert(peer, Known::default());
            self.queue(peer);
        }
    }

    fn ask_next(&mut self, now: Moment) {
        let Some(ours) = self.membership.as_ref().map(Membership::version) else { return };
        while now >= self.waits_until {
            let Some(peer) = self.waiting.pop_front() else { return };
            // Many peers greet at once; once one of them has brought the newest, the others need not be asked.
            let may_have_newer =
                self.peers.get(&peer).is_some_and(|known| known.version.is_none_or(|known| known > ours));
            if may_have_newer {
                self.ask(now, peer);
                self.wait(now);
            }
        }
    }

    /// Gives one peer time to bring what the others would.
    fn wait(&mut self, now: Moment) {
        self.waits_until = now + PATIENCE_MS;
    }

    fn ask(&mut self, now: Moment, peer: PeerId) {
        let Some(membership) = &self.membership else { return };
        let request = membership.request();
        if let Ok(bytes) = request.encode() {
            let id = self.asked.add(now, peer, Question { peer, mesh: request.mesh, have: request.have });
            self.outputs.push_back(Output::Request { to: peer, id, bytes });
        }
    }

    fn answer(&mut self, peer: PeerId, id: u64, request: &[u8]) {
        let reply = match RosterRequest::decode(request) {
            Ok(request) => self.reply_to(peer, &request),
            Err(_) => {
                self.outputs.push_back(Output::Misbehaved { peer, fault: Fault::MalformedRequest });
                RosterReply::Absent
            }
        };
        if let Ok(bytes) = reply.encode() {
            self.outputs.push_back(Output::Respond { id, bytes });
        }
    }

    fn reply_to(&mut self, peer: PeerId, request: &RosterRequest) -> RosterReply {
        let Some(membership) = &self.membership else { return RosterReply::Absent };
        let (reply, ours) = (membership.reply_to(&peer, request), membership.version());
        if !membership.knows(&request.mesh) {
            self.hear_foreign_key(peer, request.mesh);
            return reply;
        }
        match reply {
            RosterReply::Older => {
                self.know(peer, request.have);
                self.queue(peer);
            }
            // It has what we have, or is about to, and need not be asked.
            RosterReply::Newer(_) | RosterReply::Same => self.know(peer, ours),
            RosterReply::Absent | RosterReply::Busy | RosterReply::OtherKey(_) => {}
        }
        reply
    }

    /// A peer names a mesh key that we do not know: maybe it has taken the place of ours. It is asked once for each key, so
    /// that two that do not know each other's do not ask each other for ever.
    fn hear_foreign_key(&mut self, peer: PeerId, key: [u8; 32]) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.foreign_key.replace(key) != Some(key) {
            known.version = None;
            self.queue(peer);
        }
    }

    fn on_response(&mut self, now: Moment, peer: PeerId, id: u64, response: &[u8]) {
        let Some(question) = self.asked.take_answered(peer, id) else { return };
        self.waits_until = now;
        // Another key has come into force meanwhile: its roster was asked for anew, and this answer is about the one before.
        if self.membership.as_ref().is_none_or(|membership| membership.key.bytes() != question.mesh) {
            return;
        }
        match RosterReply::decode(response) {
            Ok(RosterReply::Newer(bytes)) => self.take(now, peer, &bytes),
            Ok(RosterReply::OtherKey(bytes)) => self.compare(peer, &bytes),
            Ok(RosterReply::Same) => self.know(peer, question.have),
            Ok(RosterReply::Absent | RosterReply::Older | RosterReply::Busy) => {}
            // A reply that was cut short may be the connection's fault.
            Err(error) if error.is_truncated() => {}
            Err(_) => self.blame(peer),
        }
    }

    /// Takes what is said to be newer than ours.
    fn take(&mut self, now: Moment, peer: PeerId, bytes: &[u8]) {
        let Some(membership) = &self.membership else { return };
        let roster = match SignedRoster::open(&membership.key, bytes) {
            Ok(roster) => roster,
            Err(error) => return self.refuse(peer, &error),
        };
        let (version, is_of_our_key) = (roster.version(), roster.key().bytes() == membership.key.bytes());
        if !is_of_our_key || version > membership.version() {
            // Until it is in force, others would bring the same one.
            self.wait(now);
            self.outputs.push_back(Output::Heard { from: peer, roster: Arc::new(roster) });
        }
        if is_of_our_key {
            self.know(peer, version);
        }
    }

    /// Finds out how a roster of a mesh key that we do not know stands to ours.
    fn compare(&mut self, peer: PeerId, bytes: &[u8]) {
        let Some(membership) = &self.membership else { return };
        let roster = match SignedRoster::open_unknown(membership.key.name(), bytes) {
            Ok(roster) => roster,
            Err(error) => return self.refuse(peer, &error),
        };
        let Some(ours) = &membership.roster else { return };
        let is_news = match ours.standing_of(&roster) {
            Standing::Contradicts => self.contradicting.replace(roster.key().bytes()) != Some(roster.key().bytes()),
            // We learned meanwhile what this peer has.
            Standing::Newer => true,
            Standing::Same | Standing::Older | Standing::Unrelated => false,
        };
        if is_news {
            self.outputs.push_back(Output::Heard { from: peer, roster: Arc::new(roster) });
        }
    }

    /// What cannot be opened is a misdeed, unless a later version of narmesh may have signed it: then the peer may have only passed
    /// it on.
    fn refuse(&mut self, peer: PeerId, error: &RosterError) {
        if !matches!(error, RosterError::UnknownFormat { .. }) {
            self.blame(peer);
        }
    }

    fn blame(&mut self, peer: PeerId) {
        self.outputs.push_back(Output::Misbehaved { peer, fault: Fault::MalformedReply });
    }

    fn know(&mut self, peer: PeerId, version: RosterVersion) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.version = Some(version);
        }
    }
}

#[cfg(test)]
mod tests;
