//! Digests as Nix writes them: base-16, nix32 or base-64, told apart by their length.

use crate::nix32;
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};

/// Parses exactly `N` bytes, or `None`. The three lengths differ for every `N` that Nix's algorithms have.
pub(crate) fn parse<const N: usize>(text: &str) -> Option<[u8; N]> {
    match text.len() {
        length if length == 2 * N => HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok(),
        length if length == nix32::text_len(N) => nix32::decode(text),
        length if length == BASE64.encode_len(N) => parse_base64(text),
        _ => None,
    }
}

/// Parses exactly `N` bytes of padded, canonical base-64, or `None`.
pub(crate) fn parse_base64<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != BASE64.encode_len(N) {
        return None;
    }
    BASE64.decode(text.as_bytes()).ok()?.try_into().ok()
}
