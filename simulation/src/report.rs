//! The results of a run.

use crate::checker::Violation;
use crate::figures::{Encodings, Point, Probes, quantile};
use crate::scenario::{Targets, What};
use crate::traffic::{KINDS, Kind};
use crate::watch::EventFigure;
use crate::world::{Totals, World};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Points of the convergence curve.
const CURVE_POINTS: usize = 100;

/// One figure, and what was promised.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// The name of the figure.
    pub name: &'static str,
    /// The figure; `None` when nothing of the kind happened.
    pub value: Option<f64>,
    /// Its unit.
    pub unit: &'static str,
    /// The most that was promised, if anything was.
    pub target: Option<f64>,
}

impl Row {
    /// Whether the promise is kept. It is also kept when nothing was promised.
    pub fn is_met(&self) -> bool {
        match (self.value, self.target) {
            (Some(value), Some(target)) => value <= target,
            (None, Some(_)) => false,
            (Some(_) | None, None) => true,
        }
    }
}

/// The results of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// The scenario's sentence.
    pub about: String,
    /// Machines, strangers not counted.
    pub nodes: usize,
    /// The seed that everything followed from.
    pub seed: u64,
    /// The digest over all inputs and outputs, hexadecimal.
    pub digest: String,
    /// The figures.
    pub rows: Vec<Row>,
    /// Bytes a second and machine, sent and received, by kind, over the measured time.
    pub bytes_per_s: BTreeMap<String, f64>,
    /// What liars and strangers were blamed for, and how often.
    pub blamed: BTreeMap<&'static str, u64>,
    /// Lookups and their probes.
    pub probes: Probes,
    /// What the bodies would have cost in other encodings.
    pub encodings: Encodings,
    /// Memory of the tables of filters, bytes, mean over the machines.
    pub table_bytes: u64,
    /// Summaries that were compared with the truth.
    pub checked: u64,
    /// Counts over the whole run.
    pub totals: Totals,
    /// The curves.
    pub points: Vec<Point>,
    /// Milliseconds, and the share of machines that knew a new path after them.
    pub curve: Vec<(f64, f64)>,
    /// The lines of the story that was asked for.
    #[serde(skip)]
    pub story: Vec<String>,
    /// The figures of the events, when the scenario says `watch`.
    pub events: Vec<EventFigure>,
    /// All violations, in words; empty when the checkers are content.
    pub violations: Vec<String>,
}

/// What a run came to, besides what its world has counted.
pub(crate) struct Outcome {
    /// When all machines ran and all tables were full, microseconds.
    pub(crate) started_us: Option<u64>,
    /// How long after the last fault all tables were equal, microseconds.
    pub(crate) converged_us: Option<u64>,
    pub(crate) events: Vec<EventFigure>,
    pub(crate) violations: Vec<Violation>,
}

impl Report {
    pub(crate) fn of(mut world: World, seed: u64, outcome: Outcome) -> Self {
        let Outcome { started_us, converged_us, events, violations } = outcome;
        world.figures.known_us.sort_unstable();
        world.figures.forgotten_us.sort_unstable();
        world.figures.heard_us.sort_unstable();
        let measured_us = world.fleet.now_us() - world.figures.begun_us.unwrap_or(0);
        let seconds = (measured_us / 1_000_000).max(1) as f64;
        let nodes = world.fleet.scenario.nodes;
        let per_machine = |bytes: u64| bytes as f64 / seconds / nodes as f64;
        let before = &world.figures.before_begin;
        let mut bytes_per_s = BTreeMap::new();
        for kind in KINDS {
            let both = |traffic: &crate::traffic::Traffic| {
                let (sent, received) = traffic.of(kind);
                sent + received
            };
            let now: u64 = world.fleet.machines.iter().map(|machine| both(&machine.traffic)).sum();
            let then: u64 = before.iter().map(both).sum();
            bytes_per_s.insert(name_of(kind).to_owned(), per_machine(now - then));
        }
        let story = std::mem::take(&mut world.story.lines);
        Self {
            scenario: world.fleet.scenario.name.clone(),
            about: world.fleet.scenario.about.clone(),
            nodes,
            seed,
            digest: world.trace.digest(),
            rows: rows(&world, started_us, converged_us),
            bytes_per_s,
            blamed: world.figures.blamed.clone(),
            probes: world.figures.probes,
            encodings: world.figures.encodings,
            table_bytes: {
                let tables = world.fleet.machines.iter().map(|machine| machine.core.table().memory_bytes() as u64);
                tables.sum::<u64>() / world.fleet.machines.len().max(1) as u64
            },
            checked: world.checker.checked,
            totals: world.totals,
            points: world.figures.points.clone(),
            curve: curve(&world.figures.known_us),
            story,
            events,
            violations: violations.iter().map(ToString::to_string).collect(),
        }
    }

    /// Whether every checker was content.
    pub fn is_content(&self) -> bool {
        self.violations.is_empty()
    }

    /// The table of events, in Markdown, for a scenario that says `watch`.
    pub fn event_table(&self) -> String {
        let mut text = String::from("| event | at | tables equal after its end |\n|---|---|---|\n");
        for event in &self.events {
            let whom = event.site.as_ref().map_or(format!("machine {}", event.node), |site| format!("site {site}"));
            let long = if event.for_s > 0 { format!(", {} s", event.for_s) } else { String::new() };
            let after = event.equal_after_ms.map_or("not before the end".to_owned(), |ms| format!("{ms:.0} ms"));
            // Writing to a String cannot fail.
            writeln!(text, "| {} of {whom}{long} | {:.0} s | {after} |", word(event.what), event.at_s)
                .unwrap_or_default();
        }
        text
    }

