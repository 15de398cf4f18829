//! Askers that read slowly, are too many or go away, and a daemon that stops.

use super::*;
use crate::control::{ControlReply, ControlSocket, ask};
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle as Task;

/// Ten times what a machine that is busy with other tests needs.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Parts of an answer, of 1 KB each.
const PARTS: usize = 100_000;

/// Answers an import with the number of bytes sent, and any other question with [`PARTS`] parts.
#[derive(Default)]
struct Teller {
    begun: AtomicUsize,
    told: AtomicUsize,
    ended: AtomicUsize,
}

impl ControlHandler for Teller {
    async fn handle(&self, _: ControlRequest) -> ControlReply {
        ControlReply::Reloaded
    }

    fn stream(&self, question: &Question, asker: &mut Asker) -> anyhow::Result<()> {
        let (input, output) = asker.both();
        self.begun.fetch_add(1, Ordering::Relaxed);
        let done = match question {
            Question::Import => {
                let bytes = io::copy(input, &mut io::sink())?;
                output.tell(&Part::Text(format!("{bytes} bytes")))
            }
            Question::Report(_) | Question::Export { .. } | Question::Attest { .. } => (0..PARTS).try_for_each(|_| {
                self.told.fetch_add(1, Ordering::Relaxed);
                output.tell(&Part::Text("x".repeat(1_000)))
            }),
        };
        self.ended.fetch_add(1, Ordering::Relaxed);
        Ok(done?)
    }
}

struct Server {
    handler: Arc<Teller>,
    path: PathBuf,
    task: Task<()>,
    _runtime: Runtime,
    _dir: TempDir,
}

impl Server {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let handler = Arc::new(Teller::default());
        let _entered = runtime.enter();
        let socket = ControlSocket::bind(&path, None).unwrap();
        let task = runtime.spawn(socket.serve(Arc::clone(&handler)));
        Self { handler, path, task, _runtime: runtime, _dir: dir }
    }

    fn export(&self) -> PartReader {
        ask_in_parts(&self.path, Question::Export { path: None }, TIMEOUT).unwrap()
    }

    /// Asks something else, which must be answered whatever is under way.
    fn ask(&self) {
        assert_eq!(ask(&self.path, &ControlRequest::Reload, TIMEOUT).unwrap(), ControlReply::Reloaded);
    }

    fn wait(&self, what: &str, holds: impl Fn(&Teller) -> bool) {
        let started = Instant::now();
        while !holds(&self.handler) {
            assert!(started.elapsed() < TIMEOUT, "waited in vain for: {what}");
            self.ask();
        }
    }

    /// Waits until no more parts are sent, and returns how many were.
    fn wait_until_settled(&self) -> usize {
        let (mut told, mut same) = (0, 0);
        while same < 200 {
            self.ask();
            let now = self.handler.told.load(Ordering::Relaxed);
            same = if now == told { same + 1 } else { 0 };
            told = now;
        }
        told
    }
}

fn texts(answer: &mut PartReader) -> usize {
    let mut count = 0;
    loop {
        match answer.next_part().unwrap() {
            Part::Text(_) => count += 1,
            Part::Done => return count,
            other => assert!(matches!(other, Part::Progress(_)), "{other:?}"),
        }
    }
}

#[test]
fn client_that_does_not_read_is_sent_little_and_delays_nobody() {
    let server = Server::start();
    let mut answer = server.export();
    server.wait("the first parts", |handler| handler.told.load(Ordering::Relaxed) > 100);
    let told = server.wait_until_settled();
    assert!(told < PARTS / 10, "{told} KB were made for one who takes none");
    assert_eq!(texts(&mut answer), PARTS, "all of it comes, once it is read");
}

#[test]
fn few_are_worked_for_at_a_time_and_the_rest_of_the_socket_stays_free() {
    let server = Server::start();
    let mut answers: Vec<_> = (0..AT_ONCE_MAX).map(|_| server.export()).collect();
    server.wait("two at work", |handler| handler.begun.load(Ordering::Relaxed) == AT_ONCE_MAX);
    let mut waiting: Vec<_> = (AT_ONCE_MAX..STREAMS_MAX).map(|_| server.export()).collect();
    for answer in &mut waiting {
        assert_eq!(answer.next_part().unwrap(), Part::Progress(0), "told that it waits");
    }
    let refused = server.export().next_part().unwrap();
    assert!(matches!(&refused, Part::Refused { why } if why.contains("ask again")), "{refused:?}");
    assert_eq!(server.handler.begun.load(Ordering::Relaxed), AT_ONCE_MAX);
    // An asker that leaves makes room for one that waits.
    answers.pop();
    server.wait("the next at work", |handler| handler.begun.load(Ordering::Relaxed) == AT_ONCE_MAX + 1);
}

#[test]
fn questions_of_the_group_make_no_operator_wait_and_one_user_has_one_turn() {
    let turns = Turns::new(500);
    let begin = |uid| {
        let mut working = turns.working.lock();
        let may = turns.may_begin(&working, uid);
        if may {
            *working.entry(uid).or_default() += 1;
        }
        may
    };
    assert!(begin(1_000));
    assert!(!begin(1_000), "one turn for one user");
    assert!(begin(1_001));
    assert!(!begin(1_002), "no more than two of the group");
    assert_eq!([0, 500, 0].map(begin), [true, true, false]);
    drop(Turn { turns: Arc::clone(&turns), uid: 1_000 });
    assert!(begin(1_002));
}

#[test]
fn a_daemon_that_stops_waits_for_no_reader() {
    let server = Server::start();
    let mut answer = server.export();
    server.wait("the first parts", |handler| handler.told.load(Ordering::Relaxed) > 100);
    server.task.abort();
    let started = Instant::now();
    while server.handler.ended.load(Ordering::Relaxed) == 0 {
        assert!(started.elapsed() < IDLE_MAX / 2, "it is still telling");
        thread::yield_now();
    }
    // The reader does not take the beginning for the whole answer.
    let error = loop {
        match answer.next_part() {
            Ok(part) => assert!(matches!(part, Part::Text(_) | Part::Progress(_)), "{part:?}"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("control.sock"), "{error}");
}

#[test]
fn bytes_after_the_question_are_read_by_its_answer() {
    let server = Server::start();
    let mut answer = ask_in_parts(&server.path, Question::Import, TIMEOUT).unwrap();
    let fed = answer.feed(io::repeat(b'x').take(3 << 20)).unwrap();
    assert_eq!(answer.next_part().unwrap(), Part::Text("3145728 bytes".to_owned()));
    assert_eq!(answer.next_part().unwrap(), Part::Done);
    fed.join().unwrap().unwrap();
    // Bytes that came in one packet with the question are not lost.
    let mut stream = BlockingStream::connect(&server.path).unwrap();
    stream.write_all(b"{\"quorum\":\"import\"}\nfive!").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "{\"text\":\"5 bytes\"}\n\"done\"\n");
}
