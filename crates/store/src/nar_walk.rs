//! Walks a tree in the order of a NAR and writes the NAR meanwhile.

use std::ffi::{CStr, CString};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

use narmesh_protocol::nar::{DEPTH_MAX, NAME_BYTES_MAX, NarWriter, TARGET_BYTES_MAX};
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, fstat, openat, readlinkat, seek, statat};
use rustix::io::{Errno, read};

use crate::file_identity::FileIdentity;
use crate::layout::LayoutBuilder;
use crate::listing::{Listing, ListingError, NodeKind};
use crate::read_ahead::read_ahead;

/// A tree being walked. It holds at most 64 directories and one file open, and the entry names of
/// those directories in memory.
pub(crate) struct Walk {
    root_name: CString,
    store: Arc<OwnedFd>,
    writer: NarWriter,
    stage: Stage,
    directories: Vec<Listing>,
    /// Bytes of the NAR so far, including those that were skipped.
    offset: u64,
    /// File contents before this byte of the NAR need not be read.
    unread_until: u64,
    layout: Option<LayoutBuilder>,
}

enum Stage {
    Start,
    /// Between two entries of the innermost directory.
    Walk,
    File {
        file: OwnedFd,
        size_bytes: u64,
        left: NonZeroU64,
        identity: FileIdentity,
    },
    End,
}

/// Why the walk stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    System(Errno),
    /// A file shrank or grew while it was read.
    Changed,
    /// A file was written to, or its metadata changed, while it was read.
    Moved,
    NotArchivable,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

impl From<ListingError> for Stop {
    fn from(error: ListingError) -> Self {
        match error {
            ListingError::System(errno) => Self::System(errno),
            ListingError::TooManyEntries | ListingError::NoMemory => Self::NotArchivable,
        }
    }
}

impl Walk {
    /// Starts a walk over the tree with this name. File contents before byte `unread_until` of the NAR are skipped and do
    /// not appear in the output.
    pub(crate) fn new(store: Arc<OwnedFd>, root_name: CString, unread_until: u64) -> Self {
        Self {
            root_name,
            store,
            writer: NarWriter::default(),
            stage: Stage::Start,
            directories: Vec::new(),
            offset: 0,
            unread_until,
            layout: Some(LayoutBuilder::new(SystemTime::now())),
        }
    }

    /// Bytes of the NAR so far, including those that were skipped.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the tree was walked to its end.
    pub(crate) fn is_at_end(&self) -> bool {
        matches!(self.stage, Stage::End)
    }

    /// Takes the layout builder. Its layout is complete once the tree was walked to its end.
    pub(crate) fn take_layout(&mut self) -> Option<LayoutBuilder> {
        self.layout.take()
    }

    /// Appends the next bytes until `out` has `target` bytes or the NAR ends.
    pub(crate) fn read(&mut self, out: &mut Vec<u8>, target: usize) -> Result<(), Stop> {
        while out.len() < target {
            let before = out.len();
            match &self.stage {
                Stage::End => return Ok(()),
                Stage::Start => {
                    self.writer = NarWriter::start(out);
                    let kind = NodeKind::ask(&self.store, &self.root_name)?;
                    self.begin_node(out, before, kind)?;
                }
                Stage::Walk => self.next_entry(out, before)?,
                Stage::File { .. } => self.read_file(out, target)?,
            }
        }
        Ok(())
    }

    /// Notes that the bytes in `out` from `from` on are NAR structure.
    fn pass_text(&mut self, out: &[u8], from: usize) {
        let text = out.get(from..).unwrap_or_default();
        if let Some(layout) = &mut self.layout {
            layout.add_text(self.offset, text);
        }
        self.offset += u64::try_from(text.len()).unwrap_or(u64::MAX);
    }

    /// Notes a node in the layout: the root, or the innermost directory's current entry.
    fn note(&mut self, identity: FileIdentity, is_file: bool) {
        let Some(layout) = &mut self.layout else { return };
        let path = std::iter::once(self.root_name.as_c_str()).chain(self.directories.iter().map(Listing::name));
        if is_file {
            layout.add_file(self.offset, path, identity);
        } else {
            layout.add_seen(self.offset, path, identity);
        }
    }

    fn next_entry(&mut self, out: &mut Vec<u8>, before: usize) -> Result<(), Stop> {
        let depth = self.directories.len();
        let Some(innermost) = self.directories.last_mut() else {
            self.stage = Stage::End;
            return Ok(());
        };
        let Some(kind) = innermost.advance() else {
            self.directories.pop();
            self.writer.end_directory(out);
            self.end_node(out);
            self.pass_text(out, before);
            return Ok(());
        };
        let name = innermost.name().to_bytes();
        // A NAR of more would be refused by whoever gets it.
        if depth >= DEPTH_MAX || name.len() > NAME_BYTES_MAX {
            return Err(Stop::NotArchivable);
        }
        self.writer.begin_entry(out, name);
        self.begin_node(out, before, kind)
    }

