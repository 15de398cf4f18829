//! Reads a small NAR by its layout without waiting for a disk, so that no thread has to be woken for it: waking one and
//! being woken by it takes longer than reading some kilobytes that are in memory.
//!
//! Names are resolved with `RESOLVE_CACHED` (Linux 5.12) and contents are read with `RWF_NOWAIT` (Linux 4.14). Where the
//! kernel or the file system has neither, or something is not in memory, nothing is returned.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::path::Path;

use narmesh_protocol::StorePath;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat2};
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};

use crate::file_identity::FileIdentity;
use crate::layout::{Layout, Stretch};

/// The most files, directories and links: each takes some microseconds, which other tasks of the thread wait for.
const STRETCHES_MAX: usize = 64;
/// The type of tmpfs, which is memory and does not know `RWF_NOWAIT`: `TMPFS_MAGIC` in `linux/magic.h`.
const TMPFS_MAGIC: u32 = 0x0102_1994;

/// The NAR of `size` bytes, if its files are as `layout` recorded them and all of it is in memory.
pub(crate) fn read_at_once(layout: &Layout, store_dir: &Path, path: &StorePath, size: usize) -> Option<Vec<u8>> {
    if layout.stretches() > STRETCHES_MAX {
        return None;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let store = openat2(CWD, store_dir, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let store = Files { store };
    // Kept open while it is read: Nix's garbage collector treats it as a root.
    let _root = store.open(path.to_string().as_str(), OFlags::PATH).ok()?;
    let mut nar = Vec::with_capacity(size);
    for at in 0..layout.stretches() {
        let (begin, end, stretch) = layout.stretch(at)?;
        let bytes = usize::try_from(end - begin).ok()?;
        match stretch {
            Stretch::Text(from) => nar.extend_from_slice(layout.text(from, 0, bytes)),
            Stretch::Seen { name, fingerprint } => {
                let node = store.open(layout.name(name), OFlags::PATH).ok()?;
                if FileIdentity::of(&fstat(&node).ok()?).fingerprint() != fingerprint {
                    return None;
                }
            }
            Stretch::File { name, fingerprint } => {
                let file = store.open(layout.name(name), OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
                let begins = nar.len();
                nar.resize(begins + bytes, 0);
                read_contents(&file, nar.get_mut(begins..)?)?;
                // After the contents, so that a change while they were read shows.
                let identity = FileIdentity::of(&fstat(&file).ok()?);
                if identity.fingerprint() != fingerprint || identity.size_bytes() != end - begin {
                    return None;
                }
            }
        }
    }
    (nar.len() == size).then_some(nar)
}

/// The files below the store directory.
struct Files {
    store: OwnedFd,
}

impl Files {
    fn open(&self, name: impl rustix::path::Arg, how: OFlags) -> Result<OwnedFd, Errno> {
        let flags = how | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::CACHED;
        openat2(&self.store, name, flags, Mode::empty(), resolve)
    }
}

/// Reads as many bytes as `contents` has.
fn read_contents(file: &OwnedFd, contents: &mut [u8]) -> Option<()> {
    let wanted = contents.len();
    let read = match preadv2(file, &mut [IoSliceMut::new(contents)], 0, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP) if is_in_memory(file) => pread(file, contents, 0),
        read => read,
    };
    (read.ok()? == wanted).then_some(())
}

/// Whether the file is on a file system that keeps everything in memory.
fn is_in_memory(file: &OwnedFd) -> bool {
    fstatfs(file).is_ok_and(|of| u32::try_from(of.f_type) == Ok(TMPFS_MAGIC))
}
