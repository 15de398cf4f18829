//! Writes remembered answers behind the requests: one thread, one transaction for all that came in a moment.
//!
//! A closure of thousands of paths is thousands of answers within seconds; a transaction and a task for each cost more than the
//! questions themselves.

use crate::state_db::{RememberedAnswer, SharedStateDb};
use narmesh_protocol::HashPart;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Changes that may wait; a further one is not written, which costs one more question after a restart.
const WAITING_MAX: usize = 4_096;
/// Changes of one transaction.
const BATCH_MAX: usize = 512;
/// The first change waits so long for others.
const GATHER: Duration = Duration::from_millis(20);

type Change = (HashPart, Option<RememberedAnswer>);

/// The thread and the way to it; dropping it writes what waits.
#[derive(Debug)]
pub(super) struct AnswerWriter {
    changes: Option<SyncSender<Change>>,
    thread: Option<JoinHandle<()>>,
}

impl AnswerWriter {
    pub(super) fn start(state: SharedStateDb) -> Self {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let thread =
            std::thread::Builder::new().name("narmesh-answers".to_owned()).spawn(move || write_all(&state, &receiver));
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

fn write_all(state: &SharedStateDb, changes: &Receiver<Change>) {
    while let Ok(first) = changes.recv() {
        std::thread::sleep(GATHER);
        let mut batch = vec![first];
        batch.extend(changes.try_iter().take(BATCH_MAX - 1));
        if let Err(error) = state.lock().update_answers(&batch) {
            tracing::warn!(%error, answers = batch.len(), "state database: answers could not be remembered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_db::StateDb;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[test]
    fn what_waits_is_written_before_the_end_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(Mutex::new(StateDb::open(dir.path()).unwrap().0));
        let answer = |at_unix_s| RememberedAnswer { narinfo: b"text".to_vec(), holders: Vec::new(), at_unix_s };
        let part = |number: u16| {
            let mut part = [0; 20];
            part[..2].copy_from_slice(&number.to_le_bytes());
            HashPart(part)
        };
        let parts: Vec<_> = (0..2_000).map(part).collect();
        let writer = AnswerWriter::start(Arc::clone(&state));
        for part in &parts {
            writer.write(*part, Some(answer(1)));
        }
        writer.write(parts[0], None);
        writer.write(parts[1], Some(answer(2)));
        drop(writer);
        let state = state.lock();
        assert_eq!(state.answer(&parts[0]).unwrap(), None);
        assert_eq!(state.answer(&parts[1]).unwrap(), Some(answer(2)));
        assert_eq!(state.answered().unwrap().len(), 1_999);
    }
}
