//! Judges a NAR whose bytes are all there, and those who sent it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use narmesh_protocol::nar::{NarError, NarVerifier};

use super::{Step, Transfer};
use crate::lookup_log::LookupEvent;
use crate::nar::proofs::Proofs;
use crate::nar::runner::Runner;
use crate::source::{Observation, SourceId};

/// How long the end mark of a body that arrived whole is waited for; if it does not come, the stream is closed and
/// nothing else happens.
const END_MARK_MAX: Duration = Duration::from_secs(3);

impl Transfer {
    /// Checks whether the bytes, which are all there, are the promised NAR.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) -> Step {
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
            // Who signed a wrong tree and sent its leaves did one wrong, and is charged once.
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
    pub(super) fn read_end(&self, runner: Runner) {
        self.report_received(&runner);
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
    pub(super) fn on_lie(&mut self, out: &mut Vec<u8>) -> Step {
        for runner in std::mem::take(&mut self.runners) {
            self.report_received(&runner);
        }
        self.stop_parallel();
        let last = self.contributors.last().copied();
        let signed = self.proofs.as_mut().map(Proofs::refute).unwrap_or_default();
        for liar in &signed {
            self.blame(*liar, LookupEvent::NarTreeLie(*liar));
        }
        match self.contributors.as_slice() {
            [liar] if signed.contains(liar) => {}
            &[sender] => match self.verifier.as_ref().and_then(NarVerifier::failure) {
                // It may well be what was promised.
                Some(NarError::Depth) => self.refuse_deep_nar(sender),
                Some(_) | None => self.blame(sender, LookupEvent::NarLie(sender)),
            },
            // Those who sent what was signed could not know better.
            _ if !signed.is_empty() => {}
            several => {
                let event = LookupEvent::NarMixedLie(several.len());
                tracing::warn!(
                    hash_part = %self.url.hash_part, senders_of_parts = ?several,
                    "{event}; those that did not send its end are asked last for an hour"
                );
                self.context.lookup_log.note(self.url.hash_part, event);
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
    pub(super) fn blame(&mut self, liar: SourceId, lie: LookupEvent) {
        self.context.lookup_log.note(self.url.hash_part, lie);
        self.context.nar_faults.note_liar(self.url.nar_hash, liar);
        // It may have passed on what another one sent it, in good faith: it is only asked last.
        if self.has_only_passed_on(&liar) {
            self.context.nar_faults.suspect(liar);
        } else {
            self.context.sources.observe(liar, Observation::FalseNar);
        }
        self.roster.rule_out(liar);
    }

    /// Notes that a source sent a NAR that is too deep, and asks it no more for it.
    fn refuse_deep_nar(&mut self, sender: SourceId) {
        self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarTooDeep(sender));
        self.context.nar_faults.note_liar(self.url.nar_hash, sender);
        self.context.sources.observe(sender, Observation::DeepNar);
        self.roster.rule_out(sender);
    }

    pub(super) fn begin_anew(&mut self, out: &mut Vec<u8>, first: Option<SourceId>) -> Step {
        out.clear();
        self.origins.begin_anew();
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
}
