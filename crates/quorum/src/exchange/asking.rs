//! Our side of a comparison, and the pull that follows it.

use super::peer::{Peer, Pulling, Running};
use super::{Exchange, FULL_MS, Fault, Output, Question, TOLD_MAX, Taken};
use crate::ledger::Ledger;
use crate::reconcile::{Answer, Difference, Next, Query, Session, Shared};
use crate::wire::{PULL_MAX, QuorumReply, QuorumRequest};
use libp2p_identity::PeerId;
use narmesh_protocol::{Attestation, BuilderKey, HashPart};

/// The most items wanted in one comparison; the next one finds the rest.
const WANTED_MAX: usize = 4_096;
/// The most queries of a comparison, plus one for each [`FOUND_PER_QUERY`] differences. The deepest nodes are asked about
/// first, so an honest peer leads to a difference long before this. A peer that never does is at the bottom of the tree
/// after 40 queries.
const QUERIES_MAX: usize = 64;
const FOUND_PER_QUERY: usize = 16;
/// The most attestations for one item: a void vote has several.
const STATEMENTS_MAX: usize = crate::ledger::STATEMENTS_PER_PATH_MAX;

impl Exchange {
    /// Begins a comparison.
    pub(super) fn begin_comparison(&mut self, ledger: &Ledger, peer: PeerId) {
        let now = self.now;
        self.full.retain(|_, until| *until > now);
        let from = self.chance.draw_below(u64::from(u16::MAX));
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.clear_due();
        let full = &self.full;
        let shared = known.spoken.counted.filtered(|key| !full.contains_key(key));
        if shared.is_empty() {
            return;
        }
        let (session, query) = Session::start(ledger, shared.window(usize::try_from(from).unwrap_or(0)));
        known.running = Some(Running::Comparing(Box::new(session)));
        self.send(peer, Question::Compare, &QuorumRequest::Compare { query, news: false });
    }

    /// Handles the reply to our query; `None` when there was none.
    pub(super) fn on_compare_reply(&mut self, ledger: &Ledger, from: PeerId, reply: Option<QuorumReply>) {
        let Some(known) = self.peers.get_mut(&from) else { return };
        let Some(Running::Comparing(mut session)) = known.running.take() else { return };
        let answer = match reply {
            Some(QuorumReply::Compared(answer)) => answer,
            Some(QuorumReply::Attestations { .. }) => return self.penalize(from, Fault::MalformedReply),
            Some(QuorumReply::Busy) | None => return known.retry_later(self.now, session.queries(), 0),
        };
        // The peer compares none of these builders with us.
        if answer == Answer::Builders(Vec::new()) {
            return self.end_comparison(from, session.queries(), None);
        }
        let next = session.on_answer(ledger, &answer);
        let ((theirs, ours), queries) = (session.found(), session.queries());
        match next {
            Next::Ask(query) if theirs < WANTED_MAX && queries <= QUERIES_MAX + (theirs + ours) / FOUND_PER_QUERY => {
                known.running = Some(Running::Comparing(session));
                self.send(from, Question::Compare, &QuorumRequest::Compare { query, news: false });
            }
            Next::Ask(_) => {
                let shared = session.shared().clone();
                self.pull(ledger, from, shared, session.stop(), queries);
            }
            Next::Done(found) if !found.complete && session.is_misfit() => match answer {
                // What the peer may tell us changed meanwhile, so it is not to blame.
                Answer::Builders(_) => known.retry_later(self.now, queries, 0),
                Answer::Nodes { .. } => self.penalize(from, Fault::MalformedReply),
            },
            Next::Done(found) => self.pull(ledger, from, session.shared().clone(), found, queries),
        }
    }

    fn pull(&mut self, ledger: &Ledger, from: PeerId, builders: Shared, found: Difference, queries: usize) {
        let mut wanted = found.theirs;
        wanted.sort_unstable();
        wanted.dedup();
        let cut = wanted.len() > WANTED_MAX;
        wanted.truncate(WANTED_MAX);
        if wanted.is_empty() {
            return self.end_comparison(from, queries, None);
        }
        let complete = found.complete && !cut;
        let pulling =
            Pulling { builders, wanted, asked: Vec::new(), answered: 0, complete, queries, verified: 0, new: 0 };
        self.pull_more(ledger, from, pulling);
    }

    fn pull_more(&mut self, ledger: &Ledger, from: PeerId, mut pulling: Pulling) {
        let Some(known) = self.peers.get_mut(&from) else { return };
        let had = pulling.wanted.len();
        // Another peer may have brought some of them meanwhile.
        let here = ledger.find(&pulling.builders, &pulling.wanted);
        let mut here = here.into_iter();
        pulling.wanted.retain(|_| here.next().flatten().is_none());
        pulling.verified += had - pulling.wanted.len();
        pulling.asked = pulling.wanted.iter().take(PULL_MAX).copied().collect();
        pulling.answered = 0;
        if pulling.asked.is_empty() {
            return self.end_comparison(from, pulling.queries, Some(&pulling));
        }
        let request = QuorumRequest::Pull { builders: pulling.builders.digests(), wanted: pulling.asked.clone() };
        known.running = Some(Running::Pulling(pulling));
        self.send(from, Question::Pull, &request);
    }

