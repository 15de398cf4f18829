//! What a substituter gives of one store beside narinfos and NARs: build logs, listings, single files and directories.

use std::fmt;
use std::pin::Pin;

use futures::Stream;
use narmesh_protocol::nar::{DEPTH_MAX, NAME_BYTES_MAX};
use narmesh_protocol::{NarHash, StorePath};

use crate::nar_body::{BodyAborted, NarBody};

/// There is no memory for this answer at the moment: the client is told to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many such answers are under way")]
pub struct Busy;

/// A path inside of a store path: up to 64 names, none of them `.` or `..`, none with a slash or NUL.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EntryPath(Vec<Vec<u8>>);

impl EntryPath {
    /// Parses what follows the hash part in a URL: empty, or a slash and names between slashes, each percent-encoded or not. One
    /// slash may stand at the end.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('/').unwrap_or(text);
        if text.is_empty() {
            return Some(Self::default());
        }
        let names = text.strip_prefix('/')?.split('/').map(parse_name).collect::<Option<Vec<_>>>()?;
        (names.len() <= DEPTH_MAX).then_some(Self(names))
    }

    /// The names, from the root of the store path on.
    pub fn names(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// The same, where only the names are wanted.
    pub fn into_names(self) -> Vec<Vec<u8>> {
        self.0
    }
}

/// Decodes one name once. What looks encoded after that is a name that looks so.
fn parse_name(text: &str) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            name.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok().filter(|it| it.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        name.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    // Looked at after decoding, so that no escape brings in what the path itself may not have.
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len())
        && !matches!(name.as_slice(), b"." | b"..")
        && !name.iter().any(|byte| matches!(byte, b'/' | 0));
    is_name.then_some(name)
}

/// The log of a build.
pub struct BuildLog {
    /// Whether the body is compressed with bzip2.
    pub is_compressed: bool,
    /// Length of the body, if it is known.
    pub size_bytes: Option<u64>,
    /// The bytes of the log.
    pub body: NarBody,
}

/// The listing of a NAR.
pub struct TreeListing {
    /// The NarHash of the path.
    pub nar_hash: NarHash,
    /// The JSON that Nix writes beside a narinfo.
    pub body: NarBody,
}

/// What is at a path inside of a store path.
#[derive(Debug)]
pub enum StoreEntry {
    /// A regular file.
    File(StoreFile),
    /// A directory.
    Directory(StoreDirectory),
}

/// A regular file of a store path.
pub struct StoreFile {
    /// The NarHash of the store path.
    pub nar_hash: NarHash,
    /// The name of the file, which tells its type.
    pub name: Vec<u8>,
    /// The size of the file.
    pub size_bytes: u64,
    /// Reads the file from this byte on.
    pub read_from: Box<dyn FnOnce(u64) -> NarBody + Send>,
}

/// A directory of a store path.
pub struct StoreDirectory {
    /// The store path.
    pub path: StorePath,
    /// Its rows in order, some at a time.
    pub rows: Pin<Box<dyn Stream<Item = Result<Vec<DirectoryRow>, BodyAborted>> + Send>>,
}

/// One row of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryRow {
    /// The name, any bytes but a slash and NUL.
    pub name: Vec<u8>,
    /// Whether it is a file, a directory or a link.
    pub kind: RowKind,
}

/// What a row of a directory stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// A regular file.
    File {
        /// The size of its contents, bytes.
        size_bytes: u64,
    },
    /// A directory.
    Directory,
    /// A symlink.
    Symlink {
        /// Where it leads, any bytes but NUL.
        target: Vec<u8>,
    },
    /// Something that a store path should not hold.
    Special,
}

impl fmt::Debug for BuildLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildLog").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

impl fmt::Debug for TreeListing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeListing").field("nar_hash", &self.nar_hash).finish_non_exhaustive()
    }
}

impl fmt::Debug for StoreFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreFile").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

impl fmt::Debug for StoreDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreDirectory").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Option<Vec<String>> {
        let path = EntryPath::parse(text)?;
        Some(path.names().iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    #[test]
    fn names_are_decoded_once() {
        assert_eq!(names(""), Some(vec![]));
        assert_eq!(names("/"), Some(vec![]));
        assert_eq!(names("/a/b%20c/"), Some(vec!["a".to_owned(), "b c".to_owned()]));
        assert_eq!(names("/%C3%A4"), Some(vec!["\u{e4}".to_owned()]));
        assert_eq!(names("/%252e%252e"), Some(vec!["%2e%2e".to_owned()]));
        assert_eq!(names("/..."), Some(vec!["...".to_owned()]));
        assert_eq!(EntryPath::parse("/%ff").unwrap().names(), [vec![0xff]]);
    }

    #[test]
    fn path_that_could_leave_the_store_path_or_is_not_canonical_is_none() {
        for text in [
            "x",
            "//",
            "/a//b",
            "//a",
            "/.",
            "/..",
            "/../a",
            "/a/..",
            "/a/../b",
            "/%2e",
            "/%2e%2e",
            "/%2E%2E/a",
            "/.%2e/a",
            "/a%2fb",
            "/%2f",
            "/a%2F..%2F..",
            "/a%00",
            "/%",
            "/%2",
            "/%zz",
            "/%+1",
        ] {
            assert_eq!(names(text), None, "{text}");
        }
        assert_eq!(names(&"/a".repeat(64)).map(|names| names.len()), Some(64));
        assert_eq!(names(&"/a".repeat(65)), None);
        assert_eq!(names(&format!("/{}", "a".repeat(256))), None);
    }
}
