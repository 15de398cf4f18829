//! Delivers one NAR to Nix: held back until it is verified if memory allows, streamed otherwise.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use narmesh_protocol::NarUrl;
use narmesh_protocol::nar_tree::leaf_bytes;
use tokio::time::Instant;

use super::buffers::{HeldBytes, Share};
use super::checkpoints::Trail;
use super::transfer::{Step, Transfer};
use super::waiting_client::{HungUp, WaitingClient};
use super::{HoldLimits, NarContext, NoNar};
use crate::lookup_log::LookupEvent;
use crate::turns::FindUser;

/// A NAR waits for memory for the whole while anything came in within this time from the sources that could send it; it
/// stops this long before its client can no longer be kept waiting.
const MEMORY_PATIENCE: Duration = Duration::from_secs(20);

/// How a delivery ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nix has got the whole NAR.
    Complete,
    /// Nobody can send the rest, so what was remembered of the path is no longer true.
    Gone,
    /// Nobody can send the rest now, and what was remembered of the path is still true.
    NotNow,
    /// Nix hung up.
    HungUp,
}

/// Reads and verifies a whole NAR of which Nix has seen nothing yet; `share` covers its size.
pub(super) async fn read_whole(mut transfer: Transfer, url: NarUrl, share: Share) -> Option<Bytes> {
    let mut nar = Vec::with_capacity(usize::try_from(url.nar_size).ok()?);
    loop {
        match transfer.step(&mut nar).await {
            Step::Data | Step::BegunAnew => {}
            Step::Verified => return Some(HeldBytes::new(nar, Some(share)).into_bytes()),
            Step::Gone | Step::Unreached => return None,
        }
    }
}

/// A NAR and the client that wants it.
pub(super) struct Delivery {
    pub(super) context: Arc<NarContext>,
    pub(super) url: NarUrl,
    pub(super) transfer: Transfer,
    pub(super) client: WaitingClient,
    pub(super) find_user: FindUser,
}

