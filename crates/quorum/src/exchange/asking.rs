//! Our side of a comparison, and the pull that follows it.

use super::context::{Context, Purpose};
use super::peer::{Peer, Pulling, Running};
use super::{Fault, Moment, Output, Taken};
use crate::ledger::Ledger;
use crate::reconcile::{Answer, Difference, Next, Session, Shared};
use crate::wire::{PULL_MAX, QuorumReply, QuorumRequest};
use libp2p_identity::PeerId;
use narmesh_protocol::{Attestation, BuilderKey, HashPart};
use std::collections::{BTreeMap, BTreeSet};

/// The most comparisons under way at once; more would pull the same from several peers.
const SESSIONS_MAX: usize = 4;
/// Time between two comparisons with a random peer, plus or minus a tenth, milliseconds.
const SWEEP_MS: u64 = 60_000;
/// A builder at its bound is left out for this long, milliseconds.
const FULL_MS: u64 = 600_000;
/// The most items wanted in one comparison; the next one finds the rest.
const WANTED_MAX: usize = 4_096;
/// The most queries of a comparison, plus one for each [`FOUND_PER_QUERY`] differences. The deepest nodes are asked about
/// first, so an honest peer leads to a difference long before this. A peer that never does is at the bottom of the tree
/// after 40 queries.
const QUERIES_MAX: usize = 64;
const FOUND_PER_QUERY: usize = 16;
/// The most attestations for one item: a void vote has several.
const STATEMENTS_MAX: usize = crate::ledger::STATEMENTS_PER_PATH_MAX;

/// When comparisons begin, and which builders they leave out.
#[derive(Debug)]
pub(super) struct Comparisons {
    /// Builders at their bound, and until when they are left out.
    full: BTreeMap<BuilderKey, Moment>,
    sweep_at: Moment,
}

impl Comparisons {
    pub(super) fn new(cx: &mut Context) -> Self {
        Self { full: BTreeMap::new(), sweep_at: draw_sweep(cx) }
    }

    /// When the next comparison is due.
    pub(super) fn deadline(&self, cx: &Context) -> Option<Moment> {
        let free = cx.sessions() < SESSIONS_MAX;
        let due = cx.peers.values().filter(|_| free).filter_map(Peer::next_start);
        let sweep = cx.peers.values().any(|peer| !peer.spoken.counted.is_empty()).then_some(self.sweep_at);
        due.chain(sweep).min()
    }

    /// Finds the differences that nobody told us of.
    pub(super) fn sweep_if_due(&mut self, cx: &mut Context) {
        if self.sweep_at > cx.now {
            return;
        }
        self.sweep_at = draw_sweep(cx);
        // One with which a comparison runs, or nothing may be compared, would waste the turn of the minute.
        let idle = |(_, peer): &(&PeerId, &Peer)| !peer.spoken.counted.is_empty() && peer.running.is_none();
        let idle: Vec<PeerId> = cx.peers.iter().filter(idle).map(|(peer, _)| *peer).collect();
        if let Some(peer) = cx.chance.choose(idle, 1).first().and_then(|peer| cx.peers.get_mut(peer)) {
            peer.plan_comparison(cx.now);
        }
    }

    /// Begins as many of the comparisons that are due as there is room for, the longest due first.
    pub(super) fn begin_due(&mut self, cx: &mut Context, ledger: &Ledger) {
        let mut due: Vec<(Moment, PeerId)> =
            cx.peers.iter().filter_map(|(peer, known)| Some((known.next_start()?, *peer))).collect();
        due.retain(|(at, _)| *at <= cx.now);
        due.sort_unstable();
        for (_, peer) in due.into_iter().take(SESSIONS_MAX.saturating_sub(cx.sessions())) {
            self.begin_comparison(cx, ledger, peer);
        }
    }

    /// Leaves these builders out for a while, because they are at their bound.
    pub(super) fn leave_out(&mut self, now: Moment, full: &BTreeSet<BuilderKey>) {
        self.full.extend(full.iter().map(|key| (*key, now + FULL_MS)));
    }

