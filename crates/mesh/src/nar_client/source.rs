//! One request at one holder: what it says, and the bytes that it sends.

use super::decode::Unpacker;
use super::inbox::Chunk;
use super::{Asked, Asking, BROKEN_MAX, NarRequestError, SlotInUse};
use crate::clock::moment;
use futures::future::{BoxFuture, poll_fn};
use libp2p::PeerId;
use narmesh_machine::{Bucket, Tokens};
use narmesh_protocol::AudienceDigest;
use narmesh_protocol::wire::{NarFrame, NarReply, Referral};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// A step brings at most about this many bytes, so that a quick line costs few steps and does not starve others.
const STEP_BYTES: usize = 256 << 10;
/// The time after which a holder wants to be asked again is taken within these bounds.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(50);
/// See [`ASK_AGAIN_MIN`].
const ASK_AGAIN_MAX: Duration = Duration::from_secs(10);

/// How often a holder may say *not now*. It tells a request's place in its queue at most once a second; one that says
/// it more often only keeps us busy. What arrives late and at once is within the burst.
const WORDS: Bucket = Bucket { burst: 64, per_s: 4 };

/// What a compressed body may take more than its bytes of the NAR: a 64th, and this. zstd adds 3 bytes to each block
/// that it cannot compress, and a holder may end a block with each piece that it reads, of 16 KiB at the least.
const PACKED_EXCESS_BYTES: u64 = 64 << 10;

/// What the holder says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NarPiece {
    /// It has the NAR, and sends it later: the request has this place in its queue. At place 0 it is in no queue, and
    /// is asked again by itself.
    NotNow {
        /// From 1; 0 for none.
        place: u32,
    },
    /// Bytes of the body; perhaps none were appended.
    Data,
    /// It names others who have the NAR on its way; the first is to be asked first.
    Others(Vec<AudienceDigest>),
    /// It does not have that NAR (any more).
    Absent,
    /// It says that this was all.
    Complete,
    /// It says that it cannot finish.
    Failed,
}

/// One NAR asked of one peer. Dropping it before its end closes its stream, so that the holder stops.
pub struct NarSource {
    asking: Asking,
    state: State,
    broken_left: u32,
    has_begun: bool,
    wire_bytes: u64,
    /// How often it has said *not now*.
    words: Tokens,
    _held: SlotInUse,
}

enum State {
    /// Waits for the head of the answer.
    Waiting(Asked),
    /// Waits before the request is written again on the same stream.
    Pausing(Asked, Pin<Box<Sleep>>),
    /// The request is being written again.
    Asking(BoxFuture<'static, Result<Asked, NarRequestError>>),
    Body(Asked, Body),
    Ended(NarPiece),
}

/// How far the body has been read.
struct Body {
    unpacker: Option<Unpacker>,
    /// How many bytes may come. Otherwise a holder could send zstd frames and blocks that hold nothing, without end.
    wire_bytes_max: u64,
    chunk_left: usize,
    /// What was found after bytes that had to be handed over first.
    found: Option<io::Result<NarPiece>>,
}

impl std::fmt::Debug for NarSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NarSource").field("peer", &self.asking.peer).finish_non_exhaustive()
    }
}

impl NarSource {
    pub(super) fn new(asking: Asking, asked: Asked, held: SlotInUse) -> Self {
        Self {
            asking,
            state: State::Waiting(asked),
            broken_left: BROKEN_MAX,
            has_begun: false,
            wire_bytes: 0,
            words: Tokens::default(),
            _held: held,
        }
    }

    /// The peer that is asked.
    pub fn peer(&self) -> PeerId {
        self.asking.peer
    }

