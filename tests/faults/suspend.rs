//! A laptop that sleeps. SIGSTOP stands in for a suspend: the clocks that the daemon reads run on, as in a real one.
//!
//! A minute is longer than every deadline between two nodes (narinfo 1 s, stalled NAR 5 s, request 10 s, unacknowledged
//! data 10 s). The simulation, whose clock can jump, tests a sleep beyond the lifetime of summaries (hours).

use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{TestMesh, get};
use rustix::process::Signal;

/// How long it sleeps.
const ASLEEP: Duration = Duration::from_secs(60);
/// After waking up, everything is promised to be as before within this.
const AWAKE: Duration = Duration::from_secs(5);

#[test]
fn a_daemon_that_slept_a_minute_is_as_before_when_it_wakes_up() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let app = a.store.build_one("app");
    let lib = a.store.build_one("lib");
    let theirs = b.store.build_one("shapes");
    TestMesh::start_all(&mut [&mut a, &mut b]);
    a.wait_all_advertised(&[&b]);
    b.wait_all_advertised(&[&a]);
    let known = b.wait_narinfo(&app);
    a.signal(Signal::STOP);
    let slept = Instant::now();
    // While a sleeps, b's Nix is answered in time: with a remembered answer, or 404.
    let prober = b.probe(&[&app, &lib, &theirs]);
    let fresh = a.store.build_fresh("while-asleep");
    let gone = get(b.gateway(), &known.url).unwrap();
    assert!(gone.status == 404 || !gone.complete, "nobody is there to send it: {}", gone.status);
    // The only condition to wait for is the length of the sleep.
    thread::sleep(ASLEEP.saturating_sub(slept.elapsed()));
    prober.finish().assert_fit_for_nix(b.narinfo_slowest_max());
    a.signal(Signal::CONT);
    let prober = a.probe(&[&app, &theirs]);
    b.wait_connected("a", true, AWAKE);
    a.wait_connected("b", true, AWAKE);
    a.wait_all_advertised(&[&b]);
    // A path that was built meanwhile is found, and failed lookups are tried again.
    b.realise(&[app, lib, fresh]).expect_success("from a after its sleep");
    a.realise(&[theirs]).expect_success("by a after its sleep");
    prober.finish().assert_fit_for_nix(a.narinfo_slowest_max());
    for (node, other) in [(&a, "b"), (&b, "a")] {
        let status = node.status();
        let peer = status.peer(other).unwrap();
        assert_eq!(
            (peer["misdeeds"].as_u64(), &peer["set_aside_s"]),
            (Some(0), &serde_json::Value::Null),
            "sleep is no lie"
        );
    }
}
