//! Asking a peer for a NAR: a pool of persistent streams, one framed request after the other on each.
//!
//! Never a stream per NAR: that is 12 times slower over a WAN (design figures, 80 ms round trip). A pooled stream that ends before
//! the first byte of an answer was closed by the other side while idle; the request is repeated once on a fresh one.

use super::framing::{Chunk, read_chunk, read_frame, write_frame};
use futures::AsyncWriteExt;
use libp2p::{PeerId, Stream, StreamProtocol};
use libp2p_stream::Control;
use narmesh_protocol::wire::{NAR_PROTOCOL, NarFrame, NarReply, NarRequest};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Idle streams kept per peer.
const IDLE_STREAMS_MAX: usize = 8;
/// Requests under way per peer: what a holder grants by default (`uploads_per_peer`).
const IN_FLIGHT_MAX: usize = 4;

/// Streams to all peers, reused.
#[derive(Clone)]
pub struct NarPool {
    control: Control,
    peers: Arc<Mutex<HashMap<PeerId, PeerPool>>>,
}

impl std::fmt::Debug for NarPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NarPool").field("peers", &self.peers.lock().len()).finish_non_exhaustive()
    }
}

struct PeerPool {
    idle: Vec<Stream>,
    in_flight: Arc<Semaphore>,
}

/// Why a holder sends no NAR.
#[derive(Debug, thiserror::Error)]
pub enum NarOpenError {
    /// It does not have that NAR (any more).
    #[error("absent")]
    Absent,
    /// Its upload limits are reached.
    #[error("busy")]
    Busy,
    /// No answer within the deadline.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection failed.
    #[error("connection")]
    Io(#[from] io::Error),
    /// It broke the protocol.
    #[error("malformed answer")]
    Malformed,
}

impl NarPool {
    pub(super) fn new(control: Control) -> Self {
        Self { control, peers: Arc::default() }
    }

    /// Asks `peer` for a NAR and waits for the head of its answer, at most `timeout`.
    pub async fn open(&self, peer: PeerId, request: NarRequest, timeout: Duration) -> Result<NarSource, NarOpenError> {
        let in_flight = self.with_peer(peer, |pool| Arc::clone(&pool.in_flight));
        // More than the holder would grant: the same as its own "busy".
        let permit = in_flight.try_acquire_owned().map_err(|_| NarOpenError::Busy)?;
        let exchange = async {
            while let Some(stream) = self.with_peer(peer, |pool| pool.idle.pop()) {
                match ask(stream, &request).await {
                    // Closed while idle: nothing was answered, so nothing is asked twice.
                    Err(AskFailure::BeforeAnswer(_)) => {}
                    Err(AskFailure::Malformed) => return Err(NarOpenError::Malformed),
                    Ok(answered) => return Ok(answered),
                }
            }
            let protocol = StreamProtocol::new(NAR_PROTOCOL);
            let stream = self.control.clone().open_stream(peer, protocol).await.map_err(io::Error::other)?;
            match ask(stream, &request).await {
                Ok(answered) => Ok(answered),
                Err(AskFailure::BeforeAnswer(error)) => Err(NarOpenError::Io(error)),
                Err(AskFailure::Malformed) => Err(NarOpenError::Malformed),
            }
        };
        let (stream, reply) =
            tokio::time::timeout(timeout, exchange).await.map_err(|_| NarOpenError::Timeout(timeout))??;
        match reply {
            NarReply::Body { zstd } => {
                let decoder = if zstd { Some(zstd_decoder()?) } else { None };
                Ok(NarSource {
                    peer,
                    stream: Some(stream),
                    decoder,
                    pool: self.clone(),
                    _permit: permit,
                    packed: Vec::new(),
                    wire_bytes: 0,
                })
            }
            NarReply::Absent => {
                self.put_back(peer, stream);
                Err(NarOpenError::Absent)
            }
            NarReply::Busy => {
                self.put_back(peer, stream);
                Err(NarOpenError::Busy)
            }
        }
    }

    /// Drops what is kept for a peer that left the allowlist.
    pub fn forget(&self, peer: &PeerId) {
        self.peers.lock().remove(peer);
    }

    fn put_back(&self, peer: PeerId, stream: Stream) {
        self.with_peer(peer, |pool| {
            if pool.idle.len() < IDLE_STREAMS_MAX {
                pool.idle.push(stream);
            }
        });
    }

