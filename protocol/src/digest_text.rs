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
    // The decoder takes several padded texts one after the other; Nix does not, and neither has a second spelling.
    let padding_inside = text.trim_end_matches('=').contains('=');
    if text.len() != BASE64.encode_len(N) || padding_inside {
        return None;
    }
    BASE64.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_stands_at_the_end_only() {
        let canonical = BASE64.encode(&[7; 32]);
        assert_eq!(parse_base64(&canonical), Some([7; 32]));
        // 30 bytes in ten groups, then two in one that is padded: the same length, the padding elsewhere.
        let (head, tail) = (BASE64.encode(&[7; 2]), BASE64.encode(&[7; 30]));
        let moved = format!("{head}{tail}");
        assert_eq!((moved.len(), parse_base64::<32>(&moved)), (canonical.len(), None));
    }
}
