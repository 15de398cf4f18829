//! What builders attest: kept in SQLite, attested for our own builds, asked about by `narmesh quorum`.
//!
//! Walk: [`LiveLedger`] holds attestations and when this node first stored them, in memory and, in [`LedgerDb`], on disk; [`import`] takes them from a text file, verified
//! on all cores; [`OwnBuilds`] attests what this machine built; [`StoreSignatures`] and [`signatures_unheard`] find
//! signatures that count; [`Queries`] answers what
//! `narmesh quorum` asks, part by part, with `members` for the store's side of a report; [`Page`] renders one. What is said of them is decided in `narmesh-quorum`.

mod attest;
mod bare;
mod db;
mod html;
mod import;
mod live;
mod members;
mod names;
mod queries;

pub use attest::{OwnBuilds, OwnStatement};
pub use bare::{StoreSignatures, signatures_unheard};
pub use db::{BareSignature, FirstStored, LedgerDb, LedgerDbError, NewStatement, StoredStatement};
pub use html::Page;
pub use import::{ImportError, Imported, import, read_file, verify};
pub use live::{IsHeld, LedgerThread, LiveLedger, Taken};
pub use names::KeyNames;
pub use queries::{Part, Queries, Question, Scope};

use narmesh_quorum::WallMs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Now, by the wall clock.
pub fn now() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
