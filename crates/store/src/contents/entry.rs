//! Finds a file or directory inside of a store path.

use super::memory::ListingShare;
use super::{ContentsError, StoreContents};
use crate::listing::{Listing, NodeKind};
use narmesh_protocol::nar::{DEPTH_MAX, TARGET_BYTES_MAX};
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::{Errno, pread};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most symlinks on the way to an entry, as in the kernel (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// What is at a path inside of a store path.
#[derive(Debug)]
pub enum Entry {
    /// A regular file.
    File(EntryFile),
    /// A directory.
    Directory(DirectoryRows),
}

/// An open file of a store path.
#[derive(Debug)]
pub struct EntryFile {
    file: OwnedFd,
    size_bytes: u64,
}

/// The rows of a directory, in the order of their names.
#[derive(Debug)]
pub struct DirectoryRows {
    listing: Listing,
    /// Held as long as the names are.
    _share: ListingShare,
    index: Option<EntryFile>,
}

/// One row of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryRow {
    /// The name, any bytes but a slash and NUL.
    pub name: Vec<u8>,
    /// Whether it is a file, a directory or a link.
    pub kind: RowKind,
}

/// What a row of a directory stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowKind {
    /// A regular file of as many bytes.
    File {
        /// The size of its contents, bytes.
        size_bytes: u64,
    },
    /// A directory.
    Directory,
    /// A symlink with this target.
    Symlink {
        /// The target, any bytes but NUL.
        target: Vec<u8>,
    },
    /// Something that a store path should not hold.
    Special,
}

impl EntryFile {
    /// Its size when it was opened.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Appends up to `bytes_max` bytes from byte `offset` on, at least one. Blocks.
    pub fn read_at(&self, offset: u64, out: &mut Vec<u8>, bytes_max: usize) -> Result<(), ContentsError> {
        let before = out.len();
        out.reserve_exact(bytes_max);
        loop {
            match pread(&self.file, spare_capacity(out), offset) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
                // The file has shrunk.
                Ok(0) => return Err(ContentsError::Changed),
                Ok(_) => {
                    out.truncate(before + bytes_max);
                    return Ok(());
                }
            }
        }
    }
}

impl DirectoryRows {
    /// Takes the file `index.html` of the directory, if it has one.
    pub fn take_index(&mut self) -> Option<EntryFile> {
        self.index.take()
    }

    /// The next row; `None` after the last. Blocks.
    pub fn next_row(&mut self) -> Result<Option<DirectoryRow>, ContentsError> {
        let Some(kind) = self.listing.advance() else { return Ok(None) };
        let (directory, name) = (self.listing.directory(), self.listing.name());
        let kind = match kind {
            NodeKind::Directory => RowKind::Directory,
            NodeKind::Special => RowKind::Special,
            NodeKind::Symlink => RowKind::Symlink { target: readlinkat(directory, name, Vec::new())?.into_bytes() },
            NodeKind::Regular => {
                let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                RowKind::File { size_bytes: u64::try_from(stat.st_size).unwrap_or(0) }
            }
        };
        Ok(Some(DirectoryRow { name: name.to_bytes().to_vec(), kind }))
    }
}

/// Walks from the root of the store path to the entry, one component at a time; the kernel follows no link.
pub(super) fn open(contents: &StoreContents, components: &[Vec<u8>]) -> Result<Option<Entry>, ContentsError> {
    match Walk::new(contents, components).run() {
        Ok(entry) => Ok(entry),
        Err(ContentsError::Io(error)) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_absence(error: &std::io::Error) -> bool {
    let absences = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::NAMETOOLONG, Errno::INVAL];
    Errno::from_io_error(error).is_some_and(|errno| absences.contains(&errno))
}

struct Walk<'a> {
    contents: &'a StoreContents,
    /// The open directories from the root of the store path down to where the walk is.
    directories: Vec<OwnedFd>,
    /// What is still to be walked, the next one last.
    pending: Vec<Vec<u8>>,
    links: usize,
}

impl<'a> Walk<'a> {
    fn new(contents: &'a StoreContents, components: &[Vec<u8>]) -> Self {
        let pending = components.iter().rev().cloned().collect();
        Self { contents, directories: Vec::new(), pending, links: 0 }
    }

