//! Pulls: fetching an announced body from the owner, from the peers that told us of it, or from any other peer, a limited
//! number of times.

use super::Context;
use super::requests::Purpose;
use crate::io::Timer;
use crate::output::Event;
use crate::peers::body::Flaw;
use crate::peers::entry::{HeldBody, Newest};
use crate::peers::misdeed::Misdeed;
use libp2p_identity::PeerId;
use narmesh_protocol::wire::{GossipReply, GossipRequest};
use narmesh_protocol::{Generation, Summary, SummaryDelta, SummaryError};
use std::collections::{BTreeMap, VecDeque};

/// The most bodies under way at once: 16 of 2 MiB each are the most memory that pulls take.
pub const IN_FLIGHT_MAX: usize = 16;
/// The most attempts for one announcement, with 16 s of waiting in all. After them, the next announcement
/// or sync tries again.
const ATTEMPTS_MAX: u32 = 10;
/// Wait after the first failed attempt, milliseconds; doubled each time, plus up to half of it at random.
const BACKOFF_MS: u64 = 50;
/// Longest wait between two attempts, milliseconds.
const BACKOFF_MS_MAX: u64 = 5_000;
/// The most peers remembered as having told us of one announcement.
const TELLERS_MAX: usize = 4;
/// When the owner itself lacks a body this often while it claims to have it, it is blamed for announcing what
/// it does not deliver.
const OWNER_ABSENT_MAX: u32 = 4;

/// All pulls, at most one for each owner.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    by_owner: BTreeMap<PeerId, Pull>,
    /// Pulls in [`Phase::Ready`], first come first served.
    ready: VecDeque<PeerId>,
}

#[derive(Debug)]
struct Pull {
    target: Newest,
    tellers: Vec<PeerId>,
    attempts: u32,
    /// Whether the owner was asked and did not have the body.
    owner_had_nothing: bool,
    /// How often it did not have the body although it claimed to.
    owner_absent: u32,
    /// A delta was received and did not help: the next answer must be a whole body.
    whole: bool,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// In the queue for a free slot.
    Ready,
    /// Until its timer fires.
    Waiting,
    /// Until a peer connects that can be asked.
    Idle,
    /// Until this request is answered.
    Asking(u64),
}

impl Pull {
    fn new(target: Newest) -> Self {
        let (tellers, phase) = (Vec::new(), Phase::Idle);
        Self { target, tellers, attempts: 0, owner_had_nothing: false, owner_absent: 0, whole: false, phase }
    }

    fn generation(&self) -> Generation {
        self.target.announcement().generation
    }

    /// Whom to ask: the owner or those who told us of the announcement. Every third attempt asks another peer, because
    /// those may be eclipsing us.
    fn choose_source(&self, cx: &mut Context, owner: &PeerId) -> Option<PeerId> {
        let preferred = std::iter::once(owner).chain(self.tellers.iter().filter(|teller| *teller != owner)).copied();
        let preferred: Vec<_> = preferred.filter(|peer| cx.may_ask(peer)).collect();
        if preferred.is_empty() || self.attempts % 3 == 2 {
            let others = cx.connections.peers().filter(|peer| !preferred.contains(peer) && cx.may_ask(peer)).copied();
            let others: Vec<_> = others.collect();
            // Where there is nobody else, the third attempt goes to a preferred peer, too.
            if preferred.is_empty() || !others.is_empty() {
                let at = cx.io.chance.draw_below(u64::try_from(others.len()).unwrap_or(u64::MAX));
                return others.into_iter().nth(usize::try_from(at).ok()?);
            }
        }
        let count = u64::try_from(preferred.len()).unwrap_or(u64::MAX);
        // Counts only the attempts that went to preferred peers, so that these take turns.
        let at = u64::from(self.attempts - self.attempts / 3).checked_rem(count)?;
        preferred.get(usize::try_from(at).ok()?).copied()
    }
}

impl Pulls {
    /// Drops the body of a peer, and the pull of a newer one.
    pub(crate) fn drop_body(&mut self, cx: &mut Context, peer: &PeerId) {
        self.end_pull(cx, peer);
        cx.peers.drop_body(&mut cx.io, peer);
    }

