//! Writes remembered answers in the background: one thread, with one transaction for all answers of a moment.
//!
//! A closure of thousands of paths brings thousands of answers within seconds; a transaction and a task for each would
//! cost more than the questions themselves.

use crate::answer_store::{AnswerChange, AnswerStore, RememberedAnswer};
use narmesh_protocol::HashPart;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The most changes that may wait; a further one is not written, which costs one more question after a restart.
const WAITING_MAX: usize = 4_096;
/// The most bytes of text that may wait: a disk that hangs must not fill memory with answers of 64 KiB.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// The most changes in one transaction.
const BATCH_MAX: usize = 512;
/// How long the first change waits for others.
const GATHER: Duration = Duration::from_millis(20);

/// The most bytes written in a burst: 27,000 answers of a kilobyte, more than the closure of a large system.
const BURST_BYTES: u64 = 256 << 20;
/// The most bytes written per second in the long run: 230 MB an hour. When a holder announces itself anew several times
/// a second, each of its answers is asked for and written as often as Nix, or a program posing as Nix, asks. What
/// exceeds this is not written.
const BYTES_PER_S: u64 = 64 << 10;
/// What an answer writes besides its text, bytes: a page of the table and one of its index, each into the log and into
/// the file; some are shared with other answers.
const ROW_BYTES: u64 = 8 << 10;

/// How much may still be written.
#[derive(Debug)]
struct Budget {
    bytes: u64,
    at: Instant,
}

impl Budget {
    fn full(now: Instant) -> Self {
        Self { bytes: BURST_BYTES, at: now }
    }

    /// Whether an answer with a text of `length` bytes may be written. If so, it counts as written.
    fn take(&mut self, now: Instant, length: usize) -> bool {
        // Whole seconds only, so that nothing is lost in rounding.
        let seconds = now.saturating_duration_since(self.at).as_secs();
        self.at += Duration::from_secs(seconds);
        self.bytes = self.bytes.saturating_add(seconds.saturating_mul(BYTES_PER_S)).min(BURST_BYTES);
        let cost = ROW_BYTES + length as u64;
        let rest = self.bytes.checked_sub(cost);
        self.bytes = rest.unwrap_or(self.bytes);
        rest.is_some()
    }
}

/// The thread that writes, and the queue to it. Dropping this writes all that waits.
#[derive(Debug)]
pub(super) struct AnswerWriter {
    budget: Mutex<Budget>,
    waiting_bytes: Arc<AtomicUsize>,
    changes: Option<SyncSender<AnswerChange>>,
    thread: Option<JoinHandle<()>>,
}

impl AnswerWriter {
    pub(super) fn start(store: Arc<dyn AnswerStore>) -> Self {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let waiting = Arc::clone(&waiting_bytes);
        let thread = std::thread::Builder::new()
            .name("answers".to_owned())
            .spawn(move || write_all(&*store, &receiver, &waiting));
        let budget = Mutex::new(Budget::full(Instant::now()));
        match thread {
            Ok(thread) => Self { budget, waiting_bytes, changes: Some(sender), thread: Some(thread) },
            Err(error) => {
                tracing::error!(%error, "no thread for writing answers: they are forgotten when this daemon ends");
                Self { budget, waiting_bytes, changes: None, thread: None }
            }
        }
    }

    /// Remembers (or, with `None`, forgets) an answer soon; never waits.
    pub(super) fn write(&self, part: HashPart, answer: Option<RememberedAnswer>) {
        // To forget an answer needs no budget: it is not forgotten more often than it was remembered.
        if let Some(answer) = &answer
            && !self.budget.lock().take(Instant::now(), answer.narinfo.len())
        {
            tracing::debug!(%part, "answer not written: too many were written lately");
            return;
        }
        let Some(changes) = &self.changes else { return };
        let bytes = text_bytes(&answer);
        // Counted before it is sent: the thread that writes may take it, and count it down, at once.
        let has_room = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= WAITING_BYTES_MAX;
        if !has_room || changes.try_send((part, answer)).is_err() {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            tracing::debug!(%part, "answer not written: too many wait");
        }
    }
}

impl Drop for AnswerWriter {
    fn drop(&mut self) {
        self.changes = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes answers panicked");
        }
    }
}

fn text_bytes(answer: &Option<RememberedAnswer>) -> usize {
    answer.as_ref().map_or(0, |answer| answer.narinfo.len())
}

