//! How a transfer takes part when many want the same NAR: it reads from those who have it on their way, and passes on what it
//! has got.

use narmesh_protocol::wire::{Referral, SMALL_NAR_BYTES_MAX};

use super::{Left, Transfer};
use crate::nar::proofs::Proofs;
use crate::source::SourceId;

/// Why a source is left that names others.
pub(super) const NAMES_OTHERS: &str = "names others who have it on their way";

impl Transfer {
    /// Whether others get from us what has come.
    pub(super) fn passes_on(&self) -> bool {
        self.partial.is_some()
    }

    /// What we make of names of others. What those send is proven leaf by leaf, or it is not taken from them.
    pub(super) fn referral(&self, source: &SourceId) -> Referral {
        let is_reading = !self.runners.is_empty() || self.parallel.is_some();
        let takes_names = self.url.nar_size > SMALL_NAR_BYTES_MAX && !self.is_strict && self.proofs.is_some();
        match (takes_names, is_reading) {
            (false, _) => Referral::Declined,
            // There is nobody else left who could be asked.
            (true, false) if self.roster.has_referred(source) => Referral::Declined,
            (true, true) if self.parallel.is_none() => Referral::Compared,
            (true, _) => Referral::Welcome,
        }
    }

    /// Goes on with those whom the source with this number has named, or without it if another one sends already.
    pub(super) fn follow_referral(&mut self, at: usize, named: &[SourceId]) {
        let Some(source) = self.runners.get(at).map(|runner| runner.source) else { return };
        self.note_referral(source, named);
        if self.runners.len() > 1 {
            self.race.on_refused(self.waited);
        }
        self.leave(at, Left::Referred, NAMES_OTHERS.to_owned());
    }

    /// Notes that a source has named others. Without a tree they are of no use.
    pub(super) fn note_referral(&mut self, source: SourceId, named: &[SourceId]) {
        let named = if self.proofs.is_some() { named } else { &[] };
        self.roster.refer(source, named);
    }

    /// Whether bytes of this source wait for a tree: it has only passed them on, so it cannot be blamed for them.
    pub(super) fn waits_for_tree(&self, source: &SourceId) -> bool {
        self.roster.is_named(source) && !self.proofs.as_ref().is_some_and(Proofs::have_tree)
    }

    /// Takes nothing from those who pass on, because nothing proves it any more, and passes nothing on.
    pub(super) fn leave_named(&mut self) {
        self.partial = None;
        for at in (0..self.runners.len()).rev() {
            if self.runners.get(at).is_some_and(|runner| self.roster.is_named(&runner.source)) {
                self.leave(at, Left::SaidNo, "nothing proves what it passes on".to_owned());
            }
        }
        self.roster.rule_out_named();
    }

    /// Passes on bytes that were taken over.
    pub(super) fn write_partial(&mut self, bytes: &[u8]) {
        let Some(partial) = self.partial.as_mut() else { return };
        partial.write(bytes);
        if !partial.is_alive() {
            self.partial = None;
        }
        self.prove_partial();
    }

    /// Says how much of it is proven.
    pub(super) fn prove_partial(&self) {
        if let (Some(partial), Some(proofs)) = (&self.partial, &self.proofs) {
            partial.prove(proofs.proven_bytes());
        }
    }
}
