//! Opens and reads the files below a store directory that a layout names, by all the rules that hold for them.

use std::ffi::CStr;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat, openat2, statat};
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};

use crate::file_identity::FileIdentity;
use crate::read_ahead::read_ahead;

/// The type of tmpfs, which is memory and does not know `RWF_NOWAIT`: `TMPFS_MAGIC` in `linux/magic.h`.
const TMPFS_MAGIC: u32 = 0x0102_1994;

/// Whether a read may wait for a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiting {
    /// A read may wait for the disk.
    Allowed,
    /// What is not in memory is refused with `EAGAIN`. Names are resolved with `RESOLVE_CACHED` (Linux 5.12), and contents
    /// are read with `RWF_NOWAIT` (Linux 4.14); where the kernel or the file system has neither, everything is refused.
    Refused,
}

/// The files below a store directory.
#[derive(Clone, Debug)]
pub(crate) struct LayoutFiles {
    store: Arc<OwnedFd>,
    waiting: Waiting,
}

impl LayoutFiles {
    pub(crate) fn new(store: Arc<OwnedFd>, waiting: Waiting) -> Self {
        Self { store, waiting }
    }

    /// Opens a name only to keep it: Nix's garbage collector treats it as a root.
    pub(crate) fn hold(&self, name: &CStr) -> Result<OwnedFd, Errno> {
        match self.waiting {
            Waiting::Allowed => {
                openat(&self.store, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            }
            Waiting::Refused => self.resolve(name, OFlags::PATH),
        }
    }

    /// The identity of a file, directory or link.
    pub(crate) fn identity(&self, name: &CStr) -> Result<FileIdentity, Errno> {
        let stat = match self.waiting {
            Waiting::Allowed => statat(&self.store, name, AtFlags::SYMLINK_NOFOLLOW)?,
            Waiting::Refused => fstat(self.resolve(name, OFlags::PATH)?)?,
        };
        Ok(FileIdentity::of(&stat))
    }

    /// Opens a regular file of `size_bytes`.
    pub(crate) fn open(&self, name: &CStr, size_bytes: u64) -> Result<OwnedFd, Errno> {
        // Kernels before 5.6 do not have `openat2` and refuse: there each tree is walked, and each
        // whole NAR hashed, every time.
        let file = self.resolve(name, OFlags::RDONLY | OFlags::NONBLOCK)?;
        if self.waiting == Waiting::Allowed {
            read_ahead(&file, size_bytes);
        }
        Ok(file)
    }

    fn resolve(&self, name: &CStr, how: OFlags) -> Result<OwnedFd, Errno> {
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        resolve.set(ResolveFlags::CACHED, self.waiting == Waiting::Refused);
        openat2(self.store.as_fd(), name, how | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Appends at most `wanted` bytes of the file from byte `offset` on; returns how many.
    pub(crate) fn read(&self, file: &OwnedFd, offset: u64, wanted: usize, out: &mut Vec<u8>) -> Result<usize, Errno> {
        let before = out.len();
        out.reserve_exact(wanted);
        let got = loop {
            let got = match self.waiting {
                Waiting::Allowed => pread(file, spare_capacity(out), offset),
                Waiting::Refused => {
                    out.resize(before + wanted, 0);
                    read_without_waiting(file, out.get_mut(before..).unwrap_or_default(), offset)
                }
            };
            match got {
                Err(Errno::INTR) => {}
                got => break got,
            }
        };
        // The buffer may have more room than is wanted.
        let got = got.map(|got| got.min(wanted));
        out.truncate(before + got.unwrap_or(0));
        got
    }
}

fn read_without_waiting(file: &OwnedFd, out: &mut [u8], offset: u64) -> Result<usize, Errno> {
    match preadv2(file, &mut [IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP) if is_in_memory(file) => pread(file, out, offset),
        got => got,
    }
}

/// Whether the file is on a file system that keeps everything in memory.
fn is_in_memory(file: &OwnedFd) -> bool {
    fstatfs(file).is_ok_and(|of| u32::try_from(of.f_type) == Ok(TMPFS_MAGIC))
}
