//! Fifty daemons on one bridge: what they cost, and whether all can substitute what one builds.

use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{Fleet, MemoryPeak, PROMISE_FACTOR, assert_unblamed, wait_tables};

use crate::report::{Table, seconds};

const DAEMONS: usize = 50;
/// This many daemons have a store of their own, build and substitute; the others share a store.
const OWN_STORES: usize = 4;
/// Paths in every store at the beginning.
const PATHS: usize = 500;
/// All tables are full this long after all daemons start at the same moment, on few cores.
const STARTED: Duration = Duration::from_secs(10);
/// A new path is promised to be known everywhere within this.
const KNOWN: Duration = Duration::from_secs(2);
/// What follows a start (gossipsub chooses neighbours, each peer is compared with once more) has ended after this.
const SETTLED: Duration = Duration::from_secs(10);
/// How long idle traffic is counted here; `narmesh-bench real/100/idle-traffic` takes ten minutes.
const WINDOW: Duration = Duration::from_secs(30);
/// Bytes a second of one daemon, sent and received, that an idle fleet may cost.
const IDLE_BYTES_S_MAX: u64 = 1_000;
const MB: u64 = 1_000_000;

/// The median and the largest.
fn middle_and_largest(mut all: Vec<u64>) -> (u64, u64) {
    all.sort_unstable();
    (all[all.len() / 2], all[all.len() - 1])
}

#[test]
fn fifty_daemons_on_one_bridge_stay_within_their_targets() {
    let Some(_turn) = crate::turn() else { return };
    let mut table = Table::new("crowd", &["50 daemons on one bridge", "median", "largest", "target"]);
    let mut fleet = Fleet::on_a_bridge(DAEMONS, OWN_STORES, PATHS);
    let started = fleet.start_at_once(0..DAEMONS, STARTED);
    table.row(&["start-up storm: all tables full", &seconds(started), "", ""]);
    let (median, largest) = middle_and_largest(fleet.all_traffic_bytes());
    table.row(&[
        "start-up storm: bytes of one",
        &format!("{} kB", median / 1_000),
        &format!("{} kB", largest / 1_000),
        "",
    ]);

    thread::sleep(SETTLED);
    let before = fleet.all_traffic_bytes();
    let since = Instant::now();
    thread::sleep(WINDOW);
    let counted_ms = u64::try_from(since.elapsed().as_millis()).unwrap();
    let bytes_s = before.iter().zip(fleet.all_traffic_bytes()).map(|(then, now)| (now - then) * 1_000 / counted_ms);
    let (median, largest) = middle_and_largest(bytes_s.collect());
    let what = format!("idle: sent and received, over {}", seconds(WINDOW));
    table.row(&[&what, &format!("{median} B/s"), &format!("{largest} B/s"), "< 1000 B/s"]);
    // Every two minutes all connections are pinged, which may fall into so short a time or not.
    assert!(median < IDLE_BYTES_S_MAX * u64::from(PROMISE_FACTOR), "{median} B/s");

    let (median, largest) = middle_and_largest(fleet.nodes.iter().map(|node| node.memory_bytes() / MB).collect());
    table.row(&["idle: resident memory", &format!("{median} MB"), &format!("{largest} MB"), "< 40 MB"]);
    assert!(largest < 40, "{largest} MB");

    let (path, took) = fleet.build_for_all("for-all", KNOWN);
    table.row(&["a path built on one: substitutable on all", &seconds(took), "", "2 s"]);
    let all: Vec<_> = fleet.nodes.iter().collect();
    wait_tables("the summaries on all", Instant::now(), KNOWN, &all[..1], &all);
    for node in &fleet.nodes[1..OWN_STORES] {
        node.realise(std::slice::from_ref(&path)).expect_success("with real Nix");
    }

    storm(&fleet, &mut table);
    assert_unblamed(&all);
}

/// Several machines build at once, and everyone hears of all of it.
fn storm(fleet: &Fleet, table: &mut Table) {
    let peaks: Vec<MemoryPeak> = fleet.nodes.iter().map(narmesh_tests::TestNode::watch_memory).collect();
    let before = fleet.all_traffic_bytes();
    let (builders, _) = fleet.nodes.split_at(OWN_STORES);
    let paths: Vec<String> = thread::scope(|scope| {
        let build = |node: &'_ narmesh_tests::TestNode| node.store.build_tagged("storm", &node.name);
        let builds: Vec<_> = builders.iter().map(|node| scope.spawn(move || build(node))).collect();
        builds.into_iter().flat_map(|build| build.join().unwrap()).collect()
    });
    let built = Instant::now();
    for node in builders {
        node.wait_all_advertised(&[]);
    }
    let all: Vec<_> = fleet.nodes.iter().collect();
    let took = wait_tables("all that was built", built, KNOWN, &builders.iter().collect::<Vec<_>>(), &all);
    let what = format!("build storm: {} paths on {OWN_STORES} machines known to all", paths.len());
    table.row(&[&what, &seconds(took), "", ""]);
    let after = fleet.all_traffic_bytes();
    let (median, largest) =
        middle_and_largest(before.iter().zip(after).map(|(then, now)| (now - then) / 1_000).collect());
    table.row(&["build storm: bytes of one", &format!("{median} kB"), &format!("{largest} kB"), ""]);
    let (median, largest) = middle_and_largest(peaks.iter().map(|peak| peak.peak_bytes() / MB).collect());
    table.row(&["build storm: resident memory, peak", &format!("{median} MB"), &format!("{largest} MB"), "< 60 MB"]);
    assert!(largest < 60, "{largest} MB");
}