    /// Bytes of the body that came so far, as they were on the wire.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// Whether the body has begun: what breaks the protocol before that is a malformed answer, after it a false NAR.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The next thing that the holder says. Appends bytes of the body to `out`, at most `bytes_max`: more are an error,
    /// and an error appends none. No byte is lost when the future is dropped. [`io::ErrorKind::InvalidData`] means that
    /// the holder broke the protocol.
    pub async fn next(&mut self, out: &mut Vec<u8>, bytes_max: u64) -> io::Result<NarPiece> {
        poll_fn(|context| self.poll_next(context, out, bytes_max)).await
    }

    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        out: &mut Vec<u8>,
        bytes_max: u64,
    ) -> Poll<io::Result<NarPiece>> {
        loop {
            match &mut self.state {
                State::Ended(piece) => return Poll::Ready(Ok(piece.clone())),
                State::Body(asked, body) => {
                    let polled = body.poll(context, asked, (out, bytes_max), &mut self.wire_bytes);
                    let piece = ready!(polled);
                    match piece {
                        Ok(NarPiece::Data) => {}
                        Ok(ref last) => self.end(last.clone()),
                        // No other request can be sent on that stream.
                        Err(_) => drop(self.take()),
                    }
                    return Poll::Ready(piece);
                }
                State::Pausing(_, pause) => {
                    ready!(pause.as_mut().poll(context));
                    if let State::Pausing(asked, _) = self.take() {
                        self.state = State::Asking(Box::pin(self.asking.clone().ask_again(asked)));
                    }
                }
                State::Asking(asking) => match ready!(asking.as_mut().poll(context)) {
                    Ok(asked) => self.state = State::Waiting(asked),
                    Err(error) => {
                        self.state = State::Ended(NarPiece::Failed);
                        return Poll::Ready(Err(error.into()));
                    }
                },
                State::Waiting(asked) => {
                    let frame = ready!(asked.inbox.poll_frame(context, NarReply::BYTES_MAX));
                    if let Some(piece) = self.on_head(frame).transpose() {
                        return Poll::Ready(piece);
                    }
                }
            }
        }
    }

    /// What a head means; `None` if the caller need not hear of it.
    fn on_head(&mut self, frame: io::Result<Vec<u8>>) -> io::Result<Option<NarPiece>> {
        let State::Waiting(asked) = self.take() else { return Ok(None) };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            Err(error) => {
                // A pooled stream was closed while idle, and each is tried once. A fresh one broke with its connection,
                // which may happen only a few times.
                if asked.is_fresh {
                    self.broken_left = self.broken_left.checked_sub(1).ok_or(error)?;
                }
                let asking = self.asking.clone();
                self.state = State::Asking(Box::pin(async move { asking.ask().await }));
                return Ok(None);
            }
        };
        let head = NarReply::decode(&frame).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.broken_left = BROKEN_MAX;
        Ok(match head {
            NarReply::Body { zstd } => {
                self.has_begun = true;
                let request = &self.asking.request;
                // Only the asker knows whether unpacking is worth it on this line.
                if zstd && !request.accept_zstd {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a compressed body, which was not asked for",
                    ));
                }
                let unpacker = if zstd { Some(Unpacker::new()?) } else { None };
                // Compression grows what cannot be compressed, but only by little: more than that leads nowhere.
                let bytes = request.end.saturating_sub(request.offset);
                let wire_bytes_max = bytes.saturating_add(bytes / 64).saturating_add(PACKED_EXCESS_BYTES);
                self.state = State::Body(asked, Body { unpacker, wire_bytes_max, chunk_left: 0, found: None });
                None
            }
            NarReply::Absent => {
                self.state = State::Waiting(asked);
                self.end(NarPiece::Absent);
                Some(NarPiece::Absent)
            }
            NarReply::Others { peers } => {
                // Unasked, a holder would choose for us whom we ask next.
                let is_answer = self.asking.request.referral != Referral::Declined;
                if !is_answer || peers.is_empty() || peers.len() > NarReply::OTHERS_MAX {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "names that were not asked for"));
                }
                self.state = State::Waiting(asked);
                self.end(NarPiece::Others(peers.clone()));
                Some(NarPiece::Others(peers))
            }
            NarReply::NotNow { place, ask_again_ms } => {
                if !self.words.try_take(WORDS, moment()) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the holder tells a place in its queue too often",
                    ));
                }
                let ask_again = Duration::from_millis(ask_again_ms.into()).clamp(ASK_AGAIN_MIN, ASK_AGAIN_MAX);
                // Without a place nothing stands there for us, so we ask again ourselves.
                self.state = match place {
                    0 => State::Pausing(asked, Box::pin(sleep(ask_again))),
                    _ => State::Waiting(asked),
                };
                Some(NarPiece::NotNow { place })
            }
        })
    }

    /// Ends the answer; if the stream is in order, it takes the next request.
    fn end(&mut self, piece: NarPiece) {
        let asked = match std::mem::replace(&mut self.state, State::Ended(piece)) {
            State::Waiting(asked) | State::Body(asked, _) => asked,
            State::Pausing(..) | State::Asking(_) | State::Ended(_) => return,
        };
        self.asking.of_peer.put_back(asked);
    }

    fn take(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Ended(NarPiece::Failed))
    }
}

