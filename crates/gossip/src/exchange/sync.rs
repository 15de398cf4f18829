//! Anti-entropy: syncs on every new connection (the greeting), once more soon after, and with one peer after the
//! other on a timer.
//!
//! Both sides ask. A question names what the asker holds. The answer brings newer envelopes, of owners whose audience
//! includes the asker, and the newest envelope that the asker itself has signed.

use crate::exchange::pull::Sent;
use crate::gossip::Gossip;
use crate::mutation::mutant;
use crate::output::{Event, Output};
use crate::peers::directory::{Entry, Held, Worth};
use crate::peers::misdeed::Misdeed;
use crate::time::Moment;
use crate::timers::Timer;
use libp2p_identity::PeerId;
use narmesh_protocol::wire::{GossipReply, GossipRequest, Have, Sync};
use narmesh_protocol::{AudienceDigest, Envelope, EnvelopeError, Generation};

/// The longest software name kept, bytes.
pub(crate) const SOFTWARE_BYTES_MAX: usize = 64;
/// The longest foreign store directory kept, bytes.
const STORE_DIR_BYTES_MAX: usize = 255;
/// Wait between the greeting and the second sync, milliseconds. Gossipsub needs up to two heartbeats of one second to take
/// up a new connection; until then it delivers nothing over it.
const SECOND_LOOK_MS: u64 = 3_000;
/// The least time between two syncs with a peer that shows us newer summaries than we have heard of, milliseconds.
const ASK_BACK_MS: u64 = 5_000;
/// News from a sync did not come by gossip. So after this time, and up to as much again, we sync with the other
/// peers too, and news crosses a healed network hop by hop in seconds. It is long enough to have pulled the
/// bodies. Milliseconds, a guess.
const SPREAD_MS: u64 = 1_000;
/// The most greetings under way or just answered: when a node starts, each of them brings the same news.
const GREETINGS_AT_ONCE: usize = 2;
/// Further greetings wait this long and up to as much again, milliseconds: by then most news is known. A guess.
const GREETING_WAIT_MS: u64 = 200;
/// Wait after an unanswered greeting, milliseconds; doubled each time, up to 64 times this.
const GREET_AGAIN_MS: u64 = 1_000;

/// A connected peer.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// How many of our syncs were answered on this connection.
    answers: u64,
    /// How many syncs in a row were not answered.
    failures: u32,
    /// Whether a sync of ours waits for its answer.
    asking: bool,
    /// When we last sent a sync.
    asked: Moment,
    /// When either side last sent a sync.
    compared: Moment,
}

/// What a peer says that it holds, sorted by owner: it names hundreds, and each of ours is looked up among them.
struct Haves(Vec<Have>);

impl Haves {
    fn new(mut have: Vec<Have>) -> Self {
        have.sort_by_key(|have| have.owner);
        Self(have)
    }

    /// The generation that the peer holds of this owner; the last one when it names several.
    fn generation_of(&self, owner: &AudienceDigest) -> Option<Generation> {
        let after = self.0.partition_point(|have| have.owner <= *owner);
        self.0.get(after.checked_sub(1)?).filter(|have| have.owner == *owner).map(|have| have.generation)
    }
}

/// The beginning of a foreign text, without control characters, at most `bytes_max` bytes.
pub(crate) fn to_printable(text: &str, bytes_max: usize) -> String {
    let mut kept = String::new();
    for character in text.chars().filter(|character| !character.is_control()) {
        if kept.len() + character.len_utf8() > bytes_max {
            break;
        }
        kept.push(character);
    }
    kept
}

impl Gossip {
    pub(crate) fn on_connected(&mut self, peer: PeerId) {
        if !self.directory.contains(&peer) || self.links.contains_key(&peer) {
            return;
        }
        self.links.insert(peer, Link::default());
        match self.draw_greeting_wait_ms() {
            0 => self.sync_with(peer),
            wait_ms => self.schedule_greeting(peer, wait_ms),
        }
        self.resume_pulls_with(peer);
    }

    pub(crate) fn drop_link(&mut self, peer: PeerId) {
        if self.links.remove(&peer).is_none() {
            return;
        }
        self.timers.set(Timer::Greet(peer), None);
        if let Some(entry) = self.directory.get_mut(&peer) {
            entry.claimed = None;
        }
        let lost = self.requests.iter().filter(|(_, (to, _))| *to == peer).map(|(id, _)| *id);
        for id in lost.collect::<Vec<_>>() {
            self.on_response(peer, id, None);
        }
    }

