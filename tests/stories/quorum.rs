//! Who built the same thing: real builds of real Nix, attested by their daemons, carried as text, judged by a client.

use std::fs;
use std::process::Command;
use std::time::Duration;

use narmesh_tests::{Finished, TestMesh, TestNode, finish, narmesh_binary, wait_for};
use serde_json::Value;

/// A build is attested within a second of being registered; ten times that.
const ATTESTED: Duration = Duration::from_secs(10);

/// Starts a builder alone, waits until it attested `path`, and returns its export.
fn exported(node: &mut TestNode, path: &str) -> String {
    node.start();
    wait_for("the build is attested", ATTESTED, || {
        (node.narmesh(&["quorum", "export", path]).stdout.lines().count() > 1).then_some(())
    });
    node.narmesh(&["quorum", "export"]).expect_success("export") + "\n"
}

fn rules(builders: &[&TestNode], k: usize, more: &str) -> String {
    let builder =
        |node: &&TestNode| format!("[[builder]]\nname = '{}'\npublic_key = '{}'\n", node.name, node.builder_key());
    let builders: String = builders.iter().map(builder).collect();
    format!("\n[quorum]\nmode = 'observe'\nk = {k}\n{builders}{more}")
}

/// `quorum report --json …`, and whether all was agreed.
fn report(node: &TestNode, arguments: &[&str]) -> (Value, bool) {
    let Finished { stdout, stderr, status } = node.narmesh(&[&["quorum", "report", "--json"], arguments].concat());
    (serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}")), status.success())
}

#[test]
fn three_builders_agree_on_what_is_reproducible_and_on_nothing_else() {
    let mesh = TestMesh::new();
    let mut builders = ["one", "two", "three"].map(|name| mesh.node(name));
    let (mut app, mut nondet, mut exports) = (String::new(), String::new(), Vec::new());
    for node in &mut builders {
        app = node.store.build_one("app");
        nondet = node.store.build_one("nondet");
        exports.push(exported(node, &app));
    }
    let mut client = mesh.node("client");
    let [one, two, three] = &builders;
    client.config.more = rules(&[one, two, three], 2, "");
    client.write_config();
    for (number, export) in exports.iter().enumerate() {
        let file = mesh.path().join(format!("export-{number}"));
        fs::write(&file, export).unwrap();
        let verified = client.narmesh(&["quorum", "verify", file.to_str().unwrap()]).expect_success("verify");
        assert!(verified == "3 attestations, 3 verify", "{verified}");
        client.narmesh(&["quorum", "import", file.to_str().unwrap()]).expect_success("import");
    }

    let (closure, agreed) = report(&client, &["--closure", &app]);
    assert!(agreed, "{closure:#}");
    assert_eq!((&closure["totals"]["agreed"], &closure["totals"]["paths"]), (&2.into(), &2.into()), "app and lib");
    let (alone, agreed) = report(&client, &["--path", &nondet]);
    assert_eq!((agreed, &alone["paths"][0]["verdict"]), (false, &"conflict".into()));
    assert_eq!(alone["paths"][0]["fingerprints"].as_array().unwrap().len(), 3);
    let (all, agreed) = report(&client, &[]);
    assert_eq!((agreed, &all["totals"]["paths"], &all["conflicts"][0]), (false, &3.into(), &base_name(&nondet).into()));

    let why = client.narmesh(&["quorum", "why", &nondet]);
    assert!(
        !why.status.success() && why.stdout.contains("is in conflict: builders got 3 different results"),
        "{}",
        why.stdout
    );
    let why = client.narmesh(&["quorum", "why", &app]).expect_success("why of what is agreed");
    assert!(why.contains("one, two and three; counts for 3 groups."), "{why}");

    let page = mesh.path().join("report.html");
    let html = client.narmesh(&["quorum", "report", "--html", page.to_str().unwrap()]);
    assert!(!html.status.success() && html.stdout.contains("3 paths: 2 agreed"), "{}{}", html.stdout, html.stderr);
    assert!(fs::read_to_string(&page).unwrap().contains("data-verdict=\"conflict\""));

    // The key of one is stolen, and revoked from before the import on: two are left, which are enough for two and not for
    // three.
    client.config.more = rules(&[one, two, three], 2, &revoked(three));
    client.write_config();
    assert!(report(&client, &["--closure", &app]).1);
    client.config.more = rules(&[one, two, three], 3, &revoked(three));
    client.write_config();
    let (short, agreed) = report(&client, &["--closure", &app]);
    assert_eq!((agreed, &short["totals"]["short"]), (false, &2.into()));
    let why = client.narmesh(&["quorum", "why", &app]).stdout;
    assert!(why.contains("its key is revoked, and this was stored here after that: stolen"), "{why}");
}

