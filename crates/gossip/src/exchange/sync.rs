//! Anti-entropy: syncs on every new connection (the greeting), once more soon after, and with one peer after the
//! other on a timer.
//!
//! Both sides ask. A question names what the asker holds. The answer brings newer envelopes, of owners whose audience
//! includes the asker, and the newest envelope that the asker itself has signed.

use super::Context;
use super::announcement::{open_charged, receive_envelope};
use super::pull::Pulls;
use super::requests::Purpose;
use crate::io::{Io, Timer};
use crate::output::{Event, Output};
use crate::peers::Peers;
use crate::peers::entry::{Entry, Worth, claimed_signer};
use crate::peers::misdeed::Misdeed;
use libp2p_identity::PeerId;
use narmesh_protocol::wire::{GossipReply, GossipRequest, Have, Sync};
use narmesh_protocol::{AudienceDigest, Envelope, EnvelopeError, Generation};
use std::collections::BTreeMap;

/// The longest software name kept, bytes.
const SOFTWARE_BYTES_MAX: usize = 64;
/// The longest foreign store directory kept, bytes.
const STORE_DIR_BYTES_MAX: usize = 255;
/// Wait between the greeting and the second sync, milliseconds. Gossipsub needs up to two heartbeats of one second to take
/// up a new connection; until then it delivers nothing over it.
const SECOND_LOOK_MS: u64 = 3_000;

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

/// What we say of ourselves in a sync, and how often we sync.
#[derive(Debug)]
pub(crate) struct Syncs {
    me: PeerId,
    my_digest: AudienceDigest,
    store_dir: String,
    software: String,
    interval_ms: u64,
}

impl Syncs {
    pub(crate) fn new(me: PeerId, store_dir: &str, software: &str, interval_ms: u64) -> Self {
        Self {
            me,
            my_digest: AudienceDigest::of(&me),
            store_dir: store_dir.to_owned(),
            software: to_printable(software, SOFTWARE_BYTES_MAX),
            interval_ms: interval_ms.max(1),
        }
    }

    /// Greets a peer that has just connected, now or soon.
    pub(crate) fn greet(&self, cx: &mut Context, peer: PeerId) {
        match cx.connections.add(&mut cx.io, peer) {
            0 => self.sync_with(cx, peer),
            wait_ms => cx.connections.schedule_sync(&mut cx.io, peer, wait_ms),
        }
    }

    /// Schedules the next sync on the timer.
    pub(crate) fn schedule(&self, io: &mut Io) {
        let jitter_ms = io.chance.draw_below(self.interval_ms / 5);
        let wait_ms = (self.interval_ms - self.interval_ms / 10 + jitter_ms).max(1);
        io.timers.set(Timer::Sync, Some(io.now.moment + wait_ms));
    }

    /// The sync timer fired.
    pub(crate) fn sync_with_anyone(&self, cx: &mut Context) {
        self.schedule(&mut cx.io);
        if let Some(peer) = cx.connections.find_longest_uncompared(|peer| cx.may_ask(peer)) {
            self.sync_with(cx, peer);
        }
    }

    /// Begins a sync, unless the peer is set aside or has not answered the last one yet.
    pub(crate) fn sync_with(&self, cx: &mut Context, peer: PeerId) {
        let set_aside = cx.peers.get(&peer).is_some_and(|entry| entry.conduct.is_set_aside());
        if set_aside || !cx.connections.begin_sync(cx.io.now.moment, &peer) {
            return;
        }
        let sync = Sync {
            store_dir: self.store_dir.clone(),
            software: self.software.clone(),
            yours: newest_of(&cx.peers, &peer),
            have: collect_haves(&cx.peers),
        };
        cx.requests.send(&mut cx.io, peer, Purpose::Sync, &GossipRequest::Sync(sync));
    }

    /// Answers a peer's request.
    pub(crate) fn on_request(&self, cx: &mut Context, pulls: &mut Pulls, from: PeerId, id: u64, bytes: &[u8]) {
        let moment = cx.io.now.moment;
        let reply = match cx.peers.get_mut(&from).map(|entry| entry.conduct.has_spent_requests(moment)) {
            // Who is not on the allowlist hears what a peer outside of an audience hears, which tells nothing.
            None => GossipReply::Absent,
            Some(true) => GossipReply::Busy,
            Some(false) => self.answer(cx, pulls, from, bytes),
        };
        let bytes = reply.encode().expect("a body, a delta and 1,024 envelopes are each within the limit");
        // By the bytes that leave: bodies of 2 MiB for each request would cost much more than small answers.
        let served = cx.peers.get_mut(&from).filter(|_| reply != GossipReply::Busy);
        if let Some(entry) = served {
            entry.conduct.charge_request(bytes.len());
        }
        cx.io.push(Output::Respond { to: from, id, bytes });
    }

