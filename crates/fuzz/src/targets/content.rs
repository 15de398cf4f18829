//! The contents of a NAR, checked against a content address in pieces.

use super::{Outcome, Target, golden};
use crate::memory::MemoryBound;
use narmesh_protocol::{ContentAddress, HashAlgorithm, HashPart};

pub(super) const TARGET: Target = Target {
    name: "content",
    run,
    seeds: || {
        let nars = golden("cache/nar", ".nar", 1 << 10).into_iter().take(8);
        nars.map(|nar| [&[0, 5], nar.as_slice()].concat()).collect()
    },
    words: &[b"50m2h85182ga50m2h85182ga50m2h851", b"\x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0", b"\x08\0\0\0\0\0\0\0contents"],
    input_bytes_max: 8 << 10,
};

/// The search needs a window of 64 KiB, which doubles as it grows, and an offset of 8 bytes for each 32 bytes found.
const MEMORY: MemoryBound = MemoryBound { per_byte: 8, constant: 16 << 10 };

/// The first byte chooses the address, the second the length of the pieces, and the rest is the NAR.
fn run(input: &[u8]) -> Outcome {
    let (Some((choice, rest)), own) = (input.split_first(), HashPart([5; 20])) else { return Outcome::of(()) };
    let Some((piece, nar)) = rest.split_first() else { return Outcome::of(()) };
    let algorithms = [HashAlgorithm::Md5, HashAlgorithm::Sha1, HashAlgorithm::Sha256, HashAlgorithm::Sha512];
    let algorithm = algorithms.get(usize::from(*choice) % 4).copied().unwrap_or(HashAlgorithm::Sha256);
    let address =
        ContentAddress::Fixed { recursive: choice & 4 != 0, algorithm, digest: vec![0; algorithm.digest_bytes()] };
    let own = (choice & 8 != 0).then_some(own);
    let verify = |piece: usize| {
        MEMORY.hold(nar.len(), || {
            let mut verifier = address.verifier(own.as_ref());
            nar.chunks(piece).for_each(|piece| verifier.feed(piece));
            verifier.matches()
        })
    };
    let whole = verify(nar.len().max(1));
    assert!(!whole, "nothing has a digest of zeros");
    assert_eq!(whole, verify(usize::from(*piece).max(1)), "the pieces must not matter");
    let found =
        nar.windows(32).filter(|window| *window == own.map(|own| own.to_string()).unwrap_or_default().as_bytes());
    Outcome::of((choice & 15, found.count(), super::magnitude(nar.len())))
}
