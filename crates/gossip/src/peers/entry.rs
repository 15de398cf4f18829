//! What we know of each peer: its newest announcement, the body that we hold, and how it has behaved.

use super::announced::Announced;
use super::conduct::Conduct;
use super::misdeed::Misdeed;
use super::view::{PeerView, SummaryView};
use crate::publication::{DAY_MS, PLAUSIBLE_WALL_MS};
use libp2p_identity::PeerId;
use narmesh_machine::{Moment, Now};
use narmesh_protocol::{
    Announcement, AudienceDigest, Envelope, EnvelopeError, FilterClass, Generation, HASH_ID_V1, HASHES_PER_ITEM,
    Summary,
};
use std::net::SocketAddr;
use std::sync::Arc;

/// The shortest and the longest lifetime that is believed, seconds: a minute and a week. A lifetime of 0 is a goodbye.
const LIFETIME_S: std::ops::RangeInclusive<u32> = 60..=604_800;
/// The most paths that an announcement may claim: what the largest filter holds at 16 bits per path.
const PATH_COUNT_MAX: u64 = 1 << 20;
/// An owner that lacks what it announced this many times, and for this long without any body, milliseconds, announces what it
/// does not deliver. Of the pulls from an honest owner that publishes twice a second, one in five succeeds even at a round
/// trip of 400 ms.
const UNDELIVERED_MAX: u32 = 12;
/// See [`UNDELIVERED_MAX`].
const UNDELIVERED_MS: u64 = 60_000;

/// What is kept of one peer. The bits of its filter are in the table only.
#[derive(Debug)]
pub(crate) struct Entry {
    digest: AudienceDigest,
    newest: Option<Newest>,
    held: Option<HeldBody>,
    /// A generation whose body was received but is not usable, so it is not pulled again.
    refused: Option<Generation>,
    /// The generation that the peer itself last called its newest on the present connection. After a restart, an owner does
    /// not yet have what it announced before, and does not claim to.
    claimed: Option<Generation>,
    /// Since when, and how often, the owner did not have what it announced, without delivering any body in between.
    undelivered: Option<(Moment, u32)>,
    /// The audience of the last body held. A goodbye is passed on to these peers, because they had the body.
    audience: Arc<[AudienceDigest]>,
    addresses: Vec<SocketAddr>,
    software: Option<String>,
    store_dir_differs: Option<String>,
    pub(super) announced: Announced,
    pub(crate) conduct: Conduct,
}

/// The newest announcement accepted from a peer.
#[derive(Clone, Debug)]
pub(crate) struct Newest {
    pub(crate) envelope: Arc<Envelope>,
    /// `None` when it was only read back after a restart, without its body. Then it is only a floor: older announcements
    /// are refused.
    pub(crate) accepted: Option<Acceptance>,
}

/// When an announcement was first accepted, in this run or before the last restart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acceptance {
    /// The wall clock at that time, milliseconds since 1970. After a restart, the rest of the lifetime is computed from it.
    pub(crate) wall_ms: u64,
    /// When the lifetime that began at that time ends.
    pub(crate) expires: Moment,
}

/// A body that is in the table.
#[derive(Clone, Debug)]
pub(crate) struct HeldBody {
    /// The announcement that proves it.
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) class: FilterClass,
    /// How many bits of the filter are set.
    pub(crate) ones: u64,
    pub(crate) audience: Arc<[AudienceDigest]>,
    pub(crate) accepted: Acceptance,
    /// Whether it was kept over a restart and nobody has said since that it is still the newest.
    pub(crate) remembered: bool,
}

impl HeldBody {
    pub(crate) fn generation(&self) -> Generation {
        self.envelope.announcement().generation
    }

    /// The filter's rate of false positives: (share of set bits)^k.
    pub(crate) fn false_positive_rate(&self) -> f64 {
        let share = self.ones as f64 / f64::from(self.class.bits());
        (0..HASHES_PER_ITEM).fold(1.0, |rate, _| rate * share)
    }

    pub(crate) fn admits(&self, peer: &PeerId) -> bool {
        self.audience.binary_search(&AudienceDigest::of(peer)).is_ok()
    }
}

impl Newest {
    pub(crate) fn announcement(&self) -> &Announcement {
        self.envelope.announcement()
    }

    /// When its lifetime ends; `None` when it is only a floor.
    pub(crate) fn expires(&self) -> Option<Moment> {
        self.accepted.map(|accepted| accepted.expires)
    }
}