    /// Forgets a peer that lost our trust, as an owner and as a teller.
    pub(crate) fn forget(&mut self, cx: &mut Context, peer: &PeerId) {
        self.end_pull(cx, peer);
        self.by_owner.values_mut().for_each(|pull| pull.tellers.retain(|teller| teller != peer));
    }

    /// Pulls the body that is wanted of this owner, if any. `teller` told us of the announcement, so it
    /// probably has the body.
    pub(crate) fn pull_if_wanted(&mut self, cx: &mut Context, owner: PeerId, teller: Option<PeerId>) {
        let wanted = cx.peers.get(&owner).and_then(|entry| entry.wanted(cx.io.now.moment)).cloned();
        let Some(wanted) = wanted else { return };
        let pull = self.by_owner.entry(owner).or_insert_with(|| Pull::new(wanted.clone()));
        let asking = matches!(pull.phase, Phase::Asking(_));
        // A request under way is still for the older announcement. `attempt` turns to the newer one when that request
        // fails.
        let newer = pull.generation() != wanted.announcement().generation;
        if newer && !asking {
            *pull = Pull { phase: pull.phase, ..Pull::new(wanted) };
        }
        if let Some(teller) = teller.filter(|teller| !pull.tellers.contains(teller) && pull.tellers.len() < TELLERS_MAX)
        {
            pull.tellers.push(teller);
        }
        let phase = pull.phase;
        if phase == Phase::Idle || (newer && phase == Phase::Waiting) {
            cx.io.timers.set(Timer::Pull(owner), None);
            self.make_ready(owner);
        }
        self.start_ready(cx);
    }

    /// A peer connected: pulls without a source may go on, and so may the pull of this peer's own body.
    pub(crate) fn resume_with(&mut self, cx: &mut Context, peer: PeerId) {
        let idle = |(owner, pull): (&PeerId, &Pull)| {
            (pull.phase == Phase::Idle || (owner == &peer && pull.phase == Phase::Waiting)).then_some(*owner)
        };
        for owner in self.by_owner.iter().filter_map(idle).collect::<Vec<_>>() {
            cx.io.timers.set(Timer::Pull(owner), None);
            self.make_ready(owner);
        }
        self.start_ready(cx);
        self.pull_if_wanted(cx, peer, None);
    }

    /// The wait after a failed attempt is over.
    pub(crate) fn pull_again(&mut self, cx: &mut Context, owner: PeerId) {
        self.make_ready(owner);
        self.start_ready(cx);
    }

    /// Ends the pull of this owner's body; an answer that still comes is ignored.
    pub(crate) fn end_pull(&mut self, cx: &mut Context, owner: &PeerId) {
        // A timer that outlived its pull would cut the wait of the owner's next one short.
        cx.io.timers.set(Timer::Pull(*owner), None);
        let Some(pull) = self.by_owner.remove(owner) else { return };
        match pull.phase {
            Phase::Asking(id) => {
                // The slot is free at once, also if the answer never comes: others wait for one of 16.
                cx.requests.take(&mut cx.io, id);
                self.start_ready(cx);
            }
            Phase::Ready => self.ready.retain(|ready| ready != owner),
            Phase::Waiting | Phase::Idle => {}
        }
    }

    fn make_ready(&mut self, owner: PeerId) {
        if let Some(pull) = self.by_owner.get_mut(&owner).filter(|pull| pull.phase != Phase::Ready) {
            pull.phase = Phase::Ready;
            self.ready.push_back(owner);
        }
    }

    fn start_ready(&mut self, cx: &mut Context) {
        while cx.requests.pulls() < IN_FLIGHT_MAX {
            let Some(owner) = self.ready.pop_front() else { break };
            self.attempt(cx, owner);
        }
    }

    /// Makes one attempt of a pull that just left the queue.
    fn attempt(&mut self, cx: &mut Context, owner: PeerId) {
        let Some(entry) = cx.peers.get(&owner) else { return };
        let Some(wanted) = entry.wanted(cx.io.now.moment).cloned() else {
            self.by_owner.remove(&owner);
            return;
        };
        let (digest, held) = (entry.digest(), entry.held().map(HeldBody::generation));
        let Some(pull) = self.by_owner.get_mut(&owner) else { return };
        // A newer announcement came while this pull waited. Start over for it, but keep the peers that told us.
        if pull.generation() != wanted.announcement().generation {
            *pull = Pull { tellers: std::mem::take(&mut pull.tellers), ..Pull::new(wanted) };
        }
        // Without a source, the pull stays idle until a peer connects.
        pull.phase = Phase::Idle;
        let Some(source) = pull.choose_source(cx, &owner) else { return };
        let generation = pull.generation();
        let have_seq = held.filter(|held| held.epoch == generation.epoch && !pull.whole).map(|held| held.seq);
        let request = GossipRequest::Pull { owner: digest, generation, have_seq };
        let id = cx.requests.send(&mut cx.io, source, Purpose::Pull { owner, have_seq }, &request);
        pull.phase = Phase::Asking(id);
    }

