//! NARs of our own store.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, future};
use narmesh_protocol::NarUrl;
use narmesh_store::{NarProgress, NarStream, PathInfo};
use tokio::sync::mpsc;

use super::keeper::CHUNKS_AHEAD;
use super::{BodyAborted, NarBody, NarContext};
use crate::decisions::Decision;
use crate::narinfo::NarInfos;
use crate::shared::Shared;

/// Bytes read at a time; a NAR no longer than this is one buffer, one write.
const READ_BYTES: usize = 256 << 10;
/// The first of a long range: whoever asks for it waits for them.
const FIRST_BYTES: usize = 32 << 10;

/// Reads them.
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

    /// Our own NAR, if it is the one asked for; `None` also when its copy on disk is damaged and small enough to be read first.
    pub(super) async fn read(&self, url: NarUrl, first_byte: u64) -> Option<NarBody> {
        let shared = Arc::clone(&self.shared);
        let open = move || {
            // A small one is hashed whatever is asked of it.
            let is_small = url.nar_size <= READ_BYTES as u64;
            let read_from = if is_small { 0 } else { first_byte };
            // Of a whole, the more is read before Nix sees any, the more damage is answered by another holder.
            let is_long_range = first_byte > 0 && url.nar_size - first_byte > READ_BYTES as u64;
            let first_bytes = if is_long_range { FIRST_BYTES } else { READ_BYTES };
            let is_wanted = |info: &PathInfo| info.nar_hash == url.nar_hash && info.nar_size == url.nar_size;
            let found = shared.store.find_nar(&url.hash_part, |info| is_wanted(info).then_some(read_from));
            let mut nar = found.inspect_err(|error| shared.warn_if_unreadable(&url.hash_part, error)).ok()??;
            let left = usize::try_from(url.nar_size - read_from).unwrap_or(first_bytes);
            let mut first = Vec::with_capacity(first_bytes.min(left));
            let progress = nar.fill(&mut first, first_bytes).ok()?;
            Some((nar, first, progress, read_from))
        };
        let (nar, first, progress, read_from) = tokio::task::spawn_blocking(open).await.ok().flatten()?;
        let first_end = read_from + first.len() as u64;
        // Only a small one, which is read whole, is read from before the byte asked for.
        let first = Bytes::from(first).slice(usize::try_from(first_byte - read_from).ok()?..);
        let first = futures::stream::once(future::ready(Ok(first)));
        if progress == NarProgress::Complete {
            self.shared.counters.nars_complete.inc();
            return Some(Box::pin(first));
        }
        // The rest is read once the first bytes are on their way: to start a thread for it takes as long as to send them.
        let this = self.clone();
        let rest = futures::stream::once(future::lazy(move |_| this.start_rest(url, nar, first_end))).flatten();
        Some(Box::pin(first.chain(rest)))
    }

    /// Begins to read what follows `at`, a few buffers ahead of whoever takes them.
    fn start_rest(self, url: NarUrl, nar: NarStream, at: u64) -> impl Stream<Item = Result<Bytes, BodyAborted>> {
        let (sender, mut receiver) = mpsc::channel(CHUNKS_AHEAD);
        tokio::task::spawn_blocking(move || self.send_rest(url, nar, at, &sender));
        futures::stream::poll_fn(move |context| receiver.poll_recv(context))
    }

    fn send_rest(&self, url: NarUrl, mut nar: NarStream, at: u64, chunks: &mpsc::Sender<Result<Bytes, BodyAborted>>) {
        let mut sent = at;
        let mut progress = NarProgress::More;
        while progress == NarProgress::More {
            let mut buffer = Vec::with_capacity(READ_BYTES);
            match nar.fill(&mut buffer, READ_BYTES) {
                Ok(next) => progress = next,
                Err(error) => {
                    tracing::warn!(hash_part = %url.hash_part, %error, "own copy cannot be read whole");
                    self.narinfos.own_changed(&[url.hash_part]);
                    let aborted = self.cut_short(url, sent);
                    // Fails only when Nix hung up first.
                    drop(chunks.blocking_send(Err(aborted)));
                    return;
                }
            }
            sent += buffer.len() as u64;
            if !buffer.is_empty() && chunks.blocking_send(Ok(Bytes::from(buffer))).is_err() {
                // Nix hung up.
                return;
            }
        }
        self.shared.counters.nars_complete.inc();
    }

    /// Notes that a body of our own store ends so that Nix builds or goes on: short, and 404 for what it asks next.
    fn cut_short(&self, url: NarUrl, at: u64) -> BodyAborted {
        self.context.spoilt.spoil(url.nar_hash);
        self.shared.counters.nars_aborted.inc();
        self.shared.decisions.note(url.hash_part, Decision::NarCutShort(at));
        BodyAborted
    }
}
