//! yamux (`/yamux/1.0.0`) as libp2p-yamux has it, with a bound on what one connection may hold in memory.
//!
//! libp2p-yamux leaves four things open. It writes a frame's header and its body apart, and TLS below makes a record
//! and TCP a packet of each: here frames are put together until they are flushed, which yamux does before it
//! waits. It lets a peer fill 1 GiB of receive windows per connection and has no setter for that (only for the number
//! of streams, which turns its auto-tuning off): here [`Bounds`] limit them, and what waits in them unread. It wakes the streams of a connection that
//! broke, but not of one that was closed on this side (<https://github.com/libp2p/rust-yamux/issues/216>): here they
//! end with the connection, whoever has them. And what a peer sends unasked, on streams that it opens, costs time that
//! nobody counts: gossipsub verifies a signature before it checks whether it knows the message, and a stream that is
//! opened and reset is never reported to anybody. Here it is read at a bounded pace. The muxer is otherwise the same:
//! inbound streams are buffered while the swarm is not ready.

use super::rate_meter::{RateMeter, Wait};
use super::received::{Counted, HEADER_BYTES, Received, StreamReceived, UnreadBounds};
use futures::io::BufWriter;
use futures::{AsyncRead, AsyncWrite, ready};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use narmesh_machine::Bucket;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use yamux::{Config, Connection, ConnectionError, DEFAULT_CREDIT, Mode};

/// The largest body of a frame: with its header it is one TLS record.
const FRAME_BODY_BYTES: usize = (16 << 10) - HEADER_BYTES;
/// How long a connection that is closed may still send: a dead one would end only when TCP gives up.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// The name of the protocol.
pub(super) const PROTOCOL: &str = "/yamux/1.0.0";

/// What a peer may make one connection hold, and how fast it may send what nobody asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Streams that the peer has opened and that have not ended. One more is reset, which costs nothing.
    inbound_max: usize,
    /// By how much all windows of the connection together may grow above the 256 KiB that each stream begins with.
    window_growth_bytes_max: usize,
    /// What came and was not read. A connection with more ends: an honest peer's questions are short, and we read what
    /// we asked for.
    pub(super) unread: UnreadBounds,
    /// Streams that the peer opens. While more wait, nothing is read from the connection.
    opened: Bucket,
    /// Bytes that the peer sends on streams that it opened. While more wait, none of these streams is read.
    unasked_bytes: Bucket,
    /// Frames that together are no longer than this leave together; a longer one goes straight through.
    pub(super) leave_together_bytes: usize,
}

impl Bounds {
    /// Streams of one connection, both directions together; one more ends it. Both sides stay below.
    const STREAMS_MAX: usize = 256;
    /// Each question has a stream of its own: we answer 20,000 narinfos at once and 2,000 a second, and some of gossip.
    const OPENED: Bucket = Bucket { burst: 25_000, per_s: 5_000 };
    /// Those narinfo questions are 1.8 MB at once and 180 kB a second; the announcements that a thousand machines make
    /// when they start together are 1.2 MB.
    pub(super) const UNASKED_BYTES: Bucket = Bucket { burst: 4 << 20, per_s: 256 << 10 };
    /// Of a control connection. A node has 32 narinfo questions and at most 32 of gossip open at a time, which is 16 MiB
    /// of first windows for the replies, and its longest reply of gossip is 2 MiB.
    pub(super) const CONTROL: Self = Self {
        inbound_max: 96,
        window_growth_bytes_max: 2 << 20,
        unread: UnreadBounds { unasked_bytes_max: 4 << 20, bytes_max: 18 << 20 },
        opened: Self::OPENED,
        unasked_bytes: Self::UNASKED_BYTES,
        leave_together_bytes: 1_400,
    };
    /// Of a bulk connection. A node has up to 72 streams open, which is 18 MiB of first windows, and closes them before we
    /// have noticed; 16 MiB of window carry 1.6 Gbit/s at a round trip of 80 ms. What is asked is a hundred bytes.
    pub(super) const BULK: Self = Self {
        inbound_max: 96,
        window_growth_bytes_max: 16 << 20,
        unread: UnreadBounds { unasked_bytes_max: 2 << 20, bytes_max: 40 << 20 },
        opened: Self::OPENED,
        unasked_bytes: Self::UNASKED_BYTES,
        // Two whole frames, and so two TLS records, for each system call. They can no longer be overtaken, which at
        // 1 Mbit/s is a quarter of a second beside the second that `UNSENT_BYTES_MAX` is.
        leave_together_bytes: 2 * (FRAME_BODY_BYTES + HEADER_BYTES),
    };
}

/// Inbound streams that wait for the swarm; a further one is reset.
const INBOUND_MAX: usize = 32;

