//! The `narmesh` daemon and its command line, which connect what the other crates do separately.
//!
//! Purpose: make one program of them, with its command line, its configuration file and its state files.
//! Contract: whatever is wrong with the configuration is refused at the start, or at a reload, with the key's name. Once the
//! daemon runs, failures are logged and shown in `status`.
//! Walk: [`daemon::run`] loads [`settings`], opens the [`state_db`] and the Nix store, starts the mesh
//! (`narmesh-mesh`) and puts the resolver behind the HTTP gateway; [`attestations`] keeps what builders attest;
//! [`control`] answers `narmesh status` and the other commands.
//! Invariants: one place assembles the status; every wait has a deadline; every queue has a bound; no file of Nix is
//! written.

mod account;
pub mod attestations;
pub mod cli;
pub mod config;
mod config_template;
pub mod control;
pub mod daemon;
mod dashboard;
mod database_file;
mod describe;
mod given_totals;
mod membership;
mod regular_file;
pub mod serving;
pub mod settings;
mod sources;
pub mod state_db;
mod state_files;
pub mod status;
mod styles;
mod substituter;
mod tokens;
mod why;
