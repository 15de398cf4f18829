//! The recipes in `contrib/`: what a runner of CI does is run, and the others are read as far as this machine can.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use narmesh_tests::{TestMesh, TestNode, finish, free_address, narmesh_binary, promised, repository_root, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What a builder built is told to a new member within this.
const TOLD: Duration = Duration::from_secs(5);

/// The daemon that the script started, which nobody else would end.
struct Runner {
    pid_file: PathBuf,
}

impl Drop for Runner {
    fn drop(&mut self) {
        let pid = fs::read_to_string(&self.pid_file).ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
        if let Some(pid) = pid {
            // It may have ended by itself.
            kill_process(pid, Signal::KILL).ok();
        }
    }
}

fn machine(mesh: &TestMesh, name: &str) -> TestNode {
    let mut node = mesh.node(name);
    node.config.listen = vec![format!("/ip4/127.0.0.1/tcp/{}", free_address().port())];
    node.config.gateway_listen = free_address().to_string();
    node.config.sign = true;
    node.write_config();
    node
}

fn join_script(dir: &str, token: &str) -> Command {
    let mut command = Command::new(repository_root().join("contrib/ci/join.sh"));
    command.env("NARMESH_PROGRAM", narmesh_binary()).env("NARMESH_DIR", dir).env("NARMESH_TOKEN", token);
    command
}

#[test]
fn runner_of_ci_joins_with_its_token_and_substitutes() {
    let mesh = TestMesh::new();
    let mut founder = machine(&mesh, "founder");
    founder.start();
    founder.narmesh(&["mesh", "create", "home"]).expect_success("mesh create");
    let built = founder.store.build_one("lib");
    let token = founder.narmesh(&["mesh", "invite", "--ephemeral", "1h"]).expect_success("mesh invite");

    let runner = machine(&mesh, "runner");
    let dir = runner.dir().display().to_string();
    let _daemon = Runner { pid_file: runner.dir().join("pid") };
    let nix_config = finish(&mut join_script(&dir, &token)).expect_success("join.sh");
    let gateway = &runner.config.gateway_listen;
    let (substituters, keys) = nix_config.split_once('\n').unwrap();
    assert_eq!(substituters, format!("extra-substituters = http://{gateway}"));
    let key = keys.strip_prefix("extra-trusted-public-keys = ").unwrap();
    assert!(key.starts_with("narmesh-gateway-"), "{key}");
    let members: Value =
        serde_json::from_str(&founder.narmesh(&["mesh", "list", "--json"]).expect_success("mesh list")).unwrap();
    assert_eq!(members["members"].as_array().unwrap().len(), 2, "{members}");
    wait_until("the runner substitutes", promised(TOLD), || {
        let paths = [built.clone()];
        runner.store.realise(&paths, gateway.parse().unwrap(), &[key.to_owned()]).status.success()
    });

    // The token is used up; a member needs none.
    let again = runner.narmesh(&["join", "--unless-member", &token]).expect_success("join --unless-member");
    assert!(again.contains("member already"), "{again}");
    let other = machine(&mesh, "other");
    other.narmesh(&["join", "--unless-member", &token]).expect_failure("another machine with a token that is used up");
    let other_dir = other.dir().display().to_string();
    let said = finish(&mut join_script(&other_dir, &token)).expect_failure("join.sh with such a token");
    assert!(said.contains("no invitation is open"), "{said}");
}

/// A YAML file as JSON, all documents of it.
fn read_yaml(file: &str) -> Vec<Value> {
    let mut command = Command::new("python3");
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let said = finish(command.args(["-c", script]).arg(repository_root().join("contrib").join(file)));
    serde_json::from_str(&said.expect_success(file)).unwrap()
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn commands_of_the_container_recipes_are_those_of_narmesh() {
    let daemon_set = &read_yaml("kubernetes/narmesh.yaml")[0];
    assert_eq!((&daemon_set["apiVersion"], &daemon_set["kind"]), (&"apps/v1".into(), &"DaemonSet".into()));
    let spec = &daemon_set["spec"]["template"]["spec"];
    assert_eq!(daemon_set["spec"]["selector"]["matchLabels"], daemon_set["spec"]["template"]["metadata"]["labels"]);
    let volumes: Vec<_> = spec["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
    let mut commands = Vec::new();
    for container in ["initContainers", "containers"].iter().flat_map(|kind| spec[*kind].as_array().unwrap()) {
        commands.push(words(&container["args"]));
        let mounts = container["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().all(|mount| volumes.contains(&&mount["name"])), "{mounts:?} of {volumes:?}");
    }
    let compose = &read_yaml("compose/compose.yaml")[0];
    for (name, service) in compose["services"].as_object().unwrap() {
        commands.push(words(&service["command"]));
        for volume in words(&service["volumes"]) {
            let volume = volume.split(':').next().unwrap();
            assert!(
                volume.starts_with(name.as_str()) && compose["volumes"].get(volume).is_some(),
                "{volume} of {name}"
            );
        }
    }
    assert_eq!(commands.len(), 4);
    for command in commands {
        // clap reads all of them before it helps.
        let mut narmesh = Command::new(narmesh_binary());
        finish(narmesh.args(&command).arg("--help")).expect_success(&format!("narmesh {command:?}"));
    }
}

#[test]
fn runner_recipes_call_the_script_that_is_there() {
    let action = &read_yaml("ci/action.yml")[0];
    let run = action["runs"]["steps"][0]["run"].as_str().unwrap();
    let script = finish(Command::new("bash").args(["-n", "-c", run]));
    assert_eq!(script.stderr, "");
    assert!(run.contains("$GITHUB_ACTION_PATH/join.sh"), "{run}");
    let template = &read_yaml("ci/gitlab.yml")[0];
    let line = template[".narmesh"]["before_script"][0].as_str().unwrap();
    assert!(line.contains("$(contrib/ci/join.sh)"), "{line}");

    // What the step of GitHub does, with a script in place of the real one.
    let mesh = TestMesh::new();
    let (place, environment) = (mesh.path().join("action"), mesh.path().join("environment"));
    fs::create_dir(&place).unwrap();
    fs::write(place.join("join.sh"), "#!/bin/sh\necho \"joined with $NARMESH_TOKEN\"\n").unwrap();
    finish(Command::new("chmod").arg("+x").arg(place.join("join.sh"))).expect_success("chmod");
    let mut step = Command::new("bash");
    step.args(["--noprofile", "--norc", "-eo", "pipefail", "-c", run]).env("NIX_CONFIG", "cores = 2");
    step.env("GITHUB_ACTION_PATH", &place).env("GITHUB_ENV", &environment).env("NARMESH_TOKEN", "t");
    finish(&mut step).expect_success("the step");
    let written = fs::read_to_string(&environment).unwrap();
    assert_eq!(written, "NIX_CONFIG<<narmesh-end\ncores = 2\njoined with t\nnarmesh-end\n");
}
