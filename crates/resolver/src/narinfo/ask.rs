//! Asks candidates for a narinfo: best first, hedged, under one deadline. All who wait for the same path share one
//! question.
//!
//! The deadline is put off, up to a limit, while a candidate that has not answered is known to be on a full line: it is
//! sending us NARs, it usually takes long, or it is only connecting after our start. A 404 would cost a rebuild.

use super::NarInfosAhead;
use super::answers::{Answer, Answers};
use super::false_hits::{FalseHits, QUICK};
use super::gate::Gate;
use super::judge::{Judge, Said};
use crate::lookup_log::LookupEvent;
use crate::shared::Shared;
use crate::source::{Candidate, Candidates, Line, NoAnswer, Observation, SourceId, SourceTurn};
use crate::turns::{Turn, Turns, User};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use narmesh_protocol::HashPart;
use narmesh_protocol::wire::NarInfoReply;
use narmesh_quorum::Refusal;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The most paths asked about at the same time; further ones wait, within their own deadline, and users take turns.
const PATHS_AT_ONCE_MAX: usize = 256;
/// The most of them of one user, so that another one finds a place although all questions wait for a slow source.
const PATHS_OF_ONE_USER_MAX: usize = 192;
/// The next candidate is asked when the one before has taken this many times its usual latency.
const HEDGE_FACTOR: u32 = 3;
/// The shortest such wait: with a shorter one, a context switch would be enough to ask the next candidate.
const HEDGE_MIN: Duration = Duration::from_millis(20);
/// The longest such wait: with a longer one, a sleeping peer would cost more than a quarter of the deadline.
const HEDGE_MAX: Duration = QUICK;

/// When a candidate has a NAR that is not the agreed one, the others have this long to answer with the agreed one.
const SECOND_CHOICE_WAIT: Duration = Duration::from_millis(250);

/// The pause before a source that said *busy* is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// How often one lookup asks a source that fails and is not known to be down: a reset, a 500 or a restart says nothing about
/// the path, and a 404 would cost a rebuild. With the pauses that is 9.5 s; a cache that only fails is down before that, and
/// soon after known as one that does not come back in a moment.
const TRIES_MAX: u32 = 14;
/// The pause before the second of these questions; it doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two of these questions.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A question that found its place within this has not waited for it.
const WAITED_MIN: Duration = Duration::from_millis(50);

/// While the deadline is put off, lines are looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// While sources are gathering after our start, what nobody claims is looked up again this often.
const GATHERING_LOOK: Duration = Duration::from_millis(10);
/// A line is in use if something came in on it within this time.
const IN_USE: Duration = Duration::from_secs(2);

/// An answer, or why there is none. `None` until it is known.
type Outcome = Option<Result<Arc<Answer>, NoNarInfo>>;

/// Why no candidate's narinfo is given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NoNarInfo {
    /// The policy does not let through what the candidates hold.
    Refused(Refusal),
    /// All candidates answered, and none has a narinfo that may be handed on.
    Absent,
    /// A candidate did not answer in time, or is not asked for a while.
    NotNow,
}

/// Asks candidates, with one question per path at a time.
#[derive(Debug)]
pub(crate) struct Asking {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    judge: Judge,
    false_hits: FalseHits,
    ahead: NarInfosAhead,
    /// By user, so that nobody's question waits for another user's turn.
    paths: Mutex<HashMap<(HashPart, User), UnderWay>>,
    places: Turns,
}

#[derive(Debug)]
struct UnderWay {
    outcome: watch::Receiver<Outcome>,
    /// Whether our Nix waits for the answer.
    for_nix: bool,
}

/// A candidate and what it said.
type Reply = (Candidate, Said);

/// When a candidate was asked. Empty while its question waits for its turn.
type AskedAt = Arc<OnceLock<Instant>>;

impl Asking {
    pub(super) fn new(shared: Arc<Shared>, gate: Arc<Gate>, answers: Arc<Answers>, judge: Judge) -> Self {
        Self {
            shared,
            gate,
            judge,
            false_hits: FalseHits::default(),
            ahead: NarInfosAhead::new(answers),
            paths: Mutex::default(),
            places: Turns::new(PATHS_AT_ONCE_MAX, PATHS_OF_ONE_USER_MAX),
        }
    }

    /// Asks the candidates, or joins a question about this path that is already under way. A refusal is counted once
    /// for all who wait, however many candidates hold what is refused.
    pub(crate) async fn ask(self: &Arc<Self>, part: HashPart, user: User) -> Result<Arc<Answer>, NoNarInfo> {
        self.await_outcome(part, user, true).await
    }

    /// The same for a path that Nix has not asked for, and may never ask for: a refusal is not counted.
    pub(crate) async fn ask_ahead(self: &Arc<Self>, part: HashPart, user: User) {
        drop(self.await_outcome(part, user, false).await);
    }