    fn with_peer<T>(&self, peer: PeerId, act: impl FnOnce(&mut PeerPool) -> T) -> T {
        let mut peers = self.peers.lock();
        act(peers
            .entry(peer)
            .or_insert_with(|| PeerPool { idle: Vec::new(), in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)) }))
    }
}

enum AskFailure {
    BeforeAnswer(io::Error),
    Malformed,
}

async fn ask(mut stream: Stream, request: &NarRequest) -> Result<(Stream, NarReply), AskFailure> {
    let bytes = request.encode().map_err(|_| AskFailure::Malformed)?;
    let exchange = async {
        write_frame(&mut stream, &bytes).await?;
        stream.flush().await?;
        read_frame(&mut stream, NarReply::BYTES_MAX).await
    };
    let frame = exchange.await.map_err(AskFailure::BeforeAnswer)?;
    let frame = frame.ok_or_else(|| AskFailure::BeforeAnswer(io::ErrorKind::UnexpectedEof.into()))?;
    let reply = NarReply::decode(&frame).map_err(|_| AskFailure::Malformed)?;
    Ok((stream, reply))
}

/// The body of one NAR from one peer. Dropping it before its end closes its stream.
pub struct NarSource {
    peer: PeerId,
    stream: Option<Stream>,
    decoder: Option<zstd::stream::raw::Decoder<'static>>,
    pool: NarPool,
    _permit: OwnedSemaphorePermit,
    packed: Vec<u8>,
    wire_bytes: u64,
}

impl std::fmt::Debug for NarSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NarSource")
            .field("peer", &self.peer)
            .field("zstd", &self.decoder.is_some())
            .finish_non_exhaustive()
    }
}

/// What [`NarSource::read`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NarPiece {
    /// Bytes were appended.
    Data,
    /// The holder says that was all, and that it hashed right at its end.
    Complete,
    /// The holder says that it cannot finish.
    Failed,
}

impl NarSource {
    /// Whose body it is.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Bytes that came over the wire so far.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// Appends the next bytes to `out`, at most `bytes_max` of them: what decompresses to more is malformed.
    pub async fn read(&mut self, out: &mut Vec<u8>, bytes_max: u64) -> io::Result<NarPiece> {
        let Some(stream) = &mut self.stream else { return Ok(NarPiece::Failed) };
        let chunk = match &mut self.decoder {
            None => {
                let before = out.len();
                let chunk = read_chunk(stream, out).await?;
                if (out.len() - before) as u64 > bytes_max {
                    return Err(too_long());
                }
                chunk
            }
            Some(decoder) => {
                self.packed.clear();
                let chunk = read_chunk(stream, &mut self.packed).await?;
                unpack(decoder, &self.packed, out, bytes_max)?;
                chunk
            }
        };
        match chunk {
            Chunk::Data(bytes) => {
                self.wire_bytes += bytes as u64;
                Ok(NarPiece::Data)
            }
            Chunk::End(status) => {
                if let Some(stream) = self.stream.take() {
                    self.pool.put_back(self.peer, stream);
                }
                Ok(if status == NarFrame::END_COMPLETE { NarPiece::Complete } else { NarPiece::Failed })
            }
        }
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "body longer than the NAR it was asked for")
}

fn zstd_decoder() -> io::Result<zstd::stream::raw::Decoder<'static>> {
    let mut decoder = zstd::stream::raw::Decoder::new()?;
    // 8 MiB windows: what level 3 and below ever use. A frame that asks for more is refused before memory is taken.
    decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(23))?;
    Ok(decoder)
}

fn unpack(
    decoder: &mut zstd::stream::raw::Decoder<'static>,
    mut packed: &[u8],
    out: &mut Vec<u8>,
    bytes_max: u64,
) -> io::Result<()> {
    use zstd::stream::raw::{InBuffer, Operation, OutBuffer};
    let start = out.len();
    let mut space = [0_u8; 64 << 10];
    loop {
        let mut input = InBuffer::around(packed);
        let mut output = OutBuffer::around(&mut space[..]);
        decoder.run(&mut input, &mut output)?;
        let (consumed, produced) = (input.pos(), output.pos());
        packed = packed.get(consumed..).unwrap_or_default();
        out.extend_from_slice(space.get(..produced).unwrap_or_default());
        if (out.len() - start) as u64 > bytes_max {
            return Err(too_long());
        }
        if packed.is_empty() && produced < space.len() {
            return Ok(());
        }
        if consumed == 0 && produced == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "zstd frame ended before the body"));
        }
    }
}
