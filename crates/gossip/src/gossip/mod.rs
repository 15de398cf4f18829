//! The state machine: inputs in, outputs out.

#[cfg(test)]
mod tests;

use crate::exchange::pull::{Pulls, Sent};
use crate::exchange::sync::Link;
use crate::input::{Input, ProbeOutcome};
use crate::mutation::mutant;
use crate::output::{Event, Forward, Output, Record};
use crate::peers::directory::{Directory, OpenEnvelope, Worth};
use crate::peers::misdeed::Misdeed;
use crate::publication::relay::Relayed;
use crate::publication::{Publication, PublicationTimes, PublicationView};
use crate::table::reader::{Candidate, FilterTable};
use crate::table::writer::TableWriter;
use crate::time::{Moment, Now};
use crate::timers::{Timer, Timers};
use libp2p_identity::{Keypair, PeerId};
use narmesh_protocol::{AudienceDigest, Envelope, EnvelopeError, HashPart, StoreDir, Summary, SummaryDelta};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

/// The most peers that can be trusted: the limit of an audience, less ourselves.
pub const ALLOWLIST_MAX: usize = Summary::AUDIENCE_MAX - 1;
/// The most envelopes read back after a restart.
const PERSISTED_MAX: usize = 4_096;

/// The configuration of a core, fixed for its whole life.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// The node key. Must be Ed25519: [`Gossip::new`] panics otherwise.
    pub keypair: Keypair,
    /// Our logical store directory; peers with another one are left alone.
    pub store_dir: StoreDir,
    /// Name and version, shown to peers; the first 64 bytes count.
    pub software: String,
    /// The seed of every random choice.
    pub rng_seed: [u8; 32],
    /// How long others may use our summary after they first heard of it, seconds. At least twice `reannounce_ms`.
    pub lifetime_s: u32,
    /// An unchanged summary is announced again after this, less up to a tenth, milliseconds.
    pub reannounce_ms: u64,
    /// A change waits this long for others, milliseconds.
    pub debounce_ms: u64,
    /// Time between two syncs, each with another connected peer, plus or minus a tenth, milliseconds.
    pub sync_interval_ms: u64,
    /// The most paths advertised; those that come later are withheld.
    pub path_count_max: usize,
    /// [`Envelope::open`]. A simulation that shows the same bytes to a thousand cores may cache the result instead.
    pub open_envelope: OpenEnvelope,
}

impl GossipConfig {
    /// The defaults: a lifetime of 4 h, announced again every 30 min (gossipsub's idle cost, `libp2p.md`); 100 ms to
    /// debounce and 60 s between syncs (guesses, not measured); 200,000 paths (twice the most that an ordinary store has).
    pub fn new(keypair: Keypair, store_dir: StoreDir, software: &str, rng_seed: [u8; 32]) -> Self {
        Self {
            keypair,
            store_dir,
            software: software.to_owned(),
            rng_seed,
            lifetime_s: 14_400,
            reannounce_ms: 1_800_000,
            debounce_ms: 100,
            sync_interval_ms: 60_000,
            path_count_max: 200_000,
            open_envelope: |bytes| Envelope::open(bytes).map(Arc::new),
        }
    }
}

/// What the last run persisted: the last [`Record`] of each kind.
#[derive(Clone, Debug, Default)]
pub struct Persisted {
    /// The last [`Record::OwnEpoch`].
    pub own_epoch: Option<u64>,
    /// The last [`Record::Newest`] of each peer; those that do not verify are skipped.
    pub newest: Vec<Vec<u8>>,
    /// [`Gossip::audience`] of the peers for which the caller keeps it; an invalid audience is skipped.
    pub audiences: Vec<(PeerId, Vec<AudienceDigest>)>,
}

/// Whether this is a valid audience: strictly ascending, not empty, and no longer than a summary allows.
fn is_audience(audience: &[AudienceDigest]) -> bool {
    !audience.is_empty() && audience.len() <= Summary::AUDIENCE_MAX && audience.is_sorted_by(|one, next| one < next)
}

/// The delta of an announcement that only renews the lifetime.
fn unchanged(base_seq: u64, items: u64) -> SummaryDelta {
    SummaryDelta { base_seq, items, positions: Vec::new(), audience: None, addresses: None }
}

