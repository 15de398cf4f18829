//! The acceptance stories: what users are promised, tested from outside with the real Nix client.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story fails by panicking")]

mod access_log;
mod asked;
mod bare;
mod browser;
mod busy;
mod cache_floods;
mod cli;
mod collected;
mod conformance;
mod corrupt;
mod derivations;
mod failover;
mod five_builders;
mod fixtures;
mod installed;
mod interrupted;
mod layering;
mod like_a_cache;
mod local_users;
mod logs_of_peers;
mod membership;
mod metrics;
mod names;
mod no_store;
mod nondeterministic;
mod one_key;
mod policy;
mod quorum;
mod realisations;
mod reload;
mod remote_builds;
mod restart;
mod serving;
mod serving_others;
mod shared;
mod substitute;
mod systemd;
mod tls;
mod travel;
mod trust;
mod upstream;
mod upstream_circles;
mod upstream_failures;
mod upstream_rates;
