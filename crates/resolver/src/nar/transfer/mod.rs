//! Reads one NAR from sources: a series of (source, offset) with a verifier behind it, never "a response piped from a
//! peer".
//!
//! A NAR is canonical, so every source that has it can go on at any byte. A source is left when its connection breaks,
//! when nothing moves for us on its line, or when another one is quicker. To find that out, the two race from the same
//! byte, and the quicker one goes on. A source that is slow but alive is waited for.
//!
//! A transfer knows which sources contributed. If one source alone sent a wrong NAR, it has lied. If several
//! contributed, nobody can tell whose bytes are wrong, so nobody is blamed: the NAR is begun anew (if Nix has seen
//! nothing of it), and each source is then read alone. Those that did not send its end are suspects: for an hour they
//! are asked last for every NAR. Where a holder signed the tree of a NAR, none of this is left to its end: see [`proofs`](crate::nar::proofs).

mod finish;
mod leaving;
mod pace;
mod referral;
mod several;
mod taking;

use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use narmesh_protocol::NarUrl;
use narmesh_protocol::nar::NarVerifier;
use narmesh_protocol::wire::NarRequest;
use narmesh_store::PartialWriter;
use tokio::time::Instant;

use crate::lookup_log::LookupEvent;
use crate::nar::checkpoints::Checkpoint;
use crate::nar::endurance::Endurance;
use crate::nar::parallel::Parallel;
use crate::nar::proofs::Proofs;
use crate::nar::race::{RACE_AFTER, Race};
use crate::nar::roster::{Next, Roster};
use crate::nar::runner::{Runner, Said};
use crate::nar::transfer::leaving::Left;
use crate::nar::transfer::referral::Meeting;
use crate::nar::{Compress, NarContext};
use crate::request_log::Origins;
use crate::source::{Line, Observation, Piece, SourceId};

/// How often a transfer looks at the pace of its sources.
const LOOK: Duration = Duration::from_millis(100);
/// Compression at level 1 is quicker than a line below this rate, 200 Mbit/s, in bytes per second.
const COMPRESS_BELOW_BYTES_S: u64 = 25_000_000;

/// Why a source of a wrong leaf is left.
const WRONG_LEAF: &str = "a part that is not the one signed";

/// What one step of a transfer brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Bytes were appended.
    Data,
    /// All bytes are there, and their hash is the promised one.
    Verified,
    /// All that was appended so far is void: the NAR comes again from its first byte.
    BegunAnew,
    /// Nobody can send the rest, or what was sent is not the promised NAR.
    Gone,
    /// Nobody can send the rest now, and a source is there that may send it later.
    Unreached,
}

/// How a transfer treats its sources.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TransferSettings {
    /// A source is left when nothing moves on its line for this long.
    pub stall_timeout: Duration,
    /// Whether bodies may come compressed.
    pub compress: Compress,
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
    /// Has seen all bytes up to `offset`; `None` if nothing is known of the beginning, so that the hash cannot be
    /// computed.
    verifier: Option<NarVerifier>,
    /// The sources of the bytes up to `offset`, as far as they are known.
    contributors: Vec<SourceId>,
    /// Whether the NAR may be begun anew, because Nix has seen nothing but bytes that any source would have sent.
    pub(crate) may_begin_anew: bool,
    /// Whether each source is read alone, so that a lie has one author.
    is_strict: bool,
    /// Whether no more sources may join the roster.
    is_closed: bool,
    race: Race,
    /// What proves the NAR leaf by leaf, if holders have signed that.
    proofs: Option<Proofs>,
    /// While the NAR is read from several sources at once; then there are no `runners`.
    parallel: Option<Parallel>,
    /// The value of `waited` before which the NAR is not read from several sources.
    parallel_after: Duration,
    started: Instant,
    /// Time spent waiting for sources, without the time that Nix took.
    waited: Duration,
    /// The value of `waited` when the sources were last looked at.
    looked: Duration,
    endurance: Endurance,
    /// What peers get of the NAR while it comes.
    partial: Option<PartialWriter>,
    /// Who sent what of it, for people.
    origins: Arc<Origins>,
    /// Set while the NAR comes from upstream caches alone, and neighbours who share our line may be fetching it, too.
    meeting: Option<Meeting>,
}

/// What a transfer hears next.
enum Heard {
    /// The source with this index says something.
    Source(usize, Said),
    /// The source of the range with this index says something.
    Worker(usize, Said),
    /// This holder has signed the tree of the NAR.
    Tree(SourceId),
}

impl Transfer {
    /// Reads the NAR from its first byte.
    pub(crate) fn new(
        context: Arc<NarContext>,
        settings: TransferSettings,
        url: NarUrl,
        sources: impl IntoIterator<Item = SourceId>,
    ) -> Self {
        Self::resume(context, settings, url, sources, 0, Some((NarVerifier::new(), Vec::new())))
    }

