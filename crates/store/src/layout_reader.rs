//! Reads a NAR by its layout from any byte on, as long as all its files are those that the layout recorded.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::fstat;
use rustix::io::Errno;

use crate::file_identity::FileIdentity;
use crate::layout::{Layout, Stretch};
use crate::layout_files::LayoutFiles;

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
    files: LayoutFiles,
    /// Kept open as long as the reader lives: Nix's garbage collector treats it as a root.
    _root: OwnedFd,
    at: usize,
    offset: u64,
    file: Option<(OwnedFd, FileIdentity)>,
}

impl LayoutReader {
    /// Starts reading at byte `offset` of the NAR.
    pub(crate) fn open(layout: Arc<Layout>, files: LayoutFiles, root: &CStr, offset: u64) -> Result<Self, Unread> {
        let root = files.hold(root)?;
        let at = layout.find(offset);
        Ok(Self { layout, files, _root: root, at, offset, file: None })
    }

    /// Appends the next bytes until `out` has `target` bytes or the NAR ends.
    pub(crate) fn read(&mut self, out: &mut Vec<u8>, target: usize) -> Result<(), Unread> {
        while out.len() < target {
            let Some((begin, end, stretch)) = self.layout.stretch(self.at) else { return Ok(()) };
            match stretch {
                // Nothing is read of it, but another file or link here would make another NAR.
                Stretch::Seen { name, fingerprint } => {
                    if self.files.identity(self.layout.name(name))?.fingerprint() != fingerprint {
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
        let got = self.files.read(&file, self.offset - begin, wanted, out)?;
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
        let file = self.files.open(self.layout.name(name), size_bytes)?;
        let identity = FileIdentity::of(&fstat(&file)?);
        if identity.fingerprint() != fingerprint || identity.size_bytes() != size_bytes {
            return Err(Unread::NotAsSeen);
        }
        Ok((file, identity))
    }
}
