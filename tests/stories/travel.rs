//! Attestations between daemons: what one builds, the others hear of, hop by hop, and nobody who is not meant to.

use std::fs;
use std::time::{Duration, Instant};

use narmesh_tests::{TestMesh, TestNode, get, wait_for, wait_until};
use serde_json::Value;

/// From a build to a verdict elsewhere; ten times the few seconds that are promised.
const HEARD: Duration = Duration::from_secs(30);

/// A connection.
const MEETING: Duration = Duration::from_secs(5);

/// Counts `builders`, each by its node, and asks for `k`.
fn counting(node: &mut TestNode, builders: &[(String, String)], k: usize) {
    let own = node.name.clone();
    let builder = |(name, key): &(String, String)| {
        let peer = if *name == own { String::new() } else { format!("peer = '{name}'\n") };
        format!("[[builder]]\nname = '{name}'\npublic_key = '{key}'\n{peer}")
    };
    let builders: String = builders.iter().map(builder).collect();
    node.config.more = format!("\n[quorum]\nmode = 'observe'\nk = {k}\n{builders}");
}

fn keys(builders: &[&TestNode]) -> Vec<(String, String)> {
    builders.iter().map(|node| (node.name.clone(), node.builder_key())).collect()
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
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let builders = keys(&[&a, &b]);
    counting(&mut c, &builders, 2);
    TestMesh::start_all(&mut [&mut a, &mut b, &mut c]);
    // The daemons run: each hears of what the other builds as it is built.
    let app = a.store.build_one("app");
    wait_verdict(&c, &app, "short", &["a"]);
    let why = c.narmesh(&["quorum", "why", &app]);
    assert!(!why.status.success() && why.stdout.contains("of 2 groups"), "{}", why.stdout);
    assert_eq!(b.store.build_one("app"), app);
    wait_verdict(&c, &app, "agreed", &["a", "b"]);
    let why = c.narmesh(&["quorum", "why", &app]).expect_success("why of what is agreed");
    assert!(why.contains("a and b; counts for 2 groups."), "{why}");
    let nondet = a.store.build_one("nondet");
    b.store.build_one("nondet");
    wait_verdict(&c, &nondet, "conflict", &["a", "b"]);
    // What nobody counts is not kept: a and b count nobody.
    assert_eq!(attested_by(&a, &b.builder_key()) + attested_by(&b, &a.builder_key()), 0);
    let metrics = get(c.gateway(), "/metrics").unwrap().text();
    let pulled =
        metrics.lines().find_map(|line| line.strip_prefix("narmesh_quorum_pulled_total ")?.parse::<u64>().ok());
    assert_eq!(pulled, Some(6), "app, lib and nondet of two builders");
    assert!(!metrics.contains("narmesh_quorum_refused_total{"), "{metrics}");

    // What c knew is gone: it hears it again, as soon as it has met one of them.
    c.kill();
    forget(&c, "quorum.sqlite");
    c.start();
    wait_verdict(&c, &app, "agreed", &["a", "b"]);
    wait_verdict(&c, &nondet, "conflict", &["a", "b"]);
}

/// Attestations of this key in a node's file.
fn attested_by(node: &TestNode, key: &str) -> usize {
    node.narmesh(&["quorum", "export"]).stdout.lines().filter(|line| line.starts_with(key)).count()
}

#[test]
fn a_relay_tells_those_whom_the_builder_admits_and_nobody_else() {
    let mesh = TestMesh::new();
    let [mut a, mut relay, mut c, mut d] = ["a", "relay", "c", "d"].map(|name| mesh.node(name));
    let builders = keys(&[&a, &relay]);
    for node in [&mut relay, &mut c, &mut d] {
        counting(node, &builders, 1);
    }
    // Only the relay can be found; a does not know d, which knows a.
    for node in [&mut a, &mut c, &mut d] {
        node.config.advertise_loopback = false;
    }
    let [of_a, of_relay, of_c, of_d] = [&a, &relay, &c, &d].map(|node| node.card());
    for (node, allowed) in [
        (&mut a, vec![&of_relay, &of_c]),
        (&mut relay, vec![&of_a, &of_c, &of_d]),
        (&mut c, vec![&of_a, &of_relay]),
        (&mut d, vec![&of_a, &of_relay]),
    ] {
        allowed.into_iter().for_each(|card| node.allow(card));
    }
    relay.start();
    for node in [&mut a, &mut c, &mut d] {
        node.learn_address("relay", &relay.p2p_address());
        node.start();
        node.wait_connected("relay", true, MEETING);
    }
    let app = a.store.build_one("app");
    wait_verdict(&c, &app, "agreed", &["a"]);
    assert!(!c.status().connected("a") && !a.status().connected("c"), "it came over the relay");
    // What the relay built itself reaches d over the same line; what a built does not.
    let own = relay.store.build_fresh("of-the-relay");
    wait_verdict(&d, &own, "agreed", &["relay"]);
    wait_verdict(&relay, &app, "agreed", &["a"]);
    assert_eq!((verdict(&d, &app).1, attested_by(&d, &a.builder_key())), (Vec::new(), 0));

    // Once a admits it, d hears it, from the relay.
    a.allow(&of_d);
    a.reload();
    wait_verdict(&d, &app, "agreed", &["a"]);
    assert!(!d.status().connected("a"));
}