/// One node's part in the gossip. See the crate's documentation for the protocol.
#[derive(Debug)]
pub struct Gossip {
    pub(crate) now: Now,
    pub(crate) me: PeerId,
    pub(crate) my_digest: AudienceDigest,
    pub(crate) keypair: Keypair,
    pub(crate) store_dir: String,
    pub(crate) software: String,
    pub(crate) sync_interval_ms: u64,
    pub(crate) open_envelope: OpenEnvelope,
    reannounce_ms: u64,
    rng: ChaCha8Rng,
    /// Newest announcements read back after a restart, until the first allowlist says which of them count.
    floors: BTreeMap<PeerId, Arc<Envelope>>,
    /// Audiences read back after a restart, until the first allowlist.
    audiences: BTreeMap<PeerId, Vec<AudienceDigest>>,
    pub(crate) directory: Directory,
    /// Connected peers of the allowlist.
    pub(crate) links: BTreeMap<PeerId, Link>,
    pub(crate) pulls: Pulls,
    pub(crate) relayed: Relayed,
    /// Our unanswered requests: at most one sync for each link, and 16 pulls.
    pub(crate) requests: BTreeMap<u64, (PeerId, Sent)>,
    next_request: u64,
    pub(crate) publication: Publication,
    pub(crate) table: TableWriter,
    pub(crate) timers: Timers,
    outputs: VecDeque<Output>,
}

impl Gossip {
    /// A core that knows nobody: it speaks after the first [`Input::Allowlist`] and [`Input::Paths`].
    ///
    /// # Panics
    /// When the keypair is not Ed25519.
    pub fn new(now: Now, config: GossipConfig, persisted: Persisted) -> Self {
        assert!(config.keypair.clone().try_into_ed25519().is_ok(), "the node key must be Ed25519");
        let me = config.keypair.public().to_peer_id();
        let times = PublicationTimes {
            lifetime_s: config.lifetime_s,
            reannounce_ms: config.reannounce_ms,
            debounce_ms: config.debounce_ms,
        };
        let mut rng = ChaCha8Rng::from_seed(config.rng_seed);
        let newest = persisted.newest.iter().take(PERSISTED_MAX).filter_map(|bytes| (config.open_envelope)(bytes).ok());
        let mut gossip = Self {
            now,
            me,
            my_digest: AudienceDigest::of(&me),
            publication: Publication::new(&me, times, config.path_count_max, persisted.own_epoch),
            keypair: config.keypair,
            store_dir: config.store_dir.as_str().to_owned(),
            software: crate::exchange::sync::to_printable(&config.software, crate::exchange::sync::SOFTWARE_BYTES_MAX),
            sync_interval_ms: config.sync_interval_ms.max(1),
            open_envelope: config.open_envelope,
            reannounce_ms: config.reannounce_ms,
            floors: newest.map(|envelope| (envelope.peer(), envelope)).collect(),
            audiences: persisted.audiences.into_iter().take(PERSISTED_MAX).filter(|(_, it)| is_audience(it)).collect(),
            directory: Directory::default(),
            links: BTreeMap::new(),
            pulls: Pulls::default(),
            relayed: Relayed::default(),
            requests: BTreeMap::new(),
            next_request: 0,
            table: TableWriter::new(rng.next_u64()),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            rng,
        };
        gossip.schedule_sync();
        gossip
    }

    /// Takes one input. Call [`Gossip::poll`] until it returns `None`, then look at [`Gossip::deadline`].
    pub fn handle(&mut self, now: Now, input: Input) {
        // Time does not go back, whatever the caller passes.
        self.now = Now { moment: now.moment.max(self.now.moment), wall_ms: now.wall_ms };
        // Summaries that were restored since the last input move to their matrices in one pass.
        self.table.shape();
        match input {
            Input::Allowlist(peers) => self.set_allowlist(peers),
            Input::Addresses(addresses) => self.set_addresses(addresses),
            Input::Connected(peer) => self.on_connected(peer),
            Input::Disconnected(peer) => self.drop_link(peer),
            Input::Announcement { id, author, from, bytes } => {
                let verdict = self.on_announcement(author, from, &bytes);
                self.push_output(Output::Judge { id, verdict });
            }
            Input::Request { from, id, bytes } => self.on_request(from, id, &bytes),
            Input::Response { from, id, bytes } => self.on_response(from, id, Some(bytes)),
            Input::RequestFailed { to, id } => self.on_response(to, id, None),
            Input::Paths(change) => self.publication.apply_change(self.now.moment, change),
            Input::Probe { peer, outcome } => self.on_probe(peer, outcome),
            Input::Misbehaved { peer, misdeed } => self.penalize(peer, misdeed),
            Input::Tick => {}
            Input::Goodbye => {
                if let Some(envelope) = self.publication.depart(self.now, &self.keypair) {
                    self.push_output(Output::Publish(envelope));
                }
            }
        }
        self.publication.watch_clock(self.now);
        self.run_due_timers();
    }

