//! Begins transfers of NARs, each with the sources that may send it.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use narmesh_protocol::NarUrl;
use narmesh_protocol::wire::SMALL_NAR_BYTES_MAX;
use narmesh_store::{GiveAway, PartialCopies, PartialWriter};

use super::delivery::read_whole;
use super::transfer::Transfer;
use super::{CHECKED_FROM_BYTES, NarContext};
use crate::narinfo::NarInfos;
use crate::request_log::Origins;
use crate::shared::Shared;
use crate::source::SourceId;

/// A smaller NAR of an upstream cache is fetched without asking who else does: that would take as long.
const MEETING_MIN: u64 = 64 << 10;

/// Begins transfers.
#[derive(Debug)]
pub(super) struct Transfers {
    shared: Arc<Shared>,
    narinfos: Arc<NarInfos>,
    context: Arc<NarContext>,
    partial_copies: Option<PartialCopies>,
}

impl Transfers {
    pub(super) fn new(
        shared: Arc<Shared>,
        narinfos: Arc<NarInfos>,
        context: Arc<NarContext>,
        partial_copies: Option<PartialCopies>,
    ) -> Self {
        Self { shared, narinfos, context, partial_copies }
    }

    /// Begins to transfer a NAR from its first byte, together with others who want it.
    pub(super) async fn begin_together(&self, url: NarUrl, holders: Vec<SourceId>) -> Transfer {
        let is_upstream = |source: &SourceId| source.peer().is_none();
        let comes_from_caches = !holders.is_empty() && holders.iter().all(is_upstream);
        let meets = comes_from_caches && url.nar_size >= MEETING_MIN && self.context.sources.has_neighbours();
        let is_chained = !comes_from_caches && url.nar_size > SMALL_NAR_BYTES_MAX;
        let passes_on = meets || (is_chained && self.context.sources.has_listeners());
        let given = if meets { GiveAway::AsItComes } else { GiveAway::Proven };
        let partial = if passes_on { self.begin_partial(&url, given).await } else { None };
        let place = if meets { self.context.sources.meeting_place(&url, partial.is_some()) } else { None };
        let mut transfer = self.begin(url, 0, holders);
        if let Some(place) = place {
            transfer.meet(place);
        }
        if let Some(partial) = partial {
            transfer.pass_on(partial);
        }
        transfer
    }

    async fn begin_partial(&self, url: &NarUrl, given: GiveAway) -> Option<PartialWriter> {
        let copies = self.partial_copies.clone()?;
        let answer = self.narinfos.recall(url.hash_part).await.filter(|answer| answer.info.nar_hash == url.nar_hash)?;
        tokio::task::spawn_blocking(move || copies.begin(&answer.info, given)).await.ok().flatten()
    }

    /// The sources to ask for this NAR: first those that confirmed its NarHash, then the other candidates. Those that
    /// lied about it are left out.
    pub(super) async fn find_holders(&self, url: &NarUrl) -> Vec<SourceId> {
        let mut sources = self.context.candidates(url);
        let confirmed: HashSet<SourceId> = match self.narinfos.recall(url.hash_part).await {
            Some(answer) if answer.info.nar_hash == url.nar_hash => answer.holders().collect(),
            Some(_) | None => HashSet::new(),
        };
        sources.sort_by_key(|source| !confirmed.contains(source));
        sources
    }

    /// Begins to transfer a NAR, from `first_byte` or some byte before it.
    pub(super) fn begin(&self, url: NarUrl, first_byte: u64, holders: Vec<SourceId>) -> Transfer {
        let (context, settings) = (Arc::clone(&self.context), self.shared.settings().transfer);
        if first_byte < CHECKED_FROM_BYTES || url.nar_size <= SMALL_NAR_BYTES_MAX {
            return Transfer::new(context, settings, url, holders);
        }
        // Only the rest is read, not the whole: if this process sent the beginning, a verifier of it was kept. Without
        // one, for example after a restart, only Nix verifies the whole, as it always does.
        let known = context.checkpoints.last_before(&url.nar_hash, first_byte);
        let offset = known.as_ref().map_or(first_byte, |(verifier, _)| verifier.fed_bytes());
        Transfer::resume(context, settings, url, holders, offset, known)
    }

    /// Reads a small NAR that Nix has not asked for yet, if memory for it is free at once. `None` if it was not read.
    pub(super) async fn read_in_advance(self: Arc<Self>, url: NarUrl, origins: Arc<Origins>) -> Option<Bytes> {
        let permit = self.context.buffers.try_take(url.nar_size)?;
        let holders = self.find_holders(&url).await;
        let mut transfer = self.begin_together(url, holders).await;
        transfer.note_origins(origins);
        read_whole(transfer, url, permit).await
    }
}
