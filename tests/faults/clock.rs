//! Daemons with a wrong clock, made with Debian's `faketime`; other processes have the right time.

use std::path::PathBuf;
use std::time::Duration;

use narmesh_tests::{TestMesh, TestNode, faketime};

/// A wall clock that stands still at the present moment.
pub(crate) fn frozen_clock() -> [String; 5] {
    let now = narmesh_tests::finish(std::process::Command::new("date").arg("+%Y-%m-%d %H:%M:%S"));
    faketime(now.expect_success("date").trim())
}

/// A node whose clock is right is promised to be heard within this.
const HEARD: Duration = Duration::from_secs(5);
/// Two connected nodes compare what they hold at least this often.
const NEXT_EXCHANGE: Duration = Duration::from_secs(66);
/// A peer that could not be reached is dialled again within this.
const DIALLED_AGAIN: Duration = Duration::from_secs(15);

/// `a` has the wall clock in a file, at first `start`; `b` has the right time. Both run and allow each other.
struct Pair {
    a: TestNode,
    b: TestNode,
    clock: PathBuf,
    /// A path that `a` holds.
    app: String,
    /// A path that `b` holds.
    shapes: String,
    _mesh: TestMesh,
}

impl Pair {
    fn new(start: &str) -> Self {
        let mesh = TestMesh::new();
        let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
        let (app, shapes) = (a.store.build_one("app"), b.store.build_one("shapes"));
        let clock = mesh.path().join("clock");
        let mut command = faketime("");
        command[2] = format!("FAKETIME_TIMESTAMP_FILE={}", clock.display());
        a.run_under(&command.each_ref().map(String::as_str));
        TestMesh::introduce(&mut [&mut a, &mut b]);
        b.start();
        a.learn_address("b", &b.p2p_address());
        std::fs::write(&clock, start).unwrap();
        a.start();
        Self { a, b, clock, app, shapes, _mesh: mesh }
    }

    /// Sets the clock of `a` right.
    fn set_right(&self) {
        std::fs::write(&self.clock, "+0").unwrap();
    }

    /// Asserts that `a` serves its own path, that no request ends in an error, and that a build succeeds.
    fn assert_builds_alone(&self) {
        let prober = self.a.probe(&[&self.app, &self.shapes]);
        assert_eq!(self.a.get_narinfo(&self.app).status, 200, "what it holds itself");
        self.a.nix_build("lib").expect_success("nix-build under a wrong clock");
        prober.finish().assert_fit_for_nix(self.a.narinfo_slowest_max());
    }

    /// Asserts that both hear of each other's paths and substitute them.
    fn assert_met(&self, bound: Duration) {
        for (node, other) in [(&self.a, &self.b), (&self.b, &self.a)] {
            let count = other.store.outputs().len() as u64;
            node.wait_status("has heard the other", bound, |status| status.summary_paths(&other.name) == Some(count));
            assert_eq!(node.status().peer(&other.name).unwrap()["misdeeds"], 0, "a wrong clock is no lie");
        }
        self.a.realise(std::slice::from_ref(&self.shapes)).expect_success("from b");
        self.b.realise(std::slice::from_ref(&self.app)).expect_success("from a");
    }
}

#[test]
fn a_daemon_whose_clock_says_1970_works_alone_until_it_is_set_right() {
    let pair = Pair::new("@1970-01-01 00:05:00");
    pair.assert_builds_alone();
    pair.a.wait_logged(&["warn", "clock"]);
    pair.set_right();
    pair.assert_met(DIALLED_AGAIN);
}

#[test]
fn a_daemon_whose_clock_is_nearly_a_day_ahead_is_heard() {
    let mut pair = Pair::new("+23h");
    pair.assert_met(HEARD);
    // The clock is set right while it runs, and then it is restarted: its epochs lie in the future and go on from there.
    pair.set_right();
    for tag in ["set-right", "restarted"] {
        let fresh = pair.a.store.build_fresh(tag);
        pair.a.wait_all_advertised(&[&pair.b]);
        pair.b.realise(&[fresh]).expect_success(tag);
        pair.a.kill();
        pair.a.start();
    }
    assert_eq!(pair.b.status().peer("a").unwrap()["misdeeds"], 0);
}

#[test]
fn a_daemon_whose_clock_is_two_days_ahead_is_heard_once_it_is_set_right() {
    let mut pair = Pair::new("+48h");
    pair.assert_builds_alone();
    pair.b.wait_logged(&["warn", "more than a day off our clock"]);
    // The epoch that it wrote down lies days ahead: nobody would accept it, or one above it.
    pair.a.kill();
    pair.set_right();
    pair.a.start();
    pair.assert_met(HEARD);
}

#[test]
fn a_running_daemon_is_heard_once_its_clock_is_set_back_by_two_days() {
    let pair = Pair::new("+48h");
    pair.assert_builds_alone();
    pair.set_right();
    // The next comparison with its peer follows within a minute.
    pair.assert_met(NEXT_EXCHANGE);
}
