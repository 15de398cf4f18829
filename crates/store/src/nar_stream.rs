//! A NAR straight from the file system, in bounded memory, hashed on the way.
//!
//! The last chunk leaves only after size and hash of all were right, and no byte beyond NarSize leaves ever; so a
//! receiver that counts to NarSize never completes a wrong body.
//!
//! Nix's collector takes open files that it finds in `/proc` for roots, so a path whose NAR is being read outlives a
//! collection that starts meanwhile; one that is collected all the same gives an error.

use crate::failed_copies::{FailedCopies, Registration, RootIdentity};
use crate::listing::{Listing, ListingError, NodeKind};
use crate::{PathInfo, StoreError, StoreLocation};
use narmesh_protocol::nar::{DEPTH_MAX, NAME_BYTES_MAX, NarWriter, TARGET_BYTES_MAX};
use narmesh_protocol::{HashPart, NarHash};
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, FileType, Mode, OFlags, fadvise, fstat, open, openat, readlinkat};
use rustix::io::{Errno, read};
use sha2::{Digest, Sha256};
use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// Files at least this long are announced to the kernel as read in order.
const READ_AHEAD_BYTES_MIN: u64 = 1 << 20;

/// Whether more is to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NarProgress {
    /// The NAR goes on: call [`NarStream::fill`] again.
    More,
    /// All bytes were given out, and their hash was right.
    Complete,
}

/// Why a NAR ended early. What was given out so far is useless.
#[derive(Debug, thiserror::Error)]
pub enum NarStreamError {
    /// The file system refused, perhaps because the path is being collected.
    #[error("reading {part}: {source}")]
    Io {
        /// Whose NAR.
        part: HashPart,
        /// What the system said.
        source: io::Error,
    },
    /// The files do not give the registered hash or size.
    #[error("the files of {part} do not give the NarHash and NarSize registered for it")]
    HashMismatch {
        /// Whose NAR.
        part: HashPart,
    },
    /// The tree holds what a NAR cannot: a special file, a directory too deep or too large, a name or target too long.
    #[error("{part} holds what a NAR cannot hold")]
    NotArchivable {
        /// Whose NAR.
        part: HashPart,
    },
    /// The stream was asked again after an error.
    #[error("the stream of {part} has failed before")]
    Spent {
        /// Whose NAR.
        part: HashPart,
    },
}

/// One NAR being read. Holds at most 64 directories and one file open, and the names of those directories in memory.
pub struct NarStream {
    part: HashPart,
    nar_hash: NarHash,
    nar_size: u64,
    root: PathBuf,
    root_name: CString,
    store: OwnedFd,
    identity: Option<RootIdentity>,
    registration: Registration,
    failed: Arc<FailedCopies>,
    writer: NarWriter,
    hasher: Sha256,
    given_bytes: u64,
    stage: Stage,
    directories: Vec<Listing>,
}

enum Stage {
    Start,
    /// Between two entries of the innermost directory.
    Walk,
    File {
        file: OwnedFd,
        size_bytes: u64,
        left: NonZeroU64,
    },
    End,
    Spent,
}

/// What stopped the walk, before it is told to the caller.
enum Stop {
    System(Errno),
    /// A file shrank or grew while it was read.
    Changed,
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
            ListingError::TooManyEntries => Self::NotArchivable,
        }
    }
}

impl fmt::Debug for NarStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NarStream({}, {} of {} bytes)", self.part, self.given_bytes, self.nar_size)
    }
}

