//! Nix's base-32: its own alphabet (no `e`, `o`, `t`, `u`) over the bytes read as one little-endian number, highest digit first.
//!
//! Since the alphabet ascends in ASCII, texts of the same length sort as those numbers do: by the *last* byte first.

/// The digits 0 to 31 (`libutil/hash.cc`).
const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Characters in the text of `bytes` bytes: ceil(8n/5).
pub const fn text_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// Encodes bytes; the text has ceil(8n/5) characters.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(text_len(bytes.len()));
    for position in (0..text_len(bytes.len())).rev() {
        let (byte, bit) = (position * 5 / 8, position * 5 % 8);
        let low = bytes.get(byte).copied().unwrap_or(0);
        let high = bytes.get(byte + 1).copied().unwrap_or(0);
        let digit = (u16::from_le_bytes([low, high]) >> bit) & 0x1f;
        text.push(ALPHABET.get(usize::from(digit)).copied().map_or('0', char::from));
    }
    text
}

/// Decodes into exactly `N` bytes. `None` for a wrong length, a character outside the alphabet,
/// or set bits at the unused top.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != text_len(N) {
        return None;
    }
    let mut bytes = [0; N];
    // The first character holds the highest bits.
    for (position, character) in text.bytes().rev().enumerate() {
        let (byte, bit) = (position * 5 / 8, position * 5 % 8);
        let [low, high] = (u16::from(digit(character)?) << bit).to_le_bytes();
        *bytes.get_mut(byte)? |= low;
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= high,
            // The last digit has bits beyond the last byte; set, they would be a second spelling.
            None if high != 0 => return None,
            None => {}
        }
    }
    Some(bytes)
}

/// The value of a character of [`ALPHABET`]. Each request names a path and its hash, 84 characters, so none is searched for.
fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'd' => Some(character - b'a' + 10),
        b'f'..=b'n' => Some(character - b'f' + 14),
        b'p'..=b's' => Some(character - b'p' + 23),
        b'v'..=b'z' => Some(character - b'v' + 27),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_lengths_equal_those_of_nix() {
        assert_eq!([16, 20, 32, 64].map(text_len), [26, 32, 52, 103]);
    }

    #[test]
    fn values_of_characters_are_their_places_in_the_alphabet() {
        for character in 0..=255 {
            let place = ALPHABET.iter().position(|known| *known == character);
            assert_eq!(digit(character).map(usize::from), place, "{character}");
        }
    }

    #[test]
    fn refuses_what_encode_never_writes() {
        assert_eq!(decode::<20>(&"z".repeat(32)), Some([0xff; 20]));
        assert_eq!(decode::<20>(&"z".repeat(31)), None);
        assert_eq!(decode::<20>(&"z".repeat(33)), None);
        for foreign in ["e", "o", "u", "t", "Z", "-", "é"] {
            assert_eq!(decode::<20>(&format!("{foreign}{}", "0".repeat(32 - foreign.len()))), None, "{foreign}");
        }
        // 52 characters are 260 bits: the top four must be 0, so the first digit is 0 or 1.
        assert!(decode::<32>(&format!("1{}", "z".repeat(51))).is_some());
        assert_eq!(decode::<32>(&format!("2{}", "0".repeat(51))), None);
    }
}
