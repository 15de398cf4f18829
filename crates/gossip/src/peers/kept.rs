//! Summaries over a restart: what is kept of a summary, and which checks it must pass to be used again.
//!
//! Nothing here goes through [`crate::Output::Persist`]: a body has up to 2 MB and nothing depends on it, so the caller
//! decides how often it writes one.

use super::body::Flaw;
use super::entry::{Acceptance, Entry, Newest, lifetime_ms};
use crate::publication::DAY_MS;
use libp2p_identity::PeerId;
use narmesh_machine::Now;
use narmesh_protocol::{Announcement, Envelope, Summary};
use std::sync::Arc;

/// A peer's summary as it is kept over a restart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptSummary {
    /// The signed announcement that proves the body.
    pub envelope: Vec<u8>,
    /// When that was first accepted by our wall clock, milliseconds since 1970; the lifetime is counted from there.
    pub accepted_ms: u64,
    /// The encoded [`Summary`].
    pub body: Vec<u8>,
}

/// Why a kept summary is not used. The caller may delete it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unfit {
    /// Its owner is not on the allowlist.
    #[error("its owner is not on the allowlist")]
    NotTrusted,
    /// Its envelope does not verify, or its owner did not sign it.
    #[error("its announcement is not signed by its owner")]
    Forged,
    /// Its body is not the one that was announced.
    #[error("its body is not the announced one")]
    OtherBody,
    /// Its owner has said goodbye since.
    #[error("its owner said goodbye")]
    Departed,
    /// This core has already heard of this owner in this run.
    #[error("its owner was heard since")]
    Heard,
    /// Its lifetime has ended.
    #[error("its lifetime is over")]
    Expired,
    /// It was accepted, or begins an epoch, more than a day ahead of our clock, so its age is unknown.
    #[error("it is dated more than a day ahead of our clock")]
    Ahead,
    /// Its body is not usable.
    #[error("{0}")]
    Flawed(#[from] Flaw),
}

impl KeptSummary {
    /// Checks what proves this summary against what is known of its owner. `envelope` is [`Self::envelope`], opened. Returns
    /// the announcement that the body is to be held under, and whether its owner has announced nothing newer.
    pub(super) fn check_proof(
        &self,
        now: Now,
        owner: &PeerId,
        entry: &Entry,
        envelope: Arc<Envelope>,
    ) -> Result<(Newest, bool), Unfit> {
        if envelope.peer() != *owner || envelope.announcement().is_goodbye() {
            return Err(Unfit::Forged);
        }
        let newest = entry.newest();
        // The same body was announced again since. Then this is still the newest body.
        let renewed = newest.map(|newest| &newest.envelope).filter(|newest| is_renewal(&envelope, newest));
        let envelope = renewed.map_or(envelope, Arc::clone);
        let announcement = envelope.announcement();
        let is_newest = newest.is_none_or(|newest| newest.announcement().generation <= announcement.generation);
        // It was persisted after the summary. Such an owner is no candidate before it is heard again.
        if newest.is_some_and(|newest| newest.announcement().is_goodbye()) {
            return Err(Unfit::Departed);
        }
        // What was heard in this run is newer than what the disk remembers.
        if entry.held().is_some() || newest.is_some_and(|newest| newest.accepted.is_some()) {
            return Err(Unfit::Heard);
        }
        if newest.is_some_and(|newest| is_equivocation(newest.announcement(), announcement)) {
            return Err(Unfit::Forged);
        }
        let accepted = self.acceptance(now, announcement)?;
        // Last, because it costs the most. The disk may have changed what it kept.
        if Summary::digest(&self.body) != announcement.body_digest {
            return Err(Unfit::OtherBody);
        }
        Ok((Newest { envelope, accepted: Some(accepted) }, is_newest))
    }

    /// When the rest of the lifetime that began at `accepted_ms` ends. A clock that was set back grants at
    /// most one whole lifetime.
    fn acceptance(&self, now: Now, announcement: &Announcement) -> Result<Acceptance, Unfit> {
        let tomorrow = now.wall_ms.saturating_add(DAY_MS);
        // Our clock was ahead when this was written; how much of the lifetime is left cannot be told.
        if self.accepted_ms > tomorrow || announcement.generation.epoch > tomorrow {
            return Err(Unfit::Ahead);
        }
        // After a clock was set back, the time of acceptance may lie in the future.
        let wall_ms = self.accepted_ms.min(now.wall_ms);
        let left_ms = lifetime_ms(announcement).saturating_sub(now.wall_ms - wall_ms);
        if left_ms == 0 {
            return Err(Unfit::Expired);
        }
        Ok(Acceptance { wall_ms, expires: now.moment + left_ms })
    }
}

/// Whether `after` is a later announcement of the same body as `before`.
fn is_renewal(before: &Envelope, after: &Envelope) -> bool {
    let (before, after) = (before.announcement(), after.announcement());
    before.generation < after.generation
        && before.body_digest == after.body_digest
        && before.path_count == after.path_count
}

/// Whether these are two different announcements under one generation.
fn is_equivocation(one: &Announcement, other: &Announcement) -> bool {
    one.generation == other.generation && one != other
}
