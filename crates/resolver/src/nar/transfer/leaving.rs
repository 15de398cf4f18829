//! Why a source is left, and whether it is asked again.

use std::io;

use tokio::time::Instant;

use super::{Step, Transfer};
use crate::lookup_log::LookupEvent;
use crate::nar::runner::{Runner, Said};
use crate::source::{Line, Observation, Piece, SourceId};

/// Why a source is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// It said no, or broke a rule.
    SaidNo,
    /// It named others.
    Referred,
    /// It failed in a way that may be over in a moment.
    FailedForNow,
    /// It is there, and our request could not be sent.
    Unreached,
    /// Its connection broke.
    Broke,
    /// Nothing moves for us.
    Stalled,
}

/// As what a source is left for which nothing moves.
pub(super) fn how_stalled(runner: &Runner, line: &Line) -> Left {
    if runner.is_opening() && line.is_there { Left::Unreached } else { Left::Stalled }
}

impl Transfer {
    /// Whether a source that says this is left, and why. Blames it for what breaks a rule.
    pub(super) fn ending(&self, source: SourceId, said: &Said) -> Option<(Left, String)> {
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
            // Only the connection for NARs cannot be opened; the peer itself is there, and is tried again.
            Said::Unsent(error) if self.line(&source).is_there => ends(Left::Unreached, &error.to_string()),
            // No honest holder sends this.
            Said::Unsent(error) | Said::Broke(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.context.sources.observe(source, Observation::FalseNar);
                ends(Left::SaidNo, &error.to_string())
            }
            // Malformed, too, but the feed has charged the source with it already.
            Said::Unsent(error) | Said::Broke(error) if error.kind() == io::ErrorKind::InvalidInput => {
                ends(Left::SaidNo, &error.to_string())
            }
            Said::Unsent(error) | Said::Broke(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                ends(Left::FailedForNow, &error.to_string())
            }
            Said::Unsent(error) | Said::Broke(error) => ends(Left::Broke, &error.to_string()),
        }
    }

    /// Leaves this source; the transfer goes on without it.
    pub(super) fn leave(&mut self, at: usize, left: Left, why: String) {
        let runner = self.runners.remove(at);
        self.part_with(&runner, left, why);
    }

    pub(super) fn part_with(&mut self, runner: &Runner, left: Left, why: String) {
        self.report_received(runner);
        let has_failed = matches!(left, Left::Broke | Left::Stalled);
        // It is said once, and not with each of many trials.
        let is_known = left == Left::Unreached && !self.endurance.note_unreached(runner.source, &why);
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
            // That a connection of its own cannot be had says nothing about how it answers, so it is not passed over for
            // narinfos: that would be told as absent paths.
            Left::Unreached => {
                let now = Instant::now();
                let begun = now.checked_sub(runner.age(self.waited)).unwrap_or(now);
                self.roster.on_unreached(runner.source, begun, now);
                false
            }
            Left::FailedForNow => !self.roster.on_failed_for_now(runner.source, Instant::now()),
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
            let observation = if left == Left::Stalled { Observation::TimedOut } else { Observation::Unfinished };
            self.context.sources.observe(runner.source, observation);
        }
        if !is_known {
            self.origins.leave(runner.source, self.offset, &why);
        }
        let event = match left {
            Left::Unreached => LookupEvent::NarUnsent(runner.source, why),
            Left::SaidNo | Left::Referred | Left::FailedForNow | Left::Broke | Left::Stalled => {
                LookupEvent::NarBroken(runner.source, self.offset, why)
            }
        };
        if !is_known {
            self.context.lookup_log.note(self.url.hash_part, event);
        }
    }

    /// How a transfer ends that has nobody left to ask.
    pub(super) fn how_it_ends(&self) -> Step {
        let is_there = |source: SourceId| self.line(&source).is_there;
        if self.roster.unreached().any(is_there) { Step::Unreached } else { Step::Gone }
    }
}
