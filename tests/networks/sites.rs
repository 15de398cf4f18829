//! Twelve daemons in three sites with 40 ms between them and 1 % loss, and what happens to such a fleet in a bad week. The
//! simulation runs the same story with the same numbers, from `simulation/scenarios/wan-3-sites.toml`.

use std::fs;
use std::time::{Duration, Instant};

use narmesh_tests::{Fleet, Link, Network, TestNode, assert_unblamed, build_and_tell, others, wait_tables};

use crate::peer::Peer;
use crate::report::seconds;
use crate::simulated::{Scene, SideBySide};

const SEED: u64 = 5;
/// Machines in each site.
const MACHINES: usize = 4;
const SITES: [&str; 3] = ["a", "b", "c"];
/// The site that is cut off.
const B: usize = 1;
/// A fourth site, with a peer that is not one of our daemons.
const D: usize = 3;

/// A new path is promised to be known everywhere within this.
const KNOWN: Duration = Duration::from_secs(5);
/// After any fault, tables are promised to be equal again within this.
const HEALED: Duration = Duration::from_secs(10);
/// The simulation's name for the time until all is well again.
const EQUAL: &str = "after the last fault, tables equal";
/// Builds whose spread is measured.
const BUILDS: usize = 8;

/// Names of the machines, by site and number: `a1` to `c4`.
fn names() -> Vec<String> {
    SITES.iter().flat_map(|site| (1..=MACHINES).map(move |number| format!("{site}{number}"))).collect()
}

fn at(nodes: &[TestNode], name: &str) -> usize {
    nodes.iter().position(|node| node.name == name).unwrap()
}

struct Story {
    fleet: Fleet,
    /// The file that sets the wall clock of `c2`.
    clock: std::path::PathBuf,
    table: SideBySide,
}

impl Story {
    fn begin() -> Self {
        let network = Network::in_sites(&[MACHINES, MACHINES, MACHINES, 1], Link::SITE, Link::WAN, SEED);
        let mut fleet = Fleet::on(network, &names(), SITES.len() * MACHINES, 0);
        let clock = fleet.dir().join("clock");
        fs::write(&clock, "+1h").unwrap();
        let ahead = at(&fleet.nodes, "c2");
        fleet.nodes[ahead].run_under(&crate::clock::following(&clock).each_ref().map(String::as_str));
        Self { fleet, clock, table: SideBySide::new() }
    }

    fn all(&self) -> Vec<&TestNode> {
        self.fleet.nodes.iter().collect()
    }

    fn node(&self, name: &str) -> &TestNode {
        &self.fleet.nodes[at(&self.fleet.nodes, name)]
    }

    fn node_mut(&mut self, name: &str) -> &mut TestNode {
        let place = at(&self.fleet.nodes, name);
        &mut self.fleet.nodes[place]
    }

    fn wait_equal(&self, what: &str, since: Instant) -> Duration {
        wait_tables(what, since, HEALED, &self.all(), &self.all())
    }

    /// `name` builds a path, and everyone hears of it; returns the path and how long that took.
    fn tell(&self, name: &str, tag: &str) -> (String, Duration) {
        build_and_tell(self.node(name), tag, KNOWN, &others(&self.fleet.nodes, name))
    }

    fn start(&mut self) {
        let started = Instant::now();
        for node in &mut self.fleet.nodes {
            node.start();
        }
        let took = self.wait_equal("all tables full", started);
        let figure = "fleet started, all tables full";
        self.table.row("all start", "all tables full", took, HEALED, Scene { events: &[], run_s: 1, figure });
    }

    fn announce(&mut self) {
        let mut times = Vec::new();
        for number in 0..BUILDS {
            let name = self.fleet.nodes[number * 5 % self.fleet.nodes.len()].name.clone();
            times.push(self.tell(&name, &format!("announced-{number}")).1);
        }
        times.sort_unstable();
        let event = "what = \"build\"\nat_s = 5\npaths = 1\ntimes = 8\nevery_s = 5\n";
        let (middle, last) = (times[BUILDS / 2], times[BUILDS - 1]);
        let events = [event];
        let scene = |figure| Scene { events: &events, run_s: 60, figure };
        self.table.row(
            "8 builds, one by one",
            "known to all, median",
            middle,
            KNOWN,
            scene("a new path is known, p50"),
        );
        self.table.row("", "known to all, slowest", last, KNOWN, scene("a new path is known, last"));
    }

