//! Nix's HTTP dialect, and nothing else.
//!
//! Purpose: what a Nix client of this machine asks of a substituter becomes a question to a [`Substituter`], and the answer
//! becomes a response whose every detail (status, length, ranges, how it fails) is the one that Nix handles best.
//! Contract: the endpoints are `/nix-cache-info`, `/{hash part}.narinfo`, `/nar/{file}`, `/healthz` and `/metrics`, for GET
//! and HEAD. Where a path is, and whether it may be trusted, is the substituter's business alone.
//! Walk: [`serve`] accepts and keeps the connections within their limits; each request goes through [`Gateway`], which
//! answers narinfos from memory on the spot and gives the rest to its axum router, after the [`ListenerRole`] admitted it.
//! Invariants:
//! - a narinfo request is answered 200 or 404, and nothing is ever answered 5xx;
//! - a body that cannot be finished is never ended cleanly: its connection is closed short of Content-Length;
//! - a request of a web page, by a rebound name or by its origin, gets 403 and no CORS header;
//! - no client holds a connection for ever, and none is refused one.

mod body;
mod connection;
mod connection_table;
mod error;
mod gateway;
mod histogram;
mod metrics;
mod range;
mod role;
mod routes;
mod serve;
mod socket_owner;
mod substituter;
mod target;

pub use error::GatewayError;
pub use gateway::Gateway;
pub use metrics::{GatewayMetrics, RequestCounts};
pub use role::{Endpoints, ListenerRole};
pub use serve::{GatewayLimits, serve};
pub use substituter::{BodyAborted, CacheInfo, Lookup, NarBody, Substituter};

use std::sync::Arc;

/// All endpoints of a local listener as an axum router; [`serve`] with a [`Gateway`] answers faster.
pub fn router<S: Substituter>(
    substituter: Arc<S>,
    metrics: Arc<GatewayMetrics>,
    registry: Arc<prometheus_client::registry::Registry>,
) -> axum::Router {
    Gateway::new(substituter, ListenerRole::local(), metrics, registry).router()
}
