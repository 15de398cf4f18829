//! Where the NAR of a narinfo is, and how it is packed: the fields that no signature covers.

use crate::decode::Compression;
use crate::window::{decoder_bytes, window_max};
use narmesh_protocol::NarHash;

/// Longest URL that is taken from a narinfo, bytes.
const URL_BYTES_MAX: usize = 4096;

/// The unsigned fields of a narinfo that say how its NAR is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NarLocation {
    /// As in the narinfo: relative to the cache, or absolute.
    pub url: String,
    /// How the file is compressed.
    pub compression: Compression,
    /// Size of the file in bytes, if that is given. One that is no number counts as none.
    pub file_size: Option<u64>,
    /// SHA-256 of the file, if that is given. A `FileHash` of another kind, or one that cannot be read, counts as none.
    pub file_hash: Option<[u8; 32]>,
}

/// Why the NAR of a narinfo cannot be fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// There is no URL, or an empty one, or one that is too long.
    #[error("URL: expected 1 to {URL_BYTES_MAX} bytes without white space")]
    Url,
    /// The compression is not one that can be unpacked.
    #[error("Compression: {0:?}; accepted: {accepted}", accepted = Compression::names())]
    Compression(String),
}

impl NarLocation {
    /// Finds the fields in the text of a narinfo, as Nix does: without `Compression` it is bzip2.
    pub fn parse(narinfo: &str) -> Result<Self, LocationError> {
        let field = |name: &str| {
            let mut lines = narinfo.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let url = field("URL").ok_or(LocationError::Url)?;
        // It becomes part of a request, so it must not be able to end its line.
        if url.is_empty() || url.len() > URL_BYTES_MAX || url.contains(|letter: char| letter.is_whitespace()) {
            return Err(LocationError::Url);
        }
        let compression = match field("Compression") {
            None => Compression::Bzip2,
            Some(name) => Compression::parse(name).ok_or_else(|| LocationError::Compression(shorten(name)))?,
        };
        // Both are hints: what is malformed counts as not said, and the NAR itself is verified.
        let file_size = field("FileSize").and_then(|digits| digits.parse().ok());
        let file_hash = field("FileHash").and_then(|text| NarHash::parse(text).ok()).map(|digest| digest.0);
        Ok(Self { url: url.to_owned(), compression, file_size, file_hash })
    }

    /// The most memory that it takes to unpack a NAR of this size, for [`DecoderMemory::take`](crate::DecoderMemory::take).
    pub fn decoder_bytes(&self, nar_size: u64) -> u64 {
        decoder_bytes(self.compression, window_max(self.compression), nar_size)
    }
}

/// The beginning of a value that somebody else chose.
fn shorten(value: &str) -> String {
    value.chars().take(20).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_real_caches_write() {
        let digest = NarHash([7; 32]);
        let text = format!("URL: nar/1w.nar.xz\nCompression: xz\nFileHash: {digest}\nFileSize: 50088\n");
        let location = NarLocation::parse(&text).unwrap();
        assert_eq!(location.file_hash, Some(digest.0));
        assert_eq!(location.url, "nar/1w.nar.xz");
        assert_eq!((location.compression, location.file_size), (Compression::Xz, Some(50_088)));
        let old = NarLocation::parse("URL: nar/1w.nar.bz2\nFileHash: md5:00\n").unwrap();
        assert_eq!((old.compression, old.file_size, old.file_hash), (Compression::Bzip2, None, None));
    }

    #[test]
    fn field_that_only_helps_makes_no_narinfo_unusable() {
        let location = NarLocation::parse("URL: a\nFileSize: -1\nFileHash: x\n").unwrap();
        assert_eq!((location.file_size, location.file_hash), (None, None));
    }

    #[test]
    fn says_which_field_is_wrong() {
        assert_eq!(NarLocation::parse("StorePath: x\n"), Err(LocationError::Url));
        assert_eq!(NarLocation::parse("URL: a b\n"), Err(LocationError::Url));
        let error = NarLocation::parse("URL: a\nCompression: arj\n").unwrap_err();
        assert_eq!(error.to_string(), "Compression: \"arj\"; accepted: none, xz, zstd, bzip2, br, gzip, lz4");
    }
}
