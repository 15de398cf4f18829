//! Faults of the daemon, its configuration, its keys, and who may see them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use narmesh_tests::{HandedSocket, TestMesh, narmesh_binary, promised, wait_until};

use super::{Diagnosis, Patient};

/// A user and group of no account.
const NOBODY: u32 = 61_234;

#[test]
fn daemon_that_does_not_run_is_started_by_the_command_that_is_named() {
    let mesh = TestMesh::new();
    let patient = Patient::new(&mesh, "a");
    let words = ["no narmesh daemon answers"];
    let (severity, mends) = patient.wait_found(&words);
    assert_eq!(severity, "error");
    assert!(!patient.diagnose().is_well, "an error is an exit code that is not 0");
    let command = patient.command("setpriv");
    let mut started = Command::new(command.get_program());
    started.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    started.args(["--pdeathsig", "KILL", "sh", "-c", &format!("exec {}", mends[0])]);
    let mut daemon = started.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    patient.wait_gone(&words);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    patient.wait_found(&words);
}

#[test]
fn configuration_that_the_daemon_has_not_read_is_named_and_reloaded() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    patient.node.start();
    let (file, good) = (patient.node.config_file(), fs::read_to_string(patient.node.config_file()).unwrap());
    // The time of the reading is known to the second only.
    let changed = ["was changed after the daemon read it"];
    wait_until("the doctor finds the change", promised(Duration::from_secs(2)), || {
        fs::write(&file, format!("{good}\n# changed\n")).unwrap();
        patient.diagnose().find(&changed).is_some()
    });
    patient.assert_mended("warning", &changed);

    fs::write(&file, format!("{good}\n[nodes]\n")).unwrap();
    let diagnosis = patient.diagnose();
    assert!(!diagnosis.is_well && diagnosis.find(&["nodes"]).is_some(), "{:#}", diagnosis.report);
    patient.narmesh(&["reload"]).expect_failure("a reload of a bad file");
    let (severity, mends) = patient.wait_found(&["the last reload was refused"]);
    assert_eq!(severity, "error");
    fs::write(&file, &good).unwrap();
    patient.run(&["sh", "-c", mends.last().unwrap()]).expect_success("narmesh reload");
    patient.diagnose().assert_healthy();
}

#[test]
fn switched_off_serving_and_what_was_moved_aside_are_noted() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    patient.node.start();
    patient.narmesh(&["serve", "off"]).expect_success("narmesh serve off");
    patient.assert_mended("note", &["peers get nothing of this machine"]);
    patient.node.terminate();
    fs::write(patient.node.dir().join("state/state.sqlite"), "no database").unwrap();
    patient.node.start();
    patient.assert_mended("note", &["were moved aside, such as state.sqlite.corrupt-"]);
}

#[test]
fn socket_that_is_handed_over_at_another_address_is_named() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    let socket = HandedSocket::bind();
    socket.start(&mut patient.node);
    let address = socket.address().to_string();
    let (severity, mends) = patient.wait_found(&["the gateway listens at", &address]);
    let line = format!("ListenStream={}", patient.node.config.gateway_listen);
    assert!(severity == "warning" && mends[0].contains(&line), "{mends:?}");
}

#[test]
fn daemon_of_a_program_that_was_replaced_is_named() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    let (program, next) = (patient.node.dir().join("program"), patient.node.dir().join("next"));
    fs::copy(narmesh_binary(), &program).unwrap();
    // The first word of what is to be run is the program that the harness built.
    let script = format!("shift; exec {} \"$@\"", program.display());
    patient.node.run_under(&["sh", "-c", &script, "sh"]);
    patient.node.start();
    patient.diagnose().assert_healthy();
    fs::copy(narmesh_binary(), &next).unwrap();
    fs::rename(&next, &program).unwrap();
    let (severity, mends) = patient.wait_found(&["is older than the program on disk"]);
    let pid = patient.node.pid().to_string();
    assert!(severity == "warning" && (mends[0].contains(&pid) || mends[0].contains("restart narmesh")), "{mends:?}");
    patient.node.terminate();
    patient.node.start();
    patient.diagnose().assert_healthy();
}

#[test]
fn daemon_that_gives_no_answer_costs_a_bounded_time() {
    let mesh = TestMesh::new();
    let patient = Patient::new(&mesh, "a");
    fs::create_dir_all(patient.node.dir().join("state")).unwrap();
    let _deaf = UnixListener::bind(patient.node.dir().join("state/control.sock")).unwrap();
    let diagnosis = patient.diagnose();
    assert_eq!(diagnosis.find(&["no answer within 5 s"]).unwrap().0, "error");
    assert!(diagnosis.unseen().contains("the daemon does not answer"), "{:#}", diagnosis.report);
}

#[test]
fn keys_that_others_may_read_or_the_daemon_may_not_are_named_and_mended() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    patient.node.run_as(NOBODY);
    let state = patient.node.dir().join("state");
    patient.run(&["chown", "-R", &NOBODY.to_string(), state.to_str().unwrap()]).expect_success("chown");
    patient.node.start();
    patient.diagnose().assert_healthy();
    let key = patient.node.dir().join("builder.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    patient.assert_mended("error", &["trust.builder_key_file", "has mode 0644"]);
    chown(&key, Some(0), Some(0)).unwrap();
    patient.assert_mended("error", &["trust.builder_key_file", "belongs to root", &NOBODY.to_string()]);
    fs::remove_file(&key).unwrap();
    patient.assert_mended("error", &["trust.builder_key_file", "there is no such file"]);
}

#[test]
fn user_who_may_see_little_is_told_what_and_why() {
    let mesh = TestMesh::new();
    let mut patient = Patient::new(&mesh, "a");
    patient.node.start();
    let bin = patient.node.dir().join("bin/narmesh");
    // The build may lie where another user may not read.
    fs::remove_file(&bin).unwrap();
    fs::copy(narmesh_binary(), &bin).unwrap();
    for (dir, mode) in [(mesh.path(), 0o755), (patient.node.dir(), 0o755), (&patient.node.config_file(), 0o644)] {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    }
    let user = NOBODY.to_string();
    patient.prefix = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"].map(str::to_owned).into();
    let diagnosis: Diagnosis = patient.diagnose();
    assert!(diagnosis.is_well, "what cannot be seen is no error: {:#}", diagnosis.report);
    let unseen = diagnosis.unseen();
    for words in
        ["no permission for ", "sudo narmesh --config", "the rules of the firewall", "whether the daemon could start"]
    {
        assert!(unseen.contains(words), "{words}: {unseen}");
    }
}
