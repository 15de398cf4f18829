//! Plays any sequence of sources, answers, rates, failures and offsets in virtual time: the client gets the exact NAR
//! or a short body, never anything else, and a NAR is gone only if nobody could send it.

mod mixed;
mod referrals;
mod several;
mod trees;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use narmesh_protocol::nar::NarVerifier;
use narmesh_protocol::nar_tree::{LeafHasher, NarTree};
use narmesh_protocol::wire::{NarInfoReply, NarRequest, Referral, TreeRequest};
use narmesh_protocol::{HashPart, NarHash, NarUrl};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::delivery::{Delivery, Ended};
use super::shortage::Shortage;
use super::transfer::{Transfer, TransferSettings};
use super::waiting_client::{CHUNKS_AHEAD, NAR_PREFIX, WaitingClient};
use super::{Buffers, Checkpoints, Compress, HoldLimits, NarContext, NarFaults};
use crate::ResolverCounters;
use crate::lookup_log::LookupLog;
use crate::source::{
    Candidate, Candidates, Line, NarFeed, NoAnswer, Observation, Piece, SourceId, Sources, TreeAnswer,
};

const STALL: Duration = Duration::from_secs(5);
const BUFFER_BYTES: u64 = 1 << 20;
const LIMITS: HoldLimits = HoldLimits { tiny: 256, small: 2_048, saved: 8_192, streamed: 1_024 };

/// What a source does with a request.
#[derive(Clone, Debug)]
enum Act {
    /// Sends the NAR in chunks of `chunk` bytes, with a pause before each; the byte at `flips` is wrong.
    Send { chunk: usize, pause: Duration, flips: Option<u64> },
    /// The same, but breaks off after this many bytes of the request.
    Break { chunk: usize, pause: Duration, after: u64, flips: Option<u64>, how: Break },
    /// Never says anything.
    Silent,
    /// Names these sources, by their numbers, to who takes names, and else sends the NAR in such chunks.
    Name { named: Vec<usize>, chunk: usize, pause: Duration },
    /// Does not have it.
    Absent,
    /// Cannot be reached.
    Refuse,
}

#[derive(Clone, Copy, Debug)]
enum Break {
    Closed,
    Malformed,
    Failed,
    SaysComplete,
}

/// One source: the queue in which a request waits first, and what it does with the first, second … request; the last
/// act is repeated.
#[derive(Clone, Debug)]
struct Script {
    /// What it says of its tree, and after how long.
    tree: Option<TreeAnswer>,
    tree_after: Duration,
    /// Whether it is not known before somebody names it.
    is_hidden: bool,
    /// Whether its requests share a line, so that a pause of one is a pause of all.
    is_line: bool,
    opens_after: Duration,
    queue: Vec<(Duration, u32)>,
    /// Whether what it waits for in the queue is memory of ours.
    without_memory: bool,
    acts: Vec<Act>,
}

impl Script {
    fn honest(pause_ms: u64, chunk: usize) -> Self {
        let act = Act::Send { chunk, pause: Duration::from_millis(pause_ms), flips: None };
        Self {
            tree: None,
            is_hidden: false,
            is_line: false,
            tree_after: Duration::from_millis(5),
            opens_after: Duration::from_millis(5),
            queue: Vec::new(),
            without_memory: false,
            acts: vec![act],
        }
    }

    fn acting(acts: Vec<Act>) -> Self {
        Self { acts, ..Self::honest(1, 64) }
    }

    /// Whether it sends the whole NAR whenever it is asked, and never pauses longer than a live source may.
    fn is_reliable(&self) -> bool {
        let acts = self.acts.iter();
        let sends = |act: &Act| match act {
            Act::Send { flips: None, pause, .. } | Act::Name { pause, .. } => *pause < STALL / 2,
            Act::Send { .. } | Act::Break { .. } | Act::Silent | Act::Absent | Act::Refuse => false,
        };
        acts.clone().all(sends)
            && self.queue.iter().all(|(pause, _)| *pause < STALL / 2)
            && self.opens_after < STALL / 2
    }

    fn lies(&self) -> bool {
        let flips = |act: &Act| match act {
            Act::Send { flips, .. } | Act::Break { flips, .. } => flips.is_some(),
            Act::Name { .. } | Act::Silent | Act::Absent | Act::Refuse => false,
        };
        self.acts.iter().any(flips)
    }
}

