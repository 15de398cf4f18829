//! Answering peers' NAR requests, within upload limits, from our own store alone.

use super::framing::{read_frame, write_chunk, write_end, write_frame};
use super::handle::MeshHandle;
use super::peers::PeerBoard;
use super::rates::{Paced, UploadRate};
use crate::settings::Compress;
use futures::{AsyncWriteExt, StreamExt};
use libp2p::{PeerId, Stream};
use libp2p_stream::IncomingStreams;
use narmesh_gossip::Misdeed;
use narmesh_protocol::wire::{NarFrame, NarReply, NarRequest};
use narmesh_store::{NarProgress, NarStream, NixStore, Offer, Store};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// A NAR up to this size is sent, and verified, as a whole before anybody waits for anybody.
pub const SMALL_NAR_BYTES_MAX: u64 = 8 << 20;
/// Streams that one peer may hold open; a further one is closed at once. An honest one has 32 NARs under way and 8 streams idle.
const STREAMS_PER_PEER_MAX: usize = 40;
/// Bytes read from the file system at a time.
const READ_BYTES: usize = 256 << 10;
/// Chunks that may wait for the network: with [`READ_BYTES`] the memory of one upload.
const CHUNKS_AHEAD: usize = 2;
/// A peer that takes no byte for this long is given up.
const WRITE_STALL: Duration = Duration::from_secs(30);
/// zstd level between peers: fast enough for 1 Gbit/s on one core.
const ZSTD_LEVEL: i32 = 1;

/// How many bodies may be under way; large and small NARs each have as many, so that the small ones, which nobody's slow reader
/// can hold up, are never behind the large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadLimits {
    /// To one peer.
    pub per_peer: usize,
    /// To all peers.
    pub total: usize,
    /// Bytes per second to all peers together; `None` for no limit.
    pub bytes_per_s: Option<NonZeroU32>,
}

/// Permits for bodies under way, by size of the NAR.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Slots {
    pub(super) fn new(each: usize) -> Self {
        Self { small: Arc::new(Semaphore::new(each)), large: Arc::new(Semaphore::new(each)) }
    }

    /// The permits for a NAR of that size.
    pub(super) fn of(&self, nar_size: u64) -> &Arc<Semaphore> {
        if nar_size <= SMALL_NAR_BYTES_MAX { &self.small } else { &self.large }
    }
}

/// The uploads of this node.
#[derive(Clone, Debug)]
pub struct Uploads {
    store: Arc<NixStore>,
    offer: Arc<Offer>,
    board: Arc<PeerBoard>,
    limits: UploadLimits,
    may_compress: Arc<AtomicBool>,
    total: Slots,
    rate: UploadRate,
    peers: Arc<Mutex<HashMap<PeerId, PeerSlots>>>,
}

#[derive(Clone, Debug)]
struct PeerSlots {
    streams: Arc<Semaphore>,
    uploads: Slots,
}

impl Uploads {
    /// Serves what `offer` says, and counts on `board`.
    pub fn new(
        store: Arc<NixStore>,
        offer: Arc<Offer>,
        board: Arc<PeerBoard>,
        limits: UploadLimits,
        compress: Compress,
    ) -> Self {
        let may_compress = Arc::new(AtomicBool::new(compress != Compress::Never));
        let rate = UploadRate::default();
        rate.set(limits.bytes_per_s);
        Self { store, offer, may_compress, board, limits, total: Slots::new(limits.total), rate, peers: Arc::default() }
    }

    /// Applies another `limits.upload_bytes_per_s`.
    pub fn set_rate(&self, bytes_per_s: Option<NonZeroU32>) {
        self.rate.set(bytes_per_s);
    }

    /// Applies another `transfer.compress`: whoever asks for zstd gets it, unless it is never to be used.
    pub fn set_compress(&self, compress: Compress) {
        self.may_compress.store(compress != Compress::Never, Ordering::Relaxed);
    }

    /// Takes streams until the swarm ends. No await between accept and spawn: libp2p-stream drops what waits.
    pub(super) async fn accept(self, mut incoming: IncomingStreams, mesh: MeshHandle) {
        while let Some((peer, stream)) = incoming.next().await {
            let slots = self.slots(peer);
            match Arc::clone(&slots.streams).try_acquire_owned() {
                Ok(permit) => {
                    tokio::spawn(self.clone().serve_stream(peer, stream, slots, permit, mesh.clone()));
                }
                Err(_) => tracing::debug!(%peer, "refused a NAR stream: too many are open"),
            }
        }
    }

