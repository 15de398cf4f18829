//! The walk of a NAR: what was read ahead, else our own store, else a [`transfer`] from sources, which a [`delivery`] brings to
//! Nix.
//!
//! A NAR is told as gone only when every source has said no, was proven wrong or is dead. Until then Nix is kept waiting
//! ([`keeper`]).

mod ahead;
mod buffers;
mod checkpoints;
mod delivery;
mod keeper;
mod own;
mod roster;
mod runner;
mod spoilt;
#[cfg(test)]
mod tests;
mod transfer;

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use narmesh_protocol::{ContentAddress, HashPart, NarInfo, NarUrl};
use narmesh_store::Store as _;
use tokio::sync::mpsc;

use self::ahead::NarsAhead;
use self::buffers::Buffers;
use self::checkpoints::Checkpoints;
use self::delivery::{Delivery, Ended, read_whole};
use self::keeper::{CHUNKS_AHEAD, Keeper};
use self::spoilt::Spoilt;
use self::transfer::{Step, Transfer, TransferSettings};
use crate::decisions::{Decision, Decisions};
use crate::source::{Observation, SourceId, Sources};
use crate::{Resolver, ResolverCounters};

pub(crate) use self::spoilt::{Since, insert};

/// A NAR up to this size is verified as a whole before its first byte, so that another holder is invisible to Nix.
const SMALL_NAR_BYTES_MAX: u64 = 8 << 20;
/// What is resumed before this byte is read from the first one, and verified: no checkpoint is nearer.
const CHECKED_FROM_BYTES: u64 = checkpoints::EVERY_BYTES;
/// A content-addressed path without signature is hashed before its narinfo is given: only up to this size.
const CONTENTS_CHECK_BYTES_MAX: u64 = 256 << 20;

/// The body of a NAR cannot be finished: it ends short, and Nix asks for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body of a NAR cannot be finished")]
pub struct BodyAborted;

/// A NAR on its way: yields exactly the bytes from the first one asked for to the end, or [`BodyAborted`] as its last item.
pub type NarBody = Pin<Box<dyn Stream<Item = Result<Bytes, BodyAborted>> + Send>>;

/// When bodies between peers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compress {
    /// On lines slower than the compression.
    Auto,
    /// Whenever both sides can.
    Always,
    /// Never.
    Never,
}

/// What every transfer needs.
#[derive(Debug)]
pub(crate) struct NarContext {
    pub(crate) sources: Arc<dyn Sources>,
    pub(crate) decisions: Arc<Decisions>,
    pub(crate) counters: ResolverCounters,
    spoilt: Spoilt,
    checkpoints: Checkpoints,
    buffers: Buffers,
    limits: HoldLimits,
}

/// What is held back before Nix sees it, bytes.
#[derive(Clone, Copy, Debug)]
struct HoldLimits {
    /// A NAR up to this size is held back whole.
    small: u64,
    /// The same for a larger one, if several sources claim it and memory for it is free at once.
    saved: u64,
    /// What one transfer that streams holds in memory: the chunk held back, those waiting for Nix, and those being read.
    streamed: u64,
}

impl Default for HoldLimits {
    fn default() -> Self {
        Self { small: SMALL_NAR_BYTES_MAX, saved: 64 << 20, streamed: 2 << 20 }
    }
}

impl NarContext {
    /// Who claims the path of this NAR and did not lie about it, best first.
    fn candidates(&self, url: &NarUrl) -> Vec<SourceId> {
        let liars = self.spoilt.liars(&url.nar_hash);
        let candidates = self.sources.candidates(&url.hash_part);
        candidates.sources().filter(|source| !liars.contains(source)).collect()
    }

    /// Whether anything came lately from those that could send this NAR.
    fn moves(&self, url: &NarUrl, lately: Duration) -> bool {
        let came = |source: &SourceId| self.sources.line(source).last_received.is_some_and(|at| at.elapsed() < lately);
        self.candidates(url).iter().any(came)
    }
}

/// Everything about NARs.
#[derive(Debug)]
pub(crate) struct Nars {
    context: Arc<NarContext>,
    ahead: NarsAhead,
}

impl Nars {
    pub(crate) fn new(
        sources: Arc<dyn Sources>,
        decisions: Arc<Decisions>,
        counters: ResolverCounters,
        buffer_bytes_max: u64,
    ) -> Self {
        let context = NarContext {
            sources,
            decisions,
            counters,
            spoilt: Spoilt::default(),
            checkpoints: Checkpoints::default(),
            buffers: Buffers::new(buffer_bytes_max),
            limits: HoldLimits::default(),
        };
        Self { context: Arc::new(context), ahead: NarsAhead::default() }
    }

    /// Nix was given the narinfo of this path, and may ask for its NAR.
    pub(crate) fn expect(&self, part: HashPart) {
        self.ahead.expect(part);
    }
}

impl Resolver {
    /// The bytes of a NAR from `first_byte` on, or `None` for a path that is gone. `resumed` says that Nix asked for a range.
    ///
    /// Waits as long as a live source may still send it; a client that must be kept waiting gets the first bytes before that.
    pub async fn nar(self: Arc<Self>, url: NarUrl, first_byte: u64, resumed: bool) -> Option<NarBody> {
        let body = match Arc::clone(&self).nar_admitted(url).await {
            true => self.admitted_nar(url.nar(), first_byte, resumed).await,
            false => None,
        };
        if body.is_none() {
            self.counters.nars_absent.inc();
            self.decisions.note(url.hash_part, Decision::NarGone);
        }
        body
    }

