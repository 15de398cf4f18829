//! yamux (`/yamux/1.0.0`) as libp2p-yamux has it, with a bound on what one connection may hold in memory.
//!
//! libp2p-yamux writes a frame's header and its body apart, and below it TLS makes a record and TCP a packet of each: here small
//! frames are put together until they are flushed, which yamux does before it waits. And it lets a peer fill 1 GiB of receive
//! windows per connection and has no setter for it (only for the number of streams, which turns its auto-tuning off). The muxer
//! is otherwise the same: inbound streams are buffered while the swarm is not ready.

use futures::io::BufWriter;
use futures::{AsyncRead, AsyncWrite, future, ready};
use libp2p::core::UpgradeInfo;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Sleep, sleep};
use yamux::{Config, Connection, ConnectionError, DEFAULT_CREDIT, Mode};

/// Frames below this leave together. The 16 KiB of a NAR's frame go straight through.
const SMALL_FRAMES_BYTES: usize = 1_400;
/// What is still to be sent when a connection is closed gets this long: a dead one would take it only when TCP gives up.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// The multiplexing upgrade.
#[derive(Clone, Copy, Debug, Default)]
pub struct Yamux;

impl Yamux {
    /// The name of the protocol.
    pub const PROTOCOL: &str = "/yamux/1.0.0";
    /// Streams of one connection, both directions together; one more ends it. Both sides keep below: on a control connection 32
    /// narinfo questions and at most 32 of gossip each way, on a bulk connection 64 NARs each way.
    pub const STREAMS_MAX: usize = 256;
    /// By how much all windows of a connection together may grow above the 256 KiB that each stream begins with: 16 MiB carry
    /// 1.6 Gbit/s at 80 ms round trip.
    pub const WINDOW_GROWTH_BYTES_MAX: usize = 16 << 20;
    /// What a peer may make one connection hold at most. It takes [`Self::STREAMS_MAX`] streams that nobody reads, and those are
    /// bounded by far lower numbers where streams are accepted.
    pub const RECEIVE_WINDOWS_BYTES_MAX: usize =
        Self::STREAMS_MAX * DEFAULT_CREDIT as usize + Self::WINDOW_GROWTH_BYTES_MAX;

    pub(super) fn listener<C: AsyncRead + AsyncWrite + Unpin>(socket: C) -> Muxer<C> {
        Self::start(socket, Mode::Server)
    }

    pub(super) fn dialler<C: AsyncRead + AsyncWrite + Unpin>(socket: C) -> Muxer<C> {
        Self::start(socket, Mode::Client)
    }

    fn start<C: AsyncRead + AsyncWrite + Unpin>(socket: C, mode: Mode) -> Muxer<C> {
        let mut config = Config::default();
        config.set_max_num_streams(Self::STREAMS_MAX);
        config.set_max_connection_receive_window(Some(Self::RECEIVE_WINDOWS_BYTES_MAX));
        let socket = BufWriter::with_capacity(SMALL_FRAMES_BYTES, socket);
        Muxer {
            connection: Connection::new(socket, config, mode),
            inbound: VecDeque::new(),
            waiting: None,
            given_up: None,
        }
    }
}

impl UpgradeInfo for Yamux {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(Self::PROTOCOL)
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = future::Ready<Result<Muxer<C>, io::Error>>;

    fn upgrade_inbound(self, socket: C, _: &'static str) -> Self::Future {
        future::ready(Ok(Self::listener(socket)))
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = future::Ready<Result<Muxer<C>, io::Error>>;

    fn upgrade_outbound(self, socket: C, _: &'static str) -> Self::Future {
        future::ready(Ok(Self::dialler(socket)))
    }
}

/// Inbound streams that wait for the swarm; a further one is reset.
const INBOUND_MAX: usize = 32;

/// A connection that carries streams.
#[derive(Debug)]
pub struct Muxer<C> {
    connection: Connection<BufWriter<C>>,
    inbound: VecDeque<MuxerStream>,
    waiting: Option<Waker>,
    /// When to wait for its end no longer.
    given_up: Option<Pin<Box<Sleep>>>,
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
        let next = ready!(self.connection.poll_next_inbound(context));
        Poll::Ready(next.ok_or(ConnectionError::Closed)?.map(MuxerStream).map_err(MuxerError))
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
        let stream = ready!(self.connection.poll_new_outbound(context));
        Poll::Ready(stream.map(MuxerStream).map_err(MuxerError))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), MuxerError>> {
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
            tracing::debug!("a peer opens streams quicker than they are taken: reset one");
        }
        // Others run first, then this goes on.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// One stream of a connection.
#[derive(Debug)]
pub struct MuxerStream(yamux::Stream);

impl AsyncRead for MuxerStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for MuxerStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(context)
    }
}
