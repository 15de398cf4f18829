//! NARs, fed in pieces to the verifier and whole to a second parser.

use super::{Outcome, Target, golden, magnitude};
use crate::memory::MemoryBound;
use narmesh_protocol::nar::{
    DEPTH_MAX, NAME_BYTES_MAX, NarError, NarVerifier, NarWriter, TARGET_BYTES_MAX, VerifiedNar,
};
use sha2::{Digest, Sha256};

pub(super) const TARGET: Target = Target {
    name: "nar",
    run,
    seeds: || [golden("nar", ".nar", 16 << 10), golden("cache/nar", ".nar", 2 << 10)].concat(),
    words: &[
        b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0",
        b"\x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0",
        b"\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0",
        b"\x04\0\0\0\0\0\0\0type\0\0\0\0",
        b"\x07\0\0\0\0\0\0\0regular\0",
        b"\x0a\0\0\0\0\0\0\0executable\0\0\0\0\0\0",
        b"\0\0\0\0\0\0\0\0",
        b"\x08\0\0\0\0\0\0\0contents",
        b"\x07\0\0\0\0\0\0\0symlink\0",
        b"\x06\0\0\0\0\0\0\0target\0\0",
        b"\x09\0\0\0\0\0\0\0directory\0\0\0\0\0\0\0",
        b"\x05\0\0\0\0\0\0\0entry\0\0\0",
        b"\x04\0\0\0\0\0\0\0name\0\0\0\0",
        b"\x04\0\0\0\0\0\0\0node\0\0\0\0",
        b"\x02\0\0\0\0\0\0\0..\0\0\0\0\0\0",
        b"\x01\0\0\0\0\0\0\0a\0\0\0\0\0\0\0",
    ],
    input_bytes_max: 32 << 10,
};

/// The names of all open directories, one symlink target, and some bytes of the verifier's own; twice, because a `Vec`
/// exists twice while it grows.
const MEMORY: MemoryBound =
    MemoryBound { per_byte: 0, constant: 2 * (DEPTH_MAX * (NAME_BYTES_MAX + 25) + TARGET_BYTES_MAX) + (4 << 10) };

fn run(input: &[u8]) -> Outcome {
    let whole = MEMORY.hold(input.len(), || verify([input].into_iter()));
    let seed = input.iter().fold(input.len(), |seed, byte| seed.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let in_pieces = MEMORY.hold(input.len(), || verify(Pieces { rest: input, seed }));
    assert_eq!(whole, in_pieces, "the pieces must not matter");
    if input.len() <= 512 {
        assert_eq!(whole, verify(input.chunks(1)), "nor single bytes");
    }
    let (tree, written) = rewritten(input);
    match &whole {
        Ok(verified) => {
            assert_eq!(verified.nar_size, input.len() as u64);
            assert_eq!(verified.nar_hash.0, <[u8; 32]>::from(Sha256::digest(input)));
            assert_eq!(tree, Ok(()), "the second parser accepts it too");
            assert_eq!(written, input, "it is the one NAR of its tree");
        }
        Err(_) => assert!(tree.is_err() || written != input, "a canonical NAR was refused: {whole:?}"),
    }
    let depth = input.windows(5).filter(|window| window == b"entry").count();
    Outcome::of((
        whole.as_ref().map(|_| ()).map_err(std::mem::discriminant),
        magnitude(depth),
        magnitude(written.len()),
    ))
}

fn verify<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<VerifiedNar, NarError> {
    let mut verifier = NarVerifier::new();
    for piece in pieces {
        verifier.feed(piece)?;
    }
    verifier.finish()
}

/// Pieces of 0 to 40 bytes whose borders follow from a seed.
struct Pieces<'a> {
    rest: &'a [u8],
    seed: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (piece, rest) = self.rest.split_at(((self.seed >> 33) % 41).min(self.rest.len()));
        self.rest = rest;
        Some(piece)
    }
}

/// Parses the whole input by recursion, as leniently as Nix does, and writes what it understood with our writer. Refuses
/// what may not be given to the writer.
fn rewritten(input: &[u8]) -> (Result<(), Refused>, Vec<u8>) {
    let mut out = Vec::new();
    let mut writer = NarWriter::start(&mut out);
    let mut reader = Reader { rest: input };
    let read = reader.word(b"nix-archive-1").and_then(|()| reader.node(&mut writer, &mut out, 1));
    let read = read.and(if reader.rest.is_empty() { Ok(()) } else { Err(Refused) });
    (read, out)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Refused;

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn token(&mut self) -> Result<&'a [u8], Refused> {
        let (length, rest) = self.rest.split_first_chunk::<8>().ok_or(Refused)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| Refused)?;
        let (bytes, rest) = rest.split_at_checked(length).ok_or(Refused)?;
        let (_, rest) = rest.split_at_checked(length.wrapping_neg() % 8).ok_or(Refused)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Refused> {
        if self.token()? == word { Ok(()) } else { Err(Refused) }
    }

    fn node(&mut self, writer: &mut NarWriter, out: &mut Vec<u8>, depth: usize) -> Result<(), Refused> {
        self.word(b"(")?;
        self.word(b"type")?;
        match self.token()? {
            b"regular" => {
                let mut next = self.token()?;
                let executable = next == b"executable";
                if executable {
                    self.token()?;
                    next = self.token()?;
                }
                if next != b"contents" {
                    return Err(Refused);
                }
                let contents = self.token()?;
                writer.begin_file(out, contents.len() as u64, executable);
                out.extend_from_slice(contents);
                writer.end_file(out, contents.len() as u64);
                self.word(b")")
            }
            b"symlink" => {
                self.word(b"target")?;
                let target = self.token()?;
                if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
                    return Err(Refused);
                }
                writer.write_symlink(out, target);
                self.word(b")")
            }
            b"directory" => self.entries(writer, out, depth),
            _ => Err(Refused),
        }
    }

    fn entries(&mut self, writer: &mut NarWriter, out: &mut Vec<u8>, depth: usize) -> Result<(), Refused> {
        writer.begin_directory(out);
        let mut last_name: &[u8] = b"";
        loop {
            match self.token()? {
                b")" => break,
                b"entry" => {}
                _ => return Err(Refused),
            }
            self.word(b"(")?;
            self.word(b"name")?;
            let name = self.token()?;
            let is_plain = !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
            if !is_plain || name.len() > NAME_BYTES_MAX || name <= last_name || depth >= DEPTH_MAX {
                return Err(Refused);
            }
            last_name = name;
            self.word(b"node")?;
            writer.begin_entry(out, name);
            self.node(writer, out, depth + 1)?;
            writer.end_entry(out);
            self.word(b")")?;
        }
        writer.end_directory(out);
        Ok(())
    }
}