    async fn await_outcome(
        self: &Arc<Self>,
        part: HashPart,
        user: User,
        for_nix: bool,
    ) -> Result<Arc<Answer>, NoNarInfo> {
        let mut outcome = self.join_or_start(part, user, for_nix);
        let outcome = outcome.wait_for(Option::is_some).await.map_err(|_| NoNarInfo::NotNow)?;
        outcome.clone().unwrap_or(Err(NoNarInfo::NotNow))
    }

    fn join_or_start(self: &Arc<Self>, part: HashPart, user: User, for_nix: bool) -> watch::Receiver<Outcome> {
        let mut paths = self.paths.lock();
        // One question for all who ask on behalf of one user. Another user's question waits for nobody else's turns.
        if let Some(under_way) = paths.get_mut(&(part, user)) {
            under_way.for_nix |= for_nix;
            return under_way.outcome.clone();
        }
        let (sender, receiver) = watch::channel(None);
        paths.insert((part, user), UnderWay { outcome: receiver.clone(), for_nix });
        let this = Arc::clone(self);
        // A task of its own, because the first asker may hang up while others still wait.
        tokio::spawn(async move {
            let settings = this.shared.settings();
            let mut patience = Patience::new(settings.narinfo_deadline, settings.narinfo_deadline_max);
            let answer = match tokio::time::timeout_at(patience.until_max, this.places.take(user)).await {
                Ok(place) => {
                    // Candidates have their time from now on: that others were asked first says nothing about them.
                    patience.begin(settings.narinfo_deadline);
                    this.ask_candidates(part, user, patience, place).await
                }
                Err(_) => Err(NoNarInfo::NotNow),
            };
            // Removed before the answer is given out, so that whoever asks from now on begins anew.
            let question = this.paths.lock().remove(&(part, user));
            if let Err(NoNarInfo::Refused(refusal)) = &answer
                && question.is_some_and(|question| question.for_nix)
            {
                this.gate.count_refusal(*refusal);
            }
            sender.send_replace(Some(answer));
        });
        receiver
    }

    async fn ask_candidates(
        self: &Arc<Self>,
        part: HashPart,
        user: User,
        mut patience: Patience,
        place: Turn,
    ) -> Result<Arc<Answer>, NoNarInfo> {
        let Candidates { ranked, paused, demoted } = self.shared.sources.candidates(&part);
        let mut none = if paused.is_empty() { NoNarInfo::Absent } else { NoNarInfo::NotNow };
        let for_judging = patience;
        let mut known: HashSet<_> = ranked.iter().chain(&demoted).map(|candidate| candidate.source).collect();
        let mut candidates = ranked.into_iter();
        let mut last_resort = demoted.into_iter();
        let mut place = Some(place);
        let mut asked = FuturesUnordered::new();
        let mut silent: Vec<(SourceId, AskedAt)> = Vec::new();
        let mut tries = Tries::default();
        let mut hedge = Duration::ZERO;
        let (mut second, mut refused) = (None, None);
        loop {
            // Each round asks one more candidate: the last one took too long or has given no answer that ends the
            // question.
            let usual_next = candidates.next().map(|candidate| (candidate, false));
            if let Some((candidate, is_demoted)) = usual_next.or_else(|| last_resort.next().map(|last| (last, true))) {
                if is_demoted {
                    // From now on the places of demoted candidates are the bound, so that whoever waits for one keeps no
                    // other path waiting.
                    drop(place.take());
                }
                hedge = self.hedge_delay(&candidate.source);
                let asked_at = AskedAt::default();
                silent.push((candidate.source, Arc::clone(&asked_at)));
                let start = if is_demoted { Start::Demoted } else { Start::Now };
                asked.push(self.ask_in_turn(part, user, candidate, start, for_judging, asked_at));
            } else if asked.is_empty() {
                // Another source may have been configured, or have announced the path, meanwhile.
                let ranked = self.shared.sources.candidates(&part).ranked.into_iter();
                let new: Vec<_> = ranked.filter(|candidate| known.insert(candidate.source)).collect();
                if second.is_none() && !new.is_empty() {
                    candidates = new.into_iter();
                    continue;
                }
                if second.is_none() && self.shared.sources.are_gathering() && Instant::now() < patience.until_max {
                    tokio::time::sleep(GATHERING_LOOK).await;
                    continue;
                }
                return second.ok_or(refused.map_or(none, NoNarInfo::Refused));
            }
            let more = candidates.len() + last_resort.len() > 0;
            let hedged = async { if more { tokio::time::sleep(hedge).await } else { std::future::pending().await } };
            tokio::select! {
                reply = asked.next() => if let Some((candidate, said)) = reply {
                    silent.retain(|(asked, _)| *asked != candidate.source);
                    match said {
                        // Another fingerprint is agreed on: a candidate with that one is preferred if it answers soon.
                        Said::Holds(answer) if answer.is_second_choice() => {
                            if second.replace(answer).is_none() {
                                patience.end_within(SECOND_CHOICE_WAIT);
                            }
                        }
                        Said::Holds(answer) => {
                            // Whoever is silent is not asked first the next time, or each lookup would wait for a hedge.
                            for (source, since) in were_asked(silent) {
                                self.shared.sources.observe(source, Observation::Overtaken(since.elapsed()));
                            }
                            return Ok(answer);
                        }
                        // The last refusal counts: more may be known by then than when the first one was judged.
                        Said::Refused(refusal) => refused = Some(refusal),
                        Said::Absent => {}
                        Said::Nothing => none = NoNarInfo::NotNow,
                        // The next candidate is asked meanwhile.
                        said @ (Said::NothingForNow | Said::NothingYet) => {
                            none = NoNarInfo::NotNow;
                            let again = match said {
                                Said::NothingYet => Some(Start::After(RETRY_PAUSE)),
                                _ => tries.pause_after_failure(candidate.source).map(Start::After),
                            };
                            if let Some(start) = again {
                                let asked_at = AskedAt::default();
                                silent.push((candidate.source, Arc::clone(&asked_at)));
                                asked.push(self.ask_in_turn(part, user, candidate, start, for_judging, asked_at));
                            }
                        }
                    }
                },
                () = hedged => {}
                () = tokio::time::sleep_until(patience.until) => {
                    if second.is_none() && silent.iter().any(|(source, _)| self.is_on_a_full_line(source)) && patience.put_off() {
                        continue;
                    }
                    for (source, _) in were_asked(silent) {
                        if !patience.is_cut_short {
                            self.shared.sources.observe(source, Observation::TimedOut);
                        }
                        self.shared.lookup_log.note(part, LookupEvent::NoAnswer(source, "silent until the deadline".to_owned()));
                    }
                    if second.is_none() && refused.is_none() {
                        self.shared.counters.deadlines.inc();
                        self.shared.lookup_log.note(part, LookupEvent::Deadline(patience.since.elapsed()));
                    }
                    return second.ok_or(refused.map_or(NoNarInfo::NotNow, NoNarInfo::Refused));
                }
            }
        }
    }