#[derive(Default)]
struct World {
    order: Vec<SourceId>,
    /// Those of them that are known from the beginning.
    known: Vec<SourceId>,
    scripts: HashMap<SourceId, Script>,
    nar: Arc<Vec<u8>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    lines: HashMap<SourceId, Line>,
    requests: HashMap<SourceId, Vec<u64>>,
    observed: Vec<(SourceId, Observation)>,
    sent_bytes: HashMap<SourceId, u64>,
    /// When the line of a source is free again.
    free: HashMap<SourceId, Instant>,
}

impl Sources for World {
    fn candidates(&self, _: &HashPart) -> Candidates {
        let ranked = self.known.iter().map(|source| Candidate { source: *source, summary_epoch: 1 }).collect();
        Candidates { ranked, ..Candidates::default() }
    }

    fn is_claimed(&self, _: &HashPart) -> bool {
        true
    }

    fn summary_epoch(&self, _: &SourceId) -> Option<u64> {
        Some(1)
    }

    fn ask(&self, _: SourceId, _: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>> {
        Box::pin(std::future::ready(Err(NoAnswer::Busy)))
    }

    fn prepare(&self, _: SourceId) {}

    fn request(&self, source: SourceId, request: NarRequest) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>> {
        let script = self.scripts[&source].clone();
        let (state, nar) = (Arc::clone(&self.state), Arc::clone(&self.nar));
        let number = {
            let mut state = state.lock();
            let requests = state.requests.entry(source).or_default();
            requests.push(request.offset);
            requests.len() - 1
        };
        let act = script.acts.get(number).or(script.acts.last()).unwrap().clone();
        let (act, names) = match act {
            Act::Name { named, chunk, pause } if request.referral == Referral::Declined => {
                drop(named);
                (Act::Send { chunk, pause, flips: None }, Vec::new())
            }
            Act::Name { ref named, .. } => {
                let names = named.iter().map(|number| self.order[*number]).collect();
                (act, names)
            }
            act => (act, Vec::new()),
        };
        Box::pin(async move {
            tokio::time::sleep(script.opens_after).await;
            if matches!(act, Act::Refuse) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            state.lock().lines.entry(source).or_default().in_flight += 1;
            let (is_line, without_memory) = (script.is_line, script.without_memory);
            let queue = script.queue.into_iter().rev().collect();
            let feed = Feed {
                source,
                is_line,
                without_memory,
                act,
                names,
                queue,
                nar,
                state,
                at: request.offset,
                end: request.end,
                sent: 0,
                due: None,
            };
            Ok(Box::new(feed) as Box<dyn NarFeed>)
        })
    }

    fn ask_tree(&self, source: SourceId, _: TreeRequest) -> BoxFuture<'static, Option<TreeAnswer>> {
        let script = &self.scripts[&source];
        let (answers, after) = (script.tree.clone(), script.tree_after);
        Box::pin(async move {
            tokio::time::sleep(after).await;
            answers
        })
    }

    fn line(&self, source: &SourceId) -> Line {
        self.state.lock().lines.get(source).copied().unwrap_or_default()
    }

    fn observe(&self, source: SourceId, observation: Observation) {
        self.state.lock().observed.push((source, observation));
    }
}

struct Feed {
    source: SourceId,
    is_line: bool,
    without_memory: bool,
    act: Act,
    names: Vec<SourceId>,
    queue: Vec<(Duration, u32)>,
    nar: Arc<Vec<u8>>,
    state: Arc<Mutex<State>>,
    at: u64,
    end: u64,
    sent: u64,
    due: Option<Instant>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.state.lock().lines.entry(self.source).or_default().in_flight -= 1;
    }
}

impl Feed {
    fn note_received(&self, bytes: u64) {
        let mut state = self.state.lock();
        let line = state.lines.entry(self.source).or_default();
        line.received_bytes += bytes;
        line.last_received = Some(Instant::now());
        *state.sent_bytes.entry(self.source).or_default() += bytes;
    }

    async fn wait(&mut self, pause: Duration) {
        if self.due.is_none() {
            let mut due = Instant::now() + pause;
            if self.is_line {
                let mut state = self.state.lock();
                let free = state.free.entry(self.source).or_insert_with(Instant::now);
                due = (*free).max(Instant::now()) + pause;
                *free = due;
            }
            self.due = Some(due);
        }
        let due = self.due.unwrap();
        tokio::time::sleep_until(due).await;
        self.due = None;
    }

