//! Reports new, deleted, failed and mended paths.

use crate::{NixStore, StoreChange, StoreError};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Interval of checks when the kernel reports nothing (network file systems, inotify limits).
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Watches a store until it is dropped.
pub struct Watcher {
    store: Weak<NixStore>,
    subscription: u64,
    stopping: Arc<AtomicBool>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").field("subscription", &self.subscription).finish_non_exhaustive()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(store) = self.store.upgrade() {
            store.unsubscribe(self.subscription);
            store.failed.remove_waker(self.subscription);
        }
        wake(&self.wake);
        let Some(thread) = self.thread.take() else { return };
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the store watcher panicked");
        }
    }
}

impl NixStore {
    /// Calls `callback` with each change from now on, on a thread that the returned guard owns. Earlier changes that nobody
    /// has looked for yet are reported too. The callback must not block for long, and must not call [`Self::refresh`].
    pub fn watch(self: &Arc<Self>, callback: Box<dyn Fn(StoreChange) + Send + Sync>) -> Result<Watcher, StoreError> {
        let (wake, woken) = sync_channel(1);
        let stopping = Arc::new(AtomicBool::new(false));
        let subscription = self.subscribe(Arc::new(move |change| callback(change.clone())));
        self.failed.add_waker(subscription, wake.clone());
        let watching = Watching {
            store: Arc::downgrade(self),
            stopping: Arc::clone(&stopping),
            wake: wake.clone(),
            kernel: None,
            has_complained: false,
        };
        let thread = thread::Builder::new()
            .name("store-watch".to_owned())
            .spawn(move || watching.run(&woken))
            .map_err(|source| StoreError::Thread { source });
        let watcher = |thread| Watcher { store: Arc::downgrade(self), subscription, stopping, wake, thread };
        match thread {
            Ok(thread) => Ok(watcher(Some(thread))),
            Err(error) => {
                drop(watcher(None));
                Err(error)
            }
        }
    }
}

struct Watching {
    store: Weak<NixStore>,
    stopping: Arc<AtomicBool>,
    wake: SyncSender<()>,
    kernel: Option<RecommendedWatcher>,
    has_complained: bool,
}

impl Watching {
    fn run(mut self, woken: &Receiver<()>) {
        while !self.stopping.load(Ordering::Acquire) {
            let Some(store) = self.store.upgrade() else { return };
            self.ask_kernel(&store.location().database_dir());
            let wait = match store.refresh_now(false) {
                Ok(put_off) => {
                    self.has_complained = false;
                    put_off.unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL)
                }
                Err(error) => {
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
        let waker = self.wake.clone();
        let on_event = move |event: notify::Result<notify::Event>| {
            let is_change = event.is_ok_and(|event| is_change(&event));
            if is_change {
                wake(&waker);
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

fn wake(waker: &SyncSender<()>) {
    match waker.try_send(()) {
        // Full: a look is due already. Disconnected: the watcher has ended.
        Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
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
