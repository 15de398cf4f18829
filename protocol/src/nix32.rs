//! Nix's base-32.
/// Encodes bytes; the text has ceil(8n/5) characters.
pub fn encode(bytes: &[u8]) -> String { let _ = bytes; todo!() }
/// Decodes into exactly `N` bytes, or `None`: wrong length, foreign character, or unused top bits set.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> { let _ = text; todo!() }
