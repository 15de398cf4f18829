//! Many daemons that are started and observed together.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mesh::TestMesh;
use crate::network::{Network, Traffic};
use crate::nix::NixStoreFixture;
use crate::node::TestNode;
use crate::status::Status;
use crate::wait::{poll, promised, wait_until};

/// Daemons on one network that all allow each other. The first few have stores of their own, the others share one.
#[derive(Debug)]
pub struct Fleet {
    /// The daemons.
    pub nodes: Vec<TestNode>,
    /// The network that they are on; it is dropped after them.
    pub network: Network,
    mesh: TestMesh,
}

impl Fleet {
    /// `count` machines on one bridge, `n0` and so on; see [`Fleet::on`].
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn on_a_bridge(count: usize, own_stores: usize, paths: usize) -> Self {
        let names: Vec<_> = (0..count).map(|number| format!("n{number}")).collect();
        Self::on(Network::on_a_bridge(count), &names, own_stores, paths)
    }

    /// A machine of the network for each name. The first `own_stores` of them can build and substitute; every store has
    /// `paths` paths. As with users, each knows the present addresses of all the others. Nothing runs yet.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn on(network: Network, names: &[String], own_stores: usize, paths: usize) -> Self {
        let mesh = TestMesh::new();
        let shared = NixStoreFixture::chroot(&mesh.path().join("shared"));
        shared.register(paths);
        let make = |(number, name): (usize, &String)| {
            if number >= own_stores {
                return mesh.node_with_store(name, shared.clone());
            }
            let node = mesh.node(name);
            node.store.register(paths);
            node
        };
        let mut nodes: Vec<_> = names.iter().enumerate().map(make).collect();
        TestMesh::introduce(&mut nodes.iter_mut().collect::<Vec<_>>());
        for (node, machine) in nodes.iter_mut().zip(network.machines()) {
            node.live_on(machine);
        }
        let addresses: Vec<_> = nodes.iter().map(|node| (node.name.clone(), node.p2p_address())).collect();
        for node in &mut nodes {
            for (name, address) in &addresses {
                if *name != node.name {
                    node.learn_address(name, address);
                }
            }
        }
        Self { nodes, network, mesh }
    }

    /// A directory that is removed with the fleet.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.mesh.path()
    }

    /// Starts the given daemons at the same moment, and returns how long it took until each had the summaries of all.
    ///
    /// # Panics
    /// When that takes ten times `bound`.
    #[track_caller]
    pub fn start_at_once(&mut self, numbers: std::ops::Range<usize>, bound: Duration) -> Duration {
        let started = Instant::now();
        let launched = self.nodes.get_mut(numbers.clone()).expect("machines of this fleet");
        launched.iter_mut().for_each(TestNode::launch);
        launched.iter_mut().for_each(|node| node.wait_started(bound));
        let all: Vec<_> = self.nodes.get(numbers).expect("as before").iter().collect();
        wait_tables("all start at once", started, bound, &all, &all)
    }

    /// Waits until the daemons of these numbers have nothing to do: all together use less than a tenth of a processor for
    /// five seconds. The work of a start takes long where many daemons share few processors.
    ///
    /// # Panics
    /// When that takes ten times `bound`.
    #[track_caller]
    pub fn wait_rest(&self, numbers: std::ops::Range<usize>, bound: Duration) {
        const LOOK: Duration = Duration::from_secs(5);
        let used = || -> Duration {
            let running = self.nodes.get(numbers.clone()).expect("machines of this fleet");
            running.iter().map(TestNode::processor_time).sum()
        };
        wait_until("the daemons have nothing to do", promised(bound), || {
            let before = used();
            std::thread::sleep(LOOK);
            used() - before < LOOK / 10
        });
    }

    /// Starts one more daemon, and returns how long it took until it had the summaries of all others.
    ///
    /// # Panics
    /// When that takes ten times `bound`.
    #[track_caller]
    pub fn join(&mut self, number: usize, bound: Duration) -> Duration {
        let started = Instant::now();
        let joiner = self.nodes.get_mut(number).expect("a machine of this fleet");
        joiner.launch();
        joiner.wait_started(bound);
        let joiner = self.nodes.get(number).expect("as before");
        let others = self.nodes.len() - 1;
        joiner.wait_status("has the summaries of all", bound, |status| summaries(status).count() == others);
        started.elapsed()
    }

    /// Total size of the filters of other nodes that the daemon of this number holds, bytes.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn filter_bytes(&self, number: usize) -> u64 {
        let status = self.nodes.get(number).expect("a machine of this fleet").status();
        summaries(&status).filter_map(|summary| summary.get("filter_bits")?.as_u64()).sum::<u64>() / 8
    }

    /// Traffic of the machine of this number since the network was made.
    #[must_use]
    pub fn traffic(&self, number: usize) -> Traffic {
        self.network.machine(number).traffic()
    }

    /// Bytes sent and received by each machine since the network was made.
    #[must_use]
    pub fn all_traffic_bytes(&self) -> Vec<u64> {
        (0..self.nodes.len()).map(|number| self.traffic(number).bytes()).collect()
    }

    /// Builds a new path on the first machine, and returns it with the time from the end of the build until the gateways of
    /// all others answered for it.
    ///
    /// # Panics
    /// When that takes ten times `bound`.
    #[track_caller]
    pub fn build_for_all(&self, tag: &str, bound: Duration) -> (String, Duration) {
        let (builder, others) = self.nodes.split_first().expect("machines");
        let path = builder.store.build_fresh(tag);
        let built = Instant::now();
        for node in others {
            wait_until(&format!("{} can substitute {path}", node.name), promised(bound), || {
                node.get_narinfo(&path).status == 200
            });
        }
        (path, built.elapsed())
    }
}

