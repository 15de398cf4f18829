//! What commands show on a terminal and nowhere else: colours, and a sign of life while they wait.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::Duration;

use narmesh_tests::{InTerminal, Rules, TestMesh, TestNode};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than the second after which a command says that it goes on.
const LONG: Duration = Duration::from_millis(2_500);

fn on_a_terminal(node: &TestNode, arguments: &[&str], environment: &[(&str, &str)]) -> InTerminal {
    node.narmesh_in_a_terminal(arguments, "nothing", environment)
}

fn has_colours(seen: &str) -> bool {
    seen.contains("\u{1b}[1m") || seen.contains("\u{1b}[3") || seen.contains("\u{1b}[2m")
}

#[test]
fn reports_have_colours_on_a_terminal_unless_somebody_wants_none() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    TestMesh::start_all(&mut [&mut a, &mut b]);
    let path = a.store.build_one("lib");
    for command in [&["status"][..], &["why", &path], &["doctor"], &["check-config"]] {
        let seen = on_a_terminal(&a, command, &[]).seen;
        assert!(has_colours(&seen), "{command:?}: {seen:?}");
        assert!(
            has_colours(&on_a_terminal(&a, command, &[("NO_COLOR", "")]).seen),
            "{command:?}: empty counts as unset"
        );
        for none in [("NO_COLOR", "1"), ("TERM", "dumb"), ("CLICOLOR", "0")] {
            let seen = on_a_terminal(&a, command, &[none]).seen;
            assert!(!seen.contains('\u{1b}') && !seen.trim().is_empty(), "{command:?} {none:?}: {seen:?}");
        }
        let printed = a.narmesh(command).stdout;
        assert!(!printed.contains('\u{1b}') && !printed.is_empty(), "{command:?}: {printed:?}");
    }
    let json = on_a_terminal(&a, &["status", "--json"], &[]).seen;
    assert!(!json.contains('\u{1b}'), "for programs: {json:?}");
}

/// What goes on is said, and is gone at the end.
#[track_caller]
fn assert_said_and_gone(ran: &InTerminal, what: &str) {
    let (_, after) = ran.seen.rsplit_once(what).unwrap_or_else(|| panic!("{what:?} is not said: {ran:?}"));
    assert!(after.contains("\u{1b}[2K") || after.contains("\u{1b}[K"), "{what:?} stays: {ran:?}");
}

#[test]
fn a_probe_that_takes_long_says_so_on_a_terminal_and_one_that_does_not_says_nothing() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    // Without the caches of this machine's Nix.
    node.write_config();
    let probe = ["check-config", "--probe"];
    let quick = on_a_terminal(&node, &probe, &[]);
    assert!(quick.is_success && !quick.seen.contains("asking"), "{quick:?}");
    // Connections are accepted by the kernel, and nothing is ever answered.
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = frozen.local_addr().unwrap();
    let stall = LONG.as_millis();
    node.config.more = format!("[[upstream]]\nname = 'frozen'\nurl = 'http://{url}'\nstall_timeout_ms = {stall}\n");
    node.write_config();
    let slow = on_a_terminal(&node, &probe, &[]);
    assert_said_and_gone(&slow, "asking the caches");
    assert!(slow.seen.contains("frozen: NOT reachable"), "{slow:?}");
    let printed = node.narmesh(&probe);
    let said = printed.stdout + &printed.stderr;
    assert!(said.contains("frozen: NOT reachable") && !said.contains("asking"), "without a terminal: {said}");
}

#[test]
fn an_attest_and_a_report_that_take_long_say_so_on_a_terminal() {
    let mesh = TestMesh::new();
    let [mut node, builder] = ["node", "builder"].map(|name| mesh.node(name));
    node.follow(&Rules::new("observe", 1, &[&builder]));
    let path = node.store.build_one("nondet");
    node.start();
    // A rebuild that takes its time, and gives the same.
    let bin = mesh.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("nix-build"), format!("#!/bin/sh\nsleep {}\n", LONG.as_secs_f64())).unwrap();
    fs::set_permissions(bin.join("nix-build"), fs::Permissions::from_mode(0o755)).unwrap();
    let programs = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let attested = on_a_terminal(&node, &["quorum", "attest", &path], &[("PATH", &programs)]);
    assert_said_and_gone(&attested, "building again");
    assert!(attested.is_success && attested.seen.contains("attested"), "{attested:?}");

    let quick = on_a_terminal(&node, &["quorum", "report"], &[]);
    assert!(!quick.seen.contains("judging"), "{quick:?}");
    // A daemon that has so much to judge that it needs its time, as far as the command can tell.
    let daemon = Pid::from_raw(i32::try_from(node.pid()).unwrap()).unwrap();
    kill_process(daemon, Signal::STOP).unwrap();
    let goes_on = thread::spawn(move || {
        thread::sleep(LONG);
        kill_process(daemon, Signal::CONT).unwrap();
    });
    let slow = on_a_terminal(&node, &["quorum", "report"], &[]);
    goes_on.join().unwrap();
    assert_said_and_gone(&slow, "judging");
    assert!(slow.seen.contains(" paths: "), "{slow:?}");
}
