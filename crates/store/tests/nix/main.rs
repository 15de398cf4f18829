//! The store against real Nix: every path here was built, copied, repaired or deleted by the real client.
//!
//! Needs `nix` (2.8 or newer) and, for the chroot store, `/bin/busybox` and user namespaces or root.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails where its assumptions do"
)]

mod access;
mod harness;
mod known_copies;
mod nar;
mod offer;
mod path_info;
mod ranges;
mod repair;
mod watch;
