//! What tells whether a file, directory or link is the one that was seen.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use rustix::fs::{Stat, lstat};

/// Device, inode, size and times of one: whoever changes or replaces it changes one of these.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
    size_bytes: i64,
    /// Seconds, nanoseconds.
    modified: (i64, i64),
    /// The same of the metadata.
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

    /// Of something whose metadata changed last at this second.
    #[cfg(test)]
    pub(crate) fn changed_at(seconds: i64) -> Self {
        Self { device: 0, inode: 0, size_bytes: 0, modified: (0, 0), changed: (seconds, 999_999_999) }
    }

    /// Of what is at this path, not of what a symlink there names; `None` when nothing is.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        lstat(path).ok().map(|stat| Self::of(&stat))
    }

    /// A hash of it, for where many are kept. Who could look for another with the same hash can write to the store anyway.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// When its metadata changed last: seconds, nanoseconds.
    pub(crate) fn changed(&self) -> (i64, i64) {
        self.changed
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        u64::try_from(self.size_bytes).unwrap_or(0)
    }
}
