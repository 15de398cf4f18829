//! The walk of a NAR: our own store, then what was read ahead, then a [`transfer`] from sources, which a [`delivery`]
//! brings to Nix. [`Nars`] is the walk; [`own`] reads NARs of our own store, [`ahead`] reads NARs before Nix asks for
//! them, [`transfers`] begins transfers, and [`contents`] reads a NAR only to hash it.
//!
//! A NAR is reported as gone only when every source has said no, was proven wrong or is dead. Until then Nix is kept
//! waiting ([`waiting_client`]).

mod ahead;
mod buffers;
mod checkpoints;
mod contents;
mod delivery;
mod endurance;
mod nar_faults;
mod own;
mod parallel;
mod proofs;
mod race;
mod recent;
mod roster;
mod runner;
mod shortage;
#[cfg(test)]
mod tests;
mod transfer;
mod transfers;
mod waiting_client;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use narmesh_protocol::wire::SMALL_NAR_BYTES_MAX;
use narmesh_protocol::{HashPart, NarUrl};
use narmesh_store::{Offer, PartialCopies};
use tokio::sync::mpsc;

use self::ahead::NarsAhead;
use self::buffers::Buffers;
use self::checkpoints::Checkpoints;
use self::delivery::{Delivery, Ended};
use self::nar_faults::NarFaults;
use self::own::OwnNars;
use self::shortage::Shortage;
use self::transfers::Transfers;
use self::waiting_client::{CHUNKS_AHEAD, WaitingClient};
use crate::ResolverCounters;
use crate::lookup_log::{LookupEvent, LookupLog};
use crate::narinfo::NarInfos;
use crate::own_reads::NotNow;
use crate::request_log::{NarOutcome, Origins, RequestLog};
use crate::shared::Shared;
use crate::source::{SourceId, Sources};
use crate::turns::FindUser;

pub(crate) use self::contents::ContentsCheck;
pub(crate) use self::recent::Recent;
pub use self::transfer::TransferSettings;

/// A NAR resumed before this byte is read and verified from its beginning: there is no checkpoint before it.
const CHECKED_FROM_BYTES: u64 = checkpoints::EVERY_BYTES;

/// The body of a NAR cannot be finished. It ends short, and Nix asks for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body of a NAR cannot be finished")]
pub struct BodyAborted;

/// Why there is no body of a NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoNar {
    /// Nobody has it (any more), or it may not be given.
    #[error("the NAR is gone")]
    Gone,
    /// Who holds it is there, and could not be asked: whoever asks again may get it.
    #[error("the NAR cannot be had now")]
    NotNow,
}

/// The body of a NAR: yields exactly the bytes from the first one asked for to the end, or [`BodyAborted`] as its last
/// item.
pub type NarBody = Pin<Box<dyn Stream<Item = Result<Bytes, BodyAborted>> + Send>>;

/// When bodies between peers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compress {
    /// On lines that are slower than the compression.
    Auto,
    /// Whenever both sides can.
    Always,
    /// Never.
    Never,
}

/// What all transfers share.
#[derive(Debug)]
pub(crate) struct NarContext {
    pub(crate) sources: Arc<dyn Sources>,
    pub(crate) lookup_log: Arc<LookupLog>,
    pub(crate) request_log: Arc<RequestLog>,
    pub(crate) counters: ResolverCounters,
    nar_faults: NarFaults,
    checkpoints: Checkpoints,
    buffers: Buffers,
    /// The buffers of tiny NARs. They are apart, so that a tiny NAR never waits behind large ones.
    tiny_buffers: Buffers,
    /// The buffers of NARs from our own store. They are apart, so that clients that do not read them keep no peer's NAR
    /// waiting.
    own_buffers: Buffers,
    limits: HoldLimits,
    shortage: Shortage,
}

/// How much of a NAR is held back before Nix sees it, bytes.
#[derive(Clone, Copy, Debug)]
struct HoldLimits {
    /// A NAR up to this size is tiny: it has memory of its own.
    tiny: u64,
    /// A NAR up to this size is held back whole.
    small: u64,
    /// A larger one up to this size is held back whole if several sources claim it.
    saved: u64,
    /// What one streaming transfer holds in memory: the chunk held back, those waiting for Nix, and those being read.
    streamed: u64,
}

impl Default for HoldLimits {
    fn default() -> Self {
        Self { tiny: 256 << 10, small: SMALL_NAR_BYTES_MAX, saved: 64 << 20, streamed: 2 << 20 }
    }
}

