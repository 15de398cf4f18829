//! Throws at every decoder what strangers and peers can send to it.
//!
//! Purpose: find bytes for which a decoder panics, accepts what it should not, or takes more memory than their number
//! justifies.
//! Contract: a [`Target`] is a pure function of its input that panics when an invariant is broken. The same targets are
//! replayed in CI (`tests/replay.rs`), run for long by the binary of this package, and driven by libFuzzer with coverage
//! from `libfuzzer/`. `docs/fuzzing.md` has the commands.
//! Walk: [`targets::all`] lists the targets, [`Engine`] makes inputs from seeds and judges which are new, [`memory`]
//! measures the memory that they take.
//! Invariants: every choice of an [`Engine`] follows from its seed, so that a failure can be found again. No input that
//! it makes is longer than its target allows.

pub mod corpus;
mod engine;
pub mod memory;
mod mutation;
pub mod targets;

pub use engine::{Engine, Failure};
pub use mutation::mutate;
pub use targets::{Outcome, Target};
