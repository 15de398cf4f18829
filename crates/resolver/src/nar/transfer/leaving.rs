//! When a source is left, and what follows from it.

use std::io;

use tokio::time::Instant;

use super::{Left, Transfer};
use crate::lookup_log::LookupEvent;
use crate::nar::runner::{Runner, Said};
use crate::source::{Observation, Piece, SourceId};

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
            Said::Broke(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.context.sources.observe(source, Observation::FalseNar);
                ends(Left::SaidNo, &error.to_string())
            }
            Said::Broke(error) if error.kind() == io::ErrorKind::InvalidInput => ends(Left::SaidNo, &error.to_string()),
            Said::Broke(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                ends(Left::FailedForNow, &error.to_string())
            }
            Said::Broke(error) => ends(Left::Broke, &error.to_string()),
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
        self.origins.leave(runner.source, self.offset, &why);
        self.context.lookup_log.note(self.url.hash_part, LookupEvent::NarBroken(runner.source, self.offset, why));
    }
}
