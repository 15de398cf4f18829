//! The gateway from outside, over real sockets.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails shows it by panicking")]

mod bodies;
mod client;
mod connections;
mod endpoints;
mod hostile;
mod memory;
mod nix;