    fn run(mut self) -> Result<Option<Entry>, ContentsError> {
        let root = &self.contents.root_name;
        match self.kind_of(root)? {
            // A file has nothing below it, so whatever else was asked for is not there.
            NodeKind::Regular if self.pending.is_empty() => return Ok(Some(Entry::File(self.open_file(root)?))),
            NodeKind::Directory => self.enter(root)?,
            // A link that is the store path itself leads out of it.
            NodeKind::Regular | NodeKind::Symlink | NodeKind::Special => return Ok(None),
        }
        while let Some(component) = self.pending.pop() {
            match component.as_slice() {
                b"" | b"." => continue,
                // Only links bring these: the name of a request has none. Above the root would be another store path.
                b".." => {
                    self.directories.pop();
                    if self.directories.is_empty() {
                        return Ok(None);
                    }
                    continue;
                }
                _ => {}
            }
            let Ok(name) = CString::new(component) else { return Ok(None) };
            match self.kind_of(&name)? {
                // What is deeper than a NAR may be is in no NAR either.
                NodeKind::Directory if self.directories.len() <= DEPTH_MAX => self.enter(&name)?,
                NodeKind::Regular if self.pending.is_empty() => {
                    return Ok(Some(Entry::File(self.open_file(&name)?)));
                }
                NodeKind::Symlink if self.links < LINKS_MAX => {
                    self.links += 1;
                    if !self.follow(&name)? {
                        return Ok(None);
                    }
                }
                NodeKind::Regular | NodeKind::Directory | NodeKind::Symlink | NodeKind::Special => return Ok(None),
            }
        }
        self.list().map(Some)
    }