impl NarContext {
    /// Bodies from peers hold at most `buffer_bytes_max` in memory, and tiny ones an eighth of that besides. Those of our
    /// own store hold another eighth, and a few bytes more each.
    pub(crate) fn new(shared: &Shared, buffer_bytes_max: u64) -> Self {
        // 16 MiB of 128: enough for two buffers for each of the 25 connections of one Nix, and some more.
        let (eighth_max, limits) = (buffer_bytes_max / 8, HoldLimits::default());
        Self {
            sources: Arc::clone(&shared.sources),
            lookup_log: Arc::clone(&shared.lookup_log),
            request_log: Arc::clone(&shared.request_log),
            counters: shared.counters.clone(),
            nar_faults: NarFaults::default(),
            checkpoints: Checkpoints::default(),
            buffers: Buffers::new(buffer_bytes_max),
            tiny_buffers: Buffers::new(eighth_max),
            own_buffers: Buffers::new(eighth_max),
            limits: HoldLimits { saved: limits.saved.min(buffer_bytes_max), ..limits },
            shortage: Shortage::default(),
        }
    }

    /// The sources that claim the path of this NAR and have not lied about it, best first.
    fn candidates(&self, url: &NarUrl) -> Vec<SourceId> {
        let liars = self.nar_faults.liars(&url.nar_hash);
        let candidates = self.sources.candidates(&url.hash_part);
        candidates.sources().filter(|source| !liars.contains(source)).collect()
    }

    /// Whether anything came in during `lately` from a source that could send this NAR.
    fn has_moved(&self, url: &NarUrl, lately: Duration) -> bool {
        let came = |source: &SourceId| self.sources.line(source).last_received.is_some_and(|at| at.elapsed() < lately);
        self.candidates(url).iter().any(came)
    }
}

/// Answers NAR requests, from our own store or from sources.
#[derive(Debug)]
pub(crate) struct Nars {
    shared: Arc<Shared>,
    narinfos: Arc<NarInfos>,
    context: Arc<NarContext>,
    transfers: Arc<Transfers>,
    own: OwnNars,
    ahead: Arc<NarsAhead>,
}

impl Nars {
    pub(crate) fn new(
        shared: Arc<Shared>,
        narinfos: Arc<NarInfos>,
        context: Arc<NarContext>,
        partial_copies: Option<PartialCopies>,
    ) -> Self {
        let transfers =
            Transfers::new(Arc::clone(&shared), Arc::clone(&narinfos), Arc::clone(&context), partial_copies);
        let transfers = Arc::new(transfers);
        let own = OwnNars::new(Arc::clone(&shared), Arc::clone(&narinfos), Arc::clone(&context));
        let ahead = NarsAhead::new(Arc::clone(&shared), Arc::clone(&narinfos), Arc::clone(&transfers));
        Self { shared, narinfos, context, transfers, own, ahead: Arc::new(ahead) }
    }

    /// Notes that Nix was given the narinfo of this path from a source, and may ask for its NAR.
    pub(crate) fn expect(&self, part: HashPart) {
        self.ahead.expect(part);
    }

    /// The bytes of a NAR from `first_byte` on. `resumed` says that Nix asked for a range.
    pub(crate) async fn bring(
        self: &Arc<Self>,
        url: NarUrl,
        first_byte: u64,
        resumed: bool,
        find_user: FindUser,
    ) -> Result<NarBody, NoNar> {
        let name = self.narinfos.name_in_memory(&url.hash_part);
        let request = self.shared.request_log.begin(&url, first_byte, name);
        // Nix remembers narinfos for days, and the policy may have changed since it got this one.
        let body = match self.narinfos.admit_nar(&url, &find_user).await {
            true => self.bring_admitted(url.nar(), first_byte, resumed, find_user, request.origins()).await,
            false => Err(NoNar::Gone),
        };
        match body {
            Ok(body) => Ok(request.follow(body)),
            Err(NoNar::Gone) => {
                self.shared.counters.nars_absent.inc();
                self.shared.lookup_log.note(url.hash_part, LookupEvent::NarGone);
                request.end(NarOutcome::NotFound);
                Err(NoNar::Gone)
            }
            Err(NoNar::NotNow) => {
                request.end(NarOutcome::NotNow);
                Err(NoNar::NotNow)
            }
        }
    }