/// A connection that carries streams.
#[derive(Debug)]
pub struct Muxer<C> {
    connection: Connection<BufWriter<Counted<C>>>,
    /// What came and was not read.
    received: Received,
    bounds: Bounds,
    /// Streams that wait for the swarm.
    inbound: VecDeque<MuxerStream>,
    /// How fast the peer opens streams.
    opened: RateMeter,
    waits_to_open: Wait,
    /// How fast it sends on them. One reference for each that has not ended, beside our own.
    unasked: Arc<Mutex<RateMeter>>,
    waiting: Option<Waker>,
    /// When to stop waiting for a clean close.
    given_up: Option<Pin<Box<Sleep>>>,
    /// Ends the streams of the connection.
    closing: CancellationToken,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    pub(super) fn listener(socket: C, bounds: Bounds) -> Self {
        Self::start(socket, bounds, Mode::Server)
    }

    pub(super) fn dialler(socket: C, bounds: Bounds) -> Self {
        Self::start(socket, bounds, Mode::Client)
    }

    fn start(socket: C, bounds: Bounds, mode: Mode) -> Self {
        let mut config = Config::default();
        config.set_max_num_streams(Bounds::STREAMS_MAX);
        // yamux requires that the first windows of all streams fit; the rest is for windows that grow.
        let windows = Bounds::STREAMS_MAX * DEFAULT_CREDIT as usize + bounds.window_growth_bytes_max;
        config.set_max_connection_receive_window(Some(windows));
        let received = Received::new(bounds.unread, mode == Mode::Client);
        config.set_split_send_size(FRAME_BODY_BYTES);
        let socket = BufWriter::with_capacity(bounds.leave_together_bytes, Counted::new(socket, received.clone()));
        Self {
            received,
            connection: Connection::new(socket, config, mode),
            bounds,
            inbound: VecDeque::new(),
            opened: RateMeter::new(bounds.opened),
            waits_to_open: Wait::default(),
            unasked: Arc::new(Mutex::new(RateMeter::new(bounds.unasked_bytes))),
            waiting: None,
            given_up: None,
            closing: CancellationToken::new(),
        }
    }
}

/// The connection under the streams failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MuxerError(#[from] ConnectionError);

