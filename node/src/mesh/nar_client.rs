//! Asking a peer for a NAR: a pool of persistent streams, one framed request after the other on each.
//!
//! Never a stream per NAR: that is 12 times slower over a WAN (design figures, 80 ms round trip). A pooled stream that ends before
//! the first byte of an answer was closed by the other side while idle; the request is repeated once on a fresh one.

use super::framing::{Chunk, read_chunk_head, read_frame, read_some, write_frame};
use super::nar_server::Slots;
use futures::AsyncWriteExt;
use libp2p::{PeerId, Stream, StreamProtocol};
use libp2p_stream::Control;
use narmesh_protocol::wire::{NAR_PROTOCOL, NarFrame, NarReply, NarRequest};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Idle streams kept per peer.
const IDLE_STREAMS_MAX: usize = 8;
/// Streams opened for one request: libp2p-stream drops what comes in the same moment as another, and such a stream ends before
/// the first byte of an answer.
const FRESH_STREAMS_MAX: usize = 6;
/// Decompressed bytes per step.
const UNPACKED_BYTES_MAX: usize = 256 << 10;
/// Requests under way per peer, for large and for small NARs each: what a holder grants by default (`uploads_per_peer`).
const IN_FLIGHT_MAX: usize = 16;

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
    in_flight: Slots,
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
        let in_flight = self.with_peer(peer, |pool| Arc::clone(pool.in_flight.of(request.nar_size)));
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
            let mut tries_left = FRESH_STREAMS_MAX;
            loop {
                let protocol = StreamProtocol::new(NAR_PROTOCOL);
                let stream = self.control.clone().open_stream(peer, protocol).await.map_err(io::Error::other)?;
                tries_left -= 1;
                match ask(stream, &request).await {
                    Ok(answered) => return Ok(answered),
                    Err(AskFailure::BeforeAnswer(error)) if tries_left == 0 => return Err(NarOpenError::Io(error)),
                    // One of several that were opened at once and that the other side could not take.
                    Err(AskFailure::BeforeAnswer(_)) => {}
                    Err(AskFailure::Malformed) => return Err(NarOpenError::Malformed),
                }
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
                    chunk_left: 0,
                    packed: Vec::new(),
                    packed_at: 0,
                    has_more_unpacked: false,
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
        act(peers.entry(peer).or_insert_with(|| PeerPool { idle: Vec::new(), in_flight: Slots::new(IN_FLIGHT_MAX) }))
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
    let frame = exchange.await.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => AskFailure::Malformed,
        _ => AskFailure::BeforeAnswer(error),
    })?;
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
    /// Bytes of the current chunk that were not read yet.
    chunk_left: usize,
    packed: Vec<u8>,
    packed_at: usize,
    has_more_unpacked: bool,
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
        if self.chunk_left == 0 && !self.has_more_unpacked {
            match read_chunk_head(stream).await? {
                Chunk::Data(bytes) => self.chunk_left = bytes,
                Chunk::End(status) => {
                    if let Some(stream) = self.stream.take() {
                        self.pool.put_back(self.peer, stream);
                    }
                    return Ok(if status == NarFrame::END_COMPLETE { NarPiece::Complete } else { NarPiece::Failed });
                }
            }
        }
        let bytes = match &mut self.decoder {
            None => {
                if self.chunk_left as u64 > bytes_max {
                    return Err(too_long());
                }
                read_some(stream, out, self.chunk_left).await?
            }
            Some(decoder) => {
                let bytes = if self.has_more_unpacked {
                    0
                } else {
                    self.packed_at = 0;
                    self.packed.clear();
                    read_some(stream, &mut self.packed, self.chunk_left).await?
                };
                let before = out.len();
                self.has_more_unpacked = unpack(decoder, &self.packed, &mut self.packed_at, out)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                if (out.len() - before) as u64 > bytes_max {
                    return Err(too_long());
                }
                bytes
            }
        };
        self.chunk_left -= bytes;
        self.wire_bytes += bytes as u64;
        Ok(NarPiece::Data)
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

/// Decompresses `packed` from `*packed_at` on, onto the end of `out`: at most [`UNPACKED_BYTES_MAX`] at a time, however much the
/// frame holds. Says whether more may come without further input.
fn unpack(
    decoder: &mut zstd::stream::raw::Decoder<'static>,
    packed: &[u8],
    packed_at: &mut usize,
    out: &mut Vec<u8>,
) -> io::Result<bool> {
    use zstd::stream::raw::{InBuffer, Operation, OutBuffer};
    let before = out.len();
    out.resize(before + UNPACKED_BYTES_MAX, 0);
    let mut produced = 0;
    let unpacked = loop {
        let input_left = packed.get(*packed_at..).unwrap_or_default();
        let mut input = InBuffer::around(input_left);
        let mut output = OutBuffer::around(out.get_mut(before + produced..).unwrap_or_default());
        let run = decoder.run(&mut input, &mut output);
        let (consumed, written) = (input.pos(), output.pos());
        *packed_at += consumed;
        produced += written;
        if let Err(error) = run {
            break Err(error);
        }
        if produced == UNPACKED_BYTES_MAX {
            break Ok(true);
        }
        if *packed_at == packed.len() {
            break Ok(false);
        }
        if consumed == 0 && written == 0 {
            break Err(io::Error::new(io::ErrorKind::InvalidData, "zstd frame ended before the body"));
        }
    };
    out.truncate(before + produced);
    unpacked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_unpacked_in_bounded_pieces() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert!(bomb.len() < 64 << 10);
        let mut decoder = zstd_decoder().unwrap();
        let (mut at, mut total) = (0, 0);
        loop {
            let mut out = Vec::new();
            let more = unpack(&mut decoder, &bomb, &mut at, &mut out).unwrap();
            assert!(out.len() <= UNPACKED_BYTES_MAX);
            total += out.len();
            if !more {
                break;
            }
        }
        assert_eq!(total, 64 << 20);
    }

    #[test]
    fn bytes_after_the_frame_are_refused() {
        let mut packed = zstd::bulk::compress(b"nar", 1).unwrap();
        packed.extend_from_slice(b"not zstd");
        let mut decoder = zstd_decoder().unwrap();
        assert!(unpack(&mut decoder, &packed, &mut 0, &mut Vec::new()).is_err());
    }
}
