//! The walk of a narinfo: memory, then our own store, then the remembered answers, and at last the candidates, which
//! are asked under one deadline.
//!
//! [`NarInfos`] is the walk. [`ask`] asks candidates, and [`ahead`] asks for what a path refers to; [`judge`] decides
//! what Nix may see, with [`trust`] and the policy at the [`gate`]; [`answers`] remembers it; [`own`] answers from our
//! own store.

mod ahead;
mod answer_writer;
mod answers;
mod ask;
mod false_hits;
mod gate;
mod judge;
mod own;
#[cfg(test)]
mod tests;
mod trust;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{self, Either};
use narmesh_protocol::{HashPart, NarUrl};
use narmesh_quorum::Refusal;

use ahead::NarInfosAhead;
use answers::{Answer, Answers};
use ask::{Asking, NoNarInfo};
use gate::{Gate, leads_to};
use judge::Judge;
use own::{NoOwnAnswer, OwnAnswer, OwnAnswers};

use crate::Remembered;
use crate::answer_store::AnswerStore;
use crate::builders::Builders;
use crate::lookup_log::{AtOnce, LookupEvent, NotFound};
use crate::nar::ContentsCheck;
use crate::shared::Shared;
use crate::turns::FindUser;

pub use ask::{hedge_delay, pause_before_retry};
pub use gate::{Reason, Refused};

/// If the disk hangs, a lookup ends this much later than the latest deadline of the candidates.
const DISK_HANGS: Duration = Duration::from_secs(1);

/// A narinfo as Nix gets it.
#[derive(Debug)]
pub(crate) struct GivenNarInfo {
    /// The text of the narinfo.
    pub(crate) rendered: Bytes,
    /// Whether it describes a path of our own store, whose NAR comes from no source.
    pub(crate) is_own: bool,
}

impl GivenNarInfo {
    fn own(answer: OwnAnswer) -> Self {
        Self { rendered: answer.rendered, is_own: true }
    }
}

/// What memory knows of a path.
#[derive(Debug)]
pub(crate) enum InMemory {
    /// Nobody can have it.
    Absent,
    /// The narinfo is in memory.
    Known(GivenNarInfo),
    /// Somebody may have it.
    Unknown,
}

/// Answers narinfo requests, from our own store or from candidates.
#[derive(Debug)]
pub(crate) struct NarInfos {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    own: Arc<OwnAnswers>,
    answers: Arc<Answers>,
    asking: Arc<Asking>,
}

impl NarInfos {
    /// Answers are remembered in `store`; `contents` checks content-addressed paths that nobody trusted signed.
    pub(crate) fn new(
        shared: Arc<Shared>,
        builders: Arc<dyn Builders>,
        store: Arc<dyn AnswerStore>,
        contents: ContentsCheck,
    ) -> Self {
        let gate = Arc::new(Gate::new(Arc::clone(&shared), builders));
        let answers = Arc::new(Answers::new(Arc::clone(&shared), Arc::clone(&gate), store));
        let judge = Judge::new(Arc::clone(&shared), Arc::clone(&gate), Arc::clone(&answers), contents);
        let asking = Asking::new(Arc::clone(&shared), Arc::clone(&gate), Arc::clone(&answers), judge);
        let own = Arc::new(OwnAnswers::new(Arc::clone(&shared), Arc::clone(&gate)));
        Self { shared, gate, own, answers, asking: Arc::new(asking) }
    }

    /// The policy.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Makes every answer be judged again before it is given, because the settings have changed.
    pub(crate) fn distrust(&self) {
        self.gate.set_key(self.shared.settings().gateway_key.clone());
        self.own.clear();
        self.answers.distrust();
    }

    /// Drops the rendered answers about these paths, because our own store has changed.
    pub(crate) fn on_own_changed(&self, parts: &[HashPart]) {
        self.own.invalidate(parts);
    }

    /// Why a path of our own store is not given to Nix, in words. Reads the disk.
    pub(crate) fn explain_own_refusal(&self, part: &HashPart) -> Option<String> {
        self.own.explain_refusal(part)
    }

    /// What is remembered of a path, for `why`.
    pub(crate) fn in_memory(&self, part: &HashPart) -> Option<Remembered> {
        let answer = self.answers.in_memory(part)?;
        Some(Remembered {
            age: answer.since.elapsed(),
            holders: answer.holders().collect(),
            url: answer.url,
            would_stand: answer.would_stand(&self.gate),
            is_fresh: answer.is_fresh(&*self.shared.sources),
        })
    }

