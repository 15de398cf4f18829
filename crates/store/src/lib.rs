//! Reads what this machine's Nix store holds: the Nix database, read-only, and NARs streamed from the file system.
//!
//! Purpose: for one Nix store, answer whether it holds a path and whether a peer may have it, and give the path's bytes.
//! Contract: calls block, and there is no async runtime. Only [`NixStore::watch`], [`Offer::start`] and
//! [`PartialCopies::start`] start threads, which end when their guard or handle is dropped.
//! Contents: [`NixStore`] keeps the hash part of every valid path in memory and learns of changes through [`Watcher`];
//! [`Offer`] decides which paths may leave this machine and renders their narinfos; [`NarStream`] gives the bytes of a NAR,
//! [`StoreContents`] single files and listings, [`BuildLog`] what a builder said,
//! [`OwnRealisation`] which path an output is. [`PartialCopies`] keeps NARs that are still
//! coming in, so that peers get them while they come.
//! Invariants: nothing in the database or the store is ever written (partial copies are in narmesh's own state directory).
//! No read transaction is held between two calls. The
//! last byte of a whole NAR is handed out only if NarHash and NarSize were right, now or since its files last changed. To
//! the caller of [`Offer::find_offered`], a path that may not leave looks the same as one that does not exist.

mod build_log;
mod by_use;
mod change;
mod contents;
mod database;
mod derivation;
mod error;
mod failed_copies;
mod file_identity;
mod kept_faults;
mod known_copies;
mod layout;
mod layout_files;
mod layout_reader;
mod listing;
mod location;
mod nar_stream;
mod nar_trees;
mod nar_walk;
mod nix_daemon;
mod nix_store;
mod offer;
mod partial_copies;
mod path_index;
mod path_info;
mod read_ahead;
mod read_at_once;
mod realisations;
mod recent_rows;
mod registry;
mod watch;
mod watch_thread;
mod write_budget;

pub use build_log::{BuildLog, BuildLogText, LogUnpacker};
pub use change::StoreChange;
pub use contents::{ContentsError, DirectoryRow, DirectoryRows, Entry, EntryFile, RowKind, StoreContents, TreeListing};
pub use error::StoreError;
pub use failed_copies::{CopyFault, FAILED_MAX};
pub use kept_faults::KeptFault;
pub use location::{StoreGap, StoreLocation};
pub use nar_stream::{NarProgress, NarStream, NarStreamError};
pub use nar_trees::OfferedTree;
pub use nix_daemon::DaemonError;
pub use nix_store::NixStore;
pub use offer::{AttestedPaths, Offer, OfferChange, OfferPolicy, OfferedPath, OfferedRealisation, Offering, Withheld};
pub use partial_copies::{GiveAway, PartialCopies, PartialCopy, PartialWriter};
pub use path_info::PathInfo;
pub use realisations::OwnRealisation;
pub use watch::Watcher;
