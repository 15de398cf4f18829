//! The accept loop.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::connection::{Order, WatchedStream};
use crate::connection_table::{ConnectionTable, Entered, Route};
use crate::gateway::Gateway;
use crate::substituter::Substituter;

/// How long to wait before accepting again when the process or the machine is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Between two warnings about it.
const WARN_PAUSE: Duration = Duration::from_secs(1);

/// Bounds of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayLimits {
    /// Connections at a time, at least 1. One more closes the one that stood still longest, of the local user who has the
    /// most; none is ever refused.
    pub connections_max: usize,
    /// Of these, at most so many of one local user, at least 1; one more closes that user's longest idle one. Below this
    /// number in all, nobody is asked who they are.
    pub connections_per_user_max: usize,
    /// From a connection's opening, or the first byte of a later request, to the end of the request's head.
    pub header_read_timeout: Duration,
    /// Without a request.
    pub idle_timeout: Duration,
    /// In a response without the client taking a byte.
    pub stall_timeout: Duration,
    /// For a request's head, and for what is buffered of a response; 8 KiB or more.
    pub buffer_bytes_max: usize,
    /// For responses under way at shutdown.
    pub shutdown_grace: Duration,
}

impl Default for GatewayLimits {
    /// 512 connections leave half of the usual 1,024 descriptors to the rest of the process; one Nix opens at most 25.
    /// 300 s without a byte is Nix's own `stalled-download-timeout`. The rest are guesses, not measurements.
    fn default() -> Self {
        Self {
            connections_max: 512,
            connections_per_user_max: 256,
            header_read_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            stall_timeout: Duration::from_secs(300),
            buffer_bytes_max: 64 * 1024,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// Serves HTTP/1 on `listener` until `shutdown` resolves; then accepts nothing more, gives responses under way
/// [`GatewayLimits::shutdown_grace`] and returns.
///
/// # Errors
/// When `listener` has no address. An accept that fails is tried again, because a gateway that is gone aborts builds on Nix up to 2.31.
pub async fn serve<S: Substituter>(
    listener: TcpListener,
    gateway: Gateway<S>,
    limits: GatewayLimits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let grace = limits.shutdown_grace;
    let server = listener.local_addr()?;
    let http = http(&limits);
    let table = ConnectionTable::new(limits, Arc::clone(gateway.metrics()));
    let mut sweep = interval(table.sweep_interval());
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shutdown = pin!(shutdown);
    let mut warned = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            _ = sweep.tick() => {
                table.sweep();
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let entered = table.enter(Route { client, server });
                tokio::spawn(connection(stream, entered, gateway.clone(), http.clone()));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Most likely out of descriptors: one is made free, so that the client waiting gets in.
                // Once a second is enough to be heard: this goes on for as long as descriptors are short.
                if warned.is_none_or(|at: Instant| at.elapsed() >= WARN_PAUSE) {
                    warned = Some(Instant::now());
                    tracing::warn!(%error, "accepting clients fails");
                }
                table.close_oldest();
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    table.drain(grace).await;
    Ok(())
}

fn http(limits: &GatewayLimits) -> http1::Builder {
    let mut http = http1::Builder::new();
    // The sweeper bounds the time of a head: hyper's own timer costs an allocation for each request.
    // Its `pipeline_flush` stays off: it would hold back a response for as long as a piece of a next request lies there.
    http.header_read_timeout(None).half_close(true).max_buf_size(limits.buffer_bytes_max);
    http
}

async fn connection<S: Substituter>(stream: TcpStream, entered: Entered, gateway: Gateway<S>, http: http1::Builder) {
    // Without it a head that left on its own would wait 40 ms for the acknowledgement of the client.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a client left at once");
        return;
    }
    let state = Arc::clone(&entered.state);
    let io = WatchedStream::new(stream, Arc::clone(&state));
    let mut connection = pin!(http.serve_connection(io, gateway.connection(Arc::clone(&state))));
    let mut draining = false;
    let ended = poll_fn(|cx| {
        match state.poll_order(cx) {
            Order::Serve => {}
            Order::Drain if draining => {}
            Order::Drain => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            Order::Close => return Poll::Ready(Ok(())),
        }
        connection.as_mut().poll(cx)
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a connection ended");
    }
}

/// Whether the connection was lost between the client's side and ours, and the listener is well.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}
