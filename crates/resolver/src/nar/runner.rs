//! One source under way in a transfer: its request, the bytes it sent that were not taken over yet, and its pace.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use narmesh_protocol::wire::NarFrame;

use super::race::{RACE_BYTES_MAX, RACE_CACHES_AFTER};
use crate::source::{Line, NarFeed, Piece, SourceId};

/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;
/// The rate of a source is measured over at least this long (a guess, not measured: several round trips on any line).
const RATE_WINDOW: Duration = Duration::from_secs(1);
/// The same of an upstream cache, whose answer is not shared with other requests of ours.
const RATE_WINDOW_OF_CACHE: Duration = RACE_CACHES_AFTER;
/// A queue counts as moving when more than this came in over the line; the messages that only tell our place in it take
/// fewer bytes.
const QUEUE_PROGRESS_BYTES: u64 = 4 << 10;

/// A source serves us less than our share if nothing moves for us while more chunks than this, for each request under
/// way, come in on its line.
const PASSED_OVER_CHUNKS: u64 = 8;
/// A request that has not been sent yet is left when nothing moves for this many stall timeouts: a dial that fails
/// takes one, and a second dial is worth waiting for.
const OPENING_STALLS: u32 = 3;
/// A request to a source that is there is sent anew when it could not be sent for this long: twice within the time for which
/// such a source is tried.
const OPENING_MAX: Duration = Duration::from_secs(10);
/// A request in a queue is left when nothing moves there for this many stall timeouts.
const QUEUE_STALLS: u32 = 6;

/// What a runner is doing.
enum Activity {
    /// The request is being sent, perhaps after connecting.
    Opening(BoxFuture<'static, io::Result<Box<dyn NarFeed>>>),
    /// We wait for what the source says next.
    Reading(BoxFuture<'static, Read>),
    /// Nothing is being read, because nobody has polled for more.
    Resting(Box<dyn NarFeed>),
    /// It will say nothing more.
    Ended,
}

/// The result of one read, and the feed to go on with.
struct Read {
    feed: Box<dyn NarFeed>,
    bytes: Vec<u8>,
    piece: io::Result<Piece>,
}

/// One thing that a source did.
#[derive(Debug)]
pub(super) enum Said {
    /// The request was sent; nothing has come back yet.
    Opened,
    /// It sent bytes of the NAR.
    Data(Vec<u8>),
    /// The source said something else.
    Other(Piece),
    /// The request could not be sent.
    Unsent(io::Error),
    /// The connection or the protocol broke.
    Broke(io::Error),
}

/// One source under way. All times are time that the transfer spent waiting, so that a slow Nix makes no source look
/// slow.
pub(super) struct Runner {
    pub(super) source: SourceId,
    activity: Activity,
    /// What it sent from the transfer's offset on, during a race.
    pub(super) tail: Vec<u8>,
    bytes: u64,
    wire_bytes: u64,
    since: Duration,
    line_at_start: u64,
    progress: Progress,
    rate: WindowRate,
}

/// When something last moved for a request.
#[derive(Clone, Copy)]
struct Progress {
    at: Duration,
    /// Bytes that had come in over the whole line by then.
    line_bytes: u64,
    place: Option<u32>,
}

/// Bytes per second over the last window.
#[derive(Clone, Copy)]
struct WindowRate {
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
            activity: Activity::Opening(request),
            tail: Vec::new(),
            bytes: 0,
            wire_bytes: 0,
            since: waited,
            line_at_start: line.received_bytes,
            progress: Progress { at: waited, line_bytes: line.received_bytes, place: None },
            rate: WindowRate { from: waited, from_bytes: 0, last: None },
        }
    }

