//! Events in the middle of a NAR: the build succeeds each time, with the gateway as the only substituter.
//!
//! The client's machine knows the holder only by the address of a [`GatedProxy`], which lets a given number of bytes of the
//! NAR pass and holds the rest. So "in the middle" is an exact number of bytes, and does not depend on luck.

use std::thread;
use std::time::Duration;

use narmesh_tests::{Finished, GatedProxy, TestMesh, TestNode, promised, wait_for};
use rustix::process::Signal;

/// A client whose only ways to the holders are gates.
struct Gated {
    holders: Vec<(TestNode, GatedProxy)>,
    client: TestNode,
    path: String,
}

impl Gated {
    /// Starts `count` holders of one path and the client, which connect through the gates; the client has heard from all.
    fn new(mesh: &TestMesh, attribute: &str, count: usize) -> Self {
        let mut client = mesh.node("client");
        // No node advertises its own address, so that the gates stay the only ways.
        client.config.advertise_loopback = false;
        let mut holders = Vec::new();
        let mut path = String::new();
        for number in 0..count {
            let mut holder = mesh.node(&format!("holder{number}"));
            holder.config.advertise_loopback = false;
            // Bytes are counted on the wire, where a compressed NAR would be too small to be held back.
            holder.config.compress = "never";
            path = holder.store.build_one(attribute);
            holder.allow(&client.card());
            holder.start();
            let gate = GatedProxy::to(holder.p2p_socket());
            client.allow(&holder.card());
            client.learn_address(&holder.name, &gate.multiaddr());
            holders.push((holder, gate));
        }
        client.config.compress = "never";
        client.start();
        for (holder, _) in &holders {
            holder.wait_all_advertised(&[&client]);
        }
        Self { holders, client, path }
    }

    /// Starts `nix-build` on the client, lets `bytes` of the NAR pass, does `event` to the holder that was asked for
    /// it, opens the gates, and returns how the build ended. Meanwhile a prober looks at the gateway.
    fn build_with_event(&mut self, attribute: &str, bytes: u64, event: impl FnOnce(&mut TestNode)) -> Finished {
        let narinfo = self.client.wait_narinfo(&self.path);
        assert!(narinfo.nar_size > bytes, "the event has to come in the middle");
        let prober = self.client.probe(&[]);
        for (_, gate) in &self.holders {
            gate.hold_after(bytes);
        }
        let (client, holders) = (&self.client, &mut self.holders);
        let finished = thread::scope(|scope| {
            let build = scope.spawn(|| client.nix_build(attribute));
            let held = wait_for("a gate holds the NAR back", promised(NAR_BEGINS), || {
                holders.iter().position(|(_, gate)| gate.is_holding())
            });
            event(&mut holders[held].0);
            for (_, gate) in holders.iter() {
                gate.release();
            }
            build.join().expect("the client is started")
        });
        prober.finish().assert_fit_for_nix(self.client.narinfo_slowest_max());
        finished
    }

    /// Asserts that the build succeeded, that the store's contents are right, and that the path came by the expected way.
    #[track_caller]
    fn assert_succeeded(&self, finished: Finished, way: Way) {
        finished.expect_success("nix-build with the gateway as the only substituter");
        self.client.store.verify_contents();
        let row = self.client.store.row(&self.path).expect("built or substituted");
        assert_eq!(row.ultimate, way == Way::Built, "{way:?} expected; narmesh said:\n{}", self.client.log());
    }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Way {
    Built,
    Substituted,
}

/// The first bytes of a NAR are promised within this.
const NAR_BEGINS: Duration = Duration::from_secs(5);

/// The event comes after this many bytes of a NAR of 6 MiB, which is verified before its first byte leaves the gateway.
const SMALL_PART_BYTES: u64 = 1 << 20;

/// The event comes after this many bytes of a larger NAR, which Nix has begun to unpack by then.
const LARGE_PART_BYTES: u64 = 10 << 20;

#[test]
fn a_path_is_built_when_the_only_holder_is_killed_in_a_small_nar() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "small", 1);
    let finished = gated.build_with_event("small", SMALL_PART_BYTES, TestNode::kill);
    gated.assert_succeeded(finished, Way::Built);
}

