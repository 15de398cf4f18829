//! One NAR from sources: a series of (source, offset) with a verifier behind it, never "a response piped from a peer".
//!
//! A NAR is canonical, so whoever has it can go on at any byte. A source is left when it breaks, when nothing moves for us on its
//! line, or when another one is quicker: then the two race from the same byte, and the quicker goes on. A source that is slow but
//! alive is waited for.
//!
//! Who sent what is known: a NAR that one source alone sent wrong is that source's lie. When several contributed, nobody can tell
//! who it was, and nobody is blamed: the NAR is begun anew (if Nix has seen nothing of it), each source then alone.

use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use narmesh_protocol::NarUrl;
use narmesh_protocol::nar::NarVerifier;
use narmesh_protocol::wire::{NarFrame, NarRequest};
use tokio::time::Instant;

use super::checkpoints::Checkpoint;
use super::endurance::Endurance;
use super::race::{RACE_AFTER, RACE_BYTES_MAX, Race};
use super::roster::{Next, Roster, expected};
use super::runner::{Runner, Said};
use super::{Compress, NarContext};
use crate::ResolverSettings;
use crate::lookup_log::LookupEvent;
use crate::source::{Line, Observation, Piece, SourceId};

/// The transfer looks at the pace of its sources this often.
const LOOK: Duration = Duration::from_millis(100);
/// With a source whose pace nobody knows only a transfer races that would last longer than this.
const RACE_UNKNOWN_MIN: Duration = Duration::from_secs(2);
/// A source that let everything else on its line pass, so many chunks for each request under way, serves us less than our share.
const PASSED_OVER_CHUNKS: u64 = 8;
/// A request that is not on its way yet is left when nothing moves for so many times the stall timeout: a dial that fails takes one,
/// and another one is worth it.
const OPENING_STALLS: u32 = 3;
/// A request that stands in a queue in which nothing moves is left after so many times the stall timeout.
const QUEUE_STALLS: u32 = 6;
/// The end mark of a body that arrived whole is waited for so long; without it the stream is closed, that is all.
const END_MARK_MAX: Duration = Duration::from_secs(3);
/// Below this rate compression at level 1 is quicker than the line: 200 Mbit/s.
const COMPRESS_BELOW_BYTES_S: u64 = 25_000_000;

/// What one step brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Bytes were appended.
    Data,
    /// All bytes are there and their hash is the one promised.
    Verified,
    /// What was appended so far is not to be used: the NAR comes again from its first byte.
    BegunAnew,
    /// Nobody can send the rest, or what was sent is not the NAR promised.
    Gone,
}

/// How a transfer treats its sources.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransferSettings {
    /// Nothing moves on the line of a source for so long: it is left.
    pub(crate) stall_timeout: Duration,
    /// Whether bodies may come compressed.
    pub(crate) compress: Compress,
}

impl TransferSettings {
    pub(crate) fn of(settings: &ResolverSettings) -> Self {
        Self { stall_timeout: settings.stall_timeout, compress: settings.compress }
    }
}

/// One NAR being read.
pub(crate) struct Transfer {
    context: Arc<NarContext>,
    settings: TransferSettings,
    url: NarUrl,
    roster: Roster,
    runners: Vec<Runner>,
    /// Bytes of the NAR that were taken over.
    offset: u64,
    /// `None` when the beginning went to Nix before this process knew of it, so that nobody here can tell the hash.
    verifier: Option<NarVerifier>,
    /// Who sent what was taken over, and what is known of the bytes before it.
    contributors: Vec<SourceId>,
    /// Nix has seen nothing that another source could not have sent.
    pub(crate) may_begin_anew: bool,
    /// Each source is read alone, so that a lie has one author.
    is_strict: bool,
    /// Nobody joins the roster.
    is_closed: bool,
    race: Race,
    started: Instant,
    /// Time spent waiting for sources, without what Nix took.
    waited: Duration,
    /// Of it, when the sources were looked at last.
    looked: Duration,
    endurance: Endurance,
}

/// Why a source is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It said no, or broke a rule.
    SaidNo,
    /// Its connection broke.
    Broke,
    /// Nothing moves.
    Stalled,
}