    async fn say(&mut self, out: &mut Vec<u8>, bytes_max: u64) -> io::Result<Piece> {
        if let Some((pause, place)) = self.queue.last().copied() {
            self.wait(pause).await;
            self.queue.pop();
            if self.without_memory {
                return Ok(Piece::NoMemory);
            }
            self.note_received(12);
            return Ok(Piece::NotNow { place });
        }
        let (chunk, pause, until, flips, how) = match self.act.clone() {
            Act::Silent => return std::future::pending().await,
            Act::Absent | Act::Refuse => return Ok(Piece::Absent),
            Act::Name { .. } => return Ok(Piece::Others(std::mem::take(&mut self.names))),
            Act::Send { chunk, pause, flips } => (chunk, pause, u64::MAX, flips, Break::Closed),
            Act::Break { chunk, pause, after, flips, how } => (chunk, pause, after, flips, how),
        };
        self.wait(pause).await;
        if self.sent >= until {
            return match how {
                Break::Closed => Err(io::ErrorKind::ConnectionReset.into()),
                Break::Malformed => Err(io::ErrorKind::InvalidData.into()),
                Break::Failed => Ok(Piece::Failed),
                Break::SaysComplete => Ok(Piece::Complete),
            };
        }
        let from = usize::try_from(self.at).unwrap();
        let most = chunk.min(usize::try_from(until - self.sent).unwrap_or(usize::MAX));
        let end = usize::try_from(self.end).unwrap();
        let mut bytes = self.nar[from..end.min(from + most)].to_vec();
        if bytes.is_empty() {
            return Ok(Piece::Complete);
        }
        assert!(bytes.len() as u64 <= bytes_max, "never asked for more than is left");
        if let Some(at) = flips.and_then(|flip| flip.checked_sub(self.at)).and_then(|at| usize::try_from(at).ok())
            && let Some(byte) = bytes.get_mut(at)
        {
            *byte ^= 1;
        }
        self.at += bytes.len() as u64;
        self.sent += bytes.len() as u64;
        self.note_received(bytes.len() as u64);
        out.extend_from_slice(&bytes);
        Ok(Piece::Data)
    }
}

impl NarFeed for Feed {
    fn next<'a>(&'a mut self, out: &'a mut Vec<u8>, bytes_max: u64) -> BoxFuture<'a, io::Result<Piece>> {
        Box::pin(self.say(out, bytes_max))
    }

    fn wire_bytes(&self) -> u64 {
        self.sent
    }
}

/// A NAR of one file with `contents` bytes in it.
fn nar_of(contents: usize, seed: u8) -> Vec<u8> {
    let mut nar = NAR_PREFIX.to_vec();
    let token = |nar: &mut Vec<u8>, bytes: &[u8]| {
        nar.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        nar.extend_from_slice(bytes);
        nar.resize(nar.len().next_multiple_of(8), 0);
    };
    token(&mut nar, b"regular");
    token(&mut nar, b"contents");
    token(&mut nar, &(0..contents).map(|at| seed ^ u8::try_from(at % 251).unwrap()).collect::<Vec<_>>());
    token(&mut nar, b")");
    nar
}

/// The tree that a holder signs for this NAR.
fn tree_of(nar: &[u8]) -> NarTree {
    let mut hasher = LeafHasher::new(nar.len() as u64, 0).unwrap();
    hasher.update(nar);
    hasher.finish().unwrap()
}

struct Outcome {
    ended: Ended,
    body: Vec<u8>,
    aborted: bool,
    elapsed: Duration,
    observed: Vec<(SourceId, Observation)>,
    requests: HashMap<SourceId, Vec<u64>>,
    sent_bytes: HashMap<SourceId, u64>,
    suspects: HashSet<SourceId>,
}

/// Other bodies, which hold all memory but `free_bytes`.
#[derive(Clone, Copy)]
struct Others {
    free_bytes: u64,
    lasting: Duration,
    /// Whether something comes in meanwhile from a source that could send the NAR.
    moving: bool,
}

/// Delivers a NAR from these sources, which are asked in this order.
async fn deliver(nar: &[u8], scripts: Vec<Script>, first_byte: u64) -> (Vec<SourceId>, Outcome) {
    deliver_after(nar, nar, scripts, first_byte, None).await
}

