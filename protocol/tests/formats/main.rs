//! Tests the public formats of this crate against files that real Nix made, and against arbitrary values and bytes.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a failing test is what a panic is for here"
)]

mod circuits;
mod golden;
mod mesh;
mod nar;
mod nix_texts;
mod rosters;
mod tree;
