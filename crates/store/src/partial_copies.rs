//! NARs that this machine is still receiving, kept so that peers get them while they come.
//!
//! What comes from an upstream cache nobody has signed leaf by leaf; it is given as it comes, and whoever gets it knows that it
//! must not blame us.
//!
//! Walk: whoever receives a NAR begins a [`PartialWriter`], gives it the bytes in their order, and says up to which byte
//! they are proven; [`PartialCopies::find`] gives peers what is proven. The bytes are in a file without a name in the state
//! directory, which a thread writes: nobody who receives waits for the disk. When it falls behind, the copy is given up. A
//! whole NAR is kept until our store has it, or for half a minute.
//!
//! Most of these files are gone before the system writes them to the disk. What they take is bounded for all together, and
//! none is begun on a disk that has not four times its size left. What is written is bounded as well, because a local user may
//! have the same NAR fetched again and again.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use narmesh_protocol::{HashPart, NarHash, NarInfo};
use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, fstatvfs, openat};

use crate::Offer;
use crate::write_budget::WriteBudget;

/// Pieces that wait to be written, of up to 256 KiB, or a MiB where leaves are larger: 8 MiB for most NARs.
const WAITING_MAX: usize = 32;
/// How long a whole copy is kept, if our store does not have it by then: Nix registers a path within seconds.
const KEPT: Duration = Duration::from_secs(30);
/// How often the thread looks for copies that are over.
const LOOK: Duration = Duration::from_secs(1);
/// A copy is begun if the disk has so many times its size left.
const FREE_FACTOR: u64 = 4;

/// The partial copies of this machine; cheap to clone.
#[derive(Clone, Debug)]
pub struct PartialCopies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    offer: Arc<Offer>,
    dir: PathBuf,
    bytes_max: AtomicU64,
    copies: Arc<Mutex<Copies>>,
    writes: SyncSender<Write>,
}

/// All copies, with the bytes that they may take together.
#[derive(Debug, Default)]
struct Copies {
    by_hash: HashMap<NarHash, Arc<PartialCopy>>,
    bytes: u64,
    budget: WriteBudget,
}

impl Copies {
    fn remove(&mut self, nar_hash: &NarHash) {
        if let Some(copy) = self.by_hash.remove(nar_hash) {
            self.bytes -= copy.info.nar_size;
        }
    }
}

/// Bytes of a copy, to be written.
#[derive(Debug)]
struct Write {
    copy: Arc<PartialCopy>,
    at: u64,
    bytes: Vec<u8>,
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// More is coming.
    Open,
    /// It is whole since then.
    Whole(Instant),
    /// It will never be whole.
    Failed,
}

/// What may be given of a copy that is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveAway {
    /// Only the bytes that a signed tree proves.
    Proven,
    /// Every byte that has come.
    AsItComes,
}

#[derive(Debug)]
struct Progress {
    written: u64,
    proven: u64,
    end: End,
    wakers: Vec<Waker>,
}

/// The copy of a NAR that is coming in.
#[derive(Debug)]
pub struct PartialCopy {
    info: NarInfo,
    file: File,
    progress: Mutex<Progress>,
}