impl NarStream {
    pub(crate) fn open(
        location: &StoreLocation,
        info: &PathInfo,
        row: i64,
        failed: Arc<FailedCopies>,
    ) -> Result<Self, StoreError> {
        let root = location.real_path(&info.path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let store = open(&location.real_dir, flags, Mode::empty())
            .map_err(|errno| StoreError::Io { path: location.real_dir.clone(), source: errno.into() })?;
        Ok(Self {
            part: info.path.hash_part(),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            identity: RootIdentity::of(&root),
            root,
            // A store path's characters hold no NUL.
            root_name: CString::new(info.path.to_string()).unwrap_or_default(),
            store,
            registration: Registration::of(row, info),
            failed,
            writer: NarWriter::default(),
            hasher: Sha256::new(),
            given_bytes: 0,
            stage: Stage::Start,
            directories: Vec::new(),
        })
    }

    /// Bytes of the whole NAR, as registered.
    pub fn nar_size(&self) -> u64 {
        self.nar_size
    }

    /// Bytes given out so far.
    pub fn given_bytes(&self) -> u64 {
        self.given_bytes
    }

    /// Appends the next bytes to `out`: at least one, and about `bytes_max` or the spare capacity of `out`, whichever
    /// is more (a name or target may exceed it by 8 KiB). Blocks on the file system. Reuse `out`: it is read into
    /// directly. After `Complete` nothing is appended; after an error nothing was.
    pub fn fill(&mut self, out: &mut Vec<u8>, bytes_max: usize) -> Result<NarProgress, NarStreamError> {
        let start = out.len();
        let outcome = self.walk(out, start.saturating_add(bytes_max.max(1)));
        let outcome = outcome.map_err(Error::from_stop).and_then(|()| self.account(out.get(start..).unwrap_or(&[])));
        outcome.map_err(|error| {
            out.truncate(start);
            self.stage = Stage::Spent;
            self.directories.clear();
            if error.is_our_copys_fault() {
                self.failed.remember(self.part, &self.root, self.registration, self.identity);
            }
            error.told(self.part)
        })
    }

    /// Hashes what was appended, and decides whether it may leave.
    fn account(&mut self, appended: &[u8]) -> Result<NarProgress, Error> {
        self.hasher.update(appended);
        let total = self.given_bytes + u64::try_from(appended.len()).unwrap_or(u64::MAX);
        match self.stage {
            Stage::Spent => return Err(Error::Spent),
            Stage::End if total == self.nar_size => {
                if !appended.is_empty() && self.hasher.finalize_reset().as_slice() != self.nar_hash.0 {
                    return Err(Error::Mismatch);
                }
                self.given_bytes = total;
                return Ok(NarProgress::Complete);
            }
            // Whoever gets NarSize bytes takes them for the whole.
            Stage::Start | Stage::Walk | Stage::File { .. } if total < self.nar_size => {}
            Stage::Start | Stage::Walk | Stage::File { .. } | Stage::End => return Err(Error::Mismatch),
        }
        self.given_bytes = total;
        Ok(NarProgress::More)
    }

    fn walk(&mut self, out: &mut Vec<u8>, target: usize) -> Result<(), Stop> {
        while out.len() < target {
            match &self.stage {
                Stage::End | Stage::Spent => return Ok(()),
                Stage::Start => {
                    self.writer = NarWriter::start(out);
                    let kind = NodeKind::ask(&self.store, &self.root_name)?;
                    self.begin_node(out, kind)?;
                }
                Stage::Walk => self.next_entry(out)?,
                Stage::File { .. } => self.read_file(out, target)?,
            }
        }
        Ok(())
    }

    fn next_entry(&mut self, out: &mut Vec<u8>) -> Result<(), Stop> {
        let depth = self.directories.len();
        let Some(innermost) = self.directories.last_mut() else {
            self.stage = Stage::End;
            return Ok(());
        };
        let Some(kind) = innermost.advance() else {
            self.directories.pop();
            self.writer.end_directory(out);
            self.end_node(out);
            return Ok(());
        };
        let name = innermost.name().to_bytes();
        if depth >= DEPTH_MAX || name.len() > NAME_BYTES_MAX {
            return Err(Stop::NotArchivable);
        }
        self.writer.begin_entry(out, name);
        self.begin_node(out, kind)
    }

    /// Writes a symlink, or opens a directory or file; the node is the root or the innermost directory's current entry.
    fn begin_node(&mut self, out: &mut Vec<u8>, kind: NodeKind) -> Result<(), Stop> {
        let (parent, name): (_, &CStr) = match self.directories.last() {
            Some(listing) => (listing.directory(), listing.name()),
            None => (std::os::fd::AsFd::as_fd(&self.store), &self.root_name),
        };
        match kind {
            NodeKind::Special => Err(Stop::NotArchivable),
            NodeKind::Symlink => {
                let target = readlinkat(parent, name, Vec::new())?;
                if target.is_empty() || target.to_bytes().len() > TARGET_BYTES_MAX {
                    return Err(Stop::NotArchivable);
                }
                self.writer.symlink(out, target.to_bytes());
                self.end_node(out);
                Ok(())
            }
            NodeKind::Directory => {
                let listing = Listing::open(parent, name)?;
                self.writer.begin_directory(out);
                self.directories.push(listing);
                self.stage = Stage::Walk;
                Ok(())
            }
            NodeKind::Regular => {
                // NONBLOCK: were it swapped for a pipe, opening would wait for a writer.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(parent, name, flags, Mode::empty())?;
                let stat = fstat(&file)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(Stop::Changed);
                }
                let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
                let executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
                self.writer.begin_file(out, size_bytes, executable);
                match NonZeroU64::new(size_bytes) {
                    None => self.end_file(out, 0),
                    Some(left) => {
                        if size_bytes >= READ_AHEAD_BYTES_MIN && fadvise(&file, 0, None, Advice::Sequential).is_err() {
                            tracing::trace!(store_path = %self.part, "no read-ahead for this file system");
                        }
                        self.stage = Stage::File { file, size_bytes, left };
                    }
                }
                Ok(())
            }
        }
    }

    fn read_file(&mut self, out: &mut Vec<u8>, target: usize) -> Result<(), Stop> {
        let Stage::File { file, size_bytes, left } = &mut self.stage else { return Ok(()) };
        let wanted = usize::try_from(left.get()).unwrap_or(usize::MAX).min(target - out.len());
        out.reserve_exact(wanted);
        let got = match read(&*file, spare_capacity(out)) {
            Ok(got) => u64::try_from(got).unwrap_or(u64::MAX),
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if got == 0 {
            return Err(Stop::Changed);
        }
        match left.get().checked_sub(got).map(NonZeroU64::new) {
            None => Err(Stop::Changed),
            Some(Some(rest)) => {
                *left = rest;
                Ok(())
            }
            Some(None) => {
                let size_bytes = *size_bytes;
                self.end_file(out, size_bytes);
                Ok(())
            }
        }
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

/// What [`NarStream::fill`] failed with, before it names the path.
enum Error {
    System(Errno),
    Mismatch,
    NotArchivable,
    Spent,
}

impl Error {
    fn from_stop(stop: Stop) -> Self {
        match stop {
            Stop::System(errno) => Self::System(errno),
            Stop::Changed => Self::Mismatch,
            Stop::NotArchivable => Self::NotArchivable,
        }
    }

    /// Whether reading the same files again would fail again; being short of descriptors or memory passes.
    fn is_our_copys_fault(&self) -> bool {
        match self {
            Self::Mismatch | Self::NotArchivable => true,
            Self::System(errno) => matches!(*errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::IO),
            Self::Spent => false,
        }
    }

    fn told(self, part: HashPart) -> NarStreamError {
        match self {
            Self::System(errno) => NarStreamError::Io { part, source: errno.into() },
            Self::Mismatch => NarStreamError::HashMismatch { part },
            Self::NotArchivable => NarStreamError::NotArchivable { part },
            Self::Spent => NarStreamError::Spent { part },
        }
    }
}
