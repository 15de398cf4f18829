//! Attestations between daemons: what one builds, the others hear of, hop by hop, and nobody who is not meant to.

use std::time::{Duration, Instant};

use narmesh_tests::{TestMesh, TestNode, wait_for};
use serde_json::Value;

/// From a build to a verdict elsewhere; ten times the few seconds that are promised.
const HEARD: Duration = Duration::from_secs(30);

/// Counts `builders`, each by its node, and asks for `k`.
fn counting(node: &mut TestNode, builders: &[(&str, String)], k: usize) {
    let own = node.name.clone();
    let builder = |(name, key): &(&str, String)| {
        let peer = if *name == own { String::new() } else { format!("peer = '{name}'\n") };
        format!("[[builder]]\nname = '{name}'\npublic_key = '{key}'\n{peer}")
    };
    let builders: String = builders.iter().map(builder).collect();
    node.config.more = format!("\n[quorum]\nmode = 'observe'\nk = {k}\n{builders}");
}

fn keys<'a>(builders: &[&'a TestNode]) -> Vec<(&'a str, String)> {
    builders.iter().map(|node| (node.name.as_str(), node.builder_key())).collect()
}

/// The verdict on a path, and who attests anything of it.
fn verdict(node: &TestNode, path: &str) -> (String, Vec<String>) {
    let said = node.narmesh(&["quorum", "report", "--json", "--path", path]).stdout;
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
    let path = &report["paths"][0];
    let fingerprints = path["fingerprints"].as_array().cloned().unwrap_or_default();
    let names = fingerprints.iter().flat_map(|it| it["builders"].as_array().cloned().unwrap_or_default());
    let mut names: Vec<String> = names.filter_map(|name| name.as_str().map(str::to_owned)).collect();
    names.sort();
    (path["verdict"].as_str().unwrap_or_default().to_owned(), names)
}

fn wait_verdict(node: &TestNode, path: &str, wanted: &str, builders: &[&str]) -> Duration {
    let since = Instant::now();
    wait_for(&format!("{} finds {path} {wanted} by {builders:?}", node.name), HEARD, || {
        let (verdict, names) = verdict(node, path);
        (verdict == wanted && names == builders).then_some(())
    });
    since.elapsed()
}

#[test]
fn what_one_daemon_builds_another_hears_of() {
    let mesh = TestMesh::new();
    let (mut a, mut c) = (mesh.node("a"), mesh.node("c"));
    counting(&mut c, &keys(&[&a]), 1);
    TestMesh::start_all(&mut [&mut a, &mut c]);
    let app = a.store.build_one("app");
    wait_verdict(&c, &app, "agreed", &["a"]);
    let why = c.narmesh(&["quorum", "why", &app]).expect_success("why of what a attests");
    assert!(why.contains('a'), "{why}");
}
