//! `narmesh log`: from whom what Nix asked for came, and how it ended.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use narmesh_tests::{
    GatedProxy, PlainCache, TestMesh, TestNode, get, hash_part, narmesh_binary, promised, wait_for, wait_until,
};
use serde_json::Value;

/// What the daemon knows is shown within this.
const SHOWN: Duration = Duration::from_secs(2);

/// The entries of `narmesh log --json` with these arguments.
#[track_caller]
fn entries(node: &TestNode, arguments: &[&str]) -> Vec<Value> {
    let printed = node.narmesh(&[&["log", "--json"], arguments].concat()).expect_success("narmesh log");
    printed.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

fn text<'v>(entry: &'v Value, pointer: &str) -> &'v str {
    entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn number(entry: &Value, pointer: &str) -> u64 {
    entry.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

#[test]
fn a_path_that_came_from_a_peer_is_in_the_log_with_who_sent_it() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let lib = holder.store.build_one("lib");
    TestMesh::start_all(&mut [&mut holder, &mut client]);
    holder.wait_all_advertised(&[&client]);
    let nothing = client.narmesh(&["log"]).expect_success("narmesh log");
    assert_eq!(nothing, "nothing on record");
    client.realise(std::slice::from_ref(&lib)).expect_success("from the peer");
    let nar = wait_for("the NAR has ended", promised(SHOWN), || {
        entries(&client, &["--path", &lib, "--outcome", "delivered"]).pop()
    });
    let size = holder.store.row(&lib).unwrap().nar_size;
    assert_eq!((text(&nar, "/kind"), text(&nar, "/name")), ("nar", "mesh-lib-1.0"));
    assert_eq!((number(&nar, "/nar_size"), number(&nar, "/given_bytes")), (size, size));
    assert_eq!((text(&nar, "/sources/0/source"), number(&nar, "/sources/0/bytes")), ("holder", size));
    assert_eq!(nar.pointer("/left"), Some(&Value::Array(Vec::new())));
    // The narinfo is there, too, and each filter leaves out what it should.
    let narinfos = entries(&client, &["--outcome", "found", "--peer", "holder", "--since", "1h"]);
    assert!(narinfos.iter().any(|entry| text(entry, "/hash_part") == hash_part(&lib)), "{narinfos:?}");
    assert!(entries(&client, &["--path", &"0".repeat(32)]).is_empty());
    assert!(entries(&client, &["--outcome", "cut-short"]).is_empty());
    assert!(entries(&client, &["--steps"]).len() > entries(&client, &[]).len());
    let shown = client.narmesh(&["log", "--peer", "holder"]).expect_success("narmesh log");
    assert!(shown.contains(&format!("{}-mesh-lib-1.0", hash_part(&lib))) && shown.contains("from holder"), "{shown}");
    let stranger = client.narmesh(&["log", "--peer", "stranger"]);
    assert!(stranger.expect_failure("narmesh log").contains("accepted: a name or peer id"));
    // What came counts for the source, and survives a restart.
    let week = |client: &TestNode| client.status().number("/given/week/0/bytes");
    assert_eq!((client.status().number("/given/since_start/0/bytes"), week(&client)), (size, size));
    assert!(client.terminate().success());
    client.start();
    assert_eq!(week(&client), size);
}