fn write_all(store: &dyn AnswerStore, changes: &Receiver<AnswerChange>, waiting_bytes: &AtomicUsize) {
    while let Ok(first) = changes.recv() {
        // A transaction for each change would cost more than the questions: what comes within a moment is one
        // transaction.
        std::thread::sleep(GATHER);
        let mut batch = vec![first];
        batch.extend(changes.try_iter().take(BATCH_MAX - 1));
        if let Err(error) = store.update(&batch) {
            tracing::warn!(%error, answers = batch.len(), "answers could not be remembered");
        }
        let written = batch.iter().map(|(_, answer)| text_bytes(answer)).sum();
        waiting_bytes.fetch_sub(written, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct InMemory(Mutex<HashMap<HashPart, RememberedAnswer>>);

    impl AnswerStore for InMemory {
        fn read_answer(&self, part: &HashPart) -> Result<Option<RememberedAnswer>, String> {
            Ok(self.0.lock().get(part).cloned())
        }

        fn update(&self, changes: &[AnswerChange]) -> Result<(), String> {
            let mut answers = self.0.lock();
            for (part, answer) in changes.iter().cloned() {
                match answer {
                    Some(answer) => drop(answers.insert(part, answer)),
                    None => drop(answers.remove(&part)),
                }
            }
            Ok(())
        }
    }

    #[test]
    fn answers_of_a_large_closure_are_all_written_and_an_endless_stream_is_not() {
        let now = Instant::now();
        let mut budget = Budget::full(now);
        assert!((0..27_000).all(|_| budget.take(now, 1_000)));
        let mut written = 0;
        for second in 0..3_600 {
            written += (0..1_000).filter(|_| budget.take(now + Duration::from_secs(second), 64 << 10)).count();
        }
        assert!((3_000..=3_600).contains(&written), "{written} of 64 KiB in an hour");
        let later = now + Duration::from_secs(86_400);
        assert!((0..27_000).all(|_| budget.take(later, 1_000)), "after a day's rest the budget is full again");
    }

    /// A disk that writes nothing while its lock is held.
    struct Hanging(Mutex<InMemory>);

    impl AnswerStore for Hanging {
        fn read_answer(&self, part: &HashPart) -> Result<Option<RememberedAnswer>, String> {
            self.0.lock().read_answer(part)
        }

        fn update(&self, changes: &[AnswerChange]) -> Result<(), String> {
            self.0.lock().update(changes)
        }
    }

    #[test]
    fn what_waits_for_a_disk_that_hangs_is_bounded_in_bytes() {
        let store = Arc::new(Hanging(Mutex::default()));
        let hanging = store.0.lock();
        let writer = AnswerWriter::start(Arc::<Hanging>::clone(&store));
        for number in 0..1_000_u16 {
            let mut part = [0; 20];
            part[..2].copy_from_slice(&number.to_le_bytes());
            let answer = RememberedAnswer { narinfo: vec![0; 64 << 10], holders: Vec::new(), at_unix_s: 1 };
            writer.write(HashPart(part), Some(answer));
        }
        assert_eq!(writer.waiting_bytes.load(Ordering::Relaxed), WAITING_BYTES_MAX);
        drop(hanging);
        let waiting = Arc::clone(&writer.waiting_bytes);
        drop(writer);
        assert_eq!(waiting.load(Ordering::Relaxed), 0);
        assert_eq!(store.0.lock().0.lock().len(), 256);
    }

    #[test]
    fn dropped_writer_has_written_all_waiting_changes_in_order() {
        let store = Arc::new(InMemory::default());
        let answer = |at_unix_s| RememberedAnswer { narinfo: b"text".to_vec(), holders: Vec::new(), at_unix_s };
        let part = |number: u16| {
            let mut part = [0; 20];
            part[..2].copy_from_slice(&number.to_le_bytes());
            HashPart(part)
        };
        let parts: Vec<_> = (0..2_000).map(part).collect();
        let writer = AnswerWriter::start(Arc::<InMemory>::clone(&store));
        for part in &parts {
            writer.write(*part, Some(answer(1)));
        }
        writer.write(parts[0], None);
        writer.write(parts[1], Some(answer(2)));
        drop(writer);
        assert_eq!(store.read_answer(&parts[0]).unwrap(), None);
        assert_eq!(store.read_answer(&parts[1]).unwrap(), Some(answer(2)));
        assert_eq!(store.0.lock().len(), 1_999);
    }
}
