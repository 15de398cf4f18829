//! The rules of `docs/quorum.md`, each with one test or more.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test may fail loudly, and its numbers are small"
)]

mod attacks;
mod bounds;
mod closures;
mod crowd;
mod exchange_attacks;
mod exchanging;
mod kept_back;
mod properties;
mod reconciliation;
mod reports;
mod rules;
mod stage;
mod wire;
