//! The peers of the allowlist: what we know of each, which body we hold of it, and how it has behaved.

pub(crate) mod announced;
pub(crate) mod body;
pub(crate) mod conduct;
pub(crate) mod entry;
pub(crate) mod kept;
pub(crate) mod misdeed;
pub(crate) mod view;

use self::body::{Flaw, Usable, count_ones};
use self::entry::{Acceptance, Entry, HeldBody, Newest, claimed_signer};
use self::kept::{KeptSummary, Unfit};
use self::misdeed::Misdeed;
use crate::input::ProbeOutcome;
use crate::io::{Io, Timer};
use crate::output::{Event, Output, Record};
use crate::publication::relay::Relayed;
use crate::table::reader::FilterTable;
use crate::table::writer::TableWriter;
use libp2p_identity::PeerId;
use narmesh_machine::Moment;
use narmesh_protocol::{AudienceDigest, Envelope, EnvelopeError, Generation, Summary, SummaryDelta};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The most envelopes, and the most audiences, read back after a restart.
const READ_BACK_MAX: usize = 4_096;

/// All peers of the allowlist: the entry of each, its filter in the table, and the deltas that led to that.
#[derive(Debug)]
pub(crate) struct Peers {
    me: PeerId,
    /// Nobody else has an entry, which bounds their number.
    entries: BTreeMap<PeerId, Entry>,
    by_digest: BTreeMap<AudienceDigest, PeerId>,
    /// The audiences in use. The peers of a fleet usually share one, which is then stored once.
    shared_audiences: BTreeSet<Arc<[AudienceDigest]>>,
    table: TableWriter,
    relayed: Relayed,
    /// Newest announcements read back after a restart, until the first allowlist says which of them count.
    floors: BTreeMap<PeerId, Arc<Envelope>>,
    /// Audiences read back after a restart, until the first allowlist.
    audiences: BTreeMap<PeerId, Vec<AudienceDigest>>,
}

/// Whether this is a valid audience: strictly ascending, not empty, and no longer than a summary allows.
fn is_audience(audience: &[AudienceDigest]) -> bool {
    !audience.is_empty() && audience.len() <= Summary::AUDIENCE_MAX && audience.is_sorted_by(|one, next| one < next)
}

impl Peers {
    /// Nobody yet. `salt` orders equally good candidates; `newest` and `audiences` are what the last run persisted.
    pub(crate) fn new(
        me: PeerId,
        salt: u64,
        newest: &[Vec<u8>],
        audiences: Vec<(PeerId, Vec<AudienceDigest>)>,
    ) -> Self {
        // The files may be damaged or foreign: what does not open is as if it were not there.
        let newest = newest.iter().take(READ_BACK_MAX).filter_map(|bytes| Envelope::open(bytes).ok());
        Self {
            me,
            entries: BTreeMap::new(),
            by_digest: BTreeMap::new(),
            shared_audiences: BTreeSet::new(),
            table: TableWriter::new(salt),
            relayed: Relayed::default(),
            floors: newest.map(|envelope| (envelope.peer(), Arc::new(envelope))).collect(),
            audiences: audiences.into_iter().take(READ_BACK_MAX).filter(|(_, it)| is_audience(it)).collect(),
        }
    }

    pub(crate) fn get(&self, peer: &PeerId) -> Option<&Entry> {
        self.entries.get(peer)
    }

    pub(crate) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Entry> {
        self.entries.get_mut(peer)
    }

    pub(crate) fn contains(&self, peer: &PeerId) -> bool {
        self.entries.contains_key(peer)
    }

