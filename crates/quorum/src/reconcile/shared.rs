//! The builders about which two nodes compare what they know.

use super::BUILDERS_PER_SESSION_MAX;
use narmesh_protocol::BuilderKey;
use sha2::{Digest as _, Sha256};

/// The first 8 bytes of the SHA-256 over a builder's key. It names a builder that both sides know, without telling the key
/// to a peer that does not know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, bincode::Encode, bincode::Decode)]
pub struct BuilderDigest(pub [u8; 8]);

impl BuilderDigest {
    /// The digest of this key.
    pub fn of(key: &BuilderKey) -> Self {
        let digest: [u8; 32] = Sha256::digest(key.0).into();
        Self(digest.first_chunk().copied().expect("32 bytes hold 8"))
    }
}

/// The builders of a session, with their digests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shared {
    /// Ascending by digest.
    pub(super) builders: Vec<(BuilderDigest, BuilderKey)>,
}

impl Shared {
    /// These builders, each once. One session compares [`BUILDERS_PER_SESSION_MAX`] of them.
    pub fn new(keys: impl IntoIterator<Item = BuilderKey>) -> Self {
        let mut builders: Vec<_> = keys.into_iter().map(|key| (BuilderDigest::of(&key), key)).collect();
        builders.sort_unstable();
        builders.dedup();
        Self { builders }
    }

    /// Whether there are no builders.
    pub fn is_empty(&self) -> bool {
        self.builders.is_empty()
    }

    /// The number of builders.
    pub fn len(&self) -> usize {
        self.builders.len()
    }

    /// Whether the builder with this key is among them.
    pub fn contains(&self, key: &BuilderKey) -> bool {
        self.builders.binary_search(&(BuilderDigest::of(key), *key)).is_ok()
    }

    /// As many of them as one session compares, beginning with the one at index `from` and wrapping around.
    pub(crate) fn window(&self, from: usize) -> Self {
        let (before, after) = self.builders.split_at(from.checked_rem(self.len()).unwrap_or(0));
        let mut builders: Vec<_> = after.iter().chain(before).take(BUILDERS_PER_SESSION_MAX).copied().collect();
        builders.sort_unstable();
        Self { builders }
    }

    /// Those for which `keep` returns true.
    pub(crate) fn filtered(&self, keep: impl Fn(&BuilderKey) -> bool) -> Self {
        Self { builders: self.builders.iter().filter(|(_, key)| keep(key)).copied().collect() }
    }

    /// Those that are also in `digests`, but no more than one session compares.
    pub(crate) fn restricted_to(&self, digests: &[BuilderDigest]) -> Self {
        let mut wanted = digests.to_vec();
        wanted.sort_unstable();
        let both = self.builders.iter().filter(|(digest, _)| wanted.binary_search(digest).is_ok());
        Self { builders: both.take(BUILDERS_PER_SESSION_MAX).copied().collect() }
    }

    /// Whether it has a builder that `before` does not have.
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