    /// Whether the answer of this source may be waiting behind NARs, takes long even on an idle line, or needs a
    /// connection that is still being made.
    fn is_on_a_full_line(&self, source: &SourceId) -> bool {
        let Line { last_received, in_flight, latency, is_awaited, .. } = self.shared.sources.line(source);
        let sends = in_flight > 0 && last_received.is_some_and(|at| at.elapsed() < IN_USE);
        sends
            || is_awaited
            || latency.is_some_and(|usual| usual * HEDGE_FACTOR > self.shared.settings().narinfo_deadline)
    }

    fn hedge_delay(&self, source: &SourceId) -> Duration {
        hedge_delay(source, self.shared.sources.line(source).latency)
    }

    /// Asks a candidate when it is its turn.
    async fn ask_in_turn(
        self: &Arc<Self>,
        part: HashPart,
        user: User,
        candidate: Candidate,
        start: Start,
        patience: Patience,
        asked_at: AskedAt,
    ) -> Reply {
        let place = match start {
            Start::Now => None,
            Start::After(pause) => {
                tokio::time::sleep(pause).await;
                None
            }
            Start::Demoted => match self.false_hits.take_place(&candidate.source).await {
                Some(place) => Some(place),
                None => return (candidate, Said::Nothing),
            },
        };
        let Some(source_turn) = self.shared.sources.take_turn(candidate.source, user).await else {
            return (candidate, Said::Nothing);
        };
        let since = *asked_at.get_or_init(Instant::now);
        let said = self.ask_one(part, user, candidate, source_turn, patience, since).await;
        // It was no false hit after all, so it used up nothing.
        if let (Some(place), Said::Holds(_)) = (place, &said) {
            place.give_back();
        }
        (candidate, said)
    }

