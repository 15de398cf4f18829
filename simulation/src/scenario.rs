//! What a run is made of: a small TOML file, checked before anything happens.

use crate::scenario_file::{ScenarioError, decode, demand, read};
use crate::trick::Trick;
use serde::{Deserialize, Serialize};

/// How far an event may set a clock wrong, seconds. Peers do not listen to a clock that is a day off, and the checkers
/// expect every honest machine to be heard.
const SKEW_S_MAX: u64 = 72_000;

/// The scenarios that come with the program: name and text.
const BUILT_IN: &[(&str, &str)] = &[
    ("lan-5", include_str!("../scenarios/lan-5.toml")),
    ("office-50", include_str!("../scenarios/office-50.toml")),
    ("community-200", include_str!("../scenarios/community-200.toml")),
    ("fleet-1000", include_str!("../scenarios/fleet-1000.toml")),
    ("laptops", include_str!("../scenarios/laptops.toml")),
    ("partition", include_str!("../scenarios/partition.toml")),
    ("flapping", include_str!("../scenarios/flapping.toml")),
    ("mass-gc", include_str!("../scenarios/mass-gc.toml")),
    ("rolling-restart", include_str!("../scenarios/rolling-restart.toml")),
    ("cold-start", include_str!("../scenarios/cold-start.toml")),
    ("hostile-10-percent", include_str!("../scenarios/hostile-10-percent.toml")),
    ("wan-3-sites", include_str!("../scenarios/wan-3-sites.toml")),
];

/// A fleet, its network, what its users do and what goes wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The file's name without its ending; not read from the file.
    #[serde(skip)]
    pub name: String,
    /// What the scenario shows, in one sentence.
    pub about: String,
    /// Machines, 2 to 2,000.
    pub nodes: usize,
    /// Store paths that each machine offers at the beginning, at most 200,000.
    pub paths: u32,
    /// How many of a thousand of them are the same on all machines.
    #[serde(default)]
    pub shared_permille: u64,
    /// Connections that each machine keeps for gossip: `limits.connections_gossip`.
    #[serde(default = "connections")]
    pub connections: usize,
    /// Virtual seconds in which the fleet starts; they are not measured.
    pub settle_s: u64,
    /// Virtual seconds measured, with churn, faults and events.
    pub run_s: u64,
    /// Virtual seconds after the end of all faults within which every table must be right.
    pub bound_s: u64,
    /// The network between any two machines of one site.
    pub network: Line,
    /// Sites; without any, all machines are at one site.
    #[serde(default)]
    pub site: Vec<Site>,
    /// The network between sites; by default the same as within them.
    #[serde(default)]
    pub wan: Option<Line>,
    /// What builds and garbage collections do to the stores.
    #[serde(default)]
    pub churn: Churn,
    /// What users look for.
    #[serde(default)]
    pub lookups: Lookups,
    /// What goes wrong at random.
    #[serde(default)]
    pub faults: Faults,
    /// Machines that are not honest.
    #[serde(default)]
    pub hostile: Hostile,
    /// What happens at fixed times, counted from the end of `settle_s`.
    #[serde(default)]
    pub event: Vec<Event>,
    /// Tells for each event how long all tables took to be equal again after it; costs time in large fleets.
    #[serde(default)]
    pub watch: bool,
    /// The figures that are promised.
    #[serde(default)]
    pub targets: Targets,
}

/// A network. TCP repairs the loss of packets, which costs time. A dropped message is gone, as if its stream had been
/// reset.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Delay one way, milliseconds.
    pub delay_ms: u64,
    /// Delay the other way, from the machine with the higher number, milliseconds; by default as `delay_ms`.
    #[serde(default)]
    pub delay_back_ms: Option<u64>,
    /// Random delay on top of it, at most, milliseconds.
    #[serde(default)]
    pub jitter_ms: u64,
    /// Packets lost, of a thousand.
    #[serde(default)]
    pub loss_permille: u64,
    /// Messages dropped, of a thousand.
    #[serde(default)]
    pub drop_permille: u64,
    /// Messages delivered twice, of a thousand.
    #[serde(default)]
    pub duplicate_permille: u64,
    /// Messages overtaken by later ones of their connection, of a thousand.
    #[serde(default)]
    pub reorder_permille: u64,
    /// What one machine can receive, Mbit/s.
    #[serde(default = "gigabit")]
    pub down_mbit: u64,
    /// What one machine can send, Mbit/s.
    #[serde(default = "gigabit")]
    pub up_mbit: u64,
}

