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

mod referral;
mod several;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use narmesh_protocol::NarUrl;
use narmesh_protocol::nar::NarVerifier;
use narmesh_protocol::nar_tree::LeafHash;
use narmesh_protocol::wire::NarRequest;
use narmesh_store::PartialWriter;
use tokio::time::Instant;

use crate::lookup_log::LookupEvent;
use crate::nar::checkpoints::Checkpoint;
use crate::nar::endurance::Endurance;
use crate::nar::parallel::Parallel;
use crate::nar::proofs::{Judgement, Portion, Proofs};
use crate::nar::race::{RACE_AFTER, RACE_RELATED_AFTER, Race};
use crate::nar::roster::{Next, Roster, expected_duration};
use crate::nar::runner::{Runner, Said};
use crate::nar::transfer::referral::Meeting;
use crate::nar::{Compress, NarContext};
use crate::source::{Line, Observation, Piece, SourceId};

/// How often a transfer looks at the pace of its sources.
const LOOK: Duration = Duration::from_millis(100);
/// A source of unknown pace joins a race only if the transfer would otherwise last longer than this.
const RACE_UNKNOWN_MIN: Duration = Duration::from_secs(2);
/// How long the end mark of a body that arrived whole is waited for; if it does not come, the stream is closed and
/// nothing else happens.
const END_MARK_MAX: Duration = Duration::from_secs(3);
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
    /// Not before this.
    parallel_after: Duration,
    started: Instant,
    /// Time spent waiting for sources, without the time that Nix took.
    waited: Duration,
    /// The value of `waited` when the sources were last looked at.
    looked: Duration,
    endurance: Endurance,
    /// What peers get of the NAR while it comes.
    partial: Option<PartialWriter>,
    /// If the NAR comes from upstream caches alone, and others who share our line may fetch it as well.
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

