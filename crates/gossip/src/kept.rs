//! Summaries over a restart: what is written down of one, and what must be true of it to be used again.
//!
//! Nothing here goes through [`crate::Output::Persist`]: a body has up to 2 MB and nothing depends on it, so the caller decides
//! how often it writes one.

use crate::directory::{Acceptance, Newest, lifetime_ms};
use crate::gossip::Gossip;
use crate::mutation::mutant;
use crate::publication::DAY_MS;
use crate::time::Now;
use libp2p_identity::PeerId;
use narmesh_protocol::{Announcement, Envelope, Summary};
use std::sync::Arc;

/// A peer's summary as it is kept over a restart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptSummary {
    /// The signed announcement that proves the body.
    pub envelope: Vec<u8>,
    /// When it was first accepted, by our wall clock, milliseconds since 1970: its lifetime runs from there.
    pub accepted_ms: u64,
    /// The encoded [`Summary`].
    pub body: Vec<u8>,
}

/// Why a signed body is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Flaw {
    /// It breaks a bound or an order.
    #[error("it breaks its bounds")]
    Bounds,
    /// Its filter claims nearly everything.
    #[error("its filter is too dense")]
    Dense,
    /// It holds another number of paths than announced.
    #[error("it has another path count than announced")]
    PathCount,
    /// This node is not in its audience.
    #[error("it is not meant for this node")]
    ForeignAudience,
    /// Its filter has an index function of tomorrow.
    #[error("its hash id {hash_id} is unknown")]
    UnknownHashId {
        /// The hash id.
        hash_id: u32,
    },
}

/// Why a kept summary is not used; it is worth nothing any more.
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
    /// Its owner said goodbye since.
    #[error("its owner said goodbye")]
    Departed,
    /// Something of this owner was heard in this run already.
    #[error("its owner was heard since")]
    Heard,
    /// Its lifetime is over.
    #[error("its lifetime is over")]
    Expired,
    /// It was accepted, or begins an epoch, more than a day ahead of our clock: nobody knows how old it is.
    #[error("it is dated more than a day ahead of our clock")]
    Ahead,
    /// Its body is not to be used.
    #[error("{0}")]
    Flawed(#[from] Flaw),
}

impl Gossip {
    /// What proves the summary that we hold of this peer, and when that was first accepted (wall clock, milliseconds since 1970).
    /// `None` when there is none to keep.
    pub fn held_proof(&self, owner: &PeerId) -> Option<(&Arc<Envelope>, u64)> {
        let held = self.directory.get(owner)?.held.as_ref()?;
        Some((&held.envelope, held.accepted.wall_ms))
    }

    /// The summary that we hold of this peer, to be kept over a restart. Puts up to 2 MB together; of a peer that shares a matrix
    /// with many others that takes a few milliseconds.
    pub fn kept(&self, owner: &PeerId) -> Option<KeptSummary> {
        let (envelope, accepted_ms) = self.held_proof(owner)?;
        let body = self.held_body(owner)?.1.encode().ok()?;
        Some(KeptSummary { envelope: envelope.as_bytes().to_vec(), accepted_ms, body })
    }

    /// Takes back what [`Gossip::kept`] gave an earlier run, checked as if it had just been pulled; its owner is then a candidate
    /// for what is left of the lifetime. To be called after the first [`crate::Input::Allowlist`]. Outputs may follow.
    pub fn restore(&mut self, now: Now, owner: PeerId, kept: &KeptSummary) -> Result<(), Unfit> {
        self.now = Now { moment: now.moment.max(self.now.moment), wall_ms: now.wall_ms };
        let entry = self.directory.get(&owner).ok_or(Unfit::NotTrusted)?;
        let envelope = entry.opened(&kept.envelope, self.open_envelope).map_err(|_| Unfit::Forged)?;
        if envelope.peer() != owner || envelope.announcement().is_goodbye() {
            return Err(Unfit::Forged);
        }
        let is_excluded = entry.standing.is_excluded();
        // Of a later body than this one, if a later one is known.
        let audience_since = entry.audience.clone();
        let newest = entry.newest.as_ref();
        // Announced again since, with nothing changed: then this is the newest body.
        let renewed = newest.map(|newest| &newest.envelope).filter(|newest| is_renewal(&envelope, newest));
        let envelope = renewed.map_or(envelope, Arc::clone);
        let announcement = *envelope.announcement();
        let is_newest = newest.is_none_or(|newest| newest.announcement().generation <= announcement.generation);
        if newest.is_some_and(|newest| newest.announcement().is_goodbye()) {
            return Err(Unfit::Departed);
        }
        if entry.held.is_some() || newest.is_some_and(|newest| newest.accepted.is_some()) {
            return Err(Unfit::Heard);
        }
        if newest.is_some_and(|newest| is_equivocation(newest.announcement(), &announcement)) {
            return Err(Unfit::Forged);
        }
        let accepted = self.acceptance(kept.accepted_ms, &announcement)?;
        if Summary::digest(&kept.body) != announcement.body_digest && !mutant!(UnsignedBody) {
            return Err(Unfit::OtherBody);
        }
        let (filter, summary) = self.usable(&announcement, &kept.body)?;
        let target = Newest { envelope, accepted: Some(accepted) };
        let audience = self.directory.shared_audience(summary.audience.clone());
        self.table.install_plain(owner, &filter, is_excluded);
        let before = self.directory.get(&owner).map(|entry| Arc::clone(&entry.audience));
        self.hold(owner, &target, &filter, summary, audience);
        if let Some(entry) = self.directory.get_mut(&owner) {
            if let Some(before) = before.filter(|_| !is_newest) {
                // The owner may have thrown somebody out since: nobody is told more of it for what it said earlier.
                entry.audience = before;
            }
            if let Some(held) = &mut entry.held {
                held.remembered = true;
            }
            if !is_newest && !audience_since.is_empty() {
                entry.audience = audience_since;
            }
            if is_newest {
                // More than a floor: to hear it again renews nothing.
                entry.newest = Some(target);
            }
        }
        Ok(())
    }

    /// What is left of the lifetime that began then. A clock that went back gives no more than the whole of it.
    fn acceptance(&self, accepted_ms: u64, announcement: &Announcement) -> Result<Acceptance, Unfit> {
        let tomorrow = self.now.wall_ms.saturating_add(DAY_MS);
        if accepted_ms > tomorrow || announcement.generation.epoch > tomorrow {
            return Err(Unfit::Ahead);
        }
        let wall_ms = accepted_ms.min(self.now.wall_ms);
        let left_ms = lifetime_ms(announcement).saturating_sub(self.now.wall_ms - wall_ms);
        if left_ms == 0 {
            return Err(Unfit::Expired);
        }
        Ok(Acceptance { wall_ms, expires: self.now.moment + left_ms })
    }
}

/// A later announcement of the same body.
fn is_renewal(before: &Envelope, after: &Envelope) -> bool {
    let (before, after) = (before.announcement(), after.announcement());
    before.generation < after.generation
        && before.body_digest == after.body_digest
        && before.path_count == after.path_count
}

/// Two announcements under one generation.
fn is_equivocation(one: &Announcement, other: &Announcement) -> bool {
    one.generation == other.generation && one != other
}
