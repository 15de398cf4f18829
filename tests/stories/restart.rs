//! Daemons that are killed or stopped and start again, with or without their state.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::thread;
use std::time::Duration;

use narmesh_tests::{
    GatedProxy, Status, TestMesh, TestNode, get, head, promised, request, sha256_hex, wait_for, wait_until,
};
use rustix::process::Signal;

/// Peers are promised to hear of a restarted node within this, even if it lost its state.
const HEARD: Duration = Duration::from_secs(5);

/// `a` and `b`, both running and connected.
fn pair(mesh: &TestMesh) -> (TestNode, TestNode) {
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    TestMesh::start_all(&mut [&mut a, &mut b]);
    (a, b)
}

/// Damage to the state by a power cut or an operator.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Deleted,
    Truncated,
    Garbage,
    Emptied,
    DirectoryDeleted,
}

fn damage(node: &TestNode, damage: Damage) {
    let database = node.state_files()[0].clone();
    assert!(database.exists(), "the state is where it is documented to be");
    match damage {
        Damage::Deleted => {
            // Some of them may not exist.
            node.state_files().iter().for_each(|file| drop(fs::remove_file(file)));
        }
        Damage::Truncated => {
            node.state_files()[1..].iter().for_each(|file| drop(fs::remove_file(file)));
            let file = OpenOptions::new().write(true).open(&database).unwrap();
            let length = file.metadata().unwrap().len();
            file.set_len(length / 2 + 7).unwrap();
        }
        Damage::Garbage => {
            // From a log beside it, SQLite would repair the file: nothing would be lost, and there would be no warning.
            node.state_files()[1..].iter().for_each(|file| drop(fs::remove_file(file)));
            let mut file = OpenOptions::new().write(true).open(&database).unwrap();
            file.write_all(&[0xa5; 8192]).unwrap();
        }
        Damage::Emptied => {
            node.state_files()[1..].iter().for_each(|file| drop(fs::remove_file(file)));
            OpenOptions::new().write(true).open(&database).unwrap().set_len(0).unwrap();
        }
        Damage::DirectoryDeleted => fs::remove_dir_all(database.parent().unwrap()).unwrap(),
    }
}

/// Asserts that `a` and `b` hear of each other's new paths.
#[track_caller]
fn assert_heard_again(a: &TestNode, b: &TestNode, tag: &str) {
    for (from, to) in [(a, b), (b, a)] {
        let path = from.store.build_fresh(&format!("{tag}-{}", from.name));
        let count = from.store.outputs().len() as u64;
        to.wait_status(&format!("hears {} again", from.name), HEARD, |status| {
            status.summary_paths(&from.name) == Some(count)
        });
        assert_eq!(to.wait_narinfo(&path).nar_hash, from.store.row(&path).unwrap().nar_hash);
    }
}

#[test]
fn a_daemon_killed_and_restarted_with_its_state_is_heard_again() {
    let mesh = TestMesh::new();
    let (mut a, b) = pair(&mesh);
    assert_heard_again(&a, &b, "before");
    let before = b.status().summary_version("a").unwrap();
    a.kill();
    a.start();
    assert_heard_again(&a, &b, "after");
    let after = b.status().summary_version("a").unwrap();
    assert!(after > before, "(epoch, seq) only grows: {before:?} then {after:?}");
}

#[test]
fn a_daemon_killed_and_restarted_without_its_state_is_heard_again() {
    let mesh = TestMesh::new();
    let (mut a, b) = pair(&mesh);
    for kind in [Damage::Deleted, Damage::Truncated, Damage::Garbage, Damage::Emptied, Damage::DirectoryDeleted] {
        let before = b.status().summary_version("a").unwrap();
        a.kill();
        damage(&a, kind);
        a.clear_log();
        a.start();
        assert_heard_again(&a, &b, &format!("{kind:?}"));
        assert!(b.status().summary_version("a").unwrap() > before, "{kind:?}");
        a.wait_logged(&["warn", "state"]);
    }
}

#[test]
fn a_daemon_is_heard_when_its_state_is_deleted_while_it_runs() {
    let mesh = TestMesh::new();
    let (mut a, b) = pair(&mesh);
    damage(&a, Damage::Deleted);
    assert_heard_again(&a, &b, "running");
    a.kill();
    a.start();
    assert_heard_again(&a, &b, "restarted");
}

