//! How a transfer takes part when many want the same NAR: it reads from those who have it on their way, and passes on what it
//! has got.

use narmesh_protocol::wire::{Referral, SMALL_NAR_BYTES_MAX};

use std::time::Duration;

use super::{Left, Transfer};
use crate::nar::proofs::Proofs;
use crate::source::{MeetingPlace, Observation, SourceId};

/// Why a source is left that names others.
pub(super) const NAMES_OTHERS: &str = "names others who have it on their way";

/// A neighbour that was asked before a cache, and of which nothing has come for this long, is left for the cache.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// The same of one that says that it waits for the bytes itself.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// What is known of others who fetch the NAR from an upstream cache, too.
#[derive(Debug)]
pub(super) struct Meeting {
    /// The peer that is asked who they are, if it is not this machine.
    place: Option<SourceId>,
    /// Whether the cache may be asked while a neighbour sends: because nobody decides which of us does, or it was our turn.
    may_compare: bool,
}

impl Transfer {
    /// Asks, before the caches, whoever fetches the NAR from one already.
    pub(crate) fn meet(&mut self, place: MeetingPlace) {
        // Who lied is found out by reading each source alone, and a neighbour passes on what others sent.
        if self.is_strict {
            return;
        }
        let (place, named) = match place {
            MeetingPlace::At(place) => (Some(place), vec![place]),
            MeetingPlace::Here(named) => (None, named),
        };
        let is_trusted = |source: &SourceId| !self.roster.is_suspect(source);
        let named: Vec<_> = named.into_iter().filter(is_trusted).collect();
        self.roster.name(&named);
        self.meeting = Some(Meeting { place, may_compare: place.is_none() });
    }

    /// Whether this source passes on what comes from a cache, which proves nothing before the NAR is whole.
    pub(super) fn has_only_passed_on(&self, source: &SourceId) -> bool {
        self.meeting.is_some() && self.roster.is_named(source)
    }

    /// Leaves a neighbour from which nothing comes: the cache is there as well.
    pub(super) fn leave_silent_neighbour(&mut self) {
        let [runner] = self.runners.as_slice() else { return };
        let (source, idle) = (runner.source, runner.idle_time(self.waited));
        let patience = if runner.is_queued() { WAIT_MAX } else { SILENCE_MAX };
        if runner.bytes() > 0 || idle < patience || !self.has_only_passed_on(&source) {
            return;
        }
        if !runner.is_queued() {
            self.context.sources.observe(source, Observation::TimedOut);
        }
        self.leave(0, Left::SaidNo, format!("nothing for {idle:.0?}, and a cache has it"));
    }

    /// Notes that the meeting place, asked while another one sends, names nobody: it is our turn to compare the cache.
    pub(super) fn note_released(&mut self, source: &SourceId, left: Left) {
        let is_reading = !self.runners.is_empty();
        if let Some(meeting) = &mut self.meeting
            && meeting.place == Some(*source)
        {
            meeting.may_compare |= is_reading || left != Left::SaidNo;
        }
    }

    /// Who could be quicker than the source under way. While a neighbour sends what comes from a cache, nobody asks the cache
    /// unless it is his turn.
    pub(super) fn challenger(&self) -> Option<SourceId> {
        let first = self.runners.first()?;
        match &self.meeting {
            Some(meeting) if self.roster.is_named(&first.source) && !meeting.may_compare => {
                self.roster.first_referred()
            }
            _ => self.roster.challenger(self.bytes_left(), |source| self.context.sources.line(source)),
        }
    }

    /// Whether the source under way gets the NAR over the line of this one.
    pub(super) fn is_related(&self, other: &SourceId) -> bool {
        let is_passed_on = self.runners.first().is_some_and(|first| self.has_only_passed_on(&first.source));
        self.roster.has_referred(other) || is_passed_on
    }

    /// Whether others get from us what has come. What comes from a cache is passed on only to who knows that it does.
    pub(super) fn passes_on(&self, to: &SourceId) -> bool {
        self.partial.is_some() && (self.meeting.is_none() || self.roster.is_named(to))
    }

    /// What we make of names of others. What those send is proven leaf by leaf, or it is not taken from them.
    pub(super) fn referral(&self, source: &SourceId) -> Referral {
        let is_reading = !self.runners.is_empty() || self.parallel.is_some();
        let is_provable = self.url.nar_size > SMALL_NAR_BYTES_MAX && self.proofs.is_some();
        let takes_names = !self.is_strict && (is_provable || self.meeting.is_some());
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
        let is_of_use = |name: &&SourceId| !(self.meeting.is_some() && self.roster.is_suspect(name));
        let named: Vec<_> = named.iter().filter(is_of_use).copied().collect();
        let named = if self.proofs.is_some() || self.meeting.is_some() { named } else { Vec::new() };
        self.roster.refer(source, &named);
    }

    /// Whether bytes of this source wait for a tree: it has only passed them on, so it cannot be blamed for them.
    pub(super) fn waits_for_tree(&self, source: &SourceId) -> bool {
        self.meeting.is_none() && self.roster.is_named(source) && !self.proofs.as_ref().is_some_and(Proofs::have_tree)
    }

    /// Takes nothing from those who pass on, because nothing proves it any more, and passes nothing on.
    pub(super) fn leave_named(&mut self) {
        if self.meeting.is_some() {
            return;
        }
        self.partial = None;
        // From the end, because whoever is left leaves the list.
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
