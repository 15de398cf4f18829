//! Real daemons in network namespaces: what many of them cost in traffic and memory.
//!
//! The fleets are those of the stories in `tests/`. Their harness reports by panicking, and the text of the panic becomes
//! the reason why a row has no value.

use crate::row::{Planned, Target};
use crate::subject::{Bench, Report, Subject};
use anyhow::{anyhow, bail};
use narmesh_tests::{Fleet, Link, Network, wait_tables};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Time until all tables are full after a start at the same moment; the harness waits ten times as long.
const STARTED_MAX: Duration = Duration::from_secs(30);
/// Time until a new path is known to all; the harness waits ten times as long.
const KNOWN_MAX: Duration = Duration::from_secs(5);
/// Time in which the traffic of a start ends; the harness waits ten times as long.
const SETTLING: Duration = Duration::from_secs(60);
/// Time until an idle connection is known to be dead; the harness waits ten times as long.
const DEAD_MAX: Duration = Duration::from_secs(15);
/// Builds whose spread to all daemons is measured.
const BUILDS: usize = 5;
const MB: f64 = 1e6;

/// Many daemons on one bridge.
#[derive(Debug)]
pub(super) struct Crowd {
    pub(super) daemons: usize,
    /// Paths in each store.
    pub(super) paths: usize,
    /// How long idle traffic is counted for.
    pub(super) window: Duration,
    pub(super) heavy: &'static str,
}

impl Crowd {
    fn name(&self, row: &str) -> String {
        format!("real/{}/{row}", self.daemons)
    }

    /// Sets a target that is meant for the large fleet only: with small filters most bytes are handshakes.
    fn aimed(&self, row: Planned, target: Target) -> Planned {
        if self.daemons >= 100 { row.target(target) } else { row }
    }

    /// Sets a target that is meant for the small fleet only.
    fn small(&self, row: Planned, target: Target) -> Planned {
        if self.daemons >= 100 { row } else { row.target(target) }
    }

    /// Growth from `before` to `after`, in units of `unit` bytes, sorted.
    fn differences(before: &[u64], after: &[u64], unit: f64) -> Vec<f64> {
        let mut all: Vec<_> = before.iter().zip(after).map(|(then, now)| (now - then) as f64 / unit).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    fn run(&self, report: &mut Report) {
        // The last one joins later.
        let (first, all) = (self.daemons - 1, self.daemons);
        crate::progress(&format!("starting {first} daemons with {} paths each", self.paths));
        let mut fleet = Fleet::on_a_bridge(all, 1, self.paths);
        let started = fleet.start_at_once(0..first, STARTED_MAX);
        report.figure(&self.name("start"), &[started.as_secs_f64()], None);
        crate::progress("waiting until what the start brought has ended");
        fleet.wait_rest(0..first, SETTLING);
        self.join(&mut fleet, report);

        fleet.wait_rest(0..all, SETTLING);
        crate::progress(&format!("counting idle traffic for {} s", self.window.as_secs()));
        let (since, before) = (Instant::now(), fleet.all_traffic_bytes());
        std::thread::sleep(self.window);
        let seconds = since.elapsed().as_secs_f64();
        let idle = Self::differences(&before, &fleet.all_traffic_bytes(), seconds);
        report.figure(&self.name("idle-traffic"), &idle, None);
        let resident: Vec<_> = fleet.nodes.iter().map(|node| node.memory_bytes() as f64 / MB).collect();
        report.figure(&self.name("rss-idle"), &resident, None);

        let builds = (0..BUILDS).map(|number| fleet.build_for_all(&number.to_string(), KNOWN_MAX).1.as_secs_f64());
        report.figure(&self.name("build-to-substitutable-on-all"), &builds.collect::<Vec<_>>(), None);

        let peaks: Vec<_> = fleet.nodes.iter().map(narmesh_tests::TestNode::watch_memory).collect();
        let builder = fleet.nodes.first().expect("a daemon");
        let listeners: Vec<_> = fleet.nodes.iter().collect();
        builder.store.build_tagged("storm", "bench");
        builder.wait_all_advertised(&[]);
        wait_tables("the storm", Instant::now(), KNOWN_MAX, &[builder], &listeners);
        let peaks: Vec<_> = peaks.iter().map(|peak| peak.peak_bytes() as f64 / MB).collect();
        report.figure(&self.name("rss-storm"), &peaks, None);
    }

    /// Measures how the last daemon joins the others: how long it takes, and how many bytes, beside those of the others'
    /// filters.
    fn join(&self, fleet: &mut Fleet, report: &mut Report) {
        let joiner = self.daemons - 1;
        let before = fleet.traffic(joiner);
        let took = fleet.join(joiner, STARTED_MAX);
        let after = fleet.traffic(joiner);
        report.figure(&self.name("cold-joiner/time"), &[took.as_secs_f64()], None);
        let filters = fleet.filter_bytes(joiner) as f64;
        let received = (after.received_bytes - before.received_bytes) as f64;
        let beside = crate::row::Beside::new("the filters", vec![filters / MB]);
        report.figure(&self.name("cold-joiner/received"), &[received / MB], Some(beside));
        let sent = (after.sent_bytes - before.sent_bytes) as f64;
        report.figure(&self.name("cold-joiner/sent"), &[sent / MB], None);
    }
}

impl Subject for Crowd {
    fn planned(&self) -> Vec<Planned> {
        let Self { daemons, paths, window, heavy } = self;
        let of = format!("{daemons} real daemons with {paths} paths each on one bridge, all started at once");
        let row = |name: &str, unit, about: String| Planned::new(self.name(name), unit, about).heavy(heavy);
        let minutes = window.as_secs() as f64 / 60.0;
        vec![
            row("start", "s", format!("{of}: until all but the last have the tables of all")),
            self.aimed(
                row("cold-joiner/time", "s", "the last starts: until it has the summaries of all".to_owned()),
                Target::AtMost(5.0),
            ),
            self.aimed(
                row("cold-joiner/received", "MB", "received by it until then, on its interface".to_owned()),
                Target::RatioAtMost(1.1),
            ),
            row("cold-joiner/sent", "MB", "sent by it until then: most of it is its own filter, for all".to_owned()),
            self.aimed(
                row(
                    "idle-traffic",
                    "B/s",
                    format!("sent and received by one idle daemon, median of all, over {minutes} min"),
                ),
                Target::AtMost(1_000.0),
            ),
            self.small(
                row("rss-idle", "MB", "resident memory after that, median of all".to_owned()),
                Target::AtMost(40.0),
            ),
            row("build-to-substitutable-on-all", "s", "from the end of a build to the last gateway's 200".to_owned())
                .target(Target::AtMost(2.0)),
            self.small(
                row("rss-storm", "MB", "peak of resident memory while one builds 40 paths, median of all".to_owned()),
                Target::AtMost(60.0),
            ),
        ]
    }

