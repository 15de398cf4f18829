//! The names of builders' keys.

use narmesh_protocol::{BuilderKey, NixPublicKey};
use std::collections::BTreeMap;

/// The keys of the configuration, by what they are. Nothing that is signed holds a key's name, so a file can give a key any name,
/// and Nix looks a signature's key up by that name: the name that the operator gave it is the one that is kept and shown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyNames(BTreeMap<BuilderKey, NixPublicKey>);

impl KeyNames {
    /// Of several names of one key the first.
    pub fn new(keys: impl IntoIterator<Item = NixPublicKey>) -> Self {
        let mut names = BTreeMap::new();
        for key in keys {
            names.entry(BuilderKey(key.bytes())).or_insert(key);
        }
        Self(names)
    }

    /// The key under its own name, if it is one of the configuration's.
    pub fn own<'a>(&'a self, key: &'a NixPublicKey) -> &'a NixPublicKey {
        self.0.get(&BuilderKey(key.bytes())).unwrap_or(key)
    }

    /// The name of a key of the configuration.
    pub fn of(&self, key: &BuilderKey) -> Option<&str> {
        self.0.get(key).map(NixPublicKey::name)
    }

    /// All of them.
    pub fn keys(&self) -> impl Iterator<Item = &NixPublicKey> {
        self.0.values()
    }
}