impl Transfer {
    /// The NAR from its first byte.
    pub(crate) fn new(
        context: Arc<NarContext>,
        settings: TransferSettings,
        url: NarUrl,
        sources: impl IntoIterator<Item = SourceId>,
    ) -> Self {
        Self::resumed(context, settings, url, sources, 0, Some((NarVerifier::new(), Vec::new())))
    }

    /// The NAR from `offset` on, with what is known of the bytes before it and who sent them.
    pub(crate) fn resumed(
        context: Arc<NarContext>,
        settings: TransferSettings,
        url: NarUrl,
        sources: impl IntoIterator<Item = SourceId>,
        offset: u64,
        known: Option<Checkpoint>,
    ) -> Self {
        let (verifier, contributors) = known.unzip();
        let is_strict = context.nar_faults.is_doubtful(&url.nar_hash);
        let least_suspect = context.nar_faults.least_suspect(&url.nar_hash);
        Self {
            context,
            settings,
            url,
            roster: Roster::new(sources, least_suspect),
            runners: Vec::new(),
            offset,
            verifier,
            contributors: contributors.unwrap_or_default(),
            may_begin_anew: offset == 0,
            is_strict,
            is_closed: false,
            race: Race::new(),
            started: Instant::now(),
            waited: Duration::ZERO,
            looked: Duration::ZERO,
            endurance: Endurance::default(),
        }
    }

    /// Asks nobody but those given at the start.
    pub(crate) fn is_of_one_source(&mut self) {
        self.is_closed = true;
        self.may_begin_anew = false;
    }

    /// Bytes of the NAR that were taken over.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// How many sources may have it.
    pub(crate) fn sources(&self) -> usize {
        self.roster.len()
    }

    /// What is known of the bytes up to [`Self::offset`].
    pub(crate) fn verifier(&self) -> Option<&NarVerifier> {
        self.verifier.as_ref()
    }

    /// Who sent the bytes up to [`Self::offset`], as far as is known.
    pub(crate) fn contributors(&self) -> &[SourceId] {
        &self.contributors
    }

    /// Nobody waits any more: whoever let Nix wait in vain is asked after others next time.
    pub(crate) fn abandon(self) {
        for runner in &self.runners {
            if runner.idle(self.waited) >= RACE_AFTER {
                self.context.sources.observe(runner.source, Observation::TimedOut);
            }
            self.account(runner);
        }
    }

    /// Waits for the next bytes and appends them to `out`. [`Step::Verified`] may follow without new bytes.
    pub(crate) async fn step(&mut self, out: &mut Vec<u8>) -> Step {
        let entered = Instant::now();
        let before = self.waited;
        loop {
            if let Some(step) = self.advance(out) {
                return step;
            }
            let (runners, offset, size) = (&mut self.runners, self.offset, self.url.nar_size);
            let said = std::future::poll_fn(|context| {
                for (at, runner) in runners.iter_mut().enumerate() {
                    let left = size - offset - runner.tail.len() as u64;
                    if runner.tail.len() < RACE_BYTES_MAX
                        && left > 0
                        && let Poll::Ready(said) = runner.poll(context, left)
                    {
                        return Poll::Ready((at, said));
                    }
                }
                Poll::Pending
            });
            let said = tokio::time::timeout(LOOK, said).await;
            let waited = before + entered.elapsed();
            self.note_sending(waited.saturating_sub(self.waited));
            self.waited = waited;
            let heard = match said {
                Ok((at, said)) => self.hear(at, said, out),
                Err(_) => None,
            };
            // A source that never rests is looked at as well.
            let is_due = self.waited.saturating_sub(self.looked) >= LOOK;
            let looked = if is_due && matches!(heard, None | Some(Step::Data)) { self.look(out) } else { None };
            if let Some(step) = looked.or(heard) {
                return step;
            }
        }
    }

    /// So long was waited for the one source that is under way.
    fn note_sending(&mut self, wait: Duration) {
        if let [runner] = self.runners.as_slice()
            && !runner.is_queued()
            && !runner.is_opening()
        {
            self.endurance.waited(runner.source, self.offset, wait);
        }
    }