    /// The table of figures, in Markdown.
    pub fn table(&self) -> String {
        let mut text = String::from("| figure | measured | target |\n|---|---|---|\n");
        for row in &self.rows {
            let value = row.value.map_or("–".to_owned(), |value| number(value, row.unit));
            let missed = if row.is_met() { "" } else { ", **missed**" };
            let target = row.target.map(|target| number(target, row.unit) + missed).unwrap_or_default();
            // Writing to a String cannot fail.
            writeln!(text, "| {} | {value} | {target} |", row.name).unwrap_or_default();
        }
        text
    }
}

/// The word of scenarios for a [`crate::scenario::What`], such as `partition`.
fn word(what: What) -> String {
    serde_json::to_value(what).ok().and_then(|word| Some(word.as_str()?.to_owned())).unwrap_or_default()
}

/// A figure with its unit, rounded to about three digits.
fn number(value: f64, unit: &str) -> String {
    let digits = if value >= 100.0 || value == value.trunc() {
        0
    } else if value >= 10.0 {
        1
    } else {
        3
    };
    format!("{value:.digits$} {unit}")
}

/// What the tables call a kind of traffic.
pub(crate) fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Announcements => "announcements",
        Kind::Control => "gossipsub control",
        Kind::Sync => "comparisons",
        Kind::Bodies => "bodies and deltas",
        Kind::Connections => "handshakes and pings",
    }
}

fn rows(world: &World, started_us: Option<u64>, converged_us: Option<u64>) -> Vec<Row> {
    let (figures, targets) = (&world.figures, world.fleet.scenario.targets);
    let ms = |us: u64| us as f64 / 1_000.0;
    let row =
        |name, value, unit, target: Option<u64>| Row { name, value, unit, target: target.map(|target| target as f64) };
    let known = |permille| quantile(&figures.known_us, permille).map(ms);
    let forgotten = |permille| quantile(&figures.forgotten_us, permille).map(ms);
    let heard = |permille| quantile(&figures.heard_us, permille).map(ms);
    let copies = figures.copies as f64 / figures.announced as f64 / world.fleet.scenario.nodes as f64;
    let Targets { known_p99_ms, converged_ms, bytes_per_s, wasted_permille, .. } = targets;
    let share = |part: u64, of: u64| (of > 0).then(|| part as f64 * 1_000.0 / of as f64);
    let probes = figures.probes;
    let seconds = |us: u64| us as f64 / 1e6;
    let total =
        |before: u64, now: u64, us: u64| (now - before) as f64 / seconds(us.max(1)) / world.fleet.scenario.nodes as f64;
    let before: u64 = world.figures.before_begin.iter().map(crate::traffic::Traffic::total).sum();
    let now: u64 = world.fleet.machines.iter().map(|machine| machine.traffic.total()).sum();
    let begun_us = figures.begun_us.unwrap_or(0);
    let idle = figures.idle.filter(|(at_us, _)| at_us - begun_us >= 60_000_000);
    let idle = idle.map(|(at_us, bytes)| total(before, bytes, at_us - begun_us));
    let mean = Some(total(before, now, world.fleet.now_us() - begun_us));
    let mut rows = vec![
        row("fleet started, all tables full", started_us.map(ms), "ms", None),
        row("an announcement is heard, p50", heard(500), "ms", None),
        row("an announcement is heard, p99", heard(990), "ms", None),
        row("copies of it for each machine", (figures.announced > 0).then_some(copies), "", None),
        row("a new path is known, p50", known(500), "ms", None),
        row("a new path is known, p99", known(990), "ms", known_p99_ms),
        row("a new path is known, last", known(1_000), "ms", None),
        row("a removed path is forgotten, p99", forgotten(990), "ms", None),
        row("after the last fault, tables equal", converged_us.map(ms), "ms", converged_ms),
        row("idle, bytes of one machine", idle, "B/s", bytes_per_s),
        row("all in all, bytes of one machine", mean, "B/s", None),
        row("pulled for a build, of the entropy", figures.entropy_percent(), "%", targets.entropy_percent),
    ];
    if let Some(joiner) = figures.joiner {
        let filters = world.fleet.filters_bytes(joiner.number);
        let percent = joiner.full_us.map(|_| joiner.received as f64 * 100.0 / filters.max(1) as f64);
        rows.push(row("a joiner's table is full", joiner.full_us.map(ms), "ms", targets.joiner_ms));
        rows.push(row("a joiner received, of the filters", percent, "%", targets.joiner_percent));
    }
    rows.push(row(
        "wasted probes for 1,000 absent paths",
        share(probes.absent_wasted, probes.absent),
        "",
        wasted_permille,
    ));
    rows.push(row("of them at liars", share(probes.absent_lied, probes.absent), "", None));
    rows.push(row("found of 1,000 present paths", share(probes.found, probes.present), "", None));
    rows.push(row("asked in vain for 1,000 present paths", share(probes.present_wasted, probes.present), "", None));
    rows
}

fn curve(sorted_us: &[u64]) -> Vec<(f64, f64)> {
    (1..=CURVE_POINTS)
        .filter_map(|percent| Some((quantile(sorted_us, percent * 10)? as f64 / 1_000.0, percent as f64 / 100.0)))
        .collect()
}
