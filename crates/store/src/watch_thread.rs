//! The thread that looks for changes in a store: it can be woken, and it ends when its handle is dropped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

/// Makes the thread look now.
#[derive(Clone, Debug)]
pub(crate) struct Waker(SyncSender<()>);

impl Waker {
    pub(crate) fn wake(&self) {
        match self.0.try_send(()) {
            // Full: a look is due already. Disconnected: the thread has ended.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct WatchThread {
    waker: Waker,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WatchThread {
    /// Starts it with a waker of its own, what the wakers send, and whether it is to end.
    pub(crate) fn start(run: impl FnOnce(Waker, Receiver<()>, Arc<AtomicBool>) + Send + 'static) -> io::Result<Self> {
        let (sender, woken) = sync_channel(1);
        let (waker, is_stopping) = (Waker(sender), Arc::new(AtomicBool::new(false)));
        let (own, stops) = (waker.clone(), Arc::clone(&is_stopping));
        let thread = thread::Builder::new().name("store-watch".to_owned()).spawn(move || run(own, woken, stops))?;
        Ok(Self { waker, is_stopping, thread: Some(thread) })
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }
}

impl Drop for WatchThread {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Release);
        self.wake();
        let Some(thread) = self.thread.take() else { return };
        // A callback may drop the last watcher, on this very thread.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the store watcher panicked");
        }
    }
}
