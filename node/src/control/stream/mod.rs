//! Answers that come part by part. After such a question the rest of the connection belongs to it.
//!
//! The daemon answers on a thread that may block, and only as fast as the reader reads. A reader that takes nothing for
//! [`IDLE_MAX`] is disconnected. Bounds: [`STREAMS_MAX`] such connections, of which [`AT_ONCE_MAX`] are answered at a
//! time; the others wait. Both count for root and the daemon's user, and once more for all other users together. A part is
//! one line: about one path, or a piece of an export.

use super::{ControlError, ControlHandler, ControlRequest, IDLE_MAX, REPLY_BYTES_MAX, connect};
use crate::attestations::{Part, Question};
use crate::describe::describe;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

/// Most connections with such a question of operators, and of all others. As many are left to operators for `status` and
/// other requests.
pub const STREAMS_MAX: usize = super::CONNECTIONS_MAX / 2;
/// Most questions of operators that are answered at a time, and of others; the rest wait for their turn.
pub const AT_ONCE_MAX: usize = 2;
/// Shortest time between two reports of progress.
const PROGRESS: Duration = Duration::from_millis(200);
/// How often an asker that waits for its turn is told so.
const STILL_WAITING: Duration = Duration::from_secs(1);

/// The asker of a question, with its connection.
#[derive(Debug)]
pub struct Asker {
    uid: u32,
    input: Input,
    output: Output,
}

/// Reads what the asker sends after its question.
pub type Input = BufReader<io::Chain<io::Cursor<Vec<u8>>, BlockingStream>>;

/// Sends the parts of the answer to the asker.
#[derive(Debug)]
pub struct Output {
    stream: BufWriter<BlockingStream>,
    progress_at: Option<Instant>,
}

impl Asker {
    /// The user id of the asker.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The input and the output, to be used at the same time.
    pub fn both(&mut self) -> (&mut Input, &mut Output) {
        (&mut self.input, &mut self.output)
    }
}

impl Output {
    /// Sends one part. Progress is sent at most once per `PROGRESS`, and flushes the parts sent before it. An error
    /// means that the asker is gone.
    pub fn tell(&mut self, part: &Part) -> io::Result<()> {
        let is_progress = matches!(part, Part::Progress(_));
        if is_progress && self.progress_at.is_some_and(|at| at.elapsed() < PROGRESS) {
            return Ok(());
        }
        serde_json::to_writer(&mut self.stream, part)?;
        self.stream.write_all(b"\n")?;
        if is_progress {
            self.progress_at = Some(Instant::now());
            self.stream.flush()?;
        }
        Ok(())
    }
}

/// Bounds how many questions are accepted and how many are answered at a time: those of root and of the daemon's user, and
/// apart from them those of all other users, so that nobody in the group makes root wait.
#[derive(Debug)]
pub(super) struct Turns {
    own_uid: u32,
    places_of_operators: Arc<Semaphore>,
    places_of_others: Arc<Semaphore>,
    /// The number of questions that are being answered, by user.
    working: Mutex<BTreeMap<u32, usize>>,
    free: Condvar,
}

/// The right to answer one question now; dropping it gives the turn to the next.
struct Turn {
    turns: Arc<Turns>,
    uid: u32,
}

impl Turns {
    /// `own_uid` is the user that the daemon runs as.
    pub(super) fn new(own_uid: u32) -> Arc<Self> {
        let places = || Arc::new(Semaphore::new(STREAMS_MAX));
        let (places_of_operators, places_of_others) = (places(), places());
        Arc::new(Self {
            own_uid,
            places_of_operators,
            places_of_others,
            working: Mutex::default(),
            free: Condvar::new(),
        })
    }

    fn is_operator(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid
    }

    fn places(&self, uid: u32) -> &Arc<Semaphore> {
        if self.is_operator(uid) { &self.places_of_operators } else { &self.places_of_others }
    }

    /// Whether a question of this user may be answered beside those under way; a user who is no operator has one at a
    /// time.
    fn may_begin(&self, working: &BTreeMap<u32, usize>, uid: u32) -> bool {
        let is_operator = self.is_operator(uid);
        let of_its_kind = working.iter().filter(|(other, _)| self.is_operator(**other) == is_operator);
        let has_turn = is_operator || !working.contains_key(&uid);
        has_turn && of_its_kind.map(|(_, count)| count).sum::<usize>() < AT_ONCE_MAX
    }

