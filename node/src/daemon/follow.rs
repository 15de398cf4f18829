//! What shows that a file was changed or replaced.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Device, inode, size and time of change of what a path leads to, links followed; `None` if there is nothing.
pub(super) type Stamp = Option<(u64, u64, u64, i64, i64)>;

pub(super) fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}
