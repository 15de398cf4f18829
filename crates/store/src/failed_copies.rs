//! Remembers our copies that failed their NarHash until their files or their row change.
//!
//! Otherwise a peer that repairs its copy from the mesh could get our damaged copy, and `nix-store --repair-path` here would
//! fetch our own damaged copy back through our own gateway.

use crate::PathInfo;
use crate::file_identity::FileIdentity;
use crate::watch_thread::Waker;
use narmesh_protocol::{HashPart, NarHash};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Most failed copies remembered. One more drops the smallest hash part; checking that copy again costs one read of it.
pub const FAILED_MAX: usize = 10_000;

/// Identifies one registration of a path. Nix keeps the row id on a repair, and gives a new one after a deletion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Registration {
    pub(crate) row: i64,
    pub(crate) registration_time_s: u64,
    pub(crate) nar_hash: NarHash,
}

impl Registration {
    pub(crate) fn of(row: i64, info: &PathInfo) -> Self {
        Self { row, registration_time_s: info.registration_time_s, nar_hash: info.nar_hash }
    }
}

/// What is wrong with our copy of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyFault {
    /// It does not give the hash and size that are registered.
    Corrupt,
    /// It is not on the disk, or a part of it is not.
    Gone,
    /// The disk does not give it.
    Unreadable,
    /// It holds what a NAR cannot: directories too deep or too large, a special file, a name or target too long.
    NotArchivable,
}

impl fmt::Display for CopyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Corrupt => "failed its hash before",
            Self::Gone => "is gone from the disk, wholly or in part",
            Self::Unreadable => "cannot be read from the disk",
            Self::NotArchivable => "holds what a NAR cannot hold",
        })
    }
}

#[derive(Debug)]
struct FailedCopy {
    fault: CopyFault,
    root: PathBuf,
    registration: Registration,
    /// Identity of the root, which a repair replaces; `None` when there was no root at all.
    identity: Option<FileIdentity>,
    /// Whether [`FailedCopies::take_news`] has not reported it yet.
    is_new: bool,
}

/// All failed copies, shared by the store and its open streams.
#[derive(Debug, Default)]
pub(crate) struct FailedCopies {
    copies: Mutex<BTreeMap<HashPart, FailedCopy>>,
    waker: Mutex<Option<Waker>>,
}

/// Changes among the failed copies since the last call of [`FailedCopies::take_news`].
#[derive(Debug, Default)]
pub(crate) struct FailedNews {
    pub(crate) failed: Vec<HashPart>,
    pub(crate) mended: Vec<HashPart>,
}

impl FailedCopies {
    /// Remembers that the copy with this identity failed, and wakes the watchers.
    pub(crate) fn remember(
        &self,
        part: HashPart,
        fault: CopyFault,
        root: &Path,
        registration: Registration,
        identity: Option<FileIdentity>,
    ) {
        {
            let mut copies = self.copies.lock();
            // Any of them may go: it is found again when it is read.
            if copies.len() >= FAILED_MAX && !copies.contains_key(&part) {
                copies.pop_first();
            }
            copies.insert(part, FailedCopy { fault, root: root.to_path_buf(), registration, identity, is_new: true });
        }
        // After the lock is free, because whoever wakes up takes it.
        self.wake();
    }

    /// Remembers what was known before a restart. Nobody is told, because nothing is new.
    pub(crate) fn restore(
        &self,
        part: HashPart,
        fault: CopyFault,
        root: &Path,
        registration: Registration,
        identity: Option<FileIdentity>,
    ) {
        let copy = FailedCopy { fault, root: root.to_path_buf(), registration, identity, is_new: false };
        let mut copies = self.copies.lock();
        // What this process found itself counts more than what an earlier one kept.
        if copies.len() < FAILED_MAX {
            copies.entry(part).or_insert(copy);
        }
    }

    /// What is remembered of a copy.
    pub(crate) fn find(&self, part: &HashPart) -> Option<(CopyFault, Registration, Option<FileIdentity>)> {
        self.copies.lock().get(part).map(|copy| (copy.fault, copy.registration, copy.identity))
    }

    /// The fault of the copy with this registration, if its root is still the one that failed.
    pub(crate) fn find_fault(&self, part: &HashPart, registration: &Registration) -> Option<CopyFault> {
        let copies = self.copies.lock();
        let copy = copies.get(part).filter(|copy| copy.registration == *registration)?;
        (FileIdentity::at(&copy.root) == copy.identity).then_some(copy.fault)
    }

    /// Forgets copies whose root changed or whose path was registered anew. Returns these and the new failures.
    pub(crate) fn take_news(&self, mut is_registered_anew: impl FnMut(&HashPart, &Registration) -> bool) -> FailedNews {
        let mut news = FailedNews::default();
        // The closure queries the database, so it must not be called under the lock.
        let known: Vec<_> = {
            let copies = self.copies.lock();
            copies.iter().map(|(part, copy)| (*part, copy.registration, copy.root.clone(), copy.identity)).collect()
        };
        for (part, registration, root, identity) in known {
            let mended = FileIdentity::at(&root) != identity || is_registered_anew(&part, &registration);
            let mut copies = self.copies.lock();
            // A newer failure may have replaced the entry while the lock was released.
            let Some(copy) = copies.get_mut(&part).filter(|copy| copy.identity == identity) else { continue };
            let was_new = std::mem::replace(&mut copy.is_new, false);
            if mended {
                copies.remove(&part);
                if !was_new {
                    news.mended.push(part);
                }
            } else if was_new {
                news.failed.push(part);
            }
        }
        news
    }

    /// Sends to `waker` at each new failure from now on, and to no earlier one.
    pub(crate) fn set_waker(&self, waker: Waker) {
        *self.waker.lock() = Some(waker);
    }

    /// Wakes whoever watches the store.
    pub(crate) fn wake(&self) {
        self.waker.lock().iter().for_each(Waker::wake);
    }
}
