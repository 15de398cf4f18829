//! One bulk connection: a task that moves it on, and the handle by which streams are opened on it.

use futures::future::poll_fn;
use libp2p::PeerId;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, SubstreamBox};
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// A connection over which nothing was asked for this long is closed, as an idle control connection is: a NAR follows
/// its narinfo within seconds, and the next build within minutes, or much later.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// How often a connection is checked for being idle.
const IDLE_CHECK: Duration = Duration::from_secs(60);
/// Streams that wait to be opened: more than the requests that we have under way at one peer.
const OPENING_MAX: usize = 64;

/// A stream of a bulk connection.
pub(crate) type BulkStream = SubstreamBox;

/// Hands the stream, or the error, to whoever wants it.
type Opening = oneshot::Sender<io::Result<BulkStream>>;

/// A cheap handle of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// Tells it from all others, also from those that ended.
    pub(crate) id: u64,
    pub(super) came_in: bool,
    openings: mpsc::Sender<Opening>,
    closing: CancellationToken,
    usage: Arc<Usage>,
}

/// How many requests use a connection, and how many use all connections of its peer together.
#[derive(Debug)]
struct Usage {
    here: AtomicUsize,
    peer: Arc<AtomicUsize>,
    last: Mutex<Instant>,
    /// A better connection takes its place once nothing uses it.
    is_retired: AtomicBool,
}

/// A request under way: keeps the connection, and the control connection beside it, from being closed as idle.
#[derive(Debug)]
pub(crate) struct InUse(Arc<Usage>);

impl InUse {
    fn new(usage: &Arc<Usage>) -> Self {
        usage.here.fetch_add(1, Ordering::Relaxed);
        usage.peer.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(usage))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        *self.0.last.lock() = Instant::now();
        self.0.here.fetch_sub(1, Ordering::Relaxed);
        self.0.peer.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Usage {
    fn is_idle(&self) -> bool {
        let longest = if self.is_retired.load(Ordering::Relaxed) { IDLE_CHECK } else { IDLE_MAX };
        self.here.load(Ordering::Relaxed) == 0 && self.last.lock().elapsed() >= longest
    }
}

/// A stream that the peer opened, and the connection that it came over.
pub(crate) struct Incoming {
    pub(crate) peer: PeerId,
    pub(crate) stream: BulkStream,
    pub(crate) connection: Connection,
}

impl Connection {
    /// Starts the task of a connection; `incoming` takes the streams that the peer opens, `ended` is called once.
    pub(super) fn start(
        (id, peer, came_in): (u64, PeerId, bool),
        muxer: StreamMuxerBox,
        in_use_by_peer: Arc<AtomicUsize>,
        mut incoming: impl FnMut(Incoming) + Send + 'static,
        ended: impl FnOnce() + Send + 'static,
    ) -> Self {
        let (openings, wanted) = mpsc::channel(OPENING_MAX);
        let usage = Usage {
            here: AtomicUsize::new(0),
            peer: in_use_by_peer,
            last: Mutex::new(Instant::now()),
            is_retired: AtomicBool::new(false),
        };
        let connection = Self { id, came_in, openings, closing: CancellationToken::new(), usage: Arc::new(usage) };
        let handle = connection.clone();
        // A task of its own, because the muxer has to move on also while nobody asks for anything.
        tokio::spawn(async move {
            let mut running = Running { muxer, wanted, opening: None };
            let take = |stream| incoming(Incoming { peer, stream, connection: handle.clone() });
            let why = running.run(&handle, take).await;
            tracing::debug!(%peer, why, "bulk connection ended");
            ended();
            running.close().await;
        });
        connection
    }

    /// Whether streams can still be opened on it, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        !self.closing.is_cancelled() && !self.openings.is_closed()
    }

    /// Whether requests may still be begun on it.
    pub(crate) fn takes_requests(&self) -> bool {
        self.is_open() && !self.usage.is_retired.load(Ordering::Relaxed)
    }

    /// Begins nothing more on it, and closes it when what is under way has ended.
    pub(super) fn retire(&self) {
        self.usage.is_retired.store(true, Ordering::Relaxed);
    }

    /// Opens a stream.
    pub(crate) async fn open_stream(&self) -> io::Result<BulkStream> {
        let (sender, opened) = oneshot::channel();
        self.openings.send(sender).await.map_err(|_| closed())?;
        opened.await.map_err(|_| closed())?
    }

    /// Marks a request as under way.
    pub(crate) fn begin_use(&self) -> InUse {
        InUse::new(&self.usage)
    }

    pub(super) fn close(&self) {
        self.closing.cancel();
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the bulk connection was closed")
}

/// What the task of a connection owns.
struct Running {
    muxer: StreamMuxerBox,
    wanted: mpsc::Receiver<Opening>,
    /// The opening that waits for the muxer; the others are in the channel.
    opening: Option<Opening>,
}

impl Running {
    /// Runs until the connection ends, and says why it did.
    async fn run(&mut self, handle: &Connection, mut incoming: impl FnMut(BulkStream)) -> String {
        let mut check = tokio::time::interval(IDLE_CHECK);
        loop {
            tokio::select! {
                // Closing comes first: whoever closes the connection does not want what comes on it.
                biased;
                () = handle.closing.cancelled() => return "closed".to_owned(),
                stream = poll_fn(|context| self.poll(context)) => match stream {
                    Ok(stream) => incoming(stream),
                    Err(error) => return error.to_string(),
                },
                _ = check.tick() => {
                    if handle.usage.is_idle() {
                        return "idle".to_owned();
                    }
                }
            }
        }
    }

    /// Opens the streams that are wanted and moves everything on; ready with a stream that the peer opened.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<BulkStream>> {
        loop {
            let opening = match self.opening.take() {
                Some(opening) => opening,
                None => match self.wanted.poll_recv(context) {
                    Poll::Ready(Some(opening)) => opening,
                    Poll::Ready(None) | Poll::Pending => break,
                },
            };
            // Whoever wanted this stream has left; the peer need not hear of it.
            if opening.is_closed() {
                continue;
            }
            match Pin::new(&mut self.muxer).poll_outbound(context) {
                // Fails only when nobody waits any more; the stream is then reset.
                Poll::Ready(stream) => drop(opening.send(stream)),
                Poll::Pending => {
                    self.opening = Some(opening);
                    break;
                }
            }
        }
        Pin::new(&mut self.muxer).poll_inbound(context)
    }

    /// Sends what streams still have to send; the muxer bounds how long that takes.
    async fn close(mut self) {
        self.wanted.close();
        drop(self.opening);
        let muxer = &mut self.muxer;
        if let Err(error) = poll_fn(|context| Pin::new(&mut *muxer).poll_close(context)).await {
            tracing::trace!(%error, "a bulk connection was not closed cleanly");
        }
    }
}