/// The summaries of other nodes that a daemon holds.
fn summaries(status: &Status) -> impl Iterator<Item = &Value> {
    let peers = status.0.get("peers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    peers.iter().filter_map(|peer| peer.get("summary")).filter(|summary| !summary.is_null())
}

/// Epoch, seq and number of paths; the number too, because a daemon counts a path a moment before it announces it.
type Version = (u64, u64, u64);

/// The version of a daemon's own summary.
fn own(status: &Status) -> Version {
    (status.number("/own/epoch"), status.number("/own/seq"), status.number("/own/paths"))
}

/// The version of another node's summary that a daemon holds.
fn held(status: &Status, owner: &str) -> Option<Version> {
    let ((epoch, seq), paths) = status.summary_version(owner).zip(status.summary_paths(owner))?;
    Some((epoch, seq, paths))
}

/// The pairs of an owner and a listener that does not hold the owner's present summary, by name.
fn missing(owners: &[&TestNode], listeners: &[&TestNode]) -> Vec<String> {
    let statuses: BTreeMap<_, _> = owners.iter().chain(listeners).map(|node| (&node.name, node.status())).collect();
    let status = |node: &TestNode| statuses.get(&node.name).expect("asked above");
    let mut missing = Vec::new();
    for owner in owners {
        let present = own(status(owner));
        for listener in listeners.iter().filter(|listener| listener.name != owner.name) {
            if held(status(listener), &owner.name) != Some(present) {
                missing.push(format!("{} at {}", owner.name, listener.name));
            }
        }
    }
    missing
}

/// Waits until all of `listeners` hold the present summaries of all of `owners`; returns how long that took from `since` on.
///
/// The time may be too long by one round of asking all daemons: some ten milliseconds for each.
///
/// # Panics
/// When it takes ten times `bound`.
#[track_caller]
pub fn wait_tables(
    what: &str,
    since: Instant,
    bound: Duration,
    owners: &[&TestNode],
    listeners: &[&TestNode],
) -> Duration {
    let mut last = Vec::new();
    let found = poll(promised(bound), || {
        last = missing(owners, listeners);
        last.is_empty().then(|| since.elapsed())
    });
    found.unwrap_or_else(|| panic!("{what}: still missing after {:?}: {}", promised(bound), last.join(", ")))
}

/// Builds a path on `owner`, and waits until all of `listeners` have heard of it. Returns the path, and the time from the
/// end of the build until then.
///
/// # Panics
/// As [`wait_tables`].
#[track_caller]
pub fn build_and_tell(owner: &TestNode, tag: &str, bound: Duration, listeners: &[&TestNode]) -> (String, Duration) {
    let path = owner.store.build_fresh(tag);
    let built = Instant::now();
    let paths = owner.store.outputs().len() as u64;
    owner.wait_status("advertises what it built", bound, |status| status.number("/own/paths") == paths);
    let took = wait_tables(&format!("{tag}, built on {}", owner.name), built, bound, &[owner], listeners);
    (path, took)
}

/// All nodes except the one with the name `but`.
#[must_use]
pub fn others<'n>(nodes: &'n [TestNode], but: &str) -> Vec<&'n TestNode> {
    nodes.iter().filter(|node| node.name != but).collect()
}

/// Asserts that none of `nodes` charges another with a misdeed.
///
/// # Panics
/// When one does.
#[track_caller]
pub fn assert_unblamed(nodes: &[&TestNode]) {
    for node in nodes {
        for other in nodes.iter().filter(|other| other.name != node.name) {
            let status = node.status();
            let peer = status.peer(&other.name).expect("on the allowlist");
            assert_eq!(peer.get("misdeeds").and_then(Value::as_u64), Some(0), "{}: {peer}", node.name);
        }
    }
}