    /// How long the next greeting waits, so that not every answer brings the same news.
    fn draw_greeting_wait_ms(&mut self) -> u64 {
        let moment = self.now.moment;
        let just_asked =
            |link: &&Link| link.asking || (link.answers > 0 && moment.since(link.asked) < GREETING_WAIT_MS);
        if self.links.values().filter(just_asked).count() < GREETINGS_AT_ONCE {
            return 0;
        }
        GREETING_WAIT_MS + self.draw_below(GREETING_WAIT_MS)
    }

    /// Schedules the next sync with a connected peer.
    pub(crate) fn schedule_greeting(&mut self, peer: PeerId, in_ms: u64) {
        if self.links.contains_key(&peer) {
            self.timers.set(Timer::Greet(peer), Some(self.now.moment + in_ms));
        }
    }

    /// Schedules a sync with all other peers: they see what we hold, and ask back for what they lack.
    fn schedule_spread(&mut self, told_by: PeerId) {
        let moment = self.now.moment;
        let others: Vec<_> =
            self.links.iter().filter(|(peer, _)| **peer != told_by).map(|(peer, link)| (*peer, link.asked)).collect();
        for (peer, asked) in others {
            let due = (moment + SPREAD_MS + self.draw_below(SPREAD_MS)).max(asked + ASK_BACK_MS);
            let set = self.timers.get(Timer::Greet(peer));
            if set.is_none_or(|set| set > due || set < moment + SPREAD_MS) {
                self.schedule_greeting(peer, due.since(moment));
            }
        }
    }

    pub(crate) fn schedule_sync(&mut self) {
        let interval_ms = self.sync_interval_ms;
        let jitter_ms = self.draw_below(interval_ms / 5);
        self.timers.set(Timer::Sync, Some(self.now.moment + (interval_ms - interval_ms / 10 + jitter_ms).max(1)));
    }

    /// The sync timer fired.
    pub(crate) fn sync_with_anyone(&mut self) {
        self.schedule_sync();
        let idle = self.links.iter().filter(|(peer, link)| !link.asking && self.may_ask(peer));
        // The one whose last sync is longest ago, so that each gets its turn within as many intervals
        // as there are connections.
        if let Some(peer) = idle.min_by_key(|(_, link)| link.compared).map(|(peer, _)| *peer) {
            self.sync_with(peer);
        }
    }

    pub(crate) fn sync_with(&mut self, peer: PeerId) {
        if mutant!(NoComparison) {
            return;
        }
        let set_aside = self.directory.get(&peer).is_some_and(|entry| entry.conduct.is_set_aside());
        let yours = self.newest_of(&peer);
        let moment = self.now.moment;
        let Some(link) = self.links.get_mut(&peer).filter(|link| !link.asking && !set_aside) else { return };
        link.asking = true;
        link.asked = moment;
        link.compared = moment;
        let sync = Sync {
            store_dir: self.store_dir.clone(),
            software: self.software.clone(),
            yours,
            have: self.collect_haves(),
        };
        self.send(peer, Sent::Sync, &GossipRequest::Sync(sync));
    }

    fn collect_haves(&self) -> Vec<Have> {
        let have = |(_, entry): (&PeerId, &Entry)| {
            let generation = entry.held.as_ref()?.generation();
            Some(Have { owner: entry.digest, generation })
        };
        self.directory.iter().filter_map(have).take(Sync::HAVE_MAX).collect()
    }

    /// The newest envelope that this peer signed, to be shown back to it.
    fn newest_of(&self, peer: &PeerId) -> Option<Vec<u8>> {
        let newest = self.directory.get(peer)?.newest.as_ref()?;
        Some(newest.envelope.as_bytes().to_vec())
    }

    /// Answers a peer's request.
    pub(crate) fn on_request(&mut self, from: PeerId, id: u64, bytes: &[u8]) {
        let moment = self.now.moment;
        let reply = match self.directory.get_mut(&from).map(|entry| entry.conduct.has_spent_requests(moment)) {
            None => GossipReply::Absent,
            Some(true) => GossipReply::Busy,
            Some(false) => self.answer(from, bytes),
        };
        let bytes = reply.encode().expect("a body, a delta and 1,024 envelopes are each within the limit");
        let served = self.directory.get_mut(&from).filter(|_| reply != GossipReply::Busy);
        if let Some(entry) = served {
            entry.conduct.charge_request(bytes.len());
        }
        self.push_output(Output::Respond { to: from, id, bytes });
    }

