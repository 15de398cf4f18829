//! Reads a small NAR by its layout without waiting for a disk, so that no thread has to be woken for it: waking one and
//! being woken by it takes longer than reading some kilobytes that are in memory.

use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;

use narmesh_protocol::StorePath;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::layout::Layout;
use crate::layout_files::{LayoutFiles, Waiting};
use crate::layout_reader::LayoutReader;

/// The largest NAR. Copying it takes some microseconds, which other tasks of the thread wait for.
const NAR_BYTES_MAX: u64 = 64 << 10;
/// The most files, directories and links: each takes some microseconds, too.
const STRETCHES_MAX: usize = 64;

/// The NAR of `nar_size` bytes, if it is small, its files are as `layout` recorded them, and all of it is in memory.
pub(crate) fn read_at_once(layout: Arc<Layout>, store_dir: &Path, path: &StorePath, nar_size: u64) -> Option<Vec<u8>> {
    if nar_size > NAR_BYTES_MAX || layout.stretches() > STRETCHES_MAX {
        return None;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Fails instead of waiting for the disk: this runs where nothing may block.
    let store = openat2(CWD, store_dir, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let files = LayoutFiles::new(Arc::new(store), Waiting::Refused);
    let root = CString::new(path.to_string()).ok()?;
    let size = usize::try_from(nar_size).ok()?;
    let mut nar = Vec::with_capacity(size);
    LayoutReader::open(layout, files, &root, 0).ok()?.read(&mut nar, size).ok()?;
    (nar.len() == size).then_some(nar)
}
