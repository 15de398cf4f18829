//! Streams a NAR straight from the file system, in bounded memory, and hashes it meanwhile.
//!
//! The last chunk is given out only if NarSize and NarHash are right, and no byte beyond NarSize is ever given out. So
//! a receiver that counts up to NarSize never completes a wrong body. A copy whose NarHash was right once and that has
//! not changed since is not hashed again, and a range is read from its first byte on: see `layout`. If a tree changes
//! during the read, it is walked once more: the bytes already given out are compared with the new ones or known to be
//! right, or else the body ends. The tree of a large NAR is computed when the NAR is hashed, from the same bytes.
//!
//! Nix's garbage collector treats open files that it finds in `/proc` as roots, so a path whose NAR is being read survives a
//! collection that starts meanwhile. A path that is collected nevertheless gives an error.

use crate::failed_copies::{FailedCopies, Registration};
use crate::file_identity::FileIdentity;
use crate::known_copies::{KnownCopies, KnownCopy};
use crate::layout_files::{LayoutFiles, Waiting};
use crate::layout_reader::{LayoutReader, Unread};
use crate::nar_walk::{Stop, Walk};
use crate::{CopyFault, PathInfo, StoreError, StoreLocation};
use narmesh_protocol::nar_tree::LeafHasher;
use narmesh_protocol::{HashPart, NarHash};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// Whether a NAR has more bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NarProgress {
    /// More bytes follow: call [`NarStream::fill`] again.
    More,
    /// All bytes were given out. The NarHash of a whole NAR was right; a range is not hashed.
    Complete,
}

/// Why a NAR ended early. The bytes given out so far are useless.
#[derive(Debug, thiserror::Error)]
pub enum NarStreamError {
    /// The file system returned an error, perhaps because the path is being garbage-collected.
    #[error("reading {part}: {source}")]
    Io {
        /// Hash part of the path whose NAR was read.
        part: HashPart,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The files do not give the registered NarHash or NarSize.
    #[error("the files of {part} do not match the NarHash and NarSize registered for it")]
    HashMismatch {
        /// Hash part of the path whose NAR was read.
        part: HashPart,
    },
    /// The files changed while they were read, and the NAR begun cannot be completed. Reading the path again may succeed.
    #[error("the files of {part} changed while they were read")]
    Changed {
        /// Hash part of the path whose NAR was read.
        part: HashPart,
    },
    /// The tree contains something that a NAR cannot hold: a special file, a directory too deep or too large, or a name or
    /// link target that is too long.
    #[error("{part} holds what a NAR cannot hold")]
    NotArchivable {
        /// Hash part of the path whose NAR was read.
        part: HashPart,
    },
    /// [`NarStream::fill`] was called again after an error.
    #[error("the stream of {part} has failed before")]
    Spent {
        /// Hash part of the path whose NAR was read.
        part: HashPart,
    },
}

/// A NAR being read.
pub struct NarStream {
    part: HashPart,
    nar_hash: NarHash,
    nar_size: u64,
    root: PathBuf,
    root_name: CString,
    store: Arc<OwnedFd>,
    identity: Option<FileIdentity>,
    registration: Registration,
    failed: Arc<FailedCopies>,
    known: Arc<KnownCopies>,
    /// `None` if the copy is known to be right, or if a range is read, which cannot be hashed.
    hasher: Option<Sha256>,
    /// Computes the tree of a whole NAR, if it is wanted.
    leaf_hasher: Option<LeafHasher>,
    /// Offset in the NAR of the first byte to give out.
    first_byte: u64,
    /// Bytes of the NAR that were read or skipped.
    offset: u64,
    given: u64,
    /// Whether reading was started again once, after the files changed or could not be read by the layout.
    has_begun_anew: bool,
    /// Length and digest of the first reading, if it was hashed. The second reading must begin with the same bytes.
    first_reading: Option<(u64, [u8; 32])>,
    reader: Reader,
}

enum Reader {
    /// Walks the tree.
    Walk(Box<Walk>),
    /// Reads by a known layout.
    Layout {
        reader: LayoutReader,
        /// Whether the NarHash of the copy with this layout was right.
        is_verified: bool,
    },
    /// The stream failed before.
    Spent,
}

impl fmt::Debug for NarStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NarStream({}, {} of {} bytes)", self.part, self.offset, self.nar_size)
    }
}

