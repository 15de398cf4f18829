//! The state of one open connection, and when it is overdue, so that no client keeps one forever.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::task::AtomicWaker;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;

use crate::limits::GatewayLimits;
use crate::listener::ClientStream;
use crate::metrics::CloseReason;
use crate::streams::{StreamState, Streams};

/// How much longer a connection with a response under way may stand still than an idle one before it counts as older. So a
/// client that waits for a NAR is not closed in favour of one that merely came later.
const BUSY_GRACE_MS: u64 = 10_000;

/// Idle between two responses.
const PHASE_IDLE: u8 = 0;
/// A request head is being read; it is not complete yet, or has not even begun.
const PHASE_HEAD: u8 = 1;
/// A request is being answered.
const PHASE_BUSY: u8 = 2;
/// Client and gateway agree on the keys of TLS; there was no request yet.
const PHASE_HANDSHAKE: u8 = 3;

/// Who takes less of what waits for him in [`GatewayLimits::short_stall_timeout`] is closed when memory is short. The kernel
/// takes a response in pieces of 128 KiB and more, so a client that takes even one piece in time is left alone.
const TAKEN_BYTES_MIN: u64 = 64 << 10;

const ORDER_NONE: u8 = 0;
const ORDER_DRAIN: u8 = 1;
const ORDER_CLOSE: u8 = 2;

/// The state of a connection. Its own task writes it; the sweeper reads it.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    opened: Instant,
    clock: Instant,
    /// What happens while no request is being answered.
    phase: AtomicU8,
    /// Requests that are being answered.
    busy: AtomicUsize,
    /// Whether there was a request.
    had_request: AtomicBool,
    /// The same one by one, if there may be several at once.
    streams: OnceLock<Streams>,
    /// When bytes last moved in either direction, in milliseconds since `clock`, which all connections of a table share.
    moved_ms: AtomicU64,
    /// When the current request head or the handshake began, or with HTTP/2 the last request ended, in milliseconds since `clock`.
    head_since_ms: AtomicU64,
    /// Bytes written in all.
    written_bytes: AtomicU64,
    /// Whether bytes wait that the client's socket did not take.
    is_blocked: AtomicBool,
    /// When the sweeper last found that the client takes what it is given, in milliseconds since `clock`, and
    /// `written_bytes` of that time.
    taking_ms: AtomicU64,
    taking_bytes: AtomicU64,
    order: AtomicU8,
    waker: AtomicWaker,
    /// Whether a body has failed and waits until the bytes before its failure were sent.
    is_flush_awaited: AtomicBool,
}

/// What a connection's task was told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Go on serving.
    Serve,
    /// Finish the response under way, then close.
    Drain,
    /// Close now.
    Close,
}

impl ConnectionState {
    pub(crate) fn new(clock: Instant) -> Self {
        let opened = Instant::now();
        let now_ms = millis_between(clock, opened);
        Self {
            opened,
            clock,
            phase: AtomicU8::new(PHASE_HEAD),
            busy: AtomicUsize::new(0),
            had_request: AtomicBool::new(false),
            streams: OnceLock::new(),
            moved_ms: AtomicU64::new(now_ms),
            head_since_ms: AtomicU64::new(now_ms),
            written_bytes: AtomicU64::new(0),
            is_blocked: AtomicBool::new(false),
            taking_ms: AtomicU64::new(now_ms),
            taking_bytes: AtomicU64::new(0),
            order: AtomicU8::new(ORDER_NONE),
            waker: AtomicWaker::new(),
            is_flush_awaited: AtomicBool::new(false),
        }
    }

    /// Marks the connection as busy with a request until the guard is dropped.
    pub(crate) fn begin_request(this: &Arc<Self>) -> BusyGuard {
        this.busy.fetch_add(1, Ordering::AcqRel);
        this.had_request.store(true, Ordering::Relaxed);
        let stream = this.streams.get().map(|streams| streams.enter(this.now_ms()));
        BusyGuard { connection: Arc::clone(this), stream }
    }

    /// Whether there was a request.
    pub(crate) fn had_request(&self) -> bool {
        self.had_request.load(Ordering::Relaxed)
    }

    /// Marks the connection as one of HTTP/2: it answers several requests at once, and what the client sends besides them, such
    /// as pings, keeps it open no longer.
    pub(crate) fn answer_several(&self) {
        self.streams.get_or_init(Streams::default);
    }