    /// Blocks until it is this asker's turn; fails if the asker goes away meanwhile.
    fn wait(self: &Arc<Self>, uid: u32, output: &mut Output) -> io::Result<Turn> {
        let mut working = self.working.lock();
        while !self.may_begin(&working, uid) {
            self.free.wait_for(&mut working, STILL_WAITING);
            if !self.may_begin(&working, uid) {
                // Writing to an asker that does not read must not hold up those whose turn it is.
                parking_lot::MutexGuard::unlocked(&mut working, || output.tell(&Part::Progress(0)))?;
            }
        }
        *working.entry(uid).or_default() += 1;
        Ok(Turn { turns: Arc::clone(self), uid })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut working = self.turns.working.lock();
        if let Entry::Occupied(mut count) = working.entry(self.uid) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        // All, because whoever is woken first may not be one whose turn it is.
        self.turns.free.notify_all();
    }
}

/// Shuts the connection down when the future that holds this is dropped, so that a daemon that stops waits for no
/// reader.
struct CutOff(BlockingStream);

impl Drop for CutOff {
    fn drop(&mut self) {
        // Fails if the other side has closed the connection already.
        drop(self.0.shutdown(Shutdown::Both));
    }
}

/// Answers one question on a connection; `rest` is what was already read after the question.
pub(super) async fn serve<H: ControlHandler>(
    stream: UnixStream,
    rest: Vec<u8>,
    question: Question,
    handler: Arc<H>,
    turns: Arc<Turns>,
) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    // Somebody who stops reading or writing must not hold a thread for ever.
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(IDLE_MAX))?;
    let _cut_off = CutOff(stream.try_clone()?);
    let input = BufReader::new(io::Cursor::new(rest).chain(stream.try_clone()?));
    let output = Output { stream: BufWriter::new(stream), progress_at: None };
    let mut asker = Asker { uid, input, output };
    // Taken before the thread is: beyond the bound nobody waits for one.
    let place = Arc::clone(turns.places(uid)).try_acquire_owned();
    let work = move || {
        let done = match place {
            Ok(_) => turns
                .wait(uid, &mut asker.output)
                .map_err(Into::into)
                .and_then(|_turn| handler.stream(&question, &mut asker)),
            Err(_) => Err(anyhow::anyhow!(
                "{STREAMS_MAX} reports, exports and imports are under way, which is the most at a time; ask again \
                 when one of them is done"
            )),
        };
        let last = match done {
            Ok(()) => Part::Done,
            Err(error) => Part::Refused { why: describe(&error) },
        };
        asker.output.tell(&last)?;
        asker.output.stream.flush()
    };
    tokio::task::spawn_blocking(work).await?
}

/// An answer of the daemon, read part by part.
#[derive(Debug)]
pub struct PartReader {
    lines: BufReader<BlockingStream>,
    path: PathBuf,
}

impl PartReader {
    /// Sends all of `input` to the daemon on a thread of its own, which returns the error if `input` cannot be read. If
    /// the daemon stops reading it, its answer says why.
    pub fn feed(&self, mut input: impl Read + Send + 'static) -> Result<JoinHandle<io::Result<()>>, ControlError> {
        let io_error = |source| ControlError::Io { path: self.path.clone(), source };
        let mut stream = self.lines.get_ref().try_clone().map_err(io_error)?;
        Ok(thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                // The daemon waits for the end of the file, also of one that cannot be read on.
                let bytes = input.read(&mut buffer).inspect_err(|_| drop(stream.shutdown(Shutdown::Write)))?;
                let read = buffer.get(..bytes).unwrap_or_default();
                if bytes == 0 || stream.write_all(read).is_err() {
                    drop(stream.shutdown(Shutdown::Write));
                    return Ok(());
                }
            }
        }))
    }

    /// The next part; blocks. After [`Part::Done`] and [`Part::Refused`] there is none.
    pub fn next_part(&mut self) -> Result<Part, ControlError> {
        let io_error = |source| ControlError::Io { path: self.path.clone(), source };
        let mut line = Vec::new();
        (&mut self.lines).take(REPLY_BYTES_MAX as u64).read_until(b'\n', &mut line).map_err(io_error)?;
        if line.is_empty() {
            return Err(io_error(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the daemon's answer ended before its last part",
            )));
        }
        serde_json::from_slice(&line).map_err(|source| ControlError::Reply { path: self.path.clone(), source })
    }
}

/// Asks the daemon a question whose answer comes part by part; waits at most `timeout` for each read.
pub fn ask_in_parts(path: &Path, question: Question, timeout: Duration) -> Result<PartReader, ControlError> {
    let stream = connect(path, &ControlRequest::Quorum(question), timeout)?;
    Ok(PartReader { lines: BufReader::new(stream), path: path.to_owned() })
}

#[cfg(test)]
mod tests;
