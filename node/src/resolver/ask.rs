//! Asking candidates for a narinfo: best first, hedged, under one deadline; one question for all who wait for the same path.

use super::Resolver;
use super::answers::Answer;
use super::decisions::Decision;
use super::gate::Passed;
use super::trust::{self, Proof, TrustedNarInfo};
use crate::mesh::{Ask, AskError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use libp2p::PeerId;
use narmesh_gossip::{Misdeed, ProbeOutcome};
use narmesh_protocol::HashPart;
use narmesh_protocol::wire::NarInfoReply;
use narmesh_quorum::Refusal;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Paths asked about at the same time; further ones wait, within their own deadline.
const PATHS_AT_ONCE_MAX: usize = 256;
/// The next candidate is asked when the one before took this many times its usual latency.
const HEDGE_FACTOR: u32 = 3;
/// Bounds of that wait: below, a context switch would hedge; above, a sleeping peer would cost a quarter of the deadline.
const HEDGE_MIN: Duration = Duration::from_millis(20);
const HEDGE_MAX: Duration = Duration::from_millis(250);

/// So long others are asked for what is agreed on when one has something else.
const SECOND_CHOICE_WAIT: Duration = Duration::from_millis(250);

/// Pause before a peer that said *busy* is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// An answer, or what the policy refused instead, if it refused anything. `None` until it is known.
type Outcome = Option<Result<Arc<Answer>, Option<Refusal>>>;

/// Questions under way.
#[derive(Debug)]
pub(crate) struct Asking {
    paths: Mutex<HashMap<HashPart, UnderWay>>,
    slots: Arc<Semaphore>,
}

#[derive(Debug)]
struct UnderWay {
    outcome: watch::Receiver<Outcome>,
    /// Whether our Nix waits for it.
    for_nix: bool,
}

impl Default for Asking {
    fn default() -> Self {
        Self { paths: Mutex::default(), slots: Arc::new(Semaphore::new(PATHS_AT_ONCE_MAX)) }
    }
}

/// What one candidate said.
enum Said {
    Holds(Arc<Answer>),
    /// It holds what the policy does not let through.
    Refused(Refusal),
    Absent,
    Nothing,
}

impl Resolver {
    /// Asks the candidates, or joins those who already ask about this path. A refusal that is returned was counted: once for
    /// all who waited, however many candidates hold what is refused.
    pub(super) async fn asked(self: Arc<Self>, part: HashPart) -> Result<Arc<Answer>, Option<Refusal>> {
        self.outcome(part, true).await
    }

    /// The same for what Nix has not asked for yet, and may never ask for: a refusal is not counted.
    pub(super) async fn asked_ahead(self: Arc<Self>, part: HashPart) {
        drop(self.outcome(part, false).await);
    }

    async fn outcome(self: Arc<Self>, part: HashPart, for_nix: bool) -> Result<Arc<Answer>, Option<Refusal>> {
        let mut outcome = self.join_or_start(part, for_nix);
        let outcome = outcome.wait_for(Option::is_some).await.map_err(|_| None)?;
        outcome.clone().unwrap_or(Err(None))
    }

    fn join_or_start(self: &Arc<Self>, part: HashPart, for_nix: bool) -> watch::Receiver<Outcome> {
        let mut paths = self.asking.paths.lock();
        if let Some(under_way) = paths.get_mut(&part) {
            under_way.for_nix |= for_nix;
            return under_way.outcome.clone();
        }
        let (sender, receiver) = watch::channel(None);
        paths.insert(part, UnderWay { outcome: receiver.clone(), for_nix });
        let resolver = Arc::clone(self);
        // A task of its own: the first asker may hang up, the others still want to know.
        tokio::spawn(async move {
            let deadline = Instant::now() + resolver.settings().narinfo_deadline;
            let answer = match tokio::time::timeout_at(deadline.into(), resolver.asking.slots.acquire()).await {
                Ok(Ok(_slot)) => resolver.ask_candidates(part, deadline).await,
                Ok(Err(_)) | Err(_) => Err(None),
            };
            let question = resolver.asking.paths.lock().remove(&part);
            if let Err(Some(refusal)) = &answer
                && question.is_some_and(|question| question.for_nix)
            {
                resolver.gate.not_given(*refusal);
            }
            sender.send_replace(Some(answer));
        });
        receiver
    }

    async fn ask_candidates(
        self: &Arc<Self>,
        part: HashPart,
        deadline: Instant,
    ) -> Result<Arc<Answer>, Option<Refusal>> {
        let mut candidates = self.ranked(&part).into_iter();
        let mut asked = FuturesUnordered::new();
        let mut hedge = Duration::ZERO;
        let (mut second, mut refused) = (None, None);
        let mut patience = Box::pin(tokio::time::sleep_until(deadline.into()));
        loop {
            // Nobody asked yet, or the last one took too long or said no: ask the next.
            if let Some(peer) = candidates.next() {
                hedge = self.hedge_delay(&peer);
                asked.push(self.ask_one(part, peer, deadline));
            } else if asked.is_empty() {
                return second.ok_or(refused);
            }
            let more = candidates.len() > 0;
            let hedged = async { if more { tokio::time::sleep(hedge).await } else { std::future::pending().await } };
            tokio::select! {
                said = asked.next() => match said {
                    // Something else is agreed on: whoever has that is preferred, if it is told soon.
                    Some(Said::Holds(answer)) if answer.is_second_choice() => {
                        let soon = (Instant::now() + SECOND_CHOICE_WAIT).min(deadline);
                        if second.replace(answer).is_none() {
                            patience.as_mut().reset(soon.into());
                        }
                    }
                    Some(Said::Holds(answer)) => return Ok(answer),
                    // The last word: more may be known than when the first one was judged.
                    Some(Said::Refused(refusal)) => refused = Some(refusal),
                    Some(Said::Absent | Said::Nothing) | None => {}
                },
                () = hedged => {}
                () = &mut patience => return second.ok_or(refused),
            }
        }
    }

    fn hedge_delay(&self, peer: &PeerId) -> Duration {
        let usual = self.mesh.board().stats(peer).and_then(|stats| stats.latency);
        usual.map_or(HEDGE_MAX, |usual| (usual * HEDGE_FACTOR).clamp(HEDGE_MIN, HEDGE_MAX))
    }

    async fn ask_one(self: &Arc<Self>, part: HashPart, peer: PeerId, deadline: Instant) -> Said {
        let (board, since) = (self.mesh.board(), Instant::now());
        board.update(&peer, |stats| stats.asked += 1);
        self.decisions.note(part, Decision::Asked(peer));
        let until_not_busy = async {
            loop {
                match self.mesh.ask(peer, Ask::NarInfo(part)).await {
                    Ok(NarInfoReply::Busy) | Err(AskError::Busy) => tokio::time::sleep(BUSY_PAUSE).await,
                    reply => return reply,
                }
            }
        };
        let reply = tokio::time::timeout_at(deadline.into(), until_not_busy).await;
        match reply {
            Ok(Ok(NarInfoReply::Found(text))) => self.judge_answer(part, peer, &text, since, deadline).await,
            Ok(Ok(NarInfoReply::Absent)) => {
                self.decisions.note(part, Decision::Absent(peer));
                if self.misses.is_new(peer, part) {
                    self.counters.false_hits.inc();
                    board.update(&peer, |stats| stats.false_hits += 1);
                    self.mesh.probed(peer, ProbeOutcome::FalseHit).await;
                }
                Said::Absent
            }
            Ok(Ok(NarInfoReply::Busy) | Err(AskError::Busy)) => {
                self.decisions.note(part, Decision::NoAnswer(peer, "busy".to_owned()));
                Said::Nothing
            }
            Ok(Err(error)) => {
                self.decisions.note(part, Decision::NoAnswer(peer, error.to_string()));
                Said::Nothing
            }
            Err(_) => {
                board.timed_out(&peer);
                self.decisions.note(part, Decision::NoAnswer(peer, "silent until the deadline".to_owned()));
                Said::Nothing
            }
        }
    }

    async fn judge_answer(
        self: &Arc<Self>,
        part: HashPart,
        peer: PeerId,
        text: &[u8],
        since: Instant,
        deadline: Instant,
    ) -> Said {
        let generation = self.answers.generation();
        let (trusted, by_verdict) = (&self.settings().trusted, self.gate.demands());
        let parsed = trust::parse(text, &part, &self.store_dir);
        if let Ok(info) = &parsed {
            self.hear_signatures(info, deadline).await;
        }
        let judged = parsed.and_then(|info| trust::judge_info(info, &self.store_dir, trusted, by_verdict));
        let TrustedNarInfo { info, mut proof } = match judged {
            Ok(judged) => judged,
            Err(distrust) => {
                if distrust.is_misdeed() {
                    self.mesh.misbehaved(peer, Misdeed::FalseNarInfo);
                }
                self.decisions.note(part, Decision::Distrusted(peer, distrust.to_string()));
                return Said::Nothing;
            }
        };
        // Nobody attests what is its own address.
        if !matches!(proof, Proof::Contents(_)) {
            self.hear_builders(&info, &proof, deadline).await;
        }
        // What is agreed on need not be read before its narinfo is given.
        let is_agreed = by_verdict && self.gate.decide(&self.store_dir, &info, &proof).is_ok();
        if let Proof::Contents(address) = &proof
            && !is_agreed
        {
            let proven = self.contents_match(peer, &info, address);
            let proven = tokio::time::timeout_at(deadline.into(), proven).await;
            if !matches!(proven, Ok(true)) {
                let why = "its contents could not be checked against the content address".to_owned();
                self.decisions.note(part, Decision::Distrusted(peer, why));
                return Said::Nothing;
            }
            proof = Proof::ContentAddress;
        }
        let pass = match self.admitted(&info, &proof) {
            Ok(pass) => pass,
            Err(refusal) => return Said::Refused(refusal),
        };
        // Before this anybody could have made it up.
        self.mesh.board().update(&peer, |stats| stats.hits += 1);
        self.mesh.probed(peer, ProbeOutcome::Held).await;
        self.decisions.note(part, Decision::Holder(peer, since.elapsed()));
        self.ask_ahead(&info);
        let (resolver, passed) = (Arc::clone(self), Passed { info, proof, pass });
        let remember = move || resolver.answers.remember(&resolver.store_dir, &resolver.gate, generation, passed, peer);
        // Signatures are on disk.
        let answer = match by_verdict {
            true => tokio::task::spawn_blocking(remember).await.ok(),
            false => Some(remember()),
        };
        answer.map_or(Said::Nothing, Said::Holds)
    }
}