/// The lifetime that is believed, milliseconds.
pub(crate) fn lifetime_ms(announcement: &Announcement) -> u64 {
    u64::from(announcement.lifetime_s.clamp(*LIFETIME_S.start(), *LIFETIME_S.end())) * 1_000
}

/// Whether an announcement is dated more than a day before or after now.
fn is_day_off(now: Now, announcement: &Announcement) -> bool {
    announcement.issued_at_ms.abs_diff(now.wall_ms) > DAY_MS
}

/// What an envelope is worth to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Worth {
    /// It is newer than what we knew, and has been noted as the newest.
    News,
    /// It is exactly the newest one that we know.
    Known,
    /// It is older than what we know, and is ignored.
    Old,
    /// Its date is a day off at first sight, or its epoch and its date are both a day ahead of our clock.
    ClockDiffers,
    /// Its signer did wrong.
    Bad(Misdeed),
}

impl Entry {
    pub(super) fn new(peer: &PeerId) -> Self {
        Self {
            digest: AudienceDigest::of(peer),
            newest: None,
            held: None,
            refused: None,
            claimed: None,
            undelivered: None,
            audience: Arc::from([]),
            addresses: Vec::new(),
            software: None,
            store_dir_differs: None,
            announced: Announced::default(),
            conduct: Conduct::default(),
        }
    }

    pub(crate) fn digest(&self) -> AudienceDigest {
        self.digest
    }

    pub(crate) fn newest(&self) -> Option<&Newest> {
        self.newest.as_ref()
    }

    pub(crate) fn held(&self) -> Option<&HeldBody> {
        self.held.as_ref()
    }

    pub(crate) fn audience(&self) -> &Arc<[AudienceDigest]> {
        &self.audience
    }

    /// Whether the peer can be asked anything: it is not set aside, and its store directory is ours.
    pub(crate) fn is_useful(&self) -> bool {
        !self.conduct.is_set_aside() && self.store_dir_differs.is_none()
    }

    /// Takes over what the last run persisted of this peer.
    pub(super) fn read_back(&mut self, newest: Option<Arc<Envelope>>, audience: Option<Arc<[AudienceDigest]>>) {
        if let Some(audience) = audience {
            self.audience = audience;
        }
        if let Some(envelope) = newest {
            self.newest.get_or_insert(Newest { envelope, accepted: None });
        }
    }

    /// Whether these are the bytes of the newest envelope that we know of this peer. It arrives again and again, and needs
    /// no second verification.
    pub(crate) fn is_newest(&self, bytes: &[u8]) -> bool {
        self.newest.as_ref().is_some_and(|newest| newest.envelope.as_bytes() == bytes)
    }

    /// Opens an envelope that is probably of this peer.
    pub(crate) fn open_envelope(&self, bytes: &[u8]) -> Result<Arc<Envelope>, EnvelopeError> {
        match &self.newest {
            Some(newest) if self.is_newest(bytes) => Ok(Arc::clone(&newest.envelope)),
            Some(_) | None => Envelope::open(bytes).map(Arc::new),
        }
    }

    /// Whether the bytes claim to be older than what we know of this peer. Then they need not be opened.
    pub(crate) fn is_older(&self, bytes: &[u8]) -> bool {
        let claimed = Envelope::claimed_announcement(bytes).map(|claimed| claimed.generation);
        let known = self.newest.as_ref().map(|newest| newest.announcement().generation);
        claimed.is_some() && claimed < known
    }

    /// Whether the bytes claim a date that is a day off at first sight. From another peer than the signer they need not be
    /// opened: they would be dropped without blame, and nothing of them would be remembered.
    pub(crate) fn is_dated_off(&self, now: Now, bytes: &[u8]) -> bool {
        let claimed = Envelope::claimed_announcement(bytes);
        claimed.is_some_and(|claimed| self.is_first_sight(&claimed) && is_day_off(now, &claimed))
    }

    /// Whether nothing was heard of this peer in this run, and nothing older than this was read back.
    fn is_first_sight(&self, announcement: &Announcement) -> bool {
        self.newest.as_ref().is_none_or(|newest| newest.accepted.is_none() && newest.announcement() == announcement)
    }

    /// Whether the body held dates from before a restart and its owner is known to have announced a newer one since.
    pub(crate) fn is_outdated_memory(&self) -> bool {
        let newest = self.newest.as_ref().map(|newest| newest.announcement().generation);
        self.held.as_ref().is_some_and(|held| held.remembered && newest > Some(held.generation()))
    }