/// Why a source is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It said no, or broke a rule.
    SaidNo,
    /// It named others.
    Referred,
    /// Its connection broke.
    Broke,
    /// Nothing moves for us.
    Stalled,
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
            meeting: None,
        }
    }

    /// Has what comes passed on. For a transfer that has not begun, of a NAR from its first byte.
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
            let tail_bytes_max = self.race.tail_bytes_max();
            let (runners, proofs, offset, size) = (&mut self.runners, &mut self.proofs, self.offset, self.url.nar_size);
            let parallel = &mut self.parallel;
            let said = std::future::poll_fn(|context| {
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
                    // Those are asked at the next turn.
                    if self.recall_refused() {
                        return None;
                    }
                    // Another source may have announced the path meanwhile.
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

    /// Lets sources be asked again that the tree that counts contradicts, because no others are left. If they were refused
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
            Said::Opened => {}
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
                if !is_race && self.proofs.is_none() {
                    return self.take(source, bytes, None, out);
                }
                runner.tail.extend_from_slice(&bytes);
                if at > 0 {
                    self.race.on_second_sends(waited);
                }
                return self.judge_race(out);
            }
            Said::Other(_) | Said::Broke(_) => {}
        }
        self.take_tail(out)
    }

    /// Why a source that says this is left, if it is. Blames it for what breaks a rule.
    fn ending(&self, source: SourceId, said: &Said) -> Option<(Left, String)> {
        let ends = |left, why: &str| Some((left, why.to_owned()));
        match said {
            Said::Opened | Said::Data(_) | Said::Other(Piece::NotNow { .. } | Piece::Others(_) | Piece::NoMemory) => {
                None
            }
            Said::Other(Piece::Absent) => ends(Left::SaidNo, "does not have this NAR (any more)"),
            Said::Other(Piece::Failed) => ends(Left::SaidNo, "cannot finish it"),
            Said::Other(Piece::Complete | Piece::Data) => {
                self.context.sources.observe(source, Observation::FalseNar);
                ends(Left::SaidNo, "said complete before the end")
            }
            Said::Broke(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.context.sources.observe(source, Observation::FalseNar);
                ends(Left::SaidNo, &error.to_string())
            }
            Said::Broke(error) if error.kind() == io::ErrorKind::InvalidInput => ends(Left::SaidNo, &error.to_string()),
            Said::Broke(error) => ends(Left::Broke, &error.to_string()),
        }
    }

    /// Looks at the pace of the sources under way.
    fn look(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        self.looked = self.waited;
        self.leave_silent_neighbour();
        for at in (0..self.runners.len()).rev() {
            let Some(runner) = self.runners.get(at) else { continue };
            let line = self.line(&runner.source);
            if let Some(why) = runner.why_stalled(&line, self.waited, self.settings.stall_timeout) {
                self.leave(at, Left::Stalled, why);
            }
        }
        if self.runners.len() > 1 {
            return self.judge_race(out);
        }
        if let Some(step) = self.take_tail(out) {
            return Some(step);
        }
        if self.proofs.as_ref().is_some_and(|proofs| proofs.is_out_of_patience(self.waited)) && self.roster.recall() {
            self.stop_parallel();
            self.proofs.iter_mut().for_each(|proofs| proofs.drop_counting(self.waited));
        }
        if self.parallel.is_some() || self.begin_parallel() {
            self.look_at_workers();
            return None;
        }
        self.begin_race();
        self.give_up_hopeless();
        None
    }

    /// Leaves the only source under way if the rest would take too long at its pace.
    fn give_up_hopeless(&mut self) {
        let [runner] = self.runners.as_slice() else { return };
        let source = runner.source;
        let rest = self.endurance.hopeless_wait(source, self.offset, self.bytes_left());
        if let Some(rest) = rest.filter(|_| !runner.is_queued()) {
            self.context.sources.observe(source, Observation::TimedOut);
            self.leave(0, Left::SaidNo, format!("at its pace the rest would take {} h", rest.as_secs() / 3_600));
        }
    }

    /// Asks another source for the same bytes if that one should be done in half the time.
    fn begin_race(&mut self) {
        let (left, waited) = (self.bytes_left(), self.waited);
        if !self.race.may_begin(waited) {
            return;
        }
        let Some(runner) = self.runners.first_mut() else { return };
        if runner.age(waited) < RACE_AFTER {
            return;
        }
        // A source that stands still has no pace, whatever its last window showed.
        let rate = if runner.idle_time(waited) >= RACE_AFTER { Some(0) } else { runner.measure_rate_bytes_s(waited) };
        let Some(rate) = rate else { return };
        let at_this_pace = left.checked_div(rate).map_or(Duration::MAX, Duration::from_secs);
        let Some(other) = self.challenger() else { return };
        let is_related = self.is_related(&other);
        let is_early = is_related && self.runners.first().is_some_and(|first| first.age(waited) < RACE_RELATED_AFTER);
        if self.roster.is_suspect(&other) || is_early {
            return;
        }
        let line = self.line(&other);
        let is_worth_it = match line.rate_bytes_s {
            Some(_) => expected_duration(&line, left).saturating_mul(2) < at_this_pace,
            None => at_this_pace > RACE_UNKNOWN_MIN,
        };
        if !is_worth_it || (self.is_strict && self.offset > 0) {
            return;
        }
        self.race.begin(waited, self.runners.first().map_or(0, |first| first.tail.len()), is_related.then_some(rate));
        self.ask(other);
    }

    /// Ends the race once it is decided; the quicker source goes on.
    fn judge_race(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let [first, second] = self.runners.as_slice() else { return None };
        let loser = self.race.decide([first.tail.len(), second.tail.len()], self.bytes_left(), self.waited)?;
        let runner = self.runners.remove(loser);
        self.account(&runner);
        self.roster.on_stopped(runner.source);
        let slower = LookupEvent::NarBroken(runner.source, self.offset, "another source is quicker".to_owned());
        self.context.lookup_log.note(self.url.hash_part, slower);
        drop(runner);
        self.take_tail(out)
    }

    /// Takes over what the only source under way sent during a race, or while its leaf was not whole.
    fn take_tail(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let mut taken = None;
        while let Some(step) = self.take_portion(out) {
            taken = Some(step);
            if step != Step::Data {
                break;
            }
        }
        taken
    }

    /// Takes over as much of that as may be taken at once.
    fn take_portion(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        let [runner] = self.runners.as_slice() else { return None };
        if runner.tail.is_empty() {
            return None;
        }
        let source = runner.source;
        let waits_for_tree = self.waits_for_tree(&source);
        let [runner] = self.runners.as_mut_slice() else { return None };
        let portion = match &self.proofs {
            Some(proofs) => proofs.portion(runner.tail.len(), self.waited),
            None => Portion::Unproven(u64::MAX),
        };
        let bytes = match portion {
            Portion::None => return None,
            Portion::Unproven(_) if waits_for_tree => return None,
            Portion::Unproven(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX).min(runner.tail.len()),
            Portion::Leaf(bytes) => bytes,
        };
        let rest = runner.tail.split_off(bytes);
        let bytes = std::mem::replace(&mut runner.tail, rest);
        let judgement = match (&mut self.proofs, portion) {
            (Some(proofs), Portion::Leaf(_)) => proofs.judge(source, self.offset, &bytes),
            (_, _) => return self.take(source, bytes, None, out),
        };
        match judgement {
            Judgement::Right(leaf) => return self.take(source, bytes, Some(leaf), out),
            Judgement::AgainstItself => {
                self.blame(source, LookupEvent::NarLeafLie(source));
                self.leave(0, Left::SaidNo, WRONG_LEAF.to_owned());
            }
            Judgement::Disputed => {
                let refused = LookupEvent::NarLeafRefused(source, self.offset);
                self.context.lookup_log.note(self.url.hash_part, refused);
                self.leave(0, Left::SaidNo, WRONG_LEAF.to_owned());
                self.roster.put_by(source);
            }
        }
        None
    }

    /// Takes over bytes that follow those taken before; `leaf` is their hash if they are a whole leaf.
    fn take(&mut self, source: SourceId, bytes: Vec<u8>, leaf: Option<LeafHash>, out: &mut Vec<u8>) -> Option<Step> {
        if let Some(proofs) = &mut self.proofs {
            proofs.on_taken(&bytes, leaf, self.waited);
        }
        let is_nar = self.verifier.as_mut().is_none_or(|verifier| verifier.feed(&bytes).is_ok());
        if !self.contributors.contains(&source) {
            if self.offset > 0 && !self.contributors.is_empty() {
                self.context.counters.continued.inc();
            }
            self.contributors.push(source);
        }
        if !is_nar {
            return Some(self.on_lie(out));
        }
        self.offset += bytes.len() as u64;
        self.write_partial(&bytes);
        // If the caller's buffer has no memory yet, it takes this one, which saves a copy.
        if out.capacity() == 0 {
            *out = bytes;
        } else {
            out.extend_from_slice(&bytes);
        }
        Some(Step::Data)
    }

    /// Checks whether the bytes, which are all there, are the promised NAR.
    fn finish(&mut self, out: &mut Vec<u8>) -> Step {
        let promised = |verifier: NarVerifier| {
            verifier.finish().is_ok_and(|nar| nar.nar_hash == self.url.nar_hash && nar.nar_size == self.url.nar_size)
        };
        let is_right = self.verifier.clone().is_none_or(promised);
        if !is_right {
            return self.on_lie(out);
        }
        // If nobody knows the beginning, only Nix will find out whether the NAR is right.
        if let Some(proofs) = self.proofs.take().filter(|_| self.verifier.is_some()) {
            let (signed, sent) = proofs.settle();
            signed.iter().for_each(|liar| self.blame(*liar, LookupEvent::NarTreeLie(*liar)));
            let only_sent = sent.iter().filter(|source| !signed.contains(*source));
            only_sent.for_each(|liar| self.blame(*liar, LookupEvent::NarLeafLie(*liar)));
        }
        let elapsed = self.started.elapsed();
        if let Some(source) = self.contributors.last() {
            self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarVerified(*source, self.offset, elapsed));
        }
        for runner in std::mem::take(&mut self.runners) {
            self.read_end(runner);
        }
        self.stop_parallel();
        if let Some(partial) = self.partial.take() {
            partial.finish();
        }
        Step::Verified
    }

    /// Reads the end mark of a body that came whole, so that its stream can serve the next request.
    fn read_end(&self, runner: Runner) {
        self.account(&runner);
        let (context, source) = (Arc::clone(&self.context), runner.source);
        // It is there already if the body came in one write. If not, it is read in the background, so that Nix does not
        // wait for it.
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

    /// Handles that what was sent is not the promised NAR.
    fn on_lie(&mut self, out: &mut Vec<u8>) -> Step {
        for runner in std::mem::take(&mut self.runners) {
            self.account(&runner);
        }
        self.stop_parallel();
        let last = self.contributors.last().copied();
        let signed = self.proofs.as_mut().map(Proofs::refute).unwrap_or_default();
        for liar in &signed {
            self.blame(*liar, LookupEvent::NarTreeLie(*liar));
        }
        match self.contributors.as_slice() {
            [liar] if signed.contains(liar) => {}
            &[liar] => self.blame(liar, LookupEvent::NarLie(liar)),
            // Those who sent what was signed could not know better.
            _ if !signed.is_empty() => {}
            several => {
                self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarMixedLie(several.len()));
                tracing::warn!(
                    hash_part = %self.url.hash_part, sources = ?several,
                    "several sources together sent a wrong NAR: those that did not send its end are asked last for an hour"
                );
                // A source that went on to the end is less suspect than one that broke off.
                let begun = several.iter().copied().filter(|source| Some(*source) != last);
                begun.clone().for_each(|source| self.context.nar_faults.suspect(source));
                self.roster.suspect(begun);
                self.context.nar_faults.doubt(self.url.nar_hash, last);
                self.is_strict = true;
            }
        }
        if !self.may_begin_anew {
            return Step::Gone;
        }
        self.begin_anew(out, last.filter(|_| self.contributors.len() > 1))
    }

    /// Blames a source for a lie about this NAR that is proven, and asks it no more for it.
    fn blame(&mut self, liar: SourceId, lie: LookupEvent) {
        self.context.lookup_log.note(self.url.hash_part, lie);
        self.context.nar_faults.note_liar(self.url.nar_hash, liar);
        if self.has_only_passed_on(&liar) {
            self.context.nar_faults.suspect(liar);
        } else {
            self.context.sources.observe(liar, Observation::FalseNar);
        }
        self.roster.rule_out(liar);
    }

    fn begin_anew(&mut self, out: &mut Vec<u8>, first: Option<SourceId>) -> Step {
        out.clear();
        self.partial = None;
        self.verifier = Some(NarVerifier::new());
        self.offset = 0;
        self.endurance.begin_anew();
        self.proofs.iter_mut().for_each(|proofs| proofs.begin_anew(self.waited));
        // What several sources sent together proves none of them wrong, so all of them may be asked again.
        if self.contributors.len() > 1 || first.is_some() {
            self.roster.begin_anew(first);
        }
        self.contributors.clear();
        Step::BegunAnew
    }

    /// Leaves this source; the transfer goes on without it.
    fn leave(&mut self, at: usize, left: Left, why: String) {
        let runner = self.runners.remove(at);
        self.part_with(&runner, left, why);
    }

    fn part_with(&mut self, runner: &Runner, left: Left, why: String) {
        self.account(runner);
        let has_failed = matches!(left, Left::Broke | Left::Stalled);
        let is_fruitless = has_failed && self.endurance.on_broke_off(runner.source, runner.bytes());
        let is_waited_for_in_vain = match left {
            Left::Broke | Left::Stalled if is_fruitless => {
                self.roster.rule_out(runner.source);
                true
            }
            Left::SaidNo => {
                self.roster.rule_out(runner.source);
                false
            }
            Left::Referred => false,
            // A source that queued our request counts as having answered: a daemon that restarts loses its queue, but
            // still has the NAR.
            Left::Broke => {
                !self.roster.on_broke(runner.source, runner.bytes() > 0 || runner.is_queued(), Instant::now())
            }
            Left::Stalled => {
                self.roster.on_broke(runner.source, runner.bytes() > 0, Instant::now());
                true
            }
        };
        if is_waited_for_in_vain {
            let observation = if left == Left::Broke { Observation::Unfinished } else { Observation::TimedOut };
            self.context.sources.observe(runner.source, observation);
        }
        self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarBroken(runner.source, self.offset, why));
    }

    /// Counts what a request received, and reports it to the ranking of sources.
    fn account(&self, runner: &Runner) {
        self.context.counters.bytes_in.inc_by(runner.wire_bytes());
        let (bytes, elapsed) = (runner.wire_bytes(), runner.age(self.waited));
        let line_bytes = runner.line_bytes(&self.line(&runner.source)).max(bytes);
        self.context.sources.observe(runner.source, Observation::Received { bytes, line_bytes, elapsed });
    }
}
