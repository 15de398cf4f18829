//! Digests as Nix writes them: base-16, nix32 or base-64, told apart by their length.

use crate::nix32;
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};

/// Parses exactly `N` bytes, or `None`. For every digest size of Nix's algorithms the three text lengths differ.
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
    // The decoder would accept several padded texts in a row. Nix does not, and each digest must have one spelling only.
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
    fn padding_inside_base64_is_refused() {
        let canonical = BASE64.encode(&[7; 32]);
        assert_eq!(parse_base64(&canonical), Some([7; 32]));
        // Two bytes in a padded group, then 30 bytes in ten groups: the same length, but the padding is not at the end.
        let (head, tail) = (BASE64.encode(&[7; 2]), BASE64.encode(&[7; 30]));
        let moved = format!("{head}{tail}");
        assert_eq!((moved.len(), parse_base64::<32>(&moved)), (canonical.len(), None));
    }
}
