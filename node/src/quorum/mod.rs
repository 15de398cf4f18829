//! Attestations: kept in SQLite, made of our own builds, and reported by `narmesh quorum`.
//!
//! Walk: [`LiveLedger`] holds attestations, and when this node first stored them, in memory and on disk ([`LedgerDb`]);
//! [`import`] takes them from a text file, verified on all cores; [`OwnBuilds`] attests what this machine built;
//! [`StoreSignatures`] and [`find_unheard_signatures`] find bare signatures that count; [`Queries`] answers `narmesh quorum`
//! part by part, with `members` for the store's side of a report; [`Page`] renders a report. Verdicts are decided in
//! `narmesh-quorum`.

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
pub use bare::{StoreSignatures, find_unheard_signatures};
pub use db::{BareSignature, FirstStored, LedgerDb, LedgerDbError, NewStatement, StoredStatement};
pub use html::Page;
pub use import::{ImportError, Imported, import, read_file, verify};
pub use live::{IsHeld, LedgerThread, LiveLedger, Taken};
pub use names::KeyNames;
pub use queries::{Part, Queries, Question, Scope};

use anyhow::Context as _;
use narmesh_protocol::{StoreDir, StorePath};
use narmesh_quorum::WallMs;
use std::time::{SystemTime, UNIX_EPOCH};

/// The time of the wall clock.
pub fn now() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A store path as a user writes it: whole, or its base name alone.
pub(super) fn parse_path(store_dir: &StoreDir, text: &str) -> anyhow::Result<StorePath> {
    let parsed = if text.starts_with('/') { store_dir.parse_path(text) } else { StorePath::parse(text) };
    parsed.with_context(|| format!("{text:?} is not a path in {}", store_dir.as_str()))
}
