//! The contents of one store path as files: a single file, the rows of a directory, or the listing of the whole tree.
//!
//! They are read as they are on the disk: nothing here is hashed. No symlink is followed out of the store path, and memory
//! for the names in directories is taken from a budget before it is used.

mod entry;
mod memory;
mod tree_listing;

pub use entry::{DirectoryRow, DirectoryRows, Entry, EntryFile, RowKind};
pub use tree_listing::TreeListing;

pub(crate) use memory::ListingMemory;

use crate::listing::ListingError;
use crate::{NixStore, PathInfo, StoreError};
use narmesh_protocol::HashPart;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Why contents cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// The file system returned an error, perhaps because the path is being garbage-collected.
    #[error("reading the files of a store path: {0}")]
    Io(#[from] io::Error),
    /// A file or directory is no longer what it was when the read began.
    #[error("the files of a store path changed while they were read")]
    Changed,
    /// The tree holds what a listing cannot: a special file, a directory too deep or too large, or a name or link target that
    /// is not UTF-8.
    #[error("a listing cannot hold what is in the store path")]
    NotListable,
    /// Too many large directories are being listed at the moment.
    #[error("too many large directories are being listed")]
    Busy,
}

impl From<Errno> for ContentsError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<ListingError> for ContentsError {
    fn from(error: ListingError) -> Self {
        match error {
            ListingError::System(errno) => errno.into(),
            ListingError::TooManyEntries => Self::NotListable,
            ListingError::NoMemory => Self::Busy,
        }
    }
}

/// The contents of a valid path.
pub struct StoreContents {
    info: PathInfo,
    store: Arc<OwnedFd>,
    root_name: CString,
    /// `<store directory>/<base name>`: how an absolute link to the path itself begins.
    full_path: String,
    memory: Arc<ListingMemory>,
}

impl fmt::Debug for StoreContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreContents").field("path", &self.info.path).finish_non_exhaustive()
    }
}

impl StoreContents {
    /// The registration of the path.
    pub fn info(&self) -> &PathInfo {
        &self.info
    }

    /// The file or directory at this path inside of the store path; `None` if there is none, or only a link that leads out of
    /// the store path. A component must be neither `.` nor `..` and have no slash. Blocks.
    pub fn open_entry(&self, components: &[Vec<u8>]) -> Result<Option<Entry>, ContentsError> {
        entry::open(self, components)
    }

    /// The listing of the whole tree, as Nix writes it into a binary cache. Blocks.
    pub fn list(self) -> Result<TreeListing, ContentsError> {
        TreeListing::open(self.store, self.root_name, &self.memory)
    }
}

impl NixStore {
    /// The contents of the path with this hash part. `None` if no such path is valid, or if our copy
    /// failed its hash. Blocks.
    pub fn find_contents(&self, part: &HashPart) -> Result<Option<StoreContents>, StoreError> {
        let Some((row, info)) = self.read_registration(part)? else { return Ok(None) };
        self.open_contents(row, info)
    }

    /// The contents of a row that was just read.
    pub(crate) fn open_contents(&self, row: i64, info: PathInfo) -> Result<Option<StoreContents>, StoreError> {
        // A copy that failed its hash gives out nothing, not even one of its files.
        if self.find_fault(row, &info).is_some() {
            return Ok(None);
        }
        let real_dir = &self.location().real_dir;
        let store = open(real_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| StoreError::Io { path: real_dir.clone(), source: errno.into() })?;
        Ok(Some(StoreContents {
            // Never fails: a store path contains no NUL.
            root_name: CString::new(info.path.to_string()).unwrap_or_default(),
            full_path: self.store_dir().display(&info.path),
            store: Arc::new(store),
            memory: Arc::clone(self.listing_memory()),
            info,
        }))
    }
}