impl NarStream {
    pub(crate) fn open(
        location: &StoreLocation,
        info: &PathInfo,
        row: i64,
        copies: (Arc<FailedCopies>, Arc<KnownCopies>),
        first_byte: u64,
    ) -> Result<Self, StoreError> {
        // Opened once, so that all that follows is below one and the same store directory.
        let root = location.real_path(&info.path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let store = open(&location.real_dir, flags, Mode::empty())
            .map_err(|errno| StoreError::Io { path: location.real_dir.clone(), source: errno.into() })?;
        let store = Arc::new(store);
        // Never fails: a store path contains no NUL.
        let root_name = CString::new(info.path.to_string()).unwrap_or_default();
        let (failed, known) = copies;
        let registration = Registration::of(row, info);
        let layout = known.get(&info.path.hash_part(), &registration);
        // A layout that was not hashed is good enough for a range, which nobody hashes here anyway.
        let by_layout = match layout.filter(|copy| copy.is_verified || first_byte > 0) {
            Some(KnownCopy { layout, is_verified }) => {
                let files = LayoutFiles::new(Arc::clone(&store), Waiting::Allowed);
                match LayoutReader::open(layout, files, &root_name, first_byte) {
                    Ok(reader) => Some(Reader::Layout { reader, is_verified }),
                    // The walk will find out what is wrong.
                    Err(Unread::NotAsSeen | Unread::Refused(_)) => None,
                }
            }
            None => None,
        };
        let (reader, hasher) = match by_layout {
            Some(reader) => (reader, None),
            None => {
                // A range begins in the middle, so there is no whole to hash.
                let hasher = (first_byte == 0).then(Sha256::new);
                (Reader::Walk(Box::new(Walk::new(Arc::clone(&store), root_name.clone(), first_byte))), hasher)
            }
        };
        let offset = if matches!(reader, Reader::Layout { .. }) { first_byte } else { 0 };
        let is_tree_wanted = hasher.is_some() && known.trees.get(&info.path.hash_part(), &info.nar_hash).is_none();
        let leaf_hasher = if is_tree_wanted { LeafHasher::new(info.nar_size, 0) } else { None };
        Ok(Self {
            part: info.path.hash_part(),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            identity: FileIdentity::at(&root),
            root,
            root_name,
            store,
            registration,
            failed,
            known,
            hasher,
            leaf_hasher,
            first_byte,
            offset,
            given: 0,
            has_begun_anew: false,
            first_reading: None,
            reader,
        })
    }

    /// Has the tree computed and kept, although the copy is known to be right and would not be hashed.
    pub fn with_tree(mut self) -> Self {
        if self.first_byte == 0 && self.offset == 0 {
            self.leaf_hasher = LeafHasher::new(self.nar_size, 0);
        }
        self
    }

    /// Size of the whole NAR in bytes, as registered.
    pub fn nar_size(&self) -> u64 {
        self.nar_size
    }

    /// Bytes given out so far.
    pub fn given_bytes(&self) -> u64 {
        self.given
    }

    /// Appends the next bytes to `out`: at least one, and about `bytes_max` or the spare capacity of `out`, whichever is
    /// more (a name or link target can exceed it by 8 KiB). Blocks on the file system. Reuse `out`, because files are read
    /// into it directly. Nothing is appended after `Complete`, nor by a call that returns an error.
    pub fn fill(&mut self, out: &mut Vec<u8>, bytes_max: usize) -> Result<NarProgress, NarStreamError> {
        let start = out.len();
        let outcome = self.read(out, start, start.saturating_add(bytes_max.max(1)));
        outcome.map_err(|error| {
            // An error may come in the middle, and no byte after it may get out.
            out.truncate(start);
            self.reader = Reader::Spent;
            if let Some(fault) = error.our_copys_fault() {
                self.failed.remember(self.part, fault, &self.root, self.registration, self.identity);
            }
            error.into_stream_error(self.part)
        })
    }

    fn read(&mut self, out: &mut Vec<u8>, start: usize, target: usize) -> Result<NarProgress, Error> {
        loop {
            let (offset, is_at_end) = match &mut self.reader {
                Reader::Spent => return Err(Error::Spent),
                Reader::Walk(walk) => match walk.read(out, target) {
                    Ok(()) => (walk.offset(), walk.is_at_end()),
                    // Only once: a tree that keeps changing is refused.
                    Err(Stop::Moved) if !self.has_begun_anew => {
                        out.truncate(start);
                        self.begin_anew(true)?;
                        continue;
                    }
                    Err(stop) => return Err(Error::from_stop(stop)),
                },
                Reader::Layout { reader, .. } => match reader.read(out, target) {
                    Ok(()) => {
                        let offset = self.offset + bytes(out.len() - start);
                        (offset, offset == self.nar_size)
                    }
                    Err(unread) => {
                        out.truncate(start);
                        if let Unread::Refused(errno) = unread {
                            tracing::debug!(store_path = %self.part, %errno, "cannot be read by its layout; walking its files");
                        }
                        self.begin_anew(unread == Unread::NotAsSeen)?;
                        continue;
                    }
                },
            };
            let progress = self.account(out.get(start..).unwrap_or_default(), offset, is_at_end)?;
            // Drop the bytes before the next one wanted: NAR structure before a range, or bytes
            // that the first reading gave out.
            let next_byte = self.first_byte + self.given;
            let surplus = next_byte.saturating_sub(offset - bytes(out.len() - start));
            let surplus = usize::try_from(surplus).unwrap_or(usize::MAX).min(out.len() - start);
            out.drain(start..start + surplus);
            if out.len() > start || progress == NarProgress::Complete {
                self.given += bytes(out.len() - start);
                return Ok(progress);
            }
        }
    }

    /// Walks the tree again, because it `has_changed` since its layout was made or its walk began, or because
    /// it cannot be read by its layout. Output continues where it stopped. A whole NAR is hashed from its
    /// beginning; a range is never hashed.
    fn begin_anew(&mut self, has_changed: bool) -> Result<(), Error> {
        if has_changed {
            self.known.forget(&self.part);
        }
        self.has_begun_anew = true;
        // Bytes given out by a verified layout are right: their files were unchanged since they were hashed.
        let is_given_right = matches!(self.reader, Reader::Layout { is_verified: true, .. });
        let is_range = self.first_byte > 0;
        // What was given out may be of the old files, and nothing would show it: a range is not hashed.
        if has_changed && is_range && self.given > 0 && !is_given_right {
            return Err(Error::Changed);
        }
        // What was given out already must be what the second reading finds, or the two together are no NAR.
        if let Some(hasher) = self.hasher.take().filter(|_| self.offset > 0) {
            self.first_reading = Some((self.offset, hasher.finalize().into()));
        }
        self.hasher = (!is_range).then(Sha256::new);
        self.leaf_hasher = self.leaf_hasher.take().and_then(|_| LeafHasher::new(self.nar_size, 0));
        let unread_until = if is_range { self.first_byte + self.given } else { 0 };
        self.offset = 0;
        let store = Arc::clone(&self.store);
        self.reader = Reader::Walk(Box::new(Walk::new(store, self.root_name.clone(), unread_until)));
        Ok(())
    }

    /// Hashes the appended bytes. Where the first reading ended, it compares the digests of both readings.
    fn hash(&mut self, mut appended: &[u8]) -> Result<(), Error> {
        if let Some(leaf_hasher) = &mut self.leaf_hasher {
            leaf_hasher.update(appended);
        }
        let Some(hasher) = &mut self.hasher else { return Ok(()) };
        self.known.count_hashed(appended.len());
        if let Some((first_bytes, digest)) = self.first_reading
            && let Ok(left) = usize::try_from(first_bytes - self.offset)
            && let Some((known, rest)) = appended.split_at_checked(left)
        {
            hasher.update(known);
            if hasher.clone().finalize().as_slice() != digest {
                return Err(Error::Changed);
            }
            self.first_reading = None;
            appended = rest;
        }
        hasher.update(appended);
        Ok(())
    }

    /// Hashes the appended bytes and decides whether they may be given out. `offset` is the offset of their end in the NAR.
    fn account(&mut self, appended: &[u8], offset: u64, is_at_end: bool) -> Result<NarProgress, Error> {
        let was_at_end = self.offset == self.nar_size;
        self.hash(appended)?;
        self.offset = offset;
        if !is_at_end {
            // A receiver takes NarSize bytes for the whole NAR, so the NarHash must be checked
            // before that many are given out.
            return if offset < self.nar_size { Ok(NarProgress::More) } else { Err(Error::Mismatch) };
        }
        if offset != self.nar_size {
            return Err(Error::Mismatch);
        }
        // Only once: a later call after `Complete` has neither hasher nor layout to finish.
        if !was_at_end {
            let digest = self.hasher.as_mut().map(Sha256::finalize_reset);
            if digest.is_some_and(|digest| digest.as_slice() != self.nar_hash.0) {
                return Err(Error::Mismatch);
            }
            // Without a digest, the files are those of a copy that was hashed right before.
            if let Some(tree) = self.leaf_hasher.take().and_then(LeafHasher::finish) {
                self.known.trees.keep(self.part, self.nar_hash, tree);
            }
            let is_verified = digest.is_some();
            if let Reader::Walk(walk) = &mut self.reader
                && let Some((layout, is_settled)) = walk.take_layout().and_then(|layout| layout.finish(offset))
            {
                self.known.keep(self.part, self.registration, layout, is_verified && is_settled);
            }
        }
        Ok(NarProgress::Complete)
    }
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Why [`NarStream::fill`] failed; [`NarStreamError`] adds the path.
enum Error {
    System(Errno),
    Mismatch,
    Changed,
    NotArchivable,
    Spent,
}

impl Error {
    fn from_stop(stop: Stop) -> Self {
        match stop {
            Stop::System(errno) => Self::System(errno),
            Stop::Changed => Self::Mismatch,
            Stop::Moved => Self::Changed,
            Stop::NotArchivable => Self::NotArchivable,
        }
    }

    /// The fault of our copy, if reading the same files again would fail again. A lack of descriptors or memory is
    /// temporary, and so is a change.
    fn our_copys_fault(&self) -> Option<CopyFault> {
        match self {
            Self::NotArchivable => Some(CopyFault::NotArchivable),
            Self::Mismatch => Some(CopyFault::Corrupt),
            Self::System(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Some(CopyFault::Gone),
            Self::System(Errno::IO) => Some(CopyFault::Unreadable),
            Self::System(_) | Self::Changed | Self::Spent => None,
        }
    }

    fn into_stream_error(self, part: HashPart) -> NarStreamError {
        match self {
            Self::System(errno) => NarStreamError::Io { part, source: errno.into() },
            Self::Mismatch => NarStreamError::HashMismatch { part },
            Self::Changed => NarStreamError::Changed { part },
            Self::NotArchivable => NarStreamError::NotArchivable { part },
            Self::Spent => NarStreamError::Spent { part },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::{StoreDir, StorePath};
    use rustix::fs::{mkdirat, openat};

    /// Makes a tree whose deepest path is longer than the kernel accepts (4096 bytes), so that only a walk can read it.
    fn make_deep(root: &std::path::Path) {
        std::fs::create_dir(root).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut inner = open(root, flags, Mode::empty()).unwrap();
        let name = "d".repeat(250);
        for _ in 0..17 {
            mkdirat(&inner, &name, Mode::RWXU).unwrap();
            inner = openat(&inner, &name, flags, Mode::empty()).unwrap();
        }
        let file = openat(&inner, "file", OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).unwrap();
        rustix::io::write(&file, b"contents").unwrap();
    }

    fn read(mut stream: NarStream) -> Vec<u8> {
        let mut out = Vec::new();
        // In small pieces, so that some bytes were given out before the file is reached.
        while stream.fill(&mut out, 1).unwrap() == NarProgress::More {}
        out
    }

    #[test]
    fn tree_unreadable_by_its_layout_is_walked_and_stays_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = StorePath::parse(&format!("{}-deep", "0".repeat(32))).unwrap();
        make_deep(&dir.path().join(path.to_string()));
        let store = Arc::new(open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap());
        let walked = || {
            let mut walk = Walk::new(Arc::clone(&store), CString::new(path.to_string()).unwrap(), 0);
            let mut nar = Vec::new();
            walk.read(&mut nar, usize::MAX).unwrap();
            (walk.take_layout().unwrap().finish(bytes(nar.len())).unwrap().0, nar)
        };
        let (_, nar) = walked();
        let info = PathInfo {
            path: path.clone(),
            nar_hash: NarHash(Sha256::digest(&nar).into()),
            nar_size: bytes(nar.len()),
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
            ultimate: true,
            registration_time_s: 1,
        };
        let location = StoreLocation {
            store_dir: StoreDir::parse("/nix/store").unwrap(),
            real_dir: dir.path().to_path_buf(),
            state_dir: dir.path().to_path_buf(),
            log_dir: dir.path().to_path_buf(),
        };
        let (part, registration) = (info.path.hash_part(), Registration::of(1, &info));
        let known = Arc::<KnownCopies>::default();
        let open = |first_byte| {
            NarStream::open(&location, &info, 1, (Arc::default(), Arc::clone(&known)), first_byte).unwrap()
        };
        for is_verified in [false, true] {
            known.keep(part, registration, walked().0, is_verified);
            for first_byte in [0, 100] {
                assert!(read(open(bytes(first_byte))) == nar[first_byte..]);
                assert!(known.get(&part, &registration).is_some_and(|copy| copy.is_verified == is_verified));
            }
        }
    }
}
