//! Takes over the bytes of a NAR that its sources sent, leaf by leaf where a tree proves them.

use narmesh_protocol::nar_tree::LeafHash;

use super::{Left, Step, Transfer, WRONG_LEAF};
use crate::lookup_log::LookupEvent;
use crate::nar::proofs::{Judgement, Portion};
use crate::nar::runner::Runner;
use crate::source::{Observation, SourceId};

impl Transfer {
    /// Takes over what the only source under way sent during a race, or while its leaf was not whole.
    pub(super) fn take_tail(&mut self, out: &mut Vec<u8>) -> Option<Step> {
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
    pub(super) fn take_portion(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        // While two race it is not decided yet whose bytes go on.
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
            // It signed a tree of its own that says otherwise, so nobody else need be believed.
            Judgement::AgainstItself => {
                self.blame(source, LookupEvent::NarLeafLie(source));
                self.leave(0, Left::SaidNo, WRONG_LEAF.to_owned());
            }
            // It may be right and the signers of the tree wrong, so it is not blamed.
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
    pub(super) fn take(
        &mut self,
        source: SourceId,
        bytes: Vec<u8>,
        leaf: Option<LeafHash>,
        out: &mut Vec<u8>,
    ) -> Option<Step> {
        if let Some(proofs) = &mut self.proofs {
            proofs.on_taken(&bytes, leaf, self.waited);
        }
        let is_nar = self.verifier.as_mut().is_none_or(|verifier| verifier.feed(&bytes).is_ok());
        // Noted before the verifier is believed: this may be the source that lied.
        if !self.contributors.contains(&source) {
            if self.offset > 0 && !self.contributors.is_empty() {
                self.context.counters.continued.inc();
            }
            self.contributors.push(source);
        }
        if !is_nar {
            return Some(self.on_lie(out));
        }
        self.origins.add(source, self.offset, bytes.len() as u64);
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

    /// Counts what a request received, and reports it to the ranking of sources.
    pub(super) fn report_received(&self, runner: &Runner) {
        self.context.counters.bytes_in.inc_by(runner.wire_bytes());
        let (bytes, elapsed) = (runner.wire_bytes(), runner.age(self.waited));
        self.context.request_log.add_received(runner.source, runner.bytes(), elapsed);
        let line_bytes = runner.line_bytes(&self.line(&runner.source)).max(bytes);
        self.context.sources.observe(runner.source, Observation::Received { bytes, line_bytes, elapsed });
    }
}
