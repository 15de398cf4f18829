//! How we answer the requests of peers.

use super::context::Context;
use super::peer::Admission;
use super::{Fault, Output};
use crate::ledger::Ledger;
use crate::reconcile::{Answer, Node, Query, Shared};
use crate::wire::{ATTESTATIONS_BYTES_MAX, QuorumReply, QuorumRequest};
use libp2p_identity::PeerId;
use narmesh_protocol::{Attestation, BuilderKey, HashPart};
use std::cell::Cell;
use std::collections::BTreeSet;

/// A peer that is told of news waits up to this long before it compares, milliseconds, so that not all ask the
/// same peer at once.
const ASK_BACK_SPREAD_MS: u64 = 40;
/// Units of a request beyond the first: this many nodes of a query cost one unit. A request for attestations costs as much
/// as if its reply were full.
const NODES_PER_UNIT: usize = 8;
const HAND_OVER_UNITS: u64 = 4;
/// This many paths that were looked at for a request cost one more unit, whichever builders attested them: some 0.2 ms.
const LOOKED_PER_UNIT: usize = 4_096;
/// The most paths looked at for one comparison or pull, though the last node is finished; the peer asks again for the rest.
const LOOKED_MAX: usize = 1 << 16;

/// Attestations to be handed to a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandOver {
    /// The peer that asked for the attestations.
    pub to: PeerId,
    /// The id of the [`super::Input::Request`].
    pub id: u64,
    /// For each item or path of the request: the builders, and the path, of which attestations are wanted.
    pub wanted: Vec<Vec<(BuilderKey, HashPart)>>,
    /// Whether we named these items in a comparison before. A question without a comparison may be a guess, so it is
    /// answered as if what must not be told did not exist.
    pub promised: bool,
}

impl HandOver {
    /// The encoded reply, with as many attestations as fit. `attestations` returns all attestations of a builder about a
    /// path, or `None` if they were there a moment ago and must not be handed over now, for whatever reason. When such
    /// attestations were promised and nothing else is left, the reply is *busy*. Then the peer compares again, and does not
    /// take what we named for a lie.
    pub fn encode_reply(
        &self,
        mut attestations: impl FnMut(&BuilderKey, &HashPart) -> Option<Vec<Attestation>>,
    ) -> Vec<u8> {
        let (mut answered, mut handed, mut bytes) = (0u32, Vec::new(), 0);
        let mut kept_back = false;
        for wanted in &self.wanted {
            let said: Vec<_> = wanted.iter().map(|(key, path)| attestations(key, path)).collect();
            kept_back |= said.iter().any(Option::is_none);
            let said = said.into_iter().flatten().flatten();
            let encoded: Vec<Vec<u8>> = said.filter_map(|attestation| attestation.encode().ok()).collect();
            let more: usize = encoded.iter().map(Vec::len).sum();
            if answered > 0 && bytes + more > ATTESTATIONS_BYTES_MAX {
                break;
            }
            answered += 1;
            for one in encoded {
                // Within one item, too, only what fits is sent. An attestation that is too large next to the others comes
                // from a peer that has it alone.
                if handed.is_empty() || bytes + one.len() <= ATTESTATIONS_BYTES_MAX {
                    bytes += one.len();
                    handed.push(one);
                }
            }
        }
        if self.promised && kept_back && handed.is_empty() {
            return encode_or_empty(&QuorumReply::Busy);
        }
        encode_or_empty(&QuorumReply::Attestations { answered, attestations: handed })
    }
}