    /// The bytes of a NAR of our own store that may leave this machine.
    pub(crate) async fn bring_offered(
        &self,
        offer: Arc<Offer>,
        url: NarUrl,
        first_byte: u64,
        resumed: bool,
    ) -> Option<NarBody> {
        if !self.may_begin(&url, first_byte, resumed) {
            return None;
        }
        self.own.read_offered(offer, url.nar(), first_byte).await
    }

    /// Whether there is such a byte, and it may be asked for: if the body was cut short, a 404 for the rest makes Nix build the
    /// path instead of asking again.
    fn may_begin(&self, url: &NarUrl, first_byte: u64, resumed: bool) -> bool {
        first_byte < url.nar_size && !(resumed && self.context.nar_faults.was_cut_short(&url.nar_hash))
    }

    /// Whether a NAR has waited for memory for more than a moment.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        self.context.shortage.is_felt()
    }

    async fn bring_admitted(
        self: &Arc<Self>,
        url: NarUrl,
        first_byte: u64,
        resumed: bool,
        find_user: FindUser,
        origins: &Arc<Origins>,
    ) -> Result<NarBody, NoNar> {
        if !self.may_begin(&url, first_byte, resumed) {
            return Err(NoNar::Gone);
        }
        let own = match self.shared.has(&url.hash_part) {
            true => self.own.read(url, first_byte).await,
            false => Ok(None),
        };
        match own {
            Ok(Some(body)) => {
                origins.set_own();
                Ok(body)
            }
            Ok(None) => self.bring_from_sources(url, first_byte, find_user, origins).await,
            // Our own store is read again only after the sources: they may have it at once.
            Err(NotNow) => match self.bring_from_sources(url, first_byte, find_user, origins).await {
                Ok(body) => Ok(body),
                Err(why) => self.own.wait_read(url, first_byte).await.inspect(|_| origins.set_own()).ok_or(why),
            },
        }
    }

    async fn bring_from_sources(
        self: &Arc<Self>,
        url: NarUrl,
        first_byte: u64,
        find_user: FindUser,
        origins: &Arc<Origins>,
    ) -> Result<NarBody, NoNar> {
        let (client, mut body) = mpsc::channel(CHUNKS_AHEAD);
        let client = WaitingClient::new(client, first_byte);
        tokio::spawn(Arc::clone(self).deliver(url, first_byte, client, find_user, Arc::clone(origins)));
        // Waits for the first bytes, because the reason can be said only as long as no body has begun.
        let first = body.recv().await.unwrap_or(Err(NoNar::Gone))?;
        let rest = futures::stream::poll_fn(move |context| body.poll_recv(context));
        let rest = rest.map(|bytes| bytes.map_err(|_| BodyAborted));
        Ok(Box::pin(futures::stream::once(async { Ok(first) }).chain(rest)))
    }

    /// Brings a NAR to its client. It runs as a task of its own, so that the client can be kept waiting from the first
    /// moment.
    async fn deliver(
        self: Arc<Self>,
        url: NarUrl,
        first_byte: u64,
        mut client: WaitingClient,
        find_user: FindUser,
        origins: Arc<Origins>,
    ) {
        // What is read ahead is whole. A resumed body needs only its rest.
        if first_byte == 0
            && let Some((reading, read_from)) = self.ahead.take(url)
        {
            let Ok(nar) = client.keep(reading).await else { return };
            if let Some(nar) = nar {
                origins.take_over(&read_from);
                self.shared.counters.ahead_used.inc();
                if client.send(0, nar).await.is_ok() {
                    self.shared.counters.nars_complete.inc();
                }
                return;
            }
        }
        let Ok(holders) = client.keep(self.transfers.find_holders(&url)).await else { return };
        // What is passed on to peers begins at the first byte, so a resumed NAR is read for this client alone.
        let mut transfer = if first_byte == 0 {
            let Ok(transfer) = client.keep(self.transfers.begin_together(url, holders)).await else { return };
            transfer
        } else {
            self.transfers.begin(url, first_byte, holders)
        };
        transfer.note_origins(origins);
        let context = Arc::clone(&self.context);
        // The remembered answer led to a NAR that nobody could send, so the next lookup has to ask again.
        if (Delivery { context, url, transfer, client, find_user }).run().await == Ended::Gone {
            self.narinfos.forget(url.hash_part);
        }
    }
}
