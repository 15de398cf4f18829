//! How long the fleet takes to agree again after each event, for scenarios that ask for it.

use crate::checker::liveness::find_reachable;
use crate::number::Number;
use crate::scenario::What;
use crate::schedule::Happening;
use crate::world::World;
use serde::Serialize;
use std::collections::BTreeSet;

/// How often the tables are compared, microseconds.
const LOOK_US: u64 = 20_000;

/// One event, and when every table was right again.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct EventFigure {
    /// When it began, seconds after the start of the measured time.
    pub at_s: f64,
    /// The kind of event.
    pub what: What,
    /// The machine that it happened to; 0 when a whole site was partitioned.
    pub node: usize,
    /// The site, if the event names one.
    pub site: Option<String>,
    /// How long it lasted, seconds.
    pub for_s: u64,
    /// From the event's end until each table equalled the present state of every owner within reach, milliseconds; `None`
    /// when the run ended before.
    pub equal_after_ms: Option<f64>,
}

/// The figures of events, and the events whose tables are not equal yet.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) figures: Vec<EventFigure>,
    /// Indices of `figures`, and when the event ended.
    open: Vec<(usize, u64)>,
}

impl World {
    /// The machines that must hear of each owner now.
    pub(crate) fn find_reach(&self) -> Vec<BTreeSet<Number>> {
        find_reachable(&self.fleet.machines, &self.network)
    }

    /// Notes an event that begins now and ends after `for_us`.
    pub(crate) fn watch_event(&mut self, event: usize, number: Number, for_us: u64) {
        let Some(event) = self.fleet.scenario.event.get(event).filter(|_| self.fleet.scenario.watch) else { return };
        let since_us = self.fleet.now_us() - self.figures.begun_us.unwrap_or(0);
        self.watch.figures.push(EventFigure {
            at_s: since_us as f64 / 1e6,
            what: event.what,
            node: number,
            site: event.site.clone(),
            for_s: for_us / 1_000_000,
            equal_after_ms: None,
        });
        let figure = self.watch.figures.len() - 1;
        self.fleet.schedule.after_us(for_us, Happening::Watched(figure));
    }

    /// An event ended: from now on the tables are compared until all are equal.
    pub(crate) fn on_event_ended(&mut self, figure: usize) {
        if self.watch.open.is_empty() {
            self.fleet.schedule.after_us(LOOK_US, Happening::Look);
        }
        self.watch.open.push((figure, self.fleet.now_us()));
    }

    /// Checks whether all tables are equal, and looks again later if not.
    pub(crate) fn look(&mut self) {
        let reach = self.find_reach();
        let seems = self.checker.seems_converged(&self.fleet.machines, &reach);
        if !seems || !self.checker.find_unconverged(&self.fleet.machines, &reach).is_empty() {
            return self.fleet.schedule.after_us(LOOK_US, Happening::Look);
        }
        let now_us = self.fleet.now_us();
        for (figure, since_us) in std::mem::take(&mut self.watch.open) {
            if let Some(figure) = self.watch.figures.get_mut(figure) {
                figure.equal_after_ms = Some((now_us - since_us) as f64 / 1_000.0);
            }
        }
    }
}
