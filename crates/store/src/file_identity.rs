//! Metadata that shows whether a file, directory or link is still the one that was seen.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use rustix::fs::{Stat, lstat};

/// Device, inode, size and times of a file, directory or link. Changing or replacing it changes one of these.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
    size_bytes: i64,
    /// Modification time of the contents: seconds since 1970, nanoseconds.
    modified: (i64, i64),
    /// Change time of the metadata: seconds since 1970, nanoseconds.
    changed: (i64, i64),
}

impl FileIdentity {
    pub(crate) fn of(stat: &Stat) -> Self {
        let nanos = |nanos| i64::try_from(nanos).unwrap_or(i64::MAX);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size_bytes: stat.st_size,
            modified: (stat.st_mtime, nanos(stat.st_mtime_nsec)),
            changed: (stat.st_ctime, nanos(stat.st_ctime_nsec)),
        }
    }

    /// An identity whose metadata last changed in this second, for tests.
    #[cfg(test)]
    pub(crate) fn changed_at(seconds: i64) -> Self {
        Self { device: 0, inode: 0, size_bytes: 0, modified: (0, 0), changed: (seconds, 999_999_999) }
    }

    /// The identity of the file at this path, without following a symlink; `None` when nothing is there.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        lstat(path).ok().map(|stat| Self::of(&stat))
    }

    /// A 64-bit hash of the identity, used where many are kept. Whoever could search for a collision
    /// can write to the store anyway.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// What stays the same over a restart of the machine. The number of the device may not.
    pub(crate) fn lasting_fields(&self) -> [i64; 6] {
        let (modified, changed) = (self.modified, self.changed);
        [self.inode.cast_signed(), self.size_bytes, modified.0, modified.1, changed.0, changed.1]
    }

    /// Time of the last metadata change: seconds since 1970, nanoseconds.
    pub(crate) fn changed(&self) -> (i64, i64) {
        self.changed
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        u64::try_from(self.size_bytes).unwrap_or(0)
    }
}
