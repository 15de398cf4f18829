//! The accept loop of a listener.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioExecutor;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::client::Client;
use crate::connection::{ConnectionState, Order, WatchedStream};
use crate::connection_table::{ConnectionTable, Entered};
use crate::gateway::{ConnectionService, Gateway};
use crate::limits::{GatewayLimits, LastWait};
use crate::listener::{Accepted, Listener};
use crate::substituter::Substituter;
use crate::tls::{is_http2, shake_hands};

/// Pause before accepting again when the process or the machine is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Shortest time between two warnings about it.
const WARN_PAUSE: Duration = Duration::from_secs(1);

/// Serves HTTP/1, and HTTP/2 where the handshake of TLS chose it, on `listener` until `shutdown` resolves. Then it accepts nothing more, gives responses under way
/// [`GatewayLimits::shutdown_grace`] to finish, and returns.
///
/// A failed accept is tried again, because without a gateway Nix up to 2.31 aborts builds.
pub async fn serve<S: Substituter>(
    listener: impl Into<Listener>,
    gateway: Gateway<S>,
    limits: GatewayLimits,
    shutdown: impl Future<Output = ()>,
) {
    let listener = listener.into();
    let grace = limits.shutdown_grace;
    let http = http(&limits);
    let table = ConnectionTable::new(limits, Arc::clone(gateway.metrics()), gateway.trusted_proxies().clone());
    let mut sweep = interval(table.sweep_interval());
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shutdown = pin!(shutdown);
    let mut warned = None;
    loop {
        let accepted = tokio::select! {
            // In this order, so that a flood of clients delays neither the shutdown nor the sweep.
            biased;
            () = &mut shutdown => break,
            _ = sweep.tick() => {
                table.sweep(gateway.is_short_of_memory());
                gateway.tell_left_out(false);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((accepted, route)) => {
                let entered = table.enter(route);
                let client = Client::of(route);
                tokio::spawn(serve_connection(accepted, entered, client, gateway.clone(), http.clone()));
            }
            // The client has left before it was accepted, which says nothing about this machine.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Most likely the process is out of descriptors: free one, so that the waiting client gets in. Warn at most
                // once a second, because this repeats as long as descriptors are short.
                if warned.is_none_or(|at: Instant| at.elapsed() >= WARN_PAUSE) {
                    warned = Some(Instant::now());
                    tracing::warn!(%error, "cannot accept clients");
                }
                table.close_oldest();
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whoever connects from now on waits for the next process, if systemd keeps the socket, or is refused.
    drop(listener);
    table.drain(grace).await;
    gateway.tell_left_out(true);
}

/// Requests at once over one connection of HTTP/2. Clients begin as many before they hear of another limit, and would see those
/// above it refused. Each may keep 16 KiB in hyper; [`crate::gateway`] bounds how many bodies are under way.
const STREAMS_MAX: u32 = 100;
/// Largest head of a request of HTTP/2, as RFC 9113 counts it.
const HEAD_BYTES_MAX: u32 = 16 << 10;
/// Bytes of one body that hyper keeps before it asks for more.
const SEND_BYTES_MAX: usize = 8 << 10;
/// Bytes of bodies of requests that a client may send before they are read, which they never are.
const RECEIVE_BYTES_MAX: u32 = 64 << 10;
/// Streams that a client may have made wrong before its connection is closed.
const WRONG_STREAMS_MAX: usize = 64;

/// Both versions of HTTP, set within the limits of a listener.
#[derive(Clone, Debug)]
struct Http {
    one: http1::Builder,
    two: http2::Builder<TokioExecutor>,
}

fn http(limits: &GatewayLimits) -> Http {
    let mut two = http2::Builder::new(TokioExecutor::new());
    // There are no pings of our own: the sweeper closes whoever takes nothing, and whoever asks nothing.
    two.max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buf_size(SEND_BYTES_MAX)
        .initial_stream_window_size(RECEIVE_BYTES_MAX)
        .initial_connection_window_size(RECEIVE_BYTES_MAX)
        .max_local_error_reset_streams(WRONG_STREAMS_MAX);
    Http { one: http1(limits), two }
}

fn http1(limits: &GatewayLimits) -> http1::Builder {
    let mut http = http1::Builder::new();
    // The sweeper limits the time of a head, because hyper's own timer costs an allocation for each request.
    // `pipeline_flush` stays off: it would hold back a response while part of the next request is already there.
    http.header_read_timeout(None).half_close(true).max_buf_size(limits.buffer_bytes_max);
    http
}

async fn serve_connection<S: Substituter>(
    accepted: Accepted,
    entered: Entered,
    client: Client,
    gateway: Gateway<S>,
    http: Http,
) {
    let _counted = gateway.connection_count().enter();
    if let Err(error) = accepted.prepare() {
        tracing::debug!(%error, "a client disconnected at once");
        return;
    }
    let state = Arc::clone(&entered.state);
    // In the task of the connection, so that a slow handshake keeps no other client waiting.
    let stream = match accepted {
        Accepted::Open(stream) => stream,
        Accepted::Tls(stream, settings) => match shake_hands(stream, settings, &state).await {
            Ok(stream) => stream,
            // Anybody can cause it, at any rate.
            Err(error) => return tracing::debug!(%error, "a client did not get through the handshake"),
        },
    };
    let is_http2 = is_http2(&stream);
    let io = WatchedStream::new(stream, Arc::clone(&state));
    if is_http2 {
        // Before the first request: what is overdue is judged by another rule then.
        state.answer_several();
    }
    let service = gateway.connection(&entered, client);
    if is_http2 {
        run(http.two.serve_connection(io, service), &state).await;
    } else {
        run(http.one.serve_connection(io, service), &state).await;
    }
}

/// A connection of either version.
trait Connection: Future<Output = hyper::Result<()>> {
    /// Ends it after the responses under way.
    fn drain(self: Pin<&mut Self>);
}

impl Connection for http1::Connection<WatchedStream, ConnectionService> {
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl Connection for http2::Connection<WatchedStream, ConnectionService, TokioExecutor> {
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Answers until the client or the table ends the connection.
async fn run(connection: impl Connection, state: &ConnectionState) {
    let mut connection = pin!(connection);
    let mut draining = false;
    let mut wait = LastWait::default();
    // The order is polled with the connection, so that it takes effect even while the client sends nothing.
    let ended = poll_fn(|cx| {
        loop {
            match state.poll_order(cx) {
                Order::Serve => {}
                Order::Drain if draining => {}
                // A client that has just connected sends its request soon, and hyper would close the connection before.
                Order::Drain if !state.had_request() && wait.poll_over(cx).is_pending() => {}
                Order::Drain => {
                    draining = true;
                    connection.as_mut().drain();
                }
                Order::Close => return Poll::Ready(Ok(())),
            }
            let had_request = state.had_request();
            let polled = connection.as_mut().poll(cx);
            // The first request may be answered already, and then nothing wakes this task again.
            if polled.is_ready() || had_request || !state.had_request() {
                return polled;
            }
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// Whether the error concerns only the connection that was being accepted, and not the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}
