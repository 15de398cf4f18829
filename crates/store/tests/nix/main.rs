//! Tests the store against real Nix: the real client builds, copies, repairs and deletes every path here.
//!
//! Needs `nix` (2.8 or newer) and, for the chroot store, `/bin/busybox` and user namespaces or root.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails where its assumptions do"
)]

mod access;
mod derivations;
mod harness;
mod known_copies;
mod nar;
mod offer;
mod offer_signatures;
mod partial_copies;
mod path_info;
mod ranges;
mod realisations;
mod repair;
mod watch;
