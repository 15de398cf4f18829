//! The walk of a narinfo: memory, our own store, what is remembered, else the candidates, asked under one deadline.
//!
//! [`NarInfos`] walks. [`ask`] asks candidates, and [`ahead`] for what a path refers to; [`judge`], with [`trust`] and the policy at
//! the [`gate`], decides what Nix may see; [`answers`] remembers it; [`own`] answers for our own store.

mod ahead;
mod answer_writer;
mod answers;
mod ask;
mod false_hits;
mod gate;
mod judge;
mod own;
mod trust;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use narmesh_protocol::{HashPart, NarUrl};
use narmesh_quorum::Refusal;

use ahead::NarInfosAhead;
use answers::{Answer, Answers};
use ask::{Asking, NoNarInfo};
use gate::{Gate, leads_to};
use judge::Judge;
use own::{OwnAnswer, OwnAnswers};

use crate::Remembered;
use crate::answer_store::AnswerStore;
use crate::builders::Builders;
use crate::lookup_log::{AtOnce, LookupEvent, NotFound};
use crate::nar::ContentsCheck;
use crate::shared::Shared;

pub use gate::{Reason, Refused};

/// Candidates are waited for up to their deadlines; a disk that hangs ends a narinfo this much later.
const DISK_HANGS: Duration = Duration::from_secs(1);

/// A narinfo as Nix gets it.
#[derive(Debug)]
pub(crate) struct Given {
    /// The text.
    pub(crate) rendered: Bytes,
    /// Of our own store: its NAR comes from no source.
    pub(crate) is_own: bool,
}

/// What memory knows of a path.
#[derive(Debug)]
pub(crate) enum InMemory {
    /// Nobody can have it.
    Absent,
    /// This.
    Known(Given),
    /// Somebody may have it.
    Unknown,
}

/// Everything about narinfos.
#[derive(Debug)]
pub(crate) struct NarInfos {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    own: Arc<OwnAnswers>,
    answers: Arc<Answers>,
    asking: Arc<Asking>,
}

impl NarInfos {
    /// Remembered in `store`; a content-addressed path that nobody signed is looked at with `contents`.
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

    /// The settings changed: every answer is judged again before it is given.
    pub(crate) fn distrust(&self) {
        self.gate.set_key(self.shared.settings().gateway_key.clone());
        self.own.clear();
        self.answers.distrust();
    }

    /// Our own store changed: rendered answers about these paths are stale.
    pub(crate) fn own_changed(&self, parts: &[HashPart]) {
        self.own.invalidate(parts);
    }

    /// Why a path of our own store is not given to Nix, in words. Reads the disk.
    pub(crate) fn own_not_given(&self, part: &HashPart) -> Option<String> {
        self.own.not_given(part)
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

    /// What was given of these paths lately.
    pub(crate) fn given<'a>(&self, parts: impl IntoIterator<Item = &'a HashPart>) -> Vec<Arc<Answer>> {
        parts.into_iter().filter_map(|part| self.answers.in_memory(part)).collect()
    }

    /// What is remembered of a path that somebody still claims to hold.
    pub(crate) async fn remembered(&self, part: HashPart) -> Option<Arc<Answer>> {
        self.answers.remembered(part).await
    }

    /// Drops what is remembered of a path whose NAR nobody could send: the next look-up asks again.
    pub(crate) fn forget(&self, part: HashPart) {
        self.answers.forget(part);
    }

    /// Answers from memory alone, without waiting and without touching a disk.
    pub(crate) fn look_up(&self, part: HashPart) -> InMemory {
        self.gate.asked(part);
        if self.shared.has(&part) {
            let Some(own) = self.own.in_memory(&part) else { return InMemory::Unknown };
            self.shared.lookup_log.note_at_once(part, AtOnce::OwnStore);
            return InMemory::Known(Given { rendered: own.rendered, is_own: true });
        }
        if !self.shared.sources.is_claimed(&part) {
            self.shared.lookup_log.note_at_once(part, AtOnce::NotClaimed);
            return InMemory::Absent;
        }
        let stands = |answer: &Arc<Answer>| answer.is_fresh(&*self.shared.sources) && answer.stands(&self.gate);
        let Some(answer) = self.answers.in_memory(&part).filter(stands) else { return InMemory::Unknown };
        self.shared.lookup_log.note_at_once(part, AtOnce::Remembered);
        InMemory::Known(Given { rendered: answer.rendered.clone(), is_own: false })
    }

