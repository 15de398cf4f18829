//! What Nix gets under a quorum policy: `require`, `prefer`, and verdicts that change.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use narmesh_tests::{Jury, Rules, TestMesh, TestNode, get, promised, wait_for, wait_until};
use serde_json::Value;

/// A reload is promised to be in force within this.
const RELOADED: Duration = Duration::from_secs(1);

/// A new path in a store is promised to be advertised within this.
const SPREAD: Duration = Duration::from_secs(2);
/// A holder that was there a moment ago is waited for so long before its NAR is told as gone.
const AWAITED: Duration = Duration::from_secs(20);

fn signers(signatures: &[String]) -> Vec<&str> {
    let mut names: Vec<_> = signatures.iter().map(|signature| signature.split(':').next().unwrap()).collect();
    names.sort_unstable();
    names
}

fn name_of(key: &str) -> &str {
    key.split(':').next().unwrap()
}

fn refused(node: &TestNode, reason: &str) -> u64 {
    let metrics = get(node.gateway(), "/metrics").unwrap().text();
    let line = format!("narmesh_quorum_not_given_total{{reason=\"{reason}\"}} ");
    metrics.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
}

#[test]
fn agreed_paths_are_substituted_and_others_are_built_here() {
    let mesh = TestMesh::new();
    let jury = Jury::new(&mesh, &["one", "two", "three"], &["app", "fod", "nondet"], |all| Rules::require(2, all));
    let (client, [app, fod, nondet]) = (&jury.client, jury.paths.as_slice()) else { panic!("{:?}", jury.paths) };
    let gateway = client.gateway_key();

    let narinfo = client.wait_narinfo(app);
    let mut vouching: Vec<_> = jury.builders.iter().map(|node| name_of(&node.builder_key()).to_owned()).collect();
    vouching.push(name_of(&gateway).to_owned());
    vouching.sort_unstable();
    assert_eq!(signers(&narinfo.signatures), vouching, "each builder that counts, and the gateway");
    client.realise(std::slice::from_ref(app)).expect_success("what is agreed on");
    assert_eq!(signers(&client.store.row(app).unwrap().signatures), vouching, "the copy proves it to the next one");

    for asked in 1..=2 {
        assert_eq!(client.get_narinfo(nondet).status, 404);
        assert_eq!(refused(client, "conflict"), asked, "once for each question, though all three builders hold it");
    }
    client.nix_build("nondet").expect_success("what nobody agrees on is built here");
    assert!(client.store.row(nondet).unwrap().ultimate);
    let why = wait_for("the daemon sees what was built", promised(SPREAD), || {
        let why = client.narmesh(&["why", nondet]).stdout;
        why.contains("own store: holds it").then_some(why)
    });
    assert!(why.contains("its copy is not given to Nix: builders got different results"), "{why}");
    assert!(why.contains("answer: the candidates are asked"), "not from the own store: {why}");
    assert_eq!(client.get_narinfo(nondet).status, 404);
    client.realise(std::slice::from_ref(fod)).expect_success("what is its own address needs nobody's word");

    assert!(refused(client, "conflict") > 2 && refused(client, "none") == 0, "by reason");
    assert!(client.status().number("/quorum/refused/conflict") > 2);
    let why = client.narmesh(&["why", nondet]).expect_success("why");
    assert!(why.contains("refused by the policy") && why.contains("builders got different results"), "{why}");
    // The daemon judges all paths once a second.
    let seen = || client.narmesh(&["status"]).stdout.starts_with("CONFLICT");
    wait_until("the conflict is seen", promised(SPREAD), seen);
    let status = client.narmesh(&["status"]).expect_success("status");
    assert!(status.starts_with("CONFLICT") && status.contains(&format!("Nix has to trust {gateway}")), "{status}");

    // The signatures that peers are told of do not include the gateway's.
    let told = wait_for("the copy is offered", promised(SPREAD), || {
        let told: Value = serde_json::from_str(&client.narmesh(&["advertised", "--json"]).stdout).ok()?;
        let told = told["paths"].as_array()?.iter().find(|told| told["path"] == **app)?["signed_by"].clone();
        serde_json::from_value::<BTreeSet<String>>(told).ok()
    });
    vouching.retain(|name| *name != name_of(&gateway));
    assert_eq!(told, vouching.into_iter().collect());

    let mode = client.dir().join("state/gateway.key").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_nar_is_judged_again_when_nix_remembers_its_narinfo() {
    let mesh = TestMesh::new();
    let mut jury = Jury::new(&mesh, &["one", "two", "three"], &["app", "files"], |all| Rules::require(2, all));
    let app = jury.paths[0].clone();
    // The client built this path too; its gateway gives it to another store on this machine, because the builders
    // agree.
    let own = jury.client.store.build_one("files");
    wait_until("the daemon sees what was built", promised(SPREAD), || {
        jury.client.narmesh(&["why", &own]).stdout.contains("own store: holds it")
    });
    let narinfo = jury.client.wait_narinfo(&own);
    assert_eq!(get(jury.client.gateway(), &narinfo.url).unwrap().status, 200);
    let narinfo = jury.client.wait_narinfo(&app);
    let mut look = jury.client.store.nix("nix");
    let from = format!("http://{}", jury.client.gateway());
    look.args(["--extra-experimental-features", "nix-command", "path-info", "--store", &from, &app]);
    narmesh_tests::finish(&mut look).expect_success("its Nix has the narinfo now");
    assert_eq!(get(jury.client.gateway(), &narinfo.url).unwrap().status, 200);
    // The same NAR with other References is another result, on which nobody agreed. Nix may remember its narinfo from
    // before a revocation.
    let (nar, _) = narinfo.url.rsplit_once('-').expect("the fingerprint stands last");
    let other = format!("{nar}-{}.nar", "0".repeat(52));
    for method in ["GET", "HEAD"] {
        let answer = narmesh_tests::request(jury.client.gateway(), method, &other, &[]).unwrap();
        assert_eq!(answer.finish().status, 404, "{method} {other}");
    }

    let all: Vec<_> = jury.builders.iter().collect();
    let rules = Rules::require(2, &all).revoke(all[0]).revoke(all[2]);
    jury.client.follow(&rules);
    jury.client.reload();
    let client = &jury.client;
    wait_until("the NAR is gone", promised(RELOADED), || get(client.gateway(), &narinfo.url).unwrap().status == 404);
    client.nix_build("app").expect_success("it is built here");
    assert!(client.store.row(&app).unwrap().ultimate);
    let why = client.narmesh(&["why", &app]).expect_success("why");
    assert!(why.contains("the NAR was refused by the policy (404)"), "{why}");

    // The report names the paths that were given to Nix before.
    let report = client.narmesh(&["quorum", "report"]).stdout;
    for path in [&app, &own] {
        let turned = format!("NO LONGER AGREED {} was given", path.rsplit('/').next().unwrap());
        let line = report.lines().find(|line| line.starts_with(&turned));
        assert!(line.is_some_and(|line| line.contains("one, three")), "{path}: {report}");
    }
    let why = client.narmesh(&["quorum", "why", &app]).stdout;
    assert!(
        why.contains("given to Nix on the strength of a verdict that does not stand: on the word of one, three"),
        "{why}"
    );
}

#[test]
fn prefer_gives_the_agreed_result_first_and_refuses_nothing() {
    let mesh = TestMesh::new();
    let [mut one, mut two, mut client] = ["one", "two", "client"].map(|name| mesh.node(name));
    let nondet = one.store.build_one("nondet");
    assert_eq!(two.store.build_one("nondet"), nondet);
    let hashes = [&one, &two].map(|node| node.store.row(&nondet).unwrap().nar_hash);
    assert_ne!(hashes[0], hashes[1], "the fixture is not deterministic");
    client.follow(&Rules::new("prefer", 1, &[&one]));
    TestMesh::start_all(&mut [&mut one, &mut two, &mut client]);
    one.wait_all_advertised(&[&client]);
    two.wait_all_advertised(&[&client]);
    let given = |client: &TestNode, hash: &str, what: &str| {
        wait_until(what, promised(SPREAD), || client.wait_narinfo(&nondet).nar_hash == hash);
    };
    // Whichever holder answers first, Nix gets the result that the policy agrees on.
    client.import(&one.attested(&nondet));
    given(&client, &hashes[0], "the result of the one builder");
    client.follow(&Rules::new("prefer", 1, &[&two]));
    client.reload();
    client.wait_logged(&["configuration reloaded"]);
    client.import(&two.attested(&nondet));
    given(&client, &hashes[1], "the result of the other builder");
    two.kill();
    // A request for its NAR fails, once its holder was waited for, and that makes the daemon forget its narinfo.
    wait_until("what is there, when nobody has what is agreed on", promised(AWAITED), || {
        let narinfo = client.wait_narinfo(&nondet);
        get(client.gateway(), &narinfo.url).unwrap().status == 200 && narinfo.nar_hash == hashes[0]
    });
}
