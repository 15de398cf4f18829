//! Machines and paths, by their numbers.

use narmesh_protocol::HashPart;

/// A machine's number, from 0.
pub(crate) type Number = usize;
/// A path's number; its hash part follows from it.
pub(crate) type Path = u32;

/// Paths from this number on belong to nobody.
pub(crate) const ABSENT_FROM: Path = 0xE000_0000;
/// How many of these absent paths everybody looks for, in one lookup of ten, like what is new in a package set. Liars know
/// them.
pub(crate) const WANTED: Path = 2_000;

/// The hash part of the path with this number.
pub(crate) fn part(path: Path) -> HashPart {
    let mut bytes = [0; 20];
    let words = [path, path.wrapping_mul(2_654_435_761), !path, path.rotate_left(16), path ^ 0x5bd1_e995];
    for (to, from) in bytes.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())) {
        *to = from;
    }
    HashPart(bytes)
}
