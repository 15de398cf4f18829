//! The listing of a whole tree, as Nix writes it into a binary cache beside the narinfo (`libstore/nar-accessor.cc`): JSON
//! with the type of each node, and for files their size and where their contents begin in the NAR.
//!
//! It is written while the tree is walked, and no file is opened: the offsets follow from names and sizes alone.

use super::ContentsError;
use super::memory::{ListingMemory, ListingShare};
use crate::listing::{Listing, NodeKind};
use narmesh_protocol::nar::{DEPTH_MAX, NAME_BYTES_MAX, NarWriter, TARGET_BYTES_MAX};
use rustix::fs::{AtFlags, FileType, Mode, readlinkat, statat};
use std::ffi::{CStr, CString};
use std::fmt;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// A listing being written. It holds at most 64 directories open, with the names in them.
pub struct TreeListing {
    store: Arc<OwnedFd>,
    root_name: CString,
    writer: NarWriter,
    /// Structure of the NAR that was not counted yet.
    structure: Vec<u8>,
    /// Bytes of the NAR so far.
    nar_offset: u64,
    directories: Vec<Level>,
    share: ListingShare,
    stage: Stage,
}

struct Level {
    listing: Listing,
    has_entries: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Start,
    Walk,
    End,
}

impl fmt::Debug for TreeListing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeListing").field("root_name", &self.root_name).finish_non_exhaustive()
    }
}

impl TreeListing {
    pub(super) fn open(
        store: Arc<OwnedFd>,
        root_name: CString,
        memory: &Arc<ListingMemory>,
    ) -> Result<Self, ContentsError> {
        // Fails at once for a path that is not on the disk.
        NodeKind::ask(&store, &root_name)?;
        let mut structure = Vec::new();
        let writer = NarWriter::start(&mut structure);
        Ok(Self {
            store,
            root_name,
            writer,
            structure,
            nar_offset: 0,
            directories: Vec::new(),
            share: ListingShare::new(memory),
            stage: Stage::Start,
        })
    }

    /// Appends about `bytes_max` bytes of the listing to `out`; `false` if they are the last. Blocks.
    pub fn fill(&mut self, out: &mut Vec<u8>, bytes_max: usize) -> Result<bool, ContentsError> {
        let target = out.len().saturating_add(bytes_max);
        while out.len() < target {
            match self.stage {
                Stage::End => return Ok(false),
                Stage::Start => {
                    out.extend_from_slice(b"{\"root\":");
                    self.stage = Stage::Walk;
                    self.begin_node(out)?;
                }
                Stage::Walk => self.next_entry(out)?,
            }
        }
        Ok(self.stage != Stage::End)
    }

    fn next_entry(&mut self, out: &mut Vec<u8>) -> Result<(), ContentsError> {
        let depth = self.directories.len();
        let Some(innermost) = self.directories.last_mut() else {
            out.extend_from_slice(b",\"version\":1}");
            self.stage = Stage::End;
            return Ok(());
        };
        if innermost.listing.advance().is_none() {
            // Asked before the listing goes: what it held is free for others then.
            let held_bytes = innermost.listing.held_bytes();
            self.directories.pop();
            self.share.give_back(held_bytes);
            out.extend_from_slice(b"},\"type\":\"directory\"}");
            self.writer.end_directory(&mut self.structure);
            self.end_node();
            return Ok(());
        }
        let name = innermost.listing.name().to_bytes();
        // The same bounds as those of a NAR, for which the listing names offsets.
        if depth >= DEPTH_MAX || name.len() > NAME_BYTES_MAX {
            return Err(ContentsError::NotListable);
        }
        if std::mem::replace(&mut innermost.has_entries, true) {
            out.push(b',');
        }
        write_string(out, name)?;
        out.push(b':');
        self.writer.begin_entry(&mut self.structure, name);
        self.begin_node(out)
    }