#[test]
fn nar_urls_from_before_a_restart_still_work() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let middle = a.store.build_one("middle");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let narinfo = b.wait_narinfo(&middle);
    for kind in [None, Some(Damage::Deleted), Some(Damage::Garbage)] {
        b.kill();
        if let Some(kind) = kind {
            damage(&b, kind);
        }
        b.start();
        let body = get(b.gateway(), &narinfo.url).unwrap();
        assert!(body.status == 200 && body.complete, "{kind:?}: {}", body.status);
        assert_eq!(format!("sha256:{}", sha256_hex(&body.body)), narinfo.nar_hash);
    }
    // A URL of a NAR that nobody can have is answered 404.
    let unknown = narinfo.url.replace(&narinfo.url[5..15], "0000000000");
    assert_eq!(head(b.gateway(), &unknown).unwrap().status, 404);
}

#[test]
fn a_nar_cut_short_by_a_kill_arrives_after_the_restart() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let huge = a.store.build_one("huge");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let narinfo = b.wait_narinfo(&huge);
    let mut body = request(b.gateway(), "GET", &narinfo.url, &[]).unwrap();
    assert_eq!(body.read_some(1 << 20).len(), 1 << 20);
    b.kill();
    assert!(!body.finish().complete, "cut short, not ended");
    b.start();
    b.wait_connected("a", true, HEARD);
    b.realise(std::slice::from_ref(&huge)).expect_success("from the restarted daemon");
    b.store.verify_contents();
}

#[test]
fn a_clean_stop_drops_its_summary_at_peers_and_lets_bodies_finish() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let huge = a.store.build_one("huge");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    let narinfo = a.wait_narinfo(&huge);
    // The daemon that is asked to stop is serving a body.
    let mut body = request(a.gateway(), "GET", &narinfo.url, &[]).unwrap();
    let begin = body.read_some(1 << 20);
    a.signal(Signal::TERM);
    b.wait_status("has dropped a's column", HEARD, |status| status.summary_paths("a").is_none());
    assert_eq!(b.get_narinfo(&huge).status, 404);
    let rest = body.finish();
    assert!(rest.complete, "a body under way gets ten seconds");
    assert_eq!(format!("sha256:{}", sha256_hex(&[begin, rest.body].concat())), narinfo.nar_hash);
    assert!(a.wait_ended().success());
    // After a new start it is heard again, although it had said goodbye.
    a.start();
    a.wait_all_advertised(&[&b]);
    b.realise(std::slice::from_ref(&huge)).expect_success("after the return");
}

/// Peers first hear of a large store as a whole. In parts, every part would cost every peer a filter, and after a restart
/// the first part would replace the whole that peers know.
#[test]
fn the_first_summary_after_a_start_covers_the_whole_store() {
    // More than the daemon examines in one go, and few enough to be examined in time on a busy machine.
    const PATHS: usize = 4_000;
    let mesh = TestMesh::new();
    let (mut a, b) = pair(&mesh);
    let before = b.status().summary_version("a");
    a.kill();
    a.store.register(PATHS);
    a.start();
    let heard = wait_for("b hears of a", promised(HEARD), || {
        let status = b.status();
        status.summary_paths("a").filter(|_| status.summary_version("a") > before)
    });
    assert_eq!(heard, PATHS as u64);
}

/// How the holder behaves when the asker connects again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// It answers at once.
    Quick,
    /// It completes the handshake only after the asker's Nix has started to wait.
    Slow,
    /// It has not heard that the old connection is gone, and refuses the first dial of the new one.
    Unaware,
    /// The asker does not know its address, so it has to dial the asker.
    Dialling,
}

/// Kills `b` and starts it again `times` times; each time its first lookup is for a path that it has never asked for.
fn assert_first_answers(holder: Holder, times: usize) {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let paths: Vec<_> = (0..times).map(|turn| a.store.build_fresh(&format!("{holder:?}-{turn}"))).collect();
    // The proxy stays the only way to `a`, and lookups wait long enough for a busy machine.
    for node in [&mut a, &mut b] {
        node.config.advertise_loopback = false;
        node.config.narinfo_deadline_ms = 20_000;
    }
    TestMesh::introduce(&mut [&mut a, &mut b]);
    if holder == Holder::Dialling {
        b.start();
        a.learn_address("b", &b.p2p_address());
    }
    a.start();
    let gate = GatedProxy::to(a.p2p_socket());
    if holder == Holder::Unaware {
        gate.hide_ends();
    }
    if holder != Holder::Dialling {
        b.learn_address("a", &gate.multiaddr());
        b.start();
    }
    a.wait_all_advertised(&[&b]);
    wait_until("b has a's summary on disk", promised(HEARD), || b.summaries_kept() == 1);
    for path in &paths {
        b.kill();
        if holder == Holder::Slow {
            gate.hold_after(0);
        }
        b.start();
        let answer = thread::scope(|scope| {
            let asking = scope.spawn(|| b.get_narinfo(path));
            if holder == Holder::Slow {
                b.wait_status("asks a", HEARD, |status| status.peer("a").is_some_and(|a| a["asked"] == 1));
                gate.release();
            }
            asking.join().unwrap()
        });
        assert_eq!(answer.status, 200, "{holder:?}: the first answer after the start, of {path}");
    }
}

