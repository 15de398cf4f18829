//! Store directories, store paths and their hash parts.

use crate::nix32;
use std::cmp::Ordering;
use std::fmt;

/// The logical store directory, such as `/nix/store`: absolute, no trailing slash, 2 to 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StoreDir(String);

/// The 20 bytes that the first 32 characters (nix32) of a store path's base name encode.
///
/// Hash parts order as those characters do, so that store paths sort as Nix sorts them.
#[derive(Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct HashPart(pub [u8; 20]);

/// One `write` of the 20 bytes: the derived form would also hash a length, and the filter is defined without it.
impl std::hash::Hash for HashPart {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

/// Orders as the nix32 texts do, whose first characters come from the last byte.
impl Ord for HashPart {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.iter().rev().cmp(other.0.iter().rev())
    }
}

impl PartialOrd for HashPart {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A store path without its directory: `<hash part>-<name>`. Ordered bytewise by that base name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorePath {
    hash_part: HashPart,
    name: String,
}

/// Why a text is not a valid store directory, hash part or store path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// The store directory does not begin with `/`.
    #[error("store directory: not absolute")]
    DirRelative,
    /// The store directory is too short or too long.
    #[error("store directory: {bytes} bytes, expected 2 to {}", StoreDir::BYTES_MAX)]
    DirLength {
        /// The length found.
        bytes: usize,
    },
    /// The store directory has an empty, `.` or `..` component, or a trailing slash.
    #[error("store directory: not canonical (empty, `.` or `..` component, or trailing slash)")]
    DirNotCanonical,
    /// The store directory contains a control character, which would break the lines of a narinfo.
    #[error("store directory: holds a control character")]
    DirControlCharacter,
    /// The full path is not directly below the store directory.
    #[error("store path: not directly in the store directory")]
    OutsideStoreDir,
    /// The hash part does not have 32 characters, or contains one outside nix32's alphabet.
    #[error("hash part: expected {} characters of nix32", HashPart::TEXT_LEN)]
    HashPart,
    /// There is no `-` after the hash part.
    #[error("store path: expected `-` after the hash part")]
    NoName,
    /// The name is empty or too long.
    #[error("store path name: {bytes} bytes, expected 1 to {}", StorePath::NAME_BYTES_MAX)]
    NameLength {
        /// The length found.
        bytes: usize,
    },
    /// The name contains a byte that Nix does not allow.
    #[error("store path name: byte {byte:#04x}, expected one of 0-9 A-Z a-z + - . _ ? =")]
    NameByte {
        /// The first such byte.
        byte: u8,
    },
    /// The name is `.` or `..`, or begins with one of them and a `-`.
    #[error("store path name: is or begins like `.` or `..`")]
    NameDots,
}

impl StoreDir {
    /// Longest directory, bytes. It has a limit because peers send it to each other.
    pub const BYTES_MAX: usize = 255;

    /// Parses an absolute, canonical directory.
    pub fn parse(text: &str) -> Result<Self, StorePathError> {
        let Some(below_root) = text.strip_prefix('/') else { return Err(StorePathError::DirRelative) };
        if below_root.is_empty() || text.len() > Self::BYTES_MAX {
            return Err(StorePathError::DirLength { bytes: text.len() });
        }
        if text.chars().any(char::is_control) {
            return Err(StorePathError::DirControlCharacter);
        }
        // Two spellings of one directory would be two directories here, and fingerprints contain it.
        if below_root.split('/').any(|component| matches!(component, "" | "." | "..")) {
            return Err(StorePathError::DirNotCanonical);
        }
        Ok(Self(text.to_owned()))
    }

    /// The text, without trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `<dir>/<hash>-<name>`.
    pub fn display(&self, path: &StorePath) -> String {
        format!("{}/{path}", self.0)
    }

    /// Parses a full path directly below this directory.
    pub fn parse_path(&self, full: &str) -> Result<StorePath, StorePathError> {
        let base_name = full.strip_prefix(self.as_str()).and_then(|rest| rest.strip_prefix('/'));
        match base_name {
            Some(base_name) if !base_name.contains('/') => StorePath::parse(base_name),
            Some(_) | None => Err(StorePathError::OutsideStoreDir),
        }
    }
}

impl HashPart {
    /// Length of its text: 32 characters.
    pub const TEXT_LEN: usize = nix32::text_len(20);

    /// Parses 32 nix32 characters.
    pub fn parse(text: &str) -> Result<Self, StorePathError> {
        nix32::decode(text).map(Self).ok_or(StorePathError::HashPart)
    }
}

impl StorePath {
    /// Longest name, bytes (from Nix's `store-api`: the base name with a suffix such as `.lock` stays below 255).
    pub const NAME_BYTES_MAX: usize = 211;

