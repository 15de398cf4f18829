//! Attestations travel between daemons: others hear of what one builds, also over other nodes, and only those who may.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use narmesh_tests::{StorePlace, TestMesh, TestNode, finish, get, wait_for, wait_until};
use serde_json::Value;

/// Time from a build to a verdict on another node: ten times the few seconds that are promised.
const HEARD: Duration = Duration::from_secs(30);

/// A connection is made within this.
const MEETING: Duration = Duration::from_secs(5);

/// Makes `node` count `builders`, each with its node as its peer, and require `k` of them.
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

/// The verdict on a path, and the sorted names of all builders that attest any result for it.
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
fn attestations_of_one_daemon_s_builds_reach_another() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let builders = keys(&[&a, &b]);
    counting(&mut c, &builders, 2);
    TestMesh::start_all(&mut [&mut a, &mut b, &mut c]);
    // All daemons run, so attestations spread as soon as something is built.
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
    // Attestations of builders that a node does not count are not kept: a and b count nobody.
    assert_eq!(attested_by(&a, &b.builder_key()) + attested_by(&b, &a.builder_key()), 0);
    assert_eq!(metric(&c, "narmesh_quorum_pulled_total"), 6, "app, lib and nondet of two builders");
    let metrics = get(c.gateway(), "/metrics").unwrap().text();
    assert!(!metrics.contains("narmesh_quorum_refused_total{"), "{metrics}");

    // c loses what it knew, and hears it again as soon as it is connected.
    c.kill();
    forget(&c, "quorum.sqlite");
    c.start();
    wait_verdict(&c, &app, "agreed", &["a", "b"]);
    wait_verdict(&c, &nondet, "conflict", &["a", "b"]);
}

/// The number of attestations by this key that a node has.
fn attested_by(node: &TestNode, key: &str) -> usize {
    node.narmesh(&["quorum", "export"]).stdout.lines().filter(|line| line.starts_with(key)).count()
}

