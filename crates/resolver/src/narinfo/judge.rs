//! Judges a candidate's narinfo: whether a trusted key vouches for it, whether its contents match its content address,
//! and whether the policy lets it through.

use std::sync::Arc;

use narmesh_protocol::{HashPart, find_signed_deriver};
use narmesh_quorum::Refusal;
use tokio::time::Instant;

use super::answers::{Answer, Answers};
use super::gate::{Gate, Passed};
use super::trust::{self, Proof, TrustedNarInfo};
use crate::lookup_log::LookupEvent;
use crate::nar::ContentsCheck;
use crate::shared::Shared;
use crate::source::{Candidate, Observation};

/// What one candidate said.
pub(super) enum Said {
    /// It holds the path, and this is what Nix may get.
    Holds(Arc<Answer>),
    /// The policy does not let through what it holds.
    Refused(Refusal),
    /// It does not hold the path, or its narinfo may not be handed on.
    Absent,
    /// It gave no answer, or its answer could not be checked.
    Nothing,
    /// It gave no answer, and may give one to the same question.
    NothingForNow,
    /// It asks to be asked again later, and will answer then.
    NothingYet,
}

/// Judges the answers of candidates, and remembers those that pass.
#[derive(Debug)]
pub(super) struct Judge {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    answers: Arc<Answers>,
    contents: ContentsCheck,
}

impl Judge {
    pub(super) fn new(shared: Arc<Shared>, gate: Arc<Gate>, answers: Arc<Answers>, contents: ContentsCheck) -> Self {
        Self { shared, gate, answers, contents }
    }

    /// Judges the narinfo `text` that `candidate`, asked at `since`, gave for `part`. Waits until the deadline at most
    /// for builders and for contents that have to be hashed.
    pub(super) async fn judge(
        &self,
        part: HashPart,
        candidate: Candidate,
        text: &[u8],
        since: Instant,
        deadline: Instant,
    ) -> Said {
        let source = candidate.source;
        // Taken before anything is judged: if trust changes meanwhile, the answer is given once and not remembered.
        let trust_changes = self.answers.trust_changes();
        let (settings, by_verdict) = (self.shared.settings(), self.gate.demands());
        let of_source = self.shared.sources.trusted_keys(&source);
        let trusted = of_source.as_deref().unwrap_or(&settings.trusted);
        let parsed = trust::parse(text, &part, &self.shared.store_dir);
        if let Ok(info) = &parsed {
            self.gate.hear_signatures(info, deadline).await;
        }
        let judged = parsed.and_then(|info| trust::judge_info(info, &self.shared.store_dir, trusted, by_verdict));
        let TrustedNarInfo { mut info, mut proof } = match judged {
            Ok(judged) => judged,
            Err(distrust) => {
                let observation = match distrust.is_misdeed() {
                    true => Observation::FalseNarInfo,
                    false => Observation::UntrustedNarInfo,
                };
                self.shared.sources.observe(source, observation);
                self.shared.lookup_log.note(part, LookupEvent::Distrusted(source, distrust.to_string()));
                return Said::Absent;
            }
        };
        info.deriver = find_signed_deriver(&self.shared.store_dir, text, &info.path, trusted);
        // Nobody attests a content-addressed path, so there is nobody to ask.
        if !matches!(proof, Proof::Contents(_)) {
            self.gate.hear_builders(&info, &proof, deadline).await;
        }
        // If the fingerprint is agreed on, the contents need not be read before the narinfo is given.
        let is_agreed = by_verdict && self.gate.decide(&info, &proof).is_ok();
        if let Proof::Contents(address) = &proof
            && !is_agreed
        {
            let proven = self.contents.check(source, &info, address);
            let proven = tokio::time::timeout_at(deadline, proven).await;
            if !matches!(proven, Ok(true)) {
                let why = "its contents could not be checked against the content address".to_owned();
                self.shared.lookup_log.note(part, LookupEvent::Distrusted(source, why));
                return Said::Nothing;
            }
            proof = Proof::ContentAddress;
        }
        let pass = match self.gate.admit(&info, &proof) {
            Ok(pass) => pass,
            Err(refusal) => return Said::Refused(refusal),
        };
        // Only now: a narinfo that has not been judged may be invented, and must not count as held.
        self.shared.sources.observe(source, Observation::Held);
        self.shared.lookup_log.note(part, LookupEvent::Holder(source, since.elapsed()));
        let (answers, passed) = (Arc::clone(&self.answers), Passed { info, proof, pass });
        let remember = move || answers.remember(trust_changes, passed, candidate);
        // With a verdict, rendering reads the signatures of builders from the disk.
        let answer = match by_verdict {
            true => tokio::task::spawn_blocking(remember).await.ok(),
            false => Some(remember()),
        };
        answer.map_or(Said::Nothing, Said::Holds)
    }
}