    /// The name of a path whose narinfo is in memory.
    pub(crate) fn name_in_memory(&self, part: &HashPart) -> Option<String> {
        if let Some(answer) = self.answers.in_memory(part) {
            return Some(answer.info.path.name().to_owned());
        }
        self.own.name_in_memory(part)
    }

    /// The answers about these paths that are in memory.
    pub(crate) fn answers_in_memory<'a>(&self, parts: impl IntoIterator<Item = &'a HashPart>) -> Vec<Arc<Answer>> {
        parts.into_iter().filter_map(|part| self.answers.in_memory(part)).collect()
    }

    /// The remembered answer about a path that a source still claims.
    pub(crate) async fn recall(&self, part: HashPart) -> Option<Arc<Answer>> {
        self.answers.recall(part).await
    }

    /// Forgets the answer about a path whose NAR nobody could send, so that the next lookup asks again.
    pub(crate) fn forget(&self, part: HashPart) {
        self.answers.forget(part);
    }

    /// Answers from memory alone, without waiting and without reading the disk.
    pub(crate) fn look_up(&self, part: HashPart) -> InMemory {
        self.gate.note_asked(part);
        if self.shared.has(&part) {
            let Some(own) = self.own.in_memory(&part) else { return InMemory::Unknown };
            self.shared.lookup_log.note_at_once(part, AtOnce::OwnStore);
            return InMemory::Known(GivenNarInfo { rendered: own.rendered, is_own: true });
        }
        if !self.shared.sources.look_up(&part) {
            // Peers have not said yet what they have, so their silence does not make the path absent.
            if self.shared.sources.are_gathering() {
                return InMemory::Unknown;
            }
            self.shared.lookup_log.note_at_once(part, AtOnce::NotClaimed);
            return InMemory::Absent;
        }
        let stands = |answer: &Arc<Answer>| answer.is_fresh(&*self.shared.sources) && answer.stands(&self.gate);
        let Some(answer) = self.answers.in_memory(&part).filter(stands) else { return InMemory::Unknown };
        self.shared.lookup_log.note_at_once(part, AtOnce::Remembered);
        InMemory::Known(GivenNarInfo { rendered: answer.rendered.clone(), is_own: false })
    }

    /// The narinfo of a path, within the deadline of the settings.
    pub(crate) async fn find(&self, part: HashPart, find_user: &FindUser) -> Option<GivenNarInfo> {
        // Usually the deadline of the candidates ends a lookup; this one is for a disk that hangs.
        let longest = self.shared.settings().narinfo_deadline_max + DISK_HANGS;
        let found = tokio::time::timeout(longest, self.find_in_time(part, find_user)).await;
        found.unwrap_or_else(|_| {
            self.shared.counters.deadlines.inc();
            self.shared.lookup_log.note(part, LookupEvent::Deadline(longest));
            None
        })
    }

    async fn find_in_time(&self, part: HashPart, find_user: &FindUser) -> Option<GivenNarInfo> {
        let own = if self.shared.has(&part) { self.own.answer(part).await } else { Err(NoOwnAnswer::Absent) };
        match own {
            Ok(own) => Some(GivenNarInfo::own(own)),
            Err(NoOwnAnswer::NotNow) => self.find_while_locked(part, find_user).await,
            Err(no_own @ (NoOwnAnswer::Refused(_) | NoOwnAnswer::Absent)) => {
                self.find_elsewhere(part, no_own, find_user).await
            }
        }
    }

    /// Our own store cannot be read now. Whoever answers first counts: a source, or our own store as soon as it can be
    /// read. The path is absent only if our own store says so.
    async fn find_while_locked(&self, part: HashPart, find_user: &FindUser) -> Option<GivenNarInfo> {
        let own = pin!(self.own.wait_for(part));
        let elsewhere = pin!(self.find_elsewhere(part, NoOwnAnswer::NotNow, find_user));
        match future::select(own, elsewhere).await {
            Either::Left((Ok(own), _)) => Some(GivenNarInfo::own(own)),
            Either::Left((Err(_), elsewhere)) => elsewhere.await,
            Either::Right((Some(given), _)) => Some(given),
            Either::Right((None, own)) => own.await.ok().map(GivenNarInfo::own),
        }
    }

    /// The narinfo of a path that our own store does not give, for the reason `no_own`.
    async fn find_elsewhere(&self, part: HashPart, no_own: NoOwnAnswer, find_user: &FindUser) -> Option<GivenNarInfo> {
        let given = |answer: &Answer| Some(GivenNarInfo { rendered: answer.rendered.clone(), is_own: false });
        let remembered = self.recall(part).await;
        if let Some(answer) = remembered.as_ref().filter(|answer| answer.is_fresh(&*self.shared.sources)) {
            self.shared.lookup_log.note(part, LookupEvent::Remembered);
            return given(answer);
        }
        // A remembered answer that is not fresh is kept for the case that no candidate answers now.
        self.shared.counters.asked.inc();
        match (self.asking.ask(part, find_user()).await, remembered) {
            (Ok(answer), _) => given(&answer),
            // The answer was true when it was given, and a source still claims the path.
            (Err(NoNarInfo::NotNow), Some(remembered)) => {
                self.shared.lookup_log.note(part, LookupEvent::Remembered);
                given(&remembered)
            }
            (Err(none @ (NoNarInfo::NotNow | NoNarInfo::Absent)), _) => {
                let why = match (no_own, none) {
                    (NoOwnAnswer::Refused(refusal), _) => NotFound::OwnRefused(refusal),
                    (NoOwnAnswer::NotNow, _) => NotFound::OwnLocked,
                    (NoOwnAnswer::Absent, NoNarInfo::NotNow) => NotFound::NotNow,
                    (NoOwnAnswer::Absent, NoNarInfo::Absent | NoNarInfo::Refused(_)) => NotFound::Nobody,
                };
                if let NoOwnAnswer::Refused(refusal) = no_own {
                    self.gate.count_refusal(refusal);
                }
                self.shared.lookup_log.note(part, LookupEvent::NotFound(why));
                None
            }
            // The refusal was counted and noted when it was made.
            (Err(NoNarInfo::Refused(_)), _) => None,
        }
    }

    async fn find_own(&self, part: HashPart) -> Option<OwnAnswer> {
        if !self.shared.has(&part) {
            return None;
        }
        match self.own.answer(part).await {
            Err(NoOwnAnswer::NotNow) => {
                let longest = self.shared.settings().narinfo_deadline_max;
                tokio::time::timeout(longest, self.own.wait_for(part)).await.ok()?.ok()
            }
            answer => answer.ok(),
        }
    }

    /// Whether the narinfo that Nix would get now leads to this NAR.
    pub(crate) async fn leads_to(&self, url: &NarUrl) -> bool {
        // Without a verdict an older narinfo stays good: its NAR may come from a holder that is no longer asked for
        // narinfos.
        if !self.gate.demands() {
            return true;
        }
        let part = url.hash_part;
        if let Some(own) = self.find_own(part).await {
            return leads_to(&own.url, url);
        }
        self.recall(part).await.is_some_and(|answer| leads_to(&answer.url, url))
    }

    /// Whether Nix may have this NAR now, whatever narinfo it got before. If so, notes that Nix gets it.
    ///
    /// A URL without a fingerprint was given when no verdict was demanded: that narinfo has no signature of the
    /// gateway.
    pub(crate) async fn admit_nar(&self, url: &NarUrl, find_user: &FindUser) -> bool {
        if !self.gate.demands() {
            return true;
        }
        let part = url.hash_part;
        if let Some(own) = self.find_own(part).await
            && leads_to(&own.url, url)
        {
            self.gate.note_given(own.on_word);
            return true;
        }
        let answer = match self.recall(part).await {
            Some(answer) => Ok(answer),
            None => self.asking.ask(part, find_user()).await,
        };
        let Ok(answer) = answer else {
            self.shared.lookup_log.note(part, LookupEvent::NarRefused);
            return false;
        };
        // Nix holds a narinfo of other contents than those that are agreed on now.
        if !leads_to(&answer.url, url) {
            self.gate.count_refusal(Refusal::OtherFingerprint);
            self.shared.lookup_log.note(part, LookupEvent::NarRefused);
            return false;
        }
        self.gate.note_given(self.gate.given_on_word(&answer.info, answer.voters()));
        true
    }
}