    fn answer(&self, cx: &mut Context, pulls: &mut Pulls, from: PeerId, bytes: &[u8]) -> GossipReply {
        match GossipRequest::decode(bytes) {
            Ok(GossipRequest::Sync(sync)) if sync.have.len() <= Sync::HAVE_MAX => {
                self.answer_sync(cx, pulls, from, sync)
            }
            // The table of peers has no entry of ourselves.
            Ok(GossipRequest::Pull { owner, generation, have_seq }) if owner == self.my_digest => {
                cx.publication.serve(&from, generation, have_seq).unwrap_or(GossipReply::Absent)
            }
            Ok(GossipRequest::Pull { owner, generation, have_seq }) => {
                answer_pull(&cx.peers, &from, &owner, generation, have_seq)
            }
            Ok(GossipRequest::Sync(_)) | Err(_) => {
                cx.penalize(pulls, from, Misdeed::MalformedRequest);
                GossipReply::Absent
            }
        }
    }

    fn answer_sync(&self, cx: &mut Context, pulls: &mut Pulls, from: PeerId, sync: Sync) -> GossipReply {
        // First: no path of one store directory is of use in another, so nothing else is compared.
        if self.note_store_dir_differs(cx, pulls, from, &sync.store_dir) {
            return GossipReply::StoreDirDiffers { store_dir: self.store_dir.clone() };
        }
        self.receive_own(cx, pulls, from, sync.yours);
        let have = Haves::new(sync.have);
        let holds_newer = holds_newer(&cx.peers, &have);
        // If it knows more than we have heard of, we ask it soon and not with the next round.
        cx.connections.note_compared(&mut cx.io, from, holds_newer);
        GossipReply::Sync {
            store_dir: self.store_dir.clone(),
            software: self.software.clone(),
            yours: newest_of(&cx.peers, &from),
            news: self.collect_news_for(cx, &from, &have),
        }
    }

    /// Our own newest envelope, and the envelopes of the bodies that we hold and may hand on. A goodbye goes only to peers
    /// that have the body.
    fn collect_news_for(&self, cx: &Context, asker: &PeerId, have: &Haves) -> Vec<Vec<u8>> {
        let digest = AudienceDigest::of(asker);
        let newer = |owner: &AudienceDigest, envelope: &Envelope| {
            have.generation_of(owner).is_none_or(|have| have < envelope.announcement().generation)
        };
        let own = cx.publication.envelope().filter(|own| newer(&self.my_digest, own));
        // Who asks has its own summary; what we know of it goes back in `yours`.
        let of_others = cx.peers.iter().filter(|(peer, _)| *peer != asker).filter_map(|(_, entry)| {
            let goodbye = || {
                let newest = entry.newest().filter(|newest| newest.announcement().is_goodbye())?;
                have.generation_of(&entry.digest()).and(Some(&newest.envelope))
            };
            // A body known to be outdated is our best guess, but no news for anyone.
            let held = entry.held().filter(|_| !entry.is_outdated_memory());
            let envelope = held.map(|held| &held.envelope).or_else(goodbye)?;
            let admitted = entry.audience().binary_search(&digest).is_ok();
            (admitted && newer(&entry.digest(), envelope)).then_some(envelope.as_ref())
        });
        own.into_iter().chain(of_others).take(GossipReply::NEWS_MAX).map(|news| news.as_bytes().to_vec()).collect()
    }

    /// Handles the reply to our sync; `None` when there was none.
    pub(crate) fn on_reply(&self, cx: &mut Context, pulls: &mut Pulls, from: PeerId, reply: Option<GossipReply>) {
        // An answer to a sync that already ended, because the connection broke meanwhile or it took too long.
        if !cx.connections.end_sync(&from) {
            return;
        }
        match reply {
            Some(GossipReply::Sync { store_dir, software, yours, news }) => {
                let first = cx.connections.count_answer(&from);
                // Gossipsub does not deliver over a new connection yet, so what is announced now would be missed.
                if first {
                    cx.connections.schedule_sync(&mut cx.io, from, SECOND_LOOK_MS);
                }
                if self.note_store_dir_differs(cx, pulls, from, &store_dir) {
                    return;
                }
                let software = to_printable(&software, SOFTWARE_BYTES_MAX);
                if let Some(entry) = cx.peers.get_mut(&from) {
                    entry.set_software(software.clone());
                }
                if first {
                    cx.io.push_event(Event::Greeted { peer: from, software });
                }
                self.receive_own(cx, pulls, from, yours);
                receive_news(cx, pulls, from, &news);
                if let Some(entry) = cx.peers.get_mut(&from) {
                    entry.on_compared();
                }
            }
            Some(GossipReply::StoreDirDiffers { store_dir }) => {
                cx.connections.note_heard(&from);
                self.note_store_dir_differs(cx, pulls, from, &store_dir);
            }
            // These answer a pull, and this was a sync.
            Some(GossipReply::Body(_) | GossipReply::Delta(_)) => {
                cx.penalize(pulls, from, Misdeed::MalformedReply);
                cx.connections.retry_later(&mut cx.io, from);
            }
            Some(GossipReply::Absent | GossipReply::Busy) | None => cx.connections.retry_later(&mut cx.io, from),
        }
    }

