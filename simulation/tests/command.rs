//! The command line of `narmesh-sim`, from outside.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Output, Stdio};

fn sim(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narmesh-sim"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn refused(arguments: &[&str], because: &str) {
    let Output { status, stdout, stderr } = sim(arguments).output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stdout.is_empty()), (Some(2), true), "{arguments:?}: {said}");
    assert!(said.contains(because), "{arguments:?}: {said}");
}

#[test]
fn bad_arguments_are_refused_before_a_run() {
    refused(&["run", "nowhere"], "'nowhere'");
    refused(&["run", "lan-5", "--trace", "5"], "accepted: 0 to 4");
    refused(&["run", "lan-5", "--trace", "somebody"], "'somebody'");
    refused(&["run", "lan-5", "--seed", "one"], "'one'");
    refused(&["run", "lan-5", "--svg", "/dev/null/plots"], "--svg /dev/null/plots: ");
    let file = std::env::temp_dir().join(format!("narmesh-sim-{}.toml", std::process::id()));
    std::fs::write(&file, "about = 'mine'\nnodse = 5\n").unwrap();
    refused(&["run", file.to_str().unwrap()], "nodse");
    std::fs::remove_file(file).unwrap();
}

#[test]
fn closed_stdout_does_not_change_the_exit_code() {
    let mut run = sim(&["run", "lan-5", "--small", "--trace", "0"]).spawn().unwrap();
    drop(run.stdout.take());
    let ended = run.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}
