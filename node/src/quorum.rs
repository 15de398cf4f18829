//! What builders attest: kept in SQLite, attested for our own builds, read and written by `narmesh quorum`.
//!
//! Walk: [`LiveLedger`] holds attestations and when this node first stored them, in memory and, in [`LedgerDb`], on disk; [`import`] takes them from a text file, verified
//! on all cores; [`OwnBuilds`] attests what this machine built; `members` brings the store's side of a report; [`html`]
//! renders it. What is said of them is decided in `narmesh-quorum`.

mod attest;
mod db;
mod html;
mod import;
mod live;
mod members;
mod survey;

pub use attest::OwnBuilds;
pub use db::{FirstStored, LedgerDb, LedgerDbError, Stored};
pub use html::render as html;
pub use import::{ImportError, Imported, import, read_file, verify};
pub use live::{IsHeld, Keeper, LiveLedger, Taken};
pub use survey::{Scope, survey};

use narmesh_quorum::WallMs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Now, by the wall clock.
pub fn now() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
