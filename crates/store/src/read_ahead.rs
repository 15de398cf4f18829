//! Tells the kernel of files that are read in order.

use rustix::fs::{Advice, fadvise};
use std::os::fd::AsFd;

/// Files at least this long are announced to the kernel as read in order.
const READ_AHEAD_BYTES_MIN: u64 = 1 << 20;

/// Has the kernel read ahead in a file of this size, if that is worth a call.
pub(crate) fn read_ahead(file: impl AsFd, size_bytes: u64) {
    if size_bytes >= READ_AHEAD_BYTES_MIN && fadvise(file, 0, None, Advice::Sequential).is_err() {
        tracing::trace!("no read-ahead for this file system");
    }
}
