//! The NAR format: a strict encoder of tokens and a strict streaming verifier.
//!
//! A *token* is a little-endian `u64` length, that many bytes, and zeros up to a multiple of 8. A NAR is the token
//! `nix-archive-1` and a *node*: `( type regular [executable ""] contents <bytes> )`, `( type symlink target <t> )` or
//! `( type directory { entry ( name <n> node <node> ) } )`, where each word is a token and the names ascend bytewise.
//! So a tree has exactly one NAR, and any holder can continue a transfer that another holder began.

mod encode;
mod verify;

pub use encode::NarWriter;
pub use verify::{NarError, NarVerifier, VerifiedNar};

/// Most nodes from the root (counted as the first) to the deepest one, as in Nix since mid-2026 (`libutil/archive.cc`).
pub const DEPTH_MAX: usize = 64;
/// Longest name of a directory entry, bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest target of a symlink, bytes.
pub const TARGET_BYTES_MAX: usize = 4095;

/// The first token of every NAR.
const MAGIC: &[u8] = b"nix-archive-1";

/// Number of zeros after a token of `length` bytes: 0 to 7.
fn padding(length: u64) -> usize {
    usize::try_from(length.wrapping_neg() % 8).expect("below 8")
}