    /// Whether it answers several requests at once.
    pub(crate) fn answers_several(&self) -> bool {
        self.streams.get().is_some()
    }

    fn now_ms(&self) -> u64 {
        millis_between(self.clock, Instant::now())
    }

    fn phase(&self) -> u8 {
        if self.busy.load(Ordering::Acquire) > 0 { PHASE_BUSY } else { self.phase.load(Ordering::Relaxed) }
    }

    /// Marks the connection as one that has to shake hands first.
    pub(crate) fn begin_handshake(&self) {
        self.phase.store(PHASE_HANDSHAKE, Ordering::Relaxed);
    }

    /// Notes that the first request may come now.
    pub(crate) fn end_handshake(&self) {
        let now_ms = self.now_ms();
        self.moved_ms.store(now_ms, Ordering::Relaxed);
        self.head_since_ms.store(now_ms, Ordering::Relaxed);
        self.phase.store(PHASE_HEAD, Ordering::Relaxed);
    }

    /// The current order. The task of `cx` is woken when it changes.
    pub(crate) fn poll_order(&self, cx: &Context<'_>) -> Order {
        self.waker.register(cx.waker());
        match self.order.load(Ordering::Acquire) {
            ORDER_NONE => Order::Serve,
            ORDER_DRAIN => Order::Drain,
            _ => Order::Close,
        }
    }

    /// When the connection was accepted.
    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    /// Tells the task to close the connection after the response under way.
    pub(crate) fn drain(&self) {
        self.give_order(ORDER_DRAIN);
    }

    /// Tells the task to close the connection now.
    pub(crate) fn close(&self) {
        self.give_order(ORDER_CLOSE);
    }

    fn give_order(&self, order: u8) {
        self.order.fetch_max(order, Ordering::AcqRel);
        self.waker.wake();
    }

    fn note_read(&self) {
        let now_ms = self.now_ms();
        self.moved_ms.store(now_ms, Ordering::Relaxed);
        if self.phase() == PHASE_IDLE && self.streams.get().is_none() {
            self.head_since_ms.store(now_ms, Ordering::Relaxed);
            self.phase.store(PHASE_HEAD, Ordering::Relaxed);
        }
    }

    fn note_write(&self, bytes: usize) {
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.is_blocked.store(false, Ordering::Relaxed);
        self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// The time by which connections are compared when one must be closed: the one with the smallest is closed.
    pub(crate) fn age_key(&self) -> u64 {
        let moved_ms = self.moved_ms.load(Ordering::Relaxed);
        match self.phase() {
            PHASE_BUSY => moved_ms.saturating_add(BUSY_GRACE_MS),
            _ => moved_ms,
        }
    }

    /// Why the connection has exceeded a time limit, if it has. To be called at each sweep.
    pub(crate) fn overdue(&self, now_ms: u64, limits: &GatewayLimits, is_memory_short: bool) -> Option<CloseReason> {
        let left_lying_ms = self.left_lying_ms(now_ms);
        // Who leaves bytes lying holds memory that others wait for; otherwise it may take its time.
        if is_memory_short && u128::from(left_lying_ms) > limits.short_stall_timeout.as_millis() {
            return Some(CloseReason::Stalled);
        }
        let lying_since = self.streams.get().and_then(Streams::oldest_lying_ms).unwrap_or(now_ms);
        if is_memory_short && u128::from(now_ms.saturating_sub(lying_since)) > limits.short_stall_timeout.as_millis() {
            return Some(CloseReason::Stalled);
        }
        let still_ms = now_ms.saturating_sub(self.moved_ms.load(Ordering::Relaxed));
        let head_ms = now_ms.saturating_sub(self.head_since_ms.load(Ordering::Relaxed));
        let body_ms = self.streams.get().and_then(Streams::oldest_moved_ms).map(|moved| now_ms.saturating_sub(moved));
        let (elapsed_ms, limit, reason) = match self.phase() {
            // Pings move bytes, too, so over HTTP/2 only requests keep a connection from being idle.
            PHASE_IDLE if self.streams.get().is_some() => (head_ms, limits.idle_timeout, CloseReason::Idle),
            PHASE_IDLE => (still_ms, limits.idle_timeout, CloseReason::Idle),
            // The stream that has stood longest counts: others that move must not hide it.
            PHASE_BUSY => (body_ms.unwrap_or(still_ms), limits.stall_timeout, CloseReason::Stalled),
            PHASE_HANDSHAKE => (head_ms, limits.tls_handshake_timeout, CloseReason::SlowHandshake),
            _ => (head_ms, limits.header_read_timeout, CloseReason::SlowHead),
        };
        (u128::from(elapsed_ms) > limit.as_millis()).then_some(reason)
    }

    /// For how long the client has taken next to nothing of what is there for it.
    fn left_lying_ms(&self, now_ms: u64) -> u64 {
        let written = self.written_bytes.load(Ordering::Relaxed);
        let taken = written.saturating_sub(self.taking_bytes.load(Ordering::Relaxed));
        // It took something worth counting, or there is nothing for it: its time begins anew.
        if !self.is_blocked.load(Ordering::Relaxed) || taken >= TAKEN_BYTES_MIN {
            self.taking_ms.store(now_ms, Ordering::Relaxed);
            self.taking_bytes.store(written, Ordering::Relaxed);
        }
        now_ms.saturating_sub(self.taking_ms.load(Ordering::Relaxed))
    }
}

/// Marks a connection as busy until it is dropped.
#[derive(Debug)]
pub(crate) struct BusyGuard {
    connection: Arc<ConnectionState>,
    /// The request among others of its connection.
    stream: Option<(u64, Arc<StreamState>)>,
}

impl BusyGuard {
    /// Whether other requests may be answered over the same connection meanwhile.
    pub(crate) fn is_one_of_several(&self) -> bool {
        self.stream.is_some()
    }