    /// The directory in which the walk is: that of the store, before the root was entered.
    fn here(&self) -> BorrowedFd<'_> {
        self.directories.last().map_or(self.contents.store.as_fd(), AsFd::as_fd)
    }

    fn kind_of(&self, name: &CStr) -> Result<NodeKind, ContentsError> {
        Ok(NodeKind::ask(self.here(), name)?)
    }

    fn enter(&mut self, name: &CStr) -> Result<(), ContentsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(self.here(), name, flags, Mode::empty())?;
        self.directories.push(directory);
        Ok(())
    }

    /// Puts the target of a link before what is still to be walked; `false` if it is outside of the store path.
    fn follow(&mut self, name: &CStr) -> Result<bool, ContentsError> {
        let target = readlinkat(self.here(), name, Vec::new())?.into_bytes();
        if target.len() > TARGET_BYTES_MAX {
            return Ok(false);
        }
        // An absolute link may lead to the store path itself, and nowhere else.
        let relative = if target.starts_with(b"/") {
            let rest = target.strip_prefix(self.contents.full_path.as_bytes());
            let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with(b"/")) else { return Ok(false) };
            self.directories.truncate(1);
            rest
        } else {
            target.as_slice()
        };
        // In reverse, because the next component is taken from the end.
        self.pending.extend(relative.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        Ok(true)
    }

    fn open_file(&self, name: &CStr) -> Result<EntryFile, ContentsError> {
        // NONBLOCK: if the file was swapped for a pipe, opening it would otherwise wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(self.here(), name, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(ContentsError::Changed);
        }
        Ok(EntryFile { file, size_bytes: u64::try_from(stat.st_size).unwrap_or(0) })
    }

    fn list(&self) -> Result<Entry, ContentsError> {
        const INDEX: &CStr = c"index.html";
        let index = match self.kind_of(INDEX) {
            Ok(NodeKind::Regular) => Some(self.open_file(INDEX)?),
            Ok(NodeKind::Directory | NodeKind::Symlink | NodeKind::Special) | Err(_) => None,
        };
        // Held for as long as the rows are read: a large directory counts until it is given out.
        let mut share = ListingShare::new(&self.contents.memory);
        let listing = Listing::open_within(self.here(), c".", &mut |bytes| share.take(bytes))?;
        Ok(Entry::Directory(DirectoryRows { listing, _share: share, index }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contents::ListingMemory;
    use narmesh_protocol::{NarHash, StorePath};
    use rustix::fs::open;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::Arc;

    const NAME: &str = "0c0yaa1b2d3f4g5h6i7j8k9l0m1n2p3q-x";

    fn contents(store: &Path) -> StoreContents {
        let info = crate::PathInfo {
            path: StorePath::parse(NAME).unwrap(),
            nar_hash: NarHash([0; 32]),
            nar_size: 1,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
            ultimate: false,
            registration_time_s: 0,
        };
        StoreContents {
            info,
            store: Arc::new(open(store, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()),
            root_name: CString::new(NAME).unwrap(),
            full_path: format!("/logical/store/{NAME}"),
            memory: Arc::<ListingMemory>::default(),
        }
    }

    /// The first bytes of the file, or the names in the directory.
    fn look(store: &Path, path: &str) -> Option<String> {
        let names: Vec<_> =
            path.split('/').filter(|name| !name.is_empty()).map(|name| name.as_bytes().to_vec()).collect();
        let mut out = Vec::new();
        match contents(store).open_entry(&names).unwrap()? {
            Entry::File(file) => file.read_at(0, &mut out, 100).unwrap(),
            Entry::Directory(mut rows) => {
                while let Some(row) = rows.next_row().unwrap() {
                    out.extend([row.name.as_slice(), b" "].concat());
                }
            }
        }
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn links_are_followed_inside_of_the_store_path_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(NAME);
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), "inside").unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        // Its name begins like that of the store path.
        fs::create_dir(dir.path().join(format!("{NAME}y"))).unwrap();
        fs::write(dir.path().join(format!("{NAME}y/file")), "outside").unwrap();
        fs::create_dir(root.join("y")).unwrap();
        fs::write(root.join("y/file"), "what the neighbour's link does not mean").unwrap();
        for (link, target) in [
            ("to-file", "a/file".to_owned()),
            ("a/b/up", "../../a/./file".to_owned()),
            ("to-directory", "a".to_owned()),
            ("absolute", format!("/logical/store/{NAME}/a/file")),
            ("to-root", format!("/logical/store/{NAME}")),
            ("chain", "to-directory/b/up".to_owned()),
            ("out", "../secret".to_owned()),
            ("out-and-in", format!("../{NAME}/a/file")),
            ("a/far-out", "../../../../../../etc/passwd".to_owned()),
            ("passwd", "/etc/passwd".to_owned()),
            ("neighbour", format!("/logical/store/{NAME}y/file")),
            ("store", "/logical/store".to_owned()),
            ("dots", format!("/logical/store/{NAME}/../secret")),
            ("itself", "itself".to_owned()),
            ("parent", "..".to_owned()),
            ("file-and-more", "a/file/x".to_owned()),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        for inside in ["a/file", "to-file", "a/b/up", "to-directory/file", "absolute", "to-root/a/file", "chain"] {
            assert_eq!(look(dir.path(), inside).as_deref(), Some("inside"), "{inside}");
        }
        for outside in [
            "out",
            "out-and-in",
            "a/far-out",
            "passwd",
            "neighbour",
            "store",
            "dots",
            "itself",
            "parent",
            "file-and-more",
        ] {
            assert_eq!(look(dir.path(), outside), None, "{outside}");
        }
        assert_eq!(look(dir.path(), "to-directory").as_deref(), Some("b far-out file "));
        for absent in ["a/file/x", "nothing", "a/nothing", &"n".repeat(300)] {
            assert_eq!(look(dir.path(), absent), None, "{absent}");
        }
    }

    #[test]
    fn store_path_that_is_a_link_or_a_pipe_gives_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(NAME);
        symlink("/etc", &root).unwrap();
        assert_eq!((look(dir.path(), ""), look(dir.path(), "passwd")), (None, None));
        fs::remove_file(&root).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&root).unwrap();
        assert_eq!(look(dir.path(), ""), None);
        fs::remove_file(&root).unwrap();
        assert_eq!(look(dir.path(), ""), None, "collected");
        fs::write(&root, "a file").unwrap();
        assert_eq!(look(dir.path(), "").as_deref(), Some("a file"));
        assert_eq!(look(dir.path(), "x"), None);
    }

    #[test]
    fn index_of_a_directory_is_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(NAME);
        fs::create_dir_all(root.join("linked")).unwrap();
        fs::write(root.join("index.html"), "<p>").unwrap();
        symlink("/etc/passwd", root.join("linked/index.html")).unwrap();
        let index = |names: &[Vec<u8>]| match contents(dir.path()).open_entry(names).unwrap() {
            Some(Entry::Directory(mut rows)) => rows.take_index().map(|file| file.size_bytes()),
            other => panic!("{other:?}"),
        };
        assert_eq!((index(&[]), index(&[b"linked".to_vec()])), (Some(3), None));
    }
}