    /// Writes a file or symlink, or opens a directory; the node is the root or the innermost directory's current entry.
    fn begin_node(&mut self, out: &mut Vec<u8>) -> Result<(), ContentsError> {
        let (parent, name): (_, &CStr) = match self.directories.last() {
            Some(level) => (level.listing.directory(), level.listing.name()),
            None => (self.store.as_fd(), &self.root_name),
        };
        // A link is a link here, wherever it leads.
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match NodeKind::of(FileType::from_raw_mode(stat.st_mode)) {
            NodeKind::Special => Err(ContentsError::NotListable),
            NodeKind::Directory => {
                let listing = Listing::open_within(parent, name, &mut |bytes| self.share.take(bytes))?;
                self.writer.begin_directory(&mut self.structure);
                self.directories.push(Level { listing, has_entries: false });
                out.extend_from_slice(b"{\"entries\":{");
                Ok(())
            }
            NodeKind::Symlink => {
                let target = readlinkat(parent, name, Vec::new())?;
                if target.is_empty() || target.to_bytes().len() > TARGET_BYTES_MAX {
                    return Err(ContentsError::NotListable);
                }
                out.extend_from_slice(b"{\"target\":");
                write_string(out, target.to_bytes())?;
                out.extend_from_slice(b",\"type\":\"symlink\"}");
                self.writer.write_symlink(&mut self.structure, target.to_bytes());
                self.end_node();
                Ok(())
            }
            NodeKind::Regular => {
                let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
                let is_executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
                self.writer.begin_file(&mut self.structure, size_bytes, is_executable);
                self.count_structure();
                let executable = if is_executable { "\"executable\":true," } else { "" };
                write!(
                    out,
                    "{{{executable}\"narOffset\":{},\"size\":{size_bytes},\"type\":\"regular\"}}",
                    self.nar_offset
                )?;
                self.nar_offset = self.nar_offset.saturating_add(size_bytes);
                self.writer.end_file(&mut self.structure, size_bytes);
                self.end_node();
                Ok(())
            }
        }
    }

    fn end_node(&mut self) {
        if !self.directories.is_empty() {
            self.writer.end_entry(&mut self.structure);
        }
        self.count_structure();
    }

    /// Adds what a NAR has between the contents of files; it is written only to be counted.
    fn count_structure(&mut self) {
        self.nar_offset += self.structure.len() as u64;
        self.structure.clear();
    }
}

/// Writes a JSON string. JSON has no other than UTF-8.
fn write_string(out: &mut Vec<u8>, text: &[u8]) -> Result<(), ContentsError> {
    let text = std::str::from_utf8(text).map_err(|_| ContentsError::NotListable)?;
    serde_json::to_writer(out, text).map_err(|error| ContentsError::Io(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{OFlags, open};
    use std::fs;
    use std::path::Path;

    fn list(parent: &Path, name: &str) -> Result<serde_json::Value, ContentsError> {
        let store = open(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let memory = Arc::<ListingMemory>::default();
        let mut listing = TreeListing::open(Arc::new(store), CString::new(name).unwrap(), &memory)?;
        let mut out = Vec::new();
        // One byte at a time, so that the listing is interrupted everywhere.
        while listing.fill(&mut out, 1)? {}
        Ok(serde_json::from_slice(&out).unwrap())
    }

    #[test]
    fn files_have_the_offset_of_their_contents() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("x");
        fs::create_dir_all(root.join("a/empty")).unwrap();
        fs::write(root.join("a/\"b\\"), b"0123456789").unwrap();
        fs::write(root.join("z"), b"").unwrap();
        std::os::unix::fs::symlink("a/\u{e4}", root.join("l")).unwrap();
        let listed = list(dir.path(), "x").unwrap();
        let mut nar = Vec::new();
        let mut walk = crate::nar_walk::Walk::new(
            Arc::new(open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()),
            c"x".to_owned(),
            0,
        );
        walk.read(&mut nar, usize::MAX).unwrap();
        let offset = nar.windows(10).position(|window| window == b"0123456789").unwrap();
        let file = &listed["root"]["entries"]["a"]["entries"]["\"b\\"];
        assert_eq!(file["narOffset"].as_u64().unwrap(), offset as u64);
        assert_eq!((file["size"].as_u64(), file.get("executable")), (Some(10), None));
        assert_eq!(listed["root"]["entries"]["l"]["target"], "a/\u{e4}");
        assert_eq!(listed["version"], 1);
    }

    #[test]
    fn what_a_listing_cannot_hold_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let (deep, odd) = (dir.path().join("deep"), dir.path().join("odd"));
        fs::create_dir_all(deep.join("d/".repeat(65))).unwrap();
        fs::create_dir(&odd).unwrap();
        fs::write(odd.join(std::ffi::OsStr::from_bytes(b"\xff")), b"").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        for name in ["deep", "odd", "socket"] {
            assert!(matches!(list(dir.path(), name), Err(ContentsError::NotListable)), "{name}");
        }
        assert!(matches!(list(dir.path(), "nothing"), Err(ContentsError::Io(_))));
    }
}