    /// Reads the NAR from `offset` on. `known` has seen the bytes before it.
    pub(crate) fn resume(
        context: Arc<NarContext>,
        settings: TransferSettings,
        url: NarUrl,
        sources: impl IntoIterator<Item = SourceId>,
        offset: u64,
        known: Option<Checkpoint>,
    ) -> Self {
        let (verifier, contributors) = known.unzip();
        // It came out wrong from several lately. Each source is then read alone, or nobody learns which one lies.
        let is_strict = context.nar_faults.is_doubtful(&url.nar_hash);
        let sources: Vec<_> = sources.into_iter().collect();
        let suspects = context.nar_faults.suspects();
        let mut holders = sources.clone();
        holders.sort_by_key(|source| suspects.contains(source));
        let proofs = Proofs::begin(Arc::clone(&context.sources), url, offset, holders);
        let mut roster = Roster::new(sources, context.nar_faults.least_suspect(&url.nar_hash));
        roster.suspect(suspects);
        Self {
            context,
            settings,
            url,
            roster,
            runners: Vec::new(),
            offset,
            verifier,
            contributors: contributors.unwrap_or_default(),
            may_begin_anew: offset == 0,
            is_strict,
            is_closed: false,
            race: Race::new(),
            proofs,
            parallel: None,
            parallel_after: Duration::ZERO,
            started: Instant::now(),
            waited: Duration::ZERO,
            looked: Duration::ZERO,
            endurance: Endurance::default(),
            partial: None,
            origins: Arc::default(),
            meeting: None,
        }
    }

    /// Has it noted here who sends what. To be called before the transfer begins.
    pub(crate) fn note_origins(&mut self, origins: Arc<Origins>) {
        self.origins = origins;
    }

    /// Passes on to peers what comes. To be called before the transfer begins, and only for a NAR that is read from its first byte.
    pub(crate) fn pass_on(&mut self, partial: PartialWriter) {
        self.partial = Some(partial).filter(|_| self.proofs.is_some() || self.meeting.is_some());
    }

    /// Makes the transfer ask no sources but those given at the start.
    pub(crate) fn ask_only_given_sources(&mut self) {
        self.is_closed = true;
        self.proofs = None;
        self.may_begin_anew = false;
    }

    /// Bytes of the NAR that were taken over.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The number of sources on the roster.
    pub(crate) fn sources(&self) -> usize {
        self.roster.len()
    }

    /// The verifier that has seen the bytes up to [`Self::offset`].
    pub(crate) fn verifier(&self) -> Option<&NarVerifier> {
        self.verifier.as_ref()
    }

    /// The sources of the bytes up to [`Self::offset`], as far as they are known.
    pub(crate) fn contributors(&self) -> &[SourceId] {
        &self.contributors
    }