    /// Whether we know in this run what this peer has, or can learn nothing of it.
    pub(crate) fn is_heard(&self) -> bool {
        let is_useless = self.store_dir_differs.is_some() || self.conduct.is_set_aside();
        is_useless || self.held.as_ref().is_some_and(|held| !held.remembered)
    }

    /// Whether this peer was in the audience of the last body held.
    pub(crate) fn admits(&self, peer: &PeerId) -> bool {
        self.audience.binary_search(&AudienceDigest::of(peer)).is_ok()
    }

    /// Takes an envelope of this peer as its newest one when it is [`Worth::News`].
    pub(crate) fn accept_if_newer(&mut self, now: Now, envelope: &Arc<Envelope>) -> Worth {
        let announcement = envelope.announcement();
        if let Some(newest) = &self.newest {
            let known = newest.announcement();
            if announcement.generation < known.generation {
                return Worth::Old;
            }
            // All who hold a generation must hold the same bytes, or deltas between them lead nowhere: the first one
            // counts.
            if announcement.generation == known.generation && announcement != known {
                return Worth::Bad(Misdeed::Equivocation);
            }
            // A repeat renews no lifetime, or whoever replays an old envelope could keep its summary alive.
            if announcement == known && newest.accepted.is_some() {
                if let Some(held) = self.held.as_mut().filter(|held| held.generation() == announcement.generation) {
                    held.remembered = false;
                }
                return Worth::Known;
            }
        }
        // A stolen key must not use up all epochs at once.
        let tomorrow = now.wall_ms.saturating_add(DAY_MS);
        if announcement.generation.epoch > tomorrow {
            // When the date is ahead as well, one of the two clocks is wrong, perhaps ours, and nobody is to blame.
            let ours_is_right = now.wall_ms >= PLAUSIBLE_WALL_MS && announcement.issued_at_ms <= tomorrow;
            return if ours_is_right { Worth::Bad(Misdeed::FutureEpoch) } else { Worth::ClockDiffers };
        }
        // Otherwise a recording from long ago would be believed by a machine that knows nothing yet.
        if self.is_first_sight(announcement) && is_day_off(now, announcement) {
            return Worth::ClockDiffers;
        }
        // Before any byte of the body is asked for.
        if announcement.body_bytes as usize > Summary::BYTES_MAX || announcement.path_count > PATH_COUNT_MAX {
            return Worth::Bad(Misdeed::OversizedAnnouncement);
        }
        let accepted = Acceptance { wall_ms: now.wall_ms, expires: now.moment + lifetime_ms(announcement) };
        // Its lifetime runs from now on by our own clock: no date of the sender decides how long we use it.
        self.newest = Some(Newest { envelope: Arc::clone(envelope), accepted: Some(accepted) });
        Worth::News
    }

    /// When the announced body is the one held, takes it over without a pull: only its lifetime is new.
    pub(crate) fn adopt(&mut self, now: Moment, lookups: u64) -> bool {
        let (Some(newest), Some(held)) = (&self.newest, &mut self.held) else { return false };
        let (new, old) = (newest.announcement(), held.envelope.announcement());
        // A floor was only read back, and nobody has said in this run that it still holds.
        let Some(accepted) = newest.accepted else { return false };
        if new.body_digest != old.body_digest || new.path_count != old.path_count || new.is_goodbye() {
            return false;
        }
        // A new epoch is another filter, so false hits of the old one are forgiven.
        if new.generation.epoch != old.generation.epoch {
            self.conduct.on_new_epoch(now, lookups);
        }
        held.envelope = Arc::clone(&newest.envelope);
        held.accepted = accepted;
        held.remembered = false;
        true
    }

    /// Notes a body whose filter is in the table. Returns whether the owner is now at other addresses.
    pub(super) fn hold(&mut self, held: HeldBody, addresses: &[SocketAddr]) -> bool {
        self.undelivered = None;
        self.audience = Arc::clone(&held.audience);
        self.held = Some(held);
        let has_moved = self.addresses != addresses;
        self.addresses = addresses.to_vec();
        has_moved
    }

    /// Notes that the body held was kept over a restart. `newest` is its announcement, unless the owner has announced
    /// something newer.
    pub(super) fn on_restored(&mut self, newest: Option<Newest>, audience_before: Arc<[AudienceDigest]>) {
        if let Some(held) = &mut self.held {
            held.remembered = true;
        }
        match newest {
            // This is accepted now, so hearing it again does not start its lifetime anew.
            Some(newest) => self.newest = Some(newest),
            // The owner may have removed a peer from its audience since: do not tell that peer more because of this older
            // body.
            None => self.audience = audience_before,
        }
    }

