//! HTTP binary caches, and directories in the same layout, as sources of narinfos and NARs.
//!
//! Walk: an [`Upstream`] is one cache. [`Upstream::narinfo`] asks it for the narinfo of a path,
//! [`Upstream::realisation`] which path an output is, and [`Upstream::nar`] for
//! the NAR at a [`NarLocation`], which the narinfo names. `http` and `directory` fetch, `decode` unpacks what comes, and
//! `health` decides from what happened whether the cache is asked at all.
//!
//! Contract: nothing here is trusted. A narinfo is bounded bytes, and the caller judges it; a [`NarBody`] gives bytes of
//! which the caller checks number and hash, and its end says nothing about whether the NAR is complete. What the narinfo
//! says of the file is compared as well, but only noted: the hash of the NAR decides.
//! Invariants: a cache that is down is not contacted, except by one request at a time that tries it again and for which nobody waits; credentials go
//! to the host of the cache alone; a redirect never leads from https to http, nor from a public address to a private one; no NAR is
//! unpacked without its share of [`DecoderMemory`].

mod chain;
mod decode;
mod directory;
mod failure;
mod health;
mod http;
mod latency;
mod location;
mod memory;
mod nar_body;
mod reach;
mod received;
mod settings;
mod upstream;
mod window;

pub use chain::Chains;
pub use decode::Compression;
pub use failure::{Failure, FailureKind};
pub use health::{HealthReport, HealthState};
pub use latency::Latency;
pub use location::{LocationError, NarLocation};
pub use memory::{DecoderMemory, Memory};
pub use nar_body::NarBody;
pub use settings::{Credentials, Place, PlaceError, ProxyChoice, UpstreamSettings};
pub use upstream::{CacheInfo, Upstream};
