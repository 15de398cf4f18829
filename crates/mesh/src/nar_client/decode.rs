//! Decompresses a body that comes as one zstd frame, in bounded pieces.

use std::io;
use zstd::stream::raw::{DParameter, InBuffer, Operation, OutBuffer};

/// Decompressed bytes per step: a few times what an inbox holds, because this much room is made, and zeroed, each time.
const UNPACKED_BYTES_MAX: usize = 64 << 10;
/// Windows of 8 MiB: the most that level 3 and below ever use. A frame that asks for more is refused before memory is
/// taken.
const WINDOW_LOG_MAX: u32 = 23;

/// Decompresses a body.
pub(super) struct Unpacker {
    decoder: zstd::stream::raw::Decoder<'static>,
    /// The last step filled its piece: more may come without further input.
    pub(super) has_more: bool,
    /// The frame has ended, so nothing may follow.
    has_ended: bool,
}

impl Unpacker {
    pub(super) fn new() -> io::Result<Self> {
        let mut decoder = zstd::stream::raw::Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Self { decoder, has_more: false, has_ended: false })
    }

    /// Decompresses `packed` onto the end of `out`, at most [`UNPACKED_BYTES_MAX`] at a time, however much the frame
    /// holds. Says how much of `packed` was used.
    pub(super) fn unpack(&mut self, packed: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        if self.has_ended && !packed.is_empty() {
            return Err(after_the_frame());
        }
        let before = out.len();
        out.resize(before + UNPACKED_BYTES_MAX, 0);
        let (mut used, mut produced) = (0, 0);
        let unpacked = loop {
            let mut input = InBuffer::around(packed.get(used..).unwrap_or_default());
            let mut output = OutBuffer::around(out.get_mut(before + produced..).unwrap_or_default());
            let run = self.decoder.run(&mut input, &mut output);
            let (consumed, written) = (input.pos(), output.pos());
            used += consumed;
            produced += written;
            match run {
                Err(error) => break Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                // zstd hints at no further input: the frame has ended, and all of it was given out. A skippable frame
                // is a frame as well.
                Ok(0) => {
                    (self.has_ended, self.has_more) = (true, false);
                    break if used == packed.len() { Ok(used) } else { Err(after_the_frame()) };
                }
                Ok(_) => {}
            }
            // A small frame may unpack to gigabytes, so the caller gets it in pieces and says when to go on.
            self.has_more = produced == UNPACKED_BYTES_MAX;
            if self.has_more || used == packed.len() {
                break Ok(used);
            }
            // Otherwise this loop would never end.
            if consumed == 0 && written == 0 {
                break Err(io::Error::new(io::ErrorKind::InvalidData, "zstd makes nothing of this input"));
            }
        };
        out.truncate(before + produced);
        unpacked
    }
}

fn after_the_frame() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "bytes after the end of the zstd frame")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_unpacked_in_bounded_pieces() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert!(bomb.len() < 64 << 10);
        let mut unpacker = Unpacker::new().unwrap();
        let (mut left, mut total) = (&bomb[..], 0);
        loop {
            let mut out = Vec::new();
            let used = unpacker.unpack(left, &mut out).unwrap();
            left = &left[used..];
            assert!(out.len() <= UNPACKED_BYTES_MAX);
            total += out.len();
            if !unpacker.has_more {
                break;
            }
        }
        assert_eq!(total, 64 << 20);
    }

    #[test]
    fn bytes_after_the_frame_are_refused() {
        let mut packed = zstd::bulk::compress(b"nar", 1).unwrap();
        packed.extend_from_slice(b"not zstd");
        assert!(Unpacker::new().unwrap().unpack(&packed, &mut Vec::new()).is_err());
    }

    #[test]
    fn second_frame_is_refused_be_it_empty_skippable_or_full() {
        let frame = zstd::bulk::compress(b"nar", 1).unwrap();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
        for second in [&zstd::bulk::compress(b"", 1).unwrap(), &skippable, &frame] {
            for is_at_once in [true, false] {
                let (mut unpacker, mut out) = (Unpacker::new().unwrap(), Vec::new());
                let refused = if is_at_once {
                    unpacker.unpack(&[&frame[..], second].concat(), &mut out)
                } else {
                    assert_eq!(unpacker.unpack(&frame, &mut out).unwrap(), frame.len());
                    unpacker.unpack(second, &mut out)
                };
                assert!(refused.is_err(), "{second:?}");
            }
        }
        let mut unpacker = Unpacker::new().unwrap();
        unpacker.unpack(&skippable, &mut Vec::new()).unwrap();
        assert!(unpacker.unpack(&frame, &mut Vec::new()).is_err(), "a skippable frame first");
    }
}
