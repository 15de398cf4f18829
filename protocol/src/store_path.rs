//! Store directories, store paths and their hash parts.
use std::fmt;

/// The logical store directory, such as `/nix/store`: absolute, no trailing slash, 1 to 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StoreDir(String);

/// The 20 bytes that a store path's first 32 characters (nix32) stand for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct HashPart(pub [u8; 20]);

/// One `write` of the 20 bytes: the derived form would hash a length too, and the filter constants are defined without it.
impl std::hash::Hash for HashPart {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

/// A store path without its directory: `<hash part>-<name>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorePath { hash_part: HashPart, name: String }

/// Why a text is no store path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// Placeholder until filled.
    #[error("not a store path")]
    Invalid,
}

impl StoreDir {
    /// Parses an absolute directory.
    pub fn parse(text: &str) -> Result<Self, StorePathError> { let _ = text; todo!() }
    /// The text, without trailing slash.
    pub fn as_str(&self) -> &str { &self.0 }
    /// `<dir>/<hash>-<name>`.
    pub fn display(&self, path: &StorePath) -> String { format!("{}/{path}", self.0) }
    /// Parses a full path below this directory.
    pub fn parse_path(&self, full: &str) -> Result<StorePath, StorePathError> { let _ = full; todo!() }
}
impl HashPart {
    /// Parses 32 nix32 characters.
    pub fn parse(text: &str) -> Result<Self, StorePathError> { let _ = text; todo!() }
}
impl StorePath {
    /// Parses a base name `<32 nix32>-<name>`.
    pub fn parse(base_name: &str) -> Result<Self, StorePathError> { let _ = base_name; todo!() }
    /// Joins checked parts; checks the name.
    pub fn new(hash_part: HashPart, name: &str) -> Result<Self, StorePathError> { let _ = (hash_part, name); todo!() }
    /// The hash part.
    pub fn hash_part(&self) -> HashPart { self.hash_part }
    /// The name, 1 to 211 bytes.
    pub fn name(&self) -> &str { &self.name }
    /// Whether it is a derivation (`.drv`).
    pub fn is_derivation(&self) -> bool { self.name.ends_with(".drv") }
}
impl fmt::Display for HashPart { fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result { todo!() } }
impl fmt::Debug for HashPart { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) } }
impl fmt::Display for StorePath { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{}-{}", self.hash_part, self.name) } }
impl fmt::Debug for StorePath { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) } }
