//! Lists the entries of one directory in NAR order, without following symlinks.

use crate::file_identity::FileIdentity;
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, fstat, openat, statat};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most entries of one directory. A NAR has them sorted, so a whole directory is held in memory: 270 MB at worst.
const ENTRIES_MAX: usize = 1 << 20;
/// Size of the buffer for one system call that reads a directory, bytes.
const DIRECTORY_BUFFER_BYTES: usize = 32 << 10;

/// The type of a directory entry, as far as a NAR distinguishes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NodeKind {
    Regular,
    Symlink,
    Directory,
    /// A device, socket or pipe, which a NAR cannot hold.
    Special,
}

/// Why a directory could not be listed.
#[derive(Debug)]
pub(crate) enum ListingError {
    System(Errno),
    TooManyEntries,
    /// There is no memory for the names.
    NoMemory,
}

impl From<Errno> for ListingError {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

/// An open directory with its entries sorted bytewise, and how many of them were taken.
#[derive(Debug)]
pub(crate) struct Listing {
    directory: OwnedFd,
    /// Identity of the directory before its entries were read.
    identity: FileIdentity,
    /// The names, each terminated by a NUL.
    names: Vec<u8>,
    /// Index in `names` and type of each entry, in NAR order.
    entries: Vec<(usize, NodeKind)>,
    taken: usize,
}

impl NodeKind {
    pub(crate) fn of(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Self::Regular,
            FileType::Symlink => Self::Symlink,
            FileType::Directory => Self::Directory,
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Self::Special,
        }
    }

    /// The type of `name` in `parent`, read from the file itself.
    pub(crate) fn ask(parent: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self::of(FileType::from_raw_mode(stat.st_mode)))
    }
}

impl Listing {
    /// Opens and reads the directory `name` in `parent`; a symlink is refused.
    pub(crate) fn open(parent: impl AsFd, name: &CStr) -> Result<Self, ListingError> {
        Self::open_within(parent, name, &mut |_| true)
    }

    /// The same, with memory that is asked for before it is taken: `take` gets the bytes for one more entry.
    pub(crate) fn open_within(
        parent: impl AsFd,
        name: &CStr,
        take: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Self, ListingError> {
        // Opened here and not by its path later: what is listed stays the same directory, whatever is renamed.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(parent, name, flags, rustix::fs::Mode::empty())?;
        let identity = FileIdentity::of(&fstat(&directory)?);
        let mut names = Vec::new();
        let mut entries = Vec::new();
        let mut buffer = Vec::with_capacity(DIRECTORY_BUFFER_BYTES);
        let mut reader = RawDir::new(&directory, buffer.spare_capacity_mut());
        while let Some(entry) = reader.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if entries.len() == ENTRIES_MAX {
                return Err(ListingError::TooManyEntries);
            }
            // Asked for before it is taken: a directory may have more names than there is memory.
            if !take(bytes_of_entry(name)) {
                return Err(ListingError::NoMemory);
            }
            // Some file systems do not give the type when a directory is read.
            let kind = match entry.file_type() {
                FileType::Unknown => NodeKind::ask(&directory, name)?,
                known => NodeKind::of(known),
            };
            entries.push((names.len(), kind));
            names.extend_from_slice(name.to_bytes_with_nul());
        }
        // Growing took up to twice as much.
        names.shrink_to_fit();
        entries.shrink_to_fit();
        // A NAR has its entries in the order of their bytes, and the system lists them in any.
        entries.sort_unstable_by(|left, right| name_at(&names, left.0).cmp(name_at(&names, right.0)));
        Ok(Self { directory, identity, names, entries, taken: 0 })
    }

    /// What was asked for when it was opened, bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.names.len() + self.entries.len() * size_of::<(usize, NodeKind)>()
    }

    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Identity of the directory before its entries were read.
    pub(crate) fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Moves to the next entry; `None` after the last.
    pub(crate) fn advance(&mut self) -> Option<NodeKind> {
        let (_, kind) = self.entries.get(self.taken)?;
        self.taken += 1;
        Some(*kind)
    }

    /// The name of the entry that [`Self::advance`] moved to.
    pub(crate) fn name(&self) -> &CStr {
        let start = self.taken.checked_sub(1).and_then(|index| self.entries.get(index)).map_or(0, |entry| entry.0);
        name_at(&self.names, start)
    }
}

/// What an entry takes of memory, bytes.
fn bytes_of_entry(name: &CStr) -> usize {
    name.to_bytes_with_nul().len() + size_of::<(usize, NodeKind)>()
}

/// The name that starts at this index; empty if there is none.
fn name_at(names: &[u8], start: usize) -> &CStr {
    names.get(start..).and_then(|rest| CStr::from_bytes_until_nul(rest).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::{CString, OsStr};
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn entries_are_sorted_bytewise() {
        let dir = tempfile::tempdir().unwrap();
        for name in [&b"b"[..], b"a.b", b"a", b"a-b", b"\xff", b"B", b"\xc3\xa4"] {
            std::fs::write(dir.path().join(OsStr::from_bytes(name)), b"").unwrap();
        }
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        let parent = std::fs::File::open(dir.path().parent().unwrap()).unwrap();
        let name = CString::new(dir.path().file_name().unwrap().as_bytes()).unwrap();
        let mut listing = Listing::open(&parent, &name).unwrap();
        let mut found = Vec::new();
        while let Some(kind) = listing.advance() {
            found.push((listing.name().to_bytes().to_vec(), kind));
        }
        let names: Vec<&[u8]> = found.iter().map(|(name, _)| name.as_slice()).collect();
        assert_eq!(names, [&b"B"[..], b"a", b"a-b", b"a.b", b"b", b"dir", b"link", b"\xc3\xa4", b"\xff"]);
        assert_eq!(found[5].1, NodeKind::Directory);
        assert_eq!(found[6].1, NodeKind::Symlink);
        assert_eq!(found[8].1, NodeKind::Regular);
    }

    #[test]
    fn symlink_to_a_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let parent = std::fs::File::open(dir.path()).unwrap();
        assert!(matches!(Listing::open(&parent, c"link"), Err(ListingError::System(Errno::NOTDIR | Errno::LOOP))));
    }
}
