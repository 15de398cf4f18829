//! Asking a peer for a NAR: a pool of streams on its bulk connection, one framed request after the other on each.
//!
//! Walk: [`NarPool::request`] writes a request and gives a [`NarSource`]; [`NarSource::next`] says what the holder
//! says. `inbox` takes frames from a stream, `decode` unpacks, `lines` counts what moves.
//! Streams are reused: one stream per NAR is 12 times slower over a WAN (design figures, 80 ms round trip). A stream
//! that ends before an answer was closed by the other side while idle, or broke with its connection: the request is
//! sent again without the caller noticing.

mod decode;
mod inbox;
mod lines;
mod slots;
mod source;

use super::bulk::{Bulk, BulkStream, Connection, InUse};
use super::framing::write_frame;
use futures::AsyncWriteExt;
use inbox::Inbox;
use libp2p::PeerId;
pub use lines::LineView;
use lines::{InFlight, Line};
use narmesh_protocol::wire::NarRequest;
use parking_lot::Mutex;
use slots::Slots;
pub use source::{NarPiece, NarSource};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Idle streams kept per peer: as many as today's Nix has requests under way.
const IDLE_STREAMS_MAX: usize = 16;
/// How often one request may find a fresh stream closed before its answer: the connection broke, and so did the next.
const BROKEN_MAX: u32 = 2;

/// Streams to all peers, reused; cheap to clone.
#[derive(Clone, Debug)]
pub struct NarPool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bulk: Bulk,
    peers: Mutex<HashMap<PeerId, Arc<PeerPool>>>,
}

struct PeerPool {
    idle: Mutex<Vec<Idle>>,
    slots: Slots,
    line: Arc<Line>,
}

impl std::fmt::Debug for PeerPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerPool").field("idle", &self.idle.lock().len()).finish_non_exhaustive()
    }
}

struct Idle {
    stream: BulkStream,
    connection: Connection,
}

/// Why no request was sent.
#[derive(Debug, thiserror::Error)]
pub enum NarRequestError {
    /// There is no bulk connection with that peer, and none could be made.
    #[error("{0}")]
    NotConnected(String),
    /// The connection failed.
    #[error("connection")]
    Io(#[from] io::Error),
}

impl From<NarRequestError> for io::Error {
    fn from(error: NarRequestError) -> Self {
        match error {
            NarRequestError::Io(error) => error,
            NarRequestError::NotConnected(_) => Self::new(io::ErrorKind::NotConnected, error.to_string()),
        }
    }
}

/// A stream on which a request was written.
struct Asked {
    inbox: Inbox,
    connection: Connection,
    /// It was opened for this request: if it ends, its connection broke.
    is_fresh: bool,
    _in_use: InUse,
}

impl NarPool {
    pub(super) fn new(bulk: Bulk) -> Self {
        Self(Arc::new(Shared { bulk, peers: Mutex::default() }))
    }

    /// Has the bulk connection with `peer` dialled in advance; returns at once.
    pub fn prepare(&self, peer: PeerId) {
        self.0.bulk.prepare(peer);
    }

    /// Sends a request on a pooled or fresh stream of the bulk connection, dialling it if need be; returns when it is
    /// written. What the holder says comes from [`NarSource::next`]. If as many requests are under way as may be, it
    /// waits for one of them to end.
    pub async fn request(&self, peer: PeerId, request: NarRequest) -> Result<NarSource, NarRequestError> {
        let bytes = request.encode().map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(4 + bytes.len());
        write_frame(&mut frame, &bytes).await?;
        let of_peer = self.of_peer(peer);
        // Counts as under way already while it waits for a slot.
        let in_flight = of_peer.line.begin();
        let slot = of_peer.slots.take(request.nar_size).await?;
        let asking = Asking { pool: self.clone(), peer, of_peer, request, frame: frame.into() };
        let asked = asking.ask().await?;
        Ok(NarSource::new(asking, asked, SlotInUse { _slot: slot, _in_flight: in_flight }))
    }

