//! The builders that two nodes compare what they know of.

use super::BUILDERS_PER_SESSION_MAX;
use narmesh_protocol::BuilderKey;
use sha2::{Digest as _, Sha256};

/// First 8 bytes of SHA-256 over the key: a builder that both know is meant, no key is told to who does not know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, bincode::Encode, bincode::Decode)]
pub struct BuilderDigest(pub [u8; 8]);

impl BuilderDigest {
    /// Of a key.
    pub fn of(key: &BuilderKey) -> Self {
        let digest: [u8; 32] = Sha256::digest(key.0).into();
        Self(digest.first_chunk().copied().expect("32 bytes hold 8"))
    }
}

/// The builders of a session, and their numbers in the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shared {
    /// Ascending by digest.
    pub(super) builders: Vec<(BuilderDigest, BuilderKey)>,
}

impl Shared {
    /// These, each once. A session compares [`BUILDERS_PER_SESSION_MAX`] of them.
    pub fn new(keys: impl IntoIterator<Item = BuilderKey>) -> Self {
        let mut builders: Vec<_> = keys.into_iter().map(|key| (BuilderDigest::of(&key), key)).collect();
        builders.sort_unstable();
        builders.dedup();
        Self { builders }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.builders.is_empty()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.builders.len()
    }

    /// Whether this key is among them.
    pub fn contains(&self, key: &BuilderKey) -> bool {
        self.builders.binary_search(&(BuilderDigest::of(key), *key)).is_ok()
    }

    /// As many as one session compares, from the one with number `from` on and round again.
    pub(crate) fn window(&self, from: usize) -> Self {
        let (before, after) = self.builders.split_at(from.checked_rem(self.len()).unwrap_or(0));
        let mut builders: Vec<_> = after.iter().chain(before).take(BUILDERS_PER_SESSION_MAX).copied().collect();
        builders.sort_unstable();
        Self { builders }
    }

    /// Those for which `keep` says so.
    pub(crate) fn filtered(&self, keep: impl Fn(&BuilderKey) -> bool) -> Self {
        Self { builders: self.builders.iter().filter(|(_, key)| keep(key)).copied().collect() }
    }

    /// Those that are also in `digests`, as many as one session compares.
    pub(crate) fn restricted_to(&self, digests: &[BuilderDigest]) -> Self {
        let mut wanted = digests.to_vec();
        wanted.sort_unstable();
        let both = self.builders.iter().filter(|(digest, _)| wanted.binary_search(digest).is_ok());
        Self { builders: both.take(BUILDERS_PER_SESSION_MAX).copied().collect() }
    }

    /// Whether it has a builder that `before` has not.
    pub(crate) fn adds_to(&self, before: &Self) -> bool {
        self.keys().any(|key| !before.contains(&key))
    }

    pub(crate) fn digests(&self) -> Vec<BuilderDigest> {
        self.builders.iter().map(|(digest, _)| *digest).collect()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = BuilderKey> {
        self.builders.iter().map(|(_, key)| *key)
    }
}
