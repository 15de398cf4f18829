//! Faults of Nix's side.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use narmesh_tests::{TestMesh, finish, promised, wait_until};

use super::Patient;

/// A process that has just been started is there within this.
const STARTED: Duration = Duration::from_secs(1);

#[test]
fn lines_of_nix_conf_that_do_harm_are_named_and_mended() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    patient.node.start();
    patient.diagnose().assert_healthy();
    let good = std::fs::read_to_string(patient.nix_conf()).unwrap();
    let gateway = patient.node.config.gateway_listen.clone();
    let foreign = "other-1:prKRn2M7sIkxm1OMdz1ztnGi8QHbEW8GwBNsPVB+HhE=";
    for (line, severity, words) in [
        ("substituters = https://cache.example", "warning", &["Nix does not ask this node", gateway.as_str()][..]),
        (&format!("trusted-public-keys = {foreign}"), "warning", &["lacks the gateway key narmesh-gateway-"]),
        ("stalled-download-timeout = 5", "warning", &["stalled-download-timeout = 5"]),
        ("download-attempts = 1", "warning", &["download-attempts = 1"]),
        ("connect-timeout = 0", "note", &["connect-timeout = 0"]),
        ("narinfo-cache-negative-ttl = 3600", "note", &["remembers for 3600 s"]),
        ("sandbox = false", "warning", &["sandbox = false in nix.conf"]),
        ("sandbox-fallback = true", "warning", &["sandbox-fallback is not false"]),
        ("trusted-users = root ann", "warning", &["trusted-users in nix.conf holds ann"]),
    ] {
        patient.append_to_nix_conf(line);
        patient.assert_mended(severity, words);
        std::fs::write(patient.nix_conf(), &good).unwrap();
    }
    patient.diagnose().assert_healthy();
}

#[test]
fn what_nix_remembers_of_this_gateway_is_named_and_can_be_forgotten() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    patient.node.start();
    patient.append_to_nix_conf("narinfo-cache-negative-ttl = 3600");
    let store = format!("http://{}", patient.node.gateway());
    let missing = "/nix/store/00000000000000000000000000000000-missing";
    let asked = ["nix", "path-info", "--store", &store, missing];
    patient.run(&asked).expect_failure("a path that nobody has");
    let (severity, mends) = patient.wait_found(&["Nix remembers of 1 paths"]);
    assert_eq!(severity, "note");
    assert!(mends[0].contains("narinfo-cache-negative-ttl = 0"), "{mends:?}");
    patient.run(&["sh", "-c", &mends[1]]).expect_success(&mends[1]);
    patient.wait_gone(&["Nix remembers of"]);
    // The other one mends it as well.
    patient.run(&asked).expect_failure("a path that nobody has");
    patient.assert_mended("note", &["Nix remembers of 1 paths"]);

    // A narinfo that only a key signed which Nix does not trust. Nix keeps it, whatever it is signed with.
    let built = patient.node.store.build_one("lib");
    drop(patient.node.wait_narinfo(&built));
    patient.run(&["nix", "path-info", "--store", &store, &built]).expect_success("a path that is here");
    assert!(patient.diagnose().find(&["without a signature that it trusts"]).is_none());
    patient.append_to_nix_conf("trusted-public-keys = other-1:prKRn2M7sIkxm1OMdz1ztnGi8QHbEW8GwBNsPVB+HhE=");
    patient.assert_mended("warning", &["without a signature that it trusts", "30 days"]);
}

/// Processes that see only each other, so that no other nix-daemon of this machine is looked at.
struct OwnProcesses {
    unshare: Child,
    inside: String,
}

impl OwnProcesses {
    fn new() -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        // The first process of the place has to forget the others when they end.
        command.args(["env", "--ignore-signal=CHLD", "sleep", "infinity"]);
        let unshare = command.stdin(Stdio::null()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let mut inside = String::new();
        wait_until("the processes have a place of their own", promised(STARTED), || {
            std::fs::read_to_string(&children).unwrap_or_default().trim().clone_into(&mut inside);
            // `unshare` mounts `/proc` before it becomes `sleep`.
            std::fs::read_to_string(format!("/proc/{inside}/comm")).is_ok_and(|name| name.trim() == "sleep")
        });
        Self { unshare, inside }
    }

    fn prefix(&self) -> Vec<String> {
        ["nsenter", "--target", &self.inside, "--pid", "--mount"].map(str::to_owned).into()
    }
}

impl Drop for OwnProcesses {
    fn drop(&mut self) {
        // With the first process of the place all others end.
        self.unshare.kill().ok();
        self.unshare.wait().ok();
        finish(Command::new("kill").args(["-KILL", &self.inside]));
    }
}

#[test]
fn nix_daemon_that_is_older_than_nix_conf_or_has_a_proxy_is_named() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    patient.node.start();
    let place = OwnProcesses::new();
    patient.prefix = place.prefix();
    let daemons = || {
        let said = patient.run(&["pgrep", "-x", "nix-daemon"]);
        said.stdout.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let start = |environment: &str| {
        let state = patient.nix_dir().join("state").display().to_string();
        let script = format!("env NIX_STATE_DIR={state} {environment} setsid nix-daemon >/dev/null 2>&1 </dev/null &");
        patient.run(&["sh", "-c", &script]).expect_success("nix-daemon");
        wait_until("nix-daemon runs", promised(STARTED), || daemons().len() == 1);
    };
    let stop = || {
        for pid in daemons() {
            patient.run(&["kill", "-KILL", &pid]).expect_success("kill");
        }
        wait_until("nix-daemon is gone", promised(STARTED), || daemons().is_empty());
    };
    start("");
    assert!(patient.diagnose().find(&["nix-daemon"]).is_none());

    // The start is known to the second, so the file has to change two seconds later.
    let words = ["nix-daemon (pid ", ") is older than ", "nix.conf"];
    wait_until("the doctor finds it", promised(Duration::from_secs(5)), || {
        patient.append_to_nix_conf("# changed");
        patient.diagnose().find(&words).is_some()
    });
    let (severity, mends) = patient.wait_found(&words);
    let pid = daemons().remove(0);
    assert!(severity == "warning" && mends[0].contains(&pid) || mends[0].contains("restart nix-daemon"), "{mends:?}");
    stop();
    start("http_proxy=http://me:secret@proxy.example:3128");
    patient.wait_gone(&words);

    let (severity, mends) = patient.wait_found(&["http_proxy (proxy.example:3128)", "no_proxy lacks 127.0.0.1"]);
    assert!(severity == "warning" && mends[0].contains("no_proxy=127.0.0.1"), "{mends:?}");
    stop();
    start("http_proxy=http://proxy.example:3128 no_proxy=localhost,127.0.0.1");
    patient.wait_gone(&["http_proxy"]);
}
