//! Tests the gateway from outside, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test that fails shows it by panicking")]

mod bodies;
mod client;
mod connections;
mod endpoints;
mod files;
mod hostile;
mod http2;
mod memory;
mod nix;
mod proxies;
mod tls;