    /// Waits until no body is under way; none is begun after this was called.
    pub async fn finish(&self) {
        let all = u32::try_from(self.limits.total).unwrap_or(u32::MAX);
        for slots in [&self.total.small, &self.total.large] {
            // An error means that it was called before.
            if let Ok(permits) = slots.acquire_many(all).await {
                permits.forget();
            }
        }
    }

    fn slots(&self, peer: PeerId) -> PeerSlots {
        let mut peers = self.peers.lock();
        peers.retain(|known, slots| *known == peer || slots.streams.available_permits() < STREAMS_PER_PEER_MAX);
        peers
            .entry(peer)
            .or_insert_with(|| PeerSlots {
                streams: Arc::new(Semaphore::new(STREAMS_PER_PEER_MAX)),
                uploads: Slots::new(self.limits.per_peer),
            })
            .clone()
    }

    async fn serve_stream(
        self,
        peer: PeerId,
        mut stream: Stream,
        slots: PeerSlots,
        _open: OwnedSemaphorePermit,
        mesh: MeshHandle,
    ) {
        loop {
            let request = match read_frame(&mut stream, NarRequest::BYTES_MAX).await {
                Ok(Some(frame)) => NarRequest::decode(&frame).ok(),
                // Longer than any request.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
                Ok(None) | Err(_) => return,
            };
            let Some(request) = request else {
                mesh.misbehaved(peer, Misdeed::MalformedRequest);
                return;
            };
            if let Err(error) = self.answer(peer, &mut stream, &slots, request).await {
                tracing::debug!(%peer, hash_part = %request.hash_part, %error, "NAR upload ended early");
                return;
            }
        }
    }

    async fn answer(
        &self,
        peer: PeerId,
        stream: &mut Stream,
        slots: &PeerSlots,
        request: NarRequest,
    ) -> io::Result<()> {
        if !self.offer.is_offered(&request.hash_part) {
            return reply(stream, NarReply::Absent).await;
        }
        let (mine, all) = (slots.uploads.of(request.nar_size), self.total.of(request.nar_size));
        let (Ok(_mine), Ok(_all)) = (Arc::clone(mine).try_acquire_owned(), Arc::clone(all).try_acquire_owned()) else {
            return reply(stream, NarReply::Busy).await;
        };
        let Some(paced) = self.rate.admit(request.nar_size) else {
            return reply(stream, NarReply::Busy).await;
        };
        let (store, offer) = (Arc::clone(&self.store), Arc::clone(&self.offer));
        let opened =
            tokio::task::spawn_blocking(move || open(&store, &offer, &request)).await.map_err(io::Error::other)?;
        let Some(opened) = opened else { return reply(stream, NarReply::Absent).await };
        let zstd = request.accept_zstd && self.may_compress.load(Ordering::Relaxed);
        let head = NarReply::Body { zstd }.encode().map_err(io::Error::other)?;
        let sent = match opened.progress {
            NarProgress::Complete if !zstd && paced.is_free() => {
                send_at_once(stream, &head, &opened.first, request.offset).await?
            }
            NarProgress::Complete | NarProgress::More => {
                write_frame(stream, &head).await?;
                send_body(stream, opened, request, zstd, &paced).await?
            }
        };
        self.board.update(&peer, |stats| stats.bytes_out += sent);
        Ok(())
    }
}

/// Streams the body; ends it with `END_FAILED` when our copy is not what our database says.
async fn send_body(
    stream: &mut Stream,
    nar: Opened,
    request: NarRequest,
    zstd: bool,
    paced: &Paced,
) -> io::Result<u64> {
    let (sender, mut chunks) = mpsc::channel(CHUNKS_AHEAD);
    let reader = tokio::task::spawn_blocking(move || read_nar(nar, request.offset, zstd, &sender));
    let mut sent = 0;
    while let Some(chunk) = chunks.recv().await {
        for slice in chunk.chunks(paced.slice_bytes().min(chunk.len().max(1))) {
            paced.pay(slice.len()).await;
            tokio::time::timeout(WRITE_STALL, write_chunk(stream, slice)).await??;
            sent += slice.len() as u64;
        }
    }
    let complete = reader.await.map_err(io::Error::other)?;
    let status = match complete {
        Ok(()) => NarFrame::END_COMPLETE,
        Err(error) => {
            tracing::warn!(hash_part = %request.hash_part, %error, "our own copy could not be sent whole");
            NarFrame::END_FAILED
        }
    };
    tokio::time::timeout(WRITE_STALL, write_end(stream, status)).await??;
    Ok(sent)
}

