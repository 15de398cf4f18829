//! One Nix store: its valid paths are in memory; everything else comes from the database and the file system.

use crate::contents::ListingMemory;
use crate::database::Stamp;
use crate::failed_copies::{FailedCopies, Registration};
use crate::known_copies::KnownCopies;
use crate::path_index::PathIndex;
use crate::read_at_once::read_at_once;
use crate::registry::Registry;
use crate::watch_thread::WatchThread;
use crate::{CopyFault, NarStream, PathInfo, StoreChange, StoreError, StoreGap, StoreLocation};
use narmesh_protocol::nar_tree::NarTree;
use narmesh_protocol::{HashPart, NarHash, Realisation, RealisationId, StoreDir, StorePath};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// After a scan over all rows, the next one waits nine times as long as the scan took, so that scans use
/// at most a tenth of one core …
const SCAN_REST_FACTOR: u32 = 9;
/// … but it never waits longer than this, so that a deletion is noticed within a second.
const SCAN_REST_MAX: Duration = Duration::from_millis(400);

/// A Nix store, opened read-only.
pub struct NixStore {
    location: StoreLocation,
    registry: Registry,
    index: RwLock<PathIndex>,
    refresh: Mutex<Refresh>,
    pub(crate) failed: Arc<FailedCopies>,
    known: Arc<KnownCopies>,
    subscribers: Mutex<Vec<(u64, Subscriber)>>,
    subscriber_ids: AtomicU64,
    /// The thread that all watchers share.
    pub(crate) watching: Mutex<Weak<WatchThread>>,
    gap: RwLock<Option<StoreGap>>,
    listing_memory: Arc<ListingMemory>,
}

type Subscriber = Arc<dyn Fn(&StoreChange) + Send + Sync>;

#[derive(Debug, Default)]
struct Refresh {
    /// The state that the last complete scan read.
    scanned: Option<Stamp>,
    rest_until: Option<Instant>,
}

impl fmt::Debug for NixStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NixStore").field("location", &self.location).finish_non_exhaustive()
    }
}

impl NixStore {
    /// Opens the store and reads the hash parts of all valid paths, about 2 us each. A store that Nix has
    /// not created yet reads as empty.
    pub fn open(location: StoreLocation) -> Result<Arc<Self>, StoreError> {
        let store = Self {
            registry: Registry::new(&location),
            location,
            index: RwLock::default(),
            refresh: Mutex::default(),
            failed: Arc::default(),
            known: Arc::default(),
            subscribers: Mutex::default(),
            subscriber_ids: AtomicU64::new(0),
            watching: Mutex::default(),
            gap: RwLock::default(),
            listing_memory: Arc::default(),
        };
        store.refresh_now(true)?;
        Ok(Arc::new(store))
    }

    /// The directories of this store.
    pub fn location(&self) -> &StoreLocation {
        &self.location
    }

    pub(crate) fn listing_memory(&self) -> &Arc<ListingMemory> {
        &self.listing_memory
    }

    /// What is missing at the store's location, if that is why it reads as empty. It is as of the last refresh, which
    /// happens each second while somebody watches.
    pub fn gap(&self) -> Option<StoreGap> {
        self.gap.read().clone()
    }

    /// Logs a new gap once, and logs once when the store is there again.
    fn note_gap(&self, gap: Option<StoreGap>) {
        let before = std::mem::replace(&mut *self.gap.write(), gap.clone());
        match (before, gap) {
            (before, Some(gap)) if before.as_ref() != Some(&gap) => {
                tracing::warn!(%gap, "the store is not there: nothing is found in it or offered; looking for it again each second");
            }
            (Some(gap), None) => tracing::info!(before = %gap, "the store is there now"),
            (_, Some(_)) | (None, None) => {}
        }
    }

    /// Number of valid paths.
    pub fn valid_paths(&self) -> usize {
        self.index.read().len()
    }

    /// Bytes of NARs hashed since the start. Copies known to be right are not hashed again. Only tests use it.
    pub fn hashed_bytes(&self) -> u64 {
        self.known.hashed_bytes()
    }

    /// The hash parts of all valid paths.
    pub fn hash_parts(&self) -> BTreeSet<HashPart> {
        self.index.read().hash_parts().collect()
    }

    /// Looks for changes now, even if nobody watches, and tells the watchers.
    pub fn refresh(&self) -> Result<(), StoreError> {
        self.refresh_now(true).map(|_| ())
    }