impl Body {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        asked: &mut Asked,
        (out, bytes_max): (&mut Vec<u8>, u64),
        wire_bytes: &mut u64,
    ) -> Poll<io::Result<NarPiece>> {
        if let Some(found) = self.found.take() {
            return Poll::Ready(found);
        }
        let before = out.len();
        while out.len() - before < STEP_BYTES {
            let left = bytes_max.saturating_sub((out.len() - before) as u64);
            let step = self.poll_step(context, asked, (out, left), wire_bytes);
            match step {
                Poll::Ready(Ok(NarPiece::Data)) => continue,
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    // What came in the same step as bytes that break a rule is not worth anything either.
                    out.truncate(before);
                    return Poll::Ready(Err(error));
                }
                Poll::Pending | Poll::Ready(_) if out.len() == before => return step,
                Poll::Pending => {}
                // The bytes before it are good, and are handed over first.
                Poll::Ready(found) => self.found = Some(found),
            }
            break;
        }
        Poll::Ready(Ok(NarPiece::Data))
    }

    fn poll_step(
        &mut self,
        context: &mut Context<'_>,
        asked: &mut Asked,
        (out, bytes_max): (&mut Vec<u8>, u64),
        wire_bytes: &mut u64,
    ) -> Poll<io::Result<NarPiece>> {
        let has_more = self.unpacker.as_ref().is_some_and(|unpacker| unpacker.has_more);
        if self.chunk_left == 0 && !has_more {
            match ready!(asked.inbox.poll_chunk(context))? {
                Chunk::Data(bytes) => self.chunk_left = bytes,
                Chunk::End(NarFrame::END_COMPLETE) => return Poll::Ready(Ok(NarPiece::Complete)),
                Chunk::End(_) => return Poll::Ready(Ok(NarPiece::Failed)),
            }
        }
        // What the decoder still holds comes out without further input.
        if asked.inbox.waiting().is_empty() && !has_more {
            ready!(asked.inbox.poll_fill(context))?;
        }
        let came = asked.inbox.waiting();
        let came = came.get(..self.chunk_left).unwrap_or(came);
        let (before, used) = (
            out.len(),
            match &mut self.unpacker {
                // The length of a chunk already says that it is too long; nothing of it is taken.
                None if self.chunk_left as u64 > bytes_max => return Poll::Ready(Err(too_long())),
                None => {
                    out.extend_from_slice(came);
                    came.len()
                }
                Some(unpacker) => unpacker.unpack(if has_more { &[] } else { came }, out)?,
            },
        );
        if (out.len() - before) as u64 > bytes_max {
            return Poll::Ready(Err(too_long()));
        }
        asked.inbox.take(used);
        self.chunk_left -= used;
        *wire_bytes += used as u64;
        if *wire_bytes > self.wire_bytes_max {
            return Poll::Ready(Err(too_long()));
        }
        Poll::Ready(Ok(NarPiece::Data))
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "body longer than the NAR it was asked for")
}
