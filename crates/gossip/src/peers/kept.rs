//! Summaries over a restart: what is kept of a summary, and which checks it must pass to be used again.
//!
//! Nothing here goes through [`crate::Output::Persist`]: a body has up to 2 MB and nothing depends on it, so the caller
//! decides how often it writes one.

use crate::gossip::Gossip;
use crate::mutation::mutant;
use crate::peers::directory::{Acceptance, Newest, lifetime_ms};
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
    /// When that was first accepted by our wall clock, milliseconds since 1970; the lifetime is counted from there.
    pub accepted_ms: u64,
    /// The encoded [`Summary`].
    pub body: Vec<u8>,
}

/// Why a body is not used although its owner signed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Flaw {
    /// It breaks a bound, or a list in it is not in order.
    #[error("it breaks its bounds")]
    Bounds,
    /// Its filter claims nearly every path.
    #[error("its filter is too dense")]
    Dense,
    /// It holds another number of paths than its announcement says.
    #[error("it has another path count than announced")]
    PathCount,
    /// This node is not in its audience.
    #[error("it is not meant for this node")]
    ForeignAudience,
    /// Its filter uses an index function that we do not know yet.
    #[error("its hash id {hash_id} is unknown")]
    UnknownHashId {
        /// The unknown hash id.
        hash_id: u32,
    },
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

impl Gossip {
    /// The announcement that proves the summary that we hold of this peer, and when it was first accepted (wall clock,
    /// milliseconds since 1970). `None` when we hold none.
    pub fn held_proof(&self, owner: &PeerId) -> Option<(&Arc<Envelope>, u64)> {
        let held = self.directory.get(owner)?.held.as_ref()?;
        Some((&held.envelope, held.accepted.wall_ms))
    }

    /// The summary that we hold of this peer, to be kept over a restart. This assembles up to 2 MB; for a peer that shares
    /// a matrix with many others it takes a few milliseconds.
    pub fn assemble_kept_summary(&self, owner: &PeerId) -> Option<KeptSummary> {
        let (envelope, accepted_ms) = self.held_proof(owner)?;
        let body = self.assemble_held_body(owner)?.1.encode().ok()?;
        Some(KeptSummary { envelope: envelope.as_bytes().to_vec(), accepted_ms, body })
    }

    /// Takes back what [`Gossip::assemble_kept_summary`] gave in an earlier run, with all checks of a body that was just
    /// pulled. Its owner is then a candidate for the rest of the lifetime. Call this after the first
    /// [`crate::Input::Allowlist`], and poll for outputs after it.
    pub fn restore(&mut self, now: Now, owner: PeerId, kept: &KeptSummary) -> Result<(), Unfit> {
        self.now = Now { moment: now.moment.max(self.now.moment), wall_ms: now.wall_ms };
        let entry = self.directory.get(&owner).ok_or(Unfit::NotTrusted)?;
        let envelope = entry.open_envelope(&kept.envelope, self.open_envelope).map_err(|_| Unfit::Forged)?;
        if envelope.peer() != owner || envelope.announcement().is_goodbye() {
            return Err(Unfit::Forged);
        }
        let rank = entry.conduct.rank();
        let newest = entry.newest.as_ref();
        // The same body was announced again since. Then this is still the newest body.
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
        let (filter, summary) = self.decode_usable(&announcement, &kept.body)?;
        let target = Newest { envelope, accepted: Some(accepted) };
        let audience = self.directory.intern_audience(summary.audience.clone());
        self.table.install_plain(owner, &filter, rank);
        let before = self.directory.get(&owner).map(|entry| Arc::clone(&entry.audience));
        self.hold(owner, &target, &filter, summary, audience);
        if let Some(entry) = self.directory.get_mut(&owner) {
            if let Some(before) = before.filter(|_| !is_newest) {
                // The owner may have removed a peer from its audience since: do not tell that peer more because of this
                // older body.
                entry.audience = before;
            }
            if let Some(held) = &mut entry.held {
                held.remembered = true;
            }
            if is_newest {
                // This is accepted now, so hearing it again does not start its lifetime anew.
                entry.newest = Some(target);
            }
        }
        Ok(())
    }

    /// When the rest of the lifetime that began at `accepted_ms` ends. A clock that was set back grants at
    /// most one whole lifetime.
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