#[test]
fn a_relay_tells_only_those_whom_the_builder_admits() {
    let mesh = TestMesh::new();
    let [mut a, mut relay, mut c, mut d] = ["a", "relay", "c", "d"].map(|name| mesh.node(name));
    let builders = keys(&[&a, &relay]);
    for node in [&mut relay, &mut c, &mut d] {
        counting(node, &builders, 1);
    }
    // The relay is the only node with a known address. d allows a, and a does not allow d.
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
    // The relay's own builds reach d over the same connection; those of a do not.
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

/// What `status` says about a builder: where its audience is known from, who is told, and who is not.
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
fn a_relay_that_starts_again_tells_only_those_whom_a_dead_builder_admitted() {
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
    // c knows that too, and is killed before there is anything to hear.
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
    // The relay's own builds reach d over the same connection; those of a do not.
    let own = relay.store.build_fresh("of-the-relay");
    wait_verdict(&d, &own, "agreed", &["relay"]);
    assert_eq!((verdict(&d, &app).1, attested_by(&d, &a.builder_key())), (Vec::new(), 0));

    // When the relay has lost whom a admitted, it tells nobody.
    c.kill();
    relay.kill();
    forget(&relay, "state.sqlite");
    // Nor may a's summary come from what the relay or c kept.
    [&relay, &c].iter().for_each(|node| fs::remove_file(node.summary_file("a")).unwrap());
    forget(&c, "quorum.sqlite");
    relay.start();
    assert_eq!(audience(&relay, "a"), ("unknown".to_owned(), serde_json::json!([]), serde_json::json!(["c", "d"])));
    c.start();
    wait_verdict(&c, &own, "agreed", &["relay"]);
    assert_eq!(attested_by(&c, &a.builder_key()), 0);
    a.start();
    wait_verdict(&c, &app, "agreed", &["a"]);
}

/// The value of a counter in `/metrics`; 0 while it is not there.
fn metric(node: &TestNode, name: &str) -> u64 {
    let metrics = get(node.gateway(), "/metrics").unwrap().text();
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    metrics.lines().find_map(value).unwrap_or(0)
}

/// The counter of attestations that were refused because their path is withheld.
const REFUSED: &str = "narmesh_quorum_refused_total{reason=\"withheld\"}";

/// Another process that is in the middle of writing to a database; it is killed when this is dropped.
struct Writer(Child);

impl Writer {
    fn begin(database: &Path) -> Self {
        let mut command = Command::new("sqlite3");
        let mut child = command.arg(database).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b".timeout 10000\nBEGIN IMMEDIATE;\n.print begun\n").unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "begun\n");
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The number of lines in a node's export that name this path.
fn lines_about(node: &TestNode, path: &str) -> usize {
    node.narmesh(&["quorum", "export"]).stdout.lines().filter(|line| line.contains(path)).count()
}

#[test]
fn a_withheld_path_is_attested_to_nobody() {
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
    // Three withheld paths: excluded by name, referring to a private one, private. Then paths that may be told.
    let secret = a.store.build_fresh("secret-plan");
    let refers = a.store.build_one("usesprivate");
    let private = a.store.build_one("private");
    let app = a.store.build_one("app");
    let [gone, old] = ["to-be-excluded", "old"].map(|tag| a.store.build_fresh(tag));
    // It refers to a path that is excluded later, and is deleted before that.
    let left = a.store.build("multi").remove(0);
    for path in [&app, &gone, &old, &left] {
        wait_verdict(&b, path, "agreed", &["a"]);
    }
    for withheld in [&secret, &private, &refers] {
        assert_eq!((lines_about(&a, withheld), lines_about(&b, withheld)), (0, 0), "{withheld}");
        let attest = a.narmesh(&["quorum", "attest", withheld]);
        assert!(!attest.status.success() && attest.stderr.contains("withheld"), "{}{}", attest.stdout, attest.stderr);
    }

    // Attestations of paths that are excluded later are taken back, also of paths that are gone from the store.
    a.store.delete(&[gone.clone(), old.clone(), left.clone()]);
    a.config.exclude.extend(["mesh-lib*", "mesh-fresh-to-be*", "mesh-multi-1.0-doc"].map(str::to_owned));
    // From that moment on they are told to nobody, also while the database of attestations cannot be written.
    let writer = Writer::begin(&a.dir().join("state/quorum.sqlite"));
    a.reload();
    a.wait_logged(&["configuration reloaded"]);
    c.learn_address("a", &a.p2p_address());
    c.start();
    wait_until("c asked for it", 2 * HEARD, || {
        a.log().contains("kept back: withheld since it was attested") || lines_about(&c, &app) > 0
    });
    for path in [&app, &gone, &left] {
        assert_eq!((lines_about(&a, path), lines_about(&c, path)), (1, 0), "{path}");
    }
    c.kill();
    drop(writer);
    for path in [&app, &gone, &left] {
        wait_for(&format!("{path} is taken back"), HEARD, || (lines_about(&a, path) == 0).then_some(()));
    }
    // b heard of it before and still knows it; a does not take it from b, and tells it to nobody.
    a.kill();
    a.start();
    b.learn_address("a", &a.p2p_address());
    b.reload();
    wait_until("b told a what a took back", HEARD, || metric(&a, REFUSED) > 0);
    assert_eq!((lines_about(&a, &app), lines_about(&b, &app)), (0, 1));
    c.start();
    let last = a.store.build_fresh("last");
    // A path that is gone and was never withheld is still told.
    for path in [&old, &last] {
        wait_verdict(&c, path, "agreed", &["a"]);
    }
    for withheld in [&secret, &private, &refers, &app, &gone, &left] {
        assert_eq!(lines_about(&c, withheld), 0, "{withheld}");
    }

    // Once they are not excluded any more, they are attested again.
    a.config.exclude.clear();
    a.reload();
    wait_verdict(&c, &app, "agreed", &["a"]);
    wait_verdict(&c, &secret, "agreed", &["a"]);
    assert_eq!((lines_about(&c, &private), lines_about(&c, &refers)), (0, 0));
    assert_eq!(a.status().peer("b").unwrap()["misdeeds"].as_u64(), Some(0));
    assert_eq!(c.status().peer("a").unwrap()["misdeeds"].as_u64(), Some(0));
}

/// The number of attestations of this path that a node knows.
fn attestations(node: &TestNode, path: &str) -> usize {
    node.narmesh(&["quorum", "export", path]).expect_success("export").lines().count() - 1
}

#[test]
fn attestations_of_a_path_that_turns_out_to_be_private_are_taken_back_at_once() {
    let mesh = TestMesh::new();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| mesh.node(name));
    let builders = keys(&[&a]);
    for node in [&mut a, &mut b, &mut c] {
        counting(node, &builders, 1);
    }
    // Only its derivation says that a path is private, so nothing says so while that is deleted.
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

    // The derivation comes back, by a build that finds its output in the store.
    a.store.build_one("private");
    for path in [&private, &refers] {
        wait_for(&format!("{path} is taken back"), HEARD, || (attestations(&a, path) == 0).then_some(()));
    }
    c.learn_address("a", &a.p2p_address());
    c.start();
    wait_verdict(&c, &app, "agreed", &["a"]);
    assert_eq!((attestations(&c, &private), attestations(&c, &refers)), (0, 0));
    // The attestation of a deleted path that refers to it is taken back when somebody asks for it. Nobody is blamed because
    // it was promised before.
    wait_for("that is taken back, too", HEARD, || (attestations(&a, &gone) == 0).then_some(()));
    for node in [&b, &c] {
        assert_eq!(node.status().peer("a").unwrap()["misdeeds"].as_u64(), Some(0), "{}", node.name);
    }
}