    fn begin_comparison(&mut self, cx: &mut Context, ledger: &Ledger, peer: PeerId) {
        let now = cx.now;
        self.full.retain(|_, until| *until > now);
        // From a random builder on: of more than one session can name, each has its turn sooner or later.
        let from = cx.chance.draw_below(u64::from(u16::MAX));
        let Some(known) = cx.peers.get_mut(&peer) else { return };
        known.clear_due();
        let full = &self.full;
        // What a builder at its bound says would be pulled, only to be evicted again.
        let shared = known.spoken.counted.filtered(|key| !full.contains_key(key));
        if shared.is_empty() {
            return;
        }
        let (session, query) = Session::start(ledger, shared.window(usize::try_from(from).unwrap_or(0)));
        known.running = Some(Running::Comparing(Box::new(session)));
        cx.send(peer, Purpose::Compare, &QuorumRequest::Compare { query, news: false });
    }
}

fn draw_sweep(cx: &mut Context) -> Moment {
    cx.now + SWEEP_MS * 9 / 10 + cx.chance.draw_below(SWEEP_MS / 5)
}

/// Handles the reply to our query; `None` when there was none.
pub(super) fn on_compare_reply(cx: &mut Context, ledger: &Ledger, from: PeerId, reply: Option<QuorumReply>) {
    let Some(known) = cx.peers.get_mut(&from) else { return };
    let Some(Running::Comparing(mut session)) = known.running.take() else { return };
    let answer = match reply {
        Some(QuorumReply::Compared(answer)) => answer,
        Some(QuorumReply::Attestations { .. }) => return cx.penalize(from, Fault::MalformedReply),
        Some(QuorumReply::Busy) | None => return known.retry_later(cx.now, session.queries(), 0),
    };
    // The peer compares none of these builders with us.
    if answer == Answer::Builders(Vec::new()) {
        return end_comparison(cx, from, session.queries(), None);
    }
    let next = session.on_answer(ledger, &answer);
    let ((theirs, ours), queries) = (session.found(), session.queries());
    match next {
        Next::Ask(query) if theirs < WANTED_MAX && queries <= QUERIES_MAX + (theirs + ours) / FOUND_PER_QUERY => {
            known.running = Some(Running::Comparing(session));
            cx.send(from, Purpose::Compare, &QuorumRequest::Compare { query, news: false });
        }
        // Enough is wanted, or the peer leads nowhere: what was found is pulled, and the next comparison finds the
        // rest.
        Next::Ask(_) => {
            let shared = session.shared().clone();
            pull(cx, ledger, from, shared, session.stop(), queries);
        }
        Next::Done(found) if !found.complete && session.is_misfit() => match answer {
            // What the peer may tell us changed meanwhile, so it is not to blame.
            Answer::Builders(_) => known.retry_later(cx.now, queries, 0),
            Answer::Nodes { .. } => cx.penalize(from, Fault::MalformedReply),
        },
        Next::Done(found) => pull(cx, ledger, from, session.shared().clone(), found, queries),
    }
}

fn pull(cx: &mut Context, ledger: &Ledger, from: PeerId, builders: Shared, found: Difference, queries: usize) {
    let mut wanted = found.theirs;
    wanted.sort_unstable();
    wanted.dedup();
    // The next comparison finds the rest.
    let cut = wanted.len() > WANTED_MAX;
    wanted.truncate(WANTED_MAX);
    if wanted.is_empty() {
        return end_comparison(cx, from, queries, None);
    }
    let complete = found.complete && !cut;
    let pulling = Pulling { builders, wanted, asked: Vec::new(), answered: 0, complete, queries, verified: 0, new: 0 };
    pull_more(cx, ledger, from, pulling);
}