    async fn ask_one(
        self: &Arc<Self>,
        part: HashPart,
        user: User,
        candidate: Candidate,
        source_turn: SourceTurn,
        patience: Patience,
        since: Instant,
    ) -> Said {
        let source = candidate.source;
        self.shared.sources.observe(source, Observation::Asked);
        self.shared.sources.prepare(source);
        self.shared.lookup_log.note(part, LookupEvent::Asked(source));
        let until_not_busy = async {
            loop {
                match self.shared.sources.ask(source, part).await {
                    Ok(NarInfoReply::Busy) | Err(NoAnswer::Busy) => tokio::time::sleep(BUSY_PAUSE).await,
                    reply => return reply,
                }
            }
        };
        let reply = until_not_busy.await;
        // What follows does not need the source, which may be asked by the next one.
        drop(source_turn);
        let said = match reply {
            Ok(NarInfoReply::Found(text)) => {
                // What was worth waiting for is worth judging: an answer after the usual deadline has time for that, too.
                let is_late = self.is_on_a_full_line(&source);
                let deadline = if is_late { patience.until_max } else { patience.until };
                self.judge.judge(part, candidate, &text, since, deadline).await
            }
            Ok(NarInfoReply::Absent) => {
                self.shared.lookup_log.note(part, LookupEvent::Absent(source));
                // Once for each path: whoever has one question repeated must not make an honest peer look like a liar.
                if source.peer().is_some() && self.false_hits.note_if_new(source, part) {
                    self.shared.counters.false_hits.inc();
                    self.shared.sources.observe(source, Observation::FalseHit);
                }
                Said::Absent
            }
            Ok(NarInfoReply::Busy) | Err(NoAnswer::Busy) => Said::Nothing,
            Err(NoAnswer::Failed(why)) => {
                self.shared.lookup_log.note(part, LookupEvent::NoAnswer(source, why));
                Said::Nothing
            }
            Err(NoAnswer::FailedForNow(why)) => {
                self.shared.lookup_log.note(part, LookupEvent::NoAnswer(source, why));
                Said::NothingForNow
            }
            Err(NoAnswer::NotYet(why)) => {
                self.shared.lookup_log.note(part, LookupEvent::NoAnswer(source, why));
                Said::NothingYet
            }
        };
        if let Said::Holds(answer) = &said {
            self.ahead.ask(self, &answer.info, user);
        }
        said
    }
}

/// When a candidate is asked.
#[derive(Clone, Copy, Debug)]
enum Start {
    /// At once.
    Now,
    /// Again, after a pause.
    After(Duration),
    /// As soon as there is a place for a question to a demoted one.
    Demoted,
}

/// How often each source has failed in one lookup.
#[derive(Debug, Default)]
struct Tries(Vec<(SourceId, u32)>);

impl Tries {
    /// Counts a failure. Returns the pause before the source is asked again, unless it was asked often enough.
    fn pause_after_failure(&mut self, source: SourceId) -> Option<Duration> {
        let at = self.0.iter().position(|(known, _)| *known == source);
        let at = at.unwrap_or_else(|| {
            self.0.push((source, 0));
            self.0.len() - 1
        });
        let (_, failures) = self.0.get_mut(at)?;
        *failures += 1;
        pause_before_retry(*failures)
    }
}

/// After how long the next source is asked while this one, which usually takes so long, has not answered.
pub fn hedge_delay(source: &SourceId, usual: Option<Duration>) -> Duration {
    match (usual, source) {
        (Some(usual), _) => (usual * HEDGE_FACTOR).clamp(HEDGE_MIN, HEDGE_MAX),
        (None, SourceId::Peer(_)) => HEDGE_MAX,
        // It may never answer, and to find that out costs the next cache one question.
        (None, SourceId::Upstream(_)) => HEDGE_MIN,
    }
}

/// How long a source that has failed so often in a row, and is not known to be down, is let alone before one question asks it
/// again; `None` if it was asked often enough.
pub fn pause_before_retry(failures: u32) -> Option<Duration> {
    let pause = RETRY_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    (failures < TRIES_MAX).then(|| pause.min(RETRY_PAUSE_MAX))
}

/// The candidates that were asked, and when; not those whose questions still wait for a place.
fn were_asked(silent: Vec<(SourceId, AskedAt)>) -> impl Iterator<Item = (SourceId, Instant)> {
    silent.into_iter().filter_map(|(source, asked_at)| Some((source, *asked_at.get()?)))
}

/// How long one question waits for its candidates.
#[derive(Clone, Copy, Debug)]
struct Patience {
    since: Instant,
    until: Instant,
    until_max: Instant,
    /// Whether the question had to wait for its turn here, so that its candidates have less than the usual time.
    is_cut_short: bool,
}

impl Patience {
    fn new(usual: Duration, max: Duration) -> Self {
        let since = Instant::now();
        Self { since, until: since + usual, until_max: since + max.max(usual), is_cut_short: false }
    }

    /// Gives candidates the usual time from now on, up to the limit.
    fn begin(&mut self, usual: Duration) {
        self.until = (Instant::now() + usual).min(self.until_max);
        self.is_cut_short = self.since.elapsed() > WAITED_MIN;
    }

    /// Puts the deadline off a little. Returns whether that was possible, or the limit had been reached.
    fn put_off(&mut self) -> bool {
        let is_possible = self.until < self.until_max;
        self.until = (self.until + LOOK_AGAIN).min(self.until_max);
        is_possible
    }

    /// Makes the deadline at most this far away.
    fn end_within(&mut self, wait: Duration) {
        self.until = self.until.min(Instant::now() + wait);
    }
}
