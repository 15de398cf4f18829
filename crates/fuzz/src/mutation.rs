//! Changes to inputs, from flipping a bit to splicing two inputs.

use rand::{Rng, RngExt};

/// Values at the borders of types and limits, written as decimal text or in 1, 4 or 8 bytes.
const BORDERS: [u64; 18] = [
    0,
    1,
    2,
    7,
    8,
    9,
    32,
    255,
    256,
    4_095,
    4_096,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    u64::MAX >> 1,
    u64::MAX,
];

/// Changes `input` in one to eight places. `words` are tokens of its grammar, and `other` is a second input to take pieces
/// from. The result has at most `bytes_max` bytes.
pub fn mutate(rng: &mut impl Rng, input: &mut Vec<u8>, words: &[&[u8]], other: &[u8], bytes_max: usize) {
    let rounds = 1 << rng.random_range(0..4);
    for _ in 0..rng.random_range(1..=rounds) {
        change(rng, input, words, other);
    }
    input.truncate(bytes_max);
}

fn change(rng: &mut impl Rng, input: &mut Vec<u8>, words: &[&[u8]], other: &[u8]) {
    let at = place(rng, input.len());
    match rng.random_range(0..13) {
        0 => flip(rng, input, at),
        1 => overwrite(input, at, &[rng.random()]),
        2 => overwrite(input, at, &border(rng)),
        3 => insert(input, at, &border(rng)),
        4 => insert(input, at, &[rng.random()]),
        5 => {
            let end = span_end(rng, at, input.len());
            input.drain(at..end);
        }
        6 => {
            let end = span_end(rng, at, input.len());
            let span = input.get(at..end).unwrap_or_default().to_vec();
            insert(input, place_of(rng, input), &span);
        }
        7 => input.truncate(at),
        8 => {
            let from = place(rng, other.len());
            let span = other.get(from..span_end(rng, from, other.len())).unwrap_or_default();
            if rng.random() { insert(input, at, span) } else { overwrite(input, at, span) }
        }
        9 => {
            // The head of this input and the tail of the other.
            input.truncate(at);
            input.extend_from_slice(other.get(place(rng, other.len())..).unwrap_or_default());
        }
        10 => step(rng, input, at),
        _ => {
            let word = words.get(rng.random_range(0..words.len().max(1))).copied().unwrap_or_default();
            if rng.random() { insert(input, at, word) } else { overwrite(input, at, word) }
        }
    }
}

fn place(rng: &mut impl Rng, len: usize) -> usize {
    rng.random_range(0..=len)
}

fn place_of(rng: &mut impl Rng, input: &[u8]) -> usize {
    place(rng, input.len())
}

/// Most spans are short; some reach to the end.
fn span_end(rng: &mut impl Rng, from: usize, len: usize) -> usize {
    let longest = [1, 4, 16, 64, usize::MAX].get(rng.random_range(0..5)).copied().unwrap_or(1).min(len - from);
    from + rng.random_range(0..=longest)
}

fn border(rng: &mut impl Rng) -> Vec<u8> {
    let value = BORDERS.get(rng.random_range(0..BORDERS.len())).copied().unwrap_or(0);
    match rng.random_range(0..4) {
        0 => value.to_string().into_bytes(),
        1 => value.to_le_bytes().iter().take(1).copied().collect(),
        2 => value.to_le_bytes().iter().take(4).copied().collect(),
        _ => value.to_le_bytes().to_vec(),
    }
}

fn flip(rng: &mut impl Rng, input: &mut [u8], at: usize) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << rng.random_range(0..8);
    }
}

/// Steps a byte up or down by one, to the next digit or the next length.
fn step(rng: &mut impl Rng, input: &mut [u8], at: usize) {
    if let Some(byte) = input.get_mut(at) {
        *byte = if rng.random() { byte.wrapping_add(1) } else { byte.wrapping_sub(1) };
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let at = at.min(input.len());
    input.splice(at..at, bytes.iter().copied());
}

fn overwrite(input: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in input.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}
