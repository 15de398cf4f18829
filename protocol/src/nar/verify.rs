//! A push parser that accepts exactly the NARs that Nix would write, and hashes them as they pass.

use super::{DEPTH_MAX, MAGIC, NAME_BYTES_MAX, TARGET_BYTES_MAX, padding};
use crate::NarHash;
use sha2::{Digest, Sha256};

/// Longest token accepted where the grammar expects a word, bytes (as in Nix).
const WORD_BYTES_MAX: u64 = 32;

/// Why the bytes are not a valid NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarError {
    /// A word that the grammar does not allow at this place.
    #[error("NAR: unexpected word")]
    Word,
    /// A word, name or target is longer than the limit.
    #[error("NAR: token of {length} bytes, limit {length_max}")]
    TokenLength {
        /// The length that the token claims, bytes.
        length: u64,
        /// The limit at this place, bytes.
        length_max: u64,
    },
    /// Padding that is not zero. If it were accepted, one tree could have two NARs.
    #[error("NAR: padding is not zero")]
    Padding,
    /// A name that is empty, `.` or `..`, or contains a slash or NUL: it could lead out of the store path.
    #[error("NAR: name is empty, `.` or `..`, or holds a slash or NUL")]
    Name,
    /// Names that do not strictly ascend. If they were accepted, one tree could have two NARs.
    #[error("NAR: names do not ascend")]
    Order,
    /// A symlink target that is empty or contains NUL.
    #[error("NAR: symlink target is empty or holds NUL")]
    Target,
    /// Nodes nested deeper than Nix reads.
    #[error("NAR: more than {DEPTH_MAX} nodes deep")]
    Depth,
    /// Bytes after the end. (Nix ignores them, so its NarHash would not cover them.)
    #[error("NAR: bytes after the end")]
    Trailing,
    /// The bytes end before the archive does.
    #[error("NAR: cut short")]
    Incomplete,
}

/// NarHash and NarSize of a complete, well-formed archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedNar {
    /// SHA-256 of all bytes that were fed.
    pub nar_hash: NarHash,
    /// Number of bytes that were fed.
    pub nar_size: u64,
}

/// Takes the bytes of a NAR in pieces of any size. Its memory is bounded by depth and name length,
/// never by what the bytes claim.
#[derive(Clone, Debug, Default)]
pub struct NarVerifier {
    hasher: Sha256,
    fed_bytes: u64,
    parser: Parser,
    failure: Option<NarError>,
}

impl NarVerifier {
    /// A verifier that was fed nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes; an error is final.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        self.hasher.update(bytes);
        self.fed_bytes += bytes.len() as u64;
        self.parser.feed(bytes).inspect_err(|error| self.failure = Some(*error))
    }

    /// The error, if there was one.
    pub fn failure(&self) -> Option<NarError> {
        self.failure
    }

    /// Bytes fed so far.
    pub fn fed_bytes(&self) -> u64 {
        self.fed_bytes
    }

    /// Ends the input; an error unless the archive is complete.
    pub fn finish(self) -> Result<VerifiedNar, NarError> {
        match (self.failure, self.parser.expected) {
            (Some(failure), _) => Err(failure),
            (None, Expected::End) => {
                Ok(VerifiedNar { nar_hash: NarHash(self.hasher.finalize().into()), nar_size: self.fed_bytes })
            }
            (None, _) => Err(NarError::Incomplete),
        }
    }
}

/// The token that comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expected {
    #[default]
    Magic,
    NodeOpen,
    TypeWord,
    Type,
    ExecutableOrContents,
    ExecutableValue,
    ContentsWord,
    Contents,
    TargetWord,
    Target,
    NodeClose,
    EntryOrClose,
    EntryOpen,
    NameWord,
    Name,
    NodeWord,
    EntryClose,
    End,
}

/// How far the current token is read.
#[derive(Clone, Copy, Debug)]
enum Reading {
    Length { read: usize },
    Bytes { left: u64 },
    Padding { left: usize },
}

#[derive(Clone, Debug)]
struct Parser {
    expected: Expected,
    reading: Reading,
    length: [u8; 8],
    /// The bytes of the current token, at most [`TARGET_BYTES_MAX`]. File contents are never kept here.
    token: Vec<u8>,
    /// The last name read in each open directory; empty before the first.
    last_names: Vec<Vec<u8>>,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            expected: Expected::Magic,
            reading: Reading::Length { read: 0 },
            length: [0; 8],
            token: Vec::new(),
            last_names: Vec::new(),
        }
    }
}

