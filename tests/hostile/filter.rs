//! The Bloom filter of `docs/protocol.md`, implemented a second time.

use siphasher::sip::SipHasher13;
use std::hash::Hasher as _;

const PROBES: u64 = 11;
const PRIME: u128 = 18_446_744_073_709_551_557;

fn hash(key: &[u8; 16], item: &[u8; 20]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(key);
    hasher.write(item);
    hasher.finish()
}

/// The bits of `item` in a filter of 2^`class` bits.
pub fn positions(item: &[u8; 20], class: u32) -> Vec<u32> {
    let (h0, h1) = (hash(b"narmesh filter 1", item), hash(b"narmesh filter B", item));
    let value = |i: u64| match i {
        0 => h0,
        1 => h1,
        _ => u64::try_from(u128::from(h0.wrapping_add(i.wrapping_mul(h1))) % PRIME).unwrap(),
    };
    (0..PROBES).map(|i| u32::try_from(value(i) % (1 << class)).unwrap()).collect()
}

pub fn filter(items: &[[u8; 20]], class: u32) -> Vec<u8> {
    let mut bytes = vec![0; 1 << (class - 3)];
    for item in items {
        set(&mut bytes, &positions(item, class));
    }
    bytes
}

pub fn set(bytes: &mut [u8], positions: &[u32]) {
    for position in positions {
        bytes[*position as usize / 8] |= 1 << (position % 8);
    }
}
