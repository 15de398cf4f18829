//! The NAR format: a strict encoder of tokens and a strict streaming verifier.
mod encode;
mod verify;
pub use encode::NarWriter;
pub use verify::{NarError, NarVerifier, VerifiedNar};
/// Depth of directories, as in Nix since mid-2026.
pub const DEPTH_MAX: usize = 64;
/// Bytes of one name.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a symlink's target.
pub const TARGET_BYTES_MAX: usize = 4095;