fn pull_more(cx: &mut Context, ledger: &Ledger, from: PeerId, mut pulling: Pulling) {
    let Some(known) = cx.peers.get_mut(&from) else { return };
    let had = pulling.wanted.len();
    // Another peer may have brought some of them meanwhile.
    let here = ledger.find(&pulling.builders, &pulling.wanted);
    let mut here = here.into_iter();
    pulling.wanted.retain(|_| here.next().flatten().is_none());
    pulling.verified += had - pulling.wanted.len();
    // A request has its bound; the rest is asked for when this part has been taken.
    pulling.asked = pulling.wanted.iter().take(PULL_MAX).copied().collect();
    pulling.answered = 0;
    if pulling.asked.is_empty() {
        return end_comparison(cx, from, pulling.queries, Some(&pulling));
    }
    let request = QuorumRequest::Pull { builders: pulling.builders.digests(), wanted: pulling.asked.clone() };
    known.running = Some(Running::Pulling(pulling));
    cx.send(from, Purpose::Pull, &request);
}

pub(super) fn on_pull_reply(cx: &mut Context, ledger: &Ledger, from: PeerId, reply: Option<QuorumReply>) {
    let Some(known) = cx.peers.get_mut(&from) else { return };
    let Some(Running::Pulling(mut pulling)) = known.running.take() else { return };
    let (answered, encoded) = match reply {
        Some(QuorumReply::Attestations { answered, attestations }) => (answered, attestations),
        Some(QuorumReply::Compared(_)) => return cx.penalize(from, Fault::MalformedReply),
        Some(QuorumReply::Busy) | None => return known.retry_later(cx.now, pulling.queries, pulling.new),
    };
    pulling.answered = usize::try_from(answered).unwrap_or(usize::MAX);
    // A reply must answer at least one item, or the pull would never end.
    let bounded = pulling.answered > 0
        && pulling.answered <= pulling.asked.len()
        && encoded.len() <= pulling.answered * STATEMENTS_MAX;
    if !bounded {
        return cx.penalize(from, Fault::MalformedReply);
    }
    let asked = pulling.asked.get(..pulling.answered).unwrap_or_default();
    let is_asked = |path: &HashPart| asked.iter().any(|(node, _)| node.contains(path));
    // What was not asked for is not verified: each signature costs far more than the bytes that claim to hold one.
    let Some(attestations) = decode_asked(&encoded, |key, path| pulling.builders.contains(key) && is_asked(path))
    else {
        return cx.penalize(from, Fault::FalseAttestation);
    };
    // The caller verifies elsewhere, and this pull goes on when it has.
    known.running = Some(Running::Pulling(pulling));
    if attestations.is_empty() {
        return on_taken(cx, ledger, from, &Taken::default());
    }
    cx.verify(from, None, attestations);
}

/// The attestations of a pull have been verified, and the good ones are in the ledger.
pub(super) fn on_taken(cx: &mut Context, ledger: &Ledger, from: PeerId, taken: &Taken) {
    let Some(known) = cx.peers.get_mut(&from) else { return };
    let Some(Running::Pulling(mut pulling)) = known.running.take() else { return };
    pulling.verified += taken.verified;
    pulling.new += taken.new;
    pulling.wanted.drain(..pulling.answered.min(pulling.wanted.len()));
    if taken.full.is_empty() {
        return pull_more(cx, ledger, from, pulling);
    }
    // The next comparison leaves out the builder that is at its bound.
    pulling.complete = false;
    end_comparison(cx, from, pulling.queries, Some(&pulling));
}

fn end_comparison(cx: &mut Context, peer: PeerId, queries: usize, pulled: Option<&Pulling>) {
    let Some(known) = cx.peers.get_mut(&peer) else { return };
    let liar = known.end_comparison(cx.now, queries, pulled);
    cx.outputs.push_back(Output::Compared { peer, new: pulled.map_or(0, |pulled| pulled.new) });
    if liar {
        cx.penalize(peer, Fault::FalseComparison);
    }
}

/// Decodes what was handed over; `None` when an attestation is malformed or was not asked for.
pub(super) fn decode_asked(
    encoded: &[Vec<u8>],
    is_asked: impl Fn(&BuilderKey, &HashPart) -> bool,
) -> Option<Vec<Attestation>> {
    let decode = |bytes: &Vec<u8>| {
        let attestation = Attestation::decode(bytes).ok()?;
        is_asked(&attestation.builder, &attestation.statement.path.hash_part()).then_some(attestation)
    };
    encoded.iter().map(decode).collect()
}