    /// Finishes what is whole, and asks the next source when nobody is under way.
    fn advance(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        if self.offset == self.url.nar_size {
            return Some(self.finish(out));
        }
        if self.runners.is_empty() {
            if self.is_strict && self.may_begin_anew && self.offset > 0 {
                return Some(self.begin_anew(out, None));
            }
            match self.next_source() {
                Next::Ask(source) => self.ask(source),
                // Looked at again with the clock.
                Next::Wait(_) => {}
                Next::Nobody => {
                    // Somebody may have announced the path meanwhile.
                    let before = self.roster.len();
                    if !self.is_closed {
                        self.roster.add(self.context.candidates(&self.url));
                    }
                    if self.roster.len() == before {
                        return Some(Step::Gone);
                    }
                }
            }
        }
        None
    }

    fn next_source(&self) -> Next {
        self.roster.next(Instant::now(), self.bytes_left(), |source| self.context.sources.line(source))
    }

    fn bytes_left(&self) -> u64 {
        self.url.nar_size - self.offset
    }

    fn line(&self, source: &SourceId) -> Line {
        self.context.sources.line(source)
    }

    fn ask(&mut self, source: SourceId) {
        let NarUrl { hash_part, nar_hash, nar_size, .. } = self.url;
        let line = self.line(&source);
        let accept_zstd = match self.settings.compress {
            Compress::Always => true,
            Compress::Never => false,
            Compress::Auto => line.rate_bytes_s.is_some_and(|rate| rate < COMPRESS_BELOW_BYTES_S),
        };
        let request = NarRequest { hash_part, nar_hash, nar_size, offset: self.offset, accept_zstd };
        self.roster.under_way(source);
        let request = self.context.sources.request(source, request);
        self.runners.push(Runner::start(source, request, self.waited, &line));
    }

