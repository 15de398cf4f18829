//! What this machine holds: the Nix database, read-only, and NARs streamed from the file system.
//!
//! Purpose: answer "do we hold it, may a peer have it, give me its bytes" for one Nix store.
//! Contract: blocking calls, no async runtime; threads of its own only behind [`NixStore::watch`] and [`Offer::start`],
//! which end when their guard or handle is dropped.
//! Walk: [`NixStore`] keeps the hash part of every valid path in memory and hears of changes through [`Watcher`];
//! [`Offer`] decides which of them leave this machine and renders their narinfos; [`NarStream`] gives the bytes.
//! Invariants: nothing in the database or the store is ever written; no read transaction is held between two calls;
//! a whole NAR's last byte is handed out only after NarHash and NarSize were right, now or since its files last changed; a path that may not leave is, to the
//! caller of [`Offer::offered`], the same as one that is not there.

mod by_use;
mod daemon;
mod database;
mod derivation;
mod error;
mod failed_copies;
mod file_identity;
mod known_copies;
mod layout;
mod layout_reader;
mod listing;
mod location;
mod nar_stream;
mod nar_walk;
mod nix_store;
mod offer;
mod path_index;
mod path_info;
mod read_ahead;
mod recent_rows;
mod registry;
mod watch;

pub use daemon::DaemonError;
pub use error::StoreError;
pub use failed_copies::CopyFault;
pub use location::{StoreGap, StoreLocation};
pub use nar_stream::{NarProgress, NarStream, NarStreamError};
pub use nix_store::{NixStore, Store};
pub use offer::{Offer, OfferChange, OfferPolicy, OfferedPath, Standing, Withheld};
pub use path_info::PathInfo;
pub use watch::{StoreChange, Watcher};
