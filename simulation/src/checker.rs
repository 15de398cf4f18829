//! What must hold, judged from outside: from what owners truly published and truly hold, never from a core's own word.

use crate::machine::{Machine, Number, Path, part};
use libp2p_identity::PeerId;
use narmesh_gossip::Misdeed;
use narmesh_protocol::{Envelope, Generation};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Paths looked up when one summary is checked; all of a small store, every n-th of a larger one.
const SAMPLES: usize = 40;

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// An owner used one generation for two announcements.
    #[error("machine {owner} published generation {generation:?} twice")]
    GenerationRepeated {
        /// Who published.
        owner: Number,
        /// What.
        generation: Generation,
    },
    /// An owner published under an epoch that its disk does not know.
    #[error("machine {owner} published below its last epoch: {generation:?}")]
    EpochBack {
        /// Who published.
        owner: Number,
        /// What.
        generation: Generation,
    },
    /// A body was accepted that its owner never published.
    #[error("machine {holder} accepted {generation:?} of {owner}, who never published it")]
    NeverPublished {
        /// Who accepted.
        holder: Number,
        /// Whose.
        owner: Number,
        /// What.
        generation: Generation,
    },
    /// A body was accepted by someone outside its audience, or of someone not trusted.
    #[error("machine {holder} holds {generation:?} of {owner} outside its audience or its own allowlist")]
    Audience {
        /// Who accepted.
        holder: Number,
        /// Whose.
        owner: Number,
        /// What.
        generation: Generation,
    },
    /// An older generation was accepted after a newer one.
    #[error("machine {holder} went back to {generation:?} of {owner}")]
    WentBack {
        /// Who accepted.
        holder: Number,
        /// Whose.
        owner: Number,
        /// What.
        generation: Generation,
    },
    /// A path of the accepted summary is not found.
    #[error("machine {holder} does not find path {path} of {owner}, which its summary covers")]
    FalseNegative {
        /// Who looked.
        holder: Number,
        /// Who has it.
        owner: Number,
        /// The path.
        path: Path,
    },
    /// A peer that is not trusted is still in a table.
    #[error("machine {holder} still knows a peer that left its allowlist")]
    NotForgotten {
        /// Who.
        holder: Number,
    },
    /// An honest peer was blamed; all are honest here.
    #[error("machine {accuser} blames {accused:?}: {misdeed}")]
    Blamed {
        /// Who.
        accuser: Number,
        /// Whom.
        accused: Option<Number>,
        /// For what.
        misdeed: Misdeed,
    },
    /// Long after the faults ended, a table is not what its owner is.
    #[error("machine {holder} holds {held:?} of {owner}, who is at {published:?}")]
    NotConverged {
        /// Who.
        holder: Number,
        /// Whose.
        owner: Number,
        /// What is held.
        held: Option<Generation>,
        /// What it should be.
        published: Option<Generation>,
    },
    /// Long after the faults ended, an owner has not announced what it holds.
    #[error("machine {owner} holds {paths} paths and announced {announced}")]
    NotAnnounced {
        /// Who.
        owner: Number,
        /// What it holds.
        paths: usize,
        /// What it announced.
        announced: u64,
    },
}

/// What one owner published under one generation.
#[derive(Debug)]
struct Publication {
    envelope: Vec<u8>,
    paths: BTreeSet<Path>,
    audience: BTreeSet<Number>,
    announced: u64,
}

/// The ledger of all publications, and the violations found.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    numbers: BTreeMap<PeerId, Number>,
    published: BTreeMap<(Number, Generation), Publication>,
    newest: BTreeMap<Number, Generation>,
    /// The newest generation that a holder has accepted of an owner, as long as its disk remembers.
    accepted: BTreeMap<(Number, Number), Generation>,
    pub(crate) violations: Vec<Violation>,
    /// Summaries whose contents were looked up.
    pub(crate) checked: u64,
}

impl Checker {
    pub(crate) fn new(machines: &[Machine]) -> Self {
        let numbers = machines.iter().enumerate().map(|(number, machine)| (machine.peer, number)).collect();
        Self { numbers, ..Self::default() }
    }

    pub(crate) fn number(&self, peer: &PeerId) -> Option<Number> {
        self.numbers.get(peer).copied()
    }

    fn broken(&mut self, violation: Violation) {
        self.violations.push(violation);
    }

    /// A machine published. A goodbye is noted as an empty summary.
    pub(crate) fn published(&mut self, owner: Number, machine: &Machine, envelope: &[u8]) {
        let Ok(opened) = Envelope::open(envelope) else { return };
        let generation = opened.announcement().generation;
        let publication = Publication {
            envelope: envelope.to_vec(),
            paths: machine.paths.clone(),
            audience: machine.trusted.clone(),
            announced: opened.announcement().path_count,
        };
        if self.newest.get(&owner).is_some_and(|newest| *newest > generation) {
            // Allowed only to a machine that lost its disk; it will be overtaken. See `disk_lost`.
            self.broken(Violation::EpochBack { owner, generation });
        }
        self.newest.insert(owner, generation);
        if let Some(before) = self.published.insert((owner, generation), publication)
            && before.envelope != envelope
        {
            self.broken(Violation::GenerationRepeated { owner, generation });
        }
    }