    /// Notes that this peer itself has seen what we hold of it, and had nothing newer than what we know now.
    pub(crate) fn on_compared(&mut self) {
        let newest = self.newest.as_ref().map(|newest| newest.announcement().generation);
        if let Some(held) = self.held.as_mut().filter(|held| Some(held.generation()) == newest) {
            held.remembered = false;
        }
    }

    pub(super) fn drop_body(&mut self) {
        self.held = None;
    }

    /// The body that is held, whose filter has these bits, and its `seq`.
    pub(super) fn assemble_body(&self, filter_bytes: Vec<u8>) -> Option<(u64, Summary)> {
        let held = self.held.as_ref()?;
        let (items, audience) = (held.envelope.announcement().path_count, held.audience.to_vec());
        let addresses = self.addresses.clone();
        Some((held.generation().seq, Summary { hash_id: HASH_ID_V1, items, audience, addresses, filter_bytes }))
    }

    /// Notes what the peer itself calls its newest announcement; `None` when the connection on which it did is gone.
    pub(crate) fn set_claimed(&mut self, generation: Option<Generation>) {
        self.claimed = generation;
    }

    /// Notes that the body of this generation is not usable, so that it is not pulled again.
    pub(crate) fn refuse(&mut self, generation: Generation) {
        self.refused = Some(generation);
    }

    /// Notes that the owner did not have its own body of this generation. Returns whether it had claimed to, and whether it
    /// has failed to deliver for so long, whatever it announced, that it is to be blamed.
    pub(crate) fn on_absent(&mut self, now: Moment, generation: Generation) -> (bool, bool) {
        // It has restarted and still reads its store. What it announced before, it will announce anew.
        if self.claimed.is_none() {
            return (false, false);
        }
        let (since, times) = self.undelivered.get_or_insert((now, 0));
        *times += 1;
        let is_overdue = *times >= UNDELIVERED_MAX && now.since(*since) >= UNDELIVERED_MS;
        if is_overdue {
            self.undelivered = None;
        }
        (self.claimed == Some(generation), is_overdue)
    }

    pub(crate) fn set_software(&mut self, software: String) {
        self.software = Some(software);
    }

    /// Notes the peer's store directory if it is not ours. Returns what was noted before.
    pub(crate) fn set_store_dir_differs(&mut self, differs: Option<String>) -> Option<String> {
        std::mem::replace(&mut self.store_dir_differs, differs)
    }

    /// The announcement whose body should be pulled now, if any.
    pub(crate) fn wanted(&self, now: Moment) -> Option<&Newest> {
        let newest = self.newest.as_ref()?;
        let generation = newest.announcement().generation;
        let unheld = self.held.as_ref().is_none_or(|held| held.generation() < generation);
        let alive = newest.expires().is_some_and(|expires| now < expires) && !newest.announcement().is_goodbye();
        let usable = self.refused != Some(generation) && self.is_useful();
        (unheld && alive && usable).then_some(newest)
    }

    /// What `status` shows of this peer.
    pub(crate) fn view(&self, peer: PeerId, connected: bool) -> PeerView {
        PeerView {
            peer,
            connected,
            software: self.software.clone(),
            store_dir_differs: self.store_dir_differs.clone(),
            summary: self.held.as_ref().map(|held| SummaryView {
                generation: held.generation(),
                paths: held.envelope.announcement().path_count,
                filter_bits: held.class.bits(),
                issued_at_ms: held.envelope.announcement().issued_at_ms,
                expires: held.accepted.expires,
                accepted_ms: held.accepted.wall_ms,
                remembered: held.remembered,
            }),
            announced: self.newest.as_ref().map(|newest| newest.announcement().generation),
            addresses: self.addresses.clone(),
            held_hits: self.conduct.held_hits,
            false_hits: self.conduct.false_hits,
            demoted_until: self.conduct.demoted,
            set_aside_until: self.conduct.set_aside,
            misdeeds: self.conduct.misdeeds,
            last_misdeed: self.conduct.last_misdeed,
        }
    }
}

/// The signer that an envelope names; its signature is not verified. A PeerId is 6 fixed bytes and the Ed25519 key.
pub(crate) fn claimed_signer(envelope: &[u8]) -> Option<PeerId> {
    let key = envelope.get(1..33)?;
    PeerId::from_bytes(&[&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20], key].concat()).ok()
}