pub(super) fn on_request(cx: &mut Context, ledger: &Ledger, from: PeerId, id: u64, bytes: &[u8]) {
    let request = match QuorumRequest::decode(bytes) {
        Ok(request) if request.is_bounded() => request,
        Ok(_) | Err(_) => {
            cx.penalize(from, Fault::MalformedRequest);
            return respond(cx, from, id, &QuorumReply::Busy);
        }
    };
    // The peer has left, or the caller has not said yet what it may be told. It will ask again.
    let Some(peer) = cx.peers.get_mut(&from).filter(|peer| peer.is_connected) else {
        return respond(cx, from, id, &QuorumReply::Busy);
    };
    // Charged before it is answered, by its length; what the ledger had to look at is charged afterwards.
    let beyond = match &request {
        QuorumRequest::Compare { query, .. } => u64::try_from(query.nodes.len() / NODES_PER_UNIT).unwrap_or(u64::MAX),
        QuorumRequest::Pull { .. } | QuorumRequest::Ask { .. } => HAND_OVER_UNITS,
    };
    match peer.admit(cx.now, 1 + beyond) {
        Admission::Answer => {}
        Admission::Busy => return respond(cx, from, id, &QuorumReply::Busy),
        Admission::Flood => {
            cx.penalize(from, Fault::RequestFlood);
            return respond(cx, from, id, &QuorumReply::Busy);
        }
    }
    let told = peer.spoken.told.clone();
    match request {
        QuorumRequest::Compare { query, news } => answer_comparison(cx, ledger, from, id, &told, &query, news),
        QuorumRequest::Pull { builders, wanted } => {
            let looked = Cell::new(0);
            let found = ledger.find_counted(&told.restricted_to(&builders), &wanted, LOOKED_MAX, &looked);
            peer.charge(units(looked.get()));
            let wanted = found.into_iter().map(|found| found.into_iter().collect()).collect();
            // A comparison named these items: whoever withholds them without a word looks like a liar to the asker.
            cx.outputs.push_back(Output::HandOver(HandOver { to: from, id, wanted, promised: true }));
        }
        QuorumRequest::Ask { builders, paths } => {
            let shared = told.restricted_to(&builders);
            let wanted = paths.iter().map(|path| collect_attested(ledger, &shared, path)).collect();
            // Nothing was named before, so that the question may be a guess at what must not be told.
            cx.outputs.push_back(Output::HandOver(HandOver { to: from, id, wanted, promised: false }));
        }
    }
}

fn answer_comparison(
    cx: &mut Context,
    ledger: &Ledger,
    from: PeerId,
    id: u64,
    told: &Shared,
    query: &Query,
    news: bool,
) {
    let looked = Cell::new(0);
    // Within what this peer may be told; all else is as if this node had never heard of it.
    let answer = ledger.answer_counted(told, query, LOOKED_MAX, &looked);
    if let Some(peer) = cx.peers.get_mut(&from) {
        peer.charge(units(looked.get()));
    }
    let differs = matches!(&answer, Answer::Nodes { differing, .. } if !differing.is_empty());
    let whole = query.nodes.first().is_some_and(|(node, _)| *node == Node::ROOT);
    // It has what we lack, so we compare in turn. Only its first query says so: the others go deeper into one difference.
    if news && differs && whole {
        let at = cx.now + cx.chance.draw_below(ASK_BACK_SPREAD_MS);
        if let Some(peer) = cx.peers.get_mut(&from) {
            peer.plan_comparison(at);
        }
    }
    respond(cx, from, id, &QuorumReply::Compared(answer));
}

fn respond(cx: &mut Context, to: PeerId, id: u64, reply: &QuorumReply) {
    cx.outputs.push_back(Output::Respond { to, id, bytes: encode_or_empty(reply) });
}

fn units(looked: usize) -> u64 {
    u64::try_from(looked / LOOKED_PER_UNIT).unwrap_or(u64::MAX)
}

/// The builders in `shared` that attested something about a path.
fn collect_attested(ledger: &Ledger, shared: &Shared, path: &HashPart) -> Vec<(BuilderKey, HashPart)> {
    let attested = ledger.votes(path).filter(|vote| vote.attested_at.is_some() && shared.contains(&vote.builder));
    let builders: BTreeSet<BuilderKey> = attested.map(|vote| vote.builder).collect();
    builders.into_iter().map(|key| (key, *path)).collect()
}

fn encode_or_empty(reply: &QuorumReply) -> Vec<u8> {
    // Answers keep to their limit by themselves, and attestations were counted. An empty reply counts as a broken stream.
    reply.encode().unwrap_or_default()
}