    /// Ready when the source says something. It may still send `bytes_left`.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, bytes_left: u64) -> Poll<Said> {
        loop {
            // Taken out, because each future consumes what it works on; whatever is not over is put back.
            match std::mem::replace(&mut self.activity, Activity::Ended) {
                Activity::Opening(mut opening) => match opening.poll_unpin(context) {
                    Poll::Pending => {
                        self.activity = Activity::Opening(opening);
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Said::Unsent(error)),
                    Poll::Ready(Ok(feed)) => {
                        self.activity = Activity::Resting(feed);
                        return Poll::Ready(Said::Opened);
                    }
                },
                Activity::Resting(feed) => self.activity = Activity::Reading(read(feed, bytes_left)),
                Activity::Reading(mut reading) => match reading.poll_unpin(context) {
                    Poll::Pending => {
                        self.activity = Activity::Reading(reading);
                        return Poll::Pending;
                    }
                    Poll::Ready(Read { feed, bytes, piece }) => {
                        self.wire_bytes = feed.wire_bytes();
                        match piece {
                            Ok(Piece::Data) => {
                                self.bytes += bytes.len() as u64;
                                self.activity = Activity::Resting(feed);
                                return Poll::Ready(Said::Data(bytes));
                            }
                            // The request still stands, so the source is read further.
                            Ok(piece @ (Piece::NotNow { .. } | Piece::NoMemory)) => {
                                self.activity = Activity::Resting(feed);
                                return Poll::Ready(Said::Other(piece));
                            }
                            Ok(piece @ (Piece::Others(_) | Piece::Absent | Piece::Complete | Piece::Failed)) => {
                                return Poll::Ready(Said::Other(piece));
                            }
                            Err(error) => return Poll::Ready(Said::Broke(error)),
                        }
                    }
                },
                Activity::Ended => return Poll::Pending,
            }
        }
    }

    /// Reads to the end mark, after which the stream can serve the next request. Returns the error if one came instead.
    pub(super) async fn end(mut self) -> Option<io::Error> {
        match std::future::poll_fn(|context| self.poll(context, 0)).await {
            Said::Unsent(error) | Said::Broke(error) => Some(error),
            Said::Opened | Said::Data(_) | Said::Other(_) => None,
        }
    }

    /// Bytes of the NAR that the source has sent.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes received over the wire for this request.
    pub(super) fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// How long the request has been under way.
    pub(super) fn age(&self, waited: Duration) -> Duration {
        waited.saturating_sub(self.since)
    }

    /// Bytes that came in over the whole line since the request began.
    pub(super) fn line_bytes(&self, line: &Line) -> u64 {
        line.received_bytes.saturating_sub(self.line_at_start)
    }

    /// Notes that it sent bytes of the NAR.
    pub(super) fn on_data(&mut self, waited: Duration, line: &Line) {
        self.progress = Progress { at: waited, line_bytes: line.received_bytes, place: None };
    }

    /// Notes that it is held up here: until that ends it owes us nothing.
    pub(super) fn on_held_up(&mut self, waited: Duration, line: &Line) {
        self.on_data(waited, line);
    }

    /// Notes that its request waits in a queue, at this place.
    pub(super) fn on_queued(&mut self, place: u32, waited: Duration, line: &Line) {
        let is_nearer = self.progress.place.is_none_or(|before| place < before);
        let has_moved = line.received_bytes.saturating_sub(self.progress.line_bytes) > QUEUE_PROGRESS_BYTES;
        // Others of this queue are being served, so it moves, and our turn comes.
        if is_nearer || has_moved {
            self.progress.at = waited;
            self.progress.line_bytes = line.received_bytes;
        }
        self.progress.place = Some(place);
    }

    /// How long nothing has moved for the request.
    pub(super) fn idle_time(&self, waited: Duration) -> Duration {
        waited.saturating_sub(self.progress.at)
    }

    /// Why it is no longer waited for, or `None` if it is.
    pub(super) fn why_stalled(&self, line: &Line, waited: Duration, stall: Duration) -> Option<String> {
        let idle = self.idle_time(waited);
        // One with a full tail waits for us, not we for it.
        if idle < stall || self.tail.len() >= RACE_BYTES_MAX {
            return None;
        }
        if self.is_queued() {
            return (idle >= stall * QUEUE_STALLS).then(|| format!("nothing moves in its queue for {idle:.0?}"));
        }
        let is_silent = line.last_received.is_none_or(|at| at.elapsed() >= stall);
        if self.is_opening() {
            let longest = stall * OPENING_STALLS;
            let longest = if line.is_there { longest.min(OPENING_MAX) } else { longest };
            let is_dead = is_silent && idle >= longest;
            return is_dead.then(|| format!("cannot be asked for {idle:.0?}"));
        }
        if is_silent {
            return Some(format!("nothing for {idle:.0?}"));
        }
        // Bytes come on this line, but for other requests: it is left only when they got much more than their share.
        let share = u64::try_from(line.in_flight.max(1)).unwrap_or(u64::MAX).saturating_mul(PASSED_OVER_CHUNKS);
        let fair = share.saturating_mul(NarFrame::CHUNK_BYTES_MAX as u64);
        (self.passed_over_bytes(line) > fair).then(|| format!("it serves others for {idle:.0?}"))
    }

    /// Bytes that came in over the whole line since something last moved for the request.
    fn passed_over_bytes(&self, line: &Line) -> u64 {
        line.received_bytes.saturating_sub(self.progress.line_bytes)
    }

    /// Whether its request has not been sent yet: a connection is being made, or other requests of ours go first.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.activity, Activity::Opening(_))
    }

    /// Whether its request waits in a queue.
    pub(super) fn is_queued(&self) -> bool {
        self.progress.place.is_some()
    }

    /// Bytes of the NAR per second in the last window; `None` during the first one.
    pub(super) fn measure_rate_bytes_s(&mut self, waited: Duration) -> Option<u64> {
        let elapsed = waited.saturating_sub(self.rate.from);
        let window = if self.source.peer().is_some() { RATE_WINDOW } else { RATE_WINDOW_OF_CACHE };
        if elapsed >= window {
            let bytes = u128::from(self.bytes - self.rate.from_bytes) * 1_000 / elapsed.as_millis().max(1);
            let last = Some(u64::try_from(bytes).unwrap_or(u64::MAX));
            self.rate = WindowRate { from: waited, from_bytes: self.bytes, last };
        }
        self.rate.last
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
