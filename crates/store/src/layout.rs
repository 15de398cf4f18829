//! Records where each file lies in a NAR, so that serving a range costs only the bytes sent, and a copy whose NarHash was
//! right once is not hashed again.
//!
//! A layout is valid as long as each file, directory and link is the recorded one: device, inode, size, mtime and ctime are
//! compared while it is read. If data on the disk changes under unchanged metadata, only the receiver of the NAR can detect
//! it; every receiver hashes.

use std::ffi::CStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::file_identity::FileIdentity;

/// Most memory of a layout, bytes. A larger one is not kept; such a path is walked each time.
const LAYOUT_BYTES_MAX: usize = 8 << 20;
/// A file changed less than this long before it was hashed can change again with the same ctime: file systems count it in
/// steps of up to two seconds (FAT; ext4 and btrfs in steps of a few milliseconds).
const SETTLED: Duration = Duration::from_secs(2);

/// One stretch of a NAR. It ends where the next one begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stretch {
    /// NAR structure around the files: bytes of [`Layout::text`] from this index on.
    Text(u32),
    /// The contents of a file.
    File {
        /// Index of its path, for [`Layout::name`].
        name: u32,
        /// Fingerprint of its [`FileIdentity`], which itself would take seven times as much memory.
        fingerprint: u64,
    },
    /// No bytes: a directory, link or empty file that must still be the one recorded.
    Seen {
        /// Index of its path, for [`Layout::name`].
        name: u32,
        /// Fingerprint of its [`FileIdentity`].
        fingerprint: u64,
    },
}

/// Where each file of one NAR lies, and what its metadata was.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    text: Vec<u8>,
    /// Paths below the store directory, each terminated by a NUL.
    names: Vec<u8>,
    /// The stretches in order, each with the offset in the NAR at which it begins.
    stretches: Vec<(u64, Stretch)>,
    nar_size: u64,
}

impl Layout {
    /// The stretch with this number, after the offsets at which it begins and ends.
    pub(crate) fn stretch(&self, at: usize) -> Option<(u64, u64, Stretch)> {
        let (begin, stretch) = *self.stretches.get(at)?;
        let end = self.stretches.get(at + 1).map_or(self.nar_size, |(next, _)| *next);
        Some((begin, end, stretch))
    }

    /// The number of stretches.
    pub(crate) fn stretches(&self) -> usize {
        self.stretches.len()
    }

    /// The number of the first stretch to read for this byte of the NAR. If stretches begin there, it is the first of them,
    /// which can be a directory or link to check without bytes; otherwise it is the one that contains the byte.
    pub(crate) fn find(&self, offset: u64) -> usize {
        let at = self.stretches.partition_point(|(begin, _)| *begin < offset);
        let begins_there = self.stretches.get(at).is_some_and(|(begin, _)| *begin == offset);
        if begins_there { at } else { at.saturating_sub(1) }
    }

    /// `bytes` bytes of text, `skipped` bytes after the beginning of a text stretch.
    pub(crate) fn text(&self, from: u32, skipped: usize, bytes: usize) -> &[u8] {
        let from = index(from).saturating_add(skipped);
        self.text.get(from..from.saturating_add(bytes)).unwrap_or_default()
    }

    /// The path below the store directory that begins at this index.
    pub(crate) fn name(&self, at: u32) -> &CStr {
        self.names.get(index(at)..).and_then(|rest| CStr::from_bytes_until_nul(rest).ok()).unwrap_or_default()
    }

    /// Memory that the layout takes, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.text.capacity() + self.names.capacity() + self.stretches.capacity() * size_of::<(u64, Stretch)>()
    }

    /// The part of that memory in use. While the layout is built, its vectors can have as much spare room again.
    fn used_bytes(&self) -> usize {
        self.text.len() + self.names.len() + self.stretches.len() * size_of::<(u64, Stretch)>()
    }
}

