//! One source under way in a transfer: its request, what it sent that was not taken over yet, and its pace.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::source::{Line, NarFeed, Piece, SourceId};

/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;
/// The pace of a source is measured over at least so long (a guess, not measured: several round trips of any line).
const PACE_WINDOW: Duration = Duration::from_secs(1);
/// A request in a queue moves when so much came over the line: more than the words with which a source says that it lives.
const QUEUE_PROGRESS_BYTES: u64 = 4 << 10;

/// What a runner waits for.
enum Turn {
    /// The request is on its way.
    Opening(BoxFuture<'static, io::Result<Box<dyn NarFeed>>>),
    /// The source is to say what comes next.
    Reading(BoxFuture<'static, Read>),
    /// Nobody wants more of it now.
    Resting(Box<dyn NarFeed>),
    /// It failed.
    Ended,
}

/// What one reading brought.
struct Read {
    feed: Box<dyn NarFeed>,
    bytes: Vec<u8>,
    piece: io::Result<Piece>,
}

/// What a runner says.
#[derive(Debug)]
pub(super) enum Said {
    /// The request is on its way; nothing came yet.
    Opened,
    /// Bytes of the NAR.
    Data(Vec<u8>),
    /// Anything else that a source can say.
    Other(Piece),
    /// The connection or the protocol broke.
    Broke(io::Error),
}

/// One source under way. Times are those that the transfer spent waiting, so that nobody is slow because Nix is.
pub(super) struct Runner {
    pub(super) source: SourceId,
    turn: Turn,
    /// What it sent from the transfer's offset on, while it races with another.
    pub(super) tail: Vec<u8>,
    bytes: u64,
    wire_bytes: u64,
    since: Duration,
    line_at_start: u64,
    progress: Progress,
    pace: Pace,
}

/// When something last moved.
#[derive(Clone, Copy)]
struct Progress {
    at: Duration,
    /// Of the whole line, then.
    line_bytes: u64,
    place: Option<u32>,
}

/// Bytes per second over the last window.
#[derive(Clone, Copy)]
struct Pace {
    from: Duration,
    from_bytes: u64,
    last: Option<u64>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("source", &self.source).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Runner {
    pub(super) fn start(
        source: SourceId,
        request: BoxFuture<'static, io::Result<Box<dyn NarFeed>>>,
        waited: Duration,
        line: &Line,
    ) -> Self {
        Self {
            source,
            turn: Turn::Opening(request),
            tail: Vec::new(),
            bytes: 0,
            wire_bytes: 0,
            since: waited,
            line_at_start: line.received_bytes,
            progress: Progress { at: waited, line_bytes: line.received_bytes, place: None },
            pace: Pace { from: waited, from_bytes: 0, last: None },
        }
    }

    /// Ready when the source says something. `bytes_left` is what it may still send.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, bytes_left: u64) -> Poll<Said> {
        loop {
            match std::mem::replace(&mut self.turn, Turn::Ended) {
                Turn::Opening(mut opening) => match opening.poll_unpin(context) {
                    Poll::Pending => {
                        self.turn = Turn::Opening(opening);
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Said::Broke(error)),
                    Poll::Ready(Ok(feed)) => {
                        self.turn = Turn::Resting(feed);
                        return Poll::Ready(Said::Opened);
                    }
                },
                Turn::Resting(feed) => self.turn = Turn::Reading(read(feed, bytes_left)),
                Turn::Reading(mut reading) => match reading.poll_unpin(context) {
                    Poll::Pending => {
                        self.turn = Turn::Reading(reading);
                        return Poll::Pending;
                    }
                    Poll::Ready(Read { feed, bytes, piece }) => {
                        self.wire_bytes = feed.wire_bytes();
                        match piece {
                            Ok(Piece::Data) => {
                                self.bytes += bytes.len() as u64;
                                self.turn = Turn::Resting(feed);
                                return Poll::Ready(Said::Data(bytes));
                            }
                            Ok(piece @ Piece::NotNow { .. }) => {
                                self.turn = Turn::Resting(feed);
                                return Poll::Ready(Said::Other(piece));
                            }
                            Ok(piece @ (Piece::Absent | Piece::Complete | Piece::Failed)) => {
                                return Poll::Ready(Said::Other(piece));
                            }
                            Err(error) => return Poll::Ready(Said::Broke(error)),
                        }
                    }
                },
                Turn::Ended => return Poll::Pending,
            }
        }
    }

    /// Reads to the end mark, after which the stream serves the next request. Gives what came instead of it.
    pub(super) async fn end(mut self) -> Option<io::Error> {
        match std::future::poll_fn(|context| self.poll(context, 0)).await {
            Said::Broke(error) => Some(error),
            Said::Opened | Said::Data(_) | Said::Other(_) => None,
        }
    }

    /// Bytes of the NAR that it sent.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that came over the wire for it.
    pub(super) fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// How long it has been under way.
    pub(super) fn age(&self, waited: Duration) -> Duration {
        waited.saturating_sub(self.since)
    }

    /// How much came over its line since it began.
    pub(super) fn line_bytes(&self, line: &Line) -> u64 {
        line.received_bytes.saturating_sub(self.line_at_start)
    }

    /// It sent bytes of the NAR.
    pub(super) fn moved(&mut self, waited: Duration, line: &Line) {
        self.progress = Progress { at: waited, line_bytes: line.received_bytes, place: None };
    }

    /// Its request stands in a queue, at this place.
    pub(super) fn queued(&mut self, place: u32, waited: Duration, line: &Line) {
        let is_nearer = self.progress.place.is_none_or(|before| place < before);
        let has_moved = line.received_bytes.saturating_sub(self.progress.line_bytes) > QUEUE_PROGRESS_BYTES;
        if is_nearer || has_moved {
            self.progress.at = waited;
            self.progress.line_bytes = line.received_bytes;
        }
        self.progress.place = Some(place);
    }

    /// For how long nothing moved for it.
    pub(super) fn idle(&self, waited: Duration) -> Duration {
        waited.saturating_sub(self.progress.at)
    }

    /// What came over the whole line since something moved for it.
    pub(super) fn passed_over_bytes(&self, line: &Line) -> u64 {
        line.received_bytes.saturating_sub(self.progress.line_bytes)
    }

    /// Whether its request is not on its way yet: a connection is being made, or others of ours go first.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.turn, Turn::Opening(_))
    }

    /// Whether its request stands in a queue.
    pub(super) fn is_queued(&self) -> bool {
        self.progress.place.is_some()
    }

    /// Bytes of the NAR per second over the last window; `None` in the first.
    pub(super) fn rate_bytes_s(&mut self, waited: Duration) -> Option<u64> {
        let elapsed = waited.saturating_sub(self.pace.from);
        if elapsed >= PACE_WINDOW {
            let bytes = u128::from(self.bytes - self.pace.from_bytes) * 1_000 / elapsed.as_millis().max(1);
            let last = Some(u64::try_from(bytes).unwrap_or(u64::MAX));
            self.pace = Pace { from: waited, from_bytes: self.bytes, last };
        }
        self.pace.last
    }
}

fn read(mut feed: Box<dyn NarFeed>, bytes_left: u64) -> BoxFuture<'static, Read> {
    let capacity = READ_BYTES.min(usize::try_from(bytes_left).unwrap_or(READ_BYTES));
    Box::pin(async move {
        let mut bytes = Vec::with_capacity(capacity);
        let piece = feed.next(&mut bytes, bytes_left).await;
        Read { feed, bytes, piece }
    })
}