impl Delivery {
    /// Brings the NAR to the client, however long a live source takes.
    pub(super) async fn run(mut self) -> Ended {
        let ended = match self.take_memory().await {
            Ok((share, true)) => self.hold(share).await,
            Ok((share, false)) => self.stream(share, Vec::new(), self.transfer.offset()).await,
            Err(HungUp) => Ended::HungUp,
        };
        match ended {
            Ended::Complete => {
                self.context.counters.nars_complete.inc();
            }
            Ended::HungUp => self.transfer.abandon(),
            Ended::Gone => {
                let at = self.transfer.offset();
                // Ends all requests now, because telling a client that does not read may take long.
                drop(self.transfer);
                // Nix asks for the rest of a short body; only if that is answered 404 does it build the path.
                if self.client.has_told_something() {
                    self.context.nar_faults.note_cut_short(self.url.nar_hash);
                    self.context.counters.nars_aborted.inc();
                    self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarCutShort(at));
                }
                self.client.abort(NoNar::Gone).await;
            }
            Ended::NotNow => {
                let at = self.transfer.offset();
                drop(self.transfer);
                if self.client.has_told_something() {
                    self.context.counters.nars_aborted.inc();
                }
                self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarNotNow(at));
                // Nix asks again for what it has not got: nothing is noted that would have that answered 404.
                self.client.abort(NoNar::NotNow).await;
            }
        }
        ended
    }

    /// Takes memory for the NAR; returns it and whether it is enough for all of it. Waits for as long as the client does:
    /// that other bodies hold all memory says nothing about whether this NAR can be had.
    async fn take_memory(&mut self) -> Result<(Share, bool), HungUp> {
        let (context, url) = (Arc::clone(&self.context), self.url);
        let HoldLimits { tiny, small, saved, streamed } = context.limits;
        // A leaf, if it is checked, is held whole by whoever is read, by us, by the client, and by what waits for him.
        let streamed = streamed.max(6 * leaf_bytes(url.nar_size).unwrap_or(0));
        // A larger NAR is held back only if another source could still save it when one lies.
        let can_be_saved = self.transfer.sources() > 1 && url.nar_size <= saved;
        let is_whole = self.transfer.may_begin_anew && (url.nar_size <= small || can_be_saved);
        if is_whole
            && url.nar_size > streamed
            && let Some(share) = self.wait_for_whole().await?
        {
            return Ok((share, true));
        }
        let find_user = Arc::clone(&self.find_user);
        let bytes = url.nar_size.min(streamed);
        let take = async move {
            if url.nar_size <= tiny {
                if let Some(share) = context.tiny_buffers.try_take(bytes) {
                    return share;
                }
                let user = find_user();
                let wait = async {
                    tokio::select! {
                        share = context.tiny_buffers.take(bytes, user) => share,
                        share = context.buffers.take(bytes, user) => share,
                    }
                };
                return context.shortage.watch(wait).await;
            }
            match context.buffers.take_if_free(bytes) {
                Some(share) => share,
                None => context.shortage.watch(context.buffers.take(bytes, find_user())).await,
            }
        };
        // Even the memory of a NAR that streams may be enough for all of this one.
        Ok((self.client.keep(take).await?, is_whole && url.nar_size <= streamed))
    }

    /// Waits for memory for all of the NAR, which is more than one that streams takes: while its client can be kept
    /// waiting, except for the last [`MEMORY_PATIENCE`], which the memory to stream it may take, and while anything comes
    /// in from the sources that could send it. `None` if it has to stream: then a source that lies breaks it once.
    async fn wait_for_whole(&mut self) -> Result<Option<Share>, HungUp> {
        let (context, url) = (Arc::clone(&self.context), self.url);
        let until = Instant::now() + self.client.patience_left().saturating_sub(MEMORY_PATIENCE);
        let find_user = Arc::clone(&self.find_user);
        let take = async {
            // Above this size it streams anyway: it is held whole only where memory is free at once.
            if url.nar_size > context.limits.small {
                // That nothing is put by for so much says nothing about whether memory is short.
                return context.buffers.take_at_once(url.nar_size).await;
            }
            match context.buffers.take_if_free(url.nar_size) {
                Some(share) => share,
                None => context.shortage.watch(context.buffers.take(url.nar_size, find_user())).await,
            }
        };
        let wait = async {
            let mut take = pin!(take);
            loop {
                let look_at = until.min(Instant::now() + MEMORY_PATIENCE);
                match tokio::time::timeout_at(look_at, &mut take).await {
                    Ok(share) => return Some(share),
                    Err(_) if look_at < until && context.has_moved(&url, MEMORY_PATIENCE) => {}
                    Err(_) => return None,
                }
            }
        };
        self.client.keep(wait).await
    }

    /// Reads the whole NAR before Nix sees any of it. When Nix can no longer be kept waiting, sends what is there and
    /// streams the rest.
    async fn hold(&mut self, share: Share) -> Ended {
        let mut nar = Vec::with_capacity(usize::try_from(self.url.nar_size).unwrap_or_default());
        loop {
            let step = match self.client.keep(self.transfer.step(&mut nar)).await {
                Ok(step) => step,
                Err(HungUp) => return Ended::HungUp,
            };
            match step {
                Step::Data | Step::BegunAnew => {}
                Step::Gone => return Ended::Gone,
                Step::Unreached => return Ended::NotNow,
                Step::Verified => {
                    let nar = HeldBytes::new(nar, Some(share)).into_bytes();
                    return ended(self.client.send(0, nar).await);
                }
            }
            if self.client.is_at_its_end() {
                return self.stream(share, nar, 0).await;
            }
        }
    }

    /// Sends what comes in, but holds the last bytes back until the whole is verified. `held` begins at byte `from` of
    /// the NAR.
    async fn stream(&mut self, share: Share, mut held: Vec<u8>, mut from: u64) -> Ended {
        let mut trail = Trail::default();
        loop {
            // The last bytes stay here until the whole is verified: Nix must never have all of a NAR that is wrong.
            let at_end = self.transfer.offset() == self.url.nar_size;
            if !held.is_empty() && !at_end {
                // What Nix has seen cannot be taken back: from now on a wrong byte ends the body short.
                self.transfer.may_begin_anew = false;
                let bytes = Bytes::from(std::mem::take(&mut held));
                let end = from + bytes.len() as u64;
                if self.client.send(from, bytes).await.is_err() {
                    return self.on_hung_up(trail);
                }
                from = end;
                // If the body breaks, the rest is verified from here on, and who sent the beginning is known.
                if let Some(verifier) = self.transfer.verifier() {
                    trail.pass(verifier, self.transfer.contributors());
                }
            }
            let step = match self.client.keep(self.transfer.step(&mut held)).await {
                Ok(step) => step,
                Err(HungUp) => return self.on_hung_up(trail),
            };
            match step {
                Step::Data => {}
                Step::BegunAnew => from = 0,
                Step::Gone => return Ended::Gone,
                Step::Unreached => return Ended::NotNow,
                Step::Verified => {
                    let last = std::mem::take(&mut held);
                    let sent = self.client.send(from, Bytes::from(last)).await;
                    drop(share);
                    return ended(sent);
                }
            }
        }
    }

    /// Keeps the checkpoints of a client that hung up, because Nix may come back for the rest.
    fn on_hung_up(&self, trail: Trail) -> Ended {
        self.context.checkpoints.keep(self.url.nar_hash, trail);
        Ended::HungUp
    }
}

fn ended(sent: Result<(), HungUp>) -> Ended {
    sent.map_or(Ended::HungUp, |()| Ended::Complete)
}
