//! Reads a NAR by its layout from any byte on, as long as all its files are those that the layout recorded.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, fstat, openat, openat2, statat};
use rustix::io::{Errno, pread};

use crate::file_identity::FileIdentity;
use crate::layout::{Layout, Stretch};
use crate::read_ahead::read_ahead;

/// Why reading by a layout stopped. Bytes already appended may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// A file, directory or link is not as it was recorded.
    NotAsSeen,
    /// A system call failed, so something cannot be read this way or not now. It may be unchanged.
    Refused(Errno),
}

impl From<Errno> for Unread {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Self::NotAsSeen,
            other => Self::Refused(other),
        }
    }
}

/// Reads the bytes of a NAR by its layout.
#[derive(Debug)]
pub(crate) struct LayoutReader {
    layout: Arc<Layout>,
    store: Arc<OwnedFd>,
    /// Kept open as long as the reader lives: Nix's garbage collector treats it as a root.
    _root: OwnedFd,
    at: usize,
    offset: u64,
    file: Option<(OwnedFd, FileIdentity)>,
}

impl LayoutReader {
    /// Starts reading at byte `offset` of the NAR.
    pub(crate) fn open(
        layout: Arc<Layout>,
        store: Arc<OwnedFd>,
        root: &std::ffi::CStr,
        offset: u64,
    ) -> Result<Self, Unread> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(&store, root, flags, Mode::empty())?;
        let at = layout.find(offset);
        Ok(Self { layout, store, _root: root, at, offset, file: None })
    }

    /// Appends the next bytes until `out` has `target` bytes or the NAR ends.
    pub(crate) fn read(&mut self, out: &mut Vec<u8>, target: usize) -> Result<(), Unread> {
        while out.len() < target {
            let Some((begin, end, stretch)) = self.layout.stretch(self.at) else { return Ok(()) };
            match stretch {
                Stretch::Seen { name, fingerprint } => {
                    let stat = statat(&self.store, self.layout.name(name), AtFlags::SYMLINK_NOFOLLOW)?;
                    if FileIdentity::of(&stat).fingerprint() != fingerprint {
                        return Err(Unread::NotAsSeen);
                    }
                }
                Stretch::Text(from) => {
                    let skipped = usize::try_from(self.offset - begin).map_err(|_| Unread::NotAsSeen)?;
                    let bytes = usize::try_from(end - self.offset).map_err(|_| Unread::NotAsSeen)?;
                    out.extend_from_slice(self.layout.text(from, skipped, bytes));
                    self.offset = end;
                }
                Stretch::File { name, fingerprint } => {
                    self.read_file(out, target, (name, fingerprint), (begin, end))?;
                }
            }
            if self.offset == end {
                self.at += 1;
                self.file = None;
            }
        }
        Ok(())
    }

    fn read_file(
        &mut self,
        out: &mut Vec<u8>,
        target: usize,
        (name, fingerprint): (u32, u64),
        (begin, end): (u64, u64),
    ) -> Result<(), Unread> {
        let (file, identity) = match self.file.take() {
            Some(file) => file,
            None => self.open_file(name, fingerprint, end - begin)?,
        };
        let wanted = usize::try_from(end - self.offset).unwrap_or(usize::MAX).min(target - out.len());
        out.reserve_exact(wanted);
        let before = out.len();
        let got = loop {
            match pread(&file, spare_capacity(out), self.offset - begin) {
                Err(Errno::INTR) => {}
                got => break got?,
            }
        };
        // The buffer may have more room than the file has bytes left.
        let got = got.min(usize::try_from(end - self.offset).unwrap_or(usize::MAX));
        out.truncate(before + got);
        // If the file was written to since it was opened, the bytes just read may be wrong. Checked after each read, not
        // only at the end of the file: its metadata could have been restored by then.
        if got == 0 || FileIdentity::of(&fstat(&file)?) != identity {
            return Err(Unread::NotAsSeen);
        }
        self.offset += u64::try_from(got).unwrap_or(0);
        self.file = Some((file, identity));
        Ok(())
    }

    fn open_file(&self, name: u32, fingerprint: u64, size_bytes: u64) -> Result<(OwnedFd, FileIdentity), Unread> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // Kernels before 5.6 do not have `openat2` and refuse: there each tree is walked, and each
        // whole NAR hashed, every time.
        let file = openat2(self.store.as_fd(), self.layout.name(name), flags, Mode::empty(), resolve)?;
        let identity = FileIdentity::of(&fstat(&file)?);
        if identity.fingerprint() != fingerprint || identity.size_bytes() != size_bytes {
            return Err(Unread::NotAsSeen);
        }
        read_ahead(&file, size_bytes);
        Ok((file, identity))
    }
}
