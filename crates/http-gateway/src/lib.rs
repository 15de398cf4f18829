//! The HTTP interface that Nix expects of a substituter, and nothing else.
//!
//! Purpose: turn a request of a Nix client on this machine into a question to a [`Substituter`], and the answer into a
//! response whose every detail (status, length, ranges, how it fails) is the one that Nix handles best.
//! Contract: the endpoints are `/nix-cache-info`, `/{hash part}.narinfo`, `/nar/{file}`; what else a plain binary cache gives,
//! `/log/{derivation}`, `/{hash part}.ls` and `/serve/{hash part}/{path}`; and `/healthz`, `/readyz`, `/version` and
//! `/metrics`; all for GET and HEAD. Only the substituter decides where a path is and whether it may be trusted.
//! Contents: [`serve`] accepts connections, with TLS where the [`Listener`] says so, and keeps them within their limits. Each request goes through [`Gateway`],
//! whose axum router answers it, after the [`ListenerRole`] admitted it; what memory knows of a narinfo is answered at once.
//! Invariants:
//! - a narinfo request is answered 200 or 404, and nothing is ever answered 5xx;
//! - a body that cannot be finished never ends cleanly: its connection is closed, or over HTTP/2 its stream is
//!   reset, before Content-Length is reached;
//! - a request of a web page, recognised by a rebound name or by its origin, gets 403 and no CORS header;
//! - no client keeps a connection forever, and none is refused one.

mod access;
mod access_log;
mod body;
mod client;
mod connection;
mod connection_table;
mod content_type;
mod error;
mod exposition;
mod files;
mod gateway;
mod histogram;
mod limits;
mod listener;
mod metrics;
mod nar_body;
mod page;
mod proxies;
mod range;
mod rate;
mod role;
mod routes;
mod serve;
mod socket_owner;
mod store_files;
mod streams;
mod substituter;
mod target;
mod tls;
mod validators;
mod zstd_body;

pub use access::{Access, Reads};
pub use access_log::ACCESS_TARGET;
pub use error::GatewayError;
pub use gateway::{ConnectionCount, Gateway};
pub use limits::GatewayLimits;
pub use listener::{Listener, TlsSettings};
pub use metrics::{GatewayMetrics, RequestCounts};
pub use nar_body::{BodyAborted, NarBody, NoNar};
pub use proxies::{Network, TrustedProxies};
pub use role::{Endpoints, HostCheck, ListenerRole};
pub use serve::serve;
pub use store_files::{
    BuildLog, Busy, DirectoryRow, EntryPath, RowKind, StoreDirectory, StoreEntry, StoreFile, TreeListing,
};
pub use substituter::{CacheInfo, Caller, ClientUser, Lookup, Substituter};

use std::sync::Arc;

/// All endpoints of a local listener as an axum router; [`serve`] with a [`Gateway`] answers faster.
pub fn router<S: Substituter>(
    substituter: Arc<S>,
    metrics: Arc<GatewayMetrics>,
    registry: Arc<prometheus_client::registry::Registry>,
) -> axum::Router {
    Gateway::new(substituter, ListenerRole::local(), metrics, registry).router()
}