    /// A machine's disk is gone: nothing that it accepted or published binds it any more.
    pub(crate) fn disk_lost(&mut self, number: Number) {
        self.newest.remove(&number);
        self.accepted.retain(|(holder, _), _| *holder != number);
    }

    /// A machine forgot a peer.
    pub(crate) fn forgot(&mut self, holder: Number, peer: &PeerId) {
        if let Some(owner) = self.number(peer) {
            self.accepted.remove(&(holder, owner));
        }
    }

    /// A machine accepted an announcement.
    pub(crate) fn announced(&mut self, holder: Number, peer: &PeerId, generation: Generation) {
        let Some(owner) = self.number(peer) else { return };
        let before = self.accepted.insert((holder, owner), generation);
        if before.is_some_and(|before| before > generation) {
            self.broken(Violation::WentBack { holder, owner, generation });
        }
    }

    /// A machine has a body in its table.
    pub(crate) fn body(&mut self, holder: Number, machine: &Machine, peer: &PeerId, generation: Generation) {
        self.checked += 1;
        let Some(owner) = self.number(peer) else { return };
        let Some(publication) = self.published.get(&(owner, generation)) else {
            return self.broken(Violation::NeverPublished { holder, owner, generation });
        };
        if !publication.audience.contains(&holder) || !machine.trusted.contains(&owner) {
            return self.broken(Violation::Audience { holder, owner, generation });
        }
        let missing = missing(machine, peer, &publication.paths);
        if let Some(path) = missing {
            self.broken(Violation::FalseNegative { holder, owner, path });
        }
    }

    /// After an allowlist change.
    pub(crate) fn allowlist(&mut self, holder: Number, machine: &Machine) {
        let known = machine.core.peers().filter_map(|view| self.number(&view.peer)).collect::<BTreeSet<_>>();
        if !known.is_subset(&machine.trusted) {
            self.broken(Violation::NotForgotten { holder });
        }
    }

    pub(crate) fn blamed(&mut self, accuser: Number, peer: &PeerId, misdeed: Misdeed) {
        let accused = self.number(peer);
        self.broken(Violation::Blamed { accuser, accused, misdeed });
    }

    /// Liveness: each table is what each reachable owner is. Returns what is not so yet.
    pub(crate) fn unconverged(&self, machines: &[Machine], links: &BTreeSet<(Number, Number)>) -> Vec<Violation> {
        let mut found = Vec::new();
        for (owner, machine) in machines.iter().enumerate() {
            let published = machine.core.publication().generation;
            let newest = published.and_then(|generation| self.published.get(&(owner, generation)));
            let announced = newest.map_or(0, |publication| publication.announced);
            if announced != machine.paths.len() as u64 || newest.is_none() {
                found.push(Violation::NotAnnounced { owner, paths: machine.paths.len(), announced });
            }
            for holder in reachable(owner, machines, links) {
                let Some(asker) = machines.get(holder) else { continue };
                let view = asker.core.peers().find(|view| view.peer == machine.peer);
                let held = view.and_then(|view| view.summary).map(|summary| summary.generation);
                if held != published {
                    found.push(Violation::NotConverged { holder, owner, held, published });
                } else if let Some(path) = missing(asker, &machine.peer, &machine.paths) {
                    found.push(Violation::FalseNegative { holder, owner, path });
                }
            }
        }
        found
    }
}

/// A path of these that is not found at this machine.
fn missing(machine: &Machine, owner: &PeerId, paths: &BTreeSet<Path>) -> Option<Path> {
    let step = (paths.len() / SAMPLES).max(1);
    let found = |path: &Path| machine.core.candidates(&part(*path)).iter().any(|candidate| candidate.peer == *owner);
    paths.iter().step_by(step).find(|path| !found(path)).copied()
}

/// Who must hear of an owner: those who are linked to it through machines that it trusts and that trust it.
fn reachable(owner: Number, machines: &[Machine], links: &BTreeSet<(Number, Number)>) -> BTreeSet<Number> {
    let trusts = |a: Number, b: Number| machines.get(a).is_some_and(|machine| machine.trusted.contains(&b));
    let mut reached = BTreeSet::from([owner]);
    let mut next = VecDeque::from([owner]);
    while let Some(from) = next.pop_front() {
        for (a, b) in links {
            let to = if *a == from { *b } else { *a };
            if (*a == from || *b == from) && trusts(owner, to) && trusts(to, owner) && reached.insert(to) {
                next.push_back(to);
            }
        }
    }
    reached.remove(&owner);
    reached
}
