//! Agreement between builders: real builds of real Nix, attested by their daemons, carried as text, judged by a client.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use narmesh_tests::{Finished, StorePlace, TestMesh, TestNode, finish, get, hash_part, narmesh_binary, wait_for};
use serde_json::Value;

use super::browser::browser;

/// A build is promised to be attested within a second of being registered; this is ten times that.
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

/// The output of `quorum report --json …`, and whether all paths are agreed.
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

    // The key of one builder is stolen, and revoked from a time before the import. The two that are left are enough for k =
    // 2 and not for k = 3.
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
    // Another NarSize: the signatures cover it too.
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
    let words = "came out differently: not reproducible on this machine; it is not attested";
    assert!(differs.stdout.contains(words), "{}", differs.stdout);
    assert!(differs.stdout.contains("the path itself: 37 and 37 bytes, differing from byte"), "{}", differs.stdout);
    let export = node.narmesh(&["quorum", "export"]).expect_success("export");
    assert!(export.contains("mesh-app-1.0;") && !export.contains("nondet"), "{export}");
}

#[test]
fn policy_check_explains_the_rules_and_refuses_a_k_that_cannot_be_met() {
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
}

/// A page that opens the report in a frame as wide as a phone, uses it, and prints what it saw.
const LOOKS: &str = r#"<!doctype html><body><iframe width="360" height="800" srcdoc="REPORT"></iframe><script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  const rows = () => [...page.querySelectorAll("main > details")].filter(row => !row.hidden).map(row => row.dataset.verdict);
  const seen = {all: rows(), width: page.documentElement.scrollWidth, bold: page.querySelector("h1").offsetWidth};
  const change = (element, set) => { set(element); element.dispatchEvent(new Event("input", {bubbles: true})); };
  change(page.querySelector("input[value=agreed]"), box => { box.checked = false; });
  seen.without_agreed = rows();
  change(page.querySelector("input[value=agreed]"), box => { box.checked = true; });
  change(page.getElementById("text"), field => { field.value = "MESH-LIB"; });
  seen.named = rows();
  seen.shown = page.getElementById("shown").textContent;
  const row = page.querySelector("main > details:not([hidden])");
  const closed = row.offsetHeight;
  row.querySelector("summary").click();
  seen.opened = row.offsetHeight > closed && row.textContent.includes("is agreed");
  seen.width_opened = page.documentElement.scrollWidth;
  seen.pwned = String(page.defaultView.pwned) + page.images.length;
  document.body.textContent = JSON.stringify(seen);
});
</script>"#;

#[test]
fn the_report_page_works_from_a_file_on_a_phone_and_shows_hostile_names_as_text() {
    const HOSTILE: &str = "</title><img src=x onerror=pwned=1><script>pwned=2</script>";
    let mesh = TestMesh::new();
    let [mut one, mut two] = ["one", "two"].map(|name| mesh.node(name));
    let mut exports = Vec::new();
    for node in [&mut one, &mut two] {
        node.store.build_one("nondet");
        let app = node.store.build_one("app");
        exports.push(exported(node, &app));
    }
    let mut client = mesh.node("client");
    client.config.more = rules(&[&one, &two], 2, "").replace("name = 'two'", &format!("name = '{HOSTILE}'"));
    client.write_config();
    let file = |name: &str| mesh.path().join(name);
    for export in &exports {
        fs::write(file("export"), export).unwrap();
        client.narmesh(&["quorum", "import", file("export").to_str().unwrap()]).expect_success("import");
    }
    client.narmesh(&["quorum", "report", "--html", file("report.html").to_str().unwrap()]);
    let report = fs::read_to_string(file("report.html")).unwrap();
    assert!(report.contains("&lt;img src=x onerror=pwned=1&gt;"), "the name is there to be escaped");

    let open = |name: &str| {
        let mut browser = browser(mesh.path());
        browser.args(["--enable-logging=stderr", "--dump-dom"]).arg(format!("file://{}", file(name).display()));
        finish(browser.stdout(Stdio::piped()).stderr(Stdio::piped()))
    };
    let plain = open("report.html");
    assert!(plain.stdout.contains("3 of 3 paths"), "its script ran: {}", plain.stdout);
    let escaped = report.replace('&', "&amp;").replace('"', "&quot;");
    fs::write(file("looks.html"), LOOKS.replace("REPORT", &escaped)).unwrap();
    let looked = open("looks.html");
    for errors in [&plain.stderr, &looked.stderr] {
        let console: Vec<_> = errors.lines().filter(|line| line.contains("CONSOLE")).collect();
        assert!(console.is_empty(), "{console:#?}");
    }
    let (_, rest) = looked.stdout.split_once("<body>").unwrap();
    let seen: Value = serde_json::from_str(rest.split("</body>").next().unwrap()).unwrap();
    assert_eq!(seen["all"], serde_json::json!(["conflict", "agreed", "agreed"]), "{seen:#}");
    assert_eq!(seen["without_agreed"], serde_json::json!(["conflict"]));
    assert_eq!((&seen["named"], &seen["shown"]), (&serde_json::json!(["agreed"]), &"1 of 3 paths".into()));
    assert_eq!((&seen["opened"], &seen["pwned"]), (&true.into(), &"undefined0".into()), "{seen:#}");
    for width in ["width", "width_opened"] {
        assert!(seen[width].as_u64().unwrap() <= 360, "it does not have to be scrolled sideways: {seen:#}");
    }
}

