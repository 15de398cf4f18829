//! `narmesh quorum` asks the running daemon: who may ask, what it answers, and what happens when no daemon runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use narmesh_tests::{Finished, Rules, TestMesh, TestNode, finish, narmesh_binary, promised, wait_until};
use serde_json::Value;

/// Ids of the user nobody and of its group.
const NOBODY: &str = "65534";
/// What one node attests, another knows within this.
const HEARD: Duration = Duration::from_secs(3);
/// A reload is in force within this.
const SOON: Duration = Duration::from_secs(1);

/// A client whose control socket is for the group `daemon`, and other users who ask on its machine.
struct Machine {
    client: TestNode,
    binary: PathBuf,
    group: String,
}

impl Machine {
    fn start(mesh: &TestMesh, rules: &Rules) -> Self {
        let mut client = mesh.node("client");
        client.follow(rules);
        Self::of(mesh, client)
    }

    fn of(mesh: &TestMesh, mut client: TestNode) -> Self {
        client.config.control_socket = Some(mesh.path().join("client.sock"));
        client.write_config();
        let group = finish(Command::new("getent").args(["group", "daemon"])).expect_success("getent");
        let group = group.split(':').nth(2).unwrap().to_owned();
        // The build may lie where another user may not read.
        let binary = mesh.path().join("narmesh");
        fs::copy(narmesh_binary(), &binary).unwrap();
        let mut machine = Self { client, binary, group };
        machine.write_config();
        machine.client.start_as_written(None);
        // Other users cannot read the state, so they get at it only through the daemon.
        let state = machine.client.dir().join("state");
        assert_eq!(fs::metadata(state).unwrap().permissions().mode() & 0o7, 0);
        machine
    }

    fn write_config(&self) {
        self.client.write_config();
        let text = fs::read_to_string(self.client.config_file()).unwrap();
        fs::write(self.client.config_file(), text.replace("[node]\n", "[node]\ncontrol_group = \"daemon\"\n")).unwrap();
    }

    /// Runs `narmesh quorum attest` as root, with the store's own Nix.
    fn attest(&self, path: &str) -> Finished {
        let mut command = Command::new(narmesh_binary());
        self.client.store.lend_environment(&mut command);
        finish(command.arg("--config").arg(self.client.config_file()).args(["quorum", "attest", path]))
    }

    /// Runs `narmesh …` as the user nobody, in the socket's group if `is_member`, otherwise in nobody's own.
    fn nobody(&self, is_member: bool, arguments: &[&str]) -> Finished {
        let group = if is_member { &self.group } else { NOBODY };
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", group, "--clear-groups"]).arg(&self.binary);
        finish(command.arg("--config").arg(self.client.config_file()).args(arguments))
    }
}

/// Two builders that got the same results for `app` and its `lib`, and different ones for `nondet`. Returns the
/// builders, the paths of `app` and `nondet`, and the attestations of each builder.
fn two_builders(mesh: &TestMesh) -> ([TestNode; 2], [String; 2], [String; 2]) {
    let mut builders = ["one", "two"].map(|name| mesh.node(name));
    let mut paths = [String::new(), String::new()];
    let attested = builders.each_mut().map(|node| {
        paths = ["app", "nondet"].map(|attribute| node.store.build_one(attribute));
        node.start();
        node.attested(&paths[1])
    });
    (builders, paths, attested)
}

fn report(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}{}", finished.stdout, finished.stderr))
}