    /// The narinfo of a path, within the deadline of the settings.
    pub(crate) async fn find(&self, part: HashPart) -> Option<Given> {
        // The candidates' own deadline ends it; a disk that hangs ends it later.
        let longest = self.shared.settings().narinfo_deadline_max + DISK_HANGS;
        let found = tokio::time::timeout(longest, self.find_in_time(part)).await;
        found.unwrap_or_else(|_| {
            self.shared.counters.deadlines.inc();
            self.shared.lookup_log.note(part, LookupEvent::Deadline(longest));
            None
        })
    }

    async fn find_in_time(&self, part: HashPart) -> Option<Given> {
        let mut refused = None;
        if self.shared.has(&part) {
            match self.own.answer(part).await {
                Ok(answer) => return Some(Given { rendered: answer.rendered, is_own: true }),
                Err(refusal) => refused = refusal,
            }
        }
        let given = |answer: &Answer| Some(Given { rendered: answer.rendered.clone(), is_own: false });
        let remembered = self.remembered(part).await;
        if let Some(answer) = remembered.as_ref().filter(|answer| answer.is_fresh(&*self.shared.sources)) {
            self.shared.lookup_log.note(part, LookupEvent::Remembered);
            return given(answer);
        }
        self.shared.counters.asked.inc();
        match (self.asking.asked(part).await, remembered) {
            (Ok(answer), _) => given(&answer),
            // It was true when it was said, and whoever said it still claims the path.
            (Err(NoNarInfo::NotNow), Some(remembered)) => {
                self.shared.lookup_log.note(part, LookupEvent::Remembered);
                given(&remembered)
            }
            (Err(none @ (NoNarInfo::NotNow | NoNarInfo::Absent)), _) => {
                let why = match (refused, none) {
                    (Some(refusal), _) => NotFound::OwnRefused(refusal),
                    (None, NoNarInfo::NotNow) => NotFound::NotNow,
                    (None, NoNarInfo::Absent | NoNarInfo::Refused(_)) => NotFound::Nobody,
                };
                if let Some(refusal) = refused {
                    self.gate.not_given(refusal);
                }
                self.shared.lookup_log.note(part, LookupEvent::NotFound(why));
                None
            }
            // Counted already.
            (Err(NoNarInfo::Refused(_)), _) => None,
        }
    }

    async fn own_answer(&self, part: HashPart) -> Option<OwnAnswer> {
        if !self.shared.has(&part) {
            return None;
        }
        self.own.answer(part).await.ok()
    }

    /// Whether what Nix would be given now leads to this NAR.
    pub(crate) async fn leads_to(&self, url: &NarUrl) -> bool {
        // Whoever made another promise keeps it: the NAR may come from a holder that is not asked for narinfos any more.
        if !self.gate.demands() {
            return true;
        }
        let part = url.hash_part;
        if let Some(own) = self.own_answer(part).await {
            return leads_to(&own.url, url);
        }
        self.remembered(part).await.is_some_and(|answer| leads_to(&answer.url, url))
    }

    /// Whether Nix may have this NAR now, whatever it was told when it asked for the narinfo. Notes that it gets it.
    ///
    /// A URL without a fingerprint was given when no verdict was demanded: that narinfo has no signature of the gateway.
    pub(crate) async fn admit_nar(&self, url: &NarUrl) -> bool {
        if !self.gate.demands() {
            return true;
        }
        let part = url.hash_part;
        if let Some(own) = self.own_answer(part).await
            && leads_to(&own.url, url)
        {
            self.gate.note_given(own.on_word);
            return true;
        }
        let answer = match self.remembered(part).await {
            Some(answer) => Ok(answer),
            None => self.asking.asked(part).await,
        };
        let Ok(answer) = answer else {
            self.shared.lookup_log.note(part, LookupEvent::NarRefused);
            return false;
        };
        if !leads_to(&answer.url, url) {
            self.gate.not_given(Refusal::OtherFingerprint);
            self.shared.lookup_log.note(part, LookupEvent::NarRefused);
            return false;
        }
        self.gate.note_given(self.gate.on_word(&answer.info, answer.voters()));
        true
    }
}