    fn measure(&self, _: &Bench, report: &mut Report) -> anyhow::Result<()> {
        run_harness(|| self.run(report))
    }
}

/// Twelve daemons at three sites. One site is cut off until all connections with it are known to be dead.
#[derive(Debug)]
pub(super) struct Heal;

impl Heal {
    const MACHINES: usize = 4;
    /// The site that is cut off.
    const SITE: usize = 1;

    fn round(fleet: &Fleet, number: usize) -> f64 {
        let emulator = fleet.network.emulator();
        emulator.set_cut(Self::SITE, true);
        let inside = |number: usize| number / Self::MACHINES == Self::SITE;
        for (place, node) in fleet.nodes.iter().enumerate() {
            // One machine of the first site and one of the cut-off site build meanwhile.
            if place % Self::MACHINES == 0 && place / Self::MACHINES <= Self::SITE {
                node.store.build_fresh(&format!("cut-{number}"));
            }
        }
        for (place, node) in fleet.nodes.iter().enumerate() {
            for (other, far) in fleet.nodes.iter().enumerate() {
                if inside(place) != inside(other) {
                    node.wait_connected(&far.name, false, DEAD_MAX);
                }
            }
        }
        emulator.set_cut(Self::SITE, false);
        let all: Vec<_> = fleet.nodes.iter().collect();
        wait_tables("after the partition", Instant::now(), KNOWN_MAX, &all, &all).as_secs_f64()
    }
}

impl Subject for Heal {
    fn planned(&self) -> Vec<Planned> {
        let about = "12 real daemons in 3 sites, 40 ms and 1 % loss between them; one site was cut off: until all tables are equal";
        vec![Planned::new("real/12/heal", "s", about).target(Target::AtMost(10.0)).heavy("four minutes")]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        run_harness(|| {
            let names: Vec<_> = (0..3 * Self::MACHINES).map(|number| format!("n{number}")).collect();
            let network = Network::in_sites(&[Self::MACHINES; 3], Link::SITE, Link::WAN, 1);
            let mut fleet = Fleet::on(network, &names, names.len(), 0);
            fleet.start_at_once(0..names.len(), STARTED_MAX);
            let samples: Vec<_> = (0..bench.rounds).map(|number| Self::round(&fleet, number)).collect();
            report.figure("real/12/heal", &samples, None);
        })
    }
}

/// Runs a part of the harness. What it says when it panics becomes the reason of the rows.
pub(super) fn run_harness(run: impl FnOnce()) -> anyhow::Result<()> {
    if let Some(why) = Network::not_permitted() {
        bail!("{why}");
    }
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map_or("the harness panicked", String::as_str);
        anyhow!("{text}")
    })
}