    /// Notes a peer's store directory; true when it differs from ours, so that nothing can be shared.
    fn note_store_dir_differs(&self, cx: &mut Context, pulls: &mut Pulls, peer: PeerId, store_dir: &str) -> bool {
        let differs = (store_dir != self.store_dir).then(|| to_printable(store_dir, STORE_DIR_BYTES_MAX));
        let Some(entry) = cx.peers.get_mut(&peer) else { return true };
        let before = entry.set_store_dir_differs(differs.clone());
        match differs {
            Some(store_dir) => {
                // Once for each directory, and not with every sync: the event is shown to people.
                if before.as_ref() != Some(&store_dir) {
                    pulls.drop_body(cx, &peer);
                    cx.io.push_event(Event::StoreDirDiffers { peer, store_dir });
                }
                true
            }
            None => {
                // Its operator moved it to our directory: what it announced is of use now.
                if before.is_some() {
                    pulls.pull_if_wanted(cx, peer, None);
                }
                false
            }
        }
    }

    /// Handles the newest envelope with our signature that a peer knows.
    fn receive_own(&self, cx: &mut Context, pulls: &mut Pulls, from: PeerId, yours: Option<Vec<u8>>) {
        let Some(bytes) = yours else { return };
        // An older one is not opened: a peer asks up to 200 times a second, and each question may show one.
        let claimed = Envelope::claimed_announcement(&bytes).filter(|_| claimed_signer(&bytes) == Some(self.me));
        let is_known = |newest: &Envelope| {
            newest.as_bytes() == bytes
                || claimed.is_some_and(|claimed| claimed.generation < newest.announcement().generation)
        };
        if cx.publication.envelope().is_some_and(is_known) {
            return;
        }
        match cx.peers.open_envelope(&bytes) {
            Ok(envelope) if envelope.peer() == self.me => {
                if cx.publication.continue_above_if_newer(cx.io.now, &envelope) {
                    cx.io.push_event(Event::Overtaken { generation: envelope.announcement().generation });
                }
            }
            // An envelope of another version is ignored and not punished, whoever signed it.
            Err(EnvelopeError::UnknownVersion { .. }) => {}
            Ok(_) | Err(EnvelopeError::Length { .. } | EnvelopeError::Signature | EnvelopeError::Payload(_)) => {
                cx.penalize(pulls, from, Misdeed::ForgedNews);
            }
        }
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

fn collect_haves(peers: &Peers) -> Vec<Have> {
    let have = |(_, entry): (&PeerId, &Entry)| {
        let generation = entry.held()?.generation();
        Some(Have { owner: entry.digest(), generation })
    };
    peers.iter().filter_map(have).take(Sync::HAVE_MAX).collect()
}

/// The newest envelope that this peer signed, to be shown back to it.
fn newest_of(peers: &Peers, peer: &PeerId) -> Option<Vec<u8>> {
    let newest = peers.get(peer)?.newest()?;
    Some(newest.envelope.as_bytes().to_vec())
}

/// Whether a peer claims newer summaries than we have heard of.
fn holds_newer(peers: &Peers, have: &Haves) -> bool {
    peers.iter().any(|(_, entry)| {
        let heard = entry.newest().map(|newest| newest.announcement().generation);
        have.generation_of(&entry.digest()).is_some_and(|have| heard.is_none_or(|heard| heard < have))
    })
}

/// Hands the body of another owner only to peers in its audience. The asker is known to be on our allowlist.
fn answer_pull(
    peers: &Peers,
    asker: &PeerId,
    owner: &AudienceDigest,
    generation: Generation,
    have_seq: Option<u64>,
) -> GossipReply {
    // One answer for "not held", "another generation" and "not for you": which one it is must not be told.
    let held = peers.find_owner(owner).and_then(|peer| {
        let entry = peers.get(&peer).filter(|entry| !entry.is_outdated_memory())?;
        let held = entry.held()?;
        let meant = held.admits(asker);
        (held.generation() == generation && meant).then_some((peer, *held.envelope.announcement()))
    });
    let Some((peer, announced)) = held else { return GossipReply::Absent };
    let delta = have_seq.and_then(|base| peers.merge_deltas(&peer, generation, base, announced.path_count));
    let delta = delta.and_then(|delta| delta.encode().ok());
    // A delta of many steps may be larger than the filter itself.
    if let Some(delta) = delta.filter(|delta| delta.len() < announced.body_bytes as usize) {
        return GossipReply::Delta(delta);
    }
    let body = peers.assemble_body(&peer).and_then(|(_, summary)| summary.encode().ok());
    body.map_or(GossipReply::Absent, GossipReply::Body)
}

fn receive_news(cx: &mut Context, pulls: &mut Pulls, from: PeerId, news: &[Vec<u8>]) {
    // Checked before anything is opened: each signature costs far more than a byte on the line.
    if news.len() > GossipReply::NEWS_MAX {
        return cx.penalize(pulls, from, Misdeed::MalformedReply);
    }
    let mut fresh = false;
    for (signer, bytes) in choose_newest(&cx.peers, from, news) {
        let moment = cx.io.now.moment;
        // Both looks cost no signature, and none of them uses up what the answerer may have opened.
        if is_of_no_use(cx, signer, from, bytes) || cx.peers.has_spent_announcements(moment, &signer, &from) {
            continue;
        }
        if !cx.peers.charge_news(moment, &from, &signer, bytes) {
            // What is left unopened comes again with the next sync.
            break;
        }
        let (opened, is_flood) = open_charged(cx, signer, from, bytes);
        match opened {
            Ok(envelope) => fresh |= receive_envelope(cx, pulls, &envelope, from) == Worth::News,
            Err(EnvelopeError::UnknownVersion { version }) => {
                cx.io.push_event(Event::UnknownVersion { peer: from, version });
            }
            Err(EnvelopeError::Length { .. } | EnvelopeError::Signature | EnvelopeError::Payload(_)) => {
                cx.penalize(pulls, from, Misdeed::ForgedNews);
                break;
            }
        }
        if is_flood {
            cx.penalize(pulls, from, Misdeed::AnnouncementFlood);
        }
    }
    // What was news to us may be news to others, who otherwise learn of it with their next round.
    if fresh {
        cx.connections.schedule_spread(&mut cx.io, from);
    }
}

/// Whether an envelope would be dropped without blame, by what it claims. Otherwise a thousand of them at each greeting
/// would keep us busy.
fn is_of_no_use(cx: &Context, signer: PeerId, from: PeerId, bytes: &[u8]) -> bool {
    cx.peers
        .get(&signer)
        .is_some_and(|entry| entry.is_older(bytes) || (signer != from && entry.is_dated_off(cx.io.now, bytes)))
}

/// The envelopes of an answer that may be worth opening, in its order, each with the peer that it names as its signer: the
/// newest of each peer of the allowlist, because the others only lead to it. The first one without a signer that we can
/// read is taken for the answerer's.
///
/// Our own envelopes come in `yours`. A peer's may come from any peer that trusts both it and us.
fn choose_newest<'news>(peers: &Peers, from: PeerId, news: &'news [Vec<u8>]) -> Vec<(PeerId, &'news [u8])> {
    let mut newest: BTreeMap<Option<PeerId>, (Option<Generation>, Vec<usize>)> = BTreeMap::new();
    for (place, bytes) in news.iter().enumerate() {
        let claimed = Envelope::claimed_announcement(bytes).map(|claimed| claimed.generation);
        let signer = claimed.and_then(|_| claimed_signer(bytes));
        if signer.is_some_and(|signer| !peers.contains(&signer)) {
            continue;
        }
        let (generation, places) = newest.entry(signer).or_default();
        if *generation < claimed {
            (*generation, *places) = (claimed, Vec::new());
        }
        // Two under one generation: one is forged, or their signer contradicts itself. A third would show nothing more.
        let places_max = if signer.is_some() { 2 } else { 1 };
        let is_repeat = places.iter().any(|place| news.get(*place) == Some(bytes));
        if *generation == claimed && places.len() < places_max && !is_repeat {
            places.push(place);
        }
    }
    let placed = newest.into_iter().flat_map(|(signer, (_, places))| places.into_iter().map(move |at| (at, signer)));
    let placed: BTreeMap<_, _> = placed.collect();
    let chosen = placed.into_iter().filter_map(|(at, signer)| Some((signer.unwrap_or(from), news.get(at)?.as_slice())));
    chosen.collect()
}