#[test]
fn one_row_that_cannot_be_read_keeps_no_other_path_from_being_attested() {
    let mesh = TestMesh::new();
    let mut a = mesh.node("a");
    let builders = keys(&[&a]);
    counting(&mut a, &builders, 1);
    let [odd, early] = ["odd", "early"].map(|tag| a.store.build_fresh(tag));
    let StorePlace::Root(root) = a.store.place() else { panic!("a chroot store") };
    let mut sql = Command::new("sqlite3");
    sql.arg(root.join("nix/var/nix/db/db.sqlite"))
        .arg(format!("update ValidPaths set hash = 'nonsense' where path = '{odd}'"));
    finish(&mut sql).expect_success("a row that nobody can parse");
    a.start();
    let is_attested = |path: &str| lines_about(&a, path) == 1;
    wait_until("what was here at the start is attested", HEARD, || is_attested(&early));
    for tag in ["one", "two"] {
        let later = a.store.build_fresh(tag);
        wait_until("what is built later is attested", HEARD, || is_attested(&later));
    }
    assert!(!is_attested(&odd));
    let hash_part = &odd["/nix/store/".len()..][..32];
    let log = a.log();
    let named = log.lines().filter(|line| line.contains("not attested") && line.contains(hash_part));
    assert_eq!(named.count(), 1, "{log}");
}

/// Number of paths in a store that takes long to examine.
const MANY: usize = 20_000;

#[test]
fn a_path_that_became_private_while_the_daemon_was_away_is_not_told_at_its_start() {
    let mesh = TestMesh::new();
    let [mut a, mut c] = ["a", "c"].map(|name| mesh.node(name));
    let builders = keys(&[&a]);
    counting(&mut a, &builders, 1);
    counting(&mut c, &builders, 1);
    TestMesh::introduce(&mut [&mut a, &mut c]);
    let withhold = |a: &TestNode, defaults: bool| {
        a.write_config();
        let text = fs::read_to_string(a.config_file()).unwrap();
        let set = format!("[advertise]\nwithhold_defaults = {defaults}\n");
        fs::write(a.config_file(), text.replace("[advertise]\n", &set)).unwrap();
    };
    withhold(&a, false);
    a.start_as_written(None);
    // From then on c knows that a tells it attestations, even before it hears from a again.
    c.learn_address("a", &a.p2p_address());
    c.start();
    let known = a.store.build_one("rootfile");
    wait_verdict(&c, &known, "agreed", &["a"]);
    c.kill();
    let [refers, plain] = [a.store.build_one("usesprivate"), a.store.build_one("lib")];
    for path in [&refers, &plain] {
        wait_for("it is attested", HEARD, || (lines_about(&a, path) == 1).then_some(()));
    }
    // The path that it refers to is still here, and only the derivation of that says that it is private.
    a.store.delete(std::slice::from_ref(&refers));
    a.kill();
    a.store.register(MANY);
    let StorePlace::Root(root) = a.store.place() else { panic!("a chroot store") };
    let mut sql = Command::new("sqlite3");
    sql.arg(root.join("nix/var/nix/db/db.sqlite"))
        .arg("update ValidPaths set ultimate = 0 where path like '%-registered'");
    finish(&mut sql).expect_success("came from elsewhere");
    c.start();
    a.learn_address("c", &c.p2p_address());
    withhold(&a, true);
    a.start_as_written(None);
    wait_verdict(&c, &plain, "agreed", &["a"]);
    wait_for("it is taken back", HEARD, || (lines_about(&a, &refers) == 0).then_some(()));
    assert_eq!((lines_about(&a, &plain), lines_about(&c, &refers)), (1, 0));
}
