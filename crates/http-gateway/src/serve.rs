//! The accept loop of a listener.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::connection::{Order, WatchedStream};
use crate::connection_table::{ConnectionTable, Entered};
use crate::gateway::Gateway;
use crate::limits::GatewayLimits;
use crate::listener::{ClientStream, Listener};
use crate::substituter::Substituter;

/// Pause before accepting again when the process or the machine is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Shortest time between two warnings about it.
const WARN_PAUSE: Duration = Duration::from_secs(1);

/// Serves HTTP/1 on `listener` until `shutdown` resolves. Then it accepts nothing more, gives responses under way
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
    let table = ConnectionTable::new(limits, Arc::clone(gateway.metrics()));
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
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, route)) => {
                let entered = table.enter(route);
                let address = route.client_address();
                tokio::spawn(serve_connection(stream, entered, address, gateway.clone(), http.clone()));
            }
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
    drop(listener);
    table.drain(grace).await;
}

fn http(limits: &GatewayLimits) -> http1::Builder {
    let mut http = http1::Builder::new();
    // The sweeper limits the time of a head, because hyper's own timer costs an allocation for each request.
    // `pipeline_flush` stays off: it would hold back a response while part of the next request is already there.
    http.header_read_timeout(None).half_close(true).max_buf_size(limits.buffer_bytes_max);
    http
}

async fn serve_connection<S: Substituter>(
    stream: ClientStream,
    entered: Entered,
    address: Option<IpAddr>,
    gateway: Gateway<S>,
    http: http1::Builder,
) {
    if let Err(error) = stream.prepare() {
        tracing::debug!(%error, "a client disconnected at once");
        return;
    }
    let state = Arc::clone(&entered.state);
    let io = WatchedStream::new(stream, Arc::clone(&state));
    let mut connection =
        pin!(http.serve_connection(io, gateway.connection(Arc::clone(&state), entered.user(), address)));
    let mut draining = false;
    // The order is polled with the connection, so that it takes effect even while the client sends nothing.
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
