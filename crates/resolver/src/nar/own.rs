//! NARs of our own store.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, future};
use narmesh_protocol::NarUrl;
use narmesh_store::{NarProgress, NarStream, NarStreamError, Offer, PathInfo, StoreError};
use tokio::task::JoinHandle;

use super::buffers::{HeldBytes, Share};
use super::{BodyAborted, NarBody, NarContext};
use crate::lookup_log::LookupEvent;
use crate::narinfo::NarInfos;
use crate::own_reads::{NotNow, unless_not_now};
use crate::shared::Shared;

/// Bytes read at a time. A NAR that is no longer than this is one buffer and one write.
const READ_BYTES: usize = 256 << 10;
/// Bytes read at first for a long range, because the client waits for them; also the size of each buffer while other
/// bodies hold all the memory for larger ones. The gateway's 512 connections then hold some 64 MiB together: each has
/// one buffer here, and up to 96 KiB in hyper.
const FEW_BYTES: usize = 32 << 10;

/// How long a NAR waits for a locked store. Nix gets nothing meanwhile, and leaves after `stalled-download-timeout`, for
/// which `init` prints 30 s.
const LOCKED_MAX: Duration = Duration::from_secs(20);

/// Reads NARs of our own store.
#[derive(Clone, Debug)]
pub(super) struct OwnNars {
    shared: Arc<Shared>,
    narinfos: Arc<NarInfos>,
    context: Arc<NarContext>,
}

impl OwnNars {
    pub(super) fn new(shared: Arc<Shared>, narinfos: Arc<NarInfos>, context: Arc<NarContext>) -> Self {
        Self { shared, narinfos, context }
    }

    /// The body of a NAR in our own store, if it is the one asked for. `None` also if its copy on disk is found to be
    /// damaged before the first byte goes out.
    pub(super) async fn read(&self, url: NarUrl, first_byte: u64) -> Result<Option<NarBody>, NotNow> {
        let store = &self.shared.store;
        if let Some(nar) = store.read_nar_at_once(&url.hash_part, |info| is_wanted(&url, info)) {
            return Ok(self.give(nar, first_byte));
        }
        let first = self.shared.own_reads.try_read(self.opens(url, first_byte, self.finds(url))).await?;
        Ok(self.begin(url, first_byte, first))
    }

    /// The same; waits for up to [`LOCKED_MAX`] while the store cannot be read.
    pub(super) async fn wait_read(&self, url: NarUrl, first_byte: u64) -> Option<NarBody> {
        let first = self.shared.own_reads.read_within(LOCKED_MAX, self.opens(url, first_byte, self.finds(url))).await;
        self.begin(url, first_byte, first.ok()?)
    }

    /// The same for what may leave this machine, which is decided anew.
    pub(super) async fn read_offered(&self, offer: Arc<Offer>, url: NarUrl, first_byte: u64) -> Option<NarBody> {
        if let Some(nar) = offer.read_nar_at_once(&url.hash_part, |info| is_wanted(&url, info)) {
            return self.give(nar, first_byte);
        }
        let find = move |from: &dyn Fn(&PathInfo) -> Option<u64>| offer.find_nar(&url.hash_part, from);
        let first = self.shared.own_reads.read_within(LOCKED_MAX, self.opens(url, first_byte, find)).await;
        self.begin(url, first_byte, first.ok()?)
    }

    /// The body from `first_byte` on of a NAR that was read whole.
    fn give(&self, nar: Vec<u8>, first_byte: u64) -> Option<NarBody> {
        let memory = self.context.own_buffers.try_take(nar.len() as u64);
        let nar = HeldBytes::new(nar, memory).into_bytes();
        let wanted = nar.slice(usize::try_from(first_byte).ok().filter(|first| *first < nar.len())?..);
        self.shared.counters.nars_complete.inc();
        Some(Box::pin(futures::stream::once(future::ready(Ok(wanted)))))
    }

    fn finds(&self, url: NarUrl) -> impl Find {
        let store = Arc::clone(&self.shared.store);
        move |from: &dyn Fn(&PathInfo) -> Option<u64>| store.find_nar(&url.hash_part, from)
    }