#[test]
fn the_first_lookup_after_a_start_is_answered_by_a_remembered_holder() {
    assert_first_answers(Holder::Quick, 20);
}

#[test]
fn the_first_lookup_after_a_start_waits_for_a_slow_holder() {
    assert_first_answers(Holder::Slow, 20);
}

#[test]
fn the_first_lookup_after_a_start_survives_a_refused_dial() {
    assert_first_answers(Holder::Unaware, 20);
}

#[test]
fn the_first_lookup_after_a_start_waits_for_a_holder_that_has_to_dial() {
    assert_first_answers(Holder::Dialling, 20);
}

/// What is not told yet is not gone: a 404 would make Nix build what the peer holds.
#[test]
fn the_first_requests_of_a_daemon_without_memory_wait_until_its_peers_are_heard() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let paths: Vec<_> = (0..10).map(|turn| a.store.build_fresh(&format!("unheard-{turn}"))).collect();
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    for path in &paths {
        let url = a.wait_narinfo(path).url;
        b.kill();
        damage(&b, Damage::DirectoryDeleted);
        b.start();
        let [narinfo, nar] = thread::scope(|scope| {
            let narinfo = scope.spawn(|| b.get_narinfo(path));
            [get(b.gateway(), &url).unwrap(), narinfo.join().unwrap()].map(|answer| answer.status)
        });
        assert_eq!([narinfo, nar], [200, 200], "the first answers after the start, of {path}");
    }
}

/// A peer that is off costs the first of them two seconds, and one that was heard nothing.
#[test]
fn a_path_of_nobody_is_waited_for_only_while_a_peer_is_unheard() {
    let mesh = TestMesh::new();
    let (mut a, mut b) = pair(&mesh);
    a.kill();
    b.kill();
    damage(&b, Damage::DirectoryDeleted);
    b.start();
    let at_once = |b: &TestNode, digit: &str| {
        let path = format!("/nix/store/{}-nobodys", digit.repeat(32));
        assert_eq!(b.get_narinfo(&path).status, 404);
        b.narmesh(&["why", &path]).expect_success("why").contains("ago: answered 404 at once")
    };
    assert!(!at_once(&b, "0"), "a was not heard yet");
    assert!(at_once(&b, "1"), "a is off");
    a.start();
    a.wait_all_advertised(&[&b]);
    b.kill();
    b.start();
    b.wait_status("has heard a", HEARD, |status| status.peer("a").is_some_and(|a| a["summary"]["source"] == "heard"));
    assert!(at_once(&b, "2"), "a was heard");
}

#[test]
fn a_clean_stop_keeps_the_last_summary_and_a_damaged_one_is_dropped() {
    let mesh = TestMesh::new();
    let (mut a, mut b) = pair(&mesh);
    for turn in 0..3 {
        // Several in quick succession: the last comes sooner than a running daemon would write it.
        let _ = a.store.build_fresh(&format!("turn-{turn}"));
        a.wait_all_advertised(&[&b]);
    }
    b.terminate();
    a.kill();
    b.start();
    let status = b.status();
    assert_eq!(status.summary_paths("a"), Some(3));
    let source = |status: &Status| status.peer("a").map(|a| a["summary"]["source"].clone());
    assert_eq!(source(&status), Some("remembered".into()));

    b.kill();
    let file = b.summary_file("a");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    b.clear_log();
    b.start();
    b.wait_logged(&["warn", "summary", "not used"]);
    assert_eq!(b.status().summary_paths("a"), None);
    assert!(!file.exists());
    a.start();
    a.wait_all_advertised(&[&b]);
    assert_eq!(source(&b.status()), Some("heard".into()));
}

#[test]
fn a_daemon_that_stops_says_who_asked_and_when_it_has_ended() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("a");
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        node.start();
        node.clear_log();
        node.signal(signal);
        assert!(node.wait_ended().success());
        let (log, asked_by) = (node.log(), format!("asked_by=\"{name}\""));
        for said in ["narmesh stops", "narmesh has stopped"] {
            let line = log.lines().find(|line| line.contains(said)).unwrap_or_else(|| panic!("{said}: {log}"));
            assert!(line.contains("INFO") && line.contains(&asked_by), "{line}");
        }
    }
}
