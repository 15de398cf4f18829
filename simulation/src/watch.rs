//! How long the fleet takes to agree again after each event, for scenarios that ask for it.

use crate::number::Number;
use crate::scenario::{Event, What};
use crate::schedule::Happening;
use crate::world::World;
use serde::Serialize;

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
#[derive(Debug)]
pub(crate) struct Watch {
    is_wanted: bool,
    pub(crate) figures: Vec<EventFigure>,
    /// Indices of `figures`, and when the event ended.
    open: Vec<(usize, u64)>,
}

impl Watch {
    /// Watches only what a scenario asks for.
    pub(crate) fn new(is_wanted: bool) -> Self {
        Self { is_wanted, figures: Vec::new(), open: Vec::new() }
    }

    /// Notes an event that begins now and ends after `for_us`.
    pub(crate) fn on_event(&mut self, world: &mut World, event: &Event, number: Number, for_us: u64) {
        if !self.is_wanted {
            return;
        }
        let since_us = world.fleet.now_us() - world.figures.begun_us.unwrap_or(0);
        world.fleet.schedule.after_us(for_us, Happening::Watched(self.figures.len()));
        self.figures.push(EventFigure {
            at_s: since_us as f64 / 1e6,
            what: event.what,
            node: number,
            site: event.site.clone(),
            for_s: for_us / 1_000_000,
            equal_after_ms: None,
        });
    }

    /// An event ended: from now on the tables are compared until all are equal.
    pub(crate) fn on_event_ended(&mut self, world: &mut World, figure: usize) {
        if self.open.is_empty() {
            world.fleet.schedule.after_us(LOOK_US, Happening::Look);
        }
        self.open.push((figure, world.fleet.now_us()));
    }

    /// Checks whether all tables are equal, and looks again later if not.
    pub(crate) fn look(&mut self, world: &mut World) {
        if !world.are_tables_equal(&world.find_reach()) {
            return world.fleet.schedule.after_us(LOOK_US, Happening::Look);
        }
        for (figure, since_us) in self.open.drain(..) {
            if let Some(figure) = self.figures.get_mut(figure) {
                figure.equal_after_ms = Some((world.fleet.now_us() - since_us) as f64 / 1_000.0);
            }
        }
    }
}
