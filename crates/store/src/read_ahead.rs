//! Tells the kernel that a file is read in order.

use rustix::fs::{Advice, fadvise};
use std::os::fd::AsFd;

/// Smallest file, bytes, for which telling the kernel is worth a system call.
const READ_AHEAD_BYTES_MIN: u64 = 1 << 20;

/// Lets the kernel read ahead in a file of this size, if it is large enough.
pub(crate) fn read_ahead(file: impl AsFd, size_bytes: u64) {
    if size_bytes >= READ_AHEAD_BYTES_MIN && fadvise(file, 0, None, Advice::Sequential).is_err() {
        tracing::trace!("no read-ahead for this file system");
    }
}
