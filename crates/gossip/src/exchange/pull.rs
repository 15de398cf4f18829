//! Pulls: fetching an announced body from the owner, from the peers that told us of it, or from any other peer, a limited
//! number of times.

use crate::gossip::Gossip;
use crate::mutation::mutant;
use crate::output::{Event, Output};
use crate::peers::directory::{Acceptance, Held, Newest};
use crate::peers::kept::Flaw;
use crate::peers::misdeed::Misdeed;
use crate::timers::Timer;
use libp2p_identity::PeerId;
use narmesh_protocol::wire::{GossipReply, GossipRequest};
use narmesh_protocol::{
    Announcement, AudienceDigest, Filter, Generation, HASH_ID_V1, Summary, SummaryDelta, SummaryError,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The most bodies under way at once: 16 of 2 MiB each are the most memory that pulls take.
pub(crate) const IN_FLIGHT_MAX: usize = 16;
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
/// The same over several announcements: this many times, and for this long without any body, milliseconds. Of the pulls
/// from an honest owner that publishes twice a second, one in five succeeds even at a round trip of 400 ms.
const UNDELIVERED_MAX: u32 = 12;
const UNDELIVERED_MS: u64 = 60_000;
/// A request without an answer counts as failed after this, milliseconds.
pub(crate) const REQUEST_TIMEOUT_MS: u64 = 10_000;

/// What one of our requests was for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sent {
    Sync,
    Pull {
        owner: PeerId,
        /// The `seq` that a delta may build on, if we hold a body of the same epoch.
        have_seq: Option<u64>,
    },
}

/// All pulls, at most one for each owner.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    by_owner: BTreeMap<PeerId, Pull>,
    /// Pulls in [`Phase::Ready`], first come first served.
    ready: VecDeque<PeerId>,
    in_flight: usize,
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
}

impl Pulls {
    pub(crate) fn forget_teller(&mut self, peer: &PeerId) {
        self.by_owner.values_mut().for_each(|pull| pull.tellers.retain(|teller| teller != peer));
    }

    fn make_ready(&mut self, owner: PeerId) {
        if let Some(pull) = self.by_owner.get_mut(&owner).filter(|pull| pull.phase != Phase::Ready) {
            pull.phase = Phase::Ready;
            self.ready.push_back(owner);
        }
    }
}

/// How many bits are set. It counts whole words, because counting bytes takes five times as long.
fn count_ones(filter_bytes: &[u8]) -> u64 {
    let (words, rest) = filter_bytes.as_chunks::<8>();
    debug_assert!(rest.is_empty(), "a filter is a power of two of at least 1,024 bytes");
    words.iter().map(|word| u64::from(u64::from_ne_bytes(*word).count_ones())).sum()
}

#[cfg(test)]
impl Pulls {
    /// Asserts the bounds.
    pub(crate) fn check<'a>(&self, owners: usize, requests: impl Iterator<Item = &'a (PeerId, Sent)>) {
        assert!(self.by_owner.len() <= owners && self.ready.len() <= self.by_owner.len());
        assert!(self.in_flight <= IN_FLIGHT_MAX);
        assert_eq!(self.in_flight, requests.filter(|(_, sent)| matches!(sent, Sent::Pull { .. })).count());
        assert!(self.by_owner.values().all(|pull| pull.tellers.len() <= TELLERS_MAX && pull.attempts < ATTEMPTS_MAX));
    }
}