    pub(super) fn on_pull_reply(&mut self, ledger: &Ledger, from: PeerId, reply: Option<QuorumReply>) {
        let Some(known) = self.peers.get_mut(&from) else { return };
        let Some(Running::Pulling(mut pulling)) = known.running.take() else { return };
        let (answered, encoded) = match reply {
            Some(QuorumReply::Attestations { answered, attestations }) => (answered, attestations),
            Some(QuorumReply::Compared(_)) => return self.penalize(from, Fault::MalformedReply),
            Some(QuorumReply::Busy) | None => return known.retry_later(self.now, pulling.queries, pulling.new),
        };
        pulling.answered = usize::try_from(answered).unwrap_or(usize::MAX);
        // A reply must answer at least one item, or the pull would never end.
        let bounded = pulling.answered > 0
            && pulling.answered <= pulling.asked.len()
            && encoded.len() <= pulling.answered * STATEMENTS_MAX;
        if !bounded {
            return self.penalize(from, Fault::MalformedReply);
        }
        let asked = pulling.asked.get(..pulling.answered).unwrap_or_default();
        let is_asked = |path: &HashPart| asked.iter().any(|(node, _)| node.contains(path));
        let Some(attestations) = decode_asked(&encoded, |key, path| pulling.builders.contains(key) && is_asked(path))
        else {
            return self.penalize(from, Fault::FalseAttestation);
        };
        known.running = Some(Running::Pulling(pulling));
        let id = self.requests.assign_id();
        self.verifying.insert(id, (from, None));
        if attestations.is_empty() {
            return self.on_taken(ledger, id, &Taken::default());
        }
        self.outputs.push_back(Output::Verify { from, id, attestations });
    }

    /// The attestations of a reply have been verified, and the good ones are in the ledger.
    pub(super) fn on_taken(&mut self, ledger: &Ledger, id: u64, taken: &Taken) {
        let Some((from, waiting)) = self.verifying.remove(&id) else { return };
        let until = self.now + FULL_MS;
        self.full.extend(taken.full.iter().map(|key| (*key, until)));
        if taken.refused > 0 {
            self.penalize(from, Fault::FalseAttestation);
        }
        if let Some(waiting) = waiting {
            return self.report_answered(waiting);
        }
        let Some(known) = self.peers.get_mut(&from) else { return };
        let Some(Running::Pulling(mut pulling)) = known.running.take() else { return };
        pulling.verified += taken.verified;
        pulling.new += taken.new;
        pulling.wanted.drain(..pulling.answered.min(pulling.wanted.len()));
        if taken.full.is_empty() {
            return self.pull_more(ledger, from, pulling);
        }
        // The next comparison leaves out the builder that is at its bound.
        pulling.complete = false;
        self.end_comparison(from, pulling.queries, Some(&pulling));
    }

    fn end_comparison(&mut self, peer: PeerId, queries: usize, pulled: Option<&Pulling>) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let liar = known.end_comparison(self.now, queries, pulled);
        self.outputs.push_back(Output::Compared { peer, new: pulled.map_or(0, |pulled| pulled.new) });
        if liar {
            self.penalize(peer, Fault::FalseComparison);
        }
    }

    /// Tells some random peers that there is something new, and the peers to which we owe it.
    pub(super) fn tell(&mut self, ledger: &Ledger) {
        self.tell_at = None;
        self.told_at = Some(self.now);
        let now = self.now;
        let may_be = |peer: &Peer| !peer.spoken.told.is_empty() && peer.shunned_until <= now;
        let grew = std::mem::take(&mut self.grew);
        let all: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| grew && may_be(peer)).map(|(peer, _)| *peer).collect();
        let mut chosen = self.chance.choose(all, TOLD_MAX);
        chosen.extend(self.peers.iter().filter(|(_, peer)| peer.owed && may_be(peer)).map(|(peer, _)| *peer));
        chosen.sort_unstable();
        chosen.dedup();
        for peer in chosen {
            let from = usize::try_from(self.chance.draw_below(u64::from(u16::MAX))).unwrap_or(0);
            let Some(known) = self.peers.get_mut(&peer) else { continue };
            known.owed = false;
            let (session, query) = Session::start(ledger, known.spoken.told.window(from));
            self.send_news(peer, session, query);
        }
    }

    fn send_news(&mut self, peer: PeerId, session: Session, query: Query) {
        self.send(peer, Question::News(Box::new(session)), &QuorumRequest::Compare { query, news: true });
    }

    /// Handles the reply of a peer that was told. It is asked once more when it knows fewer builders than we named.
    pub(super) fn on_news_reply(
        &mut self,
        ledger: &Ledger,
        from: PeerId,
        mut session: Session,
        reply: Option<QuorumReply>,
    ) {
        match reply {
            Some(QuorumReply::Compared(answer @ Answer::Builders(_))) if answer != Answer::Builders(Vec::new()) => {
                if let Next::Ask(query) = session.on_answer(ledger, &answer) {
                    self.send_news(from, session, query);
                }
            }
            Some(QuorumReply::Attestations { .. }) => self.penalize(from, Fault::MalformedReply),
            Some(QuorumReply::Compared(_) | QuorumReply::Busy) | None => {}
        }
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