/// What `status` says of a builder: what decides who is told, who is, and who is not.
fn audience(node: &TestNode, builder: &str) -> (String, Value, Value) {
    let status = node.status().0;
    let builders = status["builders"].as_array().unwrap();
    let found = builders.iter().find(|found| found["name"] == builder).unwrap();
    (found["audience"].as_str().unwrap().to_owned(), found["told"].clone(), found["not_told"].clone())
}

fn forget(node: &TestNode, file: &str) {
    for path in fs::read_dir(node.dir().join("state")).unwrap().map(|entry| entry.unwrap().path()) {
        if path.file_name().unwrap().to_str().unwrap().starts_with(file) {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_relay_that_starts_again_tells_those_whom_a_dead_builder_admitted_and_nobody_else() {
    let mesh = TestMesh::new();
    let [mut a, mut relay, mut c, mut d] = ["a", "relay", "c", "d"].map(|name| mesh.node(name));
    let builders = keys(&[&a, &relay]);
    for node in [&mut relay, &mut c, &mut d] {
        counting(node, &builders, 1);
    }
    let [of_a, of_relay, of_c, of_d] = [&a, &relay, &c, &d].map(|node| node.card());
    for (node, allowed) in [
        (&mut a, vec![&of_relay, &of_c]),
        (&mut relay, vec![&of_a, &of_c, &of_d]),
        (&mut c, vec![&of_a, &of_relay]),
        (&mut d, vec![&of_a, &of_relay]),
    ] {
        allowed.into_iter().for_each(|card| node.allow(card));
    }
    relay.start();
    for node in [&mut a, &mut c] {
        node.learn_address("relay", &relay.p2p_address());
        node.start();
    }
    let admitted = |audience: &str| (audience.to_owned(), serde_json::json!(["c"]), serde_json::json!(["d"]));
    wait_until("the relay knows whom a admits", HEARD, || audience(&relay, "a") == admitted("summary"));
    // c knows it, too, and goes before there is anything to hear.
    wait_until("c knows that a admits the relay", HEARD, || audience(&c, "a").1 == serde_json::json!(["relay"]));
    c.kill();
    let app = a.store.build_one("app");
    wait_verdict(&relay, &app, "agreed", &["a"]);
    assert_eq!(audience(&relay, "relay").0, "own");
    a.kill();
    relay.kill();

    relay.start();
    assert_eq!(audience(&relay, "a"), admitted("last-summary"));
    let builder = relay.status().0["builders"][0].clone();
    assert!(builder["attestations"] == 2 && builder["last_unix_s"].as_u64() > Some(1_700_000_000), "{builder}");
    d.learn_address("relay", &relay.p2p_address());
    for node in [&mut c, &mut d] {
        node.start();
        node.wait_connected("relay", true, MEETING);
    }
    wait_verdict(&c, &app, "agreed", &["a"]);
    // What the relay built itself comes to d over the same line; what a built does not.
    let own = relay.store.build_fresh("of-the-relay");
    wait_verdict(&d, &own, "agreed", &["relay"]);
    assert_eq!((verdict(&d, &app).1, attested_by(&d, &a.builder_key())), (Vec::new(), 0));

    // Without memory of whom a admitted, nobody is told.
    c.kill();
    relay.kill();
    forget(&relay, "state.sqlite");
    forget(&c, "quorum.sqlite");
    relay.start();
    assert_eq!(audience(&relay, "a"), ("unknown".to_owned(), serde_json::json!([]), serde_json::json!(["c", "d"])));
    c.start();
    wait_verdict(&c, &own, "agreed", &["relay"]);
    assert_eq!(attested_by(&c, &a.builder_key()), 0);
    a.start();
    wait_verdict(&c, &app, "agreed", &["a"]);
}

/// Lines of a node's export that name this path.
fn lines_about(node: &TestNode, path: &str) -> usize {
    node.narmesh(&["quorum", "export"]).stdout.lines().filter(|line| line.contains(path)).count()
}

#[test]
fn what_is_withheld_is_attested_to_nobody() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let builders = keys(&[&a]);
    for node in [&mut a, &mut b, &mut c] {
        counting(node, &builders, 1);
    }
    a.config.exclude = vec!["mesh-fresh-secret*".to_owned()];
    let [of_a, of_b, of_c] = [&a, &b, &c].map(|node| node.card());
    a.allow(&of_b);
    a.allow(&of_c);
    b.allow(&of_a);
    c.allow(&of_a);
    a.start();
    b.learn_address("a", &a.p2p_address());
    b.start();
    b.wait_connected("a", true, MEETING);
    // Excluded by name, not to be substituted, and what refers to that; then what may leave.
    let secret = a.store.build_fresh("secret-plan");
    let refers = a.store.build_one("usesprivate");
    let private = a.store.build_one("private");
    let app = a.store.build_one("app");
    let [gone, old] = ["to-be-excluded", "old"].map(|tag| a.store.build_fresh(tag));
    for path in [&app, &gone, &old] {
        wait_verdict(&b, path, "agreed", &["a"]);
    }
    for withheld in [&secret, &private, &refers] {
        assert_eq!((lines_about(&a, withheld), lines_about(&b, withheld)), (0, 0), "{withheld}");
        let attest = a.narmesh(&["quorum", "attest", withheld]);
        assert!(!attest.status.success() && attest.stderr.contains("withheld"), "{}{}", attest.stdout, attest.stderr);
    }

    // Excluded later: taken back, also of what is gone from the store.
    a.store.delete(&[gone.clone(), old.clone()]);
    a.config.exclude.extend(["mesh-lib*".to_owned(), "mesh-fresh-to-be*".to_owned()]);
    a.reload();
    for path in [&app, &gone] {
        wait_for(&format!("{path} is taken back"), HEARD, || (lines_about(&a, path) == 0).then_some(()));
    }
    // Who heard it before knows it; a does not take it from there, nor tell it on.
    a.kill();
    a.start();
    b.learn_address("a", &a.p2p_address());
    b.reload();
    wait_for("b told a what a took back", HEARD, || {
        let metrics = get(a.gateway(), "/metrics").unwrap().text();
        metrics.contains("narmesh_quorum_refused_total{reason=\"withheld\"} ").then_some(())
    });
    assert_eq!((lines_about(&a, &app), lines_about(&b, &app)), (0, 1));
    c.learn_address("a", &a.p2p_address());
    c.start();
    let last = a.store.build_fresh("last");
    // What is gone and was never withheld is still told.
    for path in [&old, &last] {
        wait_verdict(&c, path, "agreed", &["a"]);
    }
    for withheld in [&secret, &private, &refers, &app, &gone] {
        assert_eq!(lines_about(&c, withheld), 0, "{withheld}");
    }

    // Let out again, it is attested again.
    a.config.exclude.clear();
    a.reload();
    wait_verdict(&c, &app, "agreed", &["a"]);
    wait_verdict(&c, &secret, "agreed", &["a"]);
    assert_eq!((lines_about(&c, &private), lines_about(&c, &refers)), (0, 0));
    assert_eq!(a.status().peer("b").unwrap()["misdeeds"].as_u64(), Some(0));
    assert_eq!(c.status().peer("a").unwrap()["misdeeds"].as_u64(), Some(0));
}

/// Attestations of this path that are known.
fn attestations(node: &TestNode, path: &str) -> usize {
    node.narmesh(&["quorum", "export", path]).expect_success("export").lines().count() - 1
}

#[test]
fn what_turns_out_to_be_private_is_taken_back_at_once() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let builders = keys(&[&a]);
    for node in [&mut a, &mut b, &mut c] {
        counting(node, &builders, 1);
    }
    // Nothing says that it is private while its derivation is away.
    let [private, refers, gone] = ["private", "callsprivate", "usesprivate"].map(|name| a.store.build_one(name));
    let derivations = a.store.derivations(&[&private, &refers, &gone]);
    a.store.delete(&derivations);
    let [of_a, of_b, of_c] = [&a, &b, &c].map(|node| node.card());
    a.allow(&of_b);
    a.allow(&of_c);
    b.allow(&of_a);
    c.allow(&of_a);
    TestMesh::start_introduced(&mut [&mut a, &mut b]);
    for path in [&private, &refers, &gone] {
        wait_verdict(&b, path, "agreed", &["a"]);
    }
    a.store.delete(std::slice::from_ref(&gone));
    let app = a.store.build_one("app");
    wait_verdict(&b, &app, "agreed", &["a"]);
    assert_eq!(attestations(&a, &gone), 1, "that it is gone makes it nothing private");

    // The derivation comes, for a build that has nothing to do.
    a.store.build_one("private");
    for path in [&private, &refers] {
        wait_for(&format!("{path} is taken back"), HEARD, || (attestations(&a, path) == 0).then_some(()));
    }
    c.learn_address("a", &a.p2p_address());
    c.start();
    wait_verdict(&c, &app, "agreed", &["a"]);
    assert_eq!((attestations(&c, &private), attestations(&c, &refers)), (0, 0));
    // What refers to it and is gone goes when somebody asks for it, and nobody is blamed for what was promised before.
    wait_for("that is taken back, too", HEARD, || (attestations(&a, &gone) == 0).then_some(()));
    for node in [&b, &c] {
        assert_eq!(node.status().peer("a").unwrap()["misdeeds"].as_u64(), Some(0), "{}", node.name);
    }
}
