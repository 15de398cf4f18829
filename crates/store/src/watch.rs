//! Reports new, deleted, failed and mended paths.

use crate::watch_thread::{Waker, WatchThread};
use crate::{NixStore, StoreChange, StoreError};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Interval of checks when the kernel reports nothing (network file systems, inotify limits).
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Watches a store until it is dropped.
pub struct Watcher {
    store: Weak<NixStore>,
    subscription: u64,
    /// Kept for as long as somebody watches.
    _thread: Arc<WatchThread>,
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").field("subscription", &self.subscription).finish_non_exhaustive()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            store.unsubscribe(self.subscription);
        }
    }
}

impl NixStore {
    /// Calls `callback` with each change from now on, on a thread that all watchers share and that ends with the last of
    /// them. Earlier changes that nobody has looked for yet are reported too. The callback must not block for long, and
    /// must not call [`Self::refresh`].
    pub fn watch(self: &Arc<Self>, callback: Box<dyn Fn(StoreChange) + Send + Sync>) -> Result<Watcher, StoreError> {
        let mut watching = self.watching.lock();
        // Before the thread starts: its first look must not report to nobody.
        let subscription = self.subscribe(Arc::new(move |change| callback(change.clone())));
        let thread = match watching.upgrade() {
            Some(thread) => thread,
            None => Arc::new(self.start_watching().inspect_err(|_| self.unsubscribe(subscription))?),
        };
        *watching = Arc::downgrade(&thread);
        thread.wake();
        Ok(Watcher { store: Arc::downgrade(self), subscription, _thread: thread })
    }

    fn start_watching(self: &Arc<Self>) -> Result<WatchThread, StoreError> {
        let store = Arc::downgrade(self);
        let thread = WatchThread::start(move |waker, woken, is_stopping| {
            Watching { store, waker, kernel: None, has_complained: false }.run(&woken, &is_stopping);
        });
        let thread = thread.map_err(|source| StoreError::Thread { source })?;
        self.failed.set_waker(thread.waker());
        Ok(thread)
    }
}

struct Watching {
    store: Weak<NixStore>,
    waker: Waker,
    kernel: Option<RecommendedWatcher>,
    has_complained: bool,
}

impl Watching {
    fn run(mut self, woken: &Receiver<()>, is_stopping: &AtomicBool) {
        while !is_stopping.load(Ordering::Acquire) {
            // Held only while it is looked at: a watcher must not keep its store alive.
            let Some(store) = self.store.upgrade() else { return };
            self.ask_kernel(&store.location().database_dir());
            let wait = match store.refresh_now(false) {
                Ok(put_off) => {
                    self.has_complained = false;
                    put_off.unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL)
                }
                Err(error) => {
                    // Once for each time that it begins to fail: this is tried every second.
                    if !std::mem::replace(&mut self.has_complained, true) {
                        tracing::warn!(%error, "cannot see what changed in the store; trying again each second");
                    }
                    POLL_INTERVAL
                }
            };
            // Let the store be dropped while we wait.
            drop(store);
            match woken.recv_timeout(wait) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Asks the kernel to report changes in the database directory, once it exists. If that fails, only polling remains.
    fn ask_kernel(&mut self, directory: &Path) {
        if self.kernel.is_some() || !directory.is_dir() {
            return;
        }
        let waker = self.waker.clone();
        let on_event = move |event: notify::Result<notify::Event>| {
            let is_change = event.is_ok_and(|event| is_change(&event));
            if is_change {
                waker.wake();
            }
        };
        let watch = || -> notify::Result<RecommendedWatcher> {
            let mut watcher = notify::recommended_watcher(on_event)?;
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        };
        match watch() {
            Ok(watcher) => self.kernel = Some(watcher),
            Err(error) => tracing::debug!(%error, "the kernel does not report changes of the store; polling it"),
        }
    }
}

/// Whether the event shows that Nix wrote. The kernel also reports when we open and close the files.
fn is_change(event: &notify::Event) -> bool {
    let is_write = match event.kind {
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
        EventKind::Access(_) => false,
    };
    let is_database =
        |path: &Path| matches!(path.file_name().map(OsStr::as_encoded_bytes), Some(b"db.sqlite" | b"db.sqlite-wal"));
    is_write && event.paths.iter().any(|path| is_database(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreLocation;
    use narmesh_protocol::StoreDir;

    #[test]
    fn watchers_share_a_thread_that_ends_with_the_last_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        let (real_dir, state_dir) = (dir.path().join("store"), dir.path().join("var"));
        let store =
            NixStore::open(StoreLocation { store_dir, real_dir, log_dir: state_dir.clone(), state_dir }).unwrap();
        let watch = || store.watch(Box::new(drop)).unwrap();
        let (one, two) = (watch(), watch());
        assert!(Arc::ptr_eq(&one._thread, &two._thread));
        drop(one);
        assert!(store.watching.lock().upgrade().is_some());
        drop(two);
        assert!(store.watching.lock().upgrade().is_none());
    }
}