    /// Looks for changes. Unless `complete`, a scan over all rows may be postponed; then the
    /// time until the scan is returned.
    pub(crate) fn refresh_now(&self, complete: bool) -> Result<Option<Duration>, StoreError> {
        let mut refresh = self.refresh.lock();
        let mut change = StoreChange::default();
        let outcome = self.read_rows(&mut refresh, complete, &mut change);
        let (gap, outcome) = match outcome {
            // No error: a store that is not there yet reads as empty, and `status` shows why.
            Err(StoreError::NotNix { path, why }) => (Some(StoreGap::NotNix(path, why)), Ok(None)),
            outcome => (self.location.gap(), outcome),
        };
        self.note_gap(gap);
        let news = self.failed.take_news(|part, registration| self.is_registered_anew(part, registration));
        change.failed = news.failed;
        change.mended = news.mended;
        // Told under the lock of the refresh, so that subscribers hear of changes in their order.
        if !change.is_empty() {
            let subscribers: Vec<_> =
                self.subscribers.lock().iter().map(|(_, subscriber)| Arc::clone(subscriber)).collect();
            for subscriber in subscribers {
                subscriber(&change);
            }
        }
        outcome
    }

    fn read_rows(
        &self,
        refresh: &mut Refresh,
        complete: bool,
        change: &mut StoreChange,
    ) -> Result<Option<Duration>, StoreError> {
        let stamp = self.registry.read_stamp()?;
        if refresh.scanned == Some(stamp) {
            return Ok(None);
        }
        let started = Instant::now();
        let wait = refresh.rest_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(started));
        if !complete && wait > Duration::ZERO {
            // New rows are cheap to find; deleted and changed ones wait for the next scan. `id_max` is read in a statement
            // of its own: inside the call, the read guard would still be held when the pages are written to the index.
            let id_max = self.index.read().id_max();
            self.read_pages(id_max, change)?;
            return Ok(Some(wait));
        }
        self.index.write().begin_scan();
        // Starts below every id: the daemon's rows have id 0.
        self.read_pages(-1, change)?;
        self.index.write().end_scan(change);
        refresh.scanned = Some(stamp);
        refresh.rest_until = Some(Instant::now() + (started.elapsed() * SCAN_REST_FACTOR).min(SCAN_REST_MAX));
        Ok(None)
    }

    fn read_pages(&self, after_id: i64, change: &mut StoreChange) -> Result<(), StoreError> {
        let mut last_id = after_id;
        loop {
            let page = self.registry.read_rows_after(last_id)?;
            let Some(last) = page.last() else { return Ok(()) };
            last_id = last.id;
            self.index.write().take(&page, change);
        }
    }

    fn is_registered_anew(&self, part: &HashPart, registration: &Registration) -> bool {
        match self.registry.read_path_info(part) {
            Ok(Some((row, info))) => Registration::of(row, &info) != *registration,
            Ok(None) => true,
            Err(error) => {
                tracing::debug!(store_path = %part, %error, "cannot tell whether it was registered again");
                false
            }
        }
    }

    /// Calls `subscriber` after each change, on the thread that found the change. It must not refresh the store itself.
    pub(crate) fn subscribe(&self, subscriber: Subscriber) -> u64 {
        let id = self.subscriber_ids.fetch_add(1, Ordering::Relaxed);
        self.subscribers.lock().push((id, subscriber));
        id
    }

    pub(crate) fn unsubscribe(&self, id: u64) {
        self.subscribers.lock().retain(|(known, _)| *known != id);
    }

    /// All valid paths except derivations.
    pub(crate) fn outputs_and_sources(&self) -> Vec<HashPart> {
        self.index.read().outputs_and_sources().collect()
    }

    /// All valid derivations.
    pub(crate) fn derivations(&self) -> Vec<HashPart> {
        self.index.read().derivations().collect()
    }

    pub(crate) fn is_derivation(&self, part: &HashPart) -> bool {
        self.index.read().is_derivation(part)
    }

    pub(crate) fn read_stamp(&self) -> Result<Stamp, StoreError> {
        self.registry.read_stamp()
    }

    pub(crate) fn read_registration(&self, part: &HashPart) -> Result<Option<(i64, PathInfo)>, StoreError> {
        self.registry.read_path_info(part)
    }

    /// The valid derivations that have this path as an output.
    pub(crate) fn read_valid_derivers(&self, path: &StorePath) -> Result<Vec<StorePath>, StoreError> {
        self.registry.read_derivers(path)
    }

    /// The derivations that build a path: the valid ones that have it as an output, which follows from their own
    /// contents. The `Deriver` of the row counts only if this store built the path, because a substituted narinfo
    /// can name a false one. Blocks.
    pub fn read_derivers(&self, info: &PathInfo) -> Result<Vec<StorePath>, StoreError> {
        let mut derivers = self.read_valid_derivers(&info.path)?;
        derivers.extend(info.deriver.iter().filter(|_| info.ultimate).cloned());
        derivers.sort();
        derivers.dedup();
        Ok(derivers)
    }

    pub(crate) fn read_realisation_row(&self, id: &RealisationId) -> Result<Option<Realisation>, StoreError> {
        self.registry.read_realisation(id)
    }

    pub(crate) fn read_outputs(&self, derivation: &HashPart) -> Result<Vec<HashPart>, StoreError> {
        self.registry.read_outputs(derivation)
    }

    pub(crate) fn read_derived(&self, derivation: &StorePath) -> Result<Vec<HashPart>, StoreError> {
        self.registry.read_derived(derivation)
    }

    /// Whether our copy of this path failed, as far as is remembered; it may have been repaired since.
    pub(crate) fn has_failed_copy(&self, part: &HashPart) -> bool {
        self.failed.find(part).is_some()
    }

    pub(crate) fn find_fault(&self, row: i64, info: &PathInfo) -> Option<CopyFault> {
        self.failed.find_fault(&info.path.hash_part(), &Registration::of(row, info))
    }

    /// The logical store directory.
    pub fn store_dir(&self) -> &StoreDir {
        &self.location.store_dir
    }

    /// Whether a valid path has this hash part. It is answered from memory, without a system call.
    pub fn contains(&self, part: &HashPart) -> bool {
        self.index.read().contains(part)
    }

    /// The registration of the path with this hash part; `None` if no such path is valid. Blocks.
    pub fn read_path_info(&self, part: &HashPart) -> Result<Option<PathInfo>, StoreError> {
        Ok(self.registry.read_path_info(part)?.map(|(_, info)| info))
    }

    /// Starts to read the NAR of a valid path at `first_byte`, which must be below its NarSize. It is an error if
    /// the path is no longer registered as `info` says, or if its copy failed before. A range costs only the
    /// bytes it gives: it is not hashed.
    pub fn open_nar_at(&self, info: &PathInfo, first_byte: u64) -> Result<NarStream, StoreError> {
        let registered = self.registry.read_path_info(&info.path.hash_part())?;
        match registered {
            // The narinfo was made of `info`, so a path that was registered anew is not the one that was asked for.
            Some((row, now)) if now.path == info.path && now.nar_hash == info.nar_hash => {
                self.open_row(row, info, first_byte)
            }
            Some(_) | None => Err(StoreError::NotRegistered { path: info.path.clone() }),
        }
    }

    /// Starts to read the whole NAR. It is hashed unless the copy is already known to be right.
    pub fn open_nar(&self, info: &PathInfo) -> Result<NarStream, StoreError> {
        self.open_nar_at(info, 0)
    }

    /// [`Self::read_path_info`] and [`Self::open_nar_at`] with a single read of the row. `from` gets the registration
    /// and returns the first byte wanted, or `None` if the path is not wanted. The result is `None` then, and when
    /// the path is not valid. Blocks.
    pub fn find_nar(
        &self,
        part: &HashPart,
        from: impl FnOnce(&PathInfo) -> Option<u64>,
    ) -> Result<Option<NarStream>, StoreError> {
        let Some((row, info)) = self.registry.read_path_info(part)? else { return Ok(None) };
        from(&info).map(|first_byte| self.open_row(row, &info, first_byte)).transpose()
    }

    /// The whole NAR, if it is small (64 KiB, 64 files) and can be had without waiting for a disk or a lock: the row is in
    /// memory, the copy is known to be right, and its files are in memory. `None` says nothing about the path: ask
    /// [`Self::find_nar`]. Takes some microseconds for each file.
    pub fn read_nar_at_once(&self, part: &HashPart, is_wanted: impl FnOnce(&PathInfo) -> bool) -> Option<Vec<u8>> {
        let (row, info) = self.registry.recall_path_info(part).filter(|(_, info)| is_wanted(info))?;
        self.read_row_at_once(row, &info)
    }

    /// The same for a row that was just read.
    pub(crate) fn read_row_at_once(&self, row: i64, info: &PathInfo) -> Option<Vec<u8>> {
        let known = self.known.get(&info.path.hash_part(), &Registration::of(row, info));
        let layout = known.filter(|copy| copy.is_verified && self.find_fault(row, info).is_none())?.layout;
        read_at_once(layout, &self.location.real_dir, &info.path, info.nar_size)
    }

    /// The current state of the rows, if nobody has to be waited for.
    pub(crate) fn read_stamp_at_once(&self) -> Option<Stamp> {
        self.registry.read_stamp_at_once()
    }

    /// The tree of this NAR, if it is known.
    pub fn known_tree(&self, part: &HashPart, nar_hash: &NarHash) -> Option<Arc<NarTree>> {
        self.known.trees.get(part, nar_hash)
    }

    /// Opens the NAR of a row that was just read.
    pub(crate) fn open_row(&self, row: i64, info: &PathInfo, first_byte: u64) -> Result<NarStream, StoreError> {
        if first_byte > 0 && first_byte >= info.nar_size {
            return Err(StoreError::BeyondNar { path: info.path.clone(), offset: first_byte, nar_size: info.nar_size });
        }
        if let Some(fault) = self.find_fault(row, info) {
            return Err(StoreError::CopyFailed { path: info.path.clone(), fault });
        }
        NarStream::open(&self.location, info, row, (Arc::clone(&self.failed), Arc::clone(&self.known)), first_byte)
    }
}