/// The same from the first byte on, beside `others`.
async fn deliver_beside(others: Others, nar: &[u8], scripts: Vec<Script>) -> (Vec<SourceId>, Outcome) {
    deliver_after(nar, nar, scripts, 0, Some(others)).await
}

/// The same, but `beginning` of a resumed NAR came from a source that is not asked again.
async fn deliver_after(
    beginning: &[u8],
    nar: &[u8],
    scripts: Vec<Script>,
    first_byte: u64,
    others: Option<Others>,
) -> (Vec<SourceId>, Outcome) {
    let order: Vec<_> = scripts.iter().map(|_| SourceId::random()).collect();
    let outcome = deliver_from(&order, (beginning, nar), scripts, first_byte, others, |_| {}).await;
    (order, outcome)
}

/// The same from sources with these names; `prepare` sees the transfer before it begins.
async fn deliver_from(
    order: &[SourceId],
    (beginning, nar): (&[u8], &[u8]),
    scripts: Vec<Script>,
    first_byte: u64,
    others: Option<Others>,
    prepare: impl FnOnce(&mut Transfer),
) -> Outcome {
    let visible = order.iter().zip(&scripts).filter(|(_, script)| !script.is_hidden);
    let known: Vec<_> = visible.map(|(source, _)| *source).collect();
    let scripts = order.iter().copied().zip(scripts).collect();
    let nar = Arc::new(nar.to_vec());
    let state = Arc::<Mutex<State>>::default();
    let (nar_of_world, state_of_world) = (Arc::clone(&nar), Arc::clone(&state));
    let world =
        World { order: order.to_vec(), known: known.clone(), scripts, nar: nar_of_world, state: state_of_world };
    let context = Arc::new(NarContext {
        sources: Arc::new(world),
        lookup_log: Arc::<LookupLog>::default(),
        counters: ResolverCounters::default(),
        nar_faults: NarFaults::default(),
        checkpoints: Checkpoints::default(),
        // What is read from several sources at once needs memory for what comes before its turn.
        buffers: Buffers::new(if nar.len() > 8 << 20 { 64 << 20 } else { BUFFER_BYTES }),
        tiny_buffers: Buffers::new(1 << 10),
        own_buffers: Buffers::new(1 << 20),
        shortage: Shortage::default(),
        limits: LIMITS,
    });
    let url = NarUrl::new(HashPart([1; 20]), NarHash(Sha256::digest(&*nar).into()), nar.len() as u64);
    let settings = TransferSettings { stall_timeout: STALL, compress: Compress::Never };
    let mut transfer = if first_byte == 0 || nar.len() as u64 <= LIMITS.small {
        Transfer::new(Arc::clone(&context), settings, url, known)
    } else {
        let mut verifier = NarVerifier::new();
        let offset = first_byte / 2;
        verifier.feed(&beginning[..usize::try_from(offset).unwrap()]).unwrap();
        let (sources, verified) = (known, Some((verifier, vec![SourceId::random()])));
        Transfer::resume(Arc::clone(&context), settings, url, sources, offset, verified)
    };
    prepare(&mut transfer);
    if let Some(others) = others {
        let held = context.buffers.try_take(BUFFER_BYTES - others.free_bytes).unwrap();
        let (state, source) = (Arc::clone(&state), order[0]);
        tokio::spawn(async move {
            let until = Instant::now() + others.lasting;
            while Instant::now() < until {
                if others.moving {
                    state.lock().lines.entry(source).or_default().last_received = Some(Instant::now());
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            drop(held);
        });
    }
    let (client, mut body) = mpsc::channel(CHUNKS_AHEAD);
    let since = Instant::now();
    let client = WaitingClient::new(client, first_byte);
    let delivery = Delivery { context: Arc::clone(&context), url, transfer, client, find_user: Arc::new(|| None) };
    let read = async {
        let (mut got, mut aborted) = (Vec::new(), false);
        while let Some(chunk) = body.recv().await {
            match chunk {
                Ok(bytes) => got.extend_from_slice(&bytes),
                Err(_) => aborted = true,
            }
        }
        (got, aborted)
    };
    let (ended, (body, aborted)) = tokio::join!(delivery.run(), read);
    let elapsed = since.elapsed();
    let state = state.lock();
    let (observed, requests, sent_bytes) = (state.observed.clone(), state.requests.clone(), state.sent_bytes.clone());
    let suspects = context.nar_faults.suspects();
    Outcome { ended, body, aborted, elapsed, observed, requests, sent_bytes, suspects }
}

/// Asserts that the client got just this NAR.
fn assert_exact(outcome: &Outcome, nar: &[u8]) {
    assert_eq!((outcome.ended, outcome.aborted), (Ended::Complete, false));
    assert!(outcome.body == nar);
}

fn is_blamed(outcome: &Outcome, source: SourceId) -> bool {
    outcome.observed.contains(&(source, Observation::FalseNar))
}

fn has_timed_out(outcome: &Outcome, source: SourceId) -> bool {
    let waited = [Observation::TimedOut, Observation::Unfinished];
    waited.into_iter().any(|observation| outcome.observed.contains(&(source, observation)))
}

fn flipped(chunk: usize, after: Option<u64>, at: u64) -> Script {
    let (pause, flips) = (Duration::from_millis(1), Some(at));
    Script::acting(vec![match after {
        None => Act::Send { chunk, pause, flips },
        Some(after) => Act::Break { chunk, pause, after, flips, how: Break::Closed },
    }])
}

#[tokio::test(start_paused = true)]
async fn source_that_waits_for_memory_of_ours_is_neither_left_nor_blamed() {
    let queue = (0..90).map(|_| (Duration::from_secs(1), 0)).collect();
    let script = Script { queue, without_memory: true, ..Script::honest(1, 64) };
    let nar = nar_of(4_000, 1);
    let (sources, outcome) = deliver(&nar, vec![script], 0).await;
    assert!(outcome.body == nar && !outcome.aborted, "{:?} after {:?}", outcome.ended, outcome.elapsed);
    assert_eq!(outcome.requests[&sources[0]].len(), 1, "asked once");
    assert!(!has_timed_out(&outcome, sources[0]));
}

#[tokio::test(start_paused = true)]
async fn dripping_source_is_left_for_a_quick_one() {
    for size in [1_500, 6_000, 60_000] {
        let nar = nar_of(size, 1);
        let (order, outcome) = deliver(&nar, vec![Script::honest(400, 1), Script::honest(1, 512)], 0).await;
        assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
        assert!(outcome.elapsed < Duration::from_secs(5), "{size}: {:?}", outcome.elapsed);
        assert!(!is_blamed(&outcome, order[0]) && !is_blamed(&outcome, order[1]));
    }
}

#[tokio::test(start_paused = true)]
async fn slow_source_that_never_rests_is_left_for_a_quick_one() {
    let nar = nar_of(60_000, 1);
    let (_, outcome) = deliver(&nar, vec![Script::honest(50, 64), Script::honest(1, 512)], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert!(outcome.elapsed < Duration::from_secs(10), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn only_source_is_waited_for_however_slow_it_is() {
    let nar = nar_of(1_500, 1);
    let (_, outcome) = deliver(&nar, vec![Script::honest(4_000, 8)], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert!(outcome.elapsed > Duration::from_secs(600));
}

#[tokio::test(start_paused = true)]
async fn place_in_a_queue_is_kept_while_the_queue_moves() {
    let nar = nar_of(1_500, 1);
    let queue = (1..200).rev().map(|place| (Duration::from_secs(2), place)).collect();
    let (_, outcome) = deliver(&nar, vec![Script { queue, ..Script::honest(1, 64) }], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
}

#[tokio::test(start_paused = true)]
async fn time_in_a_queue_does_not_count_as_slow_pace() {
    let queue = (1..=20).rev().map(|place| (Duration::from_secs(2), place)).collect();
    let nar = nar_of(60_000, 1);
    // If the time in the queue counted, the first bytes would promise a transfer of weeks.
    let (_, outcome) = deliver(&nar, vec![Script { queue, ..Script::honest(2, 1) }], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
}

#[tokio::test(start_paused = true)]
async fn queue_in_which_nothing_moves_is_left() {
    let nar = nar_of(1_500, 1);
    let queue = (1..1_000).map(|_| (Duration::from_secs(1), 3)).collect();
    let (order, outcome) = deliver(&nar, vec![Script { queue, ..Script::honest(1, 64) }], 0).await;
    assert_eq!(outcome.ended, Ended::Gone);
    assert!(has_timed_out(&outcome, order[0]));
    assert!(outcome.elapsed < 8 * STALL, "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn honest_source_is_never_shut_out_for_the_bytes_of_another() {
    // One source flips a byte and then closes the stream; the honest one goes on, and the hash is wrong.
    for size in [1_500, 6_000] {
        let nar = nar_of(size, 1);
        let (order, outcome) = deliver(&nar, vec![flipped(64, Some(900), 300), Script::honest(1, 64)], 0).await;
        assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
        assert!(!is_blamed(&outcome, order[1]), "{size}");
    }
}

#[tokio::test(start_paused = true)]
async fn source_that_began_a_wrong_nar_and_broke_off_is_suspect_and_the_one_that_ended_it_is_not() {
    // Held back whole, and streamed: then the body ends short.
    for (size, ended) in [(1_500, Ended::Complete), (60_000, Ended::Gone)] {
        let nar = nar_of(size, 1);
        let (order, outcome) = deliver(&nar, vec![flipped(64, Some(900), 300), Script::honest(1, 64)], 0).await;
        assert_eq!(outcome.ended, ended, "{size}");
        assert_eq!(outcome.suspects, HashSet::from([order[0]]), "{size}");
    }
    let nar = nar_of(6_000, 1);
    let (_, outcome) = deliver(&nar, vec![Script::honest(1, 64), Script::honest(1, 64)], 0).await;
    assert!(outcome.suspects.is_empty());
}

#[tokio::test(start_paused = true)]
async fn source_that_alone_sent_a_wrong_nar_is_blamed_and_the_next_one_saves_it() {
    for size in [1_500, 6_000] {
        let nar = nar_of(size, 1);
        let (order, outcome) = deliver(&nar, vec![flipped(64, None, 300), Script::honest(1, 64)], 0).await;
        assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
        assert!(is_blamed(&outcome, order[0]) && !is_blamed(&outcome, order[1]));
    }
}

#[tokio::test(start_paused = true)]
async fn source_that_finishes_what_another_began_wrong_is_not_blamed() {
    let nar = nar_of(60_000, 1);
    let mut beginning = nar.clone();
    beginning[20_000] ^= 1;
    let (order, outcome) = deliver_after(&beginning, &nar, vec![Script::honest(1, 512)], 50_000, None).await;
    assert_eq!((outcome.ended, outcome.aborted), (Ended::Gone, true));
    assert!(!is_blamed(&outcome, order[0]));
}

#[tokio::test(start_paused = true)]
async fn wrong_byte_that_nix_has_seen_ends_the_body_short() {
    let nar = nar_of(60_000, 1);
    let (order, outcome) = deliver(&nar, vec![flipped(512, None, 300), Script::honest(1, 64)], 0).await;
    assert_eq!((outcome.ended, outcome.aborted), (Ended::Gone, true));
    assert!(outcome.body.len() < nar.len());
    assert!(is_blamed(&outcome, order[0]) && !is_blamed(&outcome, order[1]));
}

#[tokio::test(start_paused = true)]
async fn nar_that_could_be_saved_waits_for_memory_for_the_whole_while_anything_moves() {
    // Enough is free to stream it, but then Nix would see the wrong byte. The smaller one is held whole however many
    // sources it has.
    let others = Others { free_bytes: 1_024, lasting: Duration::from_secs(70), moving: true };
    for size in [1_500, 6_000] {
        let nar = nar_of(size, 1);
        let (order, outcome) = deliver_beside(others, &nar, vec![flipped(64, None, 300), Script::honest(1, 64)]).await;
        assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
        assert!(is_blamed(&outcome, order[0]), "{size}");
        let elapsed = outcome.elapsed;
        assert!(elapsed >= others.lasting && elapsed < Duration::from_secs(75), "{size}: {elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nar_streams_when_nothing_moves_or_its_client_cannot_wait_longer() {
    for (moving, soonest_s, latest_s) in [(false, 20, 25), (true, 80, 106)] {
        let others = Others { free_bytes: 1_024, lasting: Duration::from_secs(3_600), moving };
        for size in [1_500, 6_000] {
            let nar = nar_of(size, 1);
            let (_, outcome) = deliver_beside(others, &nar, vec![Script::honest(1, 64), Script::honest(1, 64)]).await;
            assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
            let elapsed_s = outcome.elapsed.as_secs();
            assert!((soonest_s..latest_s).contains(&elapsed_s), "{size}, {moving}: {elapsed_s} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nar_waits_for_memory_for_as_long_as_its_client_does() {
    // Longer than the client can be kept waiting, and nothing comes in meanwhile.
    let others = Others { free_bytes: 0, lasting: Duration::from_secs(600), moving: false };
    for size in [1_500, 60_000] {
        let nar = nar_of(size, 1);
        let (_, outcome) = deliver_beside(others, &nar, vec![Script::honest(1, 512)]).await;
        assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true), "{size}");
        assert!(outcome.elapsed >= others.lasting, "{size}: {:?}", outcome.elapsed);
    }
}

#[tokio::test(start_paused = true)]
async fn tiny_nar_does_not_wait_behind_others() {
    let others = Others { free_bytes: 0, lasting: Duration::from_secs(600), moving: false };
    let nar = nar_of(8, 1);
    assert!(nar.len() as u64 <= LIMITS.tiny, "{}", nar.len());
    let (_, outcome) = deliver_beside(others, &nar, vec![Script::honest(1, 64)]).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert!(outcome.elapsed < Duration::from_secs(1), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn nar_that_no_other_source_could_save_streams_at_once() {
    let others = Others { free_bytes: 1_024, lasting: Duration::from_secs(3_600), moving: true };
    let nar = nar_of(6_000, 1);
    let (_, outcome) = deliver_beside(others, &nar, vec![Script::honest(1, 64)]).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert!(outcome.elapsed < Duration::from_secs(5), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn source_that_comes_back_after_a_break_goes_on_at_the_same_byte() {
    let nar = nar_of(60_000, 1);
    let pause = Duration::from_millis(1);
    let acts = vec![
        Act::Break { chunk: 512, pause, after: 20_480, flips: None, how: Break::Closed },
        Act::Refuse,
        Act::Refuse,
        Act::Send { chunk: 512, pause, flips: None },
    ];
    let (order, outcome) = deliver(&nar, vec![Script::acting(acts)], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert_eq!(outcome.requests[&order[0]], [0, 20_480, 20_480, 20_480]);
}

#[tokio::test(start_paused = true)]
async fn source_that_restarts_with_a_request_in_its_queue_is_asked_again() {
    let nar = nar_of(6_000, 1);
    let pause = Duration::from_millis(1);
    let acts = vec![
        Act::Break { chunk: 1, pause, after: 0, flips: None, how: Break::Closed },
        Act::Refuse,
        Act::Send { chunk: 512, pause, flips: None },
    ];
    let script = Script { queue: vec![(pause, 3)], ..Script::acting(acts) };
    let (order, outcome) = deliver(&nar, vec![script], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    assert_eq!(outcome.requests[&order[0]].len(), 3);
}

#[tokio::test(start_paused = true)]
async fn only_source_that_breaks_off_after_each_byte_is_given_up() {
    let nar = nar_of(60_000, 1);
    let drip = Act::Break { chunk: 1, pause: Duration::from_secs(1), after: 1, flips: None, how: Break::Closed };
    let (_, outcome) = deliver(&nar, vec![Script::acting(vec![drip])], 0).await;
    assert_eq!(outcome.ended, Ended::Gone);
    assert!(outcome.elapsed < Duration::from_secs(60), "{:?}", outcome.elapsed);
}

#[tokio::test(start_paused = true)]
async fn nar_of_a_dead_source_is_soon_reported_as_gone() {
    let nar = nar_of(1_500, 1);
    for act in [Act::Refuse, Act::Absent, Act::Silent] {
        let (_, outcome) = deliver(&nar, vec![Script::acting(vec![act.clone()])], 0).await;
        assert_eq!(outcome.ended, Ended::Gone, "{act:?}");
        assert!(outcome.elapsed < 2 * STALL, "{act:?}: {:?}", outcome.elapsed);
    }
}

#[tokio::test(start_paused = true)]
async fn resumed_nar_is_read_from_its_checkpoint_not_from_the_beginning() {
    let nar = nar_of(60_000, 1);
    let (order, outcome) = deliver(&nar, vec![Script::honest(1, 512)], 50_000).await;
    assert_eq!((outcome.ended, outcome.body == nar[50_000..]), (Ended::Complete, true));
    assert_eq!(outcome.requests[&order[0]], [25_000]);
}

#[tokio::test(start_paused = true)]
async fn race_between_equals_wastes_little() {
    // Both take a minute, so neither is quicker.
    let nar = nar_of(60_000, 1);
    let (order, outcome) = deliver(&nar, vec![Script::honest(100, 100), Script::honest(100, 100)], 0).await;
    assert_eq!((outcome.ended, outcome.body == nar), (Ended::Complete, true));
    let sent: u64 = order.iter().map(|source| outcome.sent_bytes.get(source).copied().unwrap_or(0)).sum();
    assert!(sent * 100 < nar.len() as u64 * 115, "{sent} of {}", nar.len());
}

fn random_script(rng: &mut ChaCha8Rng, size: u64) -> Script {
    let pause = Duration::from_millis([0, 1, 10, 100, 1_000, 4_000][rng.random_range(0..6)]);
    // Slow sources send more at a time, so that every case ends.
    let chunk = rng.random_range(1..512)
        + usize::try_from(size).unwrap() * usize::try_from(pause.as_millis()).unwrap() / 60_000;
    let flips = rng.random_bool(0.15).then(|| rng.random_range(0..size));
    let act = |rng: &mut ChaCha8Rng| match rng.random_range(0..12) {
        0 => Act::Silent,
        1 => Act::Absent,
        2 => Act::Refuse,
        3..6 => {
            let how = [Break::Closed, Break::Closed, Break::Malformed, Break::Failed, Break::SaysComplete]
                [rng.random_range(0..5)];
            Act::Break { chunk, pause, after: rng.random_range(0..size), flips, how }
        }
        _ => Act::Send { chunk, pause, flips },
    };
    let acts = (0..rng.random_range(1..4)).map(|_| act(rng)).collect();
    let queue = match rng.random_range(0..4) {
        0 => (1..=rng.random_range(1..6))
            .rev()
            .map(|place| (Duration::from_millis(rng.random_range(0..4_000)), place))
            .collect(),
        _ => Vec::new(),
    };
    let opens_after = Duration::from_millis([0, 5, 200, 3_000][rng.random_range(0..4)]);
    Script { opens_after, queue, ..Script::acting(acts) }
}

/// Plays `NARMESH_TRANSFER_CASES` cases, 5,000 by default.
#[test]
fn client_gets_the_exact_nar_or_a_short_body_whatever_sources_do() {
    let cases = std::env::var("NARMESH_TRANSFER_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(5_000_u64);
    let (mut complete, mut gone) = (0, 0);
    for seed in 0..cases {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let contents = [0, 1, 300, 1_500, 3_000, 7_000, 20_000][rng.random_range(0..7)];
        let nar = nar_of(contents, u8::try_from(seed % 256).unwrap());
        let size = nar.len() as u64;
        let scripts: Vec<_> = (0..rng.random_range(1..5)).map(|_| random_script(&mut rng, size)).collect();
        let first_byte = if rng.random_bool(0.2) { rng.random_range(0..size) } else { 0 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (order, outcome) = runtime.block_on(deliver(&nar, scripts.clone(), first_byte));
        let wanted = &nar[usize::try_from(first_byte).unwrap()..];
        let told = format!("seed {seed}: {contents} bytes from {first_byte}, {scripts:?}");
        match outcome.ended {
            Ended::Complete => {
                complete += 1;
                assert!(outcome.body == wanted && !outcome.aborted, "a wrong body: {told}");
            }
            Ended::Gone => {
                gone += 1;
                assert!(outcome.body.len() < wanted.len() && outcome.aborted, "a complete body: {told}");
                // Nix may have seen a wrong byte of a NAR that is not held back, or not for ever.
                let is_streamed = size > LIMITS.small || outcome.elapsed >= Duration::from_secs(15);
                let may_be_spoilt = is_streamed && scripts.iter().any(Script::lies);
                let is_reliable = scripts.iter().any(Script::is_reliable);
                assert!(may_be_spoilt || !is_reliable, "reported as gone although a source sends it: {told}");
            }
            Ended::HungUp => panic!("nobody hung up: {told}"),
        }
        for (source, script) in order.iter().zip(&scripts) {
            assert!(!script.is_reliable() || !is_blamed(&outcome, *source), "an honest source is blamed: {told}");
        }
    }
    assert!(complete > cases / 4 && gone > cases / 20, "both happen: {complete}, {gone}");
}