impl Line {
    /// The delay from the lower to the higher number, or `back`, milliseconds.
    pub(crate) fn one_way_ms(&self, back: bool) -> u64 {
        self.delay_back_ms.filter(|_| back).unwrap_or(self.delay_ms)
    }

    pub(crate) fn round_ms(&self) -> u64 {
        self.one_way_ms(false) + self.one_way_ms(true)
    }
}

/// Machines that are near each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// The name that events use for it.
    pub name: String,
    /// How many machines it has; all sites together have `nodes`.
    pub nodes: usize,
}

/// Builds and garbage collections, on each machine.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Churn {
    /// Builds a day. Their sizes are drawn from a table: half have 1 to 3 paths, and one in two hundred has thousands.
    #[serde(default)]
    pub builds_per_day: u64,
    /// Garbage collections a day.
    #[serde(default)]
    pub collections_per_day: u64,
    /// What a garbage collection removes, of a thousand paths.
    #[serde(default)]
    pub collect_permille: u64,
}

/// Lookups on each machine, and the probes that follow from them.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookups {
    /// Lookups a minute of paths that nobody has.
    #[serde(default)]
    pub absent_per_minute: u64,
    /// Lookups a minute of paths that another machine has.
    #[serde(default)]
    pub present_per_minute: u64,
}

/// Random faults. A field without a unit is the fault's weight against the others.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Faults {
    /// Mean time between two faults anywhere, milliseconds; 0 for no faults.
    #[serde(default)]
    pub every_ms: u64,
    /// Longest duration of a fault, milliseconds; a sleep may take four times as long.
    #[serde(default)]
    pub longest_ms: u64,
    /// The process is killed, perhaps between two of its outputs, and started again later.
    #[serde(default)]
    pub crash: u64,
    /// The same, and its state directory is lost.
    #[serde(default)]
    pub crash_without_state: u64,
    /// The process says goodbye, stops and starts again.
    #[serde(default)]
    pub restart: u64,
    /// The machine is suspended.
    #[serde(default)]
    pub sleep: u64,
    /// One link carries nothing for a while.
    #[serde(default)]
    pub cut: u64,
    /// The network falls into two random halves for a while.
    #[serde(default)]
    pub partition: u64,
    /// A machine is nowhere for a while, then at another address.
    #[serde(default)]
    pub moves: u64,
    /// A machine passes nothing on for a while.
    #[serde(default)]
    pub withhold: u64,
    /// A machine stops trusting another for a while.
    #[serde(default)]
    pub distrust: u64,
    /// A wall clock is set wrong by up to 3 h.
    #[serde(default)]
    pub skew: u64,
    /// A build of 1 to 1,500 paths.
    #[serde(default)]
    pub build: u64,
    /// How long a machine that starts again may need to read its store, milliseconds; it talks with others meanwhile.
    #[serde(default)]
    pub read_ms: u64,
    /// A garbage collection of up to half of a store.
    #[serde(default)]
    pub collect: u64,
}

/// Machines that are on every allowlist and lie, and strangers that are on none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hostile {
    /// How many lie, of a thousand machines.
    #[serde(default)]
    pub permille: u64,
    /// The tricks that they are dealt in turn; empty for all tricks.
    #[serde(default)]
    pub tricks: Vec<Trick>,
    /// Strangers, each of whom tries all tricks.
    #[serde(default)]
    pub strangers: usize,
    /// How often each plays its trick, milliseconds.
    #[serde(default)]
    pub every_ms: u64,
}

/// Something that happens at a fixed time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When, seconds from the end of `settle_s`.
    pub at_s: u64,
    /// The kind of event.
    pub what: What,
    /// The machine that it happens to; negative numbers count from the end.
    #[serde(default)]
    pub node: Option<i64>,
    /// Or the site; it happens to all of its machines.
    #[serde(default)]
    pub site: Option<String>,
    /// For a partition: the only machine that `node` is not cut off from.
    #[serde(default)]
    pub but: Option<i64>,
    /// Paths that a build adds.
    #[serde(default)]
    pub paths: u32,
    /// What a garbage collection removes, of a thousand paths.
    #[serde(default)]
    pub permille: u64,
    /// How long a sleep, a partition or the time between stop and start takes, seconds.
    #[serde(default)]
    pub for_s: u64,
    /// How many times it happens in all.
    #[serde(default = "once")]
    pub times: u64,
    /// Time between two of these times, seconds.
    #[serde(default)]
    pub every_s: u64,
    /// How far a clock is set ahead of the right time, seconds; behind it when negative; 3 h by default.
    #[serde(default = "three_hours")]
    pub by_s: i64,
    /// When it happens to several machines: how much later on each next one, milliseconds.
    #[serde(default)]
    pub stagger_ms: u64,
}

