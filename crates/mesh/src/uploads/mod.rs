//! Answering peers' NAR requests, from our own store and from what is coming into it: each when its turn has come, at its
//! share of the rate.
//!
//! Walk: [`Uploads::accept`] takes a stream; each request on it enters the `queue` and waits for its turn, while its
//! asker is told its place (`replies`), unless `referrals` names others whom it should ask; then a `reader` opens the NAR, and a `body`
//! is written piece by piece, each slice when the rate (`byte_rate`) grants it.
//!
//! What it costs: a body under way holds at most two pieces, the one being written and the one read ahead. A piece has
//! 256 KiB where the stream takes it quickly and 16 KiB where it does not (64 KiB at first), and yamux keeps up to
//! twelve frames of 16 KiB per stream before its socket. A peer that reads nothing costs 16 small NARs of up to 256 KiB
//! and 16 large ones of two times 64 KiB, 6 MiB, until these are given up; from then on 32 times two times 16 KiB, 1
//! MiB; and 6 MiB in yamux for the ten seconds until TCP ends a connection from which nothing is taken. The only bound
//! over all peers is that on the readers at work (`uploads_total`).
//! Invariants: no request is refused because of what another peer does; nothing waits without the asker being told.

mod body;
mod peer;
mod queue;
mod reader;
mod referrals;
mod replies;

use super::bulk::{BulkStream, Incoming};
use super::byte_rate::{ByteRate, Ticket};
use super::framing::{read_frame, write_frame};
use super::handle::Blame;
use super::request_rates::NarRates;
use super::statistics::PeerStatistics;
use body::BodyWriter;
use libp2p::PeerId;
use narmesh_gossip::Misdeed;
use narmesh_protocol::wire::{NarFrame, NarReply, NarRequest};
use narmesh_store::{Offer, PartialCopies, PartialCopy, PathInfo};
use parking_lot::Mutex;
use peer::{PeerUploads, STREAMS_PER_PEER_MAX, Waiting, acquire};
use queue::{Kind, Queue};
use reader::{ReadFailure, Reader};
use referrals::Referrals;
use replies::{ASK_AGAIN_MS, HEAD_STALL, name, reply, turn_away, wait_and_tell_place};
use std::collections::HashMap;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// A body of what is coming in here ends when nothing has come for this long; its asker looks for others much sooner.
const COMING_MAX: Duration = Duration::from_secs(60);

/// Bodies of one peer that are compressed in more than one piece at the same time; further ones wait. An encoder takes
/// some 0.6 MiB for as long as its body is under way, also while nobody reads it. A line on which zstd helps is full
/// with fewer.
pub(super) const ENCODERS_PER_PEER_MAX: usize = 8;

/// How much may be under way at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadLimits {
    /// Bodies to one peer: this many of NARs up to 8 MiB, and as many of larger ones.
    pub per_peer: usize,
    /// Threads that read from the disk for all peers.
    pub total: usize,
    /// Bytes per second to all peers together; `None` for no limit.
    pub bytes_per_s: Option<NonZeroU32>,
}

/// The uploads of this node; cheap to clone.
#[derive(Clone, Debug)]
pub struct Uploads(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    offer: Arc<Offer>,
    partial_copies: PartialCopies,
    referrals: Referrals,
    statistics: Arc<PeerStatistics>,
    may_compress: AtomicBool,
    readers: Arc<Semaphore>,
    /// Half of the cores may compress at the same time: compression takes ten times as long as the rest of an upload,
    /// and peers who ask for much of it must leave time to answer everybody else.
    compressors: Arc<Semaphore>,
    queue: Mutex<Queue>,
    rate: ByteRate,
    /// The rates of peers that have a limit of their own. Kept while such a peer asks for nothing, or its burst would begin
    /// anew each time.
    peer_rates: Mutex<HashMap<PeerId, ByteRate>>,
    rates: NarRates,
    peers: Mutex<HashMap<PeerId, Arc<PeerUploads>>>,
    ended: Notify,
}

/// A request that was let in, until it is done with.
struct QueuedRequest {
    uploads: Uploads,
    peer: PeerId,
    kind: Kind,
    ticket: Ticket,
    of_peer: Arc<PeerUploads>,
}

impl QueuedRequest {
    fn place(&self) -> Option<u32> {
        self.uploads.0.queue.lock().place(self.peer, self.kind, self.ticket)
    }

    /// Waits until the request is under way.
    async fn wait(&self) {
        let _waiting = Waiting::of(&self.of_peer);
        loop {
            let mut advanced = std::pin::pin!(self.of_peer.advanced.notified());
            // Before the check, so that no change after it is missed.
            advanced.as_mut().enable();
            if self.place().is_none() {
                return;
            }
            advanced.await;
        }
    }
}