/// A NAR that is one buffer is one write: head, body and end, so that the asker wakes once.
async fn send_at_once(stream: &mut Stream, head: &[u8], nar: &[u8], offset: u64) -> io::Result<u64> {
    let body = nar.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
    let mut bytes = Vec::with_capacity(head.len() + body.len() + 16);
    write_frame(&mut bytes, head).await?;
    write_chunk(&mut bytes, body).await?;
    write_end(&mut bytes, NarFrame::END_COMPLETE).await?;
    let written = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    tokio::time::timeout(WRITE_STALL, written).await??;
    Ok(body.len() as u64)
}

/// A NAR under way: what was read of it already.
struct Opened {
    nar: NarStream,
    first: Vec<u8>,
    progress: NarProgress,
}

/// The predicate asked again, and the NAR opened if it is still the one asked for.
fn open(store: &NixStore, offer: &Offer, request: &NarRequest) -> Option<Opened> {
    let offered = offer.offered(&request.hash_part)?;
    let same = offered.info.nar_hash == request.nar_hash && offered.info.nar_size == request.nar_size;
    if !same || request.offset >= request.nar_size {
        return None;
    }
    let begin = || -> Result<Opened, ReadFailure> {
        let mut nar = store.open_nar(&offered.info)?;
        let mut first = Vec::with_capacity(READ_BYTES.min(usize::try_from(request.nar_size).unwrap_or(READ_BYTES)));
        let progress = nar.fill(&mut first, READ_BYTES)?;
        Ok(Opened { nar, first, progress })
    };
    match begin() {
        Ok(opened) => Some(opened),
        Err(error) => {
            tracing::warn!(store_path = %offered.info.path, %error, "our own copy cannot be sent");
            None
        }
    }
}

async fn reply(stream: &mut Stream, reply: NarReply) -> io::Result<()> {
    let bytes = reply.encode().map_err(io::Error::other)?;
    write_frame(stream, &bytes).await?;
    stream.flush().await
}

/// Runs on a blocking thread: the whole NAR is read and hashed, what comes before `offset` is not sent.
fn read_nar(opened: Opened, offset: u64, zstd: bool, chunks: &mpsc::Sender<Vec<u8>>) -> Result<(), ReadFailure> {
    let Opened { mut nar, first: mut buffer, mut progress } = opened;
    let mut skip = offset;
    let mut encoder = if zstd { Some(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?) } else { None };
    loop {
        let skipped = skip.min(buffer.len() as u64);
        skip -= skipped;
        let body = buffer.get(usize::try_from(skipped).unwrap_or(usize::MAX)..).unwrap_or_default();
        let packed = match &mut encoder {
            None if skipped == 0 => buffer,
            None => body.to_vec(),
            Some(encoder) => {
                io::Write::write_all(encoder, body)?;
                std::mem::take(encoder.get_mut())
            }
        };
        if !packed.is_empty() && chunks.blocking_send(packed).is_err() {
            return Err(ReadFailure::PeerGone);
        }
        match progress {
            NarProgress::More => {}
            NarProgress::Complete => break,
        }
        buffer = Vec::with_capacity(READ_BYTES);
        progress = nar.fill(&mut buffer, READ_BYTES)?;
    }
    if let Some(encoder) = encoder {
        let tail = encoder.finish()?;
        if !tail.is_empty() && chunks.blocking_send(tail).is_err() {
            return Err(ReadFailure::PeerGone);
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum ReadFailure {
    #[error(transparent)]
    Store(#[from] narmesh_store::StoreError),
    #[error("the peer closed its stream")]
    PeerGone,
    #[error(transparent)]
    Nar(#[from] narmesh_store::NarStreamError),
    #[error("compression")]
    Compress(#[from] io::Error),
}