    /// Takes what one of the sources says.
    fn hear(&mut self, at: usize, said: Said, out: &mut Vec<u8>) -> Option<Step> {
        let is_race = self.runners.len() > 1;
        let source = self.runners.get(at)?.source;
        let (line, waited) = (self.line(&source), self.waited);
        let runner = self.runners.get_mut(at)?;
        match said {
            Said::Opened => {}
            Said::Other(Piece::NotNow { place }) => runner.queued(place, waited, &line),
            Said::Data(bytes) => {
                if bytes.is_empty() {
                    return None;
                }
                if runner.bytes() == bytes.len() as u64 {
                    self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarFrom(source, self.offset));
                }
                let runner = self.runners.get_mut(at)?;
                runner.moved(waited, &line);
                if !is_race {
                    return self.take(source, bytes, out);
                }
                runner.tail.extend_from_slice(&bytes);
                if at > 0 {
                    self.race.second_sends(waited);
                }
                return self.judge_race(out);
            }
            Said::Other(Piece::Absent) => {
                self.leave(at, Left::SaidNo, "does not have this NAR (any more)".to_owned());
            }
            Said::Other(Piece::Failed) => self.leave(at, Left::SaidNo, "cannot finish it".to_owned()),
            Said::Other(Piece::Complete | Piece::Data) => {
                self.context.sources.observe(source, Observation::FalseNar);
                self.leave(at, Left::SaidNo, "said complete before the end".to_owned());
            }
            Said::Broke(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.context.sources.observe(source, Observation::FalseNar);
                self.leave(at, Left::SaidNo, error.to_string());
            }
            Said::Broke(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.leave(at, Left::SaidNo, error.to_string())
            }
            Said::Broke(error) => self.leave(at, Left::Broke, error.to_string()),
        }
        self.take_tail(out)
    }

    /// Looks at the pace of those under way.
    fn look(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        self.looked = self.waited;
        for at in (0..self.runners.len()).rev() {
            if let Some(why) = self.stalls(at) {
                self.leave(at, Left::Stalled, why);
            }
        }
        if self.runners.len() > 1 {
            return self.judge_race(out);
        }
        if let Some(step) = self.take_tail(out) {
            return Some(step);
        }
        self.begin_race();
        self.give_up_hopeless();
        None
    }

    /// Leaves the one source there is when the rest would take too long at its pace.
    fn give_up_hopeless(&mut self) {
        let [runner] = self.runners.as_slice() else { return };
        let source = runner.source;
        let rest = self.endurance.hopeless(source, self.offset, self.bytes_left());
        if let Some(rest) = rest.filter(|_| !runner.is_queued()) {
            self.context.sources.observe(source, Observation::TimedOut);
            self.leave(0, Left::SaidNo, format!("at its pace the rest would take {} h", rest.as_secs() / 3_600));
        }
    }

    /// Why this source is not waited for any longer, if so.
    fn stalls(&self, at: usize) -> Option<String> {
        let runner = self.runners.get(at)?;
        let (line, stall) = (self.line(&runner.source), self.settings.stall_timeout);
        let idle = runner.idle(self.waited);
        // It waits for us, not we for it.
        if idle < stall || runner.tail.len() >= RACE_BYTES_MAX {
            return None;
        }
        if runner.is_queued() {
            return (idle >= stall * QUEUE_STALLS).then(|| format!("nothing moves in its queue for {idle:.0?}"));
        }
        let is_silent = line.last_received.is_none_or(|at| at.elapsed() >= stall);
        if runner.is_opening() {
            let is_dead = is_silent && idle >= stall * OPENING_STALLS;
            return is_dead.then(|| format!("cannot be asked for {idle:.0?}"));
        }
        if is_silent {
            return Some(format!("nothing for {idle:.0?}"));
        }
        let share = u64::try_from(line.in_flight.max(1)).unwrap_or(u64::MAX).saturating_mul(PASSED_OVER_CHUNKS);
        let fair = share.saturating_mul(NarFrame::CHUNK_BYTES_MAX as u64);
        (runner.passed_over_bytes(&line) > fair).then(|| format!("it serves others for {idle:.0?}"))
    }

    /// Asks another source for the same bytes when that one would be done in half the time.
    fn begin_race(&mut self) {
        let (left, waited) = (self.bytes_left(), self.waited);
        if !self.race.may_begin(waited) {
            return;
        }
        let Some(runner) = self.runners.first_mut() else { return };
        if runner.age(waited) < RACE_AFTER {
            return;
        }
        let rate = if runner.idle(waited) >= RACE_AFTER { Some(0) } else { runner.rate_bytes_s(waited) };
        let Some(rate) = rate else { return };
        let at_this_pace = left.checked_div(rate).map_or(Duration::MAX, Duration::from_secs);
        let Some(other) = self.roster.quickest_fresh(left, |source| self.context.sources.line(source)) else { return };
        let line = self.line(&other);
        let is_worth_it = match line.rate_bytes_s {
            Some(_) => expected(&line, left).saturating_mul(2) < at_this_pace,
            None => at_this_pace > RACE_UNKNOWN_MIN,
        };
        if !is_worth_it || (self.is_strict && self.offset > 0) {
            return;
        }
        self.race.begin(waited);
        self.ask(other);
    }

    /// Ends the race when it is decided; the quicker one goes on.
    fn judge_race(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let [first, second] = self.runners.as_slice() else { return None };
        let loser = self.race.loser([first.tail.len(), second.tail.len()], self.bytes_left(), self.waited)?;
        let runner = self.runners.remove(loser);
        self.account(&runner);
        self.roster.stopped(runner.source);
        let slower = LookupEvent::NarBroken(runner.source, self.offset, "another source is quicker".to_owned());
        self.context.lookup_log.note(self.url.hash_part, slower);
        drop(runner);
        self.take_tail(out)
    }

    /// Takes over what the one who is left sent during a race.
    fn take_tail(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let [runner] = self.runners.as_mut_slice() else { return None };
        if runner.tail.is_empty() {
            return None;
        }
        let (source, tail) = (runner.source, std::mem::take(&mut runner.tail));
        self.take(source, tail, out)
    }

    /// Takes over bytes that come right after those taken before.
    fn take(&mut self, source: SourceId, bytes: Vec<u8>, out: &mut Vec<u8>) -> Option<Step> {
        let is_nar = self.verifier.as_mut().is_none_or(|verifier| verifier.feed(&bytes).is_ok());
        if !self.contributors.contains(&source) {
            if self.offset > 0 && !self.contributors.is_empty() {
                self.context.counters.continued.inc();
            }
            self.contributors.push(source);
        }
        if !is_nar {
            return Some(self.lie(out));
        }
        self.offset += bytes.len() as u64;
        // Without a buffer of its own, the caller takes ours.
        if out.capacity() == 0 {
            *out = bytes;
        } else {
            out.extend_from_slice(&bytes);
        }
        Some(Step::Data)
    }

    /// All bytes are there: is it the NAR promised?
    fn finish(&mut self, out: &mut Vec<u8>) -> Step {
        let promised = |verifier: NarVerifier| {
            verifier.finish().is_ok_and(|nar| nar.nar_hash == self.url.nar_hash && nar.nar_size == self.url.nar_size)
        };
        let is_right = self.verifier.clone().is_none_or(promised);
        if !is_right {
            return self.lie(out);
        }
        let elapsed = self.started.elapsed();
        for runner in std::mem::take(&mut self.runners) {
            self.account(&runner);
            let source = runner.source;
            self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarVerified(source, self.offset, elapsed));
            let context = Arc::clone(&self.context);
            // It is there already when the NAR was one write; else nobody waits for it.
            let mut end = Box::pin(async move {
                let end = runner.end().await;
                if end.is_some_and(|error| error.kind() == io::ErrorKind::InvalidData) {
                    context.sources.observe(source, Observation::FalseNar);
                }
            });
            if futures::FutureExt::now_or_never(&mut end).is_none() {
                tokio::spawn(tokio::time::timeout(END_MARK_MAX, end));
            }
        }
        Step::Verified
    }

    /// What was sent is not the NAR promised.
    fn lie(&mut self, out: &mut Vec<u8>) -> Step {
        for runner in std::mem::take(&mut self.runners) {
            self.account(&runner);
        }
        let last = self.contributors.last().copied();
        match self.contributors.as_slice() {
            [liar] => {
                self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarLie(*liar));
                self.context.nar_faults.lied(self.url.nar_hash, *liar);
                self.context.sources.observe(*liar, Observation::FalseNar);
                self.roster.out(*liar);
            }
            several => {
                self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarMixedLie(several.len()));
                // Whoever went on to the end is less suspect than whoever broke off.
                self.context.nar_faults.doubt(self.url.nar_hash, last);
                self.is_strict = true;
            }
        }
        if !self.may_begin_anew {
            return Step::Gone;
        }
        self.begin_anew(out, last.filter(|_| self.contributors.len() > 1))
    }

    fn begin_anew(&mut self, out: &mut Vec<u8>, first: Option<SourceId>) -> Step {
        out.clear();
        self.verifier = Some(NarVerifier::new());
        self.offset = 0;
        self.endurance.begin_anew();
        if self.contributors.len() > 1 || first.is_some() {
            self.roster.begin_anew(first);
        }
        self.contributors.clear();
        Step::BegunAnew
    }

    /// Goes on without this source.
    fn leave(&mut self, at: usize, left: Left, why: String) {
        let runner = self.runners.remove(at);
        self.account(&runner);
        let is_fruitless = left != Left::SaidNo && self.endurance.broke_off(runner.source, runner.bytes());
        let is_waited_for_in_vain = match left {
            Left::Broke | Left::Stalled if is_fruitless => {
                self.roster.out(runner.source);
                true
            }
            Left::SaidNo => {
                self.roster.out(runner.source);
                false
            }
            // Its queue goes with its connection; a daemon that restarts has the NAR still.
            Left::Broke => !self.roster.broke(runner.source, runner.bytes() > 0 || runner.is_queued(), Instant::now()),
            Left::Stalled => {
                self.roster.broke(runner.source, runner.bytes() > 0, Instant::now());
                true
            }
        };
        if is_waited_for_in_vain {
            self.context.sources.observe(runner.source, Observation::TimedOut);
        }
        self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarBroken(runner.source, self.offset, why));
    }

    fn account(&self, runner: &Runner) {
        self.context.counters.bytes_in.inc_by(runner.wire_bytes());
        let (bytes, elapsed) = (runner.wire_bytes(), runner.age(self.waited));
        let line_bytes = runner.line_bytes(&self.line(&runner.source)).max(bytes);
        self.context.sources.observe(runner.source, Observation::Received { bytes, line_bytes, elapsed });
    }
}