    async fn admitted_nar(self: &Arc<Self>, url: NarUrl, first_byte: u64, resumed: bool) -> Option<NarBody> {
        if first_byte >= url.nar_size || (resumed && self.nars.context.spoilt.is_spoilt(&url.nar_hash)) {
            return None;
        }
        if self.store.contains(&url.hash_part)
            && let Some(body) = self.own_nar(url, first_byte).await
        {
            return Some(body);
        }
        let (client, mut body) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(Arc::clone(self).deliver(url, first_byte, Keeper::new(client, first_byte)));
        let first = body.recv().await?.ok()?;
        let rest = futures::stream::poll_fn(move |context| body.poll_recv(context));
        Some(Box::pin(futures::stream::once(async { Ok(first) }).chain(rest)))
    }

    /// Brings a NAR to the client of `keeper`. A task of its own, so that the client can be kept waiting from the first moment.
    async fn deliver(self: Arc<Self>, url: NarUrl, first_byte: u64, mut keeper: Keeper) {
        if first_byte == 0
            && let Some(reading) = self.take_ahead(url)
        {
            let Ok(nar) = keeper.keep(reading).await else { return };
            if let Some(nar) = nar {
                self.counters.ahead_used.inc();
                if keeper.send(0, nar).await.is_ok() {
                    self.counters.nars_complete.inc();
                }
                return;
            }
        }
        let Ok(holders) = keeper.keep(self.holders(&url)).await else { return };
        let transfer = if first_byte < CHECKED_FROM_BYTES || url.nar_size <= SMALL_NAR_BYTES_MAX {
            Transfer::new(self.nar_context(), self.transfer_settings(), url, holders)
        } else {
            self.resumed_transfer(url, first_byte, holders)
        };
        let context = self.nar_context();
        if (Delivery { context, url, transfer, keeper }).run().await == Ended::Gone {
            self.forget(url.hash_part);
        }
    }

    /// The rest of a NAR of which Nix has the beginning. It costs the rest, not the whole: what is known of the beginning is a
    /// verifier, if this process sent it. If the process is another, Nix alone verifies the whole, as it always does.
    fn resumed_transfer(&self, url: NarUrl, first_byte: u64, holders: Vec<SourceId>) -> Transfer {
        let known = self.nars.context.checkpoints.before(&url.nar_hash, first_byte);
        let offset = known.as_ref().map_or(first_byte, |(verifier, _)| verifier.fed_bytes());
        Transfer::resumed(self.nar_context(), self.transfer_settings(), url, holders, offset, known)
    }

    /// A small NAR that Nix has not asked for yet: only if memory for it is free at once. `None` when it was not read.
    async fn nar_in_advance(self: Arc<Self>, url: NarUrl) -> Option<Bytes> {
        let permit = self.nars.context.buffers.try_take(url.nar_size)?;
        let holders = self.holders(&url).await;
        let transfer = Transfer::new(self.nar_context(), self.transfer_settings(), url, holders);
        read_whole(transfer, url, permit).await
    }

    fn nar_context(&self) -> Arc<NarContext> {
        Arc::clone(&self.nars.context)
    }

    fn transfer_settings(&self) -> TransferSettings {
        let settings = self.settings();
        TransferSettings { stall_timeout: settings.stall_timeout, compress: settings.compress }
    }

    /// Who to ask for this NAR: those that confirmed its NarHash, then other candidates; without those that lied about it.
    async fn holders(self: &Arc<Self>, url: &NarUrl) -> Vec<SourceId> {
        let mut sources = self.nars.context.candidates(url);
        let confirmed: HashSet<SourceId> = match Arc::clone(self).remembered(url.hash_part).await {
            Some(answer) if answer.info.nar_hash == url.nar_hash => answer.holders().collect(),
            Some(_) | None => HashSet::new(),
        };
        sources.sort_by_key(|source| !confirmed.contains(source));
        sources
    }

    /// Whether the NAR that `source` sends is what `info` says and hashes to the content address.
    pub(crate) async fn contents_match(
        self: &Arc<Self>,
        source: SourceId,
        info: &NarInfo,
        address: &ContentAddress,
    ) -> bool {
        if info.nar_size > CONTENTS_CHECK_BYTES_MAX {
            return false;
        }
        let hash_part = info.path.hash_part();
        let url = NarUrl::new(hash_part, info.nar_hash, info.nar_size);
        let self_reference = info.references.contains(&info.path).then_some(&hash_part);
        let mut contents = address.verifier(self_reference);
        let mut transfer = Transfer::new(self.nar_context(), self.transfer_settings(), url, [source]);
        transfer.is_of_one_source();
        loop {
            let mut chunk = Vec::new();
            let step = transfer.step(&mut chunk).await;
            contents.feed(&chunk);
            match step {
                Step::Data => {}
                Step::Verified => {
                    let matches = contents.matches();
                    if !matches {
                        self.sources.observe(source, Observation::FalseNarInfo);
                    }
                    return matches;
                }
                Step::BegunAnew | Step::Gone => return false,
            }
        }
    }

    /// Notes that a body of our own store ends so that Nix builds or goes on: short, and 404 for what it asks next.
    fn cut_short(&self, url: NarUrl, at: u64) -> BodyAborted {
        self.nars.context.spoilt.spoil(url.nar_hash);
        self.counters.nars_aborted.inc();
        self.decisions.note(url.hash_part, Decision::NarCutShort(at));
        BodyAborted
    }
}