    /// The next thing to do. One input causes at most a handful of outputs, but a new allowlist causes one for each peer.
    /// No output is ever dropped, so the queue is bounded only if the caller empties it after each input.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Gossip::handle`] with [`Input::Tick`] at the latest: exactly the next moment at
    /// which that does something.
    pub fn deadline(&self) -> Option<Moment> {
        self.timers.deadline()
    }

    /// The filters of all peers, to be read from any thread.
    pub fn table(&self) -> Arc<FilterTable> {
        Arc::clone(self.table.shared())
    }

    /// Peers whose filter claims this path, best first; see [`FilterTable::find_candidates`].
    pub fn find_candidates(&self, part: &HashPart) -> Vec<Candidate> {
        self.table.shared().find_candidates(part)
    }

    /// The audience of the last summary that we held of `owner`, in this run or (from [`Persisted::audiences`]) in an
    /// earlier one.
    pub fn audience(&self, owner: &PeerId) -> Option<&Arc<[AudienceDigest]>> {
        self.directory.get(owner).map(|entry| &entry.audience).filter(|audience| !audience.is_empty())
    }

    /// Whether `peer` may be told what `owner` has: it is the owner, or is in the owner's [`Gossip::audience`].
    pub fn admits(&self, owner: &PeerId, peer: &PeerId) -> bool {
        owner == peer || self.directory.get(owner).is_some_and(|entry| entry.admits(peer))
    }

    /// Our own summary, for status.
    pub fn publication(&self) -> PublicationView {
        self.publication.view()
    }

    pub(crate) fn push_output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(crate) fn push_event(&mut self, event: Event) {
        self.push_output(Output::Event(event));
    }

    /// A random number from 0 to `below` - 1; 0 when `below` is 0.
    pub(crate) fn draw_below(&mut self, below: u64) -> u64 {
        self.rng.next_u64().checked_rem(below).unwrap_or(0)
    }