#[test]
fn the_socket_group_may_ask_for_reports_and_only_root_or_the_daemon_user_may_import() {
    let mesh = TestMesh::new();
    let ([one, two], [app, nondet], attested) = two_builders(&mesh);
    let machine = Machine::start(&mesh, &Rules::new("observe", 2, &[&one, &two]));
    machine.client.import(&attested[0]);
    let ask = |arguments: &[&str]| machine.nobody(true, &[&["quorum"], arguments].concat());

    machine.nobody(true, &["status"]).expect_success("status");
    let short = ask(&["report", "--json", "--closure", &app]);
    assert_eq!((short.status.success(), &report(&short)["totals"]["short"]), (false, &2.into()), "app and lib");
    // A member of the group may not decide what counts.
    let file = mesh.path().join("attestations");
    fs::write(&file, &attested[1]).unwrap();
    let file = file.to_str().unwrap();
    let refused = ask(&["import", file]).expect_failure("import by nobody");
    assert!(
        refused.contains("nobody may not import attestations; only root and root, who runs the daemon, may"),
        "{refused}"
    );
    assert_eq!(report(&ask(&["report", "--json", "--closure", &app]))["totals"]["short"], 2, "nothing came in");

    // Root may import, and what it imports counts at once.
    let imported = machine.client.narmesh(&["quorum", "import", file]).expect_success("import by root");
    assert_eq!(imported.trim(), "3 attestations: 3 new, 0 by keys without a [[builder]]");
    let agreed = ask(&["report", "--json", "--closure", &app]);
    assert_eq!((agreed.status.success(), &report(&agreed)["totals"]["agreed"]), (true, &2.into()));
    assert_eq!(machine.client.status().number("/quorum/attestations"), 6);

    let all = ask(&["report", "--all"]);
    let conflict = all.stdout.lines().next().unwrap();
    assert!(!all.status.success() && conflict == format!("CONFLICT {}", base_name(&nondet)), "{}", all.stdout);
    assert!(all.stdout.contains("3 paths: 2 agreed (0 disputed)"), "{}", all.stdout);
    ask(&["why", &nondet]).expect_failure("why of a conflict");
    let why = ask(&["why", &app]).expect_success("why of what is agreed");
    assert!(why.contains("one and two; counts for 2 groups."), "{why}");
    let page = mesh.path().join("his/report.html");
    fs::create_dir(page.parent().unwrap()).unwrap();
    fs::set_permissions(page.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
    let said = ask(&["report", "--html", page.to_str().unwrap()]);
    assert!(!said.status.success() && said.stdout.contains("report.html: 3 paths: 2 agreed"), "{}", said.stderr);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("data-verdict=\"conflict\"") && page.contains("</html>"), "{page}");
    let exported = ask(&["export"]).expect_success("export");
    let mut lines: Vec<_> = attested.iter().flat_map(|text| text.lines().skip(1)).collect();
    let mut got: Vec<_> = exported.lines().skip(1).collect();
    lines.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, lines);
    let one_path = ask(&["export", base_name(&app)]).expect_success("export of one path");
    assert_eq!(one_path.lines().count(), 1 + 2);

    // A user outside of the group gets nothing.
    for arguments in [&["quorum", "report"][..], &["quorum", "export"]] {
        let refused = machine.nobody(false, arguments).expect_failure("a stranger");
        assert!(refused.contains("no permission for") && refused.contains("client.sock"), "{refused}");
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

#[test]
fn a_report_comes_from_the_running_daemon_and_without_one_from_the_files() {
    let mesh = TestMesh::new();
    let ([one, two], [app, _], attested) = two_builders(&mesh);
    let mut machine = Machine::start(&mesh, &Rules::new("observe", 2, &[&one, &two]));
    machine.client.import(&(attested[0].clone() + attested[1].split_once('\n').unwrap().1));
    let ask = |machine: &Machine| machine.client.narmesh(&["quorum", "report", "--json", "--path", &app]);
    let by_the_daemon = ask(&machine);
    assert!(by_the_daemon.status.success() && by_the_daemon.stderr.is_empty(), "{}", by_the_daemon.stderr);

    // The file gets other rules, without a reload. File times count seconds, so it is written again until its time is
    // later.
    machine.client.follow(&Rules::new("observe", 2, &[&one, &two]).revoke(&two));
    let mut last = None;
    wait_until("it is said that the file is not in force", promised(SOON), || {
        machine.write_config();
        let asked = ask(&machine);
        let said = asked.stderr.contains("has changed since and takes effect after a reload");
        assert!(asked.status.success(), "the daemon still decides by the old rules: {}", asked.stdout);
        last = Some(asked);
        said
    });
    machine.client.signal(rustix::process::Signal::HUP);
    wait_until("the new rules count", promised(SOON), || !ask(&machine).status.success());

    machine.client.terminate();
    let by_the_files = ask(&machine);
    assert_eq!((by_the_files.status.success(), &report(&by_the_files)["totals"]["short"]), (false, &1.into()));
    assert!(by_the_files.stderr.contains("no daemon runs: this is what is in"), "{}", by_the_files.stderr);
    let export = machine.client.narmesh(&["quorum", "export"]).expect_success("export without a daemon");
    assert_eq!(export.lines().count(), 1 + 6);
    machine.nobody(true, &["quorum", "report"]).expect_failure("the files are not nobody's to read");
}

#[test]
fn a_path_that_attest_builds_again_is_attested_and_heard_elsewhere() {
    let mesh = TestMesh::new();
    let [origin, mut builder, mut ear] = ["origin", "builder", "ear"].map(|name| mesh.node(name));
    ear.follow(&Rules::new("observe", 1, &[&builder]).told_by_their_machines("ear"));
    TestMesh::introduce(&mut [&mut builder, &mut ear]);
    let (app, nondet) = (origin.store.build_one("app"), builder.store.build_one("nondet"));
    // A builder may not attest a path from elsewhere before it has built that path again.
    let derivation = builder.store.instantiate("app");
    assert_eq!(origin.store.query(&["--query", "--deriver", &app]).trim(), derivation);
    builder.store.take_from(&origin.store, &app);
    let machine = Machine::of(&mesh, builder);
    ear.learn_address("builder", &machine.client.p2p_address());
    ear.start();
    let verdict = |path: &str| {
        report(&ear.narmesh(&["quorum", "report", "--json", "--path", path]))["paths"][0]["verdict"].clone()
    };
    wait_until("what was built here is heard of", promised(HEARD), || verdict(&nondet) == "agreed");
    assert_eq!(verdict(&app), "none");

    // A refusal comes before anything is built.
    let refused = machine.nobody(true, &["quorum", "attest", &app]).expect_failure("attest by nobody");
    assert!(refused.contains("nobody may not attest; only root and root, who runs the daemon, may"), "{refused}");
    assert!(!machine.client.store.row(&app).unwrap().ultimate);

    let attested = machine.attest(&app);
    assert!(attested.status.success() && attested.stderr.is_empty(), "{}{}", attested.stdout, attested.stderr);
    assert!(attested.stdout.contains("built again with the same result, and attested by"), "{}", attested.stdout);
    assert!(machine.client.store.row(&app).unwrap().ultimate);
    wait_until("what was built again is heard of", promised(HEARD), || verdict(&app) == "agreed");
    assert!(machine.attest(&app).expect_success("again").contains("the same result, attested already by"));

    let differs = machine.attest(&nondet).expect_failure("attest of what is not reproducible");
    assert!(differs.contains("not reproducible on this machine; what was built first stays attested"), "{differs}");
    let unknown = machine.attest(&format!("{app}-not")).expect_failure("attest of what is not here");
    assert!(unknown.contains("is not in the store here"), "{unknown}");
}
