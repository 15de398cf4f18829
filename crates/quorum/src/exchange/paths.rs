//! Paths on which somebody waits for a verdict.

use super::asking::decode_asked;
use super::context::{Context, Purpose};
use super::{Fault, Moment, Output};
use crate::wire::{ASK_MAX, QuorumReply, QuorumRequest};
use libp2p_identity::PeerId;
use narmesh_machine::Timers;
use narmesh_protocol::HashPart;
use std::collections::BTreeMap;

/// The most peers asked for one path.
const ASKED_PEERS_MAX: usize = 3;
/// The most questions at once; a question beyond that ends at once without an answer.
const PATHS_MAX: usize = 4_096;
/// The most attestations in one reply.
const ATTESTATIONS_MAX: usize = 4_096;
/// A peer that did not answer is not asked for this long, milliseconds: only the first question waits for it in vain.
const SILENT_MS: u64 = 30_000;

/// The paths that somebody here waits for, by the id of the question; at most [`PATHS_MAX`].
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// How many peers have yet to answer each.
    unanswered: BTreeMap<u64, usize>,
    /// When each question ends, answered or not.
    ends: Timers<u64>,
}

impl Paths {
    /// When the first question ends.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.ends.deadline()
    }

    fn close(&mut self, id: u64) {
        self.unanswered.remove(&id);
        self.ends.set(id, None);
    }

    pub(super) fn ask_peers(&mut self, cx: &mut Context, id: u64, hash_part: HashPart, lasting_ms: u64) {
        let now = cx.now;
        let able = cx.peers.iter().filter(|(_, peer)| {
            !peer.spoken.counted.is_empty() && peer.shunned_until <= now && peer.silent_until <= now
        });
        // Builders first: a random peer rarely has what a builder of the policy has said of the path.
        let (builders, others): (Vec<_>, Vec<_>) = able.partition(|(_, peer)| peer.spoken.is_builder);
        let [builders, others] = [builders, others].map(|peers| peers.into_iter().map(|(peer, _)| *peer).collect());
        let mut chosen = cx.chance.choose(builders, ASKED_PEERS_MAX);
        chosen.extend(cx.chance.choose(others, ASKED_PEERS_MAX - chosen.len()));
        // A lookup waits for this, so it hears at once that nobody will be asked.
        if chosen.is_empty() || self.unanswered.len() >= PATHS_MAX {
            return cx.outputs.push_back(Output::Answered { id, last: true });
        }
        self.unanswered.insert(id, chosen.len());
        self.ends.set(id, Some(now + lasting_ms));
        for peer in chosen {
            if let Some(known) = cx.peers.get_mut(&peer) {
                known.queue.push_back((id, hash_part));
            }
            Self::ask_queued(cx, peer);
        }
    }

    /// Asks a peer for the paths that have gathered while its last question was under way.
    fn ask_queued(cx: &mut Context, peer: PeerId) {
        let from = usize::try_from(cx.chance.draw_below(u64::from(u16::MAX))).unwrap_or(0);
        let Some(known) = cx.peers.get_mut(&peer).filter(|known| !known.asking && !known.queue.is_empty()) else {
            return;
        };
        // One question at a time: what gathers meanwhile goes into the next one together.
        known.asking = true;
        let asked: Vec<_> = known.queue.drain(..ASK_MAX.min(known.queue.len())).collect();
        let builders = known.spoken.counted.window(from).digests();
        let paths = asked.iter().map(|(_, path)| *path).collect();
        cx.send(peer, Purpose::Ask(asked), &QuorumRequest::Ask { builders, paths });
    }

    pub(super) fn on_ask_reply(
        &mut self,
        cx: &mut Context,
        from: PeerId,
        mut asked: Vec<(u64, HashPart)>,
        reply: Option<QuorumReply>,
    ) {
        let Some(known) = cx.peers.get_mut(&from) else { return };
        known.asking = false;
        known.silent_until = if reply.is_some() { Moment::default() } else { cx.now + SILENT_MS };
        let (answered, encoded) = match reply {
            Some(QuorumReply::Attestations { answered, attestations }) => (answered, attestations),
            Some(QuorumReply::Compared(_)) => {
                cx.penalize(from, Fault::MalformedReply);
                return self.on_unanswered(cx, from, asked);
            }
            Some(QuorumReply::Busy) | None => return self.on_unanswered(cx, from, asked),
        };
        let answered = usize::try_from(answered).unwrap_or(usize::MAX);
        let counted = &known.spoken.counted;
        let is_asked = |path: &HashPart| asked.iter().any(|(_, known)| known == path);
        // A reply must answer at least one path, or the question would never end.
        let bounded = answered > 0 && answered <= asked.len() && encoded.len() <= ATTESTATIONS_MAX;
        let attestations =
            if bounded { decode_asked(&encoded, |key, path| counted.contains(key) && is_asked(path)) } else { None };
        let Some(attestations) = attestations else {
            cx.penalize(from, if bounded { Fault::FalseAttestation } else { Fault::MalformedReply });
            return self.on_unanswered(cx, from, asked);
        };
        // The paths that did not fit go first in the next question.
        for rest in asked.split_off(answered).into_iter().rev() {
            known.queue.push_front(rest);
        }
        let waiting: Vec<u64> = asked.into_iter().map(|(id, _)| id).collect();
        // Nothing has to be verified, so the lookups that wait for these paths need not wait for the caller either.
        if attestations.is_empty() {
            self.report_answered(cx, waiting);
        } else {
            cx.verify(from, Some(waiting), attestations);
        }
        Self::ask_queued(cx, from);
    }

    fn on_unanswered(&mut self, cx: &mut Context, from: PeerId, asked: Vec<(u64, HashPart)>) {
        self.report_answered(cx, asked.into_iter().map(|(id, _)| id));
        Self::ask_queued(cx, from);
    }

    /// Ends the questions that have waited long enough, and asks no peer for their paths any more.
    pub(super) fn expire(&mut self, cx: &mut Context) {
        let mut expired = false;
        while let Some(id) = self.ends.pop(cx.now) {
            self.close(id);
            cx.outputs.push_back(Output::Answered { id, last: true });
            // The queues are looked through once for all that ended.
            expired = true;
        }
        if expired {
            for peer in cx.peers.values_mut() {
                peer.queue.retain(|(id, _)| self.unanswered.contains_key(id));
            }
        }
    }

    /// One peer is done with these questions.
    pub(super) fn report_answered(&mut self, cx: &mut Context, ids: impl IntoIterator<Item = u64>) {
        for id in ids {
            let Some(unanswered) = self.unanswered.get_mut(&id) else { continue };
            *unanswered = unanswered.saturating_sub(1);
            let last = *unanswered == 0;
            if last {
                self.close(id);
            }
            cx.outputs.push_back(Output::Answered { id, last });
        }
    }
}