    fn answer(&mut self, from: PeerId, bytes: &[u8]) -> GossipReply {
        match GossipRequest::decode(bytes) {
            Ok(GossipRequest::Sync(sync)) if sync.have.len() <= Sync::HAVE_MAX => self.answer_sync(from, sync),
            Ok(GossipRequest::Pull { owner, generation, have_seq }) => {
                self.answer_pull(&from, &owner, generation, have_seq)
            }
            Ok(GossipRequest::Sync(_)) | Err(_) => {
                self.penalize(from, Misdeed::MalformedRequest);
                GossipReply::Absent
            }
        }
    }

    fn answer_sync(&mut self, from: PeerId, sync: Sync) -> GossipReply {
        if self.note_store_dir_differs(from, &sync.store_dir) {
            return GossipReply::StoreDirDiffers { store_dir: self.store_dir.clone() };
        }
        self.receive_own(from, sync.yours);
        let have = Haves::new(sync.have);
        self.ask_back(from, &have);
        GossipReply::Sync {
            store_dir: self.store_dir.clone(),
            software: self.software.clone(),
            yours: self.newest_of(&from),
            news: self.collect_news_for(&from, &have),
        }
    }

    /// Syncs with a peer that claims newer summaries than we have heard of.
    fn ask_back(&mut self, from: PeerId, have: &Haves) {
        let moment = self.now.moment;
        let newer = self.directory.iter().any(|(_, entry)| {
            let heard = entry.newest.as_ref().map(|newest| newest.announcement().generation);
            have.generation_of(&entry.digest).is_some_and(|have| heard.is_none_or(|heard| heard < have))
        });
        let Some(link) = self.links.get_mut(&from) else { return };
        link.compared = moment;
        let recently = moment.since(link.asked) < ASK_BACK_MS;
        // The greeting of a new connection comes soon enough, and its answer is smaller by then.
        let greeting = link.answers == 0 && self.timers.get(Timer::Greet(from)).is_some();
        if newer && !recently && !greeting {
            self.schedule_greeting(from, 0);
        }
    }

    /// Our own newest envelope, and the envelopes of the bodies that we hold and may hand on. A goodbye goes only to peers
    /// that have the body.
    fn collect_news_for(&self, asker: &PeerId, have: &Haves) -> Vec<Vec<u8>> {
        let digest = AudienceDigest::of(asker);
        let newer = |owner: &AudienceDigest, envelope: &Envelope| {
            have.generation_of(owner).is_none_or(|have| have < envelope.announcement().generation)
        };
        let own = self.publication.envelope().filter(|own| newer(&self.my_digest, own));
        let of_others = self.directory.iter().filter(|(peer, _)| *peer != asker).filter_map(|(_, entry)| {
            let goodbye = || {
                let newest = entry.newest.as_ref().filter(|newest| newest.announcement().is_goodbye())?;
                have.generation_of(&entry.digest).and(Some(&newest.envelope))
            };
            // A body known to be outdated is our best guess, but no news for anyone.
            let held = entry.held.as_ref().filter(|_| !entry.is_outdated_memory());
            let envelope = held.map(|held| &held.envelope).or_else(goodbye)?;
            let admitted = entry.audience.binary_search(&digest).is_ok() || mutant!(NewsForAnyone);
            (admitted && newer(&entry.digest, envelope)).then_some(envelope.as_ref())
        });
        own.into_iter().chain(of_others).take(GossipReply::NEWS_MAX).map(|news| news.as_bytes().to_vec()).collect()
    }

    /// Hands a body only to peers in its audience. The asker is known to be on our allowlist.
    fn answer_pull(
        &self,
        asker: &PeerId,
        owner: &AudienceDigest,
        generation: Generation,
        have_seq: Option<u64>,
    ) -> GossipReply {
        if *owner == self.my_digest {
            return self.publication.serve(asker, generation, have_seq).unwrap_or(GossipReply::Absent);
        }
        let held = self.directory.owner(owner).and_then(|peer| {
            let entry = self.directory.get(&peer).filter(|entry| !entry.is_outdated_memory())?;
            let held: &Held = entry.held.as_ref()?;
            let meant = held.admits(asker) || mutant!(BodyForAnyone);
            (held.generation() == generation && meant).then_some((peer, *held.envelope.announcement()))
        });
        let Some((peer, announced)) = held else { return GossipReply::Absent };
        let delta = have_seq.and_then(|base| self.relayed.merge_deltas(&peer, generation, base, announced.path_count));
        let delta = delta.and_then(|delta| delta.encode().ok());
        if let Some(delta) = delta.filter(|delta| delta.len() < announced.body_bytes as usize) {
            return GossipReply::Delta(delta);
        }
        let body = self.assemble_held_body(&peer).and_then(|(_, summary)| summary.encode().ok());
        body.map_or(GossipReply::Absent, GossipReply::Body)
    }