/// Runs `nix … --store <the node's store>` in the environment of that store.
fn nix(node: &TestNode, arguments: &[&str]) -> Finished {
    let StorePlace::Root(root) = node.store.place() else { panic!("a chroot store") };
    let mut command = Command::new("nix");
    node.store.lend_environment(&mut command);
    finish(command.args(arguments).arg("--store").arg(format!("local?root={}", root.display())))
}

/// The Nix signature in each line of an export, as `key name:signature`.
fn nix_signatures(export: &str) -> Vec<String> {
    let signature = |line: &str| {
        let mut fields = line.split(' ');
        let (key, signature) = (fields.next().unwrap(), fields.next().unwrap());
        format!("{}:{signature}", key.split(':').next().unwrap())
    };
    export.lines().skip(1).map(signature).collect()
}

#[test]
fn nix_counts_our_signatures_as_we_do_except_one_key_under_two_names() {
    let mesh = TestMesh::new();
    let [mut one, mut two] = ["one", "two"].map(|name| mesh.node(name));
    let mut signatures = Vec::new();
    for node in [&mut one, &mut two] {
        let lib = node.store.build_one("lib");
        signatures.extend(nix_signatures(&exported(node, &lib)));
    }
    let (lib, [key_one, key_two]) = (one.store.build_one("lib"), [&one, &two].map(TestNode::builder_key));
    let [first, second] = signatures.as_slice() else { panic!("{signatures:?}") };
    // The first builder's key, and its signature, under another name.
    let alias = |text: &str| format!("alias:{}", text.split_once(':').unwrap().1);

    let cache = mesh.path().join("cache");
    let url = format!("file://{}", cache.display());
    nix(&one, &["copy", "--to", &url, &lib]).expect_success("nix copy");
    let narinfo = cache.join(format!("{}.narinfo", hash_part(&lib)));
    let unsigned = fs::read_to_string(&narinfo).unwrap();
    let verified = |name: &str, sigs: &[&str], keys: &[&str], needed: &str| {
        let lines: String = sigs.iter().map(|sig| format!("Sig: {sig}\n")).collect();
        fs::write(&narinfo, format!("{unsigned}{lines}")).unwrap();
        let client = mesh.node(name);
        let (keys, option) = (keys.join(" "), "--option");
        let mut realise = client.store.nix("nix-store");
        realise.args(["--realise", &lib, option, "substituters", &url, option, "trusted-public-keys", &keys]);
        finish(&mut realise).expect_success("nix-store --realise");
        let known = nix(&client, &["path-info", "--sigs", &lib]).expect_success("nix path-info --sigs");
        assert!(sigs.iter().all(|sig| known.contains(sig)), "{known}");
        nix(&client, &["store", "verify", "--sigs-needed", needed, option, "trusted-public-keys", &keys, &lib])
    };
    verified("b1", &[first, second], &[&key_one, &key_two], "2").expect_success("two keys are two");
    verified("b2", &[first, second], &[&key_one, &key_two], "3").expect_failure("and not three");
    verified("b3", &[first, second], &[&key_one], "2").expect_failure("a key that is not trusted does not count");
    // Here Nix and narmesh must differ: Nix tells keys apart by name, a verdict by their 32 bytes.
    verified("b4", &[first, &alias(first)], &[&key_one, &alias(&key_one)], "2").expect_success("one key, two names");

    let mut client = mesh.node("client");
    let same_key = format!("[[builder]]\nname = 'alias'\npublic_key = '{}'\n", alias(&key_one));
    client.config.more = rules(&[&one, &two], 2, &same_key);
    client.write_config();
    let exports = [&one, &two].map(|node| node.narmesh(&["quorum", "export"]).expect_success("export") + "\n");
    let file = mesh.path().join("export");
    for (export, agreed) in exports.iter().zip([false, true]) {
        fs::write(&file, export.clone() + &export.lines().nth(1).map(alias).unwrap() + "\n").unwrap();
        client.narmesh(&["quorum", "import", file.to_str().unwrap()]).expect_success("import");
        assert_eq!(report(&client, &["--path", &lib]).1, agreed, "one key is one, two are two");
    }
}

#[test]
fn a_running_daemon_warns_of_a_conflict_and_counts_it() {
    let mesh = TestMesh::new();
    let [mut one, mut two] = ["one", "two"].map(|name| mesh.node(name));
    let mut exports = Vec::new();
    let mut nondet = String::new();
    for node in [&mut one, &mut two] {
        node.store.build_one("app");
        nondet = node.store.build_one("nondet");
        exports.push(exported(node, &nondet));
    }
    let mut client = mesh.node("client");
    client.config.more = rules(&[&one, &two], 2, "");
    client.start();
    for export in &exports {
        let file = mesh.path().join("export");
        fs::write(&file, export).unwrap();
        client.narmesh(&["quorum", "import", file.to_str().unwrap()]).expect_success("import");
    }
    client.wait_logged(&["warn", "builders got different results", base_name(&nondet)]);
    let wanted = [("conflict", 1), ("agreed", 2), ("short", 0)]
        .map(|(verdict, paths)| format!("narmesh_quorum_paths{{verdict=\"{verdict}\"}} {paths}\n"));
    wait_for("the metrics", ATTESTED, || {
        let metrics = get(client.gateway(), "/metrics").unwrap().text();
        wanted.iter().all(|line| metrics.contains(line)).then_some(())
    });
}