impl PartialCopy {
    /// Ready when bytes behind the first `from` are there, with how many there are in all; `None` if no more will come.
    pub fn poll_beyond(&self, context: &mut Context<'_>, from: u64) -> Poll<Option<u64>> {
        let mut progress = self.progress.lock();
        let there = progress.written.min(progress.proven);
        if there > from {
            return Poll::Ready(Some(there));
        }
        if progress.end == End::Failed || there == self.info.nar_size {
            return Poll::Ready(None);
        }
        // Each poll would else add one more, and a slow copy is polled often.
        if !progress.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            progress.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Appends bytes from `from` on that are there, at most `bytes_max`. Blocks for a read from the disk at most.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, from: u64, buffer: &mut Vec<u8>, bytes_max: usize) -> io::Result<()> {
        let there = {
            let progress = self.progress.lock();
            progress.written.min(progress.proven)
        };
        let bytes = usize::try_from(there.saturating_sub(from)).unwrap_or(usize::MAX).min(bytes_max);
        let before = buffer.len();
        buffer.resize(before + bytes, 0);
        self.file.read_exact_at(buffer.get_mut(before..).unwrap_or_default(), from)
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        let wakers = {
            let mut progress = self.progress.lock();
            change(&mut progress);
            std::mem::take(&mut progress.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn fail(&self) {
        self.change(|progress| {
            if progress.end == End::Open {
                progress.end = End::Failed;
            }
        });
    }

    fn is_over(&self) -> bool {
        match self.progress.lock().end {
            End::Open => false,
            End::Whole(since) => since.elapsed() > KEPT,
            End::Failed => true,
        }
    }
}

/// Writes one partial copy. If it is dropped before [`Self::finish`], the copy has failed.
#[derive(Debug)]
pub struct PartialWriter {
    copy: Arc<PartialCopy>,
    shared: Arc<Shared>,
    at: u64,
}

impl PartialWriter {
    /// Takes the bytes that follow those before. They are written later, or never if the disk is too slow or too much was
    /// written lately.
    pub fn write(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u64;
        let write = Write { copy: Arc::clone(&self.copy), at: self.at, bytes: bytes.to_vec() };
        self.at += length;
        if !self.shared.spend(length) || self.shared.writes.try_send(write).is_err() {
            self.copy.fail();
        }
    }

    /// Says that the first `bytes` of the NAR are right.
    pub fn prove(&self, bytes: u64) {
        self.copy.change(|progress| progress.proven = progress.proven.max(bytes));
    }

    /// Whether peers can still get anything of it.
    pub fn is_alive(&self) -> bool {
        self.copy.progress.lock().end != End::Failed
    }

    /// Says that all bytes were given, and that they are right.
    pub fn finish(self) {
        let size = self.copy.info.nar_size;
        self.copy.change(|progress| {
            if progress.end == End::Open && self.at == size {
                (progress.proven, progress.end) = (size, End::Whole(Instant::now()));
            }
        });
    }
}

impl Drop for PartialWriter {
    fn drop(&mut self) {
        self.copy.fail();
    }
}

impl Shared {
    /// Whether so many bytes may still be written. If so, they count as written.
    fn spend(&self, bytes: u64) -> bool {
        let bytes_max = self.bytes_max.load(Ordering::Relaxed);
        self.copies.lock().budget.take(Instant::now(), bytes_max, bytes)
    }
}

impl PartialCopies {
    /// Copies in nameless files in `dir`, of `bytes_max` in all; 0 for none. What peers get of them, `offer` decides.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(offer: Arc<Offer>, dir: PathBuf, bytes_max: u64) -> io::Result<Self> {
        let copies = Arc::<Mutex<Copies>>::default();
        let (writes, to_write) = sync_channel(WAITING_MAX);
        let kept = Arc::clone(&copies);
        thread::Builder::new().name("partial-copies".to_owned()).spawn(move || write_all(&to_write, &kept))?;
        Ok(Self(Arc::new(Shared { offer, dir, bytes_max: AtomicU64::new(bytes_max), copies, writes })))
    }

    /// Applies another bound. Copies that are there stay.
    pub fn set_bytes_max(&self, bytes_max: u64) {
        self.0.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Begins the copy of a NAR that is coming in, if this machine would offer it, and if there is room for it. Reads the
    /// disk.
    pub fn begin(&self, info: &NarInfo, give_away: GiveAway) -> Option<PartialWriter> {
        // Nothing is passed on that would not be offered once it is in the store.
        if info.nar_size > self.0.bytes_max.load(Ordering::Relaxed) || !self.0.offer.would_offer(info) {
            return None;
        }
        let file = self.open_file(info.nar_size).inspect_err(|error| {
            tracing::debug!(dir = %self.0.dir.display(), %error, "a NAR cannot be passed on while it comes");
        });
        // Each leaf is passed on once it is proven. Neighbours take it as it comes, and verify the whole.
        let proven = if give_away == GiveAway::AsItComes { info.nar_size } else { 0 };
        let progress = Progress { written: 0, proven, end: End::Open, wakers: Vec::new() };
        let copy = PartialCopy { info: info.clone(), file: file.ok()?, progress: Mutex::new(progress) };
        let copy = Arc::new(copy);
        let bytes_max = self.0.bytes_max.load(Ordering::Relaxed);
        let mut copies = self.0.copies.lock();
        let bytes = copies.bytes + info.nar_size;
        // Looked at after the file was made, since that takes time in which another request may have begun.
        if copies.by_hash.contains_key(&info.nar_hash) || bytes > bytes_max {
            return None;
        }
        if copies.budget.left(Instant::now(), bytes_max) < info.nar_size {
            tracing::debug!(store_path = %info.path, "not passed on while it comes: too much was written lately");
            return None;
        }
        copies.bytes = bytes;
        copies.by_hash.insert(info.nar_hash, Arc::clone(&copy));
        Some(PartialWriter { copy, shared: Arc::clone(&self.0), at: 0 })
    }

    fn open_file(&self, bytes: u64) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(openat(CWD, &self.0.dir, flags, Mode::RUSR | Mode::WUSR)?);
        let disk = fstatvfs(&file)?;
        // To pass on must not fill a disk that is needed for other things.
        if disk.f_bavail.saturating_mul(disk.f_frsize) < bytes.saturating_mul(FREE_FACTOR) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(file)
    }

    /// Whether such a NAR is coming in, or has just come. From memory; whether a peer may have it, [`Self::find`] says.
    pub fn has(&self, nar_hash: &NarHash) -> bool {
        self.0.copies.lock().by_hash.get(nar_hash).is_some_and(|copy| !copy.is_over())
    }

    /// The copy of this NAR, if a peer may have it now. Reads the disk.
    pub fn find(&self, part: &HashPart, nar_hash: &NarHash, nar_size: u64) -> Option<Arc<PartialCopy>> {
        let copy = self.0.copies.lock().by_hash.get(nar_hash).map(Arc::clone)?;
        let is_it = copy.info.path.hash_part() == *part && copy.info.nar_size == nar_size;
        (is_it && !copy.is_over() && self.0.offer.would_offer(&copy.info)).then_some(copy)
    }
}

/// Writes until nobody is left who could give more to write.
fn write_all(to_write: &Receiver<Write>, copies: &Mutex<Copies>) {
    let mut looked = Instant::now();
    loop {
        match to_write.recv_timeout(LOOK) {
            // Bytes of a copy that is over may still wait in the queue.
            Ok(Write { copy, at, bytes }) if !copy.is_over() => match copy.file.write_all_at(&bytes, at) {
                Ok(()) => copy.change(|progress| progress.written = at + bytes.len() as u64),
                Err(error) => {
                    tracing::debug!(store_path = %copy.info.path, %error, "a partial copy cannot be written");
                    copy.fail();
                }
            },
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            let mut copies = copies.lock();
            let over: Vec<_> =
                copies.by_hash.iter().filter(|(_, copy)| copy.is_over()).map(|(hash, _)| *hash).collect();
            over.iter().for_each(|hash| copies.remove(hash));
        }
    }
}