#[test]
fn a_source_that_dies_in_the_middle_is_a_switch_in_the_log() {
    let mesh = TestMesh::new();
    let [mut first, mut second, mut client] = ["first", "second", "client"].map(|name| mesh.node(name));
    let mut gates = Vec::new();
    let mut path = String::new();
    for holder in [&mut first, &mut second] {
        holder.config.advertise_loopback = false;
        holder.config.compress = "never";
        path = holder.store.build_one("small");
        holder.allow(&client.card());
        holder.start();
        let gate = GatedProxy::to(holder.p2p_socket());
        client.allow(&holder.card());
        client.learn_address(&holder.name, &gate.multiaddr());
        gates.push(gate);
    }
    client.config.advertise_loopback = false;
    client.config.compress = "never";
    client.start();
    for holder in [&first, &second] {
        holder.wait_all_advertised(&[&client]);
    }
    assert!(client.wait_narinfo(&path).nar_size > 1 << 20);
    gates.iter().for_each(|gate| gate.hold_after(1 << 20));
    thread::scope(|scope| {
        let build = scope.spawn(|| client.realise(std::slice::from_ref(&path)));
        let held = wait_for("a gate holds the NAR back", promised(Duration::from_secs(10)), || {
            gates.iter().position(GatedProxy::is_holding)
        });
        // It is on its way, and the log says how far it is.
        let running = wait_for("the log shows it on its way", promised(SHOWN), || {
            entries(&client, &["--outcome", "running"]).pop()
        });
        assert!(number(&running, "/nar_size") > 1 << 20 && text(&running, "/outcome") == "running");
        if held == 0 {
            first.kill()
        } else {
            second.kill()
        }
        gates.iter().for_each(GatedProxy::release);
        build.join().unwrap().expect_success("the other one goes on");
    });
    let nar = wait_for("the NAR has ended", promised(SHOWN), || {
        entries(&client, &["--path", &path, "--outcome", "delivered"]).pop()
    });
    assert!(number(&nar, "/left_count") >= 1, "{nar}");
    assert!(["first", "second"].contains(&text(&nar, "/left/0/source")), "{nar}");
    let shown = client.narmesh(&["log", "--path", &path]).expect_success("narmesh log");
    assert!(shown.contains("; left "), "{shown}");
}

#[test]
fn what_nobody_has_is_in_the_log_once() {
    let mesh = TestMesh::new();
    let mut client = mesh.node("client");
    client.start();
    let part = "1".repeat(32);
    for _ in 0..50 {
        assert_eq!(get(client.gateway(), &format!("/{part}.narinfo")).unwrap().status, 404);
    }
    let found = entries(&client, &["--outcome", "not-found"]);
    assert_eq!(found.len(), 1, "fifty times the same is one line: {found:?}");
    assert!(text(&found[0], "/sentence").contains("49 times before"), "{found:?}");
    assert!(entries(&client, &["--outcome", "delivered"]).is_empty());
}

#[test]
fn the_log_goes_on_with_what_comes() {
    let mesh = TestMesh::new();
    let mut client = mesh.node("client");
    client.start();
    let ask = |letter: &str| {
        let url = format!("/{}.narinfo", letter.repeat(32));
        assert_eq!(get(client.gateway(), &url).unwrap().status, 404);
    };
    ask("1");
    let mut command = Command::new(narmesh_binary());
    command.arg("--config").arg(client.config_file()).args(["log", "--follow", "--json"]);
    let mut follower = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = || lines.next().expect("it goes on").unwrap();
    assert!(next().contains(&"1".repeat(32)), "what was there before");
    ask("2");
    assert!(next().contains(&"2".repeat(32)), "what came since");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn a_name_of_a_source_that_is_markup_is_text() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let lib = holder.store.build_one("lib");
    let mut card = holder.card();
    card.name = "<script>alert(1)</script>".to_owned();
    holder.allow(&client.card());
    holder.start();
    client.allow(&card);
    client.learn_address(&card.name, &holder.p2p_address());
    client.start();
    wait_until("the summary is here", promised(SHOWN), || client.status().summary_paths(&card.name) == Some(1));
    client.realise(std::slice::from_ref(&lib)).expect_success("from the peer");
    wait_until("it is in the log", promised(SHOWN), || !entries(&client, &["--outcome", "delivered"]).is_empty());
    let shown = client.narmesh(&["log", "--steps"]).expect_success("narmesh log");
    assert!(shown.contains("<script>alert(1)</script>"), "{shown}");
}

#[test]
fn a_path_of_an_upstream_cache_counts_for_the_cache() {
    let mesh = TestMesh::new();
    let [holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let lib = holder.store.build_one("lib");
    let cache = PlainCache::on_loopback(&holder, std::slice::from_ref(&lib), "none");
    client.config.more = cache.upstream("cache", &holder);
    client.config.trusted_public_keys.push(holder.builder_key());
    client.start();
    client.realise(std::slice::from_ref(&lib)).expect_success("from the cache");
    let nar = wait_for("the NAR has ended", promised(SHOWN), || entries(&client, &["--peer", "cache"]).pop());
    assert_eq!(text(&nar, "/sources/0/source"), "cache");
    assert_eq!(client.status().text("/given/since_start/0/name"), Some("cache"));
}