    /// Opens the NAR that `find` finds, and reads its first bytes. Blocks.
    fn opens(
        &self,
        url: NarUrl,
        first_byte: u64,
        find: impl Find,
    ) -> impl FnOnce() -> Result<Option<First>, NotNow> + Clone + Send + 'static {
        let (shared, context) = (Arc::clone(&self.shared), Arc::clone(&self.context));
        move || {
            let memory = context.own_buffers.try_take(READ_BYTES as u64);
            // A small NAR is read whole and hashed, whatever part of it the client wants, if there is memory for that.
            let is_whole = url.nar_size <= READ_BYTES as u64 && memory.is_some();
            let read_from = if is_whole { 0 } else { first_byte };
            // A long range begins with few bytes. All else begins with a large buffer: if damage is found before Nix
            // sees any byte, another holder can still send the NAR.
            let is_long_range = first_byte > 0 && url.nar_size - first_byte > READ_BYTES as u64;
            let few = is_long_range || memory.is_none();
            let first_bytes = if few { FEW_BYTES } else { READ_BYTES };
            let found = find(&|info| is_wanted(&url, info).then_some(read_from));
            let found = found.inspect_err(|error| shared.warn_if_unreadable(&url.hash_part, error));
            let Some(nar) = unless_not_now(found)?.ok().flatten() else { return Ok(None) };
            let left = usize::try_from(url.nar_size - read_from).unwrap_or(first_bytes);
            let Read { nar, outcome } = read(nar, first_bytes, left, memory);
            Ok(outcome.ok().map(|(bytes, progress)| First { nar, bytes, progress, read_from }))
        }
    }

    /// The body that begins with `first`.
    fn begin(&self, url: NarUrl, first_byte: u64, first: Option<First>) -> Option<NarBody> {
        let First { nar, bytes: first, progress, read_from } = first?;
        let first_end = read_from + first.len() as u64;
        // A NAR that was read whole begins before the first byte that the client wants.
        let first = first.slice(usize::try_from(first_byte - read_from).ok()?..);
        let first = futures::stream::once(future::ready(Ok(first)));
        if progress == NarProgress::Complete {
            self.shared.counters.nars_complete.inc();
            return Some(Box::pin(first));
        }
        // Reading goes on only when the first bytes are on their way, because waking a thread for it takes as long as
        // sending them.
        let own = self.clone();
        let rest = future::lazy(move |_| Rest { reading: Some(own.read_on(nar)), own, url, at: first_end });
        Some(Box::pin(first.chain(futures::stream::once(rest).flatten())))
    }

    /// Begins to read the next buffer of `nar`; it is smaller while other bodies hold all the memory.
    fn read_on(&self, nar: NarStream) -> JoinHandle<Read> {
        let memory = self.context.own_buffers.try_take(READ_BYTES as u64);
        let bytes_max = if memory.is_some() { READ_BYTES } else { FEW_BYTES };
        tokio::task::spawn_blocking(move || read(nar, bytes_max, bytes_max, memory))
    }

    /// Notes that a body of our own store ends short. The next `Range` on it is answered 404, so that Nix builds or
    /// asks elsewhere.
    fn note_cut_short(&self, url: NarUrl, at: u64) -> BodyAborted {
        self.context.nar_faults.note_cut_short(url.nar_hash);
        self.shared.counters.nars_aborted.inc();
        self.shared.lookup_log.note(url.hash_part, LookupEvent::NarCutShort(at));
        BodyAborted
    }
}

/// Whether this is the NAR asked for.
fn is_wanted(url: &NarUrl, info: &PathInfo) -> bool {
    info.nar_hash == url.nar_hash && info.nar_size == url.nar_size
}

/// Opens the NAR of a path; is given which of its bytes comes first, or none if it is not wanted.
trait Find:
    FnOnce(&dyn Fn(&PathInfo) -> Option<u64>) -> Result<Option<NarStream>, StoreError> + Clone + Send + 'static
{
}

impl<F> Find for F where
    F: FnOnce(&dyn Fn(&PathInfo) -> Option<u64>) -> Result<Option<NarStream>, StoreError> + Clone + Send + 'static
{
}

/// The beginning of a NAR, from the byte `read_from` on.
struct First {
    nar: NarStream,
    bytes: Bytes,
    progress: NarProgress,
    read_from: u64,
}

/// What a blocking thread has read of a NAR.
struct Read {
    nar: NarStream,
    outcome: Result<(Bytes, NarProgress), NarStreamError>,
}

/// Reads the next bytes of `nar`; `memory` is their share, which stays with them. At most `capacity` bytes can come.
fn read(mut nar: NarStream, bytes_max: usize, capacity: usize, memory: Option<Share>) -> Read {
    let mut buffer = Vec::with_capacity(bytes_max.min(capacity));
    let outcome = nar.fill(&mut buffer, bytes_max);
    let outcome = outcome.map(|progress| (HeldBytes::new(buffer, memory).into_bytes(), progress));
    Read { nar, outcome }
}

/// The body after its first buffer. While the client takes one buffer, the next one is read, but no more: a client that
/// does not read holds two buffers and no thread.
struct Rest {
    own: OwnNars,
    url: NarUrl,
    /// The offset in the NAR of the next byte that the client gets.
    at: u64,
    /// The read under way; `None` at the end.
    reading: Option<JoinHandle<Read>>,
}

impl Stream for Rest {
    type Item = Result<Bytes, BodyAborted>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while let Some(reading) = &mut this.reading {
            let read = ready!(Pin::new(reading).poll(context));
            this.reading = None;
            let Ok(Read { nar, outcome }) = read else {
                // The runtime is ending, or the thread panicked.
                return Poll::Ready(Some(Err(this.own.note_cut_short(this.url, this.at))));
            };
            let (bytes, progress) = match outcome {
                Ok(read) => read,
                Err(error) => {
                    tracing::warn!(hash_part = %this.url.hash_part, %error, "our own copy cannot be read whole");
                    // What memory says of this copy no longer holds: it is damaged, or it was collected.
                    this.own.narinfos.on_own_changed(&[this.url.hash_part]);
                    return Poll::Ready(Some(Err(this.own.note_cut_short(this.url, this.at))));
                }
            };
            match progress {
                NarProgress::More => this.reading = Some(this.own.read_on(nar)),
                NarProgress::Complete => {
                    this.own.shared.counters.nars_complete.inc();
                }
            }
            this.at += bytes.len() as u64;
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
        Poll::Ready(None)
    }
}
