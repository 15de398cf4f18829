//! Many daemons, looked at all at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use narmesh_tests::{Status, TestNode, poll, promised};

/// Epoch, seq and number of paths. The number is there too because a daemon counts a path a moment before it announces it.
type Version = (u64, u64, u64);

/// What a daemon advertises now.
fn own(status: &Status) -> Version {
    (status.number("/own/epoch"), status.number("/own/seq"), status.number("/own/paths"))
}

/// What a daemon holds of another.
fn held(status: &Status, owner: &str) -> Option<Version> {
    let ((epoch, seq), paths) = status.summary_version(owner).zip(status.summary_paths(owner))?;
    Some((epoch, seq, paths))
}

/// Which of `listeners` do not hold the present summary of which of `owners`, by name.
fn missing(owners: &[&TestNode], listeners: &[&TestNode]) -> Vec<String> {
    let statuses: BTreeMap<_, _> = owners.iter().chain(listeners).map(|node| (&node.name, node.status())).collect();
    let mut missing = Vec::new();
    for owner in owners {
        let present = own(&statuses[&owner.name]);
        for listener in listeners.iter().filter(|listener| listener.name != owner.name) {
            if held(&statuses[&listener.name], &owner.name) != Some(present) {
                missing.push(format!("{} at {}", owner.name, listener.name));
            }
        }
    }
    missing
}

/// Waits until all of `listeners` hold the present summaries of all of `owners`; how long that took from `since` on.
///
/// It is seen up to a round of looking late: some ten milliseconds for each daemon.
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

/// Builds a path on `owner`, and waits until all of `listeners` have heard of it: the path, and how long that took from the
/// end of the build on.
#[track_caller]
pub fn build_and_tell(owner: &TestNode, tag: &str, bound: Duration, listeners: &[&TestNode]) -> (String, Duration) {
    let path = owner.store.build_fresh(tag);
    let built = Instant::now();
    let paths = owner.store.outputs().len() as u64;
    owner.wait_status("advertises what it built", bound, |status| status.number("/own/paths") == paths);
    let took = wait_tables(&format!("{tag}, built on {}", owner.name), built, bound, &[owner], listeners);
    (path, took)
}

/// All but one.
pub fn others<'n>(nodes: &'n [TestNode], but: &str) -> Vec<&'n TestNode> {
    nodes.iter().filter(|node| node.name != but).collect()
}

/// Nobody was accused of anything.
#[track_caller]
pub fn assert_unblamed(nodes: &[&TestNode]) {
    for node in nodes {
        for other in nodes.iter().filter(|other| other.name != node.name) {
            let status = node.status();
            let peer = status.peer(&other.name).unwrap();
            assert_eq!(peer["misdeeds"], 0, "{} of {}: {peer}", node.name, other.name);
        }
    }
}
