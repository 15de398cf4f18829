//! Unpacks the files of a cache: as a stream, in bounded memory.

use async_compression::tokio::bufread::{BrotliDecoder, BzDecoder, GzipDecoder, Lz4Decoder, XzDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use std::pin::Pin;
use tokio::io::{AsyncBufRead, AsyncRead};

/// Memory that an xz decoder takes beside its dictionary: less than this.
const XZ_BESIDE_WINDOW: u64 = 1 << 20;
/// Windows of zstd, as powers of two, that are accepted in any case.
const ZSTD_WINDOW_LOG_MIN: u32 = 10;

/// The compression of a NAR in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// The file is the NAR.
    None,
    /// xz, also of several streams.
    Xz,
    /// zstd, also of several frames.
    Zstd,
    /// bzip2.
    Bzip2,
    /// brotli, which Nix calls `br`.
    Brotli,
    /// gzip.
    Gzip,
    /// LZ4 frames.
    Lz4,
}

/// A stream of unpacked bytes.
pub(crate) type Unpacked = Pin<Box<dyn AsyncRead + Send>>;

impl Compression {
    const ALL: [Self; 7] = [Self::None, Self::Xz, Self::Zstd, Self::Bzip2, Self::Brotli, Self::Gzip, Self::Lz4];

    /// The name in a narinfo.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
        }
    }

    /// The compression of this name in a narinfo; an empty one means none.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "" => Some(Self::None),
            "brotli" => Some(Self::Brotli),
            name => Self::ALL.into_iter().find(|compression| compression.name() == name),
        }
    }

    /// All names, for an error.
    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Unpacks a stream whose window is no larger than this; beyond that the stream counts as damaged. Every decoder goes
    /// on behind the end of a member, as `cat a.xz b.xz` is a valid file, too.
    pub(crate) fn unpack(self, packed: impl AsyncBufRead + Send + 'static, window: u64) -> Unpacked {
        macro_rules! several {
            ($decoder:expr) => {{
                let mut decoder = $decoder;
                decoder.multiple_members(true);
                Box::pin(decoder)
            }};
        }
        match self {
            Self::None => Box::pin(packed),
            Self::Xz => several!(XzDecoder::with_mem_limit(packed, window.saturating_add(XZ_BESIDE_WINDOW))),
            Self::Zstd => {
                let log = window.max(1).next_power_of_two().ilog2().max(ZSTD_WINDOW_LOG_MIN);
                several!(ZstdDecoder::with_params(packed, &[DParameter::window_log_max(log)]))
            }
            Self::Bzip2 => several!(BzDecoder::new(packed)),
            Self::Brotli => Box::pin(BrotliDecoder::new(packed)),
            Self::Gzip => several!(GzipDecoder::new(packed)),
            Self::Lz4 => several!(Lz4Decoder::new(packed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::window_max;
    use async_compression::tokio::bufread::{
        BrotliEncoder, BzEncoder, GzipEncoder, Lz4Encoder, XzEncoder, ZstdEncoder,
    };
    use std::io::Cursor;
    use tokio::io::AsyncReadExt as _;

    async fn pack(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        macro_rules! pack {
            ($encoder:expr) => {
                $encoder.read_to_end(&mut packed).await.unwrap()
            };
        }
        match compression {
            Compression::None => (&bytes[..]).read_to_end(&mut packed).await.unwrap(),
            Compression::Xz => pack!(XzEncoder::new(bytes)),
            Compression::Zstd => pack!(ZstdEncoder::new(bytes)),
            Compression::Bzip2 => pack!(BzEncoder::new(bytes)),
            Compression::Brotli => pack!(BrotliEncoder::new(bytes)),
            Compression::Gzip => pack!(GzipEncoder::new(bytes)),
            Compression::Lz4 => pack!(Lz4Encoder::new(bytes)),
        };
        packed
    }

    #[tokio::test]
    async fn each_compression_unpacks_to_what_was_packed() {
        let nar: Vec<u8> = (0..300_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        for compression in Compression::ALL {
            let packed = pack(compression, &nar).await;
            let mut unpacked = Vec::new();
            compression.unpack(Cursor::new(packed), window_max(compression)).read_to_end(&mut unpacked).await.unwrap();
            assert!(unpacked == nar, "{compression:?}");
        }
    }

    #[tokio::test]
    async fn a_file_of_several_members_is_unpacked_to_its_end() {
        for compression in [Compression::Xz, Compression::Zstd, Compression::Bzip2, Compression::Gzip, Compression::Lz4]
        {
            let mut packed = pack(compression, b"one ").await;
            packed.extend(pack(compression, b"two").await);
            let mut unpacked = Vec::new();
            compression.unpack(Cursor::new(packed), window_max(compression)).read_to_end(&mut unpacked).await.unwrap();
            assert_eq!(unpacked, b"one two", "{compression:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_was_cut_is_an_error() {
        let nar: Vec<u8> = (0..30_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        for compression in Compression::ALL.into_iter().filter(|compression| *compression != Compression::None) {
            let mut packed = pack(compression, &nar).await;
            packed.truncate(packed.len() / 2);
            let mut unpacked = Vec::new();
            let ended =
                compression.unpack(Cursor::new(packed), window_max(compression)).read_to_end(&mut unpacked).await;
            assert!(ended.is_err(), "{compression:?} ended with {} of {} bytes", unpacked.len(), nar.len());
        }
    }
}