    /// Writes a symlink, or opens a directory or file; the node is the root or the innermost directory's current entry.
    fn begin_node(&mut self, out: &mut Vec<u8>, before: usize, kind: NodeKind) -> Result<(), Stop> {
        let (parent, name): (_, &CStr) = match self.directories.last() {
            Some(listing) => (listing.directory(), listing.name()),
            None => (self.store.as_fd(), &self.root_name),
        };
        match kind {
            NodeKind::Special => Err(Stop::NotArchivable),
            NodeKind::Symlink => {
                let identity = FileIdentity::of(&statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?);
                let target = readlinkat(parent, name, Vec::new())?;
                if target.is_empty() || target.to_bytes().len() > TARGET_BYTES_MAX {
                    return Err(Stop::NotArchivable);
                }
                self.writer.write_symlink(out, target.to_bytes());
                self.end_node(out);
                self.note(identity, false);
                self.pass_text(out, before);
                Ok(())
            }
            NodeKind::Directory => {
                let listing = Listing::open(parent, name)?;
                let identity = listing.identity();
                self.writer.begin_directory(out);
                self.note(identity, false);
                // Pushed after the note, which needs the directory as its parent's current entry.
                self.directories.push(listing);
                self.stage = Stage::Walk;
                self.pass_text(out, before);
                Ok(())
            }
            NodeKind::Regular => {
                // NONBLOCK: if the file was swapped for a pipe, opening it would otherwise wait for a writer.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(parent, name, flags, Mode::empty())?;
                let stat = fstat(&file)?;
                // The entry can have been replaced since its directory was listed.
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(Stop::Changed);
                }
                let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
                let executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
                let identity = FileIdentity::of(&stat);
                self.writer.begin_file(out, size_bytes, executable);
                match NonZeroU64::new(size_bytes) {
                    None => {
                        self.note(identity, false);
                        self.end_file(out, 0);
                        self.pass_text(out, before);
                    }
                    Some(left) => {
                        self.pass_text(out, before);
                        self.note(identity, true);
                        read_ahead(&file, size_bytes);
                        self.stage = Stage::File { file, size_bytes, left, identity };
                        return self.pass_over(out);
                    }
                }
                Ok(())
            }
        }
    }

    /// Skips file contents before `unread_until`.
    fn pass_over(&mut self, out: &mut Vec<u8>) -> Result<(), Stop> {
        let Stage::File { file, left, size_bytes, .. } = &mut self.stage else { return Ok(()) };
        let passed = self.unread_until.saturating_sub(self.offset).min(left.get());
        if passed == 0 {
            return Ok(());
        }
        self.offset += passed;
        match NonZeroU64::new(left.get() - passed) {
            Some(rest) => {
                *left = rest;
                seek(&*file, SeekFrom::Start(passed))?;
            }
            None => {
                let (size_bytes, before) = (*size_bytes, out.len());
                self.end_file(out, size_bytes);
                self.pass_text(out, before);
            }
        }
        Ok(())
    }

    fn read_file(&mut self, out: &mut Vec<u8>, target: usize) -> Result<(), Stop> {
        let Stage::File { file, size_bytes, left, identity } = &mut self.stage else { return Ok(()) };
        let wanted = usize::try_from(left.get()).unwrap_or(usize::MAX).min(target - out.len());
        out.reserve_exact(wanted);
        let got = match read(&*file, spare_capacity(out)) {
            Ok(got) => u64::try_from(got).unwrap_or(u64::MAX),
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        // The file is shorter than its head in the NAR has already said.
        if got == 0 {
            return Err(Stop::Changed);
        }
        match left.get().checked_sub(got).map(NonZeroU64::new) {
            None => return Err(Stop::Changed),
            Some(Some(rest)) => *left = rest,
            Some(None) => {
                // A write during the read can have mixed old and new contents.
                if FileIdentity::of(&fstat(&*file)?) != *identity {
                    return Err(Stop::Moved);
                }
                self.offset += got;
                let (size_bytes, before) = (*size_bytes, out.len());
                self.end_file(out, size_bytes);
                self.pass_text(out, before);
                return Ok(());
            }
        }
        self.offset += got;
        Ok(())
    }

    fn end_file(&mut self, out: &mut Vec<u8>, size_bytes: u64) {
        self.writer.end_file(out, size_bytes);
        self.end_node(out);
    }

    fn end_node(&mut self, out: &mut Vec<u8>) {
        if self.directories.is_empty() {
            self.stage = Stage::End;
        } else {
            self.writer.end_entry(out);
            self.stage = Stage::Walk;
        }
    }
}