    /// What moves between us and this peer, for the pace and the choice of holders. From memory.
    pub fn line(&self, peer: &PeerId) -> LineView {
        self.0.peers.lock().get(peer).map(|of_peer| of_peer.line.view()).unwrap_or_default()
    }

    /// Whether a bulk connection is open.
    #[cfg(test)]
    pub(super) fn is_connected(&self, peer: &PeerId) -> bool {
        self.0.bulk.is_connected(peer)
    }

    /// Drops what is kept for a peer that left the allowlist.
    pub fn forget(&self, peer: &PeerId) {
        self.0.bulk.forget(peer);
        self.0.peers.lock().remove(peer);
    }

    /// The peer is no longer connected: its idle streams are worth nothing.
    pub(super) fn on_disconnected(&self, peer: &PeerId) {
        if let Some(of_peer) = self.0.peers.lock().get(peer) {
            of_peer.idle.lock().clear();
        }
    }

    fn of_peer(&self, peer: PeerId) -> Arc<PeerPool> {
        let mut peers = self.0.peers.lock();
        let fresh = || PeerPool { idle: Mutex::default(), slots: Slots::default(), line: Arc::default() };
        Arc::clone(peers.entry(peer).or_insert_with(|| Arc::new(fresh())))
    }
}

impl PeerPool {
    fn pop_idle(&self) -> Option<Idle> {
        let mut idle = self.idle.lock();
        idle.retain(|idle| idle.connection.takes_requests());
        idle.pop()
    }

    fn put_back(&self, asked: Asked) {
        let Some(stream) = asked.inbox.into_idle() else { return };
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_STREAMS_MAX && asked.connection.takes_requests() {
            idle.push(Idle { stream, connection: asked.connection });
        }
    }
}

/// What one request takes up at its peer while it lasts.
struct SlotInUse {
    _slot: OwnedSemaphorePermit,
    _in_flight: InFlight,
}

/// One request, which may have to be written more than once.
#[derive(Clone)]
struct Asking {
    pool: NarPool,
    peer: PeerId,
    of_peer: Arc<PeerPool>,
    request: NarRequest,
    /// The request as it is written.
    frame: Arc<[u8]>,
}

impl Asking {
    /// Writes the request on some stream.
    async fn ask(&self) -> Result<Asked, NarRequestError> {
        // A stream that is open already saves a round trip.
        while let Some(Idle { stream, connection }) = self.of_peer.pop_idle() {
            // It may have been closed while idle, so an error here says nothing.
            if let Ok(asked) = self.ask_on(stream, connection, false).await {
                return Ok(asked);
            }
        }
        let mut broken = 0;
        loop {
            let connection = self.pool.0.bulk.connect(self.peer).await.map_err(NarRequestError::NotConnected)?;
            let asked = match connection.open_stream().await {
                Ok(stream) => self.ask_on(stream, connection, true).await,
                Err(error) => Err(error),
            };
            match asked {
                Ok(asked) => return Ok(asked),
                Err(error) if broken == BROKEN_MAX => return Err(error.into()),
                Err(_) => broken += 1,
            }
        }
    }

    async fn ask_on(&self, mut stream: BulkStream, connection: Connection, is_fresh: bool) -> io::Result<Asked> {
        let in_use = connection.begin_use();
        self.write_request(&mut stream).await?;
        let inbox = Inbox::new(stream, Arc::clone(&self.of_peer.line));
        Ok(Asked { inbox, connection, is_fresh, _in_use: in_use })
    }

    /// Writes the request once more, on its own stream if that is still there.
    async fn ask_again(self, mut asked: Asked) -> Result<Asked, NarRequestError> {
        match self.write_request(&mut asked.inbox.stream).await {
            Ok(()) => Ok(asked),
            Err(_) => self.ask().await,
        }
    }

    async fn write_request(&self, stream: &mut BulkStream) -> io::Result<()> {
        stream.write_all(&self.frame).await?;
        stream.flush().await
    }
}