    fn partition(&mut self) {
        self.fleet.network.emulator().set_cut(B, true);
        let (inside, outside): (Vec<_>, Vec<_>) = self.fleet.nodes.iter().partition(|node| node.name.starts_with('b'));
        let since = Instant::now();
        let probers: Vec<_> = [inside[0], outside[0]].map(|node| node.probe(&[])).into();
        let (theirs, _) = build_and_tell(inside[1], "behind-the-cut", KNOWN, &inside);
        let (ours, _) = build_and_tell(outside[1], "before-the-cut", KNOWN, &outside);
        // All connections across the cut are now dead and known to be: the worst moment to heal.
        for node in &outside {
            for far in &inside {
                node.wait_connected(&far.name, false, Duration::from_secs(15));
            }
        }
        let known_over_there =
            |path: &str, nodes: &[&TestNode]| nodes.iter().any(|node| node.get_narinfo(path).status == 200);
        assert!(!known_over_there(&theirs, &outside) && !known_over_there(&ours, &inside), "the cut holds");
        let lasted = since.elapsed();
        self.fleet.network.emulator().set_cut(B, false);
        let healed = Instant::now();
        let took = self.wait_equal("after the partition", healed);
        for (node, path) in [(inside[2], &ours), (outside[2], &theirs)] {
            let _found = node.wait_narinfo(path);
        }
        let found = healed.elapsed();
        for (prober, node) in probers.into_iter().zip([inside[0], outside[0]]) {
            prober.finish().assert_fit_for_nix(node.narinfo_slowest_max());
        }
        inside[2].realise(&[ours]).expect_success("from the other side, after the heal");
        outside[2].realise(&[theirs]).expect_success("from the other side, after the heal");
        let part = format!("what = \"partition\"\nat_s = 5\nsite = \"b\"\nfor_s = {}\n", lasted.as_secs());
        let builds = [
            "what = \"build\"\nat_s = 10\nnode = 5\npaths = 1\n",
            "what = \"build\"\nat_s = 11\nnode = 1\npaths = 1\n",
        ];
        let what = format!("site b cut off for {}, builds on both sides", seconds(lasted));
        let scene = Scene { events: &[&part, builds[0], builds[1]], run_s: 5 + lasted.as_secs(), figure: EQUAL };
        self.table.row(&what, "tables equal after the heal", took, HEALED, scene);
        self.table.real_row("", "paths of the other side substitutable", found, HEALED);
    }

    fn lost_state(&mut self) {
        let node = self.node_mut("a3");
        node.kill();
        fs::remove_dir_all(node.dir().join("state")).unwrap();
        let since = Instant::now();
        node.start();
        let took = self.wait_equal("after a lost state directory", since);
        let event = "what = \"crash-without-state\"\nat_s = 5\nnode = 2\nfor_s = 1\n";
        let scene = Scene { events: &[event], run_s: 6, figure: EQUAL };
        self.table.row("SIGKILL, state directory lost", "tables equal after the start", took, HEALED, scene);
        self.tell("a3", "after-the-loss");
    }

    fn roam(&mut self) {
        let laptop = at(&self.fleet.nodes, "c4");
        let before = self.fleet.nodes[laptop].p2p_address();
        let machine = self.fleet.network.move_machine(laptop, 0).clone();
        let since = Instant::now();
        self.fleet.nodes[laptop].live_on(&machine);
        assert_ne!(self.fleet.nodes[laptop].p2p_address(), before);
        let path = self.fleet.nodes[laptop].store.build_fresh("on-the-road");
        let paths = self.fleet.nodes[laptop].store.outputs().len() as u64;
        self.node("c4").wait_status("advertises it", KNOWN, |status| status.number("/own/paths") == paths);
        let took = self.wait_equal("after the laptop moved", since);
        let _found = self.node("b1").wait_narinfo(&path);
        self.node("b1").realise(&[path]).expect_success("from the laptop at its new address");
        let events =
            ["what = \"move\"\nat_s = 5\nnode = 11\nfor_s = 1\n", "what = \"build\"\nat_s = 6\nnode = 11\npaths = 1\n"];
        let scene = Scene { events: &events, run_s: 6, figure: EQUAL };
        let step = "a laptop moves to site a, another address";
        self.table.row(step, "tables equal after the move", took, HEALED, scene);
    }