impl From<MuxerError> for io::Error {
    fn from(MuxerError(error): MuxerError) -> Self {
        match error {
            ConnectionError::Io(error) => error,
            other => Self::other(other),
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    /// Moves everything on; ready with a stream that the peer opened.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<MuxerStream, MuxerError>> {
        loop {
            // Waits before yamux is asked, since what that gives out is open already.
            ready!(self.waits_to_open.poll(&self.opened, context));
            let next = ready!(self.connection.poll_next_inbound(context));
            let stream = next.ok_or(ConnectionError::Closed)?.map_err(MuxerError)?;
            self.opened.count(1);
            let received = self.received.of_stream(stream.id().val());
            // Each open stream holds one of these, so their number needs no counter of its own.
            if Arc::strong_count(&self.unasked) <= self.bounds.inbound_max {
                let unasked = Unasked { meter: Arc::clone(&self.unasked), wait: Wait::default() };
                return Poll::Ready(Ok(self.stream(stream, received, Some(unasked))));
            }
            tracing::debug!("reset a stream: the peer has too many open");
        }
    }

    fn stream(&self, stream: yamux::Stream, received: StreamReceived, unasked: Option<Unasked>) -> MuxerStream {
        MuxerStream { stream, closing: Box::pin(self.closing.clone().cancelled_owned()), received, unasked }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + 'static> StreamMuxer for Muxer<C> {
    type Substream = MuxerStream;
    type Error = MuxerError;

    fn poll_inbound(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<MuxerStream, MuxerError>> {
        if let Some(stream) = self.inbound.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        if let Poll::Ready(stream) = self.poll_next(context) {
            return Poll::Ready(stream);
        }
        self.waiting = Some(context.waker().clone());
        Poll::Pending
    }

    fn poll_outbound(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<MuxerStream, MuxerError>> {
        let stream = ready!(self.connection.poll_new_outbound(context)).map_err(MuxerError)?;
        let received = self.received.of_stream(stream.id().val());
        Poll::Ready(Ok(self.stream(stream, received, None)))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), MuxerError>> {
        self.closing.cancel();
        if let Poll::Ready(closed) = self.connection.poll_close(context) {
            return Poll::Ready(closed.map_err(MuxerError));
        }
        self.given_up.get_or_insert_with(|| Box::pin(sleep(CLOSE_MAX))).as_mut().poll(context).map(Ok)
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, MuxerError>> {
        let stream = ready!(self.poll_next(context))?;
        if self.inbound.len() < INBOUND_MAX {
            self.inbound.push_back(stream);
            if let Some(waiting) = self.waiting.take() {
                waiting.wake();
            }
        } else {
            tracing::debug!("reset a stream: the peer opens them faster than they are taken");
        }
        // Other tasks run first, then this goes on.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// One stream of a connection.
#[derive(Debug)]
pub struct MuxerStream {
    stream: yamux::Stream,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    received: StreamReceived,
    /// Only if the peer opened it: what comes is not what we asked for.
    unasked: Option<Unasked>,
}

/// What comes on a stream that the peer opened. It is counted among these streams for as long as it lives.
#[derive(Debug)]
struct Unasked {
    /// Shared by all such streams of the connection, or a peer would simply open one more.
    meter: Arc<Mutex<RateMeter>>,
    wait: Wait,
}

impl Unasked {
    fn poll_may_read(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.wait.poll(&self.meter.lock(), context)
    }
}

impl MuxerStream {
    /// Asks yamux; while that is pending, fails if the connection was closed meanwhile.
    fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut yamux::Stream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let polled = poll(Pin::new(&mut self.stream), context);
        // Asked only where nothing came: what is there already is still read.
        if polled.is_pending() && self.closing.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was closed")));
        }
        polled
    }
}

impl AsyncRead for MuxerStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        // Only what the peer sends unasked is slowed down; answers to us come as fast as the line allows.
        if let Some(unasked) = &mut self.unasked
            && unasked.poll_may_read(context).is_pending()
        {
            // While it waits for its pace, only a closed connection ends the wait.
            return self.poll(context, |_, _| Poll::Pending);
        }
        let polled = self.poll(context, |stream, context| stream.poll_read(context, buffer));
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.received.read(*bytes);
            if let Some(unasked) = &self.unasked {
                unasked.meter.lock().count(*bytes);
            }
        }
        polled
    }
}

impl AsyncWrite for MuxerStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(context, |stream, context| stream.poll_write(context, buffer))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(context, |stream, context| stream.poll_close(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{AsyncReadExt as _, AsyncWriteExt as _, future::poll_fn};
    use tokio_util::compat::TokioAsyncReadCompatExt as _;

    /// yamux ends the streams of a connection that broke, but not of one that was closed here: whoever reads one would
    /// wait for ever.
    #[tokio::test]
    async fn streams_of_a_connection_that_is_closed_end() {
        let (here, there) = tokio::io::duplex(1 << 20);
        let (mut here, mut there) =
            (Muxer::dialler(here.compat(), Bounds::CONTROL), Muxer::listener(there.compat(), Bounds::CONTROL));
        let mut stream = poll_fn(|context| Pin::new(&mut here).poll_outbound(context)).await.unwrap();
        stream.write_all(b"question").await.unwrap();
        let moving = tokio::spawn(async move {
            let mut here = here;
            poll_fn(|context| Pin::new(&mut here).poll_inbound(context)).await.map(drop)
        });
        let mut inbound = poll_fn(|context| Pin::new(&mut there).poll_inbound(context)).await.unwrap();
        let mut question = [0; 8];
        let reading = tokio::spawn(async move {
            inbound.read_exact(&mut question).await.unwrap();
            inbound.read(&mut question).await
        });
        // Moves the connection on until the reader waits for more than came.
        let moved = tokio::time::timeout(
            Duration::from_millis(100),
            poll_fn(|context| Pin::new(&mut there).poll_inbound(context)),
        );
        assert!(moved.await.is_err());
        assert!(!reading.is_finished());
        poll_fn(|context| Pin::new(&mut there).poll_close(context)).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(10), reading).await.expect("it ends").unwrap();
        assert!(read.is_err(), "it was closed, not ended by the other side");
        drop(moving);
    }

    /// We hold what a peer writes into streams that nobody reads: so many streams, and a window in each.
    #[tokio::test]
    async fn streams_beyond_the_bound_are_reset_until_others_end() {
        let (here, there) = tokio::io::duplex(1 << 20);
        let here = Muxer::dialler(here.compat(), Bounds::BULK);
        let mut there = Muxer::listener(there.compat(), Bounds::BULK);
        let (opened, mut streams) = tokio::sync::mpsc::channel(200);
        tokio::spawn(async move {
            let mut here = here;
            for _ in 0..Bounds::BULK.inbound_max + 10 {
                let mut stream = poll_fn(|context| Pin::new(&mut here).poll_outbound(context)).await.unwrap();
                // Written when the connection moves on, below.
                stream.write_all(b"?").await.unwrap();
                opened.send(stream).await.unwrap();
            }
            poll_fn(|context| Pin::new(&mut here).poll_inbound(context)).await.map(drop)
        });
        let mut held = Vec::new();
        let mut next = async || {
            let inbound = poll_fn(|context| Pin::new(&mut there).poll_inbound(context));
            tokio::time::timeout(Duration::from_millis(300), inbound).await.ok().map(Result::unwrap)
        };
        while let Some(stream) = next().await {
            held.push(stream);
        }
        assert_eq!(held.len(), Bounds::BULK.inbound_max);
        let mut reset = 0;
        while let Ok(mut stream) = streams.try_recv() {
            let mut byte = [0];
            let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut byte)).await;
            reset += usize::from(read.is_ok());
        }
        assert_eq!(reset, 10, "the last ones");
    }