impl Gossip {
    /// Pulls the body that is wanted of this owner, if any. `teller` told us of the announcement, so it
    /// probably has the body.
    pub(crate) fn pull_if_wanted(&mut self, owner: PeerId, teller: Option<PeerId>) {
        let wanted = self.directory.get(&owner).and_then(|entry| entry.wanted(self.now.moment)).cloned();
        let Some(wanted) = wanted else { return };
        let pull = self.pulls.by_owner.entry(owner).or_insert_with(|| Pull::new(wanted.clone()));
        let asking = matches!(pull.phase, Phase::Asking(_));
        // A request under way is still for the older announcement. `attempt_pull` turns to the newer one when that request
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
            self.timers.set(Timer::Pull(owner), None);
            self.pulls.make_ready(owner);
        }
        self.start_pulls();
    }

    /// A peer connected: pulls without a source may go on, and so may the pull of this peer's own body.
    pub(crate) fn resume_pulls_with(&mut self, peer: PeerId) {
        let idle = |(owner, pull): (&PeerId, &Pull)| {
            (pull.phase == Phase::Idle || (owner == &peer && pull.phase == Phase::Waiting)).then_some(*owner)
        };
        for owner in self.pulls.by_owner.iter().filter_map(idle).collect::<Vec<_>>() {
            self.timers.set(Timer::Pull(owner), None);
            self.pulls.make_ready(owner);
        }
        self.start_pulls();
        self.pull_if_wanted(peer, None);
    }

    /// The wait after a failed attempt is over.
    pub(crate) fn pull_again(&mut self, owner: PeerId) {
        self.pulls.make_ready(owner);
        self.start_pulls();
    }

    /// Drops the pull of this owner's body; an answer that still comes is ignored.
    pub(crate) fn drop_pull(&mut self, owner: &PeerId) {
        self.timers.set(Timer::Pull(*owner), None);
        let Some(pull) = self.pulls.by_owner.remove(owner) else { return };
        match pull.phase {
            Phase::Asking(id) => {
                self.take_request(id);
                self.start_pulls();
            }
            Phase::Ready => self.pulls.ready.retain(|ready| ready != owner),
            Phase::Waiting | Phase::Idle => {}
        }
    }

    fn start_pulls(&mut self) {
        while self.pulls.in_flight < IN_FLIGHT_MAX || mutant!(PullsUnbounded) {
            let Some(owner) = self.pulls.ready.pop_front() else { break };
            self.attempt_pull(owner);
        }
    }

    /// Makes one attempt of a pull that just left the queue.
    fn attempt_pull(&mut self, owner: PeerId) {
        let Some(entry) = self.directory.get(&owner) else { return };
        let Some(wanted) = entry.wanted(self.now.moment).cloned() else {
            self.pulls.by_owner.remove(&owner);
            return;
        };
        let held = entry.held.as_ref().map(Held::generation);
        let Some(pull) = self.pulls.by_owner.get_mut(&owner) else { return };
        // A newer announcement came while this pull waited. Start over for it, but keep the peers that told us.
        if pull.generation() != wanted.announcement().generation {
            *pull = Pull { tellers: std::mem::take(&mut pull.tellers), ..Pull::new(wanted) };
        }
        // Without a source, the pull stays idle until a peer connects.
        pull.phase = Phase::Idle;
        let (generation, attempts, whole) = (pull.generation(), pull.attempts, pull.whole);
        let Some(source) = self.choose_source(&owner, attempts) else { return };
        let have_seq = held.filter(|held| held.epoch == generation.epoch && !whole).map(|held| held.seq);
        let Some(entry) = self.directory.get(&owner) else { return };
        let request = GossipRequest::Pull { owner: entry.digest, generation, have_seq };
        let id = self.send(source, Sent::Pull { owner, have_seq }, &request);
        if let Some(pull) = self.pulls.by_owner.get_mut(&owner) {
            pull.phase = Phase::Asking(id);
        }
    }

    /// Whom to ask: the owner or those who told us of the announcement. Every third attempt asks another peer, because
    /// those may be eclipsing us.
    fn choose_source(&mut self, owner: &PeerId, attempts: u32) -> Option<PeerId> {
        let tellers = self.pulls.by_owner.get(owner).map(|pull| pull.tellers.as_slice()).unwrap_or_default();
        let preferred = std::iter::once(owner).chain(tellers.iter().filter(|teller| *teller != owner)).copied();
        let preferred: Vec<_> = preferred.filter(|peer| self.may_ask(peer)).collect();
        if preferred.is_empty() || attempts % 3 == 2 {
            let others = self.links.keys().filter(|peer| !preferred.contains(peer) && self.may_ask(peer)).copied();
            let others: Vec<_> = others.collect();
            if preferred.is_empty() || !others.is_empty() {
                let at = self.draw_below(u64::try_from(others.len()).unwrap_or(u64::MAX));
                return others.into_iter().nth(usize::try_from(at).ok()?);
            }
        }
        let count = u64::try_from(preferred.len()).unwrap_or(u64::MAX);
        // Counts only the attempts that went to preferred peers, so that these take turns.
        let at = u64::from(attempts - attempts / 3).checked_rem(count)?;
        preferred.get(usize::try_from(at).ok()?).copied()
    }

    /// Whether a peer can be asked for anything at present.
    pub(crate) fn may_ask(&self, peer: &PeerId) -> bool {
        let entry = self.directory.get(peer);
        self.links.contains_key(peer)
            && entry.is_some_and(|entry| !entry.conduct.is_set_aside() && entry.store_dir_differs.is_none())
    }

    pub(crate) fn send(&mut self, to: PeerId, sent: Sent, request: &GossipRequest) -> u64 {
        let id = self.assign_request_id();
        if matches!(sent, Sent::Pull { .. }) {
            self.pulls.in_flight += 1;
        }
        self.requests.insert(id, (to, sent));
        self.timers.set(Timer::Request(id), Some(self.now.moment + REQUEST_TIMEOUT_MS));
        let bytes = request.encode().expect("a sync has at most 2,048 entries, a pull is small");
        self.push_output(Output::Request { to, id, bytes });
        id
    }

    /// Takes a request off the list; an answer that comes later is ignored.
    pub(crate) fn take_request(&mut self, id: u64) -> Option<(PeerId, Sent)> {
        let (to, sent) = self.requests.remove(&id)?;
        self.timers.set(Timer::Request(id), None);
        if matches!(sent, Sent::Pull { .. }) {
            self.pulls.in_flight -= 1;
        }
        Some((to, sent))
    }

    pub(crate) fn on_request_timeout(&mut self, id: u64) {
        if let Some((to, _)) = self.requests.get(&id) {
            self.on_response(*to, id, None);
        }
    }

    /// An answer to one of our requests, or `None` when there was none.
    pub(crate) fn on_response(&mut self, from: PeerId, id: u64, bytes: Option<Vec<u8>>) {
        if self.requests.get(&id).is_none_or(|(to, _)| *to != from) {
            return;
        }
        let Some((_, sent)) = self.take_request(id) else { return };
        let reply = bytes.map(|bytes| GossipReply::decode(&bytes));
        if matches!(reply, Some(Err(_))) {
            self.penalize(from, Misdeed::MalformedReply);
        }
        let reply = reply.and_then(Result::ok);
        match sent {
            Sent::Sync => self.on_sync_reply(from, reply),
            Sent::Pull { owner, have_seq } => self.on_pull_reply(owner, from, have_seq, reply),
        }
    }

    fn on_pull_reply(&mut self, owner: PeerId, from: PeerId, have_seq: Option<u64>, reply: Option<GossipReply>) {
        let Some(pull) = self.pulls.by_owner.get_mut(&owner) else { return };
        match reply {
            Some(GossipReply::Body(bytes)) => {
                let target = pull.target.clone();
                // The digest proves the body, so it does not matter who sent it.
                if Summary::digest(&bytes) == target.announcement().body_digest || mutant!(UnsignedBody) {
                    let received = bytes.len();
                    // The deltas kept for others do not lead to this body.
                    self.relayed.forget(&owner);
                    self.take_proven_body(owner, from, &target, &bytes, received, None);
                } else {
                    self.penalize(from, Misdeed::WrongBody);
                    self.on_pull_failed(owner);
                }
            }
            Some(GossipReply::Delta(bytes)) => self.on_delta(owner, from, have_seq, &bytes),
            Some(GossipReply::Absent) => {
                if owner == from {
                    self.on_owner_absent(owner);
                }
                self.on_pull_failed(owner);
            }
            Some(GossipReply::Sync { .. } | GossipReply::StoreDirDiffers { .. }) => {
                self.penalize(from, Misdeed::MalformedReply);
                self.on_pull_failed(owner);
            }
            Some(GossipReply::Busy) | None => self.on_pull_failed(owner),
        }
    }

    /// The owner itself does not have what was announced. That is no offence when it has published again, nor when it has
    /// restarted and still reads its store. So it is asked for its newest announcement, and blamed only for a body that it
    /// claimed on this connection. An owner that announces something else before ten attempts are over would escape that
    /// blame; `undelivered` counts over all its announcements.
    fn on_owner_absent(&mut self, owner: PeerId) {
        let moment = self.now.moment;
        let Some(pull) = self.pulls.by_owner.get_mut(&owner) else { return };
        let Some(entry) = self.directory.get_mut(&owner) else { return };
        let first = !std::mem::replace(&mut pull.owner_had_nothing, true);
        let claimed = entry.claimed.or_else(|| mutant!(UnclaimedBlamed).then(|| pull.generation()));
        pull.owner_absent += u32::from(claimed == Some(pull.generation()));
        let mut undelivered = false;
        if claimed.is_some() {
            let (since, times) = entry.undelivered.get_or_insert((moment, 0));
            *times += 1;
            undelivered = *times >= UNDELIVERED_MAX && moment.since(*since) >= UNDELIVERED_MS;
        }
        if undelivered {
            entry.undelivered = None;
        }
        if first {
            // It has probably published again, and gossip lost the message.
            self.schedule_greeting(owner, 0);
        }
        if undelivered {
            self.penalize(owner, Misdeed::Undelivered);
        }
    }

    fn on_delta(&mut self, owner: PeerId, from: PeerId, have_seq: Option<u64>, bytes: &[u8]) {
        let Some(pull) = self.pulls.by_owner.get_mut(&owner) else { return };
        let target = pull.target.clone();
        // If this delta leads nowhere, the next attempt asks for the whole body.
        pull.whole = true;
        let base = self.assemble_held_body(&owner);
        let next = SummaryDelta::decode(bytes).and_then(|delta| {
            let (held_seq, base) = base.ok_or(SummaryError::Base { base_seq: delta.base_seq, held_seq: u64::MAX })?;
            let expected = have_seq.filter(|have_seq| *have_seq == held_seq);
            let next = delta.apply(&base, expected.unwrap_or(u64::MAX))?;
            Ok((next.encode()?, delta))
        });
        match next {
            Ok((body, delta))
                if Summary::digest(&body) == target.announcement().body_digest || mutant!(UnsignedDelta) =>
            {
                self.take_proven_body(owner, from, &target, &body, bytes.len(), Some(&delta.positions));
                self.relayed.push(owner, target.announcement().generation, delta);
            }
            Ok(_) | Err(_) => {
                self.penalize(from, Misdeed::WrongDelta);
                self.on_pull_failed(owner);
            }
        }
    }

    /// The body that we hold of an owner, reassembled, and its `seq`.
    pub(crate) fn assemble_held_body(&self, owner: &PeerId) -> Option<(u64, Summary)> {
        let entry = self.directory.get(owner)?;
        let held = entry.held.as_ref()?;
        let summary = Summary {
            hash_id: HASH_ID_V1,
            items: held.envelope.announcement().path_count,
            audience: held.audience.to_vec(),
            addresses: entry.addresses.clone(),
            filter_bytes: self.table.read(owner)?,
        };
        Some((held.generation().seq, summary))
    }

    /// Takes a body whose digest the owner signed. Whatever is wrong with it from here on is the owner's doing.
    fn take_proven_body(
        &mut self,
        owner: PeerId,
        from: PeerId,
        target: &Newest,
        body: &[u8],
        received: usize,
        positions: Option<&[u32]>,
    ) {
        self.drop_pull(&owner);
        let generation = target.announcement().generation;
        let refusal = match self.decode_usable(target.announcement(), body) {
            Ok((filter, summary)) => {
                self.install(owner, target, &filter, summary, positions);
                let delta = positions.is_some();
                self.push_event(Event::BodyPulled { owner, from, generation, bytes: received, delta });
                self.pull_if_wanted(owner, None);
                return self.start_pulls();
            }
            Err(Flaw::ForeignAudience) => None,
            Err(Flaw::UnknownHashId { hash_id }) => {
                self.push_event(Event::UnknownHashId { peer: owner, hash_id });
                None
            }
            Err(Flaw::PathCount) => Some(Misdeed::PathCountDiffers),
            Err(Flaw::Dense) => Some(Misdeed::DenseFilter),
            Err(Flaw::Bounds) => Some(Misdeed::InvalidBody),
        };
        if let Some(entry) = self.directory.get_mut(&owner) {
            // Every other source has this same body, so it is not pulled again.
            entry.refused = Some(generation);
        }
        if let Some(misdeed) = refusal {
            self.penalize(owner, misdeed);
        }
        self.pull_if_wanted(owner, None);
        self.start_pulls();
    }

    /// What a body holds, if this node may use it. The caller has to check that its digest is the announced one.
    pub(crate) fn decode_usable(&self, announcement: &Announcement, body: &[u8]) -> Result<(Filter, Summary), Flaw> {
        match Summary::decode(body).and_then(|summary| Ok((summary.filter()?, summary))) {
            Ok((_, summary)) if summary.items != announcement.path_count => Err(Flaw::PathCount),
            Ok((_, summary)) if !summary.admits(&self.me) && !mutant!(ForeignAudience) => Err(Flaw::ForeignAudience),
            Ok(usable) => Ok(usable),
            Err(SummaryError::UnknownHashId { hash_id }) => Err(Flaw::UnknownHashId { hash_id }),
            Err(SummaryError::Filter(narmesh_protocol::FilterError::TooDense { .. })) => Err(Flaw::Dense),
            Err(
                SummaryError::Codec(_)
                | SummaryError::TooMany { .. }
                | SummaryError::Order { .. }
                | SummaryError::Filter(_)
                | SummaryError::Base { .. }
                | SummaryError::Gap
                | SummaryError::Position { .. },
            ) => Err(Flaw::Bounds),
        }
    }

    fn install(
        &mut self,
        owner: PeerId,
        target: &Newest,
        filter: &Filter,
        summary: Summary,
        positions: Option<&[u32]>,
    ) {
        let moment = self.now.moment;
        let lookups = self.table.shared().lookups();
        let audience = self.directory.intern_audience(summary.audience.clone());
        let Some(entry) = self.directory.get_mut(&owner) else { return };
        let generation = target.announcement().generation;
        let same_epoch = entry.held.as_ref().is_some_and(|held| held.generation().epoch == generation.epoch);
        if !same_epoch {
            entry.conduct.on_new_epoch(moment, lookups);
        }
        // Within an epoch bits are only added, so a delta can be set in place. Any other filter gets a new column, so that
        // readers never see half of it.
        match positions {
            Some(positions) if same_epoch => self.table.set_bits(&owner, positions),
            Some(_) | None => self.table.install(owner, filter, entry.conduct.rank()),
        }
        self.hold(owner, target, filter, summary, audience);
    }

    /// Notes a body whose filter is already in the table.
    pub(crate) fn hold(
        &mut self,
        owner: PeerId,
        target: &Newest,
        filter: &Filter,
        summary: Summary,
        audience: Arc<[AudienceDigest]>,
    ) {
        let moment = self.now.moment;
        let Some(entry) = self.directory.get_mut(&owner) else { return };
        // Only a floor has no acceptance, and floors are never pulled.
        let expired = Acceptance { wall_ms: self.now.wall_ms, expires: moment };
        let accepted = target.accepted.unwrap_or(expired);
        entry.undelivered = None;
        entry.audience = Arc::clone(&audience);
        entry.held = Some(Held {
            envelope: Arc::clone(&target.envelope),
            class: filter.class(),
            ones: count_ones(filter.as_bytes()),
            audience,
            accepted,
            remembered: false,
        });
        let learned = entry.addresses != summary.addresses;
        if learned {
            entry.addresses.clone_from(&summary.addresses);
        }
        self.timers.set(Timer::Expire(owner), Some(accepted.expires));
        if learned {
            self.push_event(Event::AddressesLearned { peer: owner, addresses: summary.addresses });
        }
        self.update_rank(owner);
    }

    /// The body held is the announced one already: only its lifetime is new.
    pub(crate) fn on_adopted(&mut self, peer: PeerId) {
        self.drop_pull(&peer);
        let Some(held) = self.directory.get(&peer).and_then(|entry| entry.held.as_ref()) else { return };
        let (generation, expires) = (held.generation(), held.accepted.expires);
        self.timers.set(Timer::Expire(peer), Some(expires));
        self.push_event(Event::BodyPulled { owner: peer, from: peer, generation, bytes: 0, delta: false });
        self.update_rank(peer);
    }

    /// Counts a failed attempt, and schedules the next one.
    fn on_pull_failed(&mut self, owner: PeerId) {
        let wanted = self.directory.get(&owner).and_then(|entry| entry.wanted(self.now.moment));
        let wanted = wanted.map(|newest| newest.announcement().generation);
        let Some(pull) = self.pulls.by_owner.get_mut(&owner) else { return self.start_pulls() };
        let generation = pull.generation();
        pull.attempts += 1;
        let (attempts, owner_absent) = (pull.attempts, pull.owner_absent);
        pull.phase = Phase::Waiting;
        if wanted.is_none() {
            self.drop_pull(&owner);
        } else if wanted != Some(generation) {
            // Something newer was announced meanwhile, and is asked for without a wait.
            self.pulls.make_ready(owner);
        } else if attempts >= ATTEMPTS_MAX {
            self.drop_pull(&owner);
            self.push_event(Event::PullGivenUp { owner, generation });
            if owner_absent >= OWNER_ABSENT_MAX {
                self.penalize(owner, Misdeed::Undelivered);
            }
        } else {
            let backoff_ms = (BACKOFF_MS << (attempts - 1).min(16)).min(BACKOFF_MS_MAX);
            let jitter_ms = self.draw_below(backoff_ms / 2);
            self.timers.set(Timer::Pull(owner), Some(self.now.moment + backoff_ms + jitter_ms));
        }
        self.start_pulls();
    }
}