    fn wrong_clock(&mut self) {
        // Its clock has been an hour ahead from the beginning.
        let (_, took) = self.tell("c2", "an-hour-ahead");
        let events = [
            "what = \"skew\"\nat_s = 5\nnode = 9\nby_s = 3600\n",
            "what = \"build\"\nat_s = 10\nnode = 9\npaths = 1\n",
        ];
        let scene = Scene { events: &events, run_s: 60, figure: "a new path is known, last" };
        self.table.row("a build where the clock is an hour off", "known to all", took, KNOWN, scene);
        assert_unblamed(&self.all());
    }

    /// The machine whose epochs lie an hour ahead loses its state, and its clock is set right: on its own it starts below
    /// the epochs that the others have heard. The first peer that it meets, for a while the only one, tells it nothing.
    fn withheld(&mut self) {
        let withholder = self.fleet.network.machine(self.fleet.nodes.len()).enter(|| Peer::honest("withholder"));
        for node in &mut self.fleet.nodes {
            node.allow(&withholder.card());
        }
        others(&self.fleet.nodes, "c2").iter().for_each(|node| node.reload());
        let place = at(&self.fleet.nodes, "c2");
        self.fleet.nodes[place].kill();
        let killed = Instant::now();
        fs::remove_dir_all(self.fleet.nodes[place].dir().join("state")).unwrap();
        fs::write(&self.clock, "+0").unwrap();
        self.fleet.network.emulator().move_tap(place, D);
        self.fleet.network.emulator().set_cut(D, true);
        self.fleet.nodes[place].start();
        withholder.connect(self.node("c2"));
        let fresh = self.node("c2").store.build_fresh("unheard");
        self.node("c2").wait_all_advertised(&[]);
        let heard = self.node("a1").status().summary_version("c2").unwrap();
        assert!(self.node("c2").status().number("/own/epoch") < heard.0, "nobody would take it, and nobody told it");
        assert!(!withholder.asked().syncs.is_empty(), "the withholder was asked");
        let alone = killed.elapsed().as_secs().max(2);
        let since = Instant::now();
        self.fleet.network.emulator().set_cut(D, false);
        let took = self.wait_equal("after one peer withheld", since);
        assert!(self.node("c2").status().number("/own/epoch") > heard.0);
        let _found = self.node("b4").wait_narinfo(&fresh);
        self.node("b4").realise(&[fresh]).expect_success("heard again");
        let cut_off = format!("what = \"partition\"\nat_s = 20\nnode = 9\nbut = 8\nfor_s = {alone}\n");
        let events = [
            "what = \"skew\"\nat_s = 1\nnode = 9\nby_s = 3600\n",
            "what = \"build\"\nat_s = 2\nnode = 9\npaths = 1\n",
            "what = \"withhold\"\nat_s = 20\nnode = 8\nfor_s = 60\n",
            "what = \"skew\"\nat_s = 20\nnode = 9\nby_s = 0\n",
            "what = \"crash-without-state\"\nat_s = 20\nnode = 9\nfor_s = 1\n",
            cut_off.as_str(),
        ];
        let scene = Scene { events: &events, run_s: 20 + alone, figure: EQUAL };
        let step = "state lost, clock set back an hour, one peer withholds";
        self.table.row(step, "tables equal once others are met", took, HEALED, scene);
        assert_unblamed(&self.all());
    }
}

#[test]
fn twelve_machines_in_three_sites_recover_from_every_fault() {
    let Some(_turn) = crate::turn() else { return };
    let mut story = Story::begin();
    story.start();
    story.announce();
    story.partition();
    story.lost_state();
    story.roam();
    story.wrong_clock();
    story.withheld();
}