    /// Asserts how many seconds it takes to read everything from a peer that opens streams of this many bytes each.
    async fn assert_read_within(bounds: Bounds, streams: usize, bytes: usize, seconds: std::ops::Range<u64>) {
        let (here, there) = tokio::io::duplex(1 << 20);
        let (mut here, mut there) = (Muxer::dialler(here.compat(), bounds), Muxer::listener(there.compat(), bounds));
        tokio::spawn(async move {
            for _ in 0..streams {
                let mut stream = poll_fn(|context| Pin::new(&mut here).poll_outbound(context)).await.unwrap();
                tokio::spawn(async move {
                    stream.write_all(&vec![0; bytes]).await.unwrap();
                    stream.close().await.unwrap();
                });
            }
            poll_fn(|context| Pin::new(&mut here).poll_inbound(context)).await.map(drop)
        });
        let since = tokio::time::Instant::now();
        let mut reading = tokio::task::JoinSet::new();
        for _ in 0..streams {
            let mut stream = poll_fn(|context| Pin::new(&mut there).poll_inbound(context)).await.unwrap();
            reading.spawn(async move { stream.read_to_end(&mut Vec::new()).await.unwrap() });
        }
        let moving =
            tokio::spawn(async move { poll_fn(|context| Pin::new(&mut there).poll_inbound(context)).await.map(drop) });
        let read: usize = reading.join_all().await.into_iter().sum();
        assert_eq!(read, streams * bytes);
        let elapsed = since.elapsed().as_secs();
        assert!(seconds.contains(&elapsed), "{elapsed} s");
        moving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_peer_sends_unasked_is_read_at_a_pace_whatever_the_number_of_its_streams() {
        let bounds = Bounds { unasked_bytes: Bucket { burst: 1 << 20, per_s: 256 << 10 }, ..Bounds::CONTROL };
        assert_read_within(bounds, 1, 1 << 20, 0..1).await;
        assert_read_within(bounds, 1, 3 << 20, 7..9).await;
        assert_read_within(bounds, 30, 100 << 10, 7..9).await;
    }

    #[tokio::test(start_paused = true)]
    async fn streams_are_taken_at_a_pace() {
        let bounds = Bounds { opened: Bucket { burst: 20, per_s: 10 }, ..Bounds::CONTROL };
        assert_read_within(bounds, 20, 1, 0..1).await;
        assert_read_within(bounds, 80, 1, 5..7).await;
    }

    /// What nobody reads: the connection ends, whether it is many bytes or few in many frames.
    #[tokio::test]
    async fn connection_ends_when_too_much_waits_on_streams_of_the_peer() {
        for (streams, frame_bytes) in [(40, 16 << 10), (1, 1)] {
            let (here, there) = tokio::io::duplex(1 << 20);
            let mut here = Muxer::dialler(here.compat(), Bounds::CONTROL);
            let mut there = Muxer::listener(there.compat(), Bounds::CONTROL);
            tokio::spawn(async move {
                let mut writing = tokio::task::JoinSet::new();
                for _ in 0..streams {
                    let mut stream = poll_fn(|context| Pin::new(&mut here).poll_outbound(context)).await.unwrap();
                    writing.spawn(async move {
                        let frame = vec![0; frame_bytes];
                        while stream.write_all(&frame).await.is_ok() {
                            tokio::task::yield_now().await;
                        }
                    });
                }
                poll_fn(|context| Pin::new(&mut here).poll_inbound(context)).await.map(drop)
            });
            let mut held = Vec::new();
            let ended = tokio::time::timeout(Duration::from_secs(60), async {
                loop {
                    match poll_fn(|context| Pin::new(&mut there).poll_inbound(context)).await {
                        Ok(stream) => held.push(stream),
                        Err(error) => return error.to_string(),
                    }
                }
            });
            let why = ended.await.expect("it ends");
            assert!(why.contains("more than was read"), "{why}");
            let unread = there.received.unread_bytes();
            assert!((4 << 20..5 << 20).contains(&unread), "{unread} bytes");
        }
    }
}
