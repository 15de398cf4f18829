//! Sources that follow a script, in virtual time.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use narmesh_protocol::HashPart;
use narmesh_protocol::wire::{NarInfoReply, NarRequest, Referral, TreeRequest};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::STALL;
use crate::source::{
    Candidate, Candidates, Line, NarFeed, NoAnswer, Observation, Piece, SourceId, Sources, TreeAnswer,
};

/// What a source does with a request.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Sends the NAR in chunks of `chunk` bytes, with a pause before each; the byte at `flips` is wrong.
    Send { chunk: usize, pause: Duration, flips: Option<u64> },
    /// The same, but breaks off after this many bytes of the request.
    Break { chunk: usize, pause: Duration, after: u64, flips: Option<u64>, how: Break },
    /// Sends the NAR in chunks of 64 KiB up to this byte, with a pause before each, and then byte by byte, one in each `every`.
    Crawl { pause: Duration, at: u64, every: Duration },
    /// Never says anything.
    Silent,
    /// Names these sources, by their numbers, to who takes names, and else sends the NAR in such chunks.
    Name { named: Vec<usize>, chunk: usize, pause: Duration },
    /// Does not have it.
    Absent,
    /// Cannot be reached.
    Refuse,
    /// Is there, but cannot be asked.
    Unreachable,
    /// Fails in a way that may be over in a moment.
    FailForNow,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Break {
    Closed,
    Malformed,
    Failed,
    SaysComplete,
}

/// One source: the queue in which a request waits first, and what it does with the first, second … request; the last
/// act is repeated.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// What it says of its tree, and after how long.
    pub(super) tree: Option<TreeAnswer>,
    pub(super) tree_after: Duration,
    /// For how long after the first question it says *not yet* of it.
    pub(super) tree_takes: Duration,
    /// Whether it is not known before somebody names it.
    pub(super) is_hidden: bool,
    /// Whether its requests share a line, so that a pause of one is a pause of all.
    pub(super) is_line: bool,
    pub(super) opens_after: Duration,
    pub(super) queue: Vec<(Duration, u32)>,
    /// Whether what it waits for in the queue is memory of ours.
    pub(super) without_memory: bool,
    pub(super) acts: Vec<Act>,
}

impl Script {
    pub(super) fn honest(pause_ms: u64, chunk: usize) -> Self {
        let act = Act::Send { chunk, pause: Duration::from_millis(pause_ms), flips: None };
        Self {
            tree: None,
            is_hidden: false,
            is_line: false,
            tree_after: Duration::from_millis(5),
            tree_takes: Duration::ZERO,
            opens_after: Duration::from_millis(5),
            queue: Vec::new(),
            without_memory: false,
            acts: vec![act],
        }
    }

    pub(super) fn acting(acts: Vec<Act>) -> Self {
        Self { acts, ..Self::honest(1, 64) }
    }

    /// Whether it sends the whole NAR whenever it is asked, and never pauses longer than a live source may.
    pub(super) fn is_reliable(&self) -> bool {
        let acts = self.acts.iter();
        let sends = |act: &Act| match act {
            Act::Send { flips: None, pause, .. } | Act::Name { pause, .. } => *pause < STALL / 2,
            Act::Send { .. }
            | Act::Break { .. }
            | Act::Crawl { .. }
            | Act::Silent
            | Act::Absent
            | Act::Refuse
            | Act::Unreachable
            | Act::FailForNow => false,
        };
        acts.clone().all(sends)
            && self.queue.iter().all(|(pause, _)| *pause < STALL / 2)
            && self.opens_after < STALL / 2
    }

    /// Whether it is there, and cannot always be asked.
    pub(super) fn is_unreachable(&self) -> bool {
        self.acts.iter().any(|act| matches!(act, Act::Unreachable))
    }

    pub(super) fn lies(&self) -> bool {
        let flips = |act: &Act| match act {
            Act::Send { flips, .. } | Act::Break { flips, .. } => flips.is_some(),
            Act::Name { .. }
            | Act::Crawl { .. }
            | Act::Silent
            | Act::Absent
            | Act::Refuse
            | Act::Unreachable
            | Act::FailForNow => false,
        };
        self.acts.iter().any(flips)
    }
}

/// A source that sends one wrong byte, and breaks off after `after` bytes.
pub(super) fn flipped(chunk: usize, after: Option<u64>, at: u64) -> Script {
    let (pause, flips) = (Duration::from_millis(1), Some(at));
    Script::acting(vec![match after {
        None => Act::Send { chunk, pause, flips },
        Some(after) => Act::Break { chunk, pause, after, flips, how: Break::Closed },
    }])
}

#[derive(Default)]
pub(super) struct World {
    pub(super) order: Vec<SourceId>,
    /// Those of them that are known from the beginning.
    pub(super) known: Vec<SourceId>,
    pub(super) scripts: HashMap<SourceId, Script>,
    pub(super) nar: Arc<Vec<u8>>,
    pub(super) state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) lines: HashMap<SourceId, Line>,
    pub(super) requests: HashMap<SourceId, Vec<u64>>,
    pub(super) observed: Vec<(SourceId, Observation)>,
    pub(super) sent_bytes: HashMap<SourceId, u64>,
    /// When each was first asked for its tree.
    trees_asked: HashMap<SourceId, Instant>,
    /// When the line of a source is free again.
    pub(super) free: HashMap<SourceId, Instant>,
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
            match act {
                Act::Refuse | Act::Unreachable => return Err(io::ErrorKind::ConnectionRefused.into()),
                Act::FailForNow => return Err(io::ErrorKind::ResourceBusy.into()),
                _ => {}
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
        let asked = *self.state.lock().trees_asked.entry(source).or_insert_with(Instant::now);
        let (answer, after) = (script.tree.clone(), script.tree_after);
        let is_computed = asked.elapsed() >= script.tree_takes;
        Box::pin(async move {
            tokio::time::sleep(after).await;
            if is_computed { answer } else { Some(TreeAnswer::NotYet) }
        })
    }

    fn line(&self, source: &SourceId) -> Line {
        let line = self.state.lock().lines.get(source).copied().unwrap_or_default();
        Line { is_there: self.scripts[source].is_unreachable(), ..line }
    }

    fn observe(&self, source: SourceId, observation: Observation) {
        self.state.lock().observed.push((source, observation));
    }
}

pub(super) struct Feed {
    pub(super) source: SourceId,
    pub(super) is_line: bool,
    pub(super) without_memory: bool,
    pub(super) act: Act,
    pub(super) names: Vec<SourceId>,
    pub(super) queue: Vec<(Duration, u32)>,
    pub(super) nar: Arc<Vec<u8>>,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) at: u64,
    pub(super) end: u64,
    pub(super) sent: u64,
    pub(super) due: Option<Instant>,
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
            Act::Absent | Act::Refuse | Act::Unreachable | Act::FailForNow => return Ok(Piece::Absent),
            Act::Name { .. } => return Ok(Piece::Others(std::mem::take(&mut self.names))),
            Act::Send { chunk, pause, flips } => (chunk, pause, u64::MAX, flips, Break::Closed),
            Act::Break { chunk, pause, after, flips, how } => (chunk, pause, after, flips, how),
            Act::Crawl { pause, at, every } => {
                let quick = usize::try_from(at.saturating_sub(self.at)).unwrap().min(64 << 10);
                let (chunk, pause) = if quick == 0 { (1, every) } else { (quick, pause) };
                (chunk, pause, u64::MAX, None, Break::Closed)
            }
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