    /// Notes that hyper asked for a piece of the body, and whether it got one.
    pub(crate) fn note_poll(&self, got_one: bool) {
        if let Some((_, stream)) = &self.stream {
            stream.note_poll(got_one, self.connection.now_ms());
        }
    }

    /// Makes [`Self::poll_flushed`] wait until everything buffered was written, or with HTTP/2 what the client takes of it.
    pub(crate) fn await_flush(&self) {
        if let Some((_, stream)) = &self.stream {
            stream.await_flush();
        }
        self.connection.is_flush_awaited.store(true, Ordering::Release);
        if self.stream.is_some() {
            // The body is polled apart from its connection, which flushes when it is polled itself.
            self.connection.waker.wake();
        }
    }

    pub(crate) fn poll_flushed(&self, cx: &Context<'_>) -> Poll<()> {
        match &self.stream {
            Some((_, stream)) => stream.poll_flushed(cx),
            // The connection wakes this task, which is its own, as soon as it has flushed.
            None if self.connection.is_flush_awaited.load(Ordering::Acquire) => Poll::Pending,
            None => Poll::Ready(()),
        }
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        let Self { connection, stream } = self;
        if let (Some(streams), Some((id, _))) = (connection.streams.get(), stream) {
            streams.leave(*id);
            connection.head_since_ms.store(connection.now_ms(), Ordering::Relaxed);
        }
        // First, so that a request that comes at the same moment never makes it idle.
        connection.phase.store(PHASE_IDLE, Ordering::Relaxed);
        connection.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Milliseconds from `from` to `to`; 0 if `to` is earlier.
pub(crate) fn millis_between(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
}

/// A client's socket that notes when bytes move.
#[derive(Debug)]
pub(crate) struct WatchedStream {
    io: TokioIo<ClientStream>,
    state: Arc<ConnectionState>,
}

impl WatchedStream {
    pub(crate) fn new(stream: ClientStream, state: Arc<ConnectionState>) -> Self {
        Self { io: TokioIo::new(stream), state }
    }

    fn note_writes(&self, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match poll {
            Poll::Ready(Ok(bytes)) => self.state.note_write(bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.is_blocked.store(true, Ordering::Relaxed),
        }
        poll
    }
}

impl Read for WatchedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = poll {
            self.state.note_read();
        }
        poll
    }
}

impl Write for WatchedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note_writes(poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note_writes(poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.io).poll_flush(cx);
        // hyper flushes after it has written everything that it had buffered.
        if poll.is_ready() && self.state.is_flush_awaited.load(Ordering::Relaxed) {
            self.state.is_flush_awaited.store(false, Ordering::Release);
            match self.state.streams.get() {
                Some(streams) => streams.on_flushed(),
                None => cx.waker().wake_by_ref(),
            }
        }
        poll
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