    /// Handles the answer to a pull, or `None` when there was none.
    pub(crate) fn on_reply(
        &mut self,
        cx: &mut Context,
        owner: PeerId,
        from: PeerId,
        have_seq: Option<u64>,
        reply: Option<GossipReply>,
    ) {
        let Some(pull) = self.by_owner.get(&owner) else { return };
        match reply {
            Some(GossipReply::Body(bytes)) => {
                // The digest proves the body, so it does not matter who sent it.
                if Summary::digest(&bytes) == pull.target.announcement().body_digest {
                    // The deltas kept for others do not lead to this body.
                    cx.peers.drop_deltas(&owner);
                    self.take_proven_body(cx, owner, from, &bytes, bytes.len(), None);
                } else {
                    cx.penalize(self, from, Misdeed::WrongBody);
                    self.on_failed(cx, owner);
                }
            }
            Some(GossipReply::Delta(bytes)) => self.on_delta(cx, owner, from, have_seq, &bytes),
            Some(GossipReply::Absent) => {
                // Only the owner owes its own body. Others may have dropped it, or may not hand it to us.
                if owner == from {
                    self.on_owner_absent(cx, owner);
                }
                self.on_failed(cx, owner);
            }
            Some(GossipReply::Sync { .. } | GossipReply::StoreDirDiffers { .. }) => {
                cx.penalize(self, from, Misdeed::MalformedReply);
                self.on_failed(cx, owner);
            }
            // Neither is a misdeed: it was asked too much, or the line broke.
            Some(GossipReply::Busy) | None => self.on_failed(cx, owner),
        }
    }

    /// The owner itself does not have what was announced. That is no offence when it has published again, nor when it has
    /// restarted and still reads its store. So it is asked for its newest announcement, and blamed only for a body that it
    /// claimed on this connection. An owner that announces something else before ten attempts are over would escape that
    /// blame; the entry counts over all its announcements.
    fn on_owner_absent(&mut self, cx: &mut Context, owner: PeerId) {
        let Some(pull) = self.by_owner.get_mut(&owner) else { return };
        let Some(entry) = cx.peers.get_mut(&owner) else { return };
        let first = !std::mem::replace(&mut pull.owner_had_nothing, true);
        let (had_claimed, is_overdue) = entry.on_absent(cx.io.now.moment, pull.generation());
        pull.owner_absent += u32::from(had_claimed);
        if first {
            // It has probably published again, and gossip lost the message.
            cx.connections.schedule_sync(&mut cx.io, owner, 0);
        }
        if is_overdue {
            cx.penalize(self, owner, Misdeed::Undelivered);
        }
    }

    fn on_delta(&mut self, cx: &mut Context, owner: PeerId, from: PeerId, have_seq: Option<u64>, bytes: &[u8]) {
        let Some(pull) = self.by_owner.get_mut(&owner) else { return };
        let announced = *pull.target.announcement();
        // If this delta leads nowhere, the next attempt asks for the whole body.
        pull.whole = true;
        let base = cx.peers.assemble_body(&owner);
        let next = SummaryDelta::decode(bytes).and_then(|delta| {
            let (held_seq, base) = base.ok_or(SummaryError::Base { base_seq: delta.base_seq, held_seq: u64::MAX })?;
            // Only a delta from the base that we named counts: nobody was asked for another one.
            let expected = have_seq.filter(|have_seq| *have_seq == held_seq);
            let next = delta.apply(&base, expected.unwrap_or(u64::MAX))?;
            Ok((next.encode()?, delta))
        });
        match next {
            Ok((body, delta)) if Summary::digest(&body) == announced.body_digest => {
                self.take_proven_body(cx, owner, from, &body, bytes.len(), Some(&delta));
                // Others that ask us for the step from the same base are answered with it.
                cx.peers.keep_delta(owner, announced.generation, delta);
            }
            Ok(_) | Err(_) => {
                cx.penalize(self, from, Misdeed::WrongDelta);
                self.on_failed(cx, owner);
            }
        }
    }

