//! What one listener bears.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// Limits of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayLimits {
    /// Most connections at a time, at least 1. One more closes the connection that stood still longest among those of the
    /// local user with the most connections; none is ever refused.
    pub connections_max: usize,
    /// Most connections of one local user, at least 1. One more closes that user's longest idle one. As long as there are
    /// fewer connections in all, the gateway does not look up their owners.
    pub connections_per_user_max: usize,
    /// Longest time from the opening of a connection, or the first byte of a later request, to
    /// the end of the request's head.
    pub header_read_timeout: Duration,
    /// Longest time from the opening of a connection to the end of the handshake of TLS, where there is one. The first request's
    /// head has its own time after it.
    pub tls_handshake_timeout: Duration,
    /// Longest time without a request.
    pub idle_timeout: Duration,
    /// Longest time during a response in which the client takes no byte.
    pub stall_timeout: Duration,
    /// The same while bodies have to wait for memory: then a client is also closed that took less than 64 KiB in this time
    /// of what was there for it.
    pub short_stall_timeout: Duration,
    /// Largest request head and most buffered bytes of a response, each; 8 KiB or more.
    pub buffer_bytes_max: usize,
    /// Time that responses under way at shutdown get to finish.
    pub shutdown_grace: Duration,
}

/// How long a client that has connected and sent no request yet is waited for when the gateway stops. A guess: its request is
/// on its way, unless it connected in advance.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The time for which a client is waited for that has connected and sent no request yet, when the gateway stops.
#[derive(Debug, Default)]
pub(crate) struct LastWait(Option<Pin<Box<Sleep>>>);

impl LastWait {
    /// Whether it is over. It begins with the first call.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.get_or_insert_with(|| Box::pin(sleep(LAST_WAIT))).as_mut().poll(cx)
    }
}

impl Default for GatewayLimits {
    /// 512 connections leave half of the usual 1,024 descriptors to the rest of the process; one Nix client opens at most
    /// 25. 300 s without a byte is Nix's own `stalled-download-timeout`. The other values are guesses, not measurements.
    fn default() -> Self {
        Self {
            connections_max: 512,
            connections_per_user_max: 256,
            header_read_timeout: Duration::from_secs(10),
            tls_handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            stall_timeout: Duration::from_secs(300),
            short_stall_timeout: Duration::from_secs(10),
            buffer_bytes_max: 64 * 1024,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}
