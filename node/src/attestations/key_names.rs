//! The names of builders' keys.

use narmesh_protocol::{BuilderKey, NixPublicKey};
use std::collections::BTreeMap;

/// The keys of the configuration with their names. A key's name is not part of anything that is signed, so a file can
/// give a key any name; but Nix finds the key of a signature by its name. So the name that the operator gave a key is
/// kept and shown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyNames(BTreeMap<BuilderKey, NixPublicKey>);

impl KeyNames {
    /// If a key has several names, the first one counts.
    pub fn new(keys: impl IntoIterator<Item = NixPublicKey>) -> Self {
        let mut names = BTreeMap::new();
        for key in keys {
            names.entry(BuilderKey(key.bytes())).or_insert(key);
        }
        Self(names)
    }

    /// The key under the name that the configuration gives it, or as it is if the configuration does not have it.
    pub fn own<'a>(&'a self, key: &'a NixPublicKey) -> &'a NixPublicKey {
        self.0.get(&BuilderKey(key.bytes())).unwrap_or(key)
    }

    /// The name of a key, if the configuration has it.
    pub fn of(&self, key: &BuilderKey) -> Option<&str> {
        self.0.get(key).map(NixPublicKey::name)
    }

    /// All keys of the configuration, under their names.
    pub fn keys(&self) -> impl Iterator<Item = &NixPublicKey> {
        self.0.values()
    }
}