/// The kinds of events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// `paths` new paths are built.
    Build,
    /// `permille` of the paths are removed.
    Collect,
    /// The process is killed, and started again with its state after `for_s`.
    Crash,
    /// The process is killed, and started again without its state after `for_s`.
    CrashWithoutState,
    /// The process stops with a goodbye, and is started again after `for_s`.
    Restart,
    /// The machine is suspended for `for_s`.
    Sleep,
    /// The site (or machine) is cut off from all others for `for_s`.
    Partition,
    /// A machine that was not there until now starts with an empty state.
    Join,
    /// The machine's wall clock is set wrong by `by_s`.
    Skew,
    /// The machine is nowhere for `for_s`, then at another address.
    Move,
    /// The machine passes nothing on for `for_s`: no message, no news, no body but its own.
    Withhold,
}

/// The most that the figures of a run may be; what is absent is not promised.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Targets {
    /// Until a new path is known to every machine, 99th percentile, milliseconds.
    #[serde(default)]
    pub known_p99_ms: Option<u64>,
    /// Until tables are equal again after the last fault, milliseconds.
    #[serde(default)]
    pub converged_ms: Option<u64>,
    /// Sent and received on the line of one machine, bytes a second, mean.
    #[serde(default)]
    pub bytes_per_s: Option<u64>,
    /// Wasted probes for a thousand absent paths.
    #[serde(default)]
    pub wasted_permille: Option<u64>,
    /// What a joiner receives, percent of the bytes of the filters.
    #[serde(default)]
    pub joiner_percent: Option<u64>,
    /// Until a joiner's table is full, milliseconds.
    #[serde(default)]
    pub joiner_ms: Option<u64>,
    /// Bodies and deltas received by each machine for one build, percent of the entropy of the changed bits.
    #[serde(default)]
    pub entropy_percent: Option<u64>,
}

fn connections() -> usize {
    32
}

fn gigabit() -> u64 {
    1_000
}

fn three_hours() -> i64 {
    10_800
}

fn once() -> u64 {
    1
}

/// Names of the built-in scenarios.
pub fn built_in() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

impl Scenario {
    /// A built-in scenario, or one from a file.
    pub fn load(name_or_file: &str) -> Result<Self, ScenarioError> {
        Self::parse(name_or_file, &read(BUILT_IN, name_or_file)?)
    }