    /// Handles the reply to our sync; `None` when there was none.
    pub(crate) fn on_sync_reply(&mut self, from: PeerId, reply: Option<GossipReply>) {
        let Some(link) = self.links.get_mut(&from) else { return };
        link.asking = false;
        match reply {
            Some(GossipReply::Sync { store_dir, software, yours, news }) => {
                link.failures = 0;
                link.answers += 1;
                let first = link.answers == 1;
                if first {
                    self.schedule_greeting(from, SECOND_LOOK_MS);
                }
                if self.note_store_dir_differs(from, &store_dir) {
                    return;
                }
                let software = to_printable(&software, SOFTWARE_BYTES_MAX);
                if let Some(entry) = self.directory.get_mut(&from) {
                    entry.software = Some(software.clone());
                }
                if first {
                    self.push_event(Event::Greeted { peer: from, software });
                }
                self.receive_own(from, yours);
                self.receive_news(from, &news);
            }
            Some(GossipReply::StoreDirDiffers { store_dir }) => {
                link.failures = 0;
                self.note_store_dir_differs(from, &store_dir);
            }
            Some(GossipReply::Body(_) | GossipReply::Delta(_)) => {
                self.penalize(from, Misdeed::MalformedReply);
                self.schedule_greeting_again(from);
            }
            Some(GossipReply::Absent | GossipReply::Busy) | None => self.schedule_greeting_again(from),
        }
    }

    fn schedule_greeting_again(&mut self, peer: PeerId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        let wait_ms = GREET_AGAIN_MS << link.failures.min(6);
        link.failures = link.failures.saturating_add(1);
        self.schedule_greeting(peer, wait_ms);
    }

    /// Notes a peer's store directory; true when it differs from ours, so that nothing can be shared.
    fn note_store_dir_differs(&mut self, peer: PeerId, store_dir: &str) -> bool {
        let differs = (store_dir != self.store_dir).then(|| to_printable(store_dir, STORE_DIR_BYTES_MAX));
        let Some(entry) = self.directory.get_mut(&peer) else { return true };
        let before = std::mem::replace(&mut entry.store_dir_differs, differs.clone());
        match differs {
            Some(store_dir) => {
                if before.as_ref() != Some(&store_dir) {
                    self.drop_body(&peer);
                    self.push_event(Event::StoreDirDiffers { peer, store_dir });
                }
                true
            }
            None => {
                if before.is_some() {
                    self.pull_if_wanted(peer, None);
                }
                false
            }
        }
    }

    /// Handles the newest envelope with our signature that a peer knows.
    fn receive_own(&mut self, from: PeerId, yours: Option<Vec<u8>>) {
        let Some(bytes) = yours else { return };
        if self.publication.envelope().is_some_and(|newest| newest.as_bytes() == bytes) {
            return;
        }
        match (self.open_envelope)(&bytes) {
            Ok(envelope) if envelope.peer() == self.me => {
                if self.publication.continue_above_if_newer(self.now, &envelope) {
                    self.push_event(Event::Overtaken { generation: envelope.announcement().generation });
                }
            }
            Err(EnvelopeError::UnknownVersion { .. }) => {}
            Ok(_) | Err(EnvelopeError::Length { .. } | EnvelopeError::Signature | EnvelopeError::Payload(_)) => {
                self.penalize(from, Misdeed::ForgedNews);
            }
        }
    }

    fn receive_news(&mut self, from: PeerId, news: &[Vec<u8>]) {
        if news.len() > GossipReply::NEWS_MAX {
            return self.penalize(from, Misdeed::MalformedReply);
        }
        let mut fresh = false;
        // Old envelopes are skipped unopened. Otherwise a thousand of them at each greeting would keep us busy.
        for bytes in news {
            if self.directory.is_older(bytes) {
                continue;
            }
            match self.directory.open_envelope(bytes, self.open_envelope) {
                // Our own envelopes come in `yours`. A peer's envelope may come from any peer that trusts both it and us.
                Ok(envelope) => fresh |= self.receive_envelope(&envelope, from) == Worth::News,
                Err(EnvelopeError::UnknownVersion { version }) => {
                    self.push_event(Event::UnknownVersion { peer: from, version });
                }
                Err(EnvelopeError::Length { .. } | EnvelopeError::Signature | EnvelopeError::Payload(_)) => {
                    self.penalize(from, Misdeed::ForgedNews);
                    break;
                }
            }
        }
        if fresh {
            self.schedule_spread(from);
        }
    }
}