impl Drop for QueuedRequest {
    fn drop(&mut self) {
        self.uploads.0.queue.lock().leave(self.peer, self.kind, self.ticket);
        self.of_peer.advanced.notify_waiters();
        self.uploads.0.ended.notify_waiters();
    }
}

impl Uploads {
    /// Serves what `offer` allows and what `partial_copies` have, and counts in `statistics`.
    pub fn new(
        offer: Arc<Offer>,
        partial_copies: PartialCopies,
        statistics: Arc<PeerStatistics>,
        limits: UploadLimits,
        may_compress: bool,
    ) -> Self {
        let rate = ByteRate::default();
        rate.set_rate(limits.bytes_per_s);
        // Half of the cores at most compress for peers; the rest is for this machine's own work.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Shared {
            offer,
            partial_copies,
            referrals: Referrals::default(),
            statistics,
            may_compress: AtomicBool::new(may_compress),
            readers: Arc::new(Semaphore::new(limits.total)),
            compressors: Arc::new(Semaphore::new((cores / 2).max(1))),
            queue: Mutex::new(Queue::new(limits.per_peer)),
            rate,
            peer_rates: Mutex::default(),
            rates: NarRates::default(),
            peers: Mutex::default(),
            ended: Notify::new(),
        }))
    }

    /// Applies another `limits.upload_bytes_per_s`, also to what is under way.
    pub fn set_rate(&self, bytes_per_s: Option<NonZeroU32>) {
        self.0.rate.set_rate(bytes_per_s);
    }

    /// Applies the `upload_bytes_per_s` of single peers, also to what is under way; peers that are not named have none.
    pub fn set_peer_rates(&self, limits: &HashMap<PeerId, NonZeroU32>) {
        let (mut rates, peers) = (self.0.peer_rates.lock(), self.0.peers.lock());
        rates.retain(|peer, rate| {
            let limit = limits.get(peer).copied();
            rate.set_rate(limit);
            limit.is_some()
        });
        for (peer, limit) in limits {
            let under_way = || peers.get(peer).map(|uploads| uploads.rate.clone()).unwrap_or_default();
            let rate = rates.entry(*peer).or_insert_with(under_way);
            rate.set_rate(Some(*limit));
        }
    }

    /// Applies another `transfer.compress`: whoever asks for zstd gets it, unless it is never to be used.
    pub fn set_compress(&self, may_compress: bool) {
        self.0.may_compress.store(may_compress, Ordering::Relaxed);
    }

    /// Waits until no body is under way; none is begun after this was called.
    pub async fn finish(&self) {
        self.0.queue.lock().close();
        loop {
            let mut ended = std::pin::pin!(self.0.ended.notified());
            // Listens before it looks, or the last one might end in between and nobody would tell.
            ended.as_mut().enable();
            if self.0.queue.lock().under_way() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Notes that we ourselves, as `me`, want a NAR that is not here, as peers do who ask us for one: says who wanted it before
    /// and passes it on, the first to be asked first.
    pub fn meet(&self, me: PeerId, request: &NarRequest) -> Vec<PeerId> {
        self.0.referrals.meet(me, request)
    }

    /// Serves a stream that a peer opened, or tells it why not.
    pub(super) fn accept(&self, incoming: Incoming, blame: Blame) {
        let of_peer = self.of_peer(incoming.peer);
        match Arc::clone(&of_peer.streams).try_acquire_owned() {
            Ok(permit) => {
                let this = self.clone();
                tokio::spawn(async move {
                    this.serve_stream(incoming, &of_peer, &blame).await;
                    drop(permit);
                });
            }
            Err(_) => {
                tracing::debug!(peer = %incoming.peer, "refused a NAR stream over the limit");
                // While the peer does not read these answers, its further streams are reset: each may hold 256 KiB of
                // what it sent.
                if let Ok(permit) = Arc::clone(&of_peer.turned_away).try_acquire_owned() {
                    tokio::spawn(async move {
                        // Either the peer is told so, or it does not read.
                        tokio::time::timeout(HEAD_STALL, turn_away(incoming.stream)).await.ok();
                        drop(permit);
                    });
                }
            }
        }
    }

    fn of_peer(&self, peer: PeerId) -> Arc<PeerUploads> {
        let (rates, mut peers) = (self.0.peer_rates.lock(), self.0.peers.lock());
        // Peers without any stream open are forgotten here, or the table would keep whoever once asked.
        peers.retain(|known, uploads| *known == peer || uploads.streams.available_permits() < STREAMS_PER_PEER_MAX);
        Arc::clone(
            peers
                .entry(peer)
                .or_insert_with(|| Arc::new(PeerUploads::new(rates.get(&peer).cloned().unwrap_or_default()))),
        )
    }

    async fn serve_stream(&self, incoming: Incoming, of_peer: &Arc<PeerUploads>, blame: &Blame) {
        let Incoming { peer, mut stream, connection } = incoming;
        loop {
            let request = match read_frame(&mut stream, NarRequest::BYTES_MAX).await {
                Ok(Some(frame)) => NarRequest::decode(&frame).ok(),
                // Longer than any request.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
                Ok(None) | Err(_) => return,
            };
            let Some(request) = request else { return blame.report_misdeed(peer, Misdeed::MalformedRequest) };
            // The connection must not be closed as idle while its request waits here.
            let in_use = connection.begin_use();
            // A request beyond the rate waits, and is not refused: it costs the peer its own time.
            self.0.rates.wait(&peer).await;
            let answered = self.answer(peer, &mut stream, of_peer, request).await;
            drop(in_use);
            if let Err(error) = answered {
                tracing::debug!(%peer, hash_part = %request.hash_part, %error, "NAR upload ended early");
                return;
            }
        }
    }

    async fn answer(
        &self,
        peer: PeerId,
        stream: &mut BulkStream,
        of_peer: &Arc<PeerUploads>,
        request: NarRequest,
    ) -> io::Result<()> {
        let is_offered = self.0.offer.is_offered(&request.hash_part);
        if !is_offered && !self.0.partial_copies.has(&request.nar_hash) {
            let named = self.0.referrals.meet(peer, &request);
            return reply(stream, if named.is_empty() { NarReply::Absent } else { name(&named) }).await;
        }
        // Who is sent what is only coming in here was named us by somebody who could send it as well.
        let admitted = if is_offered { self.0.referrals.admit(peer, &request).map(Some) } else { Ok(None) };
        let _sending = match admitted {
            Ok(sending) => sending,
            Err(named) => return reply(stream, name(&named)).await,
        };
        // What is not offered is answered before this, so that it takes no place in the queue.
        let Some(turn) = self.enter(peer, of_peer, request.nar_size) else {
            return reply(stream, NarReply::NotNow { place: 0, ask_again_ms: ASK_AGAIN_MS }).await;
        };
        wait_and_tell_place(stream, || turn.place().unwrap_or(1), turn.wait()).await?;
        let share = self.0.rate.join(peer, turn.ticket).under(&of_peer.rate);
        let zstd = request.accept_zstd && self.0.may_compress.load(Ordering::Relaxed);
        let head = NarReply::Body { zstd }.encode().map_err(io::Error::other)?;
        if is_offered
            && !zstd
            && share.is_free()
            && let Some(nar) = self.read_at_once(&request)
        {
            let mut body = BodyWriter::new(stream, of_peer, &share);
            let sent = body.write_at_once(&head, &nar).await;
            return self.count(peer, &body, sent);
        }
        // Opened only now: a request that waits in the queue takes no reader and holds no piece.
        let partial = if is_offered { None } else { self.find_partial(request).await? };
        let opened = wait_and_tell_place(stream, || 1, self.open(request, partial, zstd, of_peer)).await?;
        let (reader, first) = match opened? {
            Ok(Some(begun)) => begun,
            Ok(None) => return reply(stream, NarReply::Absent).await,
            Err(error) => {
                tracing::debug!(hash_part = %request.hash_part, %error, "one of our NARs cannot be opened");
                let not_now = NarReply::NotNow { place: 0, ask_again_ms: ASK_AGAIN_MS };
                return reply(stream, if error.may_pass() { not_now } else { NarReply::Absent }).await;
            }
        };
        let mut body = BodyWriter::new(stream, of_peer, &share);
        let sent = match first {
            // Under a rate even a small NAR has to wait for its share, so it is sent in slices.
            Ok(Some(whole)) if reader.is_complete() && share.is_free() => body.write_at_once(&head, &whole).await,
            first => self.send(&mut body, &head, reader, first, request).await,
        };
        self.count(peer, &body, sent)
    }

    /// Counts what was sent to this peer.
    fn count(&self, peer: PeerId, body: &BodyWriter<'_, BulkStream>, sent: io::Result<()>) -> io::Result<()> {
        self.0.statistics.update(&peer, |stats| stats.bytes_out += body.sent);
        sent
    }

    /// A whole small NAR, if reading it makes nobody wait.
    fn read_at_once(&self, request: &NarRequest) -> Option<Vec<u8>> {
        let NarRequest { hash_part, nar_hash, nar_size, offset, end, .. } = *request;
        if offset > 0 || end != nar_size {
            return None;
        }
        let is_wanted = |info: &PathInfo| info.nar_hash == nar_hash && info.nar_size == nar_size;
        self.0.offer.read_nar_at_once(&hash_part, is_wanted)
    }

    fn enter(&self, peer: PeerId, of_peer: &Arc<PeerUploads>, nar_size: u64) -> Option<QueuedRequest> {
        let kind = Kind::of(nar_size);
        let ticket = self.0.queue.lock().enter(peer, kind)?;
        Some(QueuedRequest { uploads: self.clone(), peer, kind, ticket, of_peer: Arc::clone(of_peer) })
    }

    /// What is coming in of this NAR, if the asker may have it.
    async fn find_partial(&self, request: NarRequest) -> io::Result<Option<Arc<PartialCopy>>> {
        let copies = self.0.partial_copies.clone();
        let find = move || copies.find(&request.hash_part, &request.nar_hash, request.nar_size);
        self.run_blocking(false, find).await
    }

    /// Opens the NAR, or its `partial` copy, and reads the first piece of what was asked for; `None` if it is not here.
    async fn open(
        &self,
        request: NarRequest,
        partial: Option<Arc<PartialCopy>>,
        zstd: bool,
        of_peer: &PeerUploads,
    ) -> io::Result<Result<Option<(Reader, Piece)>, ReadFailure>> {
        let offer = Arc::clone(&self.0.offer);
        let left = request.end.saturating_sub(request.offset);
        let bytes_max = BodyWriter::<BulkStream>::first_piece_bytes(of_peer, left);
        // Taken before the NAR is opened: while it is waited for, no file is open.
        let encoder = if zstd { Some(of_peer.wait_for_encoder().await?) } else { None };
        if let Some(copy) = partial {
            return Ok(match Reader::open_partial(copy, &request, encoder) {
                Ok(reader) => Ok(Some(self.read(reader, bytes_max).await?)),
                Err(error) => Err(error),
            });
        }
        self.run_blocking(zstd, move || {
            let Some(mut reader) = Reader::open(&offer, &request, encoder)? else { return Ok(None) };
            let first = reader.next(bytes_max);
            Ok(Some((reader, first)))
        })
        .await
    }

    /// Streams the body; ends it with `END_FAILED` when our copy is not what our database says.
    async fn send(
        &self,
        body: &mut BodyWriter<'_, BulkStream>,
        head: &[u8],
        mut reader: Reader,
        first: Piece,
        request: NarRequest,
    ) -> io::Result<()> {
        let mut framed = Vec::with_capacity(4 + head.len());
        write_frame(&mut framed, head).await?;
        body.write(&framed).await?;
        let mut piece = first;
        let status = loop {
            match piece {
                Ok(None) => break NarFrame::END_COMPLETE,
                Ok(Some(bytes)) => {
                    let bytes_max = body.piece_bytes();
                    // Reads ahead while it writes, so that the stream does not wait for the disk.
                    let (written, read) = tokio::join!(body.write_piece(&bytes), self.read(reader, bytes_max));
                    written?;
                    (reader, piece) = read?;
                }
                Err(error) => {
                    error.log(&request);
                    break NarFrame::END_FAILED;
                }
            }
        };
        body.end(status).await
    }

    async fn read(&self, mut reader: Reader, bytes_max: usize) -> io::Result<(Reader, Piece)> {
        // Outside of the blocking thread: bytes of a partial copy may not come for a while.
        if tokio::time::timeout(COMING_MAX, reader.wait_until_there()).await.is_err() {
            return Ok((reader, Err(ReadFailure::NothingComes)));
        }
        self.run_blocking(reader.is_compressing(), move || {
            let piece = reader.next(bytes_max);
            (reader, piece)
        })
        .await
    }

    /// Runs `work` on a blocking thread, when one of `uploads_total` is free and, if it compresses, when its turn for a
    /// compressor has come.
    async fn run_blocking<T: Send + 'static>(
        &self,
        compresses: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        // A compressor first, so that whoever waits for one keeps no reader from others.
        let compressor = if compresses { Some(acquire(&self.0.compressors).await?) } else { None };
        let permits = (compressor, acquire(&self.0.readers).await?);
        let run = move || {
            let done = work();
            drop(permits);
            done
        };
        tokio::task::spawn_blocking(run).await.map_err(io::Error::other)
    }
}

/// The next piece of a body, or its end.
type Piece = Result<Option<Vec<u8>>, ReadFailure>;