/// Converts an index. If it does not fit, `usize::MAX` stands for it, at which nothing lies.
fn index(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// Builds a layout while a tree is walked.
#[derive(Debug)]
pub(crate) struct LayoutBuilder {
    layout: Layout,
    began: SystemTime,
    newest: (i64, i64),
    is_too_large: bool,
}

impl LayoutBuilder {
    /// Starts the layout of a tree whose walk begins at time `began`.
    pub(crate) fn new(began: SystemTime) -> Self {
        Self { layout: Layout::default(), began, newest: (0, 0), is_too_large: false }
    }

    /// Notes NAR structure at this offset.
    pub(crate) fn add_text(&mut self, offset: u64, text: &[u8]) {
        if text.is_empty() || self.drop_if_full() {
            return;
        }
        // Never fails: until the layout is full, its text is far shorter than `u32::MAX`.
        let Ok(from) = u32::try_from(self.layout.text.len()) else { return };
        if !matches!(self.layout.stretches.last(), Some((_, Stretch::Text(_)))) {
            self.layout.stretches.push((offset, Stretch::Text(from)));
        }
        self.layout.text.extend_from_slice(text);
    }

    /// Notes that the contents of a file begin at this offset.
    pub(crate) fn add_file<'a>(&mut self, offset: u64, path: impl Iterator<Item = &'a CStr>, identity: FileIdentity) {
        if let Some(name) = self.add_node(path, identity) {
            self.layout.stretches.push((offset, Stretch::File { name, fingerprint: identity.fingerprint() }));
        }
    }

    /// Notes a directory, a link or an empty file, whose metadata was read.
    pub(crate) fn add_seen<'a>(&mut self, offset: u64, path: impl Iterator<Item = &'a CStr>, identity: FileIdentity) {
        if let Some(name) = self.add_node(path, identity) {
            self.layout.stretches.push((offset, Stretch::Seen { name, fingerprint: identity.fingerprint() }));
        }
    }

    fn add_node<'a>(&mut self, path: impl Iterator<Item = &'a CStr>, identity: FileIdentity) -> Option<u32> {
        self.newest = self.newest.max(identity.changed());
        if self.drop_if_full() {
            return None;
        }
        let names = &mut self.layout.names;
        let begin = names.len();
        let at = u32::try_from(begin).ok()?;
        for part in path {
            if names.len() > begin {
                names.push(b'/');
            }
            names.extend_from_slice(part.to_bytes());
        }
        names.push(0);
        Some(at)
    }

    fn drop_if_full(&mut self) -> bool {
        if self.layout.used_bytes() > LAYOUT_BYTES_MAX {
            self.is_too_large = true;
            // The rest of the walk does not need its memory.
            self.layout = Layout::default();
        }
        self.is_too_large
    }

    /// The layout of a NAR of this size, and whether everything in it was settled before the walk.
    /// `None` when it is too large.
    pub(crate) fn finish(mut self, nar_size: u64) -> Option<(Layout, bool)> {
        if self.drop_if_full() {
            return None;
        }
        self.layout.nar_size = nar_size;
        self.layout.text.shrink_to_fit();
        self.layout.names.shrink_to_fit();
        self.layout.stretches.shrink_to_fit();
        let began = self.began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.newest.0).unwrap_or(0));
        // One second more, because the nanoseconds are ignored.
        let is_settled = changed + SETTLED + Duration::from_secs(1) <= began;
        Some((self.layout, is_settled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_is_settled_when_its_newest_change_is_three_seconds_old() {
        let seconds = |count| UNIX_EPOCH + Duration::from_secs(count);
        let began = [(seconds(1002), false), (seconds(1003) - Duration::from_nanos(1), false), (seconds(1003), true)];
        for (began, expected) in began {
            let mut builder = LayoutBuilder::new(began);
            for changed in [1, 1000, 500] {
                builder.add_seen(0, [c"name"].into_iter(), FileIdentity::changed_at(changed));
            }
            let (_, is_settled) = builder.finish(0).unwrap();
            assert_eq!(is_settled, expected, "{began:?}");
        }
    }
    /// Adds `count` files, each with its text.
    fn files(builder: &mut LayoutBuilder, count: u64) {
        for number in 0..count {
            builder.add_text(number * 100, &[b't'; 50]);
            builder.add_file(number * 100 + 50, [c"root", c"file"].into_iter(), FileIdentity::changed_at(1));
        }
    }

    #[test]
    fn finished_layout_reports_its_exact_memory() {
        let mut builder = LayoutBuilder::new(UNIX_EPOCH);
        files(&mut builder, 1000);
        let (layout, _) = builder.finish(100_000).unwrap();
        assert_eq!(layout.bytes(), 1000 * (50 + 10 + 2 * 24));
    }

    #[test]
    fn oversized_layout_is_dropped() {
        let mut builder = LayoutBuilder::new(UNIX_EPOCH);
        files(&mut builder, 100_000);
        assert_eq!(builder.layout.bytes(), 0);
        assert!(builder.finish(10_000_000).is_none());
    }
}