    /// Ends the transfer because nobody waits for it any more. A source that sent nothing lately is asked after others
    /// next time.
    pub(crate) fn abandon(mut self) {
        self.stop_parallel();
        for runner in &self.runners {
            if runner.idle_time(self.waited) >= RACE_AFTER {
                self.context.sources.observe(runner.source, Observation::Unfinished);
            }
            self.report_received(runner);
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
            let tail_bytes_max = self.race.tail_bytes_max();
            let (runners, proofs, offset, size) = (&mut self.runners, &mut self.proofs, self.offset, self.url.nar_size);
            let parallel = &mut self.parallel;
            let said = std::future::poll_fn(|context| {
                // A tree first: it decides what becomes of bytes that are here already.
                if let Some(Poll::Ready(author)) = proofs.as_mut().map(|proofs| proofs.poll(context)) {
                    return Poll::Ready(Heard::Tree(author));
                }
                if let Some(Poll::Ready((number, said))) = parallel.as_mut().map(|parallel| parallel.poll(context)) {
                    return Poll::Ready(Heard::Worker(number, said));
                }
                // A racer whose tail is full is not read until the race is decided, which bounds the memory of a race.
                for (at, runner) in runners.iter_mut().enumerate() {
                    let left = size - offset - runner.tail.len() as u64;
                    if runner.tail.len() < tail_bytes_max
                        && left > 0
                        && let Poll::Ready(said) = runner.poll(context, left)
                    {
                        return Poll::Ready(Heard::Source(at, said));
                    }
                }
                Poll::Pending
            });
            // Silence wakes nobody, so sources are looked at after a while in any case.
            let said = tokio::time::timeout(LOOK, said).await;
            let waited = before + entered.elapsed();
            self.note_sending(waited.saturating_sub(self.waited));
            self.waited = waited;
            let heard = match said {
                Ok(Heard::Source(at, said)) => self.hear(at, said, out),
                Ok(Heard::Worker(number, said)) => {
                    self.hear_worker(number, said);
                    self.take_ready(out)
                }
                Ok(Heard::Tree(author)) => {
                    self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarTree(author));
                    self.prove_partial();
                    None
                }
                Err(_) => None,
            };
            if self.proofs.as_ref().is_some_and(Proofs::are_useless) {
                self.proofs = None;
                self.leave_named();
            }
            let heard = heard.or_else(|| self.take_tail(out));
            // Data does not put off the look: otherwise a slow source that never pauses would never be raced.
            let is_due = self.waited.saturating_sub(self.looked) >= LOOK;
            let looked = if is_due && matches!(heard, None | Some(Step::Data)) { self.look(out) } else { None };
            if let Some(step) = looked.or(heard) {
                return step;
            }
        }
    }

    /// Notes how long the one source under way was waited for.
    fn note_sending(&mut self, wait: Duration) {
        if let [runner] = self.runners.as_slice()
            && !runner.is_queued()
            && !runner.is_opening()
        {
            self.endurance.add_wait(runner.source, self.offset, wait);
        }
    }

    /// Finishes the NAR if it is whole, or asks the next source if none is under way.
    fn advance(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        if self.offset == self.url.nar_size {
            return Some(self.finish(out));
        }
        if self.parallel.is_some() {
            if let Some(step) = self.take_ready(out) {
                return Some(step);
            }
            self.give_orders();
        }
        if self.runners.is_empty() && self.parallel.is_none() {
            // A source that is read alone is not continued by another one.
            if self.is_strict && self.may_begin_anew && self.offset > 0 {
                return Some(self.begin_anew(out, None));
            }
            match self.next_source() {
                Next::Ask(source) => self.ask(source),
                // `step` comes back here at the next look.
                Next::Wait(_) => {}
                Next::Nobody => {
                    // They are asked when the loop comes back here.
                    if self.recall_refused() {
                        return None;
                    }
                    // Another source may have announced the path meanwhile.
                    let before = self.roster.len();
                    if !self.is_closed {
                        self.roster.add(self.context.candidates(&self.url));
                    }
                    // While sources are gathering, `step` comes back here at the next look.
                    let may_more_come = !self.is_closed && self.context.sources.are_gathering();
                    if self.roster.len() == before && !may_more_come {
                        return Some(self.how_it_ends());
                    }
                }
            }
        }
        None
    }

    fn next_source(&self) -> Next {
        self.roster.next(Instant::now(), self.bytes_left(), |source| self.context.sources.line(source))
    }

    /// Lets the sources that the counting tree contradicts be asked again, because no others are left. If they were refused
    /// at this very leaf, nobody can go on by that tree, so it counts no more. Returns whether there are any.
    fn recall_refused(&mut self) -> bool {
        if let Some(proofs) = self.proofs.as_mut().filter(|proofs| proofs.is_disputed_here()) {
            proofs.drop_counting(self.waited);
        }
        self.roster.recall()
    }

    fn bytes_left(&self) -> u64 {
        self.url.nar_size - self.offset
    }

    fn line(&self, source: &SourceId) -> Line {
        self.context.sources.line(source)
    }

    fn ask(&mut self, source: SourceId) {
        self.roster.on_asked(source);
        let runner = self.start(source, self.offset..self.url.nar_size);
        self.runners.push(runner);
    }

    /// Requests these bytes of the NAR.
    fn start(&self, source: SourceId, range: Range<u64>) -> Runner {
        let NarUrl { hash_part, nar_hash, nar_size, .. } = self.url;
        let line = self.line(&source);
        let accept_zstd = match self.settings.compress {
            Compress::Always => true,
            Compress::Never => false,
            Compress::Auto => line.rate_bytes_s.is_some_and(|rate| rate < COMPRESS_BELOW_BYTES_S),
        };
        let (passes_on, referral) = (self.passes_on(&source), self.referral(&source));
        let (offset, end) = (range.start, range.end);
        let request = NarRequest { hash_part, nar_hash, nar_size, offset, end, accept_zstd, passes_on, referral };
        let request = self.context.sources.request(source, request);
        Runner::start(source, request, self.waited, &line)
    }

    /// Handles what one of the sources says.
    fn hear(&mut self, at: usize, said: Said, out: &mut Vec<u8>) -> Option<Step> {
        let is_race = self.runners.len() > 1;
        let source = self.runners.get(at)?.source;
        if let Said::Other(Piece::Others(named)) = said {
            self.follow_referral(at, &named);
            return self.take_tail(out);
        }
        if let Some((left, why)) = self.ending(source, &said) {
            self.leave(at, left, why);
            self.note_released(&source, left);
            return self.take_tail(out);
        }
        let (line, waited) = (self.line(&source), self.waited);
        let runner = self.runners.get_mut(at)?;
        match said {
            Said::Opened => self.roster.on_reached(&source),
            Said::Other(Piece::NotNow { place }) => runner.on_queued(place, waited, &line),
            Said::Other(Piece::NoMemory) => runner.on_held_up(waited, &line),
            Said::Data(bytes) => {
                if bytes.is_empty() {
                    return None;
                }
                if runner.bytes() == bytes.len() as u64 {
                    self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarFrom(source, self.offset));
                }
                let runner = self.runners.get_mut(at)?;
                runner.on_data(waited, &line);
                // Nothing decides between bytes of several sources, so these need not wait in a tail.
                if !is_race && self.proofs.is_none() {
                    return self.take(source, bytes, None, out);
                }
                runner.tail.extend_from_slice(&bytes);
                if at > 0 {
                    self.race.on_second_sends(waited);
                }
                return self.judge_race(out);
            }
            Said::Other(_) | Said::Unsent(_) | Said::Broke(_) => {}
        }
        self.take_tail(out)
    }
}
