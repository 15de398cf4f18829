//! Writes remembered answers behind the requests: one thread, one transaction for all that came in a moment.
//!
//! A closure of thousands of paths is thousands of answers within seconds; a transaction and a task for each cost more than the
//! questions themselves.

use crate::answer_store::{AnswerChange, AnswerStore, RememberedAnswer};
use narmesh_protocol::HashPart;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Changes that may wait; a further one is not written, which costs one more question after a restart.
const WAITING_MAX: usize = 4_096;
/// Changes of one transaction.
const BATCH_MAX: usize = 512;
/// The first change waits so long for others.
const GATHER: Duration = Duration::from_millis(20);

/// The thread and the way to it; dropping it writes what waits.
#[derive(Debug)]
pub(super) struct AnswerWriter {
    changes: Option<SyncSender<AnswerChange>>,
    thread: Option<JoinHandle<()>>,
}

impl AnswerWriter {
    pub(super) fn start(store: Arc<dyn AnswerStore>) -> Self {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let thread =
            std::thread::Builder::new().name("narmesh-answers".to_owned()).spawn(move || write_all(&*store, &receiver));
        match thread {
            Ok(thread) => Self { changes: Some(sender), thread: Some(thread) },
            Err(error) => {
                tracing::error!(%error, "no thread to write answers with: they last as long as this daemon");
                Self { changes: None, thread: None }
            }
        }
    }

    /// Remembers (or, with `None`, forgets) an answer soon; never waits.
    pub(super) fn write(&self, part: HashPart, answer: Option<RememberedAnswer>) {
        if let Some(changes) = &self.changes
            && changes.try_send((part, answer)).is_err()
        {
            tracing::debug!(%part, "too many answers wait to be written: not this one");
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

fn write_all(store: &dyn AnswerStore, changes: &Receiver<AnswerChange>) {
    while let Ok(first) = changes.recv() {
        std::thread::sleep(GATHER);
        let mut batch = vec![first];
        batch.extend(changes.try_iter().take(BATCH_MAX - 1));
        if let Err(error) = store.update(&batch) {
            tracing::warn!(%error, answers = batch.len(), "answers could not be remembered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::collections::HashMap;

    #[derive(Default)]
    struct InMemory(Mutex<HashMap<HashPart, RememberedAnswer>>);

    impl AnswerStore for InMemory {
        fn answer(&self, part: &HashPart) -> Result<Option<RememberedAnswer>, String> {
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
    fn what_waits_is_written_before_the_end_and_in_order() {
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
        assert_eq!(store.answer(&parts[0]).unwrap(), None);
        assert_eq!(store.answer(&parts[1]).unwrap(), Some(answer(2)));
        assert_eq!(store.0.lock().len(), 1_999);
    }
}