fn revoked(node: &TestNode) -> String {
    format!("[[revoked_builders]]\npublic_key = '{}'\nfrom = 2026-01-01\nwhy = 'stolen'\n", node.builder_key())
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

#[test]
fn a_forged_file_is_refused_line_by_line() {
    let mesh = TestMesh::new();
    let mut builder = mesh.node("builder");
    let app = builder.store.build_one("app");
    let export = exported(&mut builder, &app);
    let file = mesh.path().join("forged");
    fs::write(&file, format!("{export}nonsense\n")).unwrap();
    let verified = builder.narmesh(&["quorum", "verify", file.to_str().unwrap()]);
    assert!(!verified.status.success() && verified.stdout.contains("expected five fields"), "{}", verified.stdout);
    // Another size: the signatures are over all of it.
    let (header, lines) = export.split_once('\n').unwrap();
    let lines: String = lines
        .lines()
        .map(|line| {
            let (head, references) = line.rsplit_once(';').unwrap();
            let (head, size) = head.rsplit_once(';').unwrap();
            format!("{head};{size}0;{references}\n")
        })
        .collect();
    fs::write(&file, format!("{header}\n{lines}")).unwrap();
    let verified = builder.narmesh(&["quorum", "verify", file.to_str().unwrap()]);
    assert!(!verified.status.success() && verified.stdout.contains(", 0 verify"), "{}", verified.stdout);
    assert!(verified.stdout.contains("do not verify"), "{}", verified.stdout);
}

#[test]
fn attest_builds_again_and_says_how_it_differs() {
    let mesh = TestMesh::new();
    let node = mesh.node("builder");
    node.write_config();
    let (app, nondet) = (node.store.build_one("app"), node.store.build_one("nondet"));
    let attest = |path: &str| {
        let mut command = Command::new(narmesh_binary());
        node.store.lend_environment(&mut command);
        finish(command.arg("--config").arg(node.config_file()).args(["quorum", "attest", path]))
    };
    let said = attest(&app).expect_success("attest of what is reproducible");
    assert!(said.contains("built again with the same result, and attested"), "{said}");
    assert!(attest(&app).expect_success("twice").contains("attested already"));
    let differs = attest(&nondet);
    assert!(!differs.status.success(), "{}", differs.stdout);
    assert!(differs.stdout.contains("is not attested: not reproducible on this machine"), "{}", differs.stdout);
    assert!(differs.stdout.contains("the path itself: 37 and 37 bytes, differing from byte"), "{}", differs.stdout);
    let export = node.narmesh(&["quorum", "export"]).expect_success("export");
    assert!(export.contains("mesh-app-1.0;") && !export.contains("nondet"), "{export}");
}

#[test]
fn what_the_rules_ask_for_is_said_and_what_cannot_be_is_refused() {
    let mesh = TestMesh::new();
    let [one, two] = ["one", "two"].map(|name| mesh.node(name));
    let check = |text: &str| {
        let file = mesh.path().join("policy.toml");
        fs::write(&file, text).unwrap();
        one.narmesh(&["quorum", "policy", "check", file.to_str().unwrap()])
    };
    let said = check(&rules(&[&one, &two], 1, "")).expect_success("policy check");
    assert!(said.contains("2 builders in 2 groups") && said.contains("1 of 2 groups must have got the same"), "{said}");
    assert!(said.contains("warning: quorum.k = 1 of 2: two sets of builders"), "{said}");
    let refused = check(&rules(&[&one, &two], 3, "")).expect_failure("policy check");
    assert!(refused.contains("quorum.k = 3 is refused; accepted: 1 to 2"), "{refused}");
    let mut node = mesh.node("strict");
    node.config.more = rules(&[&one, &two], 2, "").replace("observe", "require");
    node.write_config();
    let started = node.narmesh(&["run"]).expect_failure("a daemon that would not obey");
    assert!(started.contains("quorum.mode = \"require\" is refused"), "{started}");
}