    /// All of them, ordered by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Entry)> {
        self.entries.iter()
    }

    /// The peer with this digest.
    pub(crate) fn find_owner(&self, digest: &AudienceDigest) -> Option<PeerId> {
        self.by_digest.get(digest).copied()
    }

    /// The reading side of the table.
    pub(crate) fn table(&self) -> &Arc<FilterTable> {
        self.table.shared()
    }

    /// Summaries that were restored since the last input move to their matrices in one pass.
    pub(crate) fn shape_table(&mut self) {
        self.table.shape();
    }

    /// Adds the peers that are now trusted. The first allowlist also says whose persisted records count.
    pub(crate) fn add_all(&mut self, io: &mut Io, peers: BTreeSet<PeerId>) {
        for peer in peers {
            let floor = self.floors.remove(&peer);
            let audience = self.audiences.remove(&peer).map(|audience| self.share_audience(audience));
            let entry = self.entries.entry(peer).or_insert_with(|| Entry::new(&peer));
            self.by_digest.insert(entry.digest(), peer);
            entry.read_back(floor, audience);
        }
        // The first allowlist does not name the peers that are left over.
        self.audiences.clear();
        for (peer, _) in std::mem::take(&mut self.floors) {
            io.push(Output::Persist(Record::Forget(peer)));
        }
    }

    /// Drops all state of a peer that lost our trust.
    pub(crate) fn forget(&mut self, io: &mut Io, peer: &PeerId) {
        self.relayed.forget(peer);
        self.table.remove(peer);
        if let Some(entry) = self.entries.remove(peer) {
            self.by_digest.remove(&entry.digest());
        }
        io.timers.set(Timer::Expire(*peer), None);
        io.timers.set(Timer::Conduct(*peer), None);
        io.push(Output::Persist(Record::Forget(*peer)));
    }

    /// Opens an envelope of any signer.
    pub(crate) fn open_envelope(&self, bytes: &[u8]) -> Result<Arc<Envelope>, EnvelopeError> {
        match claimed_signer(bytes).and_then(|signer| self.entries.get(&signer)) {
            Some(entry) => entry.open_envelope(bytes),
            None => Envelope::open(bytes).map(Arc::new),
        }
    }

    /// Whether so many announcements of `author` came that the next one from `teller` is not even opened.
    pub(crate) fn has_spent_announcements(&mut self, now: Moment, author: &PeerId, teller: &PeerId) -> bool {
        let teller = (teller != author).then_some(teller);
        self.entries.get_mut(author).is_some_and(|entry| entry.announced.is_spent(now, teller))
    }

    /// Charges `teller` an announcement of `author` that had to be opened; true when that makes a flood of it. Nobody but
    /// the author can be blamed for one: others may hand on at once what it said in a week.
    pub(crate) fn charge_announcement(&mut self, now: Moment, author: &PeerId, teller: &PeerId) -> bool {
        let teller = (teller != author).then_some(teller);
        self.entries.get_mut(author).is_some_and(|entry| entry.announced.charge(now, teller))
    }

    /// Charges `teller` what it showed us of `signer` in its answer, unless we know it already. False when it has told so
    /// much that this is not even opened.
    pub(crate) fn charge_news(&mut self, now: Moment, teller: &PeerId, signer: &PeerId, bytes: &[u8]) -> bool {
        let is_repeat = self.entries.get(signer).is_some_and(|entry| entry.is_newest(bytes));
        is_repeat || self.entries.get_mut(teller).is_some_and(|teller| teller.conduct.charge_news(now))
    }

    /// Counts a misdeed; true when that sets the peer aside.
    pub(crate) fn blame(&mut self, io: &mut Io, peer: PeerId, misdeed: Misdeed) -> bool {
        io.push(Output::Penalize { peer, misdeed });
        let Some(entry) = self.entries.get_mut(&peer) else { return false };
        let set_aside = entry.conduct.blame(io.now.moment, misdeed);
        if let Some(until) = set_aside {
            io.push_event(Event::SetAside { peer, until, misdeed });
        }
        self.update_rank(io, &peer);
        set_aside.is_some()
    }

    /// Counts what a candidate said when it was asked.
    pub(crate) fn count_probe(&mut self, io: &mut Io, peer: PeerId, outcome: ProbeOutcome) {
        let lookups = self.table().lookups();
        let Some(entry) = self.entries.get_mut(&peer) else { return };
        // Without a body there is no density that says how many false hits are to be expected.
        let Some(rate) = entry.held().map(HeldBody::false_positive_rate) else { return };
        let demoted = match outcome {
            ProbeOutcome::Held => {
                entry.conduct.count_held_hit();
                None
            }
            ProbeOutcome::FalseHit => entry.conduct.count_false_hit(io.now.moment, rate, lookups),
        };
        self.update_rank(io, &peer);
        if let Some(until) = demoted {
            io.push_event(Event::Demoted { peer, until });
            // False claims set nobody aside.
            self.blame(io, peer, Misdeed::FalseClaims);
        }
    }

    /// Ends what is over of a peer's penalties; true when it was set aside until now.
    pub(crate) fn lift_expired_penalties(&mut self, io: &mut Io, peer: &PeerId) -> bool {
        let Some(entry) = self.entries.get_mut(peer) else { return false };
        let was_set_aside = entry.conduct.is_set_aside();
        entry.conduct.lift_expired(io.now.moment);
        let forgiven = was_set_aside && !entry.conduct.is_set_aside();
        self.update_rank(io, peer);
        forgiven
    }

    /// Tells the readers of the table how the peer stands, and sets the timer for the end of that.
    fn update_rank(&mut self, io: &mut Io, peer: &PeerId) {
        if let Some(entry) = self.entries.get(peer) {
            self.table.set_rank(peer, entry.conduct.false_share(), entry.conduct.rank());
            io.timers.set(Timer::Conduct(*peer), entry.conduct.due());
        }
    }

    /// When the newest announcement is of the very body that is held, takes it over: only its lifetime is new.
    pub(crate) fn adopt_renewed(&mut self, io: &mut Io, peer: &PeerId) -> bool {
        let lookups = self.table().lookups();
        let Some(entry) = self.entries.get_mut(peer) else { return false };
        let before = entry.held().map(HeldBody::generation);
        if !entry.adopt(io.now.moment, lookups) {
            return false;
        }
        let Some(held) = entry.held() else { return false };
        let (generation, items) = (held.generation(), held.envelope.announcement().path_count);
        io.timers.set(Timer::Expire(*peer), Some(held.accepted.expires));
        // So that a peer which holds the body under the older `seq` still gets a delta from us.
        if let Some(before) = before.filter(|before| before.epoch == generation.epoch) {
            // The delta of an announcement that only renews the lifetime.
            let unchanged =
                SummaryDelta { base_seq: before.seq, items, positions: Vec::new(), audience: None, addresses: None };
            self.relayed.push(*peer, generation, unchanged);
        }
        self.update_rank(io, peer);
        true
    }

    /// The body that we hold of an owner, reassembled, and its `seq`.
    pub(crate) fn assemble_body(&self, owner: &PeerId) -> Option<(u64, Summary)> {
        self.entries.get(owner)?.assemble_body(self.table.read(owner)?)
    }

    /// The deltas that lead from `base_seq` to the body that we hold of an owner, merged into one.
    pub(crate) fn merge_deltas(
        &self,
        owner: &PeerId,
        held: Generation,
        base_seq: u64,
        items: u64,
    ) -> Option<SummaryDelta> {
        self.relayed.merge_deltas(owner, held, base_seq, items)
    }

    /// Takes a body whose digest the owner signed, if this node may use it. `delta` is what led to it from the body held.
    pub(crate) fn take_body(
        &mut self,
        io: &mut Io,
        owner: PeerId,
        target: &Newest,
        body: &[u8],
        delta: Option<&SummaryDelta>,
    ) -> Result<(), Flaw> {
        let generation = target.announcement().generation;
        let usable = Usable::decode(&self.me, target.announcement(), body)?;
        let audience = self.share_audience(usable.summary.audience.clone());
        let lookups = self.table().lookups();
        let Some(entry) = self.entries.get_mut(&owner) else { return Ok(()) };
        let same_epoch = entry.held().is_some_and(|held| held.generation().epoch == generation.epoch);
        if !same_epoch {
            entry.conduct.on_new_epoch(io.now.moment, lookups);
        }
        // Within an epoch bits are only added, so a delta can be set in place. Any other filter gets a new column, so that
        // readers never see half of it.
        match delta {
            Some(delta) if same_epoch => self.table.set_bits(&owner, &delta.positions),
            Some(_) | None => self.table.install(owner, &usable.filter, entry.conduct.rank()),
        }
        self.hold(io, owner, target, usable, audience);
        Ok(())
    }

    /// Keeps a delta that led to the body now held, so that others can be given it.
    pub(crate) fn keep_delta(&mut self, owner: PeerId, to: Generation, delta: SummaryDelta) {
        self.relayed.push(owner, to, delta);
    }

    /// Drops the deltas kept of an owner, because they do not lead to the body that is about to be held.
    pub(crate) fn drop_deltas(&mut self, owner: &PeerId) {
        self.relayed.forget(owner);
    }

    /// Notes a body whose filter is already in the table.
    fn hold(&mut self, io: &mut Io, owner: PeerId, target: &Newest, usable: Usable, audience: Arc<[AudienceDigest]>) {
        let Some(entry) = self.entries.get_mut(&owner) else { return };
        let Usable { filter, summary } = usable;
        // Only a floor has no acceptance, and floors are never pulled.
        let expired = Acceptance { wall_ms: io.now.wall_ms, expires: io.now.moment };
        let accepted = target.accepted.unwrap_or(expired);
        let held = HeldBody {
            envelope: Arc::clone(&target.envelope),
            class: filter.class(),
            ones: count_ones(filter.as_bytes()),
            audience,
            accepted,
            remembered: false,
        };
        // Whoever was not heard for a lifetime is gone without a goodbye, and its paths with it.
        io.timers.set(Timer::Expire(owner), Some(accepted.expires));
        if entry.hold(held, &summary.addresses) {
            io.push_event(Event::AddressesLearned { peer: owner, addresses: summary.addresses });
        }
        self.update_rank(io, &owner);
    }

    /// Stores equal audiences only once.
    fn share_audience(&mut self, audience: Vec<AudienceDigest>) -> Arc<[AudienceDigest]> {
        if let Some(shared) = self.shared_audiences.get(audience.as_slice()) {
            return Arc::clone(shared);
        }
        self.shared_audiences.retain(|shared| Arc::strong_count(shared) > 1);
        let shared: Arc<[AudienceDigest]> = audience.into();
        self.shared_audiences.insert(Arc::clone(&shared));
        shared
    }

    /// Drops the body of a peer. Its newest announcement stays, so that older ones are still refused.
    pub(crate) fn drop_body(&mut self, io: &mut Io, peer: &PeerId) {
        self.relayed.forget(peer);
        self.table.remove(peer);
        io.timers.set(Timer::Expire(*peer), None);
        if let Some(entry) = self.entries.get_mut(peer) {
            entry.drop_body();
        }
    }

    /// Takes back a summary that was kept over a restart, with all checks of a body that was just pulled.
    pub(crate) fn restore(&mut self, io: &mut Io, owner: PeerId, kept: &KeptSummary) -> Result<(), Unfit> {
        let entry = self.entries.get(&owner).ok_or(Unfit::NotTrusted)?;
        // The bytes come from a file that anything may have changed.
        let envelope = entry.open_envelope(&kept.envelope).map_err(|_| Unfit::Forged)?;
        let (rank, audience_before) = (entry.conduct.rank(), Arc::clone(entry.audience()));
        let (target, is_newest) = kept.check_proof(io.now, &owner, entry, envelope)?;
        let usable = Usable::decode(&self.me, target.announcement(), &kept.body)?;
        let audience = self.share_audience(usable.summary.audience.clone());
        // Hundreds may come back at the start; each one alone into a matrix would take twice the time.
        self.table.install_plain(owner, &usable.filter, rank);
        self.hold(io, owner, &target, usable, audience);
        if let Some(entry) = self.entries.get_mut(&owner) {
            entry.on_restored(is_newest.then_some(target), audience_before);
        }
        Ok(())
    }

    /// Asserts the bounds; returns how many peers there are.
    #[cfg(test)]
    pub(crate) fn check(&self) -> usize {
        let trusted = self.entries.len();
        assert!(self.table().peers() <= trusted);
        self.relayed.check(trusted);
        for (peer, entry) in self.entries.iter() {
            assert_eq!(entry.held().is_some(), self.table.holds(peer), "held and in the table are one thing");
            assert!(entry.view(*peer, false).addresses.len() <= 8);
        }
        trusted
    }
}
