//! Where everything lies in a NAR: so that a range costs what it sends, and a copy that was hashed right once is not hashed again.
//!
//! A layout is true as long as each file, directory and link is the one that was seen: device, inode, size, mtime and ctime are
//! compared while it is read. What changes on the disk under unchanged metadata, only whoever receives the NAR can find; every
//! receiver hashes.

use std::ffi::CStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::file_identity::FileIdentity;

/// A layout that takes more memory is not kept: such a path is walked each time.
const LAYOUT_BYTES_MAX: usize = 8 << 20;
/// A file that was changed shortly before it was hashed may change again under the same ctime: file systems count it in steps of
/// up to two seconds (FAT; ext4 and btrfs in a few milliseconds).
const SETTLED: Duration = Duration::from_secs(2);

/// One stretch of a NAR, up to where the next one begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stretch {
    /// What a NAR says of its files: bytes of [`Layout::text`] from here on.
    Text(u32),
    /// The contents of a file.
    File {
        /// In [`Layout::name`].
        name: u32,
        /// Of its [`FileIdentity`], which would take seven times as much.
        fingerprint: u64,
    },
    /// No bytes: a directory or link that must be the one that was seen.
    Seen {
        /// In [`Layout::name`].
        name: u32,
        /// Of its [`FileIdentity`].
        fingerprint: u64,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    text: Vec<u8>,
    /// Paths below the store directory, each ended by a NUL.
    names: Vec<u8>,
    /// Each with the offset in the NAR at which it begins.
    stretches: Vec<(u64, Stretch)>,
    nar_size: u64,
}

impl Layout {
    /// The stretch of this number: where it begins, where it ends, and what it is.
    pub(crate) fn stretch(&self, at: usize) -> Option<(u64, u64, Stretch)> {
        let (begin, stretch) = *self.stretches.get(at)?;
        let end = self.stretches.get(at + 1).map_or(self.nar_size, |(next, _)| *next);
        Some((begin, end, stretch))
    }

    /// The number of the first stretch to read for this byte of the NAR: the first that begins there, which has no bytes when it is
    /// a directory or link to look at, or the one in which the byte lies.
    pub(crate) fn find(&self, offset: u64) -> usize {
        let at = self.stretches.partition_point(|(begin, _)| *begin < offset);
        let begins_there = self.stretches.get(at).is_some_and(|(begin, _)| *begin == offset);
        if begins_there { at } else { at.saturating_sub(1) }
    }

    /// So many bytes of text, `skipped` bytes behind the beginning of a stretch of it.
    pub(crate) fn text(&self, from: u32, skipped: usize, bytes: usize) -> &[u8] {
        let from = index(from).saturating_add(skipped);
        self.text.get(from..from.saturating_add(bytes)).unwrap_or_default()
    }

    /// A path below the store directory.
    pub(crate) fn name(&self, at: u32) -> &CStr {
        self.names.get(index(at)..).and_then(|rest| CStr::from_bytes_until_nul(rest).ok()).unwrap_or_default()
    }

    /// Memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.text.capacity() + self.names.capacity() + self.stretches.capacity() * size_of::<(u64, Stretch)>()
    }

    /// What of that is in use; while it is made, its vectors may have room for as much again.
    fn used_bytes(&self) -> usize {
        self.text.len() + self.names.len() + self.stretches.len() * size_of::<(u64, Stretch)>()
    }
}

/// `usize::MAX` where it cannot be one: nothing is there.
fn index(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// A layout in the making, while the tree is walked.
#[derive(Debug)]
pub(crate) struct LayoutBuilder {
    layout: Layout,
    began: SystemTime,
    newest: (i64, i64),
    is_too_large: bool,
}

impl LayoutBuilder {
    /// Of a tree whose walk begins at this time.
    pub(crate) fn new(began: SystemTime) -> Self {
        Self { layout: Layout::default(), began, newest: (0, 0), is_too_large: false }
    }

    /// What a NAR says of its files, at this offset.
    pub(crate) fn text(&mut self, offset: u64, text: &[u8]) {
        if text.is_empty() || self.is_full() {
            return;
        }
        // Far from `u32::MAX`, as long as it is not full.
        let Ok(from) = u32::try_from(self.layout.text.len()) else { return };
        if !matches!(self.layout.stretches.last(), Some((_, Stretch::Text(_)))) {
            self.layout.stretches.push((offset, Stretch::Text(from)));
        }
        self.layout.text.extend_from_slice(text);
    }

    /// The contents of a file begin at this offset.
    pub(crate) fn file<'a>(&mut self, offset: u64, path: impl Iterator<Item = &'a CStr>, identity: FileIdentity) {
        if let Some(name) = self.node(path, identity) {
            self.layout.stretches.push((offset, Stretch::File { name, fingerprint: identity.fingerprint() }));
        }
    }

    /// A directory or link was looked at.
    pub(crate) fn seen<'a>(&mut self, offset: u64, path: impl Iterator<Item = &'a CStr>, identity: FileIdentity) {
        if let Some(name) = self.node(path, identity) {
            self.layout.stretches.push((offset, Stretch::Seen { name, fingerprint: identity.fingerprint() }));
        }
    }

    fn node<'a>(&mut self, path: impl Iterator<Item = &'a CStr>, identity: FileIdentity) -> Option<u32> {
        self.newest = self.newest.max(identity.changed());
        if self.is_full() {
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

    fn is_full(&mut self) -> bool {
        if self.layout.used_bytes() > LAYOUT_BYTES_MAX {
            self.is_too_large = true;
            // Its memory is of no use to what is left of the walk.
            self.layout = Layout::default();
        }
        self.is_too_large
    }

    /// The layout of a NAR of this size, and whether all in it was settled before it was looked at; `None` when it is too large.
    pub(crate) fn finish(mut self, nar_size: u64) -> Option<(Layout, bool)> {
        if self.is_full() {
            return None;
        }
        self.layout.nar_size = nar_size;
        self.layout.text.shrink_to_fit();
        self.layout.names.shrink_to_fit();
        self.layout.stretches.shrink_to_fit();
        let began = self.began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.newest.0).unwrap_or(0));
        // A whole second more: the nanoseconds are left out.
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
                builder.seen(0, [c"name"].into_iter(), FileIdentity::changed_at(changed));
            }
            let (_, is_settled) = builder.finish(0).unwrap();
            assert_eq!(is_settled, expected, "{began:?}");
        }
    }
    /// So many files, each with its text.
    fn files(builder: &mut LayoutBuilder, count: u64) {
        for number in 0..count {
            builder.text(number * 100, &[b't'; 50]);
            builder.file(number * 100 + 50, [c"root", c"file"].into_iter(), FileIdentity::changed_at(1));
        }
    }

    #[test]
    fn finished_layout_takes_what_it_says_it_takes() {
        let mut builder = LayoutBuilder::new(UNIX_EPOCH);
        files(&mut builder, 1000);
        let (layout, _) = builder.finish(100_000).unwrap();
        assert_eq!(layout.bytes(), 1000 * (50 + 10 + 2 * 24));
    }

    #[test]
    fn layout_that_is_too_large_takes_nothing() {
        let mut builder = LayoutBuilder::new(UNIX_EPOCH);
        files(&mut builder, 100_000);
        assert_eq!(builder.layout.bytes(), 0);
        assert!(builder.finish(10_000_000).is_none());
    }
}
