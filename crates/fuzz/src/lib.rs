//! What strangers and peers can send us, thrown at every decoder that takes it.
//!
//! Purpose: find the bytes for which a decoder panics, accepts what it should not, or takes memory that they did not pay for.
//! Contract: a [`Target`] is a pure function of its input that panics when an invariant is broken. The same targets are
//! replayed in CI (`tests/replay.rs`), run for long by the binary of this package, and driven by libFuzzer with coverage
//! from `libfuzzer/`. `docs/fuzzing.md` has the commands.
//! Walk: [`targets::all`] lists them, [`Engine`] makes inputs of seeds and judges which are new, [`memory`] counts.

pub mod corpus;
mod engine;
pub mod memory;
mod mutation;
pub mod targets;

pub use engine::{Engine, Failure};
pub use mutation::mutate;
pub use targets::{Outcome, Target};