#[test]
fn a_path_is_built_when_the_only_holder_is_killed_in_a_large_nar() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "middle", 1);
    let finished = gated.build_with_event("middle", LARGE_PART_BYTES, TestNode::kill);
    gated.assert_succeeded(finished, Way::Built);
}

#[test]
fn a_path_is_substituted_when_one_of_two_holders_is_killed_in_a_small_nar() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "small", 2);
    let finished = gated.build_with_event("small", SMALL_PART_BYTES, TestNode::kill);
    gated.assert_succeeded(finished, Way::Substituted);
}

#[test]
fn a_path_is_substituted_when_one_of_two_holders_is_killed_in_a_large_nar() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "middle", 2);
    let finished = gated.build_with_event("middle", LARGE_PART_BYTES, TestNode::kill);
    gated.assert_succeeded(finished, Way::Substituted);
}

#[test]
fn a_path_is_built_when_the_only_holder_freezes_in_a_large_nar() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "middle", 1);
    let finished = gated.build_with_event("middle", LARGE_PART_BYTES, |holder| holder.signal(Signal::STOP));
    gated.assert_succeeded(finished, Way::Built);
}

#[test]
fn a_path_is_substituted_when_one_of_two_holders_freezes_in_a_large_nar() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "middle", 2);
    let finished = gated.build_with_event("middle", LARGE_PART_BYTES, |holder| holder.signal(Signal::STOP));
    gated.assert_succeeded(finished, Way::Substituted);
}

#[test]
fn a_path_is_built_when_its_only_holder_collects_it_in_the_middle_of_its_nar() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "huge", 1);
    let path = gated.path.clone();
    let finished = gated.build_with_event("huge", LARGE_PART_BYTES, |holder| holder.store.delete(&[path]));
    gated.assert_succeeded(finished, Way::Built);
}

#[test]
fn a_path_is_substituted_when_one_of_two_holders_collects_it_in_the_middle_of_its_nar() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "huge", 2);
    let path = gated.path.clone();
    let finished = gated.build_with_event("huge", LARGE_PART_BYTES, |holder| holder.store.delete(&[path]));
    gated.assert_succeeded(finished, Way::Substituted);
}

#[test]
fn a_build_succeeds_when_the_only_copy_of_a_small_nar_becomes_corrupt() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "small", 1);
    let path = gated.path.clone();
    let finished = gated.build_with_event("small", SMALL_PART_BYTES, |holder| {
        // This file lies behind the part that has passed, and behind what the buffers on the way can hold.
        holder.store.corrupt_file(&path, "blob005");
    });
    finished.expect_success("nix-build with the gateway as the only substituter");
    gated.client.store.verify_contents();
}

#[test]
fn a_path_is_built_when_the_only_copy_of_a_large_nar_becomes_corrupt() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "huge", 1);
    let path = gated.path.clone();
    let finished = gated.build_with_event("huge", LARGE_PART_BYTES, |holder| {
        holder.store.corrupt_file(&path, "blob038");
    });
    gated.assert_succeeded(finished, Way::Built);
}

#[test]
fn a_path_is_substituted_when_one_of_two_copies_of_a_large_nar_becomes_corrupt() {
    let mesh = TestMesh::new();
    let mut gated = Gated::new(&mesh, "huge", 2);
    let path = gated.path.clone();
    let finished = gated.build_with_event("huge", LARGE_PART_BYTES, |holder| {
        holder.store.corrupt_file(&path, "blob038");
    });
    // Its tree convicts the damaged bytes before Nix sees them, and the other holder goes on.
    gated.assert_succeeded(finished, Way::Substituted);
}
