//! `narmesh doctor`: each fault is made for real, named with the command that mends it, mended by that command, and gone.

mod daemon;
mod machine;
mod nix;
mod peers;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use narmesh_tests::{
    CHROOT_NIX_CONF, Finished, TestMesh, TestNode, finish, free_address, narmesh_binary, nix_client_environment,
    nix_homes, promised, wait_until,
};
use serde_json::Value;

/// All looks together are bounded by ten seconds; the daemon's answer, before them, by five.
const LOOKED: Duration = Duration::from_secs(15);

/// A machine with a Nix of its own: `nix.conf`, home and memory lie beside the node.
struct Patient {
    node: TestNode,
    /// The words before a program that bring it onto this machine, if it is not this one.
    prefix: Vec<String>,
}

/// What the doctor said.
struct Diagnosis {
    report: Value,
    is_well: bool,
}

impl Patient {
    /// A node whose gateway signs and has a fixed port, and a Nix that asks it with the settings of `docs/operations.md`.
    fn new(mesh: &TestMesh, name: &str) -> Self {
        let mut node = mesh.node(name);
        node.config.gateway_listen = free_address().to_string();
        node.config.sign = true;
        node.write_config();
        // Until something is built, there is no store.
        node.store.build_one("lib");
        let patient = Self { node, prefix: Vec::new() };
        let key = patient.node.narmesh(&["id", "--gateway-key"]).expect_success("narmesh id --gateway-key");
        let settings = format!(
            "{CHROOT_NIX_CONF}substituters = http://{}\ntrusted-public-keys = {key}\nconnect-timeout = 5\n\
             stalled-download-timeout = 30\ndownload-attempts = 5\nnarinfo-cache-negative-ttl = 0\n",
            patient.node.config.gateway_listen
        );
        for (_, dir) in nix_homes(&patient.nix_dir()) {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(patient.nix_conf(), settings).unwrap();
        let bin = patient.node.dir().join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(narmesh_binary(), bin.join("narmesh")).unwrap();
        patient
    }

    fn nix_dir(&self) -> PathBuf {
        self.node.dir().join("nix-of-the-machine")
    }

    fn nix_conf(&self) -> PathBuf {
        self.nix_dir().join("etc/nix.conf")
    }

    fn append_to_nix_conf(&self, line: &str) {
        let text = fs::read_to_string(self.nix_conf()).unwrap();
        fs::write(self.nix_conf(), format!("{text}{line}\n")).unwrap();
    }

    /// A command with the environment of this machine's users.
    fn command(&self, program: &str) -> Command {
        let mut words = self.prefix.iter().map(String::as_str).chain([program]);
        let mut command = Command::new(words.next().unwrap());
        nix_client_environment(&mut command).args(words).envs(nix_homes(&self.nix_dir()));
        let path = format!("{}:{}", self.node.dir().join("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", path);
        command
    }

    fn run(&self, words: &[&str]) -> Finished {
        let [program, words @ ..] = words else { panic!("no program") };
        finish(self.command(program).args(words))
    }

    fn narmesh(&self, words: &[&str]) -> Finished {
        finish(self.command("narmesh").arg("--config").arg(self.node.config_file()).args(words))
    }

    fn diagnose(&self) -> Diagnosis {
        Diagnosis::of(self.narmesh(&["doctor", "--json"]))
    }

    /// Waits for a finding with these words, and returns its severity and the commands that mend it.
    #[track_caller]
    fn wait_found(&self, words: &[&str]) -> (String, Vec<String>) {
        let mut last = None;
        wait_until(&format!("the doctor finds {words:?}"), promised(LOOKED), || {
            let diagnosis = self.diagnose();
            let found = diagnosis.find(words);
            last = Some(diagnosis);
            found.is_some()
        });
        last.unwrap().find(words).unwrap()
    }

    /// Waits until nothing is found with these words.
    #[track_caller]
    fn wait_gone(&self, words: &[&str]) {
        wait_until(&format!("{words:?} is gone"), promised(LOOKED), || self.diagnose().find(words).is_none());
    }

    /// The fault is named with this severity; the first command that it names mends it, and then it is gone.
    #[track_caller]
    fn assert_mended(&self, severity: &str, words: &[&str]) {
        let (found, mends) = self.wait_found(words);
        assert_eq!(found, severity, "{words:?}");
        self.run(&["sh", "-c", &mends[0]]).expect_success(&mends[0]);
        self.wait_gone(words);
    }
}

impl Diagnosis {
    fn of(finished: Finished) -> Self {
        let is_well = finished.status.success();
        let report = serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"));
        Self { report, is_well }
    }

    fn findings(&self) -> Vec<&Value> {
        self.report["looks"].as_array().unwrap().iter().flat_map(|look| look["findings"].as_array().unwrap()).collect()
    }

    /// Severity and mending commands of the finding with all of these words.
    fn find(&self, words: &[&str]) -> Option<(String, Vec<String>)> {
        let has_all = |finding: &&&Value| words.iter().all(|word| finding["found"].as_str().unwrap().contains(word));
        let finding = *self.findings().iter().find(has_all)?;
        let mends = finding["mend"].as_array().unwrap().iter().map(|mend| mend.as_str().unwrap().to_owned());
        Some((finding["severity"].as_str().unwrap().to_owned(), mends.collect()))
    }

    fn unseen(&self) -> String {
        let all = self.report["looks"].as_array().unwrap().iter().map(|look| look["unseen"].to_string());
        all.collect::<Vec<_>>().join("\n")
    }

    /// Neither errors nor warnings.
    #[track_caller]
    fn assert_healthy(&self) {
        let counts = [&self.report["errors"], &self.report["warnings"]];
        assert!(self.is_well && counts.iter().all(|count| **count == 0), "{:#}", self.report);
    }
}

#[test]
fn healthy_machine_has_neither_errors_nor_warnings() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| Patient::new(&mesh, name));
    TestMesh::start_all(&mut [&mut a.node, &mut b.node]);
    a.diagnose().assert_healthy();
    let said = a.narmesh(&["doctor"]).expect_success("narmesh doctor");
    for words in ["narmesh doctor, for /", "\nlooked at configuration, daemon, keys, ", ": 0 errors, 0 warnings, "] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // What it says of the configuration is what `check-config` says.
    let checked = a.narmesh(&["check-config"]).expect_success("narmesh check-config");
    let notes: Vec<_> = checked.lines().filter_map(|line| line.strip_prefix("note: ")).collect();
    assert!(!notes.is_empty() && notes.iter().all(|note| said.contains(note)), "{notes:?}: {said}");
    // Nothing is left behind, and nothing is changed: it is as healthy as before.
    a.diagnose().assert_healthy();
}