    pub(crate) fn assign_request_id(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    /// Does all that is due, including what becomes due meanwhile.
    fn run_due_timers(&mut self) {
        self.timers.set(Timer::Publish, self.publication.due());
        while let Some(timer) = self.timers.pop(self.now.moment) {
            match timer {
                Timer::Publish => self.publish(),
                Timer::Sync => self.sync_with_anyone(),
                Timer::Greet(peer) => self.sync_with(peer),
                Timer::Pull(owner) => self.pull_again(owner),
                Timer::Request(id) => self.on_request_timeout(id),
                Timer::Expire(peer) => self.expire(peer),
                Timer::Conduct(peer) => self.lift_expired_penalties(peer),
            }
            self.timers.set(Timer::Publish, self.publication.due());
        }
    }

    fn publish(&mut self) {
        let jitter_ms = self.draw_below(self.reannounce_ms / 10);
        let published = self.publication.publish(self.now, &self.keypair, jitter_ms);
        // Persisted before it is published: a node that forgot the epoch in a crash could sign two
        // announcements under one generation.
        if let Some(epoch) = published.new_epoch.filter(|_| !mutant!(EpochNotPersisted)) {
            self.push_output(Output::Persist(Record::OwnEpoch(epoch)));
        }
        self.push_output(Output::Publish(published.envelope));
        self.push_event(Event::Published {
            generation: published.announcement.generation,
            paths: published.announcement.path_count,
            body_bytes: published.announcement.body_bytes,
        });
    }

    fn set_addresses(&mut self, addresses: Vec<SocketAddr>) {
        self.publication.set_addresses(self.now.moment, addresses);
    }

    fn set_allowlist(&mut self, mut peers: BTreeSet<PeerId>) {
        peers.remove(&self.me);
        while peers.len() > ALLOWLIST_MAX {
            peers.pop_last();
        }
        let mut audience: Vec<_> = peers.iter().map(AudienceDigest::of).chain([self.my_digest]).collect();
        audience.sort_unstable();
        audience.dedup();
        self.publication.set_audience(self.now.moment, audience, peers.len());
        let gone: Vec<_> = if mutant!(DistrustIgnored) { Vec::new() } else { self.peers_not_in(&peers) };
        for peer in gone {
            self.forget(peer);
        }
        for peer in peers {
            let floor = self.floors.remove(&peer);
            let audience = self.audiences.remove(&peer).map(|audience| self.directory.intern_audience(audience));
            let entry = self.directory.add(peer);
            if let Some(audience) = audience {
                entry.audience = audience;
            }
            if let Some(envelope) = floor.filter(|_| !mutant!(FloorsForgotten)) {
                entry.newest.get_or_insert(crate::peers::directory::Newest { envelope, accepted: None });
            }
        }
        // The first allowlist does not name the peers that are left over.
        self.audiences.clear();
        for (peer, _) in std::mem::take(&mut self.floors) {
            self.push_output(Output::Persist(Record::Forget(peer)));
        }
    }

    /// The known peers that are not in `peers`.
    fn peers_not_in(&self, peers: &BTreeSet<PeerId>) -> Vec<PeerId> {
        self.directory.iter().map(|(peer, _)| *peer).filter(|peer| !peers.contains(peer)).collect()
    }

    /// Drops all state of a peer that lost our trust.
    fn forget(&mut self, peer: PeerId) {
        self.drop_link(peer);
        self.drop_pull(&peer);
        self.pulls.forget_teller(&peer);
        self.relayed.forget(&peer);
        self.table.remove(&peer);
        self.directory.remove(&peer);
        self.timers.set(Timer::Expire(peer), None);
        self.timers.set(Timer::Conduct(peer), None);
        self.push_output(Output::Persist(Record::Forget(peer)));
    }

    fn on_announcement(&mut self, author: PeerId, from: PeerId, bytes: &[u8]) -> Forward {
        let moment = self.now.moment;
        let is_hearsay = from != author;
        let Some(entry) = self.directory.get_mut(&author) else {
            if mutant!(ForwarderBlamed) {
                self.penalize(from, Misdeed::ForeignAnnouncement);
            }
            // An honest peer hands on what those announce whom it knows and we do not. What that costs is bounded below us, by
            // the pace at which a connection is read.
            return Forward::Ignore;
        };
        if entry.conduct.has_spent_announcements(moment, is_hearsay) {
            return Forward::Ignore;
        }
        // Before the signature is verified, which costs far more than this look at the claimed generation.
        if entry.is_older(bytes) {
            return Forward::Ignore;
        }
        let envelope = match entry.open_envelope(bytes, self.open_envelope) {
            Ok(envelope) => envelope,
            Err(EnvelopeError::UnknownVersion { version }) => {
                entry.conduct.charge_announcement(moment, is_hearsay);
                self.push_event(Event::UnknownVersion { peer: author, version });
                return Forward::Ignore;
            }
            Err(EnvelopeError::Length { .. } | EnvelopeError::Signature | EnvelopeError::Payload(_)) => {
                entry.conduct.charge_announcement(moment, is_hearsay);
                self.penalize(author, Misdeed::MalformedAnnouncement);
                return Forward::Ignore;
            }
        };
        if envelope.peer() != author {
            entry.conduct.charge_announcement(moment, is_hearsay);
            self.penalize(author, Misdeed::ForeignAnnouncement);
            return Forward::Ignore;
        }
        let worth = self.receive_envelope(&envelope, from);
        if !matches!(worth, Worth::Known | Worth::Old) {
            let entry = self.directory.get_mut(&author);
            let flood = entry.is_some_and(|entry| entry.conduct.charge_announcement(moment, is_hearsay));
            // Other peers may hand on at once what the author said in a week, so only the author itself is
            // blamed for a flood.
            if flood && !is_hearsay {
                self.penalize(author, Misdeed::AnnouncementFlood);
            }
        }
        if worth == Worth::News { Forward::Accept } else { Forward::Ignore }
    }

    /// Takes a foreign envelope. All of them pass through here, whether from gossipsub or from anti-entropy. `teller` is
    /// the peer that showed it to us.
    pub(crate) fn receive_envelope(&mut self, envelope: &Arc<Envelope>, teller: PeerId) -> Worth {
        let peer = envelope.peer();
        let announcement = *envelope.announcement();
        let lookups = self.table.shared().lookups();
        let Some(entry) = self.directory.get_mut(&peer) else { return Worth::Old };
        let worth = entry.accept_if_newer(self.now, envelope);
        if teller == peer && matches!(worth, Worth::News | Worth::Known) {
            entry.claimed = Some(announcement.generation);
        }
        match worth {
            Worth::Old => {}
            Worth::Known => self.pull_if_wanted(peer, Some(teller)),
            // What another peer hands on may be old although nobody's clock is wrong.
            Worth::ClockDiffers if teller != peer => {}
            Worth::ClockDiffers => {
                self.push_event(Event::ClockDiffers { peer, issued_at_ms: announcement.issued_at_ms })
            }
            Worth::Bad(misdeed) => self.penalize(peer, misdeed),
            Worth::News => {
                let before = entry.held.as_ref().map(|held| held.generation());
                let adopted = entry.adopt(self.now.moment, lookups);
                let envelope = envelope.as_bytes().to_vec();
                self.push_output(Output::Persist(Record::Newest { peer, envelope }));
                let generation = announcement.generation;
                if announcement.is_goodbye() {
                    self.drop_body(&peer);
                    self.push_event(Event::Departed { peer });
                    return worth;
                }
                self.push_event(Event::Announced { peer, generation, path_count: announcement.path_count });
                if adopted {
                    if let Some(before) = before.filter(|before| before.epoch == generation.epoch) {
                        self.relayed.push(peer, generation, unchanged(before.seq, announcement.path_count));
                    }
                    self.on_adopted(peer);
                } else {
                    self.pull_if_wanted(peer, Some(teller));
                }
            }
        }
        worth
    }

    fn on_probe(&mut self, peer: PeerId, outcome: ProbeOutcome) {
        let moment = self.now.moment;
        let lookups = self.table.shared().lookups();
        let Some(entry) = self.directory.get_mut(&peer) else { return };
        let Some(held) = &entry.held else { return };
        let demoted = match outcome {
            ProbeOutcome::Held => {
                entry.conduct.count_held_hit();
                None
            }
            ProbeOutcome::FalseHit => entry.conduct.count_false_hit(moment, held.false_positive_rate(), lookups),
        };
        self.update_rank(peer);
        if let Some(until) = demoted {
            self.push_event(Event::Demoted { peer, until });
            self.penalize(peer, Misdeed::FalseClaims);
        }
    }

    /// Counts a misdeed, and sets the peer aside when it was one too many.
    pub(crate) fn penalize(&mut self, peer: PeerId, misdeed: Misdeed) {
        self.push_output(Output::Penalize { peer, misdeed });
        let moment = self.now.moment;
        let Some(entry) = self.directory.get_mut(&peer) else { return };
        if let Some(until) = entry.conduct.blame(moment, misdeed) {
            self.push_event(Event::SetAside { peer, until, misdeed });
            self.drop_pull(&peer);
        }
        self.update_rank(peer);
    }

    /// Tells the readers of the table how the peer stands, and sets the timer for the end of that.
    pub(crate) fn update_rank(&mut self, peer: PeerId) {
        if let Some(entry) = self.directory.get(&peer) {
            self.table.set_rank(&peer, entry.conduct.false_share(), entry.conduct.rank());
            self.timers.set(Timer::Conduct(peer), entry.conduct.due());
        }
    }

    fn lift_expired_penalties(&mut self, peer: PeerId) {
        let moment = self.now.moment;
        if let Some(entry) = self.directory.get_mut(&peer) {
            let was_set_aside = entry.conduct.is_set_aside();
            entry.conduct.lift_expired(moment);
            let forgiven = was_set_aside && !entry.conduct.is_set_aside();
            self.update_rank(peer);
            if forgiven {
                self.pull_if_wanted(peer, None);
                self.schedule_greeting(peer, 0);
            }
        }
    }

    /// Drops the body of a peer. Its newest announcement stays, so that older ones are still refused.
    pub(crate) fn drop_body(&mut self, peer: &PeerId) {
        self.drop_pull(peer);
        self.relayed.forget(peer);
        self.table.remove(peer);
        self.timers.set(Timer::Expire(*peer), None);
        if let Some(entry) = self.directory.get_mut(peer) {
            entry.held = None;
        }
    }

    fn expire(&mut self, peer: PeerId) {
        if mutant!(LifetimeIgnored) {
            return;
        }
        self.drop_body(&peer);
        self.push_event(Event::Expired { peer });
        self.pull_if_wanted(peer, None);
    }
}
