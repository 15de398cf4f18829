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

/// What each command of `docs/simulation.md` gets besides, so that it ends soon.
fn shortened(command: &str) -> &'static [&'static str] {
    match command {
        "run" | "rosters" | "quorum" => &["--small"],
        "swarm" => &["--seeds", "1"],
        _ => &[],
    }
}

#[test]
fn commands_of_the_document_run_as_written_on_fewer_machines() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/simulation.md");
    let document = std::fs::read_to_string(document).unwrap();
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("commands-of-the-document");
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).unwrap();
    let mut seen = Vec::new();
    for line in document.lines().filter_map(|line| line.strip_prefix("cargo run --release -p narmesh-simulation ")) {
        let (features, arguments) = line.split("  #").next().unwrap().split_once("-- ").unwrap();
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let command = *words.first().unwrap();
        seen.push(command.to_owned());
        let mut sim = sim(&words);
        let ended = sim.args(shortened(command)).current_dir(&dir).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        if features.is_empty() || cfg!(feature = "mutants") {
            assert!(ended.status.success(), "{line}: {said}");
            assert!(!ended.stdout.is_empty(), "{line}");
        } else {
            // Built without them, it knows the command, and says what it lacks.
            assert_eq!((features.trim(), said.contains("--features mutants")), ("--features mutants", true), "{said}");
        }
    }
    for command in ["list", "run", "rosters", "swarm", "quorum", "mutants"] {
        assert!(seen.iter().any(|one| one == command), "{command} is not among {seen:?}");
    }
    assert!(dir.join("plots").is_dir(), "--svg plots");
}
