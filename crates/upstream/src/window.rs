//! How much memory it takes to unpack a file: its beginning says so.

use crate::decode::Compression;

const MIB: u64 = 1 << 20;

/// The largest window that is unpacked. `xz -9`, the most that Nix uses, has 64 MiB; 128 MiB are what zstd itself accepts
/// without being asked, and 16 MiB the largest of brotli without its "large windows", which Nix does not read either.
pub(crate) fn window_max(compression: Compression) -> u64 {
    match compression {
        Compression::None => 0,
        Compression::Xz => 69 * MIB,
        Compression::Zstd => 128 * MIB,
        // Blocks of 900 kB, of which the decoder makes four times as much.
        Compression::Bzip2 => 4 * MIB,
        Compression::Brotli => 16 * MIB,
        Compression::Gzip => 1 << 15,
        // Blocks of 4 MiB, packed and unpacked.
        Compression::Lz4 => 8 * MIB,
    }
}

/// The memory that a decoder takes beside its window, bytes.
const BESIDE_WINDOW: u64 = MIB;

/// The memory that a decoder takes for a NAR of `nar_size`, bytes: of a window, only what was unpacked is ever touched.
pub(crate) fn decoder_bytes(compression: Compression, window: u64, nar_size: u64) -> u64 {
    if compression == Compression::None { 0 } else { window.min(nar_size).saturating_add(BESIDE_WINDOW) }
}

/// The window of a file that begins like this; `None` if that does not say it. Later members of the file may need no more:
/// the decoder is held to it.
pub(crate) fn window_of(compression: Compression, head: &[u8]) -> Option<u64> {
    match compression {
        Compression::Xz => xz_window(head),
        Compression::Zstd => zstd_window(head),
        Compression::Brotli => Some(brotli_window(*head.first()?)),
        Compression::None | Compression::Bzip2 | Compression::Gzip | Compression::Lz4 => Some(window_max(compression)),
    }
}

/// The dictionary that the first block of an xz file names (the .xz file format, 3.1 and 5.3.1).
fn xz_window(head: &[u8]) -> Option<u64> {
    const LZMA2: u64 = 0x21;
    let mut block = head.strip_prefix(b"\xfd7zXZ\0")?.get(6..)?.iter().copied();
    let mut next = || block.next();
    // The size of the block's header; zero begins the index of a file without blocks.
    if next()? == 0 {
        return Some(0);
    }
    let flags = next()?;
    let sizes = (flags >> 6 & 1) + (flags >> 7);
    for _ in 0..sizes {
        xz_number(&mut next)?;
    }
    for _ in 0..=flags & 3 {
        let (filter, properties) = (xz_number(&mut next)?, xz_number(&mut next)?);
        if filter == LZMA2 {
            let bits = u32::from(next()?);
            return (bits < 40).then(|| (2 | u64::from(bits & 1)) << (bits / 2 + 11));
        }
        for _ in 0..properties.min(64) {
            next()?;
        }
    }
    None
}

/// An integer in the encoding of xz: seven bits in each byte, the lowest first.
fn xz_number(next: &mut impl FnMut() -> Option<u8>) -> Option<u64> {
    let mut number = 0;
    // Nine bytes are the longest that xz allows.
    for shift in (0..63).step_by(7) {
        let byte = next()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The window of the first frame of a zstd file (RFC 8878, 3.1.1.1).
fn zstd_window(head: &[u8]) -> Option<u64> {
    let frame = head.strip_prefix(b"\x28\xb5\x2f\xfd")?;
    let descriptor = *frame.first()?;
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let window = *frame.get(1)?;
        let base = 1_u64 << (10 + u32::from(window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    let dictionary_id = match descriptor & 3 {
        3 => 4,
        bytes => usize::from(bytes),
    };
    let size = frame.get(1 + dictionary_id..)?;
    // The window is the whole contents, whose size stands there.
    Some(match descriptor >> 6 {
        0 => u64::from(*size.first()?),
        1 => u64::from(u16::from_le_bytes(*size.first_chunk()?)) + 256,
        2 => u64::from(u32::from_le_bytes(*size.first_chunk()?)),
        _ => u64::from_le_bytes(*size.first_chunk()?),
    })
}

/// The window of a brotli stream (RFC 7932, 9.1). What only streams with large windows begin with is larger than any.
fn brotli_window(first: u8) -> u64 {
    let bits = match (first & 1, first >> 1 & 7, first >> 4 & 7) {
        (0, ..) => 16,
        (_, 0, 0) => 17,
        (_, 0, 1) => return u64::MAX,
        (_, 0, small) => 8 + u32::from(small),
        (_, large, _) => 17 + u32::from(large),
    };
    1 << bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_compression::Level;
    use async_compression::tokio::bufread::{BrotliEncoder, XzEncoder, ZstdEncoder};
    use async_compression::zstd::CParameter;
    use tokio::io::AsyncReadExt as _;

    /// More than a zstd encoder takes at once, so that it does not know how much there is.
    const BYTES: &[u8] = &[7; 300_000];

    #[tokio::test]
    async fn windows_are_read_from_the_beginning_of_a_file() {
        for (level, kib) in [(0, 256), (6, 8 << 10), (9, 64 << 10)] {
            let mut packed = Vec::new();
            XzEncoder::with_quality(BYTES, Level::Precise(level)).read_to_end(&mut packed).await.unwrap();
            assert_eq!(window_of(Compression::Xz, &packed), Some(kib << 10), "xz -{level}");
        }
        for log in [17, 23, 27] {
            let (mut packed, parameter) = (Vec::new(), [CParameter::window_log(log)]);
            let mut encoder = ZstdEncoder::with_quality_and_params(BYTES, Level::Precise(1), &parameter);
            encoder.read_to_end(&mut packed).await.unwrap();
            assert_eq!(window_of(Compression::Zstd, &packed), Some(1 << log), "zstd with 2^{log}");
        }
        let whole = zstd_of(BYTES);
        assert_eq!(window_of(Compression::Zstd, &whole), Some(BYTES.len() as u64), "one whose size is known");
        let mut packed = Vec::new();
        BrotliEncoder::with_quality(BYTES, Level::Precise(5)).read_to_end(&mut packed).await.unwrap();
        let window = window_of(Compression::Brotli, &packed).unwrap();
        assert!((1 << 16..=16 * MIB).contains(&window), "{window}");
    }

    #[test]
    fn what_does_not_say_its_window_is_not_guessed_and_large_ones_are_seen() {
        for compression in [Compression::Xz, Compression::Zstd, Compression::Brotli] {
            assert_eq!(window_of(compression, b""), None);
        }
        for head in [&b"<html>"[..], b"\xfd7zXZ\0", b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01"] {
            assert_eq!(window_of(Compression::Xz, head), None);
        }
        assert_eq!(window_of(Compression::Zstd, b"\x28\xb5\x2f\xfd"), None);
        assert!(window_of(Compression::Brotli, b"\x11\x1e").unwrap() > window_max(Compression::Brotli));
        assert_eq!(window_of(Compression::Brotli, b"\x0f"), Some(1 << 24));
        assert_eq!(window_of(Compression::Brotli, b"\x00"), Some(1 << 16));
    }

    fn zstd_of(bytes: &[u8]) -> Vec<u8> {
        std::thread::scope(|scope| scope.spawn(|| zstd::bulk::compress(bytes, 3).unwrap()).join().unwrap())
    }
}