    /// Reads and checks the text of a file.
    pub fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let mut scenario: Self = decode(name, text)?;
        name.clone_into(&mut scenario.name);
        scenario.check()?;
        Ok(scenario)
    }

    /// The same scenario with fewer machines and paths, for builds that are not optimised.
    #[must_use]
    pub fn small(mut self) -> Self {
        let before = self.nodes;
        self.nodes = self.nodes.min(12);
        self.paths = self.paths.min(150);
        self.run_s = self.run_s.min(900);
        let mut left = self.nodes;
        let sites = self.site.len();
        for (at, site) in self.site.iter_mut().enumerate() {
            let share = (site.nodes * self.nodes).div_ceil(before).max(1);
            site.nodes = if at + 1 == sites { left } else { share.min(left) };
            left -= site.nodes;
        }
        for event in &mut self.event {
            event.paths = event.paths.min(100);
            event.times = event.times.min(4);
            event.for_s = event.for_s.min(self.run_s / 3);
            event.at_s = event.at_s.min(self.run_s / 2);
            event.node = event.node.map(|node| node.rem_euclid(i64::try_from(self.nodes).unwrap_or(1)));
        }
        self.hostile.strangers = self.hostile.strangers.min(4);
        self
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let demand = |holds, field, value: String, accepted| demand(&self.name, holds, field, value, accepted);
        let permille = |field, value: u64| demand(value <= 1_000, field, value.to_string(), "at most 1000");
        demand((2..=2_000).contains(&self.nodes), "nodes", self.nodes.to_string(), "from 2 to 2000")?;
        demand(self.paths <= 200_000, "paths", self.paths.to_string(), "at most 200000")?;
        demand((1..=256).contains(&self.connections), "connections", self.connections.to_string(), "from 1 to 256")?;
        demand(self.run_s <= 7 * 86_400, "run_s", self.run_s.to_string(), "at most a week, 604800")?;
        demand(self.bound_s >= 1, "bound_s", self.bound_s.to_string(), "at least 1")?;
        permille("shared_permille", self.shared_permille)?;
        permille("churn.collect_permille", self.churn.collect_permille)?;
        permille("hostile.permille", self.hostile.permille)?;
        for line in std::iter::once(&self.network).chain(&self.wan) {
            permille("loss_permille", line.loss_permille)?;
            permille("drop_permille", line.drop_permille)?;
            permille("duplicate_permille", line.duplicate_permille)?;
            permille("reorder_permille", line.reorder_permille)?;
            let slowest_ms = line.delay_ms.max(line.one_way_ms(true));
            demand(slowest_ms <= 10_000, "delay_ms, delay_back_ms", slowest_ms.to_string(), "at most 10000")?;
            demand(line.up_mbit > 0 && line.down_mbit > 0, "up_mbit, down_mbit", "0".to_owned(), "at least 1")?;
        }
        let in_sites: usize = self.site.iter().map(|site| site.nodes).sum();
        let whole = self.site.is_empty() || in_sites == self.nodes;
        demand(whole, "site.nodes", format!("{in_sites} in all"), "nodes")?;
        for event in &self.event {
            permille("event.permille", event.permille)?;
            for (field, node) in [("event.node", event.node.unwrap_or(0)), ("event.but", event.but.unwrap_or(0))] {
                let exists = node.unsigned_abs() <= self.nodes as u64 && node != i64::try_from(self.nodes).unwrap_or(0);
                demand(exists, field, node.to_string(), "a machine, from 0 or from -1")?;
            }
            let known = event.site.as_ref().is_none_or(|name| self.site.iter().any(|site| site.name == *name));
            demand(known, "event.site", event.site.clone().unwrap_or_default(), "the name of a site")?;
            let skew = event.by_s.unsigned_abs() <= SKEW_S_MAX;
            demand(skew, "event.by_s", event.by_s.to_string(), "from -72000 to 72000")?;
            demand(event.times >= 1, "event.times", event.times.to_string(), "at least 1")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str =
        "about = 'x'\nnodes = 2\npaths = 1\nsettle_s = 1\nrun_s = 1\nbound_s = 1\n[network]\ndelay_ms = 1\n";

    fn refusal(text: &str) -> String {
        Scenario::parse("mine", text).unwrap_err().to_string()
    }

    #[test]
    fn built_in_scenarios_are_valid_also_when_small() {
        for name in built_in() {
            let scenario = Scenario::load(name).unwrap();
            scenario.clone().small().check().unwrap();
            assert!(!scenario.about.is_empty());
        }
        assert_eq!(built_in().count(), 12);
    }

    #[test]
    fn refusals_name_the_field_and_the_value() {
        Scenario::parse("mine", SMALLEST).unwrap();
        let unknown = refusal(&SMALLEST.replace("paths = 1", "paths = 1\npats = 2"));
        assert!(unknown.contains("pats") && unknown.contains("mine"), "{unknown}");
        let few = refusal(&SMALLEST.replace("nodes = 2", "nodes = 1"));
        assert_eq!(few, "scenario 'mine': nodes = 1 is not from 2 to 2000");
        let text = refusal(&SMALLEST.replace("nodes = 2", "nodes = 'many'"));
        assert!(text.contains("many") || text.contains("nodes"), "{text}");
        let site = refusal(&format!("{SMALLEST}[[event]]\nat_s = 1\nwhat = 'build'\nsite = 'home'\n"));
        assert_eq!(site, "scenario 'mine': event.site = home is not the name of a site");
        let what = refusal(&format!("{SMALLEST}[[event]]\nat_s = 1\nwhat = 'dance'\n"));
        assert!(what.contains("dance"), "{what}");
        assert!(Scenario::load("nowhere").unwrap_err().to_string().contains("nowhere"));
    }
}
