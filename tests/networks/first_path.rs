//! From nothing to the first path: `docs/start.md`, typed as it stands there at machines that have only Debian and Nix.

use std::fs;
use std::time::{Duration, Instant};

use narmesh_tests::{BareMachine, Network, TestMesh, promised, repository_root, wait_until};
use serde_json::Value;

use crate::report::{Table, seconds};

/// What the mesh is told is in force everywhere within this.
const HEARD: Duration = Duration::from_secs(2);
/// From the first command to the first path on the last of five machines: what users are promised.
const FIRST_PATH: Duration = Duration::from_mins(2);

/// The commands of a section of the document, one a line, without `sudo` and comments.
fn commands(section: &str) -> Vec<String> {
    let text = fs::read_to_string(repository_root().join("docs/start.md")).unwrap();
    let (_, from) = text.split_once(&format!("\n## {section}")).expect("a section");
    let section = from.split_once("\n## ").map_or(from, |(section, _)| section);
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split_once("```").unwrap().0);
    let lines = blocks.flat_map(str::lines).filter(|line| !line.is_empty());
    let bare = |line: &str| line.split("  #").next().unwrap().trim().trim_start_matches("sudo ").to_owned();
    lines.map(bare).collect()
}

/// Types the commands; the daemon goes on, and what the last one printed is returned.
fn type_all(machine: &mut BareMachine, commands: &[String]) -> String {
    let mut said = String::new();
    for command in commands {
        if command == "narmesh run" {
            machine.start(command);
        } else {
            said = machine.run(command).expect_success(command);
        }
    }
    said
}

fn why(machine: &BareMachine, path: &str) -> Value {
    let said = machine.run(&format!("narmesh why --json {path}")).expect_success("narmesh why");
    serde_json::from_str(&said).unwrap()
}

/// Waits until the machine tells its peers of what was just built there.
fn wait_told(machine: &BareMachine, path: &str) {
    wait_until("it is advertised", promised(HEARD), || why(machine, path)["own_store"]["advertised"] == true);
}

#[test]
fn five_machines_with_one_command_each_share_their_first_path_within_two_minutes() {
    if !crate::is_permitted() {
        return;
    }
    let network = Network::on_a_bridge(5);
    let mesh = TestMesh::new();
    let names = ["one", "two", "three", "four", "five"];
    let machine = |(number, name): (usize, &&str)| {
        let dir = mesh.path().join(format!("root-{name}"));
        fs::create_dir(&dir).unwrap();
        BareMachine::new(network.machine(number), name, &dir)
    };
    let mut machines: Vec<BareMachine> = names.iter().enumerate().map(machine).collect();
    let (first, others) = machines.split_first_mut().unwrap();
    let mut table = Table::new("first-path", &["machine", "commands", "first path after", "of it its own"]);

    let begun = Instant::now();
    let setting_up = commands("2.");
    let mut token = type_all(first, &setting_up);
    let invite = setting_up.last().unwrap();
    let see = commands("4.");
    let path = first.run(&see[0]).expect_success("the first build");
    wait_told(first, &path);
    table.row(&[names[0], &setting_up.len().to_string(), "(builds it)", &seconds(begun.elapsed())]);
    let joining = commands("3.");
    for (name, other) in names[1..].iter().zip(others.iter_mut()) {
        let own = Instant::now();
        let typed: Vec<_> = joining.iter().map(|line| line.replace("narmesh-join-…", &token)).collect();
        assert_ne!(typed, joining, "the document shows where the token goes");
        type_all(other, &typed);
        let fetched = other.run(&see[0]);
        assert!(fetched.stderr.contains("from 'http://127.0.0.1:7281'"), "built: {}", fetched.stderr);
        assert_eq!(fetched.expect_success("the same command"), path);
        table.row(&[name, &joining.len().to_string(), &seconds(begun.elapsed()), &seconds(own.elapsed())]);
        token = first.run(invite).expect_success(invite);
    }
    let took = begun.elapsed();
    assert!(took <= promised(FIRST_PATH), "{took:?}");

    for look in &see[1..] {
        let said = others[0].run(&look.replace("/nix/store/…", &path)).expect_success(look);
        assert!(!said.is_empty(), "{look}");
    }
    // One is removed: it gets nothing any more, and the others do.
    let (removed, stay) = others.split_last().unwrap();
    first.run("narmesh mesh remove five").expect_success("mesh remove");
    let heard = |machine: &BareMachine| !machine.run("narmesh mesh list").stdout.contains("five");
    stay.iter().for_each(|machine| wait_until("the removal is heard", promised(HEARD), || heard(machine)));
    let later = see[0].replace("hello-mesh", "later");
    let path = first.run(&later).expect_success("a later build");
    for machine in stay {
        wait_until("it is known", promised(HEARD), || {
            why(machine, &path)["peers"].as_array().unwrap().iter().any(|peer| peer["would_ask"] == true)
        });
        let fetched = machine.run(&later);
        assert!(fetched.stderr.contains("from 'http://127.0.0.1:7281'"), "built: {}", fetched.stderr);
        assert_eq!(fetched.expect_success("what a member has"), path);
    }
    let built = removed.run(&later);
    assert!(!built.stderr.contains("from 'http"), "taken: {}", built.stderr);
    built.expect_success("it builds alone");
}

#[test]
fn a_machine_that_leaves_is_as_it_was() {
    if !crate::is_permitted() {
        return;
    }
    let network = Network::on_a_bridge(1);
    let mesh = TestMesh::new();
    let dir = mesh.path().join("root");
    fs::create_dir(&dir).unwrap();
    let mut machine = BareMachine::new(network.machine(0), "one", &dir);
    let before = machine.run("cat /etc/nix/nix.conf").expect_success("nix.conf");
    type_all(&mut machine, &commands("2."));
    assert_ne!(machine.run("cat /etc/nix/nix.conf").expect_success("nix.conf"), before);
    type_all(&mut machine, &commands("Going back"));
    assert_eq!(machine.run("cat /etc/nix/nix.conf").expect_success("nix.conf"), before);
}
