//! What the parts of the exchange work on together: the peers, the requests to them, and what the caller is to do.

use super::peer::{Peer, SHUNNED_MS};
use super::{Fault, Moment, Output};
use crate::reconcile::Session;
use crate::wire::QuorumRequest;
use libp2p_identity::PeerId;
use narmesh_machine::{Chance, RequestTable};
use narmesh_protocol::{Attestation, HashPart};
use std::collections::{BTreeMap, VecDeque};

/// A request without an answer counts as failed after this, milliseconds.
const REQUEST_MS: u64 = 10_000;

/// What one of our requests was for.
#[derive(Debug)]
pub(super) enum Purpose {
    Compare,
    /// The session is kept to ask again about the builders that both sides know.
    News(Box<Session>),
    Pull,
    Ask(Vec<(u64, HashPart)>),
}

#[derive(Debug)]
pub(super) struct Context {
    pub(super) now: Moment,
    pub(super) chance: Chance,
    pub(super) peers: BTreeMap<PeerId, Peer>,
    pub(super) requests: RequestTable<PeerId, Purpose>,
    /// Replies under verification: the peer that sent each, and the ids of the questions that wait for it
    /// (`None` for a pull).
    pub(super) verifying: BTreeMap<u64, (PeerId, Option<Vec<u64>>)>,
    pub(super) outputs: VecDeque<Output>,
}

impl Context {
    pub(super) fn new(now: Moment, rng_seed: [u8; 32]) -> Self {
        Self {
            now,
            chance: Chance::new(rng_seed),
            peers: BTreeMap::new(),
            requests: RequestTable::new(REQUEST_MS),
            verifying: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// The number of comparisons under way.
    pub(super) fn sessions(&self) -> usize {
        self.peers.values().filter(|peer| peer.running.is_some()).count()
    }

    pub(super) fn send(&mut self, to: PeerId, purpose: Purpose, request: &QuorumRequest) {
        // Each list was cut to its bound, so the encoding fits.
        let Ok(bytes) = request.encode() else { return };
        let id = self.requests.add(self.now, to, purpose);
        self.outputs.push_back(Output::Request { to, id, bytes });
    }

    /// Has attestations verified and taken into the ledger. `waiting` are the questions that they answer; `None` for a pull.
    pub(super) fn verify(&mut self, from: PeerId, waiting: Option<Vec<u64>>, attestations: Vec<Attestation>) {
        let id = self.requests.assign_id();
        self.verifying.insert(id, (from, waiting));
        self.outputs.push_back(Output::Verify { from, id, attestations });
    }

    pub(super) fn set_aside(&mut self, peer: &PeerId, lasting_ms: u64) {
        let until = self.now + lasting_ms;
        if let Some(known) = self.peers.get_mut(peer) {
            // A comparison with it must not go on, nor take the place of another one.
            known.running = None;
            known.rest_until = known.rest_until.max(until);
            known.shunned_until = known.shunned_until.max(until);
        }
    }

    pub(super) fn penalize(&mut self, peer: PeerId, fault: Fault) {
        self.outputs.push_back(Output::Misbehaved { peer, fault });
        self.set_aside(&peer, SHUNNED_MS);
    }
}