    /// Takes a body whose digest the owner signed. Whatever is wrong with it from here on is the owner's doing.
    fn take_proven_body(
        &mut self,
        cx: &mut Context,
        owner: PeerId,
        from: PeerId,
        body: &[u8],
        received: usize,
        delta: Option<&SummaryDelta>,
    ) {
        let Some(target) = self.by_owner.get(&owner).map(|pull| pull.target.clone()) else { return };
        // First, so that what follows may begin a pull of something newer that was announced meanwhile.
        self.end_pull(cx, &owner);
        let generation = target.announcement().generation;
        let refusal = match cx.peers.take_body(&mut cx.io, owner, &target, body, delta) {
            Ok(()) => {
                let delta = delta.is_some();
                cx.io.push_event(Event::BodyPulled { owner, from, generation, bytes: received, delta });
                self.pull_if_wanted(cx, owner, None);
                return self.start_ready(cx);
            }
            // No misdeed: the owner may take us out of its audience, and the sender handed on what is proven.
            Err(Flaw::ForeignAudience) => None,
            // No misdeed either: a later version may hash in a way that we do not know.
            Err(Flaw::UnknownHashId { hash_id }) => {
                cx.io.push_event(Event::UnknownHashId { peer: owner, hash_id });
                None
            }
            Err(Flaw::PathCount) => Some(Misdeed::PathCountDiffers),
            Err(Flaw::Dense) => Some(Misdeed::DenseFilter),
            Err(Flaw::Bounds) => Some(Misdeed::InvalidBody),
        };
        if let Some(entry) = cx.peers.get_mut(&owner) {
            // Every other source has this same body, so it is not pulled again.
            entry.refuse(generation);
        }
        if let Some(misdeed) = refusal {
            cx.penalize(self, owner, misdeed);
        }
        self.pull_if_wanted(cx, owner, None);
        self.start_ready(cx);
    }

    /// Counts a failed attempt, and schedules the next one.
    fn on_failed(&mut self, cx: &mut Context, owner: PeerId) {
        let wanted = cx.peers.get(&owner).and_then(|entry| entry.wanted(cx.io.now.moment));
        let wanted = wanted.map(|newest| newest.announcement().generation);
        // A misdeed may have ended the pull just now; its slot is free for another one.
        let Some(pull) = self.by_owner.get_mut(&owner) else { return self.start_ready(cx) };
        let generation = pull.generation();
        pull.attempts += 1;
        let (attempts, owner_absent) = (pull.attempts, pull.owner_absent);
        pull.phase = Phase::Waiting;
        if wanted.is_none() {
            self.end_pull(cx, &owner);
        } else if wanted != Some(generation) {
            // Something newer was announced meanwhile, and is asked for without a wait.
            self.make_ready(owner);
        } else if attempts >= ATTEMPTS_MAX {
            self.end_pull(cx, &owner);
            cx.io.push_event(Event::PullGivenUp { owner, generation });
            if owner_absent >= OWNER_ABSENT_MAX {
                cx.penalize(self, owner, Misdeed::Undelivered);
            }
        } else {
            let backoff_ms = (BACKOFF_MS << (attempts - 1).min(16)).min(BACKOFF_MS_MAX);
            // Peers that heard of it at the same moment would otherwise all ask again at the same moment.
            let jitter_ms = cx.io.chance.draw_below(backoff_ms / 2);
            cx.io.timers.set(Timer::Pull(owner), Some(cx.io.now.moment + backoff_ms + jitter_ms));
        }
        self.start_ready(cx);
    }

    /// Asserts the bounds.
    #[cfg(test)]
    pub(crate) fn check(&self, owners: usize) {
        assert!(self.by_owner.len() <= owners && self.ready.len() <= self.by_owner.len());
        assert!(self.by_owner.values().all(|pull| pull.tellers.len() <= TELLERS_MAX && pull.attempts < ATTEMPTS_MAX));
    }
}