    /// Parses a base name `<32 nix32>-<name>`.
    pub fn parse(base_name: &str) -> Result<Self, StorePathError> {
        let (hash_part, rest) = base_name.split_at_checked(HashPart::TEXT_LEN).ok_or(StorePathError::HashPart)?;
        let hash_part = HashPart::parse(hash_part)?;
        Self::new(hash_part, rest.strip_prefix('-').ok_or(StorePathError::NoName)?)
    }

    /// Makes a store path from a hash part and a name; checks the name.
    pub fn new(hash_part: HashPart, name: &str) -> Result<Self, StorePathError> {
        check_name(name)?;
        Ok(Self { hash_part, name: name.to_owned() })
    }

    /// The hash part: the first 32 characters of the base name, as 20 bytes.
    pub fn hash_part(&self) -> HashPart {
        self.hash_part
    }

    /// The name, 1 to 211 bytes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the path is a derivation (its name ends with `.drv`).
    pub fn is_derivation(&self) -> bool {
        self.name.ends_with(".drv")
    }
}

/// Checks a name by the grammar of Nix since 2.21 (`libstore/path.cc`); older versions refuse every leading dot.
pub(crate) fn check_name(name: &str) -> Result<(), StorePathError> {
    if name.is_empty() || name.len() > StorePath::NAME_BYTES_MAX {
        return Err(StorePathError::NameLength { bytes: name.len() });
    }
    if matches!(name.split('-').next(), Some("." | "..")) {
        return Err(StorePathError::NameDots);
    }
    match name.bytes().find(|byte| !(byte.is_ascii_alphanumeric() || b"+-._?=".contains(byte))) {
        Some(byte) => Err(StorePathError::NameByte { byte }),
        None => Ok(()),
    }
}

impl fmt::Display for HashPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&nix32::encode(&self.0))
    }
}

impl fmt::Debug for HashPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.hash_part, self.name)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "7h7qgvs4kgzsn8a6rb273saxyqh4jxlz";

    #[test]
    fn store_directories_are_absolute_and_canonical() {
        for good in ["/nix/store", "/a", "/tmp/.x/store dir"] {
            assert_eq!(StoreDir::parse(good).unwrap().as_str(), good);
        }
        for (bad, error) in [
            ("", StorePathError::DirRelative),
            ("nix/store", StorePathError::DirRelative),
            ("/", StorePathError::DirLength { bytes: 1 }),
            ("/nix/store/", StorePathError::DirNotCanonical),
            ("/nix//store", StorePathError::DirNotCanonical),
            ("/nix/../store", StorePathError::DirNotCanonical),
            ("/nix/./store", StorePathError::DirNotCanonical),
            ("/nix\n/store", StorePathError::DirControlCharacter),
        ] {
            assert_eq!(StoreDir::parse(bad), Err(error), "{bad:?}");
        }
        assert!(StoreDir::parse(&format!("/{}", "a".repeat(254))).is_ok());
        assert_eq!(StoreDir::parse(&format!("/{}", "a".repeat(255))), Err(StorePathError::DirLength { bytes: 256 }));
    }

    #[test]
    fn names_are_accepted_as_nix_accepts_them() {
        for good in ["a", ".gitignore", "...", ".a-b", "..a", "-", "-x", "A0+-._?=", &"x".repeat(211)] {
            assert!(StorePath::parse(&format!("{HASH}-{good}")).is_ok(), "{good}");
        }
        for (bad, error) in [
            ("", StorePathError::NameLength { bytes: 0 }),
            (&"x".repeat(212), StorePathError::NameLength { bytes: 212 }),
            (".", StorePathError::NameDots),
            ("..", StorePathError::NameDots),
            (".-a", StorePathError::NameDots),
            ("..-a", StorePathError::NameDots),
            ("a/b", StorePathError::NameByte { byte: b'/' }),
            ("a b", StorePathError::NameByte { byte: b' ' }),
            ("a\0", StorePathError::NameByte { byte: 0 }),
            ("é", StorePathError::NameByte { byte: 0xc3 }),
        ] {
            assert_eq!(StorePath::parse(&format!("{HASH}-{bad}")), Err(error), "{bad:?}");
        }
        assert_eq!(StorePath::parse(HASH), Err(StorePathError::NoName));
        assert_eq!(StorePath::parse(&format!("{HASH}_x")), Err(StorePathError::NoName));
        assert_eq!(StorePath::parse("short-x"), Err(StorePathError::HashPart));
    }

    #[test]
    fn full_paths_lie_directly_below_the_directory() {
        let dir = StoreDir::parse("/nix/store").unwrap();
        let full = format!("/nix/store/{HASH}-x");
        assert_eq!(dir.display(&dir.parse_path(&full).unwrap()), full);
        for bad in [
            format!("{full}/bin"),
            format!("/nix/store{HASH}-x"),
            format!("/nix/storefoo/{HASH}-x"),
            format!("{HASH}-x"),
            format!("/gnu/store/{HASH}-x"),
            format!("/nix/store//{HASH}-x"),
        ] {
            assert_eq!(dir.parse_path(&bad), Err(StorePathError::OutsideStoreDir), "{bad}");
        }
    }
}