impl Parser {
    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), NarError> {
        while !bytes.is_empty() {
            // A NAR that is whole is over: what comes after it would never be looked at by who unpacks it.
            if self.expected == Expected::End {
                return Err(NarError::Trailing);
            }
            bytes = match self.reading {
                Reading::Length { read } => self.read_length(read, bytes)?,
                Reading::Bytes { left } => self.read_bytes(left, bytes)?,
                Reading::Padding { left } => self.read_padding(left, bytes)?,
            };
        }
        Ok(())
    }

    fn read_length<'a>(&mut self, read: usize, bytes: &'a [u8]) -> Result<&'a [u8], NarError> {
        // A length can arrive in pieces, so its bytes collect in `self.length` until all 8 are there.
        let free = self.length.get_mut(read..).unwrap_or_default();
        let (taken, rest) = bytes.split_at(free.len().min(bytes.len()));
        free.iter_mut().zip(taken).for_each(|(to, from)| *to = *from);
        let read = read + taken.len();
        if read < self.length.len() {
            self.reading = Reading::Length { read };
            return Ok(rest);
        }
        let length = u64::from_le_bytes(self.length);
        let length_max = self.expected.length_max();
        // Checked before the token is read: a claimed length alone must not make us collect bytes.
        if length > length_max {
            return Err(NarError::TokenLength { length, length_max });
        }
        self.token.clear();
        match length {
            0 => self.end_token()?,
            left => self.reading = Reading::Bytes { left },
        }
        Ok(rest)
    }

    fn read_bytes<'a>(&mut self, left: u64, bytes: &'a [u8]) -> Result<&'a [u8], NarError> {
        let taken_bytes = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (taken, rest) = bytes.split_at(taken_bytes);
        // Contents are hashed and not kept, or a file would have to fit into memory.
        if self.expected != Expected::Contents {
            self.token.extend_from_slice(taken);
        }
        match left - taken.len() as u64 {
            0 => match padding(u64::from_le_bytes(self.length)) {
                0 => self.end_token()?,
                left => self.reading = Reading::Padding { left },
            },
            left => self.reading = Reading::Bytes { left },
        }
        Ok(rest)
    }

    fn read_padding<'a>(&mut self, left: usize, bytes: &'a [u8]) -> Result<&'a [u8], NarError> {
        let (taken, rest) = bytes.split_at(left.min(bytes.len()));
        // Padding that is not zero would be a second NAR of the same contents.
        if taken.iter().any(|byte| *byte != 0) {
            return Err(NarError::Padding);
        }
        match left - taken.len() {
            0 => self.end_token()?,
            left => self.reading = Reading::Padding { left },
        }
        Ok(rest)
    }

    /// Checks the complete token and sets what comes next.
    fn end_token(&mut self) -> Result<(), NarError> {
        self.reading = Reading::Length { read: 0 };
        let token = self.token.as_slice();
        let word = |word: &[u8], next| if token == word { Ok(next) } else { Err(NarError::Word) };
        self.expected = match self.expected {
            Expected::Magic => word(MAGIC, Expected::NodeOpen)?,
            Expected::NodeOpen => word(b"(", Expected::TypeWord)?,
            Expected::TypeWord => word(b"type", Expected::Type)?,
            Expected::Type => match token {
                b"regular" => Expected::ExecutableOrContents,
                b"symlink" => Expected::TargetWord,
                b"directory" => {
                    // The names of each open directory are compared with each other alone.
                    self.last_names.push(Vec::new());
                    Expected::EntryOrClose
                }
                _ => return Err(NarError::Word),
            },
            Expected::ExecutableOrContents => match token {
                b"executable" => Expected::ExecutableValue,
                _ => word(b"contents", Expected::Contents)?,
            },
            Expected::ExecutableValue => Expected::ContentsWord,
            Expected::ContentsWord => word(b"contents", Expected::Contents)?,
            Expected::Contents => Expected::NodeClose,
            Expected::TargetWord => word(b"target", Expected::Target)?,
            // The system cannot make such a link, so it would fail in the middle of unpacking.
            Expected::Target if token.is_empty() || token.contains(&0) => return Err(NarError::Target),
            Expected::Target => Expected::NodeClose,
            Expected::NodeClose => word(b")", self.after_node())?,
            Expected::EntryOrClose => match token {
                // Before the entry is opened: whatever unpacks it needs stack for each level.
                b"entry" if self.last_names.len() >= DEPTH_MAX => return Err(NarError::Depth),
                b"entry" => Expected::EntryOpen,
                b")" => {
                    self.last_names.pop();
                    self.after_node()
                }
                _ => return Err(NarError::Word),
            },
            Expected::EntryOpen => word(b"(", Expected::NameWord)?,
            Expected::NameWord => word(b"name", Expected::Name)?,
            Expected::Name => {
                self.take_name()?;
                Expected::NodeWord
            }
            Expected::NodeWord => word(b"node", Expected::NodeOpen)?,
            Expected::EntryClose => word(b")", Expected::EntryOrClose)?,
            Expected::End => return Err(NarError::Trailing),
        };
        Ok(())
    }

    fn after_node(&self) -> Expected {
        if self.last_names.is_empty() { Expected::End } else { Expected::EntryClose }
    }

    fn take_name(&mut self) -> Result<(), NarError> {
        let name = self.token.as_slice();
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
            return Err(NarError::Name);
        }
        match self.last_names.last_mut() {
            Some(last) if last.as_slice() < name => std::mem::swap(last, &mut self.token),
            Some(_) | None => return Err(NarError::Order),
        }
        Ok(())
    }
}

impl Expected {
    /// Longest token accepted at this place, bytes.
    fn length_max(self) -> u64 {
        match self {
            Self::Contents => u64::MAX,
            Self::Name => NAME_BYTES_MAX as u64,
            Self::Target => TARGET_BYTES_MAX as u64,
            Self::ExecutableValue => 0,
            Self::Magic
            | Self::NodeOpen
            | Self::TypeWord
            | Self::Type
            | Self::ExecutableOrContents
            | Self::ContentsWord
            | Self::TargetWord
            | Self::NodeClose
            | Self::EntryOrClose
            | Self::EntryOpen
            | Self::NameWord
            | Self::NodeWord
            | Self::EntryClose
            | Self::End => WORD_BYTES_MAX,
        }
    }
}
